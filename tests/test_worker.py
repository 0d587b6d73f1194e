"""Real Celery workers on a real Redis: order, arguments, failures, deaths."""

import json
import os
import signal
import threading
import time

import msgspec
import pytest
import redis
from celery import Celery

from director.definitions import load
from director.execution import Executor, Result
from director.models import Call, RunError, TaskError
from director.registry import discover
from director.settings import Settings
from director.store.redis import RedisStore
from director.store.shapes import Ref
from director.worker import register
from tests.contract.driving import relaunch
from tests.faults.services import Server
from tests.processes import (
    calls,
    ended,
    kill_all,
    project,
    ready,
    results,
    start,
    until,
    worker,
    workflow,
)


@pytest.fixture
def home(tmp_path):
    return project(tmp_path)


@pytest.fixture
def store(redis_url):
    store = RedisStore(redis_url)
    yield store
    store.close()


def tasks(run):
    return {task.key: task for task in run.tasks}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_group_in_a_chain_in_a_group_gets_its_arguments(home, store, redis_url, pool):
    definition = workflow(["ONE", ("ONE", ["ONE", ("ONE", "ONE"), "ECHO"], "ONE"), "ECHO"])
    with worker(home, redis_url, "-P", pool):
        ready(store)
        run = ended(store, start(store, definition, {"a": 1}))

    assert run.status == "succeeded"
    values = results(run)
    inner, last = values["ECHO"], values["ECHO.2"]
    assert inner["args"] == [[1, 1]]
    assert last["args"] == [[1, inner, 1]]
    assert last["payload"] == {"a": 1}
    assert last["run"] == run.id
    assert tasks(run)["ECHO.2"].parents == ("ONE.2", "ECHO", "ONE.6")
    for task in run.tasks:
        for parent in task.parents:
            assert tasks(run)[parent].ended_at <= task.started_at


def test_a_failed_member_stops_what_follows_and_relaunch_runs_only_that(home, store, redis_url):
    definition = workflow([("ONE", "FRAGILE", ["ONE", "ONE"]), "SUM"], failure_hook="ALERT")
    flag = home / "flag"
    with worker(home, redis_url):
        ready(store)
        run = ended(store, start(store, definition, {"flag": str(flag)}))
        assert run.status == "failed"
        assert {key: task.status for key, task in tasks(run).items() if not task.hook} == {
            "ONE": "succeeded",
            "FRAGILE": "failed",
            "ONE.2": "succeeded",
            "ONE.3": "succeeded",
            "SUM": "skipped",
        }
        assert run.error.type == "ValueError"
        until(lambda: "ALERT FRAGILE" in calls(home), what="the failure hook")

        flag.touch()
        before = len(calls(home))
        done = relaunch(store, run.id, definition)
        assert (done.rerun, done.keep) == (("FRAGILE", "SUM"), ("ONE", "ONE.2", "ONE.3"))
        run = ended(store, run.id)

    assert run.status == "succeeded"
    assert results(run)["SUM"] == 12
    assert sorted(calls(home)[before:]) == ["FRAGILE", "SUM"]


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ("NOT_JSON", "ResultError", "not JSON"),
        ("HUGE", "ResultError", "DIRECTOR_MAX_RESULT_BYTES"),
        ("EXIT", "SystemExit", "3"),
    ],
)
def test_a_bad_end_fails_the_task_and_says_why(home, store, redis_url, task, kind, words):
    with worker(home, redis_url):
        ready(store)
        run = ended(store, start(store, workflow([task, "ONE"])))

    assert run.status == "failed"
    assert run.error.type == kind
    assert words in run.error.message
    assert tasks(run)["ONE"].status == "skipped"


def test_the_same_message_twice_executes_once(home, store, redis_url):
    client = redis.Redis.from_url(redis_url)
    run_id = start(store, workflow(["ONE"]))
    message = client.lindex("director:mq:celery", 0)
    client.lpush("director:mq:celery", message, message)
    with worker(home, redis_url):
        ended(store, run_id)
        until(lambda: client.llen("director:mq:celery") == 0)
        ended(store, start(store, workflow(["SUM"])))

    assert calls(home).count("ONE") == 1


def test_a_stock_celery_worker_runs_our_messages_and_ordinary_ones(home, store, redis_url):
    with worker(home, redis_url, "-l", "WARNING", stock=True):
        ready(store)
        run = ended(store, start(store, workflow(["ONE", ("ONE", "ONE"), "SUM"])))
        assert results(run)["SUM"] == 2
        sender = Celery(broker=redis_url, set_as_current=False)
        sender.conf.broker_transport_options = {"global_keyprefix": "director:mq:"}
        sender.send_task("ONE", args=[None], queue="celery", ignore_result=True)
        until(lambda: calls(home).count("ONE") == 4, what="the ordinary message")


def test_a_killed_pool_child_is_noticed_at_once(home, store, redis_url):
    with worker(home, redis_url):
        ready(store)
        run_id = start(store, workflow(["SLEEP_ONCE"]), {"seconds": 60})
        line = until(lambda: calls(home))[0]
        killed_at = time.monotonic()
        os.kill(int(line.split()[1]), signal.SIGKILL)
        run = ended(store, run_id, 8)

    assert time.monotonic() - killed_at < 6
    assert results(run) == {"SLEEP_ONCE": "second"}
    assert run.tasks[0].attempts == 2


def test_runs_end_when_a_worker_is_killed_in_a_task_and_with_a_message_in_hand(home, store, redis_url):
    with worker(home, redis_url) as first:
        ready(store)
        in_task = start(store, workflow(["SLEEP_ONCE"]), {"seconds": 60})
        until(lambda: calls(home))
        # A frozen worker's blocked read takes the message; killed, it takes it along.
        os.killpg(first.pid, signal.SIGSTOP)
        in_hand = start(store, workflow(["ONE"]))
        until(lambda: redis.Redis.from_url(redis_url).llen("director:mq:celery") == 0, what="pop")
        kill_all(first)
    killed_at = time.monotonic()
    with worker(home, redis_url):
        one = ended(store, in_hand, 45, sweep=True)
        other = ended(store, in_task, 45, sweep=True)

    assert time.monotonic() - killed_at < 45
    assert (one.status, other.status) == ("succeeded", "succeeded")
    assert calls(home).count("ONE") == 1


def test_sigterm_hands_back_what_does_not_finish(home, store, redis_url):
    with worker(home, redis_url, DIRECTOR_GRACE_SECONDS="1") as first:
        ready(store)
        slow = start(store, workflow(["SLEEP_ONCE"]), {"seconds": 60})
        quick = start(store, workflow(["SLEEP"]), {"seconds": 0.5})
        until(lambda: len(calls(home)) == 2)
        first.send_signal(signal.SIGTERM)
        assert first.wait(6) == 0
    assert ended(store, quick).status == "succeeded"
    task = store.do(store.get(slow))[0].tasks[0]
    assert (task.status, task.attempts) == ("queued", 1)
    with worker(home, redis_url):
        assert results(ended(store, slow)) == {"SLEEP_ONCE": "second"}


def test_nothing_waits_behind_a_long_task_while_another_worker_is_free(home, store, redis_url):
    with worker(home, redis_url, "-c", "1"), worker(home, redis_url, "-c", "1"):
        ready(store, 2)
        start(store, workflow(["SLEEP"]), {"seconds": 60})
        until(lambda: calls(home), what="the long task")
        for run_id in [start(store, workflow(["ONE"])) for _ in range(10)]:
            assert ended(store, run_id, 10).status == "succeeded"


def test_two_prefixes_on_one_redis_never_meet(tmp_path, redis_url):
    stores = [RedisStore(redis_url, prefix) for prefix in ("one:", "two:")]
    homes = [project(tmp_path / prefix) for prefix in ("one", "two")]
    with (
        worker(homes[0], redis_url, DIRECTOR_PREFIX="one:"),
        worker(homes[1], redis_url, DIRECTOR_PREFIX="two:"),
    ):
        for store in stores:
            ready(store)
        runs = [[start(store, workflow(["ONE", "ONE"])) for _ in range(20)] for store in stores]
        for store, ids in zip(stores, runs, strict=True):
            assert {ended(store, run_id).status for run_id in ids} == {"succeeded"}

    assert [len(calls(home)) for home in homes] == [40, 40]
    names = {key.split(b":")[0] for key in redis.Redis.from_url(redis_url).keys("*")}
    assert names == {b"one", b"two"}


def test_a_queue_named_later_is_consumed_too(home, store, redis_url):
    with worker(home, redis_url):
        ready(store)
        run_id = start(store, workflow(["ONE"], queue="later"))
        assert ended(store, run_id, 20).tasks[0].queue == "later"
        queues = until(lambda: [q for q in store.do(store.inspect()).workers.values() if "later" in q])
        assert queues == [("celery", "later")], "what it consumes is published"


def test_queues_that_the_files_name_are_consumed_from_the_start(home, store, redis_url):
    (home / "workflows" / "w.yml").write_text(
        "w.A: {tasks: [{ONE: {queue: other}}], hooks: {success: ALERT}, queue: {customs: {ALERT: hooks}}}\n"
        "w.B: {tasks: [HEAVY], queue: {default: slow}}\nw.C: {tasks: [HEAVY]}\n"
    )
    with worker(home, redis_url, DIRECTOR_LOG_LEVEL="INFO"):
        ready(store)
        for definition in load(home).workflows.values():
            run = ended(store, start(store, definition), 10)
            assert run.status == "succeeded"
        until(lambda: any("ALERT" in line for line in calls(home)), what="the hook")
    assert "worker.queue_added" not in (home / "worker.log").read_text()


def test_a_timeout_ends_as_one_and_nothing_late_counts(home, store, redis_url):
    """Given a task that swallows the signal that ends its process, then its result is refused all the same."""
    with worker(home, redis_url):
        ready(store)
        limited = Call(name="STUBBORN", timeout=1.0, retries=2)
        run = ended(store, start(store, workflow([limited, "ONE"])), 15)
        assert run.error == RunError("STUBBORN", "Timeout", "it took longer than its timeout of 1 s")
        # The process that still executes it is ended soon after, and others take its place.
        assert results(ended(store, start(store, workflow([("ONE", "ONE"), "SUM"])), 15))["SUM"] == 2
        time.sleep(6)
        assert store.do(store.get(run.id))[0] == run
    assert calls(home).count("STUBBORN") == 1


def test_a_child_that_is_told_to_end_is_a_loss_and_no_failure(home, store, redis_url):
    with worker(home, redis_url):
        ready(store)
        run_id = start(store, workflow(["SLEEP_ONCE"]), {"seconds": 60})
        line = until(lambda: calls(home))[0]
        os.kill(int(line.split()[1]), signal.SIGTERM)
        run = ended(store, run_id, 8)
    assert (run.status, run.tasks[0].attempts) == ("succeeded", 2)


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ("MUTE", "Mute", "its text cannot be had: ZeroDivisionError"),
        ("SURROGATE", "ValueError", "bad\\udcffname"),
        ("INTERRUPT", "KeyboardInterrupt", ""),
        ("EXIT", "SystemExit", "3"),
    ],
)
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_whatever_a_task_raises_fails_it_at_once(home, store, redis_url, pool, task, kind, words):
    with worker(home, redis_url, DIRECTOR_POOL=pool):
        ready(store)
        run = ended(store, start(store, workflow([task])), 10)
    assert (run.error.type, run.tasks[0].attempts) == (kind, 1)
    assert words in run.error.message
    assert "director/" not in run.tasks[0].error.traceback, "the frames are the task's own"


BROKEN = """
from director import task

@task(name="WRONG_QUEUE", queue=5)
def wrong_queue(): pass

@task(name="WRONG_RATE", rate_limit="bogus")
def wrong_rate(): pass

@task(name="WRONG_RETRY", autoretry_for=ValueError)
def wrong_retry(): pass

@task(name="TWICE")
def twice(): pass

@task(name="TWICE")
def again(): pass
"""
IMPOSSIBLE = (
    "from director import task\n\n@task(name='GONE')\ndef gone(): return 1\n\n@task('NAME')\ndef f(): pass\n"
)


def test_a_broken_task_is_named_and_keeps_nobody_from_working(home, store, redis_url):
    (home / "tasks" / "broken.py").write_text(BROKEN)
    (home / "tasks" / "impossible.py").write_text(IMPOSSIBLE)
    (home / "tasks" / "my-dash.py").write_text("")
    found = [str(problem) for problem in register(discover(home)).problems]
    assert found == [
        'tasks/broken.py:4:1: task "WRONG_QUEUE" has a wrong queue: expected `str | null`, got `int`',
        'tasks/broken.py:7:1: task "WRONG_RATE" cannot be a Celery task: ValueError: could not convert string to float: '
        "'bogus'",
        "tasks/broken.py:10:1: task \"WRONG_RETRY\" cannot be a Celery task: TypeError: 'type' object is not iterable",
        'tasks/broken.py:16:1: task "TWICE" is also at tasks/broken.py:13; rename one of them',
        "tasks/impossible.py:6:1: cannot be imported: TypeError: write @task(name='NAME') "
        "(tasks/impossible.py:6 @task('NAME'))",
        "tasks/my-dash.py:1:1: cannot be imported: the names of modules have letters, digits and _ only",
    ]
    with worker(home, redis_url):
        ready(store)
        run = ended(store, start(store, workflow(["ONE", "GONE"])), 10)
        assert run.status == "succeeded", "a task above the slip is there"
        assert "WRONG_QUEUE" not in store.do(store.task_options())


def poison(message):
    """Return what no worker can use, each a change to a message that is right."""

    def changed(**changes):
        copy = json.loads(message)
        for path, value in changes.items():
            *way, last = path.split("__")
            place = copy
            for step in way:
                place = place[step]
            place.pop(last.replace("_", "-"), None) if value is None else place.update(
                {last.replace("_", "-"): value}
            )
        return json.dumps(copy)

    yield from (b"\xff\xfe", b"", b"no JSON", b"[1, 2]", b"null", b"17", b'"text"', b"{}", b"[" * 100_000)
    yield from (
        b'{"properties": {}}',
        b'{"properties": {"delivery_tag": "x"}}',
        b'{"headers": {}, "properties": 5}',
    )
    yield changed(content_type=None)
    yield changed(content_type="application/x-python-serialize")
    yield changed(content_type=5)
    yield changed(headers=None)
    yield changed(headers=[])
    yield changed(headers={})
    yield changed(headers="text")
    yield changed(headers__id=None)
    yield changed(headers__id=[1])
    yield changed(headers__task=["ONE"])
    yield changed(headers__task=None)
    yield changed(headers__director="broken")
    yield changed(headers__director="run:x 0 1")
    yield changed(headers__director=5)
    yield changed(headers__timelimit="soon")
    yield changed(headers__timelimit=["soon", "now"])
    yield changed(headers__timelimit=[1, 2, 3])
    yield changed(headers__eta="tomorrow")
    yield changed(headers__expires=[])
    yield changed(body="no base64")
    yield changed(body="bm8gSlNPTg==")
    yield changed(body="e30=")
    yield changed(body=5)
    yield changed(body=None)
    yield json.dumps({**json.loads(message), "properties": {"delivery_tag": "t", "delivery_info": "text"}})


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_is_no_message_is_dropped_and_the_worker_lives(home, store, redis_url, pool):
    client = redis.Redis.from_url(redis_url)
    start(store, workflow(["SUM"]))
    bad = list(poison(client.lpop("director:mq:celery")))
    with worker(home, redis_url, DIRECTOR_POOL=pool) as process:
        ready(store)
        for item in bad:
            client.lpush("director:mq:celery", item)
            assert ended(store, start(store, workflow(["ONE"])), 10).status == "succeeded", item[:80]
        assert process.poll() is None
    assert calls(home) == ["ONE"] * len(bad)
    log = (home / "worker.log").read_text()
    assert "message.dropped" in log
    assert "Connection to broker lost" not in log
    assert client.hlen("director:mq:unacked") == 0


@pytest.fixture
def mortal(tmp_path):
    """A server that can be killed, and a store on it."""
    (tmp_path / "valkey").mkdir()
    server = Server(tmp_path / "valkey")
    store = RedisStore(server.url, timeout_s=1)
    yield server, store
    store.close()
    server.close()


def away(server):
    """Kill the server now and start it again in a second."""
    server.close()
    threading.Timer(1, server.start).start()


def test_a_retry_is_granted_though_the_store_is_away_when_the_task_fails(mortal, tmp_path):
    server, store = mortal
    run_id = start(store, workflow([Call(name="A", retries=2, backoff=60)]))

    def fail(begun, arguments):
        away(server)
        return Result(error=TaskError(type="ValueError", message="boom"))

    settings = Settings.from_env({"DIRECTOR_HOME": str(tmp_path)})
    Executor(store, settings).execute(Ref(run_id, 0), "celery", False, fail)
    assert store.do(store.get(run_id))[0].tasks[0].status == "retrying"


def test_a_failure_hook_gets_its_run_though_the_store_is_away(mortal, tmp_path):
    server, store = mortal
    run_id = start(store, workflow(["A"], failure_hook="ALERT"))
    executor = Executor(store, Settings.from_env({"DIRECTOR_HOME": str(tmp_path)}))
    boom = Result(error=TaskError(type="ValueError", message="boom"))
    executor.execute(Ref(run_id, 0), "celery", False, lambda begun, arguments: boom)

    def alert(begun, arguments):
        away(server)
        return Result(value=arguments()[1]["run"]["id"])

    executor.execute(Ref(run_id, 1), "celery", False, alert)
    hook = store.do(store.get(run_id))[0].tasks[1]
    assert (hook.status, msgspec.json.decode(hook.result)) == ("succeeded", run_id)

"""What a cancel does to the tasks that execute: real workers on Redis, and the embedded one."""

import contextlib
import random
import time

import pytest

from director.engine import new_token
from director.errors import Conflict
from director.models import Call
from director.store.redis import RedisStore
from tests.processes import calls, ended, project, ready, results, start, until, worker, workflow
from tests.test_up import Service

TASKS = '''
import random, socket, time
from director import Canceled, check_canceled, task
from tasks.sample import note

def noted(wait):
    """Note what comes out of a wait."""
    note("waits")
    try:
        wait()
    except BaseException as exc:
        note(type(exc).__name__)
        raise
    note("through")

def spin():
    while True:
        sum(range(100))

def swallow():
    while True:
        try:
            time.sleep(60)
        except Exception:
            note("swallowed")

def look():
    while True:
        check_canceled()
        time.sleep(0.01)

PAIR = socket.socketpair()
WAITS = {
    "sleep": lambda: time.sleep(60),
    "spin": spin,
    "swallow": swallow,
    "socket": lambda: PAIR[0].recv(1),
    "look": look,
}

@task(name="WAIT", autoretry_for=(BaseException,), max_retries=3, default_retry_delay=0)
def wait(previous, payload):
    noted(WAITS[payload["how"]])

@task(name="GO_ON")
def go_on(previous):
    for _ in range(3):
        try:
            noted(lambda: time.sleep(60))
        except Canceled:
            pass

@task(name="SHORT")
def short(previous, payload):
    time.sleep(random.random() * payload["most"])
    return payload["number"]
'''


@pytest.fixture
def home(tmp_path):
    project(tmp_path)
    (tmp_path / "tasks" / "waits.py").write_text(TASKS)
    (tmp_path / "workflows" / "w.yml").write_text("w.WAIT: {tasks: [WAIT], hooks: {failure: ALERT}}\n")
    return tmp_path


@pytest.fixture
def store(redis_url):
    store = RedisStore(redis_url)
    yield store
    store.close()


def cancel(store, run_id):
    store.do(store.cancel(run_id, new_token()))


@pytest.mark.parametrize(
    ("pool", "how"),
    [
        ("prefork", "sleep"),
        ("prefork", "spin"),
        ("prefork", "swallow"),
        ("prefork", "socket"),
        ("threads", "look"),
    ],
)
def test_a_cancel_is_raised_inside_the_function(home, store, redis_url, pool, how):
    definition = workflow(["WAIT", "ONE"], failure_hook="ALERT")
    with worker(home, redis_url, "-c", "1", DIRECTOR_POOL=pool, DIRECTOR_LOG_LEVEL="INFO"):
        ready(store)
        run_id = start(store, definition, {"how": how})
        until(lambda: calls(home) == ["waits"])
        cancel(store, run_id)
        canceled = store.do(store.get(run_id))[0]
        until(lambda: calls(home) == ["waits", "Canceled"], 5, "Canceled")
        # The same process executes the next one.
        assert ended(store, start(store, workflow(["ONE"])), 5).status == "succeeded"
        assert store.do(store.get(run_id))[0] == canceled
    log = (home / "worker.log").read_text()
    assert "task.canceled" in log
    for word in ("Traceback", "task.failed", "task.retried", "task.refused", "worker.exited"):
        assert word not in log
    assert "ALERT" not in " ".join(calls(home))


def test_a_task_that_goes_on_hears_it_again(home, store, redis_url):
    (home / "tasks" / "hurry.py").write_text("from director import execution\n\nexecution.AGAIN_S = 0.5\n")
    with worker(home, redis_url, "-c", "1"):
        ready(store)
        run_id = start(store, workflow(["GO_ON"]))
        until(lambda: calls(home) == ["waits"])
        cancel(store, run_id)
        until(lambda: calls(home) == ["waits", "Canceled", "waits", "Canceled", "waits"], 20, "the second")


def test_what_was_taken_away_for_its_timeout_is_interrupted_too(home, store, redis_url):
    """Given a pool child that the limit would end 5 s later, then its function hears of it before."""
    with worker(home, redis_url, "-c", "1"):
        ready(store)
        definition = workflow([Call(name="WAIT", timeout=1.0)])
        run = ended(store, start(store, definition, {"how": "sleep"}), 10, sweep=True)
        assert run.error.type == "Timeout"
        until(lambda: calls(home) == ["waits", "Canceled"], 5, "Canceled")


def test_a_rain_of_cancels_hurts_no_other_run(home, store, redis_url):
    """Given short tasks that run ahead in one process, and cancels at any instant, then each other run succeeds."""
    # Looks a hundred times as often, so that thousands of task runs end while a signal is on its way.
    (home / "tasks" / "hurry.py").write_text("from director import execution\n\nexecution.LOOK_S = 0.02\n")
    rng, runs, doomed = random.Random(7), {}, set()
    definition = workflow(["SHORT"] * 4)
    with worker(home, redis_url, DIRECTOR_LOG_LEVEL="INFO"):
        ready(store)
        ends_at = time.monotonic() + 8
        while time.monotonic() < ends_at:
            for _ in range(3):
                runs[start(store, definition, {"number": len(runs), "most": rng.choice([0, 0.02, 0.05])})] = len(
                    runs
                )
            time.sleep(rng.random() * 0.1)
            for run_id in rng.sample(list(runs)[-6:], min(3, len(runs))):
                with contextlib.suppress(Conflict):
                    cancel(store, run_id)
                    doomed.add(run_id)
        done = {run_id: ended(store, run_id, 40) for run_id in runs}
    assert {id for id, run in done.items() if run.status == "canceled"} == doomed
    for run_id, number in runs.items():
        if run_id not in doomed:
            assert set(results(done[run_id]).values()) == {number}, done[run_id]
    assert min(len(doomed), len(runs) - len(doomed)) > 50
    log = (home / "worker.log").read_text()
    assert log.count("task.canceled") > 30
    assert "Traceback" not in log
    assert "worker.exited" not in log


def test_the_embedded_worker_cancels_what_asks(home):
    service = Service(home)
    try:
        service.wait_up()
        run = service.call("POST", "/workflows/w.WAIT/runs", {"how": "look"})[1]
        until(lambda: calls(home) == ["waits"])
        assert service.call("POST", f"/runs/{run['id']}/cancel")[0] == 202
        until(lambda: calls(home) == ["waits", "Canceled"], 5, "Canceled")
        assert service.call("GET", f"/runs/{run['id']}")[1]["status"] == "canceled"
        until(lambda: "task.canceled" in service.log.read_text(), what="the log")
    finally:
        assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()

"""Brokers other than the store's Redis: RabbitMQ and files, with real web and worker processes."""

import collections
import contextlib
import json
from pathlib import Path

import pytest

from director.settings import Settings
from director.states import SUCCEEDED
from director.store.redis import RedisStore
from tests.contract.driving import begin, finish, get, plan_of
from tests.contract.driving import new as new_run
from tests.processes import calls, project, until, worker
from tests.rabbitmq import SERVER, RabbitMQ
from tests.test_up import Service

FLOW = """
w.NESTED: {tasks: [ECHO, {g: {type: group, tasks: [ONE, {h: {type: group, tasks: [ONE, HEAVY]}}, ONE]}}, ECHO]}
w.TWO: {tasks: [ECHO, ECHO]}
"""


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory):
    if not Path(SERVER).exists():
        pytest.skip("there is no RabbitMQ here; .ci/run installs it, and then this runs")
    node = RabbitMQ(tmp_path_factory.mktemp("rabbit"))
    try:
        node.start()
        yield node
    finally:
        node.stop()


@contextlib.contextmanager
def running(home, redis_url, broker):
    """Run a web and a worker process until the block ends."""
    project(home)
    (home / "workflows" / "w.yml").write_text(FLOW)
    web = Service(home, "web", DIRECTOR_REDIS_URL=redis_url, DIRECTOR_BROKER_URI=broker)
    try:
        with worker(home, redis_url, DIRECTOR_BROKER_URI=broker):
            web.wait_up()
            until(lambda: web.call("GET", "/status")[1]["workers"] == 1, what="worker")
            yield web
    finally:
        web.stop()


def run_all_queues(web):
    status, run, _ = web.call("POST", "/workflows/w.NESTED/runs?wait=20", {})
    assert status == 200
    assert run["status"] == SUCCEEDED
    assert [task["attempts"] for task in run["tasks"]] == [1] * 6


def test_a_nested_group_and_a_second_queue_over_rabbitmq(tmp_path, redis_url, rabbit):
    with running(tmp_path, redis_url, rabbit.url) as web:
        run_all_queues(web)
    assert "guest" not in (tmp_path / "up.log").read_text() + (tmp_path / "worker.log").read_text()


def test_what_was_accepted_while_the_broker_was_killed_runs_once(tmp_path, redis_url, rabbit):
    with running(tmp_path, redis_url, rabbit.url) as web:
        rabbit.kill()
        answers = [web.call("POST", "/workflows/w.TWO/runs", {}) for _ in range(20)]
        assert [status for status, _, _ in answers] == [202] * 20
        assert web.call("GET", "/health/ready")[0] == 503
        assert "does not answer" in str(web.call("GET", "/status")[1]["problems"])
        rabbit.start()
        for _, run, _ in answers:
            until(lambda id=run["id"]: web.call("GET", f"/runs/{id}")[1]["status"] == SUCCEEDED, 20, "a run")
    executions = collections.Counter(calls(tmp_path))
    assert len(executions) == 40
    assert set(executions.values()) == {1}


def test_files_carry_messages(tmp_path, redis_url):
    folder = tmp_path / "queues" / "here"
    with running(tmp_path, redis_url, f"filesystem://{folder}") as web:
        run_all_queues(web)
    assert not list(folder.glob("*.msg"))


# The store's part. TinyDB has no other broker than its process's memory.


@pytest.fixture
def store(redis_url, clock):
    store = RedisStore(redis_url, clock=clock, broker_is_store=False)
    yield store
    store.close()


def start(store, spec=("A",)):
    order = new_run(plan_of(list(spec), ahead=True))
    store.do(store.start(order))
    return order.run_id


def taken(store, publisher):
    """Return the runs of the messages that a publisher takes over and has confirmed."""
    found = []
    while message := store.do(store.take_message(publisher, 0.01)):
        found.append(json.loads(message)["headers"]["id"].rpartition(":")[0])
        store.do(store.drop_message(publisher, message))
    return found


def test_messages_leave_in_order_once_and_none_is_taken_by_a_running_task(store):
    first, second = start(store, ["A", "B"]), start(store)
    assert taken(store, "p") == [first, second]
    assert taken(store, "q") == []
    assert finish(store, begin(store, first, 0), 1).accepted


def test_the_message_of_a_dead_publisher_is_returned(store, clock):
    run_id = start(store)
    store.do(store.sweep(publisher="dead"))
    assert store.do(store.take_message("dead", 0.01))
    clock.pass_s(9)
    store.do(store.sweep(publisher="p"))
    assert taken(store, "p") == []
    clock.pass_s(2)
    store.do(store.sweep(publisher="p"))
    assert taken(store, "p") == [run_id]


def test_a_message_that_is_refused_does_not_hold_up_the_others(store):
    refused, other = start(store), start(store)
    assert store.do(store.take_message("p", 0.01))
    assert store.do(store.return_message("p"))
    assert store.do(store.return_message("p")) is None
    assert taken(store, "p") == [other, refused]


def test_a_message_is_sent_again_once_its_broker_has_none(store, clock):
    run_id = start(store)
    assert taken(store, "p") == [run_id]
    clock.pass_s(19)
    assert store.do(store.sweep(publisher="p")).unsure == ()
    clock.pass_s(1)
    assert store.do(store.sweep(publisher="p")).unsure == ("celery",)
    assert store.do(store.sweep(publisher="p")).resent == ()
    assert len(store.do(store.sweep(publisher="p", drained=["celery"])).resent) == 1
    assert store.do(store.sweep(publisher="p", drained=["celery"])).resent == ()
    assert taken(store, "p") == [run_id]
    clock.pass_s(39)
    assert store.do(store.sweep(publisher="p")).unsure == ()
    assert get(store, run_id).status == "queued"


def test_what_waits_in_the_outbox_is_not_sent_again(store, clock):
    run_id = start(store)
    clock.pass_s(300)
    assert store.do(store.sweep(publisher="p", drained=["celery"])).resent == ()
    assert taken(store, "p") == [run_id]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("amqps://me:secret@host:5671/vhost", "amqps://host:5671/vhost"),
        ("filesystem://", "filesystem://{home}/.director/broker"),
        ("filesystem:///some/folder", "filesystem:///some/folder"),
        ("redis://:secret@host/0", "redis://host/0"),
    ],
)
def test_the_broker_is_named_without_its_password(tmp_path, uri, name):
    environ = {"DIRECTOR_HOME": str(tmp_path), "DIRECTOR_BROKER_URI": uri, "DIRECTOR_REDIS_URL": "redis://host/0"}
    assert Settings.from_env(environ).broker_name == name.format(home=tmp_path)

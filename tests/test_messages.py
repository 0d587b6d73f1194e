"""What `messages` builds is what kombu builds, and what kombu reads."""

import json

import pytest
import redis
from celery import Celery

from director import messages
from director.models import Node, Plan
from director.store.redis import RedisStore
from director.store.shapes import NewRun

NODES = [
    Node(key="A", task="A", queue="celery"),
    Node(key="B", task="my.task", queue="heavy", priority=5, timeout_s=60.0, soft_timeout_s=50.0),
    Node(key="C", task='odd "name" 100%s', queue="etl", priority=9, ahead=True),
]


def pushed_by_celery(redis_url: str, node: Node, task_id: str, header: str) -> tuple[str, dict]:
    app = Celery(broker=redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "k:"}
    app.send_task(
        node.task,
        args=[],
        kwargs={},
        task_id=task_id,
        queue=node.queue,
        priority=node.priority,
        time_limit=node.timeout_s and node.timeout_s + messages.KILL_AFTER_S,
        soft_time_limit=node.soft_timeout_s,
        ignore_result=True,
        headers={messages.HEADER: header},
        argsrepr="()",
        kwargsrepr="{}",
    )
    client = redis.Redis.from_url(redis_url)
    (name,) = [key for key in client.keys("k:*") if client.type(key) == b"list"]
    return name.decode().removeprefix("k:"), json.loads(client.lindex(name, 0))


def pushed_by_us(redis_url: str, node: Node) -> tuple[str, dict]:
    store = RedisStore(redis_url)
    made = Plan(workflow="w", nodes=(node,), total=1, digest=node.key)
    store.do(store.start(NewRun(run_id="run-1", plan=made, payload=b"{}", trigger={"kind": "api"}, roots=(0,))))
    client = redis.Redis.from_url(redis_url)
    (name,) = [key for key in client.keys("director:mq:*") if client.type(key) == b"list"]
    return name.decode().removeprefix("director:mq:"), json.loads(client.lindex(name, 0))


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.key)
def test_a_message_equals_what_the_installed_celery_pushes(redis_url, node):
    name, ours = pushed_by_us(redis_url, node)
    queue, theirs = pushed_by_celery(redis_url, node, "run-1:0", ours["headers"][messages.HEADER])

    assert messages.queue_list(node.queue, node.priority) == queue == name
    # What cannot agree: who sent it, where an answer would go, and the tag that is new for each push.
    assert theirs["headers"].pop("origin") and ours["headers"].pop("origin") == "director"
    assert theirs["properties"].pop("reply_to") and ours["properties"].pop("reply_to") == ""
    assert theirs["properties"].pop("delivery_tag") != ours["properties"].pop("delivery_tag")
    # Celery repeats the two texts in the properties since 5.6; workers read the headers.
    for name in ("argsrepr", "kwargsrepr"):
        assert theirs["properties"].pop(name, None) in (None, ours["headers"][name])
    assert ours == theirs


def test_the_header_names_the_task_run():
    node = NODES[2]
    text = messages.headers(node, "run-1:12", "1700000000000")[messages.HEADER]
    assert messages.parse(text) == ("run-1", 12, True)


@pytest.mark.parametrize("header", [None, 5, "", "x", "a:b 1 1", ":1 2 3", "run:1", {"id": 1}])
def test_other_headers_are_not_ours(header):
    assert messages.parse(header) is None

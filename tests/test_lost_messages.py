"""Redis only, where messages are in lists that the sweep can look at: what is lost is sent again, and only that."""

import json

import pytest
import redis

from director import messages
from director.store.redis import RedisStore
from tests.contract.driving import begin, finish, get, plan_of
from tests.contract.driving import new as new_run

QUEUE = "director:mq:celery"


@pytest.fixture
def store(redis_url, clock):
    store = RedisStore(redis_url, clock=clock)
    yield store
    store.close()


@pytest.fixture
def client(redis_url):
    return redis.Redis.from_url(redis_url)


def resent(store, clock, seconds):
    found = []
    for _ in range(seconds):
        clock.pass_s(1)
        found += store.do(store.sweep()).resent
    return found


def ref_of(message):
    run_id, number, _ = messages.parse(json.loads(message)["headers"][messages.HEADER])
    return run_id, number


def test_a_long_queue_is_not_sent_again(store, client, clock):
    """Given 2,000 waiting runs and a worker that takes five a second, then a minute repeats nothing."""
    built = plan_of(["A"])
    for _ in range(2000):
        clock.now += 1
        store.do(store.start(new_run(built)))
    for _ in range(60):
        for _ in range(5):
            run_id, number = ref_of(client.rpop(QUEUE))
            finish(store, begin(store, run_id, number))
        assert resent(store, clock, 1) == []
    assert client.llen(QUEUE) == 1700


def test_a_lost_message_is_sent_again_and_less_and_less_often(store, client, clock):
    order = new_run(plan_of(["A"]))
    store.do(store.start(order))
    client.rpop(QUEUE)
    assert resent(store, clock, 19) == []
    waits, last = [], 0
    for second in range(20, 900):
        if resent(store, clock, 1):
            waits.append(second - last)
            last = second
            client.rpop(QUEUE)
    assert waits[:5] == [20, 40, 80, 160, 320]
    store.do(store.start(new_run(plan_of(["A"]))))
    assert get(store, order.run_id).status == "queued"


def test_only_the_lost_ones_of_a_full_queue_are_sent_again(store, client, clock):
    built = plan_of(["A"])
    for _ in range(50):
        clock.now += 1
        store.do(store.start(new_run(built)))
    lost = {ref_of(client.rpop(QUEUE)) for _ in range(7)}
    found = {(ref.run_id, ref.number) for ref in resent(store, clock, 25)}
    assert found == lost
    assert client.llen(QUEUE) == 50


def test_foreign_messages_do_not_confuse_the_sweep(store, client, clock):
    store.do(store.start(new_run(plan_of(["A"]))))
    for text in ("not JSON", '{"headers": {}}', "x" * 5000, ""):
        client.rpush(QUEUE, text)
    assert resent(store, clock, 40) == []

"""The contract: a reply may be lost. Each verb made twice gives the first answer and changes nothing more."""

import pytest

from director.models import TaskError, TaskOptions
from director.store.shapes import Dedupe, Filter, Next, Outcome, Ref, Relaunch, Swept
from tests.contract.driving import BOOM, HOLDER, begin, fail, get, new, plan_of, queued

PLAN = plan_of(["A", ("B", "C")], ahead=True, failure_hook="BAD")
GONE = TaskError(type="UnknownTask", message="nobody knows it")
WISH = Next(token="kept", queue="celery")


def finishing(wish=None, **outcome):
    return lambda store, ref: store.finish(ref, "token", Outcome(**outcome), HOLDER, wish)


def relaunching(store, ref):
    order = Relaunch(run_id=ref.run_id, launch=1, token="again", plan=PLAN, resets={0: 0, 1: 1, 2: 1})
    return store.relaunch(order)


CALLS = {
    # name: (state of the run's first task run, the call)
    "begin": ("queued", lambda store, ref: store.begin(ref, "token", HOLDER)),
    "finish": ("running", finishing(result=b'{"rows":1}')),
    "finish and keep one": ("running", finishing(WISH, result=b'{"rows":1}')),
    "finish with a large result": ("running", finishing(WISH, result=b'"%s"' % (b"x" * 9000))),
    "fail": ("running", finishing(error=BOOM)),
    "fail and keep the hook": ("running", finishing(WISH, error=BOOM)),
    "fail and try again": ("running", finishing(error=BOOM, retry_in_ms=5000)),
    "cancel": ("running", lambda store, ref: store.cancel(ref.run_id, "stop")),
    "relaunch": ("failed", relaunching),
    "publish": ("queued", lambda store, ref: store.publish("boot", {"A": TaskOptions(queue="q")})),
}


def brought_to(store, state):
    order = new(PLAN)
    store.do(store.start(order))
    if state == "failed":
        fail(store, order.run_id, 0)
    elif state == "running":
        begin(store, order.run_id, 0, "token")
    return Ref(run_id=order.run_id, number=0)


def everything(store, run_id):
    return (
        get(store, run_id),
        queued(store),
        store.do(store.list(Filter())),
        store.do(store.state(["w"])),
        store.do(store.task_options()),
    )


@pytest.mark.parametrize("name", CALLS)
def test_a_call_made_twice_gets_the_first_answer_and_changes_nothing_more(store, name):
    state, call = CALLS[name]
    ref = brought_to(store, state)
    untouched = everything(store, ref.run_id)
    first = store.do(call(store, ref))
    after = everything(store, ref.run_id)
    assert after != untouched
    assert store.do(call(store, ref)) == first
    assert everything(store, ref.run_id) == after


@pytest.mark.parametrize("name", ["begin", "finish and keep one", "fail", "cancel"])
def test_a_repeat_some_seconds_later_moves_no_time(store, clock, name):
    state, call = CALLS[name]
    ref = brought_to(store, state)
    first = store.do(call(store, ref))
    after = get(store, ref.run_id)
    clock.pass_s(3)
    assert store.do(call(store, ref)) == first
    assert get(store, ref.run_id) == after


def test_a_start_made_twice_gets_the_first_answer(store):
    order = new(PLAN, payload={"a": 1}, dedupe=Dedupe(key="github:1", ttl_s=60))
    first = store.do(store.start(order))
    assert not first.duplicate
    after = everything(store, order.run_id)
    assert store.do(store.start(order)) == first
    assert everything(store, order.run_id) == after


@pytest.mark.parametrize("counted", [False, True])
def test_a_task_run_is_handed_back_once(store, counted):
    """The token is void after the first call, so that the second is refused; its caller does not care."""
    ref = brought_to(store, "running")
    assert store.do(store.hand_back(HOLDER, counted)).lost == (ref,)
    after = everything(store, ref.run_id)
    assert store.do(store.hand_back(HOLDER, counted)) == Swept(idle=False)
    assert everything(store, ref.run_id) == after


@pytest.mark.parametrize(("state", "token"), [("queued", ""), ("running", "token")])
def test_a_task_that_is_unknown_is_one_loss_however_often_that_is_said(store, state, token):
    ref = brought_to(store, state)
    assert store.do(store.unknown(ref, token, GONE)).lost == (ref,)
    after = everything(store, ref.run_id)
    assert store.do(store.unknown(ref, token, GONE)) == Swept(idle=False)
    assert everything(store, ref.run_id) == after


def test_a_second_sweep_finds_nothing_more(store, clock):
    ref = brought_to(store, "running")
    store.do(CALLS["fail and try again"][1](store, ref))
    clock.pass_s(5)
    assert store.do(store.sweep()).released == (ref,)
    after = everything(store, ref.run_id)
    assert store.do(store.sweep()).released == ()
    assert everything(store, ref.run_id) == after

"""The contract: run-ahead. A finish with a wish begins one released successor, or the hook, for its caller."""

import pytest

from director.models import TaskOptions, time_text
from director.plan import build
from director.store.shapes import Next, Ref
from tests.contract.driving import (
    BOOM,
    begin,
    fail,
    finish,
    get,
    live,
    new,
    plan_of,
    queued,
    start,
    statuses,
    succeed,
)
from tests.processes import workflow

WISH = Next(token="kept", queue="celery")


def test_the_first_released_successor_in_yaml_order_is_kept(store, clock):
    run_id = start(store, ["A", ("B", "C", "D")], ahead=True)
    begun = begin(store, run_id, 0)
    clock.pass_s(1)
    kept = finish(store, begun, 7, wish=WISH).begun
    assert (kept.ref.number, kept.token, kept.attempt, kept.results) == (1, "kept", 1, (b"7",))
    assert queued(store) == [Ref(run_id=run_id, number=2), Ref(run_id=run_id, number=3)]
    task = get(store, run_id).tasks[1]
    assert (task.status, task.queued_at, task.started_at) == (
        "running",
        time_text(clock.now),
        time_text(clock.now),
    )


def test_a_kept_successor_is_held_with_a_lease_like_any_other(store, clock):
    run_id = start(store, ["A", "B"], ahead=True)
    kept = finish(store, begin(store, run_id, 0), wish=WISH).begun
    assert live(store, kept)
    store.do(store.sweep())
    for _ in range(31):
        clock.pass_s(1)
        swept = store.do(store.sweep())
    assert statuses(store, run_id)["B"] == "queued", swept
    assert not finish(store, kept).accepted


def test_a_successor_with_another_priority_is_in_another_list_and_not_kept(store):
    definition = workflow(["A", "B"])
    order = new(build(definition, {"A": TaskOptions(), "B": TaskOptions(priority=6)}))
    store.do(store.start(order))
    begun = begin(store, order.run_id, 0)
    assert finish(store, begun, wish=WISH).begun is None
    again = finish(store, begun, wish=Next(token="kept", queue="celery\x06\x166"))
    assert again.begun is None, "the first call has queued it; a repeat does not begin it"
    assert statuses(store, order.run_id)["B"] == "queued"


def test_an_eligible_one_is_kept_behind_one_that_is_not(store):
    definition = workflow(["A", ("B", "C")])
    order = new(build(definition, {"A": TaskOptions(), "B": TaskOptions(limited=True), "C": TaskOptions()}))
    store.do(store.start(order))
    assert finish(store, begin(store, order.run_id, 0), wish=WISH).begun.task == "C"
    assert statuses(store, order.run_id)["B"] == "queued"


def test_a_successor_behind_nested_joins_is_kept(store):
    run_id = start(store, [(["A", ("B", "C")], "D"), (("E", "F"), "G")], ahead=True)
    succeed(store, run_id, 0, 1, 3)
    begun = begin(store, run_id, 2)
    first = finish(store, begun, 2, wish=WISH)
    assert first.begun.task == "E"
    assert finish(store, begun, 2, wish=WISH) == first
    assert [ref.number for ref in queued(store)] == [5, 6]


@pytest.mark.parametrize(("outcome", "hook"), [({}, "GOOD"), ({"error": BOOM}, "BAD")])
def test_the_hook_is_kept_by_the_finish_that_ends_the_run(store, outcome, hook):
    built = build(
        workflow(["A"], success_hook="GOOD", failure_hook="BAD"),
        {name: TaskOptions() for name in ("A", "GOOD", "BAD")},
    )
    order = new(built)
    store.do(store.start(order))
    begun = begin(store, order.run_id, 0)
    first = finish(store, begun, wish=WISH, **outcome)
    assert (first.begun.task, first.begun.ref.number, first.begun.token) == (hook, 1, "kept")
    assert finish(store, begun, wish=WISH, **outcome) == first
    assert queued(store) == []


def test_a_failure_keeps_nothing(store):
    run_id = start(store, [("A", "B"), "C"], ahead=True)
    assert finish(store, begin(store, run_id, 0), wish=WISH, error=BOOM).begun is None
    assert finish(store, begin(store, run_id, 1), wish=WISH).begun is None
    assert get(store, run_id).status == "failed"


def test_a_retry_keeps_nothing(store):
    run_id = start(store, ["A", "B"], ahead=True)
    done = finish(store, begin(store, run_id, 0), wish=WISH, error=BOOM, retry_in_ms=1)
    assert (done.accepted, done.begun, done.run_status) == (True, None, "running")


def test_a_repeat_after_the_kept_one_has_finished_begins_nothing(store):
    run_id = start(store, ["A", "B"], ahead=True)
    begun = begin(store, run_id, 0)
    kept = finish(store, begun, wish=WISH).begun
    finish(store, kept)
    again = finish(store, begun, wish=WISH)
    assert (again.accepted, again.begun, again.run_status) == (True, None, "succeeded")


def test_a_refused_finish_keeps_nothing_and_leaves_the_result(store):
    run_id = start(store, ["A", "B"], ahead=True)
    begun = begin(store, run_id, 0)
    finish(store, begun, "x" * 5000)
    before = get(store, run_id)
    late = finish(
        store, type(begun)(**{**{f: getattr(begun, f) for f in begun.__struct_fields__}, "token": "old"}), 1
    )
    assert (late.accepted, late.begun) == (False, None)
    assert get(store, run_id) == before


def test_a_canceled_run_keeps_nothing(store):
    built = plan_of(["A", "B"], ahead=True)
    order = new(built)
    store.do(store.start(order))
    begun = begin(store, order.run_id, 0)
    store.do(store.cancel(order.run_id, "t"))
    assert not finish(store, begun, wish=WISH).accepted
    fail(store, start(store, ["A"]), 0)
    assert statuses(store, order.run_id) == {"A": "canceled", "B": "canceled"}

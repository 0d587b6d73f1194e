"""The contract: hooks outlive their launch. Each is a task run of its own, and never one of the run's."""

import pytest

from director import plan
from director.models import Progress, TaskError
from director.store.shapes import UNKNOWN_MS, Ref
from tests.contract.driving import BOOM, begin, fail, finish, get, new, queued, relaunch, statuses, succeed
from tests.processes import workflow

GONE = TaskError(type="UnknownTask", message="nobody knows it")


def failed_run(store, definition):
    order = new(plan.build(definition))
    store.do(store.start(order))
    fail(store, order.run_id, 0)
    return order.run_id


def sweep_for(store, clock, seconds):
    """Let a loop sweep each second; return all that it lost and released."""
    lost, released = [], []
    for _ in range(seconds):
        clock.pass_s(1)
        swept = store.do(store.sweep())
        lost += swept.lost
        released += swept.released
    return lost, released


def test_a_hook_is_retried_lost_and_taken_back_though_the_run_has_ended(store, clock):
    run_id = failed_run(store, workflow(["A"], failure_hook="BAD"))
    store.do(store.sweep())
    ended = get(store, run_id)
    hook = Ref(run_id=run_id, number=1)
    finish(store, begin(store, run_id, 1), error=BOOM, retry_in_ms=2000)
    assert sweep_for(store, clock, 2)[1] == [hook]
    begin(store, run_id, 1)
    assert sweep_for(store, clock, 31)[0] == [hook]
    assert store.do(store.unknown(hook, "", GONE)).lost == (hook,)
    assert sweep_for(store, clock, UNKNOWN_MS // 1000)[1] == [hook]
    assert store.do(store.unknown(hook, "", GONE)).failed == (hook,), "its third loss"
    run = get(store, run_id)
    assert (run.status, run.ended_at, run.progress, run.error) == (
        "failed",
        ended.ended_at,
        ended.progress,
        ended.error,
    )
    assert run.tasks[1].error == GONE
    assert store.do(store.sweep()).idle


def test_a_former_launch_s_hook_runs_beside_the_next_launch_without_starting_it(store, clock):
    definition = workflow(["A"], failure_hook="BAD")
    run_id = failed_run(store, definition)
    relaunch(store, run_id, definition)
    clock.pass_s(1)
    hook = begin(store, run_id, 1)
    assert (hook.task, hook.hook, hook.launch) == ("BAD", "f", 1)
    run = get(store, run_id)
    assert (run.status, run.started_at) == ("queued", None)
    finish(store, hook)
    assert statuses(store, run_id) == {"A": "queued", "BAD!": "succeeded"}
    succeed(store, run_id, 0)
    run = get(store, run_id)
    assert (run.status, run.progress) == ("succeeded", Progress(total=1, succeeded=1, failed=0))


def test_a_hook_outlives_a_cancel_of_the_next_launch(store):
    definition = workflow(["A"], failure_hook="BAD")
    run_id = failed_run(store, definition)
    relaunch(store, run_id, definition)
    store.do(store.cancel(run_id, "t"))
    assert queued(store) == [Ref(run_id=run_id, number=1)]
    relaunch(store, run_id, definition)
    fail(store, run_id, 0)
    assert [ref.number for ref in queued(store)] == [1, 3], (
        "the canceled launch has no hook; its number stays free"
    )
    succeed(store, run_id, 1, 3)
    assert [(task.number, task.status) for task in get(store, run_id).tasks if task.hook] == [
        (1, "succeeded"),
        (3, "succeeded"),
    ]


@pytest.mark.parametrize(
    "changed",
    [
        workflow(["A"]),
        workflow(["A"], success_hook="BAD"),
        workflow(["A"], failure_hook="OTHER"),
        workflow(["A"], failure_hook="BAD", queues={"BAD": "slow"}),
    ],
    ids=["removed", "moved", "renamed", "in another queue"],
)
def test_a_relaunch_keeps_the_plan_whose_hook_is_underway(store, clock, changed):
    """A hook that the newest definition has not got must still be found by begin, finish and the sweep."""
    run_id = failed_run(store, workflow(["A"], failure_hook="BAD"))
    begun = begin(store, run_id, 1)
    store.do(store.sweep())
    done = relaunch(store, run_id, changed)
    assert "failure hook has changed" in done.note
    assert sweep_for(store, clock, 31)[0] == [begun.ref]
    assert store.do(store.state([])).queued == 2
    succeed(store, run_id, 1, 0)
    assert statuses(store, run_id) == {"A": "succeeded", "BAD!": "succeeded"}
    assert store.do(store.state([])).queued == 0


def test_a_relaunch_takes_up_a_new_hook_where_none_has_run(store):
    run_id = failed_run(store, workflow(["A"]))
    assert relaunch(store, run_id, workflow(["A"], success_hook="GOOD", failure_hook="BAD")).note == ""
    succeed(store, run_id, 0)
    assert begin(store, run_id, 2).task == "GOOD", "number 1 was the first launch's, which had none"


def test_no_hook_is_a_dash_that_keeps_the_next_one_s_number(store):
    definition = workflow(["A"], success_hook="GOOD")
    run_id = failed_run(store, definition)
    assert queued(store) == []
    relaunch(store, run_id, definition)
    succeed(store, run_id, 0)
    assert queued(store) == [Ref(run_id=run_id, number=2)]
    assert begin(store, run_id, 1) is None

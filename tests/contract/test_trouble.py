"""The contract: losses, leases, timeouts, unknown tasks, cancel, relaunch, listings."""

import pytest

from director import plan
from director.engine import new_token
from director.errors import Conflict, NotFound
from director.models import RunError, TaskError, TaskOptions, time_text
from director.store.redis import RedisStore
from director.store.shapes import LEASE_MS, Dedupe, Filter, Ref, Relaunch, Started
from tests.contract.driving import (
    HOLDER,
    begin,
    fail,
    finish,
    get,
    live,
    new,
    plan_of,
    queued,
    relaunch,
    start,
    statuses,
    succeed,
)
from tests.processes import workflow

API = {"kind": "api"}


def sweep(store):
    return store.do(store.sweep())


def keep_sweeping(store, clock, seconds):
    """Let time pass as it does where a loop runs; return all that was lost."""
    lost = []
    for _ in range(seconds):
        clock.pass_s(1)
        swept = sweep(store)
        lost += swept.lost
    return lost


def test_an_ended_lease_puts_the_task_run_back(store, clock):
    run_id = start(store, ["A"])
    begun = begin(store, run_id, 0)
    sweep(store)
    assert keep_sweeping(store, clock, 29) == []
    assert keep_sweeping(store, clock, 2) == [begun.ref]
    assert statuses(store, run_id) == {"A": "queued"}
    assert not finish(store, begun, "late").accepted


def test_a_renewed_lease_holds(store, clock):
    run_id = start(store, ["A"])
    begun = begin(store, run_id, 0)
    sweep(store)
    for _ in range(5):
        assert keep_sweeping(store, clock, 20) == []
        assert store.do(store.renew([(begun.ref, begun.token)])) == ()
    stale = Ref(run_id=run_id, number=0), "another"
    assert store.do(store.renew([stale])) == (stale[0],)
    assert finish(store, begun).accepted


def test_leases_get_more_time_after_an_outage(store, clock):
    run_id = start(store, ["A"])
    begun = begin(store, run_id, 0)
    sweep(store)
    clock.pass_s(60)
    assert sweep(store).lost == ()
    assert keep_sweeping(store, clock, 14) == []
    assert keep_sweeping(store, clock, 2) == [begun.ref]


def test_three_losses_fail_the_task_run(store):
    run_id = start(store, [("A", "B"), "C"])
    for _ in range(3):
        begun = begin(store, run_id, 0)
        swept = store.do(store.hand_back(HOLDER, True))
        assert (*swept.lost, *swept.failed) == (begun.ref,)
        assert store.do(store.hand_back(HOLDER, True)).lost == (), "the token is void"
    assert not finish(store, begun, "late").accepted
    succeed(store, run_id, 1)
    run = get(store, run_id)
    assert run.status == "failed"
    assert run.error == RunError(task="A", type="WorkerLost", message="its worker disappeared 3 times")


def test_handing_back_at_a_shutdown_is_no_loss(store):
    run_id = start(store, ["A"])
    for _ in range(5):
        begun = begin(store, run_id, 0)
        assert store.do(store.hand_back(HOLDER, False)).lost == (begun.ref,)
    begin(store, run_id, 0)
    assert store.do(store.hand_back(HOLDER, True)).lost, "the first loss"
    assert statuses(store, run_id) == {"A": "queued"}


def test_a_holder_s_task_runs_are_handed_back(store):
    run_id = start(store, [("A", "B", "C")])
    one, two = begin(store, run_id, 0, holder="boot.1"), begin(store, run_id, 1, holder="boot.2")
    other = begin(store, run_id, 2, holder="other.1")
    assert store.do(store.hand_back("boot", False)).lost == ()
    assert store.do(store.hand_back("boot.1", False)).lost == (one.ref,)
    assert not live(store, one)
    assert live(store, two)
    assert store.do(store.hand_back("boot.", False)).lost == (two.ref,)
    assert live(store, other)
    assert store.do(store.hand_back(".", False)).lost == (other.ref,)


def test_a_timeout_fails_the_task_run_and_refuses_its_result(store, clock):
    definition = workflow(["A"])
    call = definition.tasks[0]
    slow = plan.build(workflow(["A"]), {call.name: TaskOptions(time_limit=5)})
    order = new(slow)
    store.do(store.start(order))
    begun = begin(store, order.run_id, 0)
    sweep(store)
    for _ in range(4):
        clock.pass_s(1)
        store.do(store.renew([(begun.ref, begun.token)]))
        assert sweep(store).failed == ()
    clock.pass_s(1)
    assert sweep(store).failed == (begun.ref,)
    assert not finish(store, begun, "late").accepted
    run = get(store, order.run_id)
    assert run.tasks[0].error == TaskError(type="Timeout", message="it took longer than its timeout of 5 s")


def test_an_unknown_task_fails_after_three_workers(store, clock):
    run_id = start(store, ["A"])
    ref = Ref(run_id=run_id, number=0)
    error = TaskError(type="UnknownTask", message='no worker of queue "celery" knows "A"')
    for _ in range(2):
        assert store.do(store.unknown(ref, "", error)).lost == (ref,)
        assert store.do(store.unknown(ref, "", error)).lost == (), "again: nothing more"
        clock.pass_s(5)
        assert sweep(store).released == (ref,)
    swept = store.do(store.unknown(ref, "", error))
    assert (swept.failed, swept.ended) == ((ref,), (ref.run_id,))
    assert get(store, run_id).tasks[0].error == error


def test_cancel_ends_the_run_and_voids_tokens(store, clock):
    run_id = start(store, [("A", "B", "C"), "D"], failure_hook="BAD", success_hook="GOOD")
    succeed(store, run_id, 0)
    begun = begin(store, run_id, 1)
    store.do(store.cancel(run_id, "t1"))
    before = get(store, run_id)
    assert before.status == "canceled"
    assert statuses(store, run_id) == {"A": "succeeded", "B": "canceled", "C": "canceled", "D": "canceled"}
    clock.pass_s(1)
    store.do(store.cancel(run_id, "t1"))
    with pytest.raises(Conflict, match=r"has ended \(canceled\)"):
        store.do(store.cancel(run_id, "t2"))
    assert not finish(store, begun, "late").accepted
    assert begin(store, run_id, 2) is None
    assert get(store, run_id) == before
    assert queued(store) == []


def test_an_ended_run_is_not_canceled(store):
    run_id = start(store, ["A"])
    succeed(store, run_id, 0)
    with pytest.raises(Conflict, match=r"has ended \(succeeded\)"):
        store.do(store.cancel(run_id, "t"))


def test_relaunch_runs_the_failed_one_and_what_follows(store):
    definition = workflow([("A", "B", ["C", "D"]), ("E", "F")], failure_hook="BAD")
    order = new(plan.build(definition))
    store.do(store.start(order))
    run_id = order.run_id
    succeed(store, run_id, 0, 2)
    fail(store, run_id, 1)
    succeed(store, run_id, 3)
    succeed(store, run_id, 6 + 1)  # the hook follows six task runs and a join
    done = relaunch(store, run_id, definition)
    assert (done.id, done.rerun, done.keep) == (run_id, ("B", "E", "F"), ("A", "C", "D"))
    run = get(store, run_id)
    assert (run.status, run.launch, run.progress.failed, run.progress.succeeded) == ("queued", 2, 0, 3)
    assert run.error is None
    assert [ref.number for ref in queued(store)] == [1]
    begun = begin(store, run_id, 1)
    assert (begun.attempt, begun.retries, begun.launch) == (2, 0, 2)
    finish(store, begun, 1)
    assert begin(store, run_id, 4).results == (b"0", b"1", b"3")
    run_again = get(store, run_id)
    assert [task.key for task in run_again.tasks if task.hook] == ["BAD"]


def test_each_launch_has_its_own_hook(store):
    definition = workflow(["A"], failure_hook="BAD")
    order = new(plan.build(definition))
    store.do(store.start(order))
    for launch in (1, 2):
        fail(store, order.run_id, 0)
        succeed(store, order.run_id, launch)
        if launch == 1:
            relaunch(store, order.run_id, definition)
    assert [(task.number, task.status) for task in get(store, order.run_id).tasks if task.hook] == [
        (1, "succeeded"),
        (2, "succeeded"),
    ]


def test_relaunch_from_a_task(store):
    definition = workflow(["A", ("B", "C"), "D"])
    order = new(plan.build(definition))
    store.do(store.start(order))
    succeed(store, order.run_id, 0, 1)
    fail(store, order.run_id, 2)
    with pytest.raises(Conflict, match='"D" needs the result of "C", which is failed'):
        relaunch(store, order.run_id, definition, origin="D")
    with pytest.raises(NotFound, match='no task "X"'):
        relaunch(store, order.run_id, definition, origin="X")
    done = relaunch(store, order.run_id, definition, origin="A")
    assert done.rerun == ("A", "B", "C", "D")


def test_a_succeeded_run_is_relaunched_as_a_new_one_that_keeps_results(store):
    definition = workflow(["A", ("B", "C"), ("D", "E")])
    order = new(plan.build(definition), payload={"a": 1})
    store.do(store.start(order))
    succeed(store, order.run_id, 0, 1, 2, 3, 4)
    done = relaunch(store, order.run_id, definition, origin="D")
    assert done.id != order.run_id
    assert (done.rerun, done.keep) == (("D",), ("A", "B", "C", "E"))
    begun = begin(store, done.id, 3)
    assert begun.results == (b"1", b"2")
    finish(store, begun, 9)
    run = get(store, done.id)
    assert (run.status, run.relaunch_of, bytes(run.payload)) == ("succeeded", order.run_id, b'{"a":1}')
    assert relaunch(store, order.run_id, definition).rerun == ("A", "B", "C", "D", "E")
    assert bytes(get(store, relaunch(store, order.run_id, definition, payload={"b": 2}).id).payload) == b'{"b":2}'


def test_a_relaunch_made_twice_gets_the_first_answer(store, clock):
    run_id = start(store, ["A", "B"])
    fail(store, run_id, 0)
    built = plan_of(["A", "B"])
    order = Relaunch(run_id=run_id, launch=1, token="t", plan=built, resets={0: 0, 1: 1})
    assert store.do(store.relaunch(order)) == 2
    clock.pass_s(1)
    before = get(store, run_id)
    assert store.do(store.relaunch(order)) == 2
    assert get(store, run_id) == before
    late = Relaunch(run_id=run_id, launch=1, token="u", plan=built, resets={0: 0, 1: 1})
    with pytest.raises(Conflict, match="relaunched or changed by somebody else"):
        store.do(store.relaunch(late))


def test_a_running_run_is_not_relaunched(store):
    run_id = start(store, ["A"])
    with pytest.raises(Conflict, match="is queued; only a run that has ended"):
        relaunch(store, run_id, workflow(["A"]))
    begin(store, run_id, 0)
    with pytest.raises(Conflict, match="is running; only a run that has ended"):
        relaunch(store, run_id, workflow(["A"]))


def test_a_canceled_run_goes_on_where_it_was(store):
    definition = workflow([("A", "B"), "C"])
    order = new(plan.build(definition))
    store.do(store.start(order))
    succeed(store, order.run_id, 0)
    store.do(store.cancel(order.run_id, "t"))
    assert relaunch(store, order.run_id, definition).rerun == ("B", "C")
    succeed(store, order.run_id, 1, 2)
    assert get(store, order.run_id).status == "succeeded"


def test_a_changed_workflow_leaves_the_run_its_own_plan(store):
    order = new(plan_of(["A", "B"]))
    store.do(store.start(order))
    fail(store, order.run_id, 0)
    done = relaunch(store, order.run_id, workflow(["A", "X", "B"]))
    assert "goes on with its own" in done.note
    succeed(store, order.run_id, 0, 1)
    assert get(store, order.run_id).status == "succeeded"


def test_listings_are_newest_first_filtered_and_paged(store, clock):
    ids = []
    for index in range(7):
        ids.append(start(store, ["A"], name="x" if index % 2 else "y"))
        clock.pass_s(1)
    fail(store, ids[0], 0)
    succeed(store, ids[1], 0)

    def found(**which):
        runs, following = store.do(store.list(Filter(**which)))
        return [ids.index(run.id) for run in runs], following

    assert found() == ([6, 5, 4, 3, 2, 1, 0], None)
    assert found(workflow="x") == ([5, 3, 1], None)
    assert found(status="failed") == ([0], None)
    assert found(status="succeeded", workflow="x") == ([1], None)
    assert found(status="queued") == ([6, 5, 4, 3, 2], None)
    start_ms = clock.now - 7000
    assert found(since=start_ms + 2000, until=start_ms + 5000) == ([4, 3, 2], None)
    pages, cursor = [], None
    while True:
        page, cursor = found(limit=3, after=cursor)
        pages.append(page)
        if cursor is None:
            break
    assert pages == [[6, 5, 4], [3, 2, 1], [0]]
    (run,) = store.do(store.list(Filter(status="failed")))[0]
    assert (run.error.task, run.error.type) == ("A", "ValueError")
    assert not hasattr(run, "tasks")


def test_the_state_counts(store, clock):
    first, second = start(store, ["A"], name="x"), start(store, ["A"], name="x")
    clock.pass_s(3)
    state = store.do(store.state(["x", "never"]))
    assert (state.queued, state.oldest_queued_s, state.workers) == (2, 3.0, 0)
    assert (state.workflows["x"].active, state.workflows["x"].last_run) == (2, max(first, second))
    assert (state.workflows["never"].status, state.workflows["never"].last_run) == (None, None)
    succeed(store, first, 0)
    done_at = clock.now
    store.do(store.cancel(second, "t"))
    store.do(store.publish("boot", {"A": TaskOptions(queue="q", limited=True)}))
    state = store.do(store.state(["x"]))
    assert (state.queued, state.oldest_queued_s, state.workers) == (0, None, 1)
    assert (state.workflows["x"].active, state.workflows["x"].last_success_at) == (0, time_text(done_at))
    assert store.do(store.task_options()) == {"A": TaskOptions(queue="q", limited=True)}
    clock.pass_s(LEASE_MS / 1000 + 1)
    assert store.do(store.state([])).workers == 0


def test_queues_of_stored_plans(store):
    start(store, ["A"], queue="etl", failure_hook="BAD")
    assert store.do(store.publish("boot", {})) == ("etl",)


def test_a_token_is_short_and_new():
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert {len(token) for token in tokens} == {10}


def test_who_looks_after_the_runs_is_known(store, clock):
    nobody = store.do(store.inspect())
    assert (nobody.now, nobody.workers, nobody.queues) == (clock.now, {}, ())
    assert nobody.scheduled_at is None
    start(store, ["A"], queue="heavy")
    store.do(store.publish("one", {}, ["celery", "heavy"]))
    clock.pass_s(20)
    store.do(store.publish("two", {}, ["db"]))
    known = store.do(store.inspect())
    assert (known.workers, known.queues) == ({"one": ("celery", "heavy"), "two": ("db",)}, ("heavy",))
    clock.pass_s(11)
    store.do(store.publish("two", {}, ["db", "celery"]))
    assert store.do(store.inspect()).workers == {"two": ("db", "celery")}


def test_redis_remembers_when_a_scheduler_was_there(redis_url, clock):
    store = RedisStore(redis_url, clock=clock)
    store.do(store.sweep(fires=True))
    clock.pass_s(1)
    store.do(store.sweep())
    assert store.do(store.inspect()).scheduled_at == clock.now - 1000, "workers sweep too"


def test_one_delivery_relaunches_a_run_once(store, clock):
    """Its dedupe key is the one that a start would have: what fails again is not relaunched by a copy."""
    built, once = plan_of(["A", "B"]), Dedupe(key="slack:d-1", ttl_s=60)
    run_id = start(store, ["A", "B"])
    fail(store, run_id, 0)
    assert store.do(store.seen(once, "w")) is None

    def order(launch, token):
        resets = {0: 0, 1: 1}
        return Relaunch(run_id=run_id, launch=launch, token=token, plan=built, resets=resets, dedupe=once)

    assert store.do(store.relaunch(order(1, "t"))) == 2
    assert store.do(store.relaunch(order(1, "t"))) == 2, "the same call again"
    assert store.do(store.seen(once, "w")) == run_id
    fail(store, run_id, 0)
    before = get(store, run_id)
    assert store.do(store.relaunch(order(2, "u"))) == 0
    assert get(store, run_id) == before
    assert store.do(store.start(new(built, dedupe=once))) == Started(run_id=run_id, duplicate=True)
    if store.clock is clock and not hasattr(store, "url"):  # Redis expires keys by its own clock
        clock.pass_s(61)
        assert store.do(store.seen(once, "w")) is None


def test_a_relaunch_that_is_refused_is_not_remembered(store):
    built, once = plan_of(["A"]), Dedupe(key="slack:d-1", ttl_s=60)
    run_id = start(store, ["A"])
    with pytest.raises(Conflict):
        store.do(
            store.relaunch(Relaunch(run_id=run_id, launch=1, token="t", plan=built, resets={0: 0}, dedupe=once))
        )
    assert store.do(store.seen(once, "w")) is None

"""The contract: start, begin, finish, hooks, retries. Each holds for every store."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from director.errors import NotFound
from director.models import Progress, RunError, time_text
from director.store.shapes import Dedupe, Filter, Next, Ref
from tests.contract.driving import (
    BOOM,
    HOLDER,
    begin,
    fail,
    finish,
    get,
    new,
    plan_of,
    queued,
    start,
    statuses,
    succeed,
)


def test_a_start_queues_the_first_tasks_only(store):
    run_id = start(store, [("A", "B"), "C"])
    assert statuses(store, run_id) == {"A": "queued", "B": "queued", "C": "pending"}
    assert queued(store) == [Ref(run_id=run_id, number=0), Ref(run_id=run_id, number=1)]


def test_a_start_made_twice_gets_the_first_answer(store, clock):
    order = new(plan_of(["A"]), dedupe=Dedupe(key="github:1", ttl_s=60))
    first = store.do(store.start(order))
    clock.pass_s(5)
    before = get(store, first.run_id)
    assert store.do(store.start(order)) == first
    assert get(store, first.run_id) == before
    assert len(queued(store)) == 1


def test_one_delivery_starts_one_run_per_workflow(store, clock):
    dedupe = Dedupe(key="github:1", ttl_s=60)
    first = store.do(store.start(new(plan_of(["A"]), dedupe=dedupe)))
    again = store.do(store.start(new(plan_of(["A"]), dedupe=dedupe)))
    other = store.do(store.start(new(plan_of(["A"], name="other"), dedupe=dedupe)))
    assert (again.run_id, again.duplicate) == (first.run_id, True)
    assert not other.duplicate
    assert len(store.do(store.list(Filter()))[0]) == 2
    clock.pass_s(61)
    if type(store).__name__ == "TinyStore":  # Redis expires keys by its own clock
        assert not store.do(store.start(new(plan_of(["A"]), dedupe=dedupe))).duplicate


def test_the_same_key_with_another_fingerprint_is_a_conflict(store):
    store.do(store.start(new(plan_of(["A"]), dedupe=Dedupe(key="api:k", ttl_s=60, fingerprint="x"))))
    answer = store.do(store.start(new(plan_of(["A"]), dedupe=Dedupe(key="api:k", ttl_s=60, fingerprint="y"))))
    assert answer.conflict
    assert len(queued(store)) == 1


def test_50_copies_of_one_delivery_start_one_run(store):
    built = plan_of(["A"])

    def send(_):
        return store.do(store.start(new(built, dedupe=Dedupe(key="s:1", ttl_s=60)))).run_id

    with ThreadPoolExecutor(50) as pool:
        ids = set(pool.map(send, range(50)))
    assert len(ids) == 1
    assert len(queued(store)) == 1


def test_begin_says_what_to_execute(store):
    built = plan_of(["A", "B"])
    order = new(built, payload={"a": 1})
    store.do(store.start(order))
    succeed(store, order.run_id, 0)
    begun = begin(store, order.run_id, 1, "token")
    assert (begun.task, begun.shape, begun.attempt, begun.retries, begun.launch) == ("B", "one", 1, 0, 1)
    assert msgspec.json.decode(begun.payload) == {"a": 1}
    assert begun.trigger == {"kind": "api"}
    assert begun.results == (b"0",)


def test_begin_twice_with_one_token_gets_the_first_answer(store, clock):
    run_id = start(store, ["A"])
    first = begin(store, run_id, 0, "token")
    clock.pass_s(1)
    before = get(store, run_id)
    assert begin(store, run_id, 0, "token") == first
    assert get(store, run_id) == before


def test_100_threads_begin_one_task_run_and_one_wins(store):
    run_id = start(store, ["A"])
    with ThreadPoolExecutor(100) as pool:
        won = [begun for begun in pool.map(lambda _: begin(store, run_id, 0), range(100)) if begun]
    assert len(won) == 1
    assert get(store, run_id).tasks[0].attempts == 1


@pytest.mark.parametrize("number", [0, 1, 7])
def test_what_is_not_queued_is_not_begun(store, number):
    run_id = start(store, ["A", "B"])
    succeed(store, run_id, 0)
    before = get(store, run_id)
    if number != 1:
        assert begin(store, run_id, number) is None
        assert get(store, run_id) == before
    assert begin(store, "no-such-run", 0) is None


def test_a_join_between_groups_gives_all_results_in_order(store):
    run_id = start(store, [("A", "B", "C"), ("D", "E"), "F"])
    succeed(store, run_id, 2, 0)
    assert statuses(store, run_id)["D"] == "pending"
    succeed(store, run_id, 1)
    assert queued(store) == [Ref(run_id=run_id, number=3), Ref(run_id=run_id, number=4)]
    begun = begin(store, run_id, 4)
    assert (begun.shape, begun.results) == ("list", (b"0", b"1", b"2"))
    finish(store, begun, 4)
    succeed(store, run_id, 3)
    assert begin(store, run_id, 5).results == (b"3", b"4")


def test_a_finish_with_an_old_token_changes_nothing(store, clock):
    run_id = start(store, ["A", "B"])
    old = begin(store, run_id, 0)
    store.do(store.hand_back(HOLDER, False))
    live = begin(store, run_id, 0)
    before = get(store, run_id)
    assert not finish(store, old, "late").accepted
    assert not finish(store, old, error=BOOM).accepted
    assert get(store, run_id) == before
    assert finish(store, live, "right").accepted
    before = get(store, run_id)
    assert not finish(store, old, "late").accepted
    assert get(store, run_id) == before


def test_finish_twice_gets_the_first_answer_with_the_kept_successor(store, clock):
    run_id = start(store, [("A", "B"), ("C", "D")], ahead=True)
    succeed(store, run_id, 0)
    begun = begin(store, run_id, 1)
    wish = Next(token="next", queue="celery")
    first = finish(store, begun, 1, wish=wish)
    assert first.begun.task == "C"
    assert first.begun.results == (b"0", b"1")
    clock.pass_s(1)
    before = get(store, run_id)
    assert finish(store, begun, "something else", wish=wish) == first
    assert get(store, run_id) == before
    assert queued(store) == [Ref(run_id=run_id, number=3)]


@pytest.mark.parametrize(("queue", "ahead"), [("other", True), ("celery", False)])
def test_only_an_eligible_successor_is_kept(store, queue, ahead):
    run_id = start(store, ["A", "B"], ahead=ahead)
    done = finish(store, begin(store, run_id, 0), wish=Next(token="next", queue=queue))
    assert done.begun is None
    assert statuses(store, run_id)["B"] == "queued"


def test_a_failure_lets_siblings_end_and_releases_nothing(store):
    run_id = start(store, [("A", ["B", "C"]), "D"])
    fail(store, run_id, 0)
    assert get(store, run_id).status == "running"
    succeed(store, run_id, 1, 2)
    run = get(store, run_id)
    assert run.status == "failed"
    assert run.error == RunError(task="A", type="ValueError", message="boom")
    assert run.progress == Progress(total=4, succeeded=2, failed=1)
    assert statuses(store, run_id) == {"A": "failed", "B": "succeeded", "C": "succeeded", "D": "skipped"}


def test_results_and_times_are_shown(store, clock):
    run_id = start(store, ["A"])
    started = clock.now
    clock.pass_s(2)
    begun = begin(store, run_id, 0)
    clock.pass_s(3)
    finish(store, begun, {"rows": 3})
    run = get(store, run_id)
    (task,) = run.tasks
    assert bytes(task.result) == b'{"rows":3}'
    times = tuple(map(time_text, (started, started + 2000, started + 5000)))
    assert (run.created_at, run.started_at, run.ended_at, run.duration_s) == (*times, 3.0)
    assert (task.queued_at, task.started_at, task.ended_at) == times
    assert task.worker == HOLDER


@pytest.mark.parametrize(("end", "hook"), [(succeed, "GOOD"), (fail, "BAD")])
def test_the_hook_of_the_outcome_runs_once_a_launch_and_changes_nothing(store, end, hook):
    run_id = start(store, ["A"], success_hook="GOOD", failure_hook="BAD")
    end(store, run_id, 0)
    status = get(store, run_id).status
    assert queued(store) == [Ref(run_id=run_id, number=1)]
    begun = begin(store, run_id, 1)
    assert (begun.task, begun.hook) == (hook, "s" if hook == "GOOD" else "f")
    finish(store, begun, error=BOOM)
    run = get(store, run_id)
    assert run.status == status
    assert run.progress.succeeded + run.progress.failed == run.progress.total == 1
    assert statuses(store, run_id)[f"{hook}!"] == "failed"
    assert queued(store) == []


def test_a_retry_waits_and_counts(store, clock):
    run_id = start(store, ["A"])
    begun = begin(store, run_id, 0)
    assert finish(store, begun, error=BOOM, retry_in_ms=5000).accepted
    (task,) = get(store, run_id).tasks
    assert (task.status, task.next_at) == ("retrying", time_text(clock.now + 5000))
    assert finish(store, begun, error=BOOM, retry_in_ms=5000).accepted, "the same call again"
    clock.pass_s(4)
    assert store.do(store.sweep()).released == ()
    clock.pass_s(1)
    assert store.do(store.sweep()).released == (begun.ref,)
    again = begin(store, run_id, 0)
    assert (again.attempt, again.retries) == (2, 1)
    finish(store, again, "done")
    run = get(store, run_id)
    assert (run.status, run.tasks[0].error) == ("succeeded", None)


def test_a_result_may_be_large(store):
    run_id = start(store, ["A", "B"])
    text = "x" * 900_000
    finish(store, begin(store, run_id, 0), text)
    assert msgspec.json.decode(begin(store, run_id, 1).results[0]) == text


def test_reading_what_is_not_there(store):
    for call in (store.get("nope"), store.plan("nope"), store.cancel("nope", "t")):
        with pytest.raises(NotFound, match="nope"):
            store.do(call)

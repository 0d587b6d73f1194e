"""The contract of schedules: a due time starts one run, and the schedule goes on in the same step."""

import threading

import pytest
from msgspec.structs import replace

from director import schedules
from director.models import time_text
from director.store.shapes import FORGET_MS, GAP_MS, Entry, Filter, Fire, Outcome
from tests.contract.driving import BOOM, HOLDER, begin, fail, get, new, plan_of, start, succeed

PLAN = plan_of(["A"])
EVERY_MS = 10_000


def added(store, name="s", in_ms=EVERY_MS):
    now, missing = store.do(store.refresh([name]))
    assert missing == (name,)
    store.do(store.add([Entry(schedule=name, due=now + in_ms, job={"origin": "director"})]))
    return now + in_ms


def fire(due, name="s", **more):
    return Fire(schedule=name, was=due, due=due, next=due + EVERY_MS, **more)


def firing(times, plan=PLAN):
    return replace(new(plan), run_id=schedules.run_id(times.schedule, times.due), fire=times)


def look(store):
    return store.do(store.sweep(fires=True))


def test_a_schedule_is_due_when_its_time_has_come(store, clock):
    due = added(store)
    assert (look(store).due, look(store).next_in_ms) == ((), EVERY_MS)
    clock.pass_s(10)
    assert look(store).due == (("s", due),)
    started = store.do(store.start(firing(fire(due))))
    assert started.refused == ""
    assert look(store).due == ()
    (state,) = store.do(store.schedules(["s"]))
    assert (state.last_run, state.last_due) == (started.run_id, time_text(due))
    assert (state.next_due, state.skipped, state.last_skip) == (time_text(due + EVERY_MS), 0, None)


def test_added_twice_it_keeps_its_due_time(store):
    due = added(store)
    assert store.do(store.refresh(["s", "t"]))[1] == ("t",)
    store.do(store.add([Entry(schedule="s", due=due + 999)]))
    assert store.do(store.schedules(["s"]))[0].next_due == time_text(due)


def test_a_due_time_fired_twice_is_one_run(store, clock):
    due = added(store)
    clock.pass_s(10)
    first, again = (store.do(store.start(firing(fire(due)))) for _ in range(2))
    assert first == again
    # Somebody who looked before.
    late = store.do(store.start(replace(firing(fire(due)), run_id="01890000-0000-7000-8000-000000000000")))
    assert late.refused == "moved"
    assert [run.id for run in store.do(store.list(Filter()))[0]] == [first.run_id]


def test_fired_by_many_at_once_it_is_one_run(store, clock):
    due = added(store)
    clock.pass_s(10)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(store.do(store.start(firing(fire(due))))))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.run_id for answer in answers}) == 1
    assert len(store.do(store.list(Filter()))[0]) == 1


def test_what_is_skipped_is_written_down(store, clock):
    due = added(store)
    clock.pass_s(10)
    times = fire(due, skipped=3, reason="nobody was there")
    assert [store.do(store.skip(times)) for _ in range(2)] == [True, False]
    (state,) = store.do(store.schedules(["s"]))
    assert (state.skipped, state.last_run) == (3, None)
    assert state.last_skip == f"{time_text(clock.now)}: {time_text(due)} nobody was there"
    later = replace(fire(due + EVERY_MS, skipped=2, reason="again"), due=due + 3 * EVERY_MS)
    assert store.do(store.start(firing(later))).refused == ""
    (state,) = store.do(store.schedules(["s"]))
    assert (state.skipped, state.last_due) == (5, time_text(due + 3 * EVERY_MS))


@pytest.mark.parametrize("end", [succeed, fail])
def test_nothing_starts_beside_the_last_run_where_it_must_be_alone(store, clock, end):
    due = added(store)
    first = store.do(store.start(firing(fire(due, alone=True))))
    second = store.do(store.start(firing(fire(due + EVERY_MS, alone=True))))
    assert (second.refused, second.run_id) == ("overlap", first.run_id)
    assert begin(store, first.run_id, 0)
    assert store.do(store.start(firing(fire(due + 2 * EVERY_MS, alone=True)))).refused == "overlap"
    (state,) = store.do(store.schedules(["s"]))
    assert state.skipped == 2
    assert first.run_id in state.last_skip
    # One that may overlap does.
    beside = store.do(store.start(firing(fire(due + 3 * EVERY_MS))))
    assert beside.refused == ""
    end(store, beside.run_id, 0)
    assert store.do(store.start(firing(fire(due + 4 * EVERY_MS, alone=True)))).refused == ""


def test_a_schedule_that_nobody_names_any_more_is_forgotten(store, clock):
    due = added(store)
    added(store, "other")
    for _ in range(3):
        clock.pass_s(FORGET_MS / 2000 - 1)
        store.do(store.refresh(["other"]))
        swept = look(store)
    assert {name for name, _ in swept.due} == {"other"}
    assert store.do(store.schedules(["s"]))[0].next_due is None
    assert store.do(store.start(firing(fire(due)))).refused == "moved"


def test_what_came_while_no_scheduler_looked_counts_as_missed(store, clock):
    added(store)
    look(store)
    clock.pass_s(1)
    before = look(store).missed_until
    clock.pass_s(GAP_MS / 1000 + 1)
    assert look(store).missed_until == clock.now > before
    clock.pass_s(1)
    # Another one that comes back a moment later knows it too.
    assert look(store).missed_until == clock.now - 1000


def test_a_sweeper_that_fires_nothing_hears_of_nothing(store, clock):
    added(store)
    clock.pass_s(60)
    assert store.do(store.sweep()).due == ()


def test_a_waiting_retry_is_due_like_a_schedule(store):
    run_id = start(store, ["A"])
    begun = begin(store, run_id, 0, "token")
    store.do(store.finish(begun.ref, "token", Outcome(error=BOOM, retry_in_ms=700), HOLDER))
    assert get(store, run_id).tasks[0].status == "retrying"
    assert look(store).next_in_ms == 700

"""The contract: every verb against every state makes only moves of `states`, and all of these are made."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from director import plan
from director.errors import Conflict
from director.models import Plan, Run, TaskError, TaskOptions, time_text
from director.states import PENDING, QUEUED, RUN_MOVES, SKIPPED, TASK_MOVES
from director.store.base import Store
from director.store.shapes import LEASE_MS, UNKNOWN_MS, NewRun, Next, Outcome, Ref, Relaunch
from tests.conftest import Clock
from tests.contract import driving
from tests.contract.driving import BOOM, HOLDER, fail, get, new, succeed
from tests.processes import workflow

GONE = TaskError(type="UnknownTask", message="nobody knows it")
TIMEOUT_S = 5
LOSSES = 2
"""One more and a task run fails."""


@dataclass
class Scene:
    """One run of A, B, C; B (or A, for the run's own moves) is looked at."""

    store: Store
    clock: Clock
    plan: Plan
    run_id: str = ""
    number: int = 1

    def start(self) -> None:
        order: NewRun = new(self.plan)
        self.run_id = order.run_id
        self.store.do(self.store.start(order))

    def ref(self, number: int | None = None) -> Ref:
        return Ref(run_id=self.run_id, number=self.number if number is None else number)

    def begin(self, number: int | None = None) -> bool:
        """Begin with a token that names the task run, so that later steps can make it again."""
        ref = self.ref(number)
        return self.store.do(self.store.begin(ref, f"token{ref.number}", f"boot.{ref.number}")) is not None

    def finish(self, number: int | None = None, wish: Next | None = None, **outcome: object) -> bool:
        ref = self.ref(number)
        ended = Outcome(**outcome) if outcome else Outcome(result=b"1")
        return self.store.do(self.store.finish(ref, f"token{ref.number}", ended, HOLDER, wish)).accepted

    def lose(self) -> None:
        """Lose the number's task run twice without beginning it: two workers do not know it."""
        for _ in range(LOSSES):
            assert self.store.do(self.store.unknown(self.ref(), "", GONE)).lost == (self.ref(),)
            self.clock.now += UNKNOWN_MS
            assert self.store.do(self.store.sweep()).released == (self.ref(),)

    def run(self) -> Run:
        return get(self.store, self.run_id)


# How B comes into each state; after it, A's token is "token0" and B's is "token1" where they have one.


def pending(scene: Scene) -> None:
    scene.start()
    scene.begin(0)


def queued(scene: Scene) -> None:
    pending(scene)
    assert scene.finish(0)


def lost_twice(scene: Scene) -> None:
    queued(scene)
    scene.lose()


def running(scene: Scene) -> None:
    queued(scene)
    assert scene.begin()


def running_lost_twice(scene: Scene) -> None:
    lost_twice(scene)
    assert scene.begin()


def retrying(scene: Scene) -> None:
    running(scene)
    assert scene.finish(error=BOOM, retry_in_ms=3000)


def succeeded(scene: Scene) -> None:
    running(scene)
    assert scene.finish()


def succeeded_in_a_failed_run(scene: Scene) -> None:
    succeeded(scene)
    fail(scene.store, scene.run_id, 2)


def failed(scene: Scene) -> None:
    running(scene)
    assert scene.finish(error=BOOM)


def canceled(scene: Scene) -> None:
    running(scene)
    assert cancel(scene)


def skipped(scene: Scene) -> None:
    scene.start()
    fail(scene.store, scene.run_id, 0)


# What is tried on it. Each returns whether the store said that it did something.


def parent_finishes(scene: Scene) -> bool:
    was_running = scene.run().tasks[0].status == "running"
    return scene.finish(0) and was_running


def parent_finishes_with_a_wish(scene: Scene) -> bool:
    was_running = scene.run().tasks[0].status == "running"
    return scene.finish(0, wish=Next(token="kept", queue="celery")) and was_running


def begin(scene: Scene) -> bool:
    return scene.store.do(scene.store.begin(scene.ref(), "another", HOLDER)) is not None


def finish(scene: Scene, **outcome: object) -> bool:
    was_running = scene.run().tasks[scene.number].status == "running"
    return scene.finish(**outcome) and was_running


def finish_with_an_error(scene: Scene) -> bool:
    return finish(scene, error=BOOM)


def finish_for_a_retry(scene: Scene) -> bool:
    return finish(scene, error=BOOM, retry_in_ms=1000)


def finish_with_a_wrong_token(scene: Scene) -> bool:
    ended = Outcome(result=b"1")
    return scene.store.do(scene.store.finish(scene.ref(), "wrong", ended, HOLDER)).accepted


def hand_back(scene: Scene) -> bool:
    back = scene.store.do(scene.store.hand_back(f"boot.{scene.number}", False))
    return scene.ref() in (*back.lost, *back.failed)


def lose(scene: Scene) -> bool:
    back = scene.store.do(scene.store.hand_back(f"boot.{scene.number}", True))
    return scene.ref() in (*back.lost, *back.failed)


def unknown(scene: Scene) -> bool:
    swept = scene.store.do(scene.store.unknown(scene.ref(), "", GONE))
    return scene.ref() in (*swept.lost, *swept.failed)


def cancel(scene: Scene) -> bool:
    driving.cancel(scene.store, scene.run_id, "cancel")
    return scene.run().status == "canceled" and scene.run().ended_at == time_text(scene.clock.now)


def relaunch(scene: Scene) -> bool:
    order = Relaunch(run_id=scene.run_id, launch=1, token="relaunch", plan=scene.plan, resets={0: 0, 1: 1, 2: 1})
    try:
        return scene.store.do(scene.store.relaunch(order)) == 2
    except Conflict:
        return False


def sweep_at_once(scene: Scene) -> bool:
    swept = scene.store.do(scene.store.sweep())
    return bool(swept.lost or swept.failed or swept.released)


def sweep_later(scene: Scene) -> bool:
    """A loop sweeps each second, longer than any lease or wait."""
    did = [sweep_after(scene, 1000) for _ in range(LEASE_MS // 1000 + 1)]
    return any(did)


def sweep_after(scene: Scene, ms: int) -> bool:
    scene.clock.now += ms
    return sweep_at_once(scene)


STATES: list[Callable[[Scene], None]] = [
    pending,
    queued,
    lost_twice,
    running,
    running_lost_twice,
    retrying,
    succeeded,
    succeeded_in_a_failed_run,
    failed,
    canceled,
    skipped,
]
VERBS: list[Callable[[Scene], bool]] = [
    parent_finishes,
    parent_finishes_with_a_wish,
    begin,
    finish,
    finish_with_an_error,
    finish_for_a_retry,
    finish_with_a_wrong_token,
    hand_back,
    lose,
    unknown,
    cancel,
    relaunch,
    sweep_at_once,
    sweep_later,
]


def made(store: Store, clock: Clock, *, limited: bool) -> Scene:
    options = TaskOptions(time_limit=TIMEOUT_S) if limited else TaskOptions()
    return Scene(store, clock, plan.build(workflow(["A", "B", "C"]), dict.fromkeys("ABC", options)))


def moves(verb: Callable[[Scene], bool], before: Run, after: Run) -> set[tuple[str, str]]:
    """Return the moves of task runs between two looks; a relaunch takes its roots on from pending at once."""
    found = set()
    for one, other in zip(before.tasks, after.tasks, strict=True):
        old, now = (PENDING if task.status == SKIPPED else task.status for task in (one, other))
        if old == now:
            continue
        found |= {(old, PENDING), (PENDING, QUEUED)} if verb is relaunch and now == QUEUED else {(old, now)}
    return found


@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
@pytest.mark.parametrize("state", STATES)
def test_a_verb_makes_a_move_of_the_table_or_changes_nothing(store, clock, state, limited):
    for verb in VERBS:
        scene = made(store, clock, limited=limited)
        state(scene)
        before = scene.run()
        did = verb(scene)
        after = scene.run()
        where = f"{verb.__name__} of a task run that is {state.__name__}"
        if not did:
            assert after == before, f"{where} was refused, so it changes nothing"
        if verb is not sweep_later:  # it makes several moves, one after the other
            assert moves(verb, before, after) <= TASK_MOVES, where
        run_move = (before.status, after.status)
        assert run_move[0] == run_move[1] or run_move in RUN_MOVES, f"{where}: the run: {run_move}"
        driving.cancel(store, scene.run_id, "out of the way")


def test_every_move_of_the_table_is_made(store, clock):
    task_moves, run_moves = set(), set()
    for limited, state, verb in itertools.product([False, True], STATES, VERBS):
        if verb is sweep_later:
            continue
        scene = made(store, clock, limited=limited)
        state(scene)
        before = scene.run()
        verb(scene)
        after = scene.run()
        task_moves |= moves(verb, before, after)
        run_moves.add((before.status, after.status))
        driving.cancel(store, scene.run_id, "out of the way")
    for verb in (begin, cancel, unknown):  # of a first task run, in a run that nobody has begun
        scene = made(store, clock, limited=False)
        scene.number = 0
        scene.start()
        scene.lose()
        before = scene.run()
        assert verb(scene)
        run_moves.add((before.status, scene.run().status))
    scene = made(store, clock, limited=False)
    scene.start()
    succeed(store, scene.run_id, 0, 1)
    before = scene.run()
    succeed(store, scene.run_id, 2)
    run_moves.add((before.status, scene.run().status))
    scene = made(store, clock, limited=False)
    retrying(scene)
    sweep_after(scene, 3000)
    task_moves.add(("retrying", scene.run().tasks[1].status))

    assert task_moves == TASK_MOVES
    assert {move for move in run_moves if move[0] != move[1]} == RUN_MOVES

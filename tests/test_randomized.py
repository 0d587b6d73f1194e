"""Random histories, played to both stores and to a plain model: every answer and every visible state agrees.

The model says what may be begun, which tokens are live, what is released and how a run ends. It knows no counters of
waiting parents and no indexes: a task run is released when all whose results it gets have succeeded.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from director import plan as plans
from director.engine import Engine
from director.errors import DirectorError
from director.messages import queue_list
from director.models import Hooks, Node, Plan, TaskError, TaskOptions
from director.states import WORD
from director.store.redis import RedisStore
from director.store.shapes import Dedupe, Filter, Keep, NewRun, Next, Outcome, Ref
from director.store.tiny import TinyStore
from tests.conftest import Clock
from tests.contract.driving import new
from tests.processes import workflow

HISTORIES = int(os.environ.get("DIRECTOR_TEST_HISTORIES", "40"))
STEPS = 50
PHASES = set(Phase) if os.environ.get("DIRECTOR_TEST_RANDOM") else {Phase.explicit, Phase.generate}
"""Shrinking a failure takes minutes."""
ERROR = TaskError(type="Error", message="random")
LEASE_MS, OUTAGE_MS, GRACE_MS, UNKNOWN_MS, MAX_LOST = 30_000, 5_000, 15_000, 5_000, 3


class Task(msgspec.Struct):
    """One task run; `s` is a letter of states.LETTER."""

    s: str = "p"
    attempts: int = 0
    retries: int = 0
    losses: int = 0
    token: str = ""
    holder: str = ""
    started: int = 0
    until: int = 0
    """Of a running one: its lease's end. Of a retrying one: when it is queued again."""
    result: bytes = b"null"


class Run(msgspec.Struct):
    plan: Plan
    tasks: dict[int, Task]
    """Hooks too, once they are queued."""
    s: str = "q"
    launch: int = 1
    token: str = ""
    """Of the cancel that ended it."""

    @property
    def own(self) -> list[Task]:
        return [self.tasks[n] for n in range(self.plan.total)]

    def node(self, number: int) -> Node:
        if number < self.plan.total:
            return self.plan.nodes[number]
        hook = self.plan.hook("f" if number != self.hook_number or self.s != "s" else "s")
        assert hook is not None
        return hook

    @property
    def hook_number(self) -> int:
        return len(self.plan.nodes) + self.launch - 1


class Model:
    """What must happen. Moves return what they released: numbers of task runs that are queued now."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.runs: dict[str, Run] = {}
        self.seen: dict[tuple[str, str], tuple[str, str]] = {}
        self.swept_at: int | None = None
        self.grace = 0
        self.failed_now: set[str] = set()

    def start(self, order: NewRun, results: dict[int, bytes]) -> tuple[str, bool, bool]:
        """Return run id, duplicate and conflict."""
        if order.dedupe:
            key = (order.dedupe.key, order.plan.workflow)
            if key in self.seen:
                first, mark = self.seen[key]
                same = mark == order.dedupe.fingerprint
                return first, same, not same
            self.seen[key] = (order.run_id, order.dedupe.fingerprint)
        tasks = {n: Task(s="s", result=results[n]) if n in results else Task() for n in range(order.plan.total)}
        run = self.runs[order.run_id] = Run(order.plan, tasks)
        self.release(run)
        return order.run_id, False, False

    def release(self, run: Run) -> list[int]:
        """Queue every pending task run whose parents have all succeeded; end the run when nothing is active."""
        released = [
            n
            for n in range(run.plan.total)
            if run.tasks[n].s == "p" and all(run.tasks[p].s == "s" for p in plans.inputs(run.plan, n))
        ]
        for n in released:
            self.queue(run.tasks[n])
        if run.s in "qr" and not any(task.s in "qry" for task in run.own):
            run.s = "s" if all(task.s == "s" for task in run.own) else "f"
            if run.s == "f":
                self.failed_now.update(name for name, one in self.runs.items() if one is run)
            if run.plan.hook(run.s):
                run.tasks[run.hook_number] = Task()
                self.queue(run.tasks[run.hook_number])
                released.append(run.hook_number)
        return released

    def queue(self, task: Task) -> None:
        task.s, task.token, task.holder = "q", "", ""

    def begin(self, ref: Ref, token: str, holder: str) -> bool:
        run = self.runs[ref.run_id]
        task = run.tasks.get(ref.number)
        if task is None or task.s == "p":
            return False
        if task.s == "r" and task.token == token:
            return True
        if task.s != "q":
            return False
        task.s, task.token, task.holder, task.started = "r", token, holder, self.clock.now
        task.attempts += 1
        self.renew(run, ref.number)
        if run.s == "q" and ref.number < run.plan.total:
            run.s = "r"
        return True

    def renew(self, run: Run, number: int) -> None:
        task, timeout_s = run.tasks[number], run.node(number).timeout_s
        ends = self.clock.now + LEASE_MS
        task.until = min(ends, task.started + int(timeout_s * 1000)) if timeout_s else ends

    def finish(self, ref: Ref, token: str, outcome: Outcome) -> tuple[bool, list[int] | None]:
        """Return whether it is accepted, and what it released; None for a repeat."""
        run = self.runs[ref.run_id]
        task = run.tasks[ref.number]
        if task.token != token:
            return False, None
        if task.s != "r":
            return True, None
        if outcome.retry_in_ms is not None:
            task.retries += 1
            task.s, task.until = "y", self.clock.now + outcome.retry_in_ms
            return True, []
        task.s, task.result = ("s", outcome.result or b"null") if outcome.error is None else ("f", b"null")
        return True, self.release(run) if ref.number < run.plan.total else []

    def take_back(self, run: Run, number: int, *, counted: bool) -> bool:
        """Return whether it failed: it was past its timeout, or lost too often."""
        task, timeout_s = run.tasks[number], run.node(number).timeout_s
        late = bool(timeout_s) and self.clock.now >= task.started + int((timeout_s or 0) * 1000)
        task.losses += counted and not late
        if late or (counted and task.losses >= MAX_LOST):
            self.give_up(run, number)
            return True
        self.queue(task)
        return False

    def give_up(self, run: Run, number: int) -> None:
        run.tasks[number].s, run.tasks[number].token = "f", ""
        if number < run.plan.total:
            self.release(run)

    def running(self) -> list[tuple[Ref, Run, Task]]:
        return [
            (Ref(run_id, number), run, task)
            for run_id, run in self.runs.items()
            for number, task in list(run.tasks.items())
            if task.s == "r"
        ]

    def hand_back(self, holder: str, *, counted: bool) -> tuple[set[Ref], set[Ref]]:
        back: set[Ref] = set()
        failed: set[Ref] = set()
        for ref, run, task in self.running():
            if task.holder == holder or (holder.endswith(".") and task.holder.startswith(holder.rstrip("."))):
                (failed if self.take_back(run, ref.number, counted=counted) else back).add(ref)
        return back, failed

    def unknown(self, ref: Ref, token: str) -> None:
        run = self.runs[ref.run_id]
        task = run.tasks.get(ref.number)
        if task is None or not (task.s == "q" or (task.s == "r" and task.token == token)):
            return
        task.losses, task.token = task.losses + 1, ""
        if task.losses >= MAX_LOST:
            self.give_up(run, ref.number)
        else:
            task.s, task.until = "y", self.clock.now + UNKNOWN_MS

    def cancel(self, run_id: str, token: str) -> bool:
        run = self.runs[run_id]
        if run.s == "c" and run.token == token:
            return True
        if run.s not in "qr":
            return False
        for task in run.own:
            if task.s in "qry":
                task.s, task.token = "c", ""
        run.s, run.token = "c", token
        return True

    def relaunch(self, run_id: str, plan: Plan, resets: set[int]) -> None:
        run = self.runs[run_id]
        run.plan, run.launch, run.s, run.token = plan, run.launch + 1, "q", ""
        for n in resets & set(range(plan.total)):
            run.tasks[n] = Task(attempts=run.tasks[n].attempts)
        self.release(run)

    def sweep(self) -> tuple[set[Ref], set[Ref], set[Ref]]:
        """Return what was lost, what failed and what was released."""
        now = self.clock.now
        if self.swept_at is not None and now - self.swept_at > OUTAGE_MS:
            self.grace = now + GRACE_MS
        self.swept_at = now
        lost, failed, released = set(), set(), set()
        for ref, run, task in self.running() if now >= self.grace else ():
            if task.until <= now:
                (failed if self.take_back(run, ref.number, counted=True) else lost).add(ref)
        for run_id, run in self.runs.items():
            for number, task in run.tasks.items():
                if task.s == "y" and task.until <= now:
                    self.queue(task)
                    released.add(Ref(run_id, number))
        return lost, failed, released


# What histories are made of

LEAF = st.sampled_from("ABCD")
SPECS = st.recursive(
    st.lists(LEAF, min_size=1, max_size=3),
    lambda inner: st.lists(LEAF | st.lists(inner, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3),
    max_leaves=6,
)
HOOKS = st.builds(
    Hooks,
    success=st.sampled_from([None, "HOOK", "OTHER"]),
    failure=st.sampled_from([None, "HOOK", "HOOK", "OTHER"]),
)
OPTION = st.builds(
    lambda limit, priority: TaskOptions(time_limit=limit, limited=limit is not None, priority=priority),
    st.sampled_from([None, None, None, 2.5, 40]),
    st.sampled_from([None, None, 6]),
)
OPTIONS = st.dictionaries(st.sampled_from(["A", "B", "C", "D", "HOOK"]), OPTION, min_size=2)
OUTCOMES = st.sampled_from(
    [Outcome(result=b'"more"')] * 4
    + [Outcome(result=b"null"), Outcome(result=b'"%s"' % (b"x" * 600))]
    + [Outcome(error=ERROR), Outcome(error=ERROR, retry_in_ms=3000), Outcome(error=ERROR, retry_in_ms=0)]
)
WISHES = st.sampled_from([None, None, "celery", "q", "celery\x06\x166", "q\x06\x166"])
HOLDERS = st.sampled_from(["w.1", "w.2", "v.1"])
PICKS = st.integers(0, 1000)
histories = count()


class Histories(RuleBasedStateMachine):
    """Plays each step to both stores and to the model."""

    def __init__(self, redis_url: str, folder: Any) -> None:
        super().__init__()
        number = next(histories)
        self.clock = Clock()
        self.stores = [
            RedisStore(redis_url, f"history{number}:", clock=self.clock),
            TinyStore(folder / str(number), clock=self.clock),
        ]
        self.model = Model(self.clock)
        self.definitions: dict[str, Any] = {}
        self.tokens: list[tuple[Ref, str]] = []
        self.made = 0

    def teardown(self) -> None:
        for store in self.stores:
            store.close()

    def both(self, make: Any) -> Any:
        answers = []
        for store in self.stores:
            try:
                answers.append(store.do(make(store)))
            except DirectorError as exc:
                answers.append((type(exc), str(exc)))
        assert answers[0] == answers[1]
        return answers[0]

    def made_times(self, again: bool, make: Any) -> Any:
        """Make a call, and perhaps once more: the second answer is the first one."""
        first = self.both(make)
        if again:
            assert self.both(make) == first
        return first

    def token(self) -> str:
        self.made += 1
        return f"t{self.made}"

    def run_id(self) -> str:
        """UUIDv7-like and ascending, so that both stores order equal times alike."""
        self.made += 1
        return f"{self.clock.now:012x}"[:8] + f"-{self.made:027d}"

    def refs(self, letters: str) -> list[Ref]:
        return [
            Ref(run_id, number)
            for run_id, run in self.model.runs.items()
            for number, task in run.tasks.items()
            if task.s in letters
        ]

    def any_run(self, pick: int) -> str:
        return list(self.model.runs)[pick % len(self.model.runs)]

    @initialize(spec=SPECS, hooks=HOOKS, options=OPTIONS)
    def first(self, spec: Any, hooks: Hooks, options: Any) -> None:
        self.start(spec, "x", None, hooks, options, None, False)

    @precondition(lambda self: len(self.model.runs) < 5)
    @rule(
        spec=SPECS,
        name=st.sampled_from("xy"),
        queue=st.sampled_from([None, "q"]),
        hooks=HOOKS,
        options=OPTIONS,
        dedupe=st.none()
        | st.builds(Dedupe, st.sampled_from(["s:1", "s:2"]), st.just(86_400), st.sampled_from(["", "f"])),
        again=st.booleans(),
    )
    def start(
        self, spec: Any, name: str, queue: Any, hooks: Hooks, options: Any, dedupe: Any, again: bool
    ) -> None:
        definition = workflow(spec, name, queue=queue, hooks=hooks)
        order = new(plans.build(definition, options), self.run_id(), payload={"n": self.made}, dedupe=dedupe)
        answer = self.made_times(again, lambda store: store.start(order))
        assert (answer.run_id, answer.duplicate, answer.conflict) == self.model.start(order, {})
        if answer.run_id == order.run_id:
            self.definitions[order.run_id] = definition

    @precondition(lambda self: self.model.runs)
    @rule(pick=PICKS, stray=st.integers(0, 5), number=st.integers(0, 9), holder=HOLDERS, again=st.booleans())
    def begin(self, pick: int, stray: int, number: int, holder: str, again: bool) -> None:
        queued = self.refs("q")
        ref, token = Ref(self.any_run(pick), number), self.token()
        if queued and stray:
            ref = queued[pick % len(queued)]
        elif self.tokens and number < 3:
            ref, token = self.tokens[pick % len(self.tokens)]
        begun = self.made_times(again, lambda store: store.begin(ref, token, holder))
        assert (begun is not None) is self.model.begin(ref, token, holder)
        if begun:
            self.holds(begun)

    def holds(self, begun: Any) -> None:
        """Compare what an execution was given with what the model knows."""
        run = self.model.runs[begun.ref.run_id]
        task, number = run.tasks[begun.ref.number], begun.ref.number
        assert (begun.token, begun.attempt, begun.retries) == (task.token, task.attempts, task.retries)
        if number < run.plan.total:
            assert begun.results == tuple(run.tasks[p].result for p in plans.inputs(run.plan, number))
            assert begun.launch == run.launch
        if (begun.ref, begun.token) not in self.tokens:
            self.tokens.append((begun.ref, begun.token))

    # Most steps go on with what is there.
    @precondition(lambda self: self.refs("q"))
    @rule(pick=PICKS, holder=HOLDERS)
    def begin_one(self, pick: int, holder: str) -> None:
        self.begin(pick, 1, 9, holder, False)

    @precondition(lambda self: self.refs("r"))
    @rule(pick=PICKS, outcome=OUTCOMES, queue=WISHES)
    def finish_one(self, pick: int, outcome: Outcome, queue: Any) -> None:
        self.finish(pick, 1, outcome, queue, False)

    @precondition(lambda self: self.refs("q"))
    @rule(pick=PICKS, times=st.integers(1, 4))
    def lose(self, pick: int, times: int) -> None:
        """The same one again and again, until it fails."""
        for _ in range(times):
            if self.refs("q"):
                self.begin(pick, 1, 9, "w.2", False)
                self.hand_back("w.2", True)

    @precondition(lambda self: self.tokens)
    @rule(pick=PICKS, late=st.integers(0, 5), outcome=OUTCOMES, queue=WISHES, again=st.booleans())
    def finish(self, pick: int, late: int, outcome: Outcome, queue: Any, again: bool) -> None:
        live = [
            (ref, token)
            for ref, token in self.tokens
            if self.model.runs[ref.run_id].tasks[ref.number].token == token
        ]
        among = live if live and late else self.tokens
        ref, token = among[pick % len(among)]
        wish = Next(token=self.token(), queue=queue) if queue else None
        done = self.made_times(again, lambda store: store.finish(ref, token, outcome, "w.1", wish))
        accepted, released = self.model.finish(ref, token, outcome)
        assert done.accepted is accepted
        run = self.model.runs[ref.run_id]
        may_keep = {
            n
            for n in released or ()
            if run.node(n).ahead and queue_list(run.node(n).queue, run.node(n).priority) == queue
        }
        assert (done.begun is not None) is bool(may_keep)
        if done.begun:
            assert done.begun.ref.run_id == ref.run_id
            assert done.begun.ref.number in may_keep
            assert self.model.begin(done.begun.ref, done.begun.token, "w.1")
            self.holds(done.begun)
        assert done.run_status == WORD[run.s]

    @rule(holder=HOLDERS | st.sampled_from(["w.", "."]), counted=st.booleans())
    def hand_back(self, holder: str, counted: bool) -> None:
        self.model.failed_now.clear()
        swept = self.swept([store.do(store.hand_back(holder, counted)) for store in self.stores])
        held = self.model.hand_back(holder, counted=counted)
        assert (set(swept.lost), set(swept.failed)) == held
        assert set(swept.ended) == self.model.failed_now

    @precondition(lambda self: self.tokens)
    @rule(most=st.integers(1, 4))
    def renew(self, most: int) -> None:
        held = self.tokens[-most:]
        gone = self.both(lambda store: store.renew(held))
        for ref, token in held:
            run = self.model.runs[ref.run_id]
            task = run.tasks[ref.number]
            assert (ref in gone) or (task.s, task.token) == ("r", token)
            if (task.s, task.token) == ("r", token):
                self.model.renew(run, ref.number)

    @precondition(lambda self: self.model.runs)
    @rule(pick=PICKS, number=st.integers(0, 9), held=st.booleans())
    def unknown(self, pick: int, number: int, held: bool) -> None:
        ref, token = Ref(self.any_run(pick), number), ""
        if self.tokens and held:
            ref, token = self.tokens[pick % len(self.tokens)]
        self.both(lambda store: store.unknown(ref, token, ERROR))
        self.model.unknown(ref, token)

    @rule()
    def sweep(self) -> None:
        self.model.failed_now.clear()
        swept = self.swept([store.do(store.sweep()) for store in self.stores])
        lost, failed, released = self.model.sweep()
        assert (set(swept.lost), set(swept.failed), set(swept.released)) == (lost, failed, released)
        assert set(swept.ended) == self.model.failed_now
        assert swept.idle is not bool(self.refs("qry"))

    def swept(self, both: list[Any]) -> Any:
        for part in ("lost", "failed", "ended", "released"):
            assert sorted(getattr(both[0], part)) == sorted(getattr(both[1], part))
        return both[0]

    @precondition(lambda self: self.model.runs)
    @rule(pick=PICKS, again=st.booleans())
    def cancel(self, pick: int, again: bool) -> None:
        run_id, token = self.any_run(pick), self.token()
        answer = self.made_times(again, lambda store: store.cancel(run_id, token))
        assert (answer is None) is self.model.cancel(run_id, token)

    @precondition(lambda self: self.model.runs)
    @rule(
        pick=PICKS,
        hooks=st.none() | HOOKS,
        origin=st.sampled_from(["failed", "failed", "A", "B.2"]),
        again=st.booleans(),
    )
    def relaunch(self, pick: int, hooks: Any, origin: str, again: bool) -> None:
        ended = [run_id for run_id, run in self.model.runs.items() if run.s in "sfc"]
        run_id = ended[pick % len(ended)] if ended else self.any_run(pick)
        definition = self.definitions[run_id]
        if hooks:
            definition = msgspec.structs.replace(definition, hooks=hooks)
        run, pinned = self.stores[0].do(self.stores[0].get(run_id))
        engine = Engine()
        engine.learn(self.both(lambda store: store.task_options()))
        try:
            done = engine.relaunch(run, pinned, lambda _: definition, origin=origin, trigger={"kind": "api"})
        except DirectorError:
            return
        order = done.order
        if isinstance(order, NewRun):
            order = msgspec.structs.replace(order, run_id=self.run_id())
            self.definitions[order.run_id] = definition
        self.made_times(again, lambda store: store.carry_out(order))
        before = self.model.runs[run_id]
        if isinstance(order, NewRun):
            self.model.start(order, {n: before.tasks[n].result for n in order.kept if n < order.plan.total})
        else:
            self.model.relaunch(run_id, order.plan, set(order.resets))

    @rule(age_ms=st.sampled_from([None, 20_000, 60_000]), runs=st.sampled_from([None, 1, 2]))
    def prune(self, age_ms: Any, runs: Any) -> None:
        kept = {"": Keep(runs=2), "x": Keep(age_ms=age_ms, runs=runs)}
        count = self.both(lambda store: store.prune(kept))
        gone = {
            run_id for run_id in self.model.runs if isinstance(self.both(lambda s, r=run_id: s.get(r))[0], type)
        }
        assert len(gone) == count
        for run_id in gone:
            run = self.model.runs.pop(run_id)
            assert run.s in "sfc" and not any(task.s in "qry" for task in run.tasks.values())
        self.tokens = [(ref, token) for ref, token in self.tokens if ref.run_id not in gone]

    # 6 s and more is an outage when no sweep comes between; 31 s ends every lease.
    @rule(ms=st.sampled_from([1, 5, 900, 2500, 4900] * 3 + [6000, 16_000, 31_000]))
    def pass_time(self, ms: int) -> None:
        self.clock.now += ms

    @invariant()
    def agree(self) -> None:
        unreached = {"f": "skipped", "c": "canceled"}
        for run_id, known in self.model.runs.items():
            run, _ = self.both(lambda store, run_id=run_id: store.get(run_id))
            assert (run.status, run.launch) == (WORD[known.s], known.launch)
            shown = {task.number: (task.status, task.attempts) for task in run.tasks}
            right = {
                n: (unreached.get(known.s, "pending") if task.s == "p" else WORD[task.s], task.attempts)
                for n, task in known.tasks.items()
            }
            assert shown == right
        outboxes = [{item.ref for item in store.do(store.outbox())} for store in self.stores]
        assert outboxes[0] == outboxes[1] == set(self.refs("q"))
        state = self.both(lambda store: store.state(["x", "y"]))
        assert state.queued == len(self.refs("q"))
        for name in "xy":
            active = sum(run.s in "qr" for run in self.model.runs.values() if run.plan.workflow == name)
            assert state.workflows[name].active == active
        self.both(lambda store: store.list(Filter(limit=20)))
        self.both(lambda store: store.list(Filter(limit=3, status="failed")))
        self.both(lambda store: store.list(Filter(limit=2, workflow="x", since=self.clock.now - 9000)))


def test_both_stores_and_the_model_agree_on_every_history(redis_url, tmp_path):
    run_state_machine_as_test(
        lambda: Histories(redis_url, tmp_path),
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        ),
    )

"""What contract tests drive a store with."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from director import plan
from director.engine import Engine, Relaunched, new_run_id, new_token
from director.errors import Conflict
from director.models import Call, Element, FullRun, Plan, TaskError, TaskOptions, Workflow
from director.store.base import Store
from director.store.shapes import Begun, Dedupe, Finished, NewRun, Next, Outcome, Ref, Started
from tests.processes import element, workflow

HOLDER = "boot.1"
BOOM = TaskError(type="ValueError", message="boom")


def plan_of(spec: list[Any], *, name: str = "w", ahead: bool = False, **fields: Any) -> Plan:
    """Return the plan of nested lists (chains) and tuples (groups) of task names."""
    definition = workflow(spec, name, **fields)
    hooks = [definition.hooks.success, definition.hooks.failure]
    known = [*names(element(spec)), *filter(None, hooks)]
    return plan.build(definition, {task: TaskOptions() for task in known} if ahead else {})


def names(one: Element) -> list[str]:
    return [one.name] if isinstance(one, Call) else [name for member in one.members for name in names(member)]


def new(built: Plan, run_id: str | None = None, *, payload: Any = None, dedupe: Dedupe | None = None) -> NewRun:
    return NewRun(
        run_id=run_id or new_run_id(),
        plan=built,
        payload=msgspec.json.encode(payload or {}),
        trigger={"kind": "api"},
        dedupe=dedupe,
        roots=tuple(n for n, node in enumerate(built.nodes) if not node.parents),
    )


def start(store: Store, spec: list[Any], **fields: Any) -> str:
    started: Started = store.do(store.start(new(plan_of(spec, **fields))))
    return started.run_id


def begin(store: Store, run_id: str, number: int, token: str | None = None, holder: str = HOLDER) -> Begun | None:
    return store.do(store.begin(Ref(run_id=run_id, number=number), token or new_token(), holder))


def finish(store: Store, begun: Begun, value: Any = None, *, wish: Next | None = None, **outcome: Any) -> Finished:
    ended = Outcome(**outcome) if outcome else Outcome(result=msgspec.json.encode(value))
    return store.do(store.finish(begun.ref, begun.token, ended, HOLDER, wish))


def succeed(store: Store, run_id: str, *numbers: int) -> None:
    for number in numbers:
        begun = begin(store, run_id, number)
        assert begun is not None, f"task run {number} is not queued"
        assert finish(store, begun, number).accepted


def fail(store: Store, run_id: str, number: int) -> None:
    begun = begin(store, run_id, number)
    assert begun is not None
    assert finish(store, begun, error=BOOM).accepted


def get(store: Store, run_id: str) -> FullRun:
    return store.do(store.get(run_id))[0]


def relaunch(store: Store, run_id: str, definition: Workflow, **options: Any) -> Relaunched:
    """Relaunch as every caller does: look, work it out, carry it out."""
    engine = Engine()
    engine.learn(store.do(store.task_options()))
    options = {"trigger": {"kind": "api"}, **options}
    done = engine.relaunch(*store.do(store.get(run_id)), lambda name: definition, **options)
    answer = store.do(store.carry_out(done.order))
    assert answer
    return done


def cancel(store: Store, run_id: str, token: str = "t") -> None:
    """Cancel a run, unless it has ended."""
    with suppress(Conflict):
        store.do(store.cancel(run_id, token))


def live(store: Store, begun: Begun) -> bool:
    """Return whether the token still holds its task run."""
    return store.do(store.renew([(begun.ref, begun.token)])) == ()


def statuses(store: Store, run_id: str) -> dict[str, str]:
    return {task.key + "!" * task.hook: task.status for task in get(store, run_id).tasks}


def queued(store: Store) -> list[Ref]:
    return [item.ref for item in store.do(store.outbox())]

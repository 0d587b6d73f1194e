"""MAIN PATH: what can happen to a run. Each verb is a flow of store calls (see `store.base.Steps`).

    start ─ begin ─ finish ─ … ─ the run has ended ─ its hook
              │        └ release and queue successors
              └ fenced by a token: late and repeated calls change nothing

`begin` and `finish` are single calls, which the worker makes on the store itself.
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import uuid_utils

from director import definitions, log, plan, states
from director.errors import Conflict, DefinitionError, NotFound, TooLarge
from director.models import FullRun, Plan, Struct, TaskOptions, Workflow
from director.settings import MAX_PAYLOAD_BYTES
from director.store.base import Dedupe, NewRun, Relaunch, Started, Steps, Store, Swept

OPTIONS_AGE_S = 5.0
logger = log.get("director.engine")
FindWorkflow = Callable[[str], Workflow]
"""Name → workflow; raises NotFound or DefinitionError (as `Definitions.workflow` does)."""


class Relaunched(Struct, frozen=True):
    """What a relaunch does, or would do."""

    id: str
    """The run that goes on: the same one, or a new one that names it in `relaunch_of`."""
    rerun: tuple[str, ...]
    keep: tuple[str, ...]
    note: str = ""
    """Why the run keeps its old plan, where it does."""


def new_token() -> str:
    """Return 60 random bits as 10 characters: short, because every task run stores one; new, but no secret."""
    return base64.urlsafe_b64encode(random.randbytes(8))[:10].decode()


def new_run_id() -> str:
    """Return a UUIDv7: ids sort by the time they were made."""
    return str(uuid_utils.uuid7())


def sweep(store: Store) -> Swept:
    """Make one pass over what may be stuck, and log what it moved."""
    swept = store.do(store.sweep())
    for ref in swept.lost:
        logger.warning("task.requeued", task_run=str(ref), reason="its lease ended")
    for ref in swept.timed_out:
        logger.error("task.failed", task_run=str(ref), reason="timeout")
    for ref in swept.resent:
        logger.warning("message.resent", task_run=str(ref), reason="its message was lost")
    return swept


class Engine:
    """The verbs, over one store; one per process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._options: dict[str, TaskOptions] = {}
        self._options_until = 0.0
        self._plans: dict[str, tuple[Workflow, Plan]] = {}

    def start(
        self,
        workflow: Workflow,
        payload: Mapping[str, Any],
        *,
        trigger: Mapping[str, Any],
        comment: str = "",
        dedupe: Dedupe | None = None,
    ) -> Steps[Started]:
        """Check the payload and start a run.

        Raises:
            Conflict: the workflow is disabled.
            InvalidPayload, TooLarge: the payload is refused.
        """
        if not workflow.enabled:
            raise Conflict(f"Workflow {workflow.name} is disabled (enabled: false). Nothing was started.")
        body = _payload_bytes(definitions.check_payload(workflow, dict(payload)))
        current = yield from self.current_plan(workflow)
        new = NewRun(
            run_id=new_run_id(),
            plan=current,
            payload=body,
            trigger=trigger,
            comment=comment,
            dedupe=dedupe,
            roots=_roots(current),
        )
        started: Started = yield self.store.start(new)
        return started

    def cancel(self, run_id: str) -> Steps[None]:
        """End a run at once.

        Raises:
            NotFound: no such run.
            Conflict: it has ended already.
        """
        status = yield self.store.cancel(run_id, new_token())
        if status:
            raise Conflict(f"Run {run_id} is {status}, so it cannot be canceled. Nothing was changed.")

    def relaunch(
        self,
        run_id: str,
        find: FindWorkflow,
        *,
        origin: str = "failed",
        payload: Mapping[str, Any] | None = None,
        trigger: Mapping[str, Any],
        plan_only: bool = False,
    ) -> Steps[Relaunched]:
        """Run again what is needed: in place, or as a new run (a succeeded one, `start`, a new payload).

        Args:
            run_id: an ended run.
            find: gives the workflow's current definition.
            origin: `failed`, `start`, or the key of a task run.
            payload: replaces the run's payload; makes a new run.
            trigger: of the new run, where there is one.
            plan_only: change nothing, only say what would happen.

        Raises:
            NotFound: no such run, or no such task in it.
            Conflict: the run has not ended; or the task's parents have not succeeded.
        """
        found: tuple[FullRun, Plan] = yield self.store.get(run_id)
        run, pinned = found
        if run.status not in states.ENDED:
            raise Conflict(
                f"Run {run_id} is {run.status}; only a run that has ended can be relaunched. "
                "Wait for it or cancel it first. Nothing was changed."
            )
        if run.status == states.SUCCEEDED or origin == "start" or payload is not None:
            return (yield from self._relaunch_anew(run, pinned, find, origin, payload, trigger, plan_only))
        return (yield from self._relaunch_in_place(run, pinned, find, origin, plan_only))

    def _relaunch_in_place(
        self, run: FullRun, pinned: Plan, find: FindWorkflow, origin: str, plan_only: bool
    ) -> Steps[Relaunched]:
        status = _statuses(run, pinned)
        roots = {n for n, word in status.items() if word in (states.CANCELED, states.PENDING, states.SKIPPED)}
        if origin == "failed":
            roots |= {n for n, word in status.items() if word == states.FAILED}
        else:
            roots.add(_task_to_rerun(run, pinned, status, origin))
        rerun = plan.downstream(pinned, roots)
        waits = {
            n: sum(p in rerun or status[p] != states.SUCCEEDED for p in pinned.nodes[n].parents) for n in rerun
        }
        current, note = pinned, ""
        try:
            newest = yield from self.current_plan(find(run.workflow))
            if not plan.same_shape(newest, pinned):
                note = "The workflow's tasks have changed since this run started; it goes on with its own."
            elif not _same_hook(run, newest, pinned):
                note = "The workflow's failure hook has changed since this run used it; it goes on with its own."
            else:
                current = newest
        except (NotFound, DefinitionError):
            note = "The workflow is not in service any more; the run goes on with the tasks it started with."
        if not plan_only:
            order = Relaunch(run_id=run.id, launch=run.launch, token=new_token(), plan=current, resets=waits)
            yield self.store.relaunch(order)
        return _relaunched(run.id, pinned, rerun, note)

    def _relaunch_anew(
        self,
        run: FullRun,
        pinned: Plan,
        find: FindWorkflow,
        origin: str,
        payload: Mapping[str, Any] | None,
        trigger: Mapping[str, Any],
        plan_only: bool,
    ) -> Steps[Relaunched]:
        workflow = find(run.workflow)
        if not workflow.enabled:
            raise Conflict(f"Workflow {workflow.name} is disabled (enabled: false). Nothing was started.")
        current = yield from self.current_plan(workflow)
        rerun = set(range(len(current.nodes)))
        if origin not in ("failed", "start"):
            if not plan.same_shape(current, pinned):
                raise Conflict(
                    f"The tasks of workflow {run.workflow} have changed since run {run.id}, so its results "
                    'do not fit. Relaunch it from "start". Nothing was changed.'
                )
            status = _statuses(run, pinned)
            unfinished = {n for n, word in status.items() if word != states.SUCCEEDED}
            rerun = plan.downstream(current, unfinished | {_task_to_rerun(run, pinned, status, origin)})
        waits = {n: sum(p in rerun for p in current.nodes[n].parents) for n in rerun}
        body = msgspec.json.encode(run.payload)
        if payload is not None:
            body = _payload_bytes(definitions.check_payload(workflow, dict(payload)))
        new = NewRun(
            run_id=new_run_id(),
            plan=current,
            payload=body,
            trigger=trigger,
            relaunch_of=run.id,
            kept=tuple(n for n in range(len(current.nodes)) if n not in rerun),
            roots=tuple(sorted(n for n, left in waits.items() if left == 0)),
            waits={n: left for n, left in waits.items() if 0 < left < len(current.nodes[n].parents)},
        )
        if not plan_only:
            yield self.store.start(new)
        return _relaunched(run.id if plan_only else new.run_id, current, rerun, "")

    def current_plan(self, workflow: Workflow) -> Steps[Plan]:
        """Return the workflow's plan with what workers have published of its tasks (at most 5 s old)."""
        now = time.monotonic()
        if now >= self._options_until:
            options = yield self.store.task_options()
            if options != self._options:
                self._options = options
                self._plans.clear()
            self._options_until = now + OPTIONS_AGE_S
        known = self._plans.get(workflow.name)
        if known is None or known[0] is not workflow:
            known = self._plans[workflow.name] = (workflow, plan.build(workflow, self._options))
        return known[1]


def _payload_bytes(payload: Mapping[str, Any]) -> bytes:
    body = msgspec.json.encode(payload)
    if len(body) > MAX_PAYLOAD_BYTES:
        raise TooLarge(f"The payload has {len(body)} bytes; the limit is {MAX_PAYLOAD_BYTES}.")
    return body


def _roots(of: Plan) -> tuple[int, ...]:
    return tuple(n for n, node in enumerate(of.nodes) if not node.parents)


def _statuses(run: FullRun, of: Plan) -> dict[int, str]:
    """Return the status of every node; a join has succeeded when all its parents have."""
    status = {task.number: task.status for task in run.tasks if not task.hook}
    for number in range(of.total, len(of.nodes)):
        done = all(status[parent] == states.SUCCEEDED for parent in of.nodes[number].parents)
        status[number] = states.SUCCEEDED if done else states.PENDING
    return status


def _same_hook(run: FullRun, newest: Plan, pinned: Plan) -> bool:
    """Return whether a plan still has the hook that former launches of the run have queued.

    It may be underway, and its task, queue and priority are looked up in the run's plan. Success hooks do
    not matter here: a run that has succeeded is never relaunched in place.
    """
    if not any(task.hook for task in run.tasks):
        return True
    old, new = pinned.failure_hook, newest.failure_hook
    if old is None or new is None:
        return False
    return (old.task, old.queue, old.priority) == (new.task, new.queue, new.priority)


def _task_to_rerun(run: FullRun, of: Plan, status: Mapping[int, str], key: str) -> int:
    """Return the number of the task run that a relaunch starts from."""
    number = next((n for n, node in enumerate(of.nodes[: of.total]) if node.key == key), None)
    if number is None:
        keys = ", ".join(node.key for node in of.nodes[: of.total][:20])
        raise NotFound(f'Run {run.id} has no task "{key}"; it has {keys}.')
    for parent in plan.inputs(of, number):
        if status[parent] != states.SUCCEEDED:
            raise Conflict(
                f'"{key}" needs the result of "{of.nodes[parent].key}", which is {status[parent]}. '
                "Nothing was changed."
            )
    return number


def _relaunched(run_id: str, of: Plan, rerun: set[int], note: str) -> Relaunched:
    keys = [(node.key, number in rerun) for number, node in enumerate(of.nodes[: of.total])]
    return Relaunched(
        id=run_id,
        rerun=tuple(key for key, again in keys if again),
        keep=tuple(key for key, again in keys if not again),
        note=note,
    )

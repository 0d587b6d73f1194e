"""MAIN PATH: what a start and a relaunch write. Pure: an `Engine` knows definitions and options, and no store.

start ─ begin ─ finish ─ … ─ the run has ended ─ its hook         (store.base: the verbs of a run's life)
          │        └ release and queue successors
          └ fenced by a token: late and repeated calls change nothing
"""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import uuid_utils

from director import definitions, log, plan, schedules, states
from director.errors import Conflict, DefinitionError, InvalidPayload, NotFound, TooLarge
from director.models import FullRun, Plan, Schedule, Struct, TaskOptions, Workflow, time_text
from director.settings import MAX_PAYLOAD_BYTES
from director.store.shapes import Dedupe, Fire, NewRun, Relaunch, Swept

OPTIONS_AGE_S = 5.0
FindWorkflow = Callable[[str], Workflow]
"""Name → workflow; raises NotFound or DefinitionError (as `Definitions.workflow` does)."""

logger = log.get("director.engine")


class Relaunched(Struct, frozen=True):
    """What a relaunch does, or would do."""

    id: str
    """The run that goes on: the same one, or a new one that names it in `relaunch_of`."""
    rerun: tuple[str, ...]
    keep: tuple[str, ...]
    order: NewRun | Relaunch
    """For `Store.carry_out`."""
    note: str = ""
    """Why the run keeps its old plan, where it does."""


def new_token() -> str:
    """Return 60 random bits as 10 characters: short, because every task run stores one; new, but no secret."""
    return base64.urlsafe_b64encode(random.randbytes(8))[:10].decode()


def new_run_id() -> str:
    """Return a UUIDv7: ids sort by the time they were made."""
    return str(uuid_utils.uuid7())


def report(swept: Swept, reason: str) -> Swept:
    """Log what was done about trouble; `reason` is why task runs were lost."""
    for ref in swept.lost:
        logger.warning("task.requeued", task_run=str(ref), reason=reason)
    for ref in swept.failed:
        logger.error("task.failed", task_run=str(ref), reason="past its timeout, or lost too often")
    for run_id in swept.ended:
        logger.error("run.failed", run_id=run_id)
    for ref in swept.resent:
        logger.warning("message.resent", task_run=str(ref), reason="its message was lost")
    return swept


class Engine:
    """Works out what to write; one per process. Whoever uses it keeps it informed of the tasks' options."""

    def __init__(self) -> None:
        self._options: dict[str, TaskOptions] = {}
        self._learned_at: float | None = None
        self._plans: dict[str, tuple[Workflow, Plan]] = {}

    @property
    def is_stale(self) -> bool:
        """Return whether the options are more than 5 s old, or not there yet."""
        return self._learned_at is None or time.monotonic() - self._learned_at > OPTIONS_AGE_S

    def learn(self, options: dict[str, TaskOptions]) -> None:
        """Take over what workers have published of their tasks (`Store.task_options`)."""
        if options != self._options:
            self._options, self._plans = options, {}
        self._learned_at = time.monotonic()

    def plan(self, workflow: Workflow) -> Plan:
        """Return a workflow's plan with the options that are known."""
        known = self._plans.get(workflow.name)
        if known is None or known[0] is not workflow:
            known = self._plans[workflow.name] = (workflow, plan.build(workflow, self._options))
        return known[1]

    def start(
        self,
        workflow: Workflow,
        payload: Mapping[str, Any],
        *,
        trigger: Mapping[str, Any],
        comment: str = "",
        dedupe: Dedupe | None = None,
    ) -> NewRun:
        """Return a new run, its payload checked.

        Raises:
            Conflict: the workflow is disabled.
            InvalidPayload, TooLarge: the payload is refused.
        """
        made, body = self.plan(_enabled(workflow)), _checked(workflow, payload)
        roots = tuple(n for n, node in enumerate(made.nodes) if not node.parents)
        return NewRun(
            run_id=new_run_id(),
            plan=made,
            payload=body,
            trigger=trigger,
            comment=comment,
            dedupe=dedupe,
            roots=roots,
        )

    def fire(self, workflow: Workflow, schedule: Schedule, fire: Fire) -> NewRun:
        """Return the run of a due time, under the id that whoever fires it gives it. Raises as `start`."""
        trigger = {"kind": "schedule", "schedule": schedule.id, "due_at": time_text(fire.due)}
        new = self.start(workflow, schedule.payload, trigger=trigger)
        return msgspec.structs.replace(new, run_id=schedules.run_id(schedule.id, fire.due), fire=fire)

    def relaunch(
        self,
        run: FullRun,
        pinned: Plan,
        find: FindWorkflow,
        *,
        origin: str = "failed",
        payload: Mapping[str, Any] | None = None,
        trigger: Mapping[str, Any],
        dedupe: Dedupe | None = None,
    ) -> Relaunched:
        """Return what to run again: in place, or as a new run (a succeeded one, `start`, a new payload).

        Args:
            run: an ended run.
            pinned: its plan.
            find: gives the workflow's current definition.
            origin: `failed`, `start`, or the key of a task run.
            payload: replaces the run's payload; makes a new run.
            trigger: of the new run, where there is one.
            dedupe: of the delivery that asks for it.

        Raises:
            NotFound: no such task in the run.
            Conflict: the run has not ended; or the task's parents have not succeeded.
        """
        if run.status not in states.ENDED:
            raise Conflict(
                f"Run {run.id} is {run.status}; only a run that has ended can be relaunched. "
                "Wait for it or cancel it first. Nothing was changed."
            )
        if run.status == states.SUCCEEDED or origin == "start" or payload is not None:
            done = self._relaunch_anew(run, pinned, _enabled(find(run.workflow)), origin, payload, trigger)
        else:
            done = self._relaunch_in_place(run, pinned, find, origin)
        return msgspec.structs.replace(done, order=msgspec.structs.replace(done.order, dedupe=dedupe))

    def _relaunch_in_place(self, run: FullRun, pinned: Plan, find: FindWorkflow, origin: str) -> Relaunched:
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
            newest = self.plan(find(run.workflow))
            if not plan.same_shape(newest, pinned):
                note = "The workflow's tasks have changed since this run started; it goes on with its own."
            elif not _same_hook(run, newest, pinned):
                note = "The workflow's failure hook has changed since this run used it; it goes on with its own."
            else:
                current = newest
        except (NotFound, DefinitionError):
            note = "The workflow is not in service any more; the run goes on with the tasks it started with."
        order = Relaunch(run_id=run.id, launch=run.launch, token=new_token(), plan=current, resets=waits)
        return _relaunched(run.id, pinned, rerun, order, note)

    def _relaunch_anew(
        self,
        run: FullRun,
        pinned: Plan,
        workflow: Workflow,
        origin: str,
        payload: Mapping[str, Any] | None,
        trigger: Mapping[str, Any],
    ) -> Relaunched:
        current = self.plan(workflow)
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
        order = NewRun(
            run_id=new_run_id(),
            plan=current,
            payload=msgspec.json.encode(run.payload) if payload is None else _checked(workflow, payload),
            trigger=trigger,
            relaunch_of=run.id,
            kept=tuple(n for n in range(len(current.nodes)) if n not in rerun),
            roots=tuple(sorted(n for n, left in waits.items() if left == 0)),
            waits={n: left for n, left in waits.items() if 0 < left < len(current.nodes[n].parents)},
        )
        return _relaunched(order.run_id, current, rerun, order, "")


def _enabled(workflow: Workflow) -> Workflow:
    if not workflow.enabled:
        raise Conflict(f"Workflow {workflow.name} is disabled (enabled: false). Nothing was started.")
    return workflow


def _checked(workflow: Workflow, payload: Mapping[str, Any]) -> bytes:
    checked = definitions.check_payload(workflow, dict(payload))
    try:
        body = msgspec.json.encode(checked)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        # A trigger's expression can make what no body holds.
        raise InvalidPayload(f"The payload of {workflow.name} cannot be written as JSON: {exc}.") from exc
    if len(body) > MAX_PAYLOAD_BYTES:
        raise TooLarge(f"The payload has {len(body)} bytes; the limit is {MAX_PAYLOAD_BYTES}.")
    return body


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


def _relaunched(run_id: str, of: Plan, rerun: set[int], order: NewRun | Relaunch, note: str) -> Relaunched:
    keys = [(node.key, number in rerun) for number, node in enumerate(of.nodes[: of.total])]
    again, keep = (tuple(key for key, runs in keys if runs is which) for which in (True, False))
    return Relaunched(id=run_id, rerun=again, keep=keep, order=order, note=note)

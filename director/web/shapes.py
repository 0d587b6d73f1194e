"""The JSON that the API answers with. Times are RFC 3339, UTC, with milliseconds, or null."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from director.models import Run, TaskRun
from director.settings import Settings


class Error(msgspec.Struct):
    """Why a task run failed."""

    type: str
    message: str
    traceback: str


class RunError(msgspec.Struct):
    """The first failure of a run."""

    task: str
    type: str
    message: str


class Progress(msgspec.Struct):
    """Task runs of a run, hooks left out."""

    total: int
    succeeded: int
    failed: int


class TaskRunShape(msgspec.Struct):
    """One task's place in a run."""

    number: int
    key: str
    task: str
    status: str
    attempts: int
    parents: list[str]
    queue: str
    hook: bool
    queued_at: str | None
    started_at: str | None
    ended_at: str | None
    next_at: str | None
    worker: str | None
    result: Any
    error: Error | None


class RunShape(msgspec.Struct):
    """One execution of a workflow."""

    id: str
    workflow: str
    status: str
    launch: int
    trigger: dict[str, Any]
    comment: str
    relaunch_of: str | None
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    duration_s: float | None
    progress: Progress
    error: RunError | None
    url: str


class FullRun(RunShape):
    """A run, alone: with its payload and its task runs."""

    payload: Any
    tasks: list[TaskRunShape]


class RunList(msgspec.Struct):
    """A page of runs, newest first."""

    runs: list[RunShape]
    next: str | None


class StartedShape(msgspec.Struct):
    """A run that was started."""

    id: str
    workflow: str
    status: str
    url: str


class RelaunchedShape(msgspec.Struct, omit_defaults=True):
    """What a relaunch does, or would do."""

    id: str
    url: str
    rerun: list[str]
    keep: list[str]
    note: str | None = None
    """Why the run keeps its old tasks, where it does; else left out."""


class HookRun(msgspec.Struct):
    """A run that a delivery started."""

    id: str
    workflow: str
    url: str


class Refused(msgspec.Struct):
    """A workflow that a delivery did not start."""

    workflow: str
    reason: str


class HookAnswer(msgspec.Struct, omit_defaults=True):
    """What a delivery did."""

    delivery: str
    runs: list[HookRun]
    duplicate: bool
    reason: str | None
    refused: list[Refused] = []


class WorkflowShape(msgspec.Struct):
    """A definition as its file says, and its newest run."""

    name: str
    description: str
    enabled: bool
    tasks: list[dict[str, Any]]
    """`{task, …options}`, or `{group|chain, tasks: […]}`."""
    queue: Any
    """A queue's name, or `{default, customs}`, or null."""
    hooks: dict[str, str | None]
    schema: Any
    payload: dict[str, Any]
    """Defaults under every caller's payload."""
    triggers: list[dict[str, Any]]
    file: str
    status: str | None
    """Of the newest run."""
    last_run: str | None
    last_success_at: str | None
    active: int
    next_due: str | None


class WorkflowList(msgspec.Struct):
    """All workflows in service, and what is wrong with the files."""

    workflows: list[WorkflowShape]
    problems: list[str]


class SecretShape(msgspec.Struct):
    """A variable that holds a secret; never its value."""

    name: str
    set: bool


class SourceList(msgspec.Struct):
    """Everybody who may send webhooks."""

    sources: list[SourceShape]


class SourceShape(msgspec.Struct):
    """Somebody who sends webhooks."""

    name: str
    scheme: str
    url: str
    open: bool
    secrets: list[SecretShape]


class WorkflowStatus(msgspec.Struct):
    """A workflow in `/status`."""

    status: str | None
    last_run: str | None
    last_success_at: str | None
    active: int
    next_due: str | None


class Status(msgspec.Struct):
    """The whole service at a glance."""

    at: str
    mode: str
    workers: int
    queued: int
    oldest_queued_s: float | None
    problems: list[str]
    workflows: dict[str, WorkflowStatus]


def time_text(ms: int | None) -> str | None:
    """Return ms since 1970 as RFC 3339."""
    if ms is None:
        return None
    at = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def run_shape(run: Run, settings: Settings) -> RunShape:
    """Return a run as listings show it."""
    return RunShape(**_run_fields(run, settings))


def full_run(run: Run, settings: Settings) -> FullRun:
    """Return all of a run."""
    return FullRun(
        **_run_fields(run, settings),
        payload=run.payload,
        tasks=[_task_run(task) for task in run.tasks or ()],
    )


def _run_fields(run: Run, settings: Settings) -> dict[str, Any]:
    duration_s = None
    if run.started_at is not None and run.ended_at is not None:
        duration_s = (run.ended_at - run.started_at) / 1000
    error = None
    if run.error is not None:
        error = RunError(task=run.error_task or "", type=run.error.type, message=run.error.message)
    return {
        "id": run.id,
        "workflow": run.workflow,
        "status": run.status,
        "launch": run.launch,
        "trigger": dict(run.trigger),
        "comment": run.comment,
        "relaunch_of": run.relaunch_of,
        "created_at": time_text(run.created_at),
        "started_at": time_text(run.started_at),
        "ended_at": time_text(run.ended_at),
        "duration_s": duration_s,
        "progress": Progress(total=run.total, succeeded=run.succeeded, failed=run.failed),
        "error": error,
        "url": settings.run_url(run.id),
    }


def _task_run(task: TaskRun) -> TaskRunShape:
    error = None
    if task.error is not None:
        error = Error(type=task.error.type, message=task.error.message, traceback=task.error.traceback)
    return TaskRunShape(
        number=task.number,
        key=task.key,
        task=task.task,
        status=task.status,
        attempts=task.attempts,
        parents=list(task.parents),
        queue=task.queue,
        hook=task.hook,
        queued_at=time_text(task.queued_at),
        started_at=time_text(task.started_at),
        ended_at=time_text(task.ended_at),
        next_at=time_text(task.next_at),
        worker=task.worker,
        result=task.result,
        error=error,
    )

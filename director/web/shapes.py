"""What the API answers with, beside the shapes of `models`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from director.models import AccessToken, Delivery, Run, Workflow
from director.store.shapes import WorkflowState


class RunList(msgspec.Struct):
    """A page of runs, newest first."""

    runs: list[Run]
    next: str | None


class StartedRun(msgspec.Struct):
    """A run that was started, or canceled."""

    id: str
    workflow: str
    status: str | None
    """None: an earlier call started it, and it is not kept any more."""
    url: str


class Relaunch(msgspec.Struct, omit_defaults=True):
    """What a relaunch does, or would do."""

    id: str
    url: str
    rerun: tuple[str, ...]
    keep: tuple[str, ...]
    note: str | None = None
    """Why the run keeps its old tasks, where it does; else left out."""


class HookRun(msgspec.Struct):
    """A run that a delivery started or relaunched, with its address."""

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
    """The sender's id of it, or a new one."""
    runs: list[HookRun]
    duplicate: bool
    """Every run was started by an earlier copy."""
    reason: str | None
    """Why nothing was started."""
    refused: list[Refused] = []


class DeliveryList(msgspec.Struct):
    """A page of the inbox, newest first."""

    deliveries: list[Delivery]
    next: str | None


class WorkflowStatus(WorkflowState, frozen=True):
    """A workflow in `/status`."""

    next_due: str | None = None


class WorkflowView(Workflow, frozen=True):
    """A definition as its file says, and its newest run."""

    tasks: Any = ()
    """`{task, …options}`, or `{group|chain, tasks: […]}` each."""
    status: str | None = None
    last_run: str | None = None
    last_success_at: str | None = None
    active: int = 0
    next_due: str | None = None


class WorkflowList(msgspec.Struct):
    """All workflows in service, and what is wrong with the files."""

    workflows: list[WorkflowView]
    problems: list[str]


class SecretView(msgspec.Struct):
    """A variable that holds a secret; never its value."""

    name: str
    set: bool


class SourceView(msgspec.Struct):
    """Somebody who sends webhooks."""

    name: str
    scheme: str
    url: str
    open: bool
    secrets: list[SecretView]


class SourceList(msgspec.Struct):
    """Everybody who may send webhooks."""

    sources: list[SourceView]


class ScheduleView(msgspec.Struct):
    """When a workflow starts by itself."""

    id: str
    workflow: str
    crontab: str | None
    interval: float | None
    """Seconds."""
    timezone: str
    payload: Mapping[str, Any]
    catchup: str
    overlap: str
    enabled: bool
    next_due: str | None
    last_due: str | None
    """The last due time that started a run."""
    last_run: str | None
    skipped: int
    """Due times that started nothing, so far."""
    last_skip: str | None
    """When the last one of these was recorded, its due time and why."""


class ScheduleList(msgspec.Struct):
    """All schedules."""

    schedules: list[ScheduleView]


class Ticked(msgspec.Struct):
    """What one pass of the scheduler did."""

    fired: int
    """Runs that were started."""
    requeued: int
    """Task runs that go on: their worker or message was lost, or their wait is over."""
    next_due: str | None


class TokenList(msgspec.Struct):
    """All access tokens, oldest first."""

    tokens: tuple[AccessToken, ...]


class CreatedToken(AccessToken, frozen=True):
    """A new access token."""

    token: str
    """To be sent as `Authorization: Bearer …`; it is never shown again."""


class Status(msgspec.Struct):
    """The whole service at a glance."""

    at: str
    mode: str
    workers: int
    queued: int
    oldest_queued_s: float | None
    problems: list[str]
    workflows: dict[str, WorkflowStatus]

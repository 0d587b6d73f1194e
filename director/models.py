"""The shapes that modules hand to each other; each field says what it means where it stands.

A `Workflow`, a `Run` and a `TaskRun` are also what the API answers with, as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """A value: named fields, never changed."""


# --- definitions: what the YAML says -------------------------------------------------------------


class Problem(Struct, frozen=True, order=True):
    """One thing wrong in one file."""

    file: str
    """Relative to `DIRECTOR_HOME`, with `/`."""
    line: int
    column: int
    """Both from 1."""
    text: str
    """Names the workflow or source first where there is one: `example.ETL: no task is named "LAOD"`."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.text}"


class Call(Struct, frozen=True, omit_defaults=True, rename={"name": "task"}):
    """A task's place in a workflow, with the options given there."""

    name: str
    queue: str | None = None
    retries: int | None = None
    backoff: float | None = None
    """Seconds before the first retry; doubles, at most 600."""
    timeout: float | None = None
    """Seconds an attempt may take; None means no limit."""


class Group(Struct, frozen=True, rename={"name": "group", "members": "tasks"}):
    """Members that run in parallel."""

    name: str
    members: tuple[Call | Group | Chain, ...]


class Chain(Struct, frozen=True, rename={"name": "chain", "members": "tasks"}):
    """Members that run one after the other."""

    name: str
    members: tuple[Call | Group | Chain, ...]


Element = Call | Group | Chain


class Hooks(Struct, frozen=True):
    """Tasks that run after a run has ended."""

    success: str | None = None
    failure: str | None = None


class Trigger(Struct, frozen=True):
    """Which deliveries start the workflow, and with which payload."""

    source: str
    events: tuple[str, ...] = ()
    """Empty: any event. `pull_request.closed` means the event and the body's `action`."""
    when: str | None = None
    """JMESPath over the body; a true result lets the delivery in."""
    payload: str | Mapping[str, str] | None = None
    """JMESPath that gives the payload, or one for each of its keys; None: the whole body."""
    relaunch: str | None = None
    """JMESPath that gives the id of a run of the workflow, or `latest`: relaunched, and nothing started."""
    enabled: bool = True


class Schedule(Struct, frozen=True, rename={"interval_s": "interval"}):
    """When a workflow starts by itself (`periodic`): by a crontab or an interval."""

    id: str = ""
    """`schedules.identity`: what the store knows it by."""
    crontab: str | None = None
    interval_s: float | None = None
    timezone: str = "UTC"
    """Of the crontab; an IANA name."""
    payload: Mapping[str, Any] = {}
    catchup: Literal["none", "last", "all"] = "last"
    """Which due times that came while nothing ran are made up for; all: at most 100."""
    overlap: Literal["allow", "skip"] = "allow"
    """skip: nothing starts while the schedule's last run is going on."""
    enabled: bool = True


class Source(Struct, frozen=True):
    """Somebody who sends webhooks."""

    name: str
    scheme: str | Mapping[str, Any]
    """A preset's name, or a mapping with `scheme` (a preset's name) and the keys that differ."""
    secrets: tuple[str, ...]
    """Names of environment variables, in order of preference; never the secrets themselves."""
    verify_tokens: tuple[str, ...] = ()
    """The same of what a handshake asks for; none: the secrets."""
    redelivery: Literal["ignore", "relaunch"] = "ignore"
    """relaunch: a delivery that comes again relaunches its run if that has failed."""
    file: str = ""
    line: int = 0
    column: int = 0

    @property
    def preset(self) -> str:
        """The name of the scheme that it uses, as it is or changed."""
        return self.scheme if isinstance(self.scheme, str) else str(self.scheme.get("scheme", "hmac"))


class DeliveryRun(Struct, frozen=True, gc=False):
    """A run that a delivery has started or relaunched."""

    id: str
    workflow: str


class Delivery(Struct, frozen=True, gc=False):
    """One message of a source, as the inbox remembers it."""

    id: str
    """The inbox's own, a UUIDv7 of when it came: resends share their delivery id."""
    at: str
    source: str
    event: str
    """As the sender says; of a refused one as its headers claim."""
    delivery: str
    """The sender's id of it, or the inbox's own; of a refused one as its headers claim."""
    verdict: Literal[
        "accepted", "duplicate", "ignored", "handshake", "rejected", "refused", "unreadable", "unavailable"
    ]
    """ignored: no trigger wanted it; rejected: by its signature; refused: by every wanted workflow; unavailable:
    the store was away."""
    status: int
    """Of the HTTP answer."""
    reason: str | None = None
    """In full: for whoever runs the service, the sender does not learn it."""
    secret: str | None = None
    """Name of the variable whose secret made the signature; None: nobody did."""
    runs: tuple[DeliveryRun, ...] = ()
    size: int = 0
    """Bytes of the body."""
    content_type: str = ""


class FullDelivery(Delivery, frozen=True):
    """A delivery, alone: with its body."""

    body: str | None = None
    """None when it was refused, or larger than the inbox keeps."""


class Retention(Struct, frozen=True):
    """Which finished runs of a workflow stay; None: as the settings say."""

    days: float | None = None
    """Since their end."""
    runs: int | None = None
    """The last ones; 0: all."""


class Workflow(Struct, frozen=True):
    """A definition from YAML: a chain of elements."""

    name: str
    tasks: tuple[Element, ...]
    description: str = ""
    queue: str | None = None
    """Default queue of its tasks; None: the task's own, else `celery`."""
    queues: Mapping[str, str] = {}
    """Queue by task name (`customs`)."""
    schema: Mapping[str, Any] | None = None
    """JSON Schema of the payload, checked before a run starts."""
    payload: Mapping[str, Any] = {}
    """Defaults, merged under the caller's payload (top-level keys)."""
    hooks: Hooks = Hooks()
    enabled: bool = True
    triggers: tuple[Trigger, ...] = ()
    periodic: tuple[Schedule, ...] = ()
    retention: Retention = Retention()
    file: str = ""
    line: int = 0


class Project(Struct, frozen=True):
    """Everything that the files of one `DIRECTOR_HOME` say."""

    workflows: Mapping[str, Workflow]
    """In service: without problems, or the last version that had none."""
    sources: Mapping[str, Source]
    problems: tuple[Problem, ...]
    broken: Mapping[str, tuple[Problem, ...]]
    """Workflow or file → why it is out of service, or why its newest version is."""


# --- plans: a workflow flattened ------------------------------------------------------------------


class TaskOptions(Struct, frozen=True):
    """What a task's decorator says; workers publish it where they import `tasks/`."""

    queue: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] | None = None
    time_limit: Annotated[float, msgspec.Meta(gt=0)] | None = None
    soft_time_limit: Annotated[float, msgspec.Meta(gt=0)] | None = None
    limited: bool = False
    """Has a time or rate limit, so that it never runs ahead."""


class Node(Struct, frozen=True):
    """One task run's place in a plan, or a join between two adjacent groups."""

    key: str
    """The task's name, `.2`, `.3` for repeats; `+N` for a join."""
    task: str
    """Empty for a join, which no worker ever sees."""
    parents: tuple[int, ...] = ()
    children: tuple[int, ...] = ()
    shape: Literal["none", "one", "list"] = "none"
    """What the function gets: `None`, its parent's result, or a list of its parents' results."""
    queue: str = "celery"
    priority: int = 0
    """0 to 9 as Celery writes it; on Redis 0 goes first."""
    retries: int | None = None
    backoff: float | None = None
    timeout_s: float | None = None
    soft_timeout_s: float | None = None
    ahead: bool = False
    """May be begun by a process that has just finished another task run."""


class Plan(Struct, frozen=True):
    """A flat DAG: task runs in YAML order, then joins; hooks apart."""

    workflow: str
    nodes: tuple[Node, ...]
    total: int
    """Task runs without joins: `nodes[:total]`."""
    success_hook: Node | None = None
    failure_hook: Node | None = None
    digest: str = ""
    """16 hex digits over all the above: the plan's name in the store."""

    def hook(self, kind: str) -> Node | None:
        """Return the hook for `s` (success) or `f` (failure)."""
        return {"s": self.success_hook, "f": self.failure_hook}.get(kind)

    @property
    def messaged(self) -> tuple[Node, ...]:
        """Every node that a message is sent for: task runs and hooks."""
        hooks = (hook for hook in (self.success_hook, self.failure_hook) if hook)
        return (*self.nodes[: self.total], *hooks)


# --- runs: what the store remembers, as the API shows it -------------------------------------------


class TaskError(Struct, frozen=True):
    """Why a task run failed."""

    type: str
    message: str
    traceback: str = ""


class RunError(Struct, frozen=True):
    """The first failure of a run."""

    task: str
    type: str
    message: str


class Progress(Struct, frozen=True):
    """Task runs of a run, hooks left out."""

    total: int
    succeeded: int
    failed: int


class TaskRun(Struct, frozen=True):
    """One task's place in one run."""

    number: int
    key: str
    task: str
    status: str
    attempts: int
    parents: tuple[str, ...]
    queue: str
    hook: bool
    queued_at: str | None
    started_at: str | None
    ended_at: str | None
    next_at: str | None
    """When a `retrying` one is tried again."""
    worker: str | None
    """`boot.process` of the worker that has or had it."""
    result: Any
    """Any JSON."""
    error: TaskError | None


class Run(Struct, frozen=True):
    """One execution of a workflow."""

    id: str
    workflow: str
    status: str
    launch: int
    trigger: Mapping[str, Any]
    """`kind` (webhook, api, cli, schedule) and what that kind adds: source, event, delivery."""
    comment: str
    relaunch_of: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None
    duration_s: float | None
    progress: Progress
    error: RunError | None
    url: str = ""
    """Set by who shows it."""


class FullRun(Run, frozen=True):
    """A run, alone: with its payload and its task runs."""

    payload: Any = None
    tasks: tuple[TaskRun, ...] = ()


# --- access --------------------------------------------------------------------------------------

Scope = Literal["read", "run", "admin"]
"""What a token may do; each includes those before it."""


class AccessToken(Struct, frozen=True):
    """What lets a caller in, as it is shown: never the token itself, nor its hash."""

    id: str
    name: str
    scope: Scope
    workflows: tuple[str, ...]
    """The only ones that it reaches; empty: all."""
    created_at: str
    expires_at: str | None
    """None: never."""
    last_used_at: str | None
    """To the minute."""


class Presented(Struct, frozen=True):
    """What the store knows of what a caller has sent."""

    token: AccessToken | None = None
    """The one with that hash, an expired one too."""
    expired: bool = False
    any_token: bool = False
    """There is a token, this or another, even if all have expired: time alone opens nothing."""


@lru_cache(maxsize=64)  # deliveries come many a millisecond
def time_text(ms: int | None) -> str | None:
    """Return milliseconds since 1970 as RFC 3339, UTC, with milliseconds."""
    return None if ms is None else f"{datetime.fromtimestamp(ms // 1000, UTC).isoformat()[:-6]}.{ms % 1000:03d}Z"


def time_ms(text: str) -> int:
    """Return what `time_text` was given."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def duration_s(text: str) -> int | None:
    """Return the seconds of a text such as 90, 90s, 15m, 26h or 7d; None for any other."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]] if found else None

"""What the store is told and what it answers: the shapes of the contract (`store.base`), and its times and limits.

Times are milliseconds since 1970 by the store's clock, but where a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from director.models import Plan, Scope, Struct, TaskError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
LEASE_MS = 30_000
"""A lease's length; its holder renews it long before."""
OUTAGE_MS = 5_000
"""When no sweep ran for so long, the store was away: leases get OUTAGE_GRACE_MS more."""
OUTAGE_GRACE_MS = 15_000
UNKNOWN_MS = 5_000
"""How long a task run waits after a worker said that it does not know the task."""
GAP_MS = 3_000
"""When no scheduler asked for so long what is due, what came due meanwhile was missed."""
FORGET_MS = 600_000
"""How long a schedule that no scheduler's files name stays, so that a rolling deploy harms nothing."""
SWEEP_LIMIT = 200
"""Task runs that one sweep changes at most, of each kind."""
PRUNE_LIMIT = 100
"""Runs that one pass of retention removes at most."""
USE_NOTED_MS = 60_000
"""How often at most the use of an access token is written down."""


KEEP_DELIVERIES = (1000, 200)
"""Verified and refused deliveries in the inbox; a tenth of it without a server."""


class Described(Generic[T]):
    """One call to a store, not yet made. `T` is what its answer reads as."""

    __slots__ = ()


class Link(Protocol):
    """Makes calls on an event loop."""

    def submit(self, call: Any) -> asyncio.Future[Any]:
        """Make a call; the future gets its answer or a DirectorError as its result."""

    def close(self) -> None:
        """Answer what waits with StoreUnavailable."""


class Ref(Struct, frozen=True, order=True):
    """One task run."""

    run_id: str
    number: int

    def __str__(self) -> str:
        return f"{self.run_id}:{self.number}"


class Dedupe(Struct, frozen=True):
    """What makes two starts the same one."""

    key: str
    """`SOURCE:DELIVERY`, or `api:IDEMPOTENCY-KEY`; the store adds the workflow."""
    ttl_s: int
    fingerprint: str = ""
    """What must agree as well, else the second start is answered with `conflict`."""


class NewRun(Struct, frozen=True):
    """All that a start writes."""

    run_id: str
    plan: Plan
    payload: bytes
    """JSON."""
    trigger: Mapping[str, Any]
    comment: str = ""
    relaunch_of: str = ""
    dedupe: Dedupe | None = None
    kept: tuple[int, ...] = ()
    """Task runs (joins too) that take their result from `relaunch_of` instead of running."""
    roots: tuple[int, ...] = ()
    """Task runs to queue: those with no parent outside `kept`."""
    fire: Fire | None = None
    """Of a schedule: the due time that this run is for."""
    waits: Mapping[int, int] = {}
    """Parents left to wait for, where that is fewer than the plan says."""


class Started(Struct, frozen=True):
    """A start's answer."""

    run_id: str
    """The caller's, or the first run's when `duplicate`."""
    duplicate: bool = False
    conflict: bool = False
    """The same dedupe key came with another fingerprint; nothing was started."""
    refused: Literal["", "moved", "overlap"] = ""
    """Of a schedule: somebody was faster, or its last run is going on; nothing was started."""


class Fire(Struct, frozen=True):
    """A due time of a schedule, and how the schedule goes on."""

    schedule: str
    was: int
    """The due time that is written down, ms; another one means that somebody was faster."""
    due: int
    """The one that fires, or that the skipped ones come before."""
    next: int
    skipped: int = 0
    """Due times from `was` on that do not fire."""
    reason: str = ""
    """Why they do not."""
    alone: bool = False
    """Start nothing while the schedule's last run is going on."""


class Entry(Struct, frozen=True):
    """A schedule that is new to the store."""

    schedule: str
    due: int
    job: Mapping[str, Any] = {}
    """The fields of rq-scheduler's job hash; TinyStore needs none."""


class ScheduleState(Struct, frozen=True):
    """What the store knows of a schedule; times are RFC 3339."""

    next_due: str | None
    last_due: str | None
    """The last one that started a run."""
    last_run: str | None
    skipped: int
    """Due times that started nothing, so far."""
    last_skip: str | None
    """When the last one of these was recorded, and why."""


class Begun(Struct, frozen=True):
    """The right to execute one task run, and all that its function needs."""

    ref: Ref
    token: str
    workflow: str
    plan: str
    task: str
    shape: str
    """`none`, `one` or `list`: what `results` become as an argument (see Node)."""
    attempt: int
    """From 1, over all launches."""
    retries: int
    """Retries used in this launch: Celery's `request.retries`."""
    launch: int
    hook: str
    """`s` or `f` for a success or failure hook, else empty."""
    payload: bytes
    """JSON."""
    trigger: Mapping[str, Any]
    results: tuple[bytes, ...]
    """Parents' results in YAML order, JSON each."""


class Outcome(Struct, frozen=True):
    """How an execution ended: a result, an error, or an error and the wish for another try."""

    result: bytes | None = None
    """JSON of a success."""
    error: TaskError | None = None
    retry_in_ms: int | None = None


class Next(Struct, frozen=True):
    """A wish for another task run in the same call (run-ahead)."""

    token: str
    """For whatever is begun."""
    queue: str
    """Only successors in this queue are kept; name of a Redis list (`messages.queue_list`)."""
    take: bool = False
    """Take the oldest message of the queue when no successor is kept."""


class Finished(Struct, frozen=True):
    """A finish's answer."""

    accepted: bool
    """False: the token was no longer live; nothing changed."""
    begun: Begun | None = None
    run_status: str = ""
    """The run's status after the call."""


class Relaunch(Struct, frozen=True):
    """A resume in place, worked out by `engine.relaunch`."""

    run_id: str
    launch: int
    """The launch that was looked at; another one means that somebody was faster."""
    token: str
    """Made by the caller; the same token again gets the first answer."""
    plan: Plan
    """To go on with: keys and edges of the run's own; every hook it has queued, in the same queue."""
    resets: Mapping[int, int]
    """Node → parents to wait for. Those with 0 are queued."""
    dedupe: Dedupe | None = None
    """Of the delivery that asks for it."""


class Swept(Struct, frozen=True):
    """What was done about trouble; each is a list of task runs."""

    lost: tuple[Ref, ...] = ()
    """Handed back, lost, or unknown: they run again."""
    failed: tuple[Ref, ...] = ()
    """Past their timeout, or lost too often."""
    ended: tuple[str, ...] = ()
    """Runs that failed with them."""
    released: tuple[Ref, ...] = ()
    """Were retrying; their time has come."""
    resent: tuple[Ref, ...] = ()
    """Their message was lost."""
    idle: bool = True
    """Nothing runs, is queued or is delayed."""
    due: tuple[tuple[str, int], ...] = ()
    """Schedules whose due time (ms) has come, those of other schedulers' files too."""
    next_in_ms: int | None = None
    """Until the next schedule or waiting task run is due, at least 1."""
    now: int = 0
    """The store's clock at the pass, ms."""
    missed_until: int = 0
    """What was due by then was due while no scheduler ran, ms; -1: the store has forgotten all, or never knew."""
    unsure: tuple[str, ...] = ()
    """Queues that may have lost a message; only another broker can tell."""


class Keep(Struct, frozen=True):
    """Which finished runs of a workflow stay; None: no limit."""

    age_ms: int | None = None
    """Those that ended less than so long ago."""
    runs: int | None = None
    """So many, those that were created last."""


class Outbox(Struct, frozen=True):
    """A queued task run whose message the caller has to publish (brokers other than the same Redis)."""

    ref: Ref
    plan: str
    queued_at: int
    hook: str = ""


class NewToken(Struct, frozen=True):
    """An access token to be kept; the token itself stays with its maker."""

    id: str
    digest: str
    """`access.digest` of the token."""
    scope: Scope
    workflows: tuple[str, ...] = ()
    name: str = ""
    expires_in_ms: int | None = None


class Inspection(Struct, frozen=True):
    """Who looks after the runs; what `director doctor` judges."""

    now: int
    workers: Mapping[str, tuple[str, ...]]
    """Those seen in the last 30 s, and the queues that each consumes."""
    queues: tuple[str, ...] = ()
    """Plain names that plans in the store name."""
    scheduled_at: int | None = None
    """The last pass of a scheduler that fires; None: never, or the store keeps no such time."""


class Filter(Struct, frozen=True):
    """Which runs a listing shows, newest first."""

    workflow: str | None = None
    status: str | None = None
    since: int | None = None
    """Created at or after, ms."""
    until: int | None = None
    """Created before, ms."""
    after: str | None = None
    """Runs older than this run id (the cursor)."""
    limit: int = 50


class DeliveryFilter(Struct, frozen=True):
    """Which deliveries a listing shows, newest first."""

    source: str | None = None
    verdict: str | None = None
    after: str | None = None
    """Older than this one (the cursor)."""
    limit: int = 50


class WorkflowState(Struct, frozen=True):
    """What the store knows of a workflow."""

    status: str | None
    """Of the newest run."""
    last_run: str | None
    last_success_at: str | None
    """RFC 3339."""
    active: int


class StoreState(Struct, frozen=True):
    """What `/status` and `/health/ready` show."""

    queued: int
    oldest_queued_s: float | None
    workers: int
    """Workers seen in the last 30 s."""
    workflows: Mapping[str, WorkflowState]

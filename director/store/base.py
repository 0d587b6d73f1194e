"""The store's contract.

A verb does nothing: it *describes* one call. `Store.do` makes it and waits; the web process hands the same
description to its event loop (`link`), so that no call is written twice.

Every call may be made twice, because a reply can get lost: the second call changes nothing and gets the
first answer. Runs are known by ids made by the caller, executions by tokens made by the caller. Times are
milliseconds since 1970 by the store's clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from director.errors import Conflict, DirectorError, NotFound
from director.models import (
    AccessToken,
    Delivery,
    FullRun,
    Plan,
    Presented,
    Run,
    TaskError,
    TaskOptions,
)
from director.store.shapes import (
    PRUNE_LIMIT,
    Begun,
    Dedupe,
    DeliveryFilter,
    Described,
    Entry,
    Filter,
    Finished,
    Fire,
    Inspection,
    Keep,
    Link,
    NewRun,
    NewToken,
    Next,
    Outbox,
    Outcome,
    Ref,
    Relaunch,
    ScheduleState,
    Started,
    StoreState,
    Swept,
)

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class Store(ABC):
    """What remembers runs. Threads may share one; a forked child may use its parent's."""

    clock: Callable[[], int] | None = None
    """Milliseconds since 1970, for tests; None means the store's own clock."""

    @abstractmethod
    def do(self, call: Described[T]) -> T:
        """Make one call and return its answer, or raise its error.

        Raises:
            StoreUnavailable: the store did not answer. The call may have been made; again is safe.
        """

    def play(self, steps: Generator[Described[Any], Any, T]) -> T:
        """Make one call after the other as a generator asks, which gets each answer or its error."""
        try:
            call = next(steps)
            while True:
                try:
                    answer = self.do(call)
                except DirectorError as exc:
                    call = steps.throw(exc)
                else:
                    call = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def link(self) -> Link | None:
        """Return what makes this store's calls on an event loop; None: a thread has to."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Give connections and files back."""

    # The life of a run

    @abstractmethod
    def start(self, new: NewRun) -> Described[Started]:
        """Write the run, its index entries, its dedupe key and its first messages, all or nothing.

        Again: a run id that exists answers as the first time. A known dedupe key gives the run it
        started (`duplicate`), or `conflict` when the fingerprint differs; nothing is written. With `fire`,
        the schedule goes on to its next due time in the same step; `refused` when it had gone on already
        (nothing is written), or when its last run is going on (the skip is written down).
        """

    @abstractmethod
    def begin(self, ref: Ref, token: str, holder: str) -> Described[Begun | None]:
        """Take a queued task run: queued → running, with a lease of LEASE_MS for `holder`.

        Again with the token that holds it: the same answer. None: it is not queued (begun by
        somebody else, ended, canceled, unknown); nothing changed.
        """

    @abstractmethod
    def finish(
        self, ref: Ref, token: str, outcome: Outcome, holder: str, wish: Next | None = None
    ) -> Described[Finished]:
        """Record how an execution ended, release and queue successors, end the run, queue its hook.

        With a wish, one eligible successor is begun for `holder` in the same step instead of queued;
        failing that, on Redis, the oldest eligible message of the queue is taken and begun.
        Only the live token is accepted. Again with the token that was accepted: the first answer,
        the kept task run included, as long as `holder` has not finished that one.
        """

    @abstractmethod
    def renew(self, held: Sequence[tuple[Ref, str]]) -> Described[tuple[Ref, ...]]:
        """Give each (task run, token) a lease of LEASE_MS from now; return those that are not held any more."""

    @abstractmethod
    def hand_back(self, holder: str, counted: bool) -> Described[Swept]:
        """Put what a holder executes back in its queue: running → queued, or failed past its timeout.

        `holder`: `boot.process`; `boot.` for every process of a worker, `.` for every worker.
        `counted`: a loss each; after the store's `max_lost` losses a task run fails instead.
        """

    @abstractmethod
    def unknown(self, ref: Ref, token: str, error: TaskError) -> Described[Swept]:
        """A worker does not know the task: counts as a loss, and waits UNKNOWN_MS.

        queued (or running with the live token) → retrying, or failed with `error` at the limit; anything
        else stays.
        """

    @abstractmethod
    def cancel(self, run_id: str, token: str) -> Described[None]:
        """End the run as canceled: leases void, nothing queued, no hook. Again with the same token: the same.

        Raises NotFound, and Conflict when the run had ended; it stays as it is.
        """

    @abstractmethod
    def relaunch(self, order: Relaunch) -> Described[int]:
        """Take an ended run back to queued; return its new launch.

        Again with the same token: the first answer. 0: the dedupe key is known, as a start's would be; nothing
        was changed. Raises NotFound, and Conflict when the run is not
        failed or canceled, or another launch than the one looked at.
        """

    @abstractmethod
    def seen(self, dedupe: Dedupe, workflow: str) -> Described[str | None]:
        """Return the run that a dedupe key has started or relaunched, None when it is not known."""

    def carry_out(self, order: NewRun | Relaunch) -> Described[Any]:
        """Return the call that an `engine.Relaunched` comes to: a start, or a relaunch in place."""
        return self.start(order) if isinstance(order, NewRun) else self.relaunch(order)

    # The inbox

    @abstractmethod
    def record(self, entries: Sequence[tuple[Delivery, bytes | None]]) -> Described[None]:
        """Write deliveries and bodies down; each store keeps the newest KEEP_DELIVERIES.

        Verified ones (they have a `secret`) and refused ones are counted apart, so that nobody can flush the
        former with the latter. Again with an id that is there: nothing changes.
        """

    @abstractmethod
    def deliveries(self, which: DeliveryFilter) -> Described[tuple[tuple[Delivery, ...], str | None]]:
        """Return deliveries, newest first, and the next cursor."""

    @abstractmethod
    def delivery(self, name: str) -> Described[tuple[Delivery, bytes | None]]:
        """Return a delivery by its own id, or the newest by its sender's, verified ones first. Raises NotFound."""

    # The loop and workers

    @abstractmethod
    def sweep(self, fires: bool = False) -> Described[Swept]:
        """Send lost messages again, take back ended leases, fail what is past its timeout, release
        what has waited. Bounded by SWEEP_LIMIT each; any number of sweepers may run.

        `fires`: whoever asks starts what is due: tell it, and forget schedules that nobody has refreshed for
        FORGET_MS.
        """

    @abstractmethod
    def refresh(self, schedules: Sequence[str]) -> Described[tuple[int, tuple[str, ...]]]:
        """Say that these schedules are somebody's; return the time (ms), and those that are not known."""

    @abstractmethod
    def add(self, entries: Sequence[Entry]) -> Described[None]:
        """Write new schedules down; one that is there already stays as it is."""

    @abstractmethod
    def skip(self, fire: Fire) -> Described[bool]:
        """Let a schedule go on to its next due time without a run; False when it had gone on already."""

    @abstractmethod
    def schedules(self, ids: Sequence[str]) -> Described[tuple[ScheduleState, ...]]:
        """Return what is known of some schedules, in their order."""

    @abstractmethod
    def prune(self, keeps: Mapping[str, Keep], limit: int = PRUNE_LIMIT) -> Described[int]:
        """Remove finished runs that are not kept, at most `limit`; return how many have gone.

        `keeps`: by workflow, "" for every other; a workflow with neither keeps all. A run in which anything
        is underway, a hook too, stays. Everything of a run goes but its dedupe key, which still answers with
        its id until it expires. What was created first goes first.
        """

    @abstractmethod
    def outbox(self) -> Described[tuple[Outbox, ...]]:
        """Return queued task runs, oldest first, for a broker that the store cannot write to."""

    @abstractmethod
    def publish(
        self, worker: str, tasks: Mapping[str, TaskOptions], queues: Sequence[str] = ()
    ) -> Described[tuple[str, ...]]:
        """Say that a worker is alive (for 30 s), what its tasks' decorators say and which queues it consumes.

        Returns every queue (plain names) that a plan in the store names.
        """

    @abstractmethod
    def task_options(self) -> Described[dict[str, TaskOptions]]:
        """Return what workers have published."""

    # Access tokens

    @abstractmethod
    def add_token(self, new: NewToken) -> Described[AccessToken]:
        """Keep a token. Again: the first answer. Raises Conflict when another one has its id."""

    @abstractmethod
    def tokens(self) -> Described[tuple[AccessToken, ...]]:
        """Return all tokens, oldest first; expired ones stay until they are revoked."""

    @abstractmethod
    def revoke(self, token_id: str) -> Described[None]:
        """Forget a token: from then on it is unknown.

        Raises NotFound when there is none. So does the second call, whose caller learns all the same that
        nobody gets in with it any more.
        """

    @abstractmethod
    def authenticate(self, digest: str) -> Described[Presented]:
        """Return the token with that hash, and whether there is any; "" asks for the second only.

        The use of one that has not expired is noted, once in USE_NOTED_MS.
        """

    # Reading

    @abstractmethod
    def plan(self, digest: str) -> Described[Plan]:
        """Return a plan. Raises NotFound."""

    @abstractmethod
    def get(self, run_id: str) -> Described[tuple[FullRun, Plan]]:
        """Return all of a run, and its plan. Raises NotFound."""

    @abstractmethod
    def list(self, which: Filter) -> Described[tuple[tuple[Run, ...], str | None]]:
        """Return runs, newest first, and the next cursor."""

    @abstractmethod
    def inspect(self) -> Described[Inspection]:
        """Return who looks after the runs."""

    @abstractmethod
    def state(self, workflows: Sequence[str]) -> Described[StoreState]:
        """Return counts, and the newest of each workflow."""


def no_run(run_id: str) -> NotFound:
    """Return the error for a run that is not there."""
    return NotFound(f'No run has the id "{run_id}".')


def no_delivery(name: str) -> NotFound:
    """Return the error for a delivery that is not in the inbox."""
    return NotFound(f'No delivery "{name}" is in the inbox, which keeps the newest ones only.')


def has_ended(run_id: str, status: str) -> Conflict:
    """Return the error for a cancel that comes too late."""
    return Conflict(f"Run {run_id} has ended ({status}), so there is nothing to cancel. Nothing was changed.")


def moved_on(run_id: str, status: str, launch: int) -> Conflict:
    """Return the error for a relaunch of a run that is not as it was when it was looked at."""
    what = "it was relaunched or changed by somebody else. Nothing was changed."
    return Conflict(f"Run {run_id} is {status} in launch {launch}; {what}")

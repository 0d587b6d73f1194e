"""The store without a server: TinyDB files that several processes may share.

    state.json        runs, plans, seen deliveries, what workers publish: one small document each
    large/RUN.NAME.N  a payload or result too large to be written with every change; never rewritten
    lock              flock: one writer at a time, between processes too

TinyDB's own storage rewrites its file in place, which a kill leaves in halves. `SafeStorage` writes a new
file, syncs it, renames it and syncs the folder; what a call answers is on disk. Large files are written
before state.json names them and removed after it has stopped to. So a kill between leaves at most a file
that nothing names; the first sweep of the next process removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, TypeVar

import msgspec
from tinydb import TinyDB
from tinydb.storages import Storage
from tinydb.table import Document, Table

from director.errors import Conflict, DirectorError, NotFound, SettingsError, StoreUnavailable
from director.models import Plan, Run, TaskError, TaskOptions
from director.states import ENDED, WORD
from director.store import rules
from director.store.base import (
    LEASE_MS,
    OUTAGE_GRACE_MS,
    OUTAGE_MS,
    SWEEP_LIMIT,
    Begun,
    Described,
    Filter,
    Finished,
    NewRun,
    Next,
    Outbox,
    Outcome,
    Ref,
    Relaunch,
    Started,
    Store,
    StoreState,
    Swept,
    WorkflowState,
)

T = TypeVar("T")
INLINE_BYTES = 512
"""Values up to this size stand in state.json, which every change writes whole: with 200 runs of ten results
of 2,000 bytes in it a change takes 7 to 9 ms; with those in files of their own 2 to 4 ms."""
OUTBOX_LIMIT = 1000


class _RunRow(TypedDict):
    """A run's document."""

    state: dict[str, Any]
    """`rules.RunState`."""
    data: dict[str, str | dict[str, str]]
    """Text, or `{"file": name}` in `large/`."""
    busy: bool
    """Something is queued, running or retrying; a hook may be, after the run's end."""
    ended: bool


class SafeStorage(Storage):
    """TinyDB's storage: whole-file, atomic, locked, and parsed only when another process has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "state.json"
        self._tables: dict[str, Any] = {}
        self._stamp: tuple[int, ...] = ()
        self._file: BinaryIO | None = None
        self._dirty = False

    @property
    def dirty(self) -> bool:
        """Whether the transaction that is underway (or the last one) has changed anything."""
        return self._dirty

    def read(self) -> dict[str, Any]:
        """Return the tables of the transaction that is underway."""
        return self._tables

    def write(self, data: dict[str, Any]) -> None:
        """Take the tables over; the transaction's end writes them."""
        self._tables = data
        self._dirty = True

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the lock; write once at the end if anything changed, nothing after an error."""
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._dirty = False
            try:
                self._refresh()
                yield
                if self._dirty:
                    self._commit()
            except BaseException:
                self._stamp = ()  # what is in memory may be half changed: read it again
                raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what is written inside when it ends with an error."""
        before, dirty = dict(self._tables), self._dirty  # TinyDB replaces tables and documents, whole
        try:
            yield
        except BaseException:
            self._tables, self._dirty = before, dirty
            raise

    def close(self) -> None:
        """Let go of the file; the next transaction reads it again."""
        if self._file is not None:
            self._file.close()
        self._file, self._stamp = None, ()

    def unusable(self, reason: object) -> StoreUnavailable:
        """Return the error for contents that this service cannot have written."""
        return StoreUnavailable(
            f"{self._path} is not what this service wrote ({reason}). Move it away to start afresh, "
            "or put a backup in its place."
        )

    def _refresh(self) -> None:
        try:
            stamp = _stamp(self._path.stat())
        except FileNotFoundError:
            self._tables = {}
            self.close()
            return
        if stamp != self._stamp:
            body = self._pin().read()
            try:
                self._tables = msgspec.json.decode(body, type=dict[str, dict[str, dict[str, Any]]])
                msgspec.convert(self._tables.get("runs", {}), dict[str, _RunRow])
            except msgspec.DecodeError as exc:
                raise self.unusable(exc) from exc

    def _commit(self) -> None:
        write_whole(self._path, msgspec.json.encode(self._tables))
        self._pin()

    def _pin(self) -> BinaryIO:
        """Open the file that `_tables` stand for, and keep it open.

        While it is, no other file gets its inode number, so an equal stamp means the same file. Without
        that, two quick writes of another process can end in the same number, size and (coarse) time.
        """
        self.close()
        self._file = self._path.open("rb")
        self._stamp = _stamp(os.fstat(self._file.fileno()))
        return self._file


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def write_whole(path: Path, body: bytes) -> None:
    """Replace a file so that a kill at any instruction leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def unwritable(folder: Path, exc: OSError) -> SettingsError:
    """Return the error for a data folder that cannot be created or written."""
    return SettingsError(
        f"{folder} cannot be written ({exc.strerror}). Set DIRECTOR_DATA_DIR to a folder that can, "
        "or DIRECTOR_REDIS_URL to keep state in Redis."
    )


class _Table(Table):
    """A table whose documents are known by our own ids."""

    document_id_class = str  # type: ignore[assignment]
    default_query_cache_capacity = 0


class TinyCall(Described[T]):
    """One call: a function of the store's open transaction."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], T]) -> None:
        self.make = make


class TinyStore(Store):
    """What remembers runs, in a folder.

    Args:
        folder: created when it is missing.
        max_lost: losses after which a task run fails.
        keep_runs: finished runs that are kept.

    Raises:
        SettingsError: the folder cannot be created or written.
    """

    def __init__(
        self, folder: Path, *, max_lost: int = 3, keep_runs: int = 200, clock: Callable[[], int] | None = None
    ) -> None:
        self.clock = clock
        self.changed = threading.Event()
        """Set at every change that this process makes: there may be something to publish."""
        self._folder = folder
        self._max_lost = max_lost
        self._keep_runs = keep_runs
        self._mutex = threading.RLock()
        self._plans_read: dict[str, Plan] = {}
        self._swept_at: int | None = None
        self._grace_until = 0
        self._tidy = False
        self._unnamed: list[str] = []
        """Files that the transaction underway has stopped to name."""
        try:
            (folder / "large").mkdir(parents=True, exist_ok=True)
            with (folder / "lock").open("ab"):
                pass
            for part in (folder, folder / "large"):
                if not os.access(part, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as exc:
            raise unwritable(folder, exc) from exc
        self._storage = SafeStorage(folder)
        self._db = TinyDB(storage=lambda: self._storage)
        self._db.table_class = _Table

    def execute(self, calls: Sequence[Described[Any]]) -> list[Any]:
        """Make the calls in one transaction and one write."""
        answers: list[Any] = []
        try:
            with self._mutex, self._storage.transaction():
                self._now = self.clock() if self.clock else int(time.time() * 1000)
                self._unnamed = []
                for call in calls:
                    unnamed = list(self._unnamed)
                    try:
                        with self._storage.savepoint():
                            answers.append(call.make())  # type: ignore[attr-defined]
                    except DirectorError as exc:
                        answers.append(exc)
                        self._unnamed = unnamed
                changed, unnamed = self._storage.dirty, self._unnamed
        except OSError as exc:
            raise StoreUnavailable(
                f"{self._folder} cannot be read or written ({exc.strerror or exc}). What was asked may have "
                "been recorded; asking again is safe. Look at the folder's owner and at the free space."
            ) from exc
        except msgspec.ValidationError as exc:
            raise self._storage.unusable(exc) from exc
        for name in unnamed:
            with suppress(OSError):  # it is in nobody's way; the next process tries again
                (self._folder / "large" / name).unlink()
        if changed:
            self.changed.set()
        return answers

    def close(self) -> None:
        """Let go of the file."""
        with self._mutex:
            self._storage.close()

    # Documents

    def _table(self, name: str) -> Table:
        return self._db.table(name)

    def _put(self, table: str, key: str, document: Mapping[str, Any]) -> None:
        rows = self._table(table)
        if rows.contains(doc_id=key):  # type: ignore[arg-type]
            rows.remove(doc_ids=[key])  # type: ignore[list-item]
        rows.insert(Document(dict(document), doc_id=key))  # type: ignore[arg-type]

    def _doc(self, table: str, key: str) -> dict[str, Any] | None:
        found = self._table(table).get(doc_id=key)  # type: ignore[call-overload]
        return dict(found) if found is not None else None

    def _rows(self, table: str) -> dict[str, Any]:
        rows: dict[str, Any] = self._storage.read().get(table, {})
        return rows

    def _run(self, run_id: str) -> rules.RunState | None:
        row = self._rows("runs").get(run_id)
        return msgspec.convert(row["state"], rules.RunState) if row else None

    def _states(self) -> Iterator[rules.RunState]:
        """Return the runs in which something is underway; hooks outlive their run's end."""
        for row in list(self._rows("runs").values()):
            if row["busy"]:
                yield msgspec.convert(row["state"], rules.RunState)

    def _moves(self, run: rules.RunState) -> rules.Moves:
        return rules.Moves(run, self._plan(run.plan), _Data(self, run.id), self._now, self._max_lost)

    def _save(self, moves: rules.Moves) -> None:
        run, data = moves.run, moves.data
        assert isinstance(data, _Data)
        busy = any(task.s in "qry" for task in run.tasks.values())
        ended = WORD[run.s] in ENDED
        before, now = self._rows("runs").get(run.id, {"data": {}})["data"], data.document()
        self._unnamed += set(_files(before)) - set(_files(now))
        self._put(
            "runs",
            run.id,
            {"state": msgspec.to_builtins(run), "data": now, "busy": busy, "ended": ended},
        )
        if run.s == "s" and run.ended == self._now:
            self._put("successes", run.workflow, {"at": self._now})
        if ended and not busy:
            self._prune()

    def _plan(self, digest: str) -> Plan:
        plan = self._plans_read.get(digest)
        if plan is None:
            row = self._rows("plans").get(digest)
            if row is None:
                raise NotFound(f"No plan is called {digest}.")
            plan = self._plans_read[digest] = msgspec.convert(row, Plan)
        return plan

    def _keep_plan(self, plan: Plan) -> None:
        if plan.digest not in self._rows("plans"):
            self._put("plans", plan.digest, msgspec.to_builtins(plan))
        self._plans_read[plan.digest] = plan

    def _prune(self) -> None:
        """Remove what ended longest ago over the limit, with what only it uses."""
        done = sorted(
            (row["state"]["ended"], run_id)
            for run_id, row in self._rows("runs").items()
            if row["ended"] and not row["busy"]
        )
        too_old = [run_id for _, run_id in done[: max(0, len(done) - self._keep_runs)]]
        if not too_old:
            return
        for run_id in too_old:
            self._unnamed += _files(self._rows("runs")[run_id]["data"])
        self._table("runs").remove(doc_ids=too_old)  # type: ignore[arg-type]
        used = {row["state"]["plan"] for row in self._rows("runs").values()}
        unused = [digest for digest in self._rows("plans") if digest not in used]
        self._table("plans").remove(doc_ids=unused)  # type: ignore[arg-type]

    def _remove_unnamed(self) -> None:
        """Remove large files that a killed process left without a name in state.json."""
        named = {file for row in self._rows("runs").values() for file in _files(row["data"])}
        self._unnamed += [file.name for file in (self._folder / "large").iterdir() if file.name not in named]

    # The life of a run

    def start(self, new: NewRun) -> TinyCall[Started]:
        """See Store."""
        return TinyCall(lambda: self._start(new))

    def _start(self, new: NewRun) -> Started:
        if new.run_id in self._rows("runs"):
            return Started(run_id=new.run_id)
        if new.dedupe:
            key = f"{new.dedupe.key}:{new.plan.workflow}"
            seen = self._doc("seen", key)
            if seen and seen["until"] > self._now:
                same = seen["fingerprint"] == new.dedupe.fingerprint
                return Started(run_id=seen["run"], duplicate=same, conflict=not same)
            mark = {"run": new.run_id, "fingerprint": new.dedupe.fingerprint}
            self._forget_seen()
            self._put("seen", key, {**mark, "until": self._now + new.dedupe.ttl_s * 1000})
        self._keep_plan(new.plan)
        run = rules.RunState(
            id=new.run_id,
            workflow=new.plan.workflow,
            plan=new.plan.digest,
            total=new.plan.total,
            nodes=len(new.plan.nodes),
            created=self._now,
        )
        moves = self._moves(run)
        texts = {"p": new.payload, "t": msgspec.json.encode(new.trigger), "c": new.comment.encode()}
        for name, body in {**texts, "z": new.relaunch_of.encode()}.items():
            if body:
                moves.data[name] = body
        if new.kept:
            before = _Data(self, new.relaunch_of)
            moves.data.update({name: before[name] for n in new.kept if (name := f"r{n}") in before})
        moves.start(new.roots, new.kept, new.waits)
        self._save(moves)
        return Started(run_id=new.run_id)

    def _forget_seen(self) -> None:
        old = [key for key, row in self._rows("seen").items() if row["until"] <= self._now]
        if old:
            self._table("seen").remove(doc_ids=old)  # type: ignore[arg-type]

    def begin(self, ref: Ref, token: str, holder: str) -> TinyCall[Begun | None]:
        """See Store."""

        def make() -> Begun | None:
            run = self._run(ref.run_id)
            if run is None:
                return None
            moves = self._moves(run)
            again = self._live(ref, token) is not None
            begun = moves.begin(ref.number, token, holder)
            if begun is not None and not again:
                self._save(moves)
            return begun

        return TinyCall(make)

    def finish(
        self, ref: Ref, token: str, outcome: Outcome, holder: str, wish: Next | None = None
    ) -> TinyCall[Finished]:
        """See Store. Nothing is taken from the queue: messages wait in the broker's memory."""

        def make() -> Finished:
            run = self._run(ref.run_id)
            task = run.tasks.get(str(ref.number)) if run else None
            if run is None or task is None or task.token != token:
                return Finished(accepted=False, run_status=WORD[run.s] if run else "")
            moves = self._moves(run)
            if task.s == "r":
                kept = moves.finish(ref.number, token, outcome, holder, wish)
                self._save(moves)
            else:
                kept = moves.kept_by(ref.number, wish.token) if wish else None
            begun = None if kept is None else moves.begun(kept)
            return Finished(accepted=True, begun=begun, run_status=WORD[run.s])

        return TinyCall(make)

    def _live(self, ref: Ref, token: str) -> rules.Moves | None:
        run = self._run(ref.run_id)
        task = run.tasks.get(str(ref.number)) if run else None
        if run is None or task is None or task.s != "r" or task.token != token:
            return None
        return self._moves(run)

    def renew(self, held: Sequence[tuple[Ref, str]]) -> TinyCall[tuple[Ref, ...]]:
        """See Store."""

        def make() -> tuple[Ref, ...]:
            gone = []
            for ref, token in held:
                moves = self._live(ref, token)
                if moves is None:
                    gone.append(ref)
                else:
                    moves.renew(ref.number)
                    self._save(moves)
            return tuple(gone)

        return TinyCall(make)

    def hand_back(self, ref: Ref, token: str, counted: bool) -> TinyCall[bool]:
        """See Store."""

        def make() -> bool:
            moves = self._live(ref, token)
            if moves is None:
                return False
            moves.take_back(ref.number, counted=counted)
            self._save(moves)
            return True

        return TinyCall(make)

    def held(self, holder: str) -> TinyCall[tuple[tuple[Ref, str], ...]]:
        """See Store."""

        def mine(task: rules.Task) -> bool:
            return task.holder.startswith(holder) if holder.endswith(".") else task.holder == holder

        def make() -> tuple[tuple[Ref, str], ...]:
            return tuple(
                (Ref(run_id=run.id, number=int(number)), task.token)
                for run in self._states()
                for number, task in run.tasks.items()
                if task.s == "r" and mine(task)
            )

        return TinyCall(make)

    def unknown(self, ref: Ref, error: TaskError) -> TinyCall[str]:
        """See Store."""

        def make() -> str:
            run = self._run(ref.run_id)
            task = run.tasks.get(str(ref.number)) if run else None
            if run is None or task is None:
                return ""
            if task.s == "q":
                moves = self._moves(run)
                moves.unknown(ref.number, error)
                self._save(moves)
            return WORD[task.s]

        return TinyCall(make)

    def cancel(self, run_id: str, token: str) -> TinyCall[str]:
        """See Store."""

        def make() -> str:
            run = self._run(run_id)
            if run is None:
                raise _no_run(run_id)
            if run.s == "c" and run.token == token:
                return ""
            if WORD[run.s] in ENDED:
                return WORD[run.s]
            moves = self._moves(run)
            moves.cancel(token)
            self._save(moves)
            return ""

        return TinyCall(make)

    def relaunch(self, order: Relaunch) -> TinyCall[int]:
        """See Store."""

        def make() -> int:
            run = self._run(order.run_id)
            if run is None:
                raise _no_run(order.run_id)
            if run.token == order.token:
                return run.launch
            if run.s not in "fc" or run.launch != order.launch:
                raise Conflict(
                    f"Run {order.run_id} is {WORD[run.s]} in launch {run.launch}; it was relaunched "
                    "or changed by somebody else. Nothing was changed."
                )
            self._keep_plan(order.plan)
            run.plan = order.plan.digest
            moves = self._moves(run)
            moves.relaunch(order.resets, order.token)
            self._save(moves)
            return run.launch

        return TinyCall(make)

    # The loop

    def sweep(self) -> TinyCall[Swept]:
        """See Store. No message is ever sent again: the broker lives and dies with the process."""
        return TinyCall(self._sweep)

    def _sweep(self) -> Swept:
        if not self._tidy:
            self._remove_unnamed()
            self._tidy = True
        patient = self._now < self._grace()
        busy = {run.id: self._moves(run) for run in self._states()}
        lost: list[Ref] = []
        timed_out: list[Ref] = []
        for ref in () if patient else self._due(busy, "r"):
            (timed_out if busy[ref.run_id].lease_over(ref.number) else lost).append(ref)
        released = self._due(busy, "y")
        for ref in released:
            busy[ref.run_id].queue(ref.number)
        for run_id in dict.fromkeys(ref.run_id for ref in (*lost, *timed_out, *released)):
            self._save(busy[run_id])
        idle = not any(row["busy"] for row in self._rows("runs").values())
        return Swept(lost=tuple(lost), timed_out=tuple(timed_out), released=tuple(released), idle=idle)

    def _due(self, busy: Mapping[str, rules.Moves], letter: str) -> Sequence[Ref]:
        """Return what has a lease (r) or a wait (y) that is over, the longest over first, as Redis has it."""
        found = [
            (at, f"{run_id}:{number}", Ref(run_id=run_id, number=int(number)))
            for run_id, moves in busy.items()
            for number, task in moves.run.tasks.items()
            if task.s == letter and (at := (task.lease if letter == "r" else task.ended) or 0) <= self._now
        ]
        return [ref for _, _, ref in sorted(found)[:SWEEP_LIMIT]]

    def _grace(self) -> int:
        """Return until when ended leases are left alone.

        Kept in memory: one process sweeps here, and an idle service should not write each second.
        """
        if self._swept_at is not None and self._now - self._swept_at > OUTAGE_MS:
            self._grace_until = self._now + OUTAGE_GRACE_MS
        self._swept_at = self._now
        return self._grace_until

    def outbox(self) -> TinyCall[tuple[Outbox, ...]]:
        """See Store."""

        def make() -> tuple[Outbox, ...]:
            queued = [
                Outbox(
                    ref=Ref(run_id=run.id, number=int(number)),
                    plan=run.plan,
                    queued_at=task.queued or 0,
                    hook=run.hooks[int(number) - run.nodes] if int(number) >= run.nodes else "",
                )
                for run in self._states()
                for number, task in run.tasks.items()
                if task.s == "q"
            ]
            queued.sort(key=lambda item: (item.queued_at, item.ref))
            return tuple(queued[:OUTBOX_LIMIT])

        return TinyCall(make)

    # Workers

    def publish(self, worker: str, tasks: Mapping[str, TaskOptions]) -> TinyCall[None]:
        """See Store."""

        def make() -> None:
            old = [name for name, row in self._rows("workers").items() if row["at"] < self._now - 2 * LEASE_MS]
            if old:
                self._table("workers").remove(doc_ids=old)  # type: ignore[arg-type]
            self._put("workers", worker, {"at": self._now})
            for name, options in tasks.items():
                row = msgspec.to_builtins(options)
                if self._rows("tasks").get(name) != row:
                    self._put("tasks", name, row)

        return TinyCall(make)

    def task_options(self) -> TinyCall[dict[str, TaskOptions]]:
        """See Store."""
        return TinyCall(
            lambda: {name: msgspec.convert(row, TaskOptions) for name, row in self._rows("tasks").items()}
        )

    def queues(self) -> TinyCall[tuple[str, ...]]:
        """See Store."""

        def make() -> tuple[str, ...]:
            plans = [self._plan(digest) for digest in list(self._rows("plans"))]
            nodes = [n for p in plans for n in (*p.nodes, p.success_hook, p.failure_hook) if n and n.task]
            return tuple(sorted({node.queue for node in nodes}))

        return TinyCall(make)

    # Reading

    def plan(self, digest: str) -> TinyCall[Plan]:
        """See Store."""
        return TinyCall(lambda: self._plan(digest))

    def get(self, run_id: str) -> TinyCall[Run]:
        """See Store."""

        def make() -> Run:
            run = self._run(run_id)
            if run is None:
                raise _no_run(run_id)
            return rules.view(run, self._plan(run.plan), _Data(self, run_id))

        return TinyCall(make)

    def status_of(self, run_id: str) -> TinyCall[str]:
        """See Store."""

        def make() -> str:
            row = self._rows("runs").get(run_id)
            if row is None:
                raise _no_run(run_id)
            return WORD[row["state"].get("s", "q")]

        return TinyCall(make)

    def list(self, which: Filter) -> TinyCall[tuple[tuple[Run, ...], str | None]]:
        """See Store."""
        return TinyCall(lambda: self._list(which))

    def _list(self, which: Filter) -> tuple[tuple[Run, ...], str | None]:
        newest = sorted(
            ((row["state"]["created"], run_id) for run_id, row in self._rows("runs").items()), reverse=True
        )
        if which.after is not None:
            after = self._rows("runs").get(which.after)
            at = after["state"]["created"] if after else _made_at(which.after)
            newest = [entry for entry in newest if entry < (at, which.after)]
        found: list[Run] = []
        for created, run_id in newest:
            row = self._rows("runs")[run_id]["state"]
            if (
                (which.workflow and row["workflow"] != which.workflow)
                or (which.status and WORD[row.get("s", "q")] != which.status)
                or (which.since is not None and created < which.since)
                or (which.until is not None and created >= which.until)
            ):
                continue
            if len(found) == which.limit:
                return tuple(found), found[-1].id
            run = self._run(run_id)
            assert run is not None
            shown = rules.header(run, _Data(self, run_id))
            if run.first_failed is not None:
                key = self._plan(run.plan).nodes[run.first_failed].key
                shown = msgspec.structs.replace(shown, error_task=key)
            found.append(shown)
        return tuple(found), None

    def state(self, workflows: Sequence[str]) -> TinyCall[StoreState]:
        """See Store."""
        return TinyCall(lambda: self._state(workflows))

    def _state(self, workflows: Sequence[str]) -> StoreState:
        queued = [task.queued or 0 for run in self._states() for task in run.tasks.values() if task.s == "q"]
        newest: dict[str, tuple[int, str, str]] = {}
        active: dict[str, int] = {}
        for run_id, row in self._rows("runs").items():
            state = row["state"]
            entry = (state["created"], run_id, state.get("s", "q"))
            newest[state["workflow"]] = max(entry, newest.get(state["workflow"], entry))
            active[state["workflow"]] = active.get(state["workflow"], 0) + (not row["ended"])
        lines = {}
        for name in workflows:
            _, last, letter = newest.get(name, (0, None, ""))
            success = self._rows("successes").get(name)
            lines[name] = WorkflowState(
                status=WORD.get(letter),
                last_run=last,
                last_success_at=success["at"] if success else None,
                active=active.get(name, 0),
            )
        alive = sum(row["at"] >= self._now - LEASE_MS for row in self._rows("workers").values())
        oldest = (self._now - min(queued)) / 1000 if queued else None
        return StoreState(queued=len(queued), oldest_queued_s=oldest, workers=alive, workflows=lines)

    def ping(self) -> TinyCall[None]:
        """See Store."""
        return TinyCall(lambda: None)


class _Data(MutableMapping[str, bytes]):
    """A run's payload, results and errors: small ones in its document, large ones in files."""

    def __init__(self, store: TinyStore, run_id: str) -> None:
        row = store._rows("runs").get(run_id)
        self._folder = store._folder / "large"
        self._run_id = run_id
        self._values: dict[str, Any] = dict(row["data"]) if row else {}

    def document(self) -> dict[str, Any]:
        return self._values

    def __getitem__(self, name: str) -> bytes:
        value = self._values[name]
        return value.encode() if isinstance(value, str) else (self._folder / value["file"]).read_bytes()

    def __setitem__(self, name: str, body: bytes) -> None:
        if len(body) <= INLINE_BYTES:
            self._values[name] = body.decode()
            return
        # A name of its own for each write: a kill before the commit leaves what state.json names untouched.
        file = f"{self._run_id}.{name}.{secrets.token_hex(4)}"
        write_whole(self._folder / file, body)
        self._values[name] = {"file": file}

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _files(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the large files that a run's data is in."""
    return [value["file"] for value in data.values() if isinstance(value, dict)]


def _no_run(run_id: str) -> NotFound:
    return NotFound(f'No run has the id "{run_id}".')


def _made_at(run_id: str) -> int:
    """Return the ms that a UUIDv7 was made at (RFC 9562, section 5.7)."""
    try:
        return int(run_id[:8] + run_id[9:13], 16)
    except ValueError:
        return 0

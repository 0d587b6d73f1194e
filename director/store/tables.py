"""TinyDB's documents of the store without a server: calls as transactions, runs read and written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
from tinydb import TinyDB
from tinydb.table import Document, Table

from director.errors import NotFound, StoreUnavailable
from director.models import Plan
from director.states import ENDED, WORD
from director.store import base, rules, shapes
from director.store.files import Data, SafeStorage, files_of
from director.store.inbox import Inbox
from director.store.shapes import Described, Ref

T = TypeVar("T")


class _Table(Table):
    """A table whose documents are known by our own ids."""

    document_id_class = str  # type: ignore[assignment]
    default_query_cache_capacity = 0


class TinyCall(Described[T]):
    """One call: what runs inside the store's transaction."""

    __slots__ = ("make", "storage")

    def __init__(self, make: Callable[[], T], storage: SafeStorage | None = None) -> None:
        self.make, self.storage = make, storage


def described(verb: Callable[..., T]) -> Callable[..., TinyCall[T]]:
    """Make a verb describe its call instead of making it."""

    @wraps(verb)
    def describe(*args: Any, **more: Any) -> TinyCall[T]:
        return TinyCall(lambda: verb(*args, **more))

    return describe


class Documents(base.Store):
    """A folder's documents, in transactions: what the verbs of `TinyStore` stand on.

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
        self._folder, self._max_lost, self._keep_runs = folder, max_lost, keep_runs
        self._mutex = threading.RLock()
        self._plans: dict[str, Plan] = {}
        self._swept_at: int | None = None
        self._grace_until = self._missed_until = 0
        self._unnamed: list[str] = []
        """Files that the transaction underway has stopped to name."""
        self._storage = SafeStorage(folder)
        self._inbox = Inbox(folder)
        self._db = TinyDB(storage=lambda: self._storage)
        self._db.table_class = _Table

    def do(self, call: Described[T]) -> T:
        assert isinstance(call, TinyCall)
        storage = call.storage or self._storage
        try:
            with self._mutex, storage.transaction():
                self._now = self.clock() if self.clock else int(time.time() * 1000)
                self._unnamed = []
                answer = cast(TinyCall[T], call).make()
        except OSError as exc:
            raise StoreUnavailable(
                f"{self._folder} cannot be read or written ({exc.strerror or exc}). What was asked may have "
                "been recorded all the same. Look at the folder's owner and at the free space."
            ) from exc
        except msgspec.ValidationError as exc:
            raise storage.unusable(exc) from exc
        for name in self._unnamed:
            with suppress(OSError):  # it is in nobody's way; the next process tries again
                (self._storage.large / name).unlink()
        if storage is self._storage and storage.dirty:
            self.changed.set()
        return answer

    def close(self) -> None:
        with self._mutex:
            self._storage.close()
            self._inbox.storage.close()

    # Documents

    def _rows(self, table: str) -> dict[str, Any]:
        rows: dict[str, Any] = self._storage.read().get(table, {})
        return rows

    def _put(self, table: str, key: str, document: Mapping[str, Any]) -> None:
        self._remove(table, [key])
        self._db.table(table).insert(Document(dict(document), doc_id=key))  # type: ignore[arg-type]

    def _remove(self, table: str, keys: Sequence[str]) -> None:
        there = [key for key in keys if key in self._rows(table)]
        if there:
            self._db.table(table).remove(doc_ids=there)  # type: ignore[arg-type]

    def _run(self, run_id: str) -> rules.RunState | None:
        row = self._rows("runs").get(run_id)
        return msgspec.convert(row["state"], rules.RunState) if row else None

    def _data(self, run_id: str) -> Data:
        row = self._rows("runs").get(run_id)
        return Data(self._storage.large, run_id, row["data"] if row else {})

    def _moves(self, run_id: str) -> rules.Moves | None:
        run = self._run(run_id)
        return self._moves_of(run) if run else None

    def _moves_of(self, run: rules.RunState) -> rules.Moves:
        return rules.Moves(run, self._read_plan(run.plan), self._data(run.id), self._now, self._max_lost)

    def _at(self, ref: Ref) -> tuple[rules.Moves, rules.Task] | None:
        """Return a task run that has been touched, and its run."""
        moves = self._moves(ref.run_id)
        task = moves.run.tasks.get(str(ref.number)) if moves else None
        return (moves, task) if moves and task else None

    def _busy(self) -> Iterator[rules.Moves]:
        """Return the runs in which something is underway; hooks outlive their run's end."""
        for run_id in [run_id for run_id, row in self._rows("runs").items() if row["busy"]]:
            moves = self._moves(run_id)
            assert moves is not None
            yield moves

    def _save(self, moves: rules.Moves) -> None:
        run, data = moves.run, cast(Data, moves.data)
        before = self._rows("runs").get(run.id, {"data": {}})["data"]
        self._unnamed += set(files_of(before)) - set(files_of(data.document))
        busy, ended = any(task.s in "qry" for task in run.tasks.values()), WORD[run.s] in ENDED
        state = msgspec.to_builtins(run)
        self._put("runs", run.id, {"state": state, "data": data.document, "busy": busy, "ended": ended})
        if run.s == "s" and run.ended == self._now:
            self._put("successes", run.workflow, {"at": self._now})
        if ended and not busy:
            self._prune()

    def _prune(self) -> None:
        """Remove what ended longest ago over the limit of the folder."""
        rows = self._rows("runs")
        done = sorted(
            (row["state"]["ended"], id_) for id_, row in rows.items() if row["ended"] and not row["busy"]
        )
        self._forget([run_id for _, run_id in done[: max(0, len(done) - self._keep_runs)]])

    def _forget(self, run_ids: Sequence[str]) -> None:
        """Remove runs, with what only they use."""
        if run_ids:
            self._unnamed += [file for id_ in run_ids for file in files_of(self._rows("runs")[id_]["data"])]
            self._remove("runs", run_ids)
            used = {row["state"]["plan"] for row in self._rows("runs").values()}
            self._remove("plans", [digest for digest in self._rows("plans") if digest not in used])

    def _read_plan(self, digest: str) -> Plan:
        plan = self._plans.get(digest)
        if plan is None:
            row = self._rows("plans").get(digest)
            if row is None:
                raise NotFound(f"No plan is called {digest}.")
            plan = self._plans[digest] = msgspec.convert(row, Plan)
        return plan

    def _keep_plan(self, plan: Plan) -> None:
        if plan.digest not in self._rows("plans"):
            self._put("plans", plan.digest, msgspec.to_builtins(plan))
        self._plans[plan.digest] = plan

    def _first(self, dedupe: shapes.Dedupe, workflow: str) -> Any:
        """Return what a dedupe key has done, None when it is not known or has expired."""
        row = self._rows("seen").get(f"{dedupe.key}:{workflow}")
        return row if row is not None and row["until"] > self._now else None

    def _mark(self, dedupe: shapes.Dedupe, workflow: str, run_id: str) -> None:
        over = [name for name, row in self._rows("seen").items() if row["until"] <= self._now]
        self._remove("seen", over)
        mark = {"run": run_id, "fingerprint": dedupe.fingerprint, "until": self._now + dedupe.ttl_s * 1000}
        self._put("seen", f"{dedupe.key}:{workflow}", mark)

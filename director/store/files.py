"""The files of the store without a server.

    state.json        runs, plans, seen deliveries, what workers publish: one small document each
    deliveries.json   the inbox (`store.inbox`)
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
from collections import UserDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import msgspec
from tinydb.storages import Storage

from director.errors import SettingsError, StoreUnavailable

INLINE_BYTES = 512
"""Values up to this size stand in state.json, which every change writes whole: with 200 runs of ten results
of 2,000 bytes in it a change takes 7 to 9 ms; with those in files of their own 2 to 4 ms."""


class RunRow(TypedDict):
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

    def __init__(self, folder: Path, name: str = "state.json") -> None:
        self.folder, self.large, self._path = folder, folder / "large", folder / name
        self.dirty = False
        """Whether the transaction that is underway, or the last one, has changed anything."""
        self._tables: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        self._stamp: tuple[int, ...] = ()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # payloads and bodies are nobody else's
            self.large.mkdir(exist_ok=True)
            (folder / "lock").touch()
            if not all(os.access(part, os.W_OK | os.X_OK) for part in (folder, self.large)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as exc:
            raise unwritable(folder, exc) from exc

    def read(self) -> dict[str, Any]:
        """Return the tables of the transaction that is underway."""
        return self._tables

    def write(self, data: dict[str, Any]) -> None:
        """Take the tables over; the transaction's end writes them."""
        self._tables, self.dirty = data, True

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the lock; write once at the end if anything changed, nothing after an error."""
        with (self.folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.dirty = False
            try:
                self._refresh()
                yield
                if self.dirty:
                    write_whole(self._path, msgspec.json.encode(self._tables))
                    self._pin()
            except BaseException:
                if self.dirty:
                    self.close()  # what is in memory may be half changed: read it again
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
                msgspec.convert(self._tables.get("runs", {}), dict[str, RunRow])
            except msgspec.DecodeError as exc:
                self.close()
                raise self.unusable(exc) from exc

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


class Data(UserDict[str, Any]):
    """A run's payload, results and errors: small ones in its document, large ones in files."""

    def __init__(self, folder: Path, run_id: str, document: Mapping[str, Any]) -> None:
        self._folder, self._run_id = folder, run_id
        self.data = self.document = dict(document)
        """Texts, and `{"file": name}` for what is in `large/`."""

    def __getitem__(self, name: str) -> bytes:
        value = self.document[name]
        return value.encode() if isinstance(value, str) else (self._folder / value["file"]).read_bytes()

    def __setitem__(self, name: str, body: bytes) -> None:
        if len(body) <= INLINE_BYTES:
            self.document[name] = body.decode()
            return
        # A name of its own for each write: a kill before the commit leaves what state.json names untouched.
        file = f"{self._run_id}.{name}.{secrets.token_hex(4)}"
        write_whole(self._folder / file, body)
        self.document[name] = {"file": file}


def files_of(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the large files that a run's data is in."""
    return [value["file"] for value in data.values() if isinstance(value, dict)]

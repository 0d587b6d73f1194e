"""Embedded mode without a service: a command is the service for as long as its run takes."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from director import log, registry
from director.errors import DirectorError
from director.loop import Loop
from director.settings import Settings
from director.store.base import Store
from director.supervisor import ServiceLock

if TYPE_CHECKING:
    from director.embedded import EmbeddedWorker

READY_S = 30.0


class Host:
    """Executes runs in this process, unless another process does.

    A running service picks up within a second what this command starts. Where another command executes
    its own run, that one leaves when it is done: `tend` takes over then.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.tasks: Mapping[str, str] | None = None
        """Registered task → its file; None when nothing is executed here or `tasks/` cannot be imported."""
        self._settings = settings
        self._store = store
        self._lock = ServiceLock(settings.data_dir)
        self._beside_command = False
        self._worker: EmbeddedWorker | None = None
        self._loop: Loop | None = None

    @property
    def sees_through(self) -> bool:
        """True when the run ends only if this command stays."""
        return self._worker is not None or self._beside_command

    def __enter__(self) -> Host:
        if not self._settings.embedded:
            return self
        if self._lock.try_acquire("command"):
            try:
                self._start()
            except BaseException:
                self._stop(0.0)
                raise
            return self
        role, pid = self._lock.holder()
        self._beside_command = role == "command"
        if role == "web":
            where = f"{self._settings.data_dir} (process {pid})"
            print(f"The service on {where} runs without a worker: the run waits.", file=sys.stderr)
        return self

    def __exit__(self, _: type[BaseException] | None, exc: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(exc, KeyboardInterrupt) and self._worker is not None:
            text = "Stopped. What has not ended goes on with `director up`, or beside the next run."
            print(text, file=sys.stderr)
        # A service that stops gives what it executes for others its grace too.
        self._stop(self._settings.grace_s if exc is None else 0.0)

    def tend(self) -> None:
        """Take over when the command that executed has gone; raise when nothing executes here any more."""
        if self._worker is None:
            if self._beside_command and self._lock.try_acquire("command"):
                self._start()
        elif failed := self._worker.failed or (self._loop.failed if self._loop else None):
            raise DirectorError(f"Nothing executes the run any more: {type(failed).__name__}: {failed}")

    def _start(self) -> None:
        from director.embedded import EmbeddedWorker

        # The command itself says how its run ends.
        log.configure("ERROR")
        sys.stdout = Results(sys.stdout)
        # As Ctrl-C: what runs is handed back.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.redirect_stdout(sys.stderr):
            self.tasks = registry.discover(self._settings.home).files
        self._loop = Loop(self._settings, self._store)
        self._worker = EmbeddedWorker(self._settings, self._store)
        self._loop.start()
        self._worker.start()
        # Only a worker that is ready has published what the tasks' decorators say, which plans need.
        deadline = time.monotonic() + READY_S
        while not self._worker.ready.wait(0.05):
            self.tend()
            if time.monotonic() > deadline:
                raise DirectorError(f"The worker was not ready within {READY_S:g} s.")

    def _stop(self, grace_s: float) -> None:
        if self._loop is not None:
            self._loop.stop()
        if self._worker is not None:
            self._worker.stop(grace_s)
        self._lock.release()


class Results:
    """Standard output of the main thread, which prints results; what tasks print goes to standard error."""

    def __init__(self, terminal: Any) -> None:
        self.terminal = terminal

    def write(self, text: str) -> Any:
        """Write to the stream of the thread that calls."""
        main = threading.current_thread() is threading.main_thread()
        return (self.terminal if main else sys.stderr).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

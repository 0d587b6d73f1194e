"""One asyncio connection to Redis, for the web process: no thread, no client twin, the same descriptions.

What the handlers ask within one turn of the loop leaves as one write; replies come back in order. hiredis
speaks both directions. Every call may be made twice, so what was underway when a connection broke is sent
again, once. (redis.asyncio costs 180 µs a call, a thread that makes the calls 90; this costs 25.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis
import msgspec

from director.errors import StoreUnavailable
from director.store.calls import RedisCall
from director.store.redis import PRELUDES, RedisStore

MAX_WAITING = 10_000


class _Waiting(msgspec.Struct, eq=False):
    """A command whose reply is awaited; without a call it only makes way for the next."""

    command: bytes
    call: RedisCall[Any] | None = None
    future: asyncio.Future[Any] | None = None
    since: float = 0.0
    again: bool = False
    """It was sent on a connection that broke."""
    preludes: int = 0


class Link(asyncio.Protocol):
    """Makes a store's calls on the loop that runs when it is first used; see `base.Link`."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._waiting: deque[_Waiting] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # known at the first call

    def submit(self, call: RedisCall[Any]) -> asyncio.Future[Any]:
        """Make a call; the future gets its answer, or StoreUnavailable after the store's timeout."""
        if self._closed or len(self._waiting) >= MAX_WAITING:
            raise StoreUnavailable("The service is stopping, or too many calls wait for Redis; ask again later.")
        loop = self._loop = self._loop or asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._ask(_Waiting(hiredis.pack_command(self._store.command(call)), call, future, loop.time()))
        if self._watch is None:
            self._watch = loop.call_later(self._store.timeout_s, self._look)
        return future

    def close(self) -> None:
        """Give the connection back; what waits is answered with StoreUnavailable."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail("the service is stopping")

    def _ask(self, item: _Waiting) -> None:
        self._waiting.append(item)
        if self._transport is None:
            self._connecting = self._connecting or self._loop.create_task(self._connect())
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(item.command)

    def _flush(self) -> None:
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    async def _connect(self) -> None:
        parts = urlsplit(self._store.url)
        try:
            async with asyncio.timeout(self._store.timeout_s):
                if parts.scheme == "unix":
                    await self._loop.create_unix_connection(lambda: self, unquote(parts.path))
                else:
                    host, port = parts.hostname or "localhost", parts.port or 6379
                    await self._loop.create_connection(lambda: self, host, port)
        except (OSError, TimeoutError) as exc:
            self._fail(str(exc) or type(exc).__name__)
        finally:
            self._connecting = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are, then send whatever waits."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._reader = hiredis.Reader()
        parts = urlsplit(self._store.url)
        hello: list[tuple[Any, ...]] = []
        if parts.password:
            name = (unquote(parts.username),) if parts.username else ()
            hello.append(("AUTH", *name, unquote(parts.password)))
        database = dict(parse_qsl(parts.query)).get("db") or (parts.path.strip("/") if parts.hostname else "")
        if database not in ("", "0"):
            hello.append(("SELECT", database))
        self._waiting.extendleft(_Waiting(hiredis.pack_command(words)) for words in reversed(hello))
        self._out = [item.command for item in self._waiting]
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ask again on a new connection what had no reply, once each."""
        self._transport = None
        self._out.clear()
        calls = [item for item in self._waiting if item.call is not None]
        if self._closed or any(item.again for item in calls):
            return self._fail(str(exc or "the connection was closed"))
        self._waiting.clear()
        for item in calls:
            item.again, item.preludes = True, 0
            self._ask(item)

    def data_received(self, data: bytes) -> None:
        """Hand each reply to who waits for it."""
        self._reader.feed(data)
        try:
            while self._waiting and (reply := self._reader.gets()) is not False:
                self._answer(self._waiting.popleft(), reply)
        except hiredis.ProtocolError as exc:
            self._fail(str(exc))  # whatever listens there, it is not Redis

    def _answer(self, item: _Waiting, reply: Any) -> None:
        if item.call is None or item.future is None:
            if isinstance(reply, hiredis.ReplyError):
                self._fail(str(reply))  # AUTH or SELECT was refused
        elif item.preludes < PRELUDES and (more := self._store.prelude(item.call, reply)):
            item.preludes += 1
            for words in more:
                self._ask(_Waiting(hiredis.pack_command(words)))
            self._ask(item)
        elif not item.future.done():
            try:
                item.future.set_result(item.call.answer(reply))
            except Exception as exc:  # noqa: BLE001 - a bug in one description must not end the connection
                item.future.set_exception(exc)

    def _look(self) -> None:
        """Give the connection up when its oldest call has waited too long."""
        self._watch = None
        oldest = min((item.since for item in self._waiting if item.call is not None), default=None)
        if oldest is None:
            return
        if self._loop.time() >= oldest + self._store.timeout_s:
            self._fail(f"nothing within {self._store.timeout_s:g} s")
        else:
            self._watch = self._loop.call_at(oldest + self._store.timeout_s, self._look)

    def _fail(self, reason: str) -> None:
        """Drop the connection and answer all who wait."""
        waiting, self._waiting = self._waiting, deque()
        if self._transport is not None:
            self._transport.abort()
        self._transport = None
        for item in waiting:
            if item.future is not None and not item.future.done():
                item.future.set_result(self._store.unavailable(reason))

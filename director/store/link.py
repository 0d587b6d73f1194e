"""One asyncio connection to Redis, for the web process: no thread, no client twin, the same descriptions.

What the handlers ask within one turn of the loop leaves as one write; replies come back in order. It makes
`RedisCall`s only, with hiredis for both directions; every call may be made twice, so what was underway when
a connection broke is sent again, once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis

from director.errors import StoreUnavailable
from director.settings import hide_password
from director.store.redis import NEEDS_PLAN, RedisCall, RedisStore, read_reply, source

MAX_WAITING = 10_000


def _pack(words: tuple[Any, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(words)
    return packed


class _Waiting:
    """A command whose reply is awaited; without a call it only makes way for the next."""

    __slots__ = ("at", "call", "command", "future", "tries")

    def __init__(
        self, command: bytes, call: RedisCall[Any] | None, future: asyncio.Future[Any] | None, at: float
    ) -> None:
        self.command = command
        self.call = call
        self.future = future
        self.at = at
        self.tries = 0


class Link(asyncio.Protocol):
    """Makes calls on the loop that runs when it is first used.

    Args:
        store: whose calls these are; its URL is neither `rediss` nor a cluster's.
        timeout_s: after which a call fails, whether Redis is slow or away.
    """

    def __init__(self, store: RedisStore, timeout_s: float) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._where = hide_password(store.url)
        self._waiting: deque[_Waiting] = deque()
        self._out: list[bytes] = []
        self._flushing = False
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False

    def submit(self, call: RedisCall[Any]) -> asyncio.Future[Any]:
        """Make a call; the future gets its answer or a DirectorError as its result."""
        if self._closed or len(self._waiting) >= MAX_WAITING:
            raise StoreUnavailable(f"{len(self._waiting)} calls wait for {self._where} already; ask again later.")
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._ask(_pack(self._store.command(call)), call, future)
        return future

    def close(self) -> None:
        """Give the connection back; what waits is answered with StoreUnavailable."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._fail("the service is stopping")

    def _ask(self, command: bytes, call: RedisCall[Any] | None, future: asyncio.Future[Any] | None) -> None:
        self._waiting.append(_Waiting(command, call, future, self._loop.time()))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s / 3, self._look)
        if self._transport is None:
            if self._connecting is None:
                self._connecting = self._loop.create_task(self._connect())
            return
        self._out.append(command)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    async def _connect(self) -> None:
        """Connect, say who we are, and send whatever waits."""
        parts = urlsplit(self._store.url)
        try:
            async with asyncio.timeout(self._timeout_s):
                if parts.scheme == "unix":
                    await self._loop.create_unix_connection(lambda: self, unquote(parts.path))
                else:
                    await self._loop.create_connection(
                        lambda: self, parts.hostname or "localhost", parts.port or 6379
                    )
        except (OSError, TimeoutError) as exc:
            self._connecting = None
            self._fail(str(exc) or type(exc).__name__)
            return
        self._connecting = None
        hello: list[tuple[Any, ...]] = []
        if parts.password:
            name = (unquote(parts.username),) if parts.username else ()
            hello.append(("AUTH", *name, unquote(parts.password)))
        database = dict(parse_qsl(parts.query)).get("db") or (parts.path.strip("/") if parts.hostname else "")
        if database not in ("", "0"):
            hello.append(("SELECT", database))
        waiting = list(self._waiting)
        self._waiting.clear()
        for words in hello:
            self._ask(_pack(words), None, None)
        self._waiting.extend(waiting)
        self._out = [item.command for item in self._waiting]
        self._flush()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._reader = hiredis.Reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ask again on a new connection what had no reply, once each."""
        self._transport = None
        self._out.clear()
        again = [item for item in self._waiting if item.call is not None and item.tries == 0]
        if self._closed or len(again) < sum(item.call is not None for item in self._waiting):
            self._fail(str(exc or "the connection was closed"))
            return
        self._waiting = deque(again)
        for item in again:
            item.tries = 1
        if again and self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        """Hand each reply to who waits for it."""
        reader = self._reader
        reader.feed(data)
        reply = reader.gets()
        while reply is not False:
            if not self._waiting:
                return
            self._answer(self._waiting.popleft(), reply)
            reply = reader.gets()

    def _answer(self, item: _Waiting, reply: Any) -> None:
        call, future = item.call, item.future
        if call is None or future is None:
            if isinstance(reply, hiredis.ReplyError) and self._transport is not None:
                self._transport.abort()  # AUTH or SELECT was refused
                self._fail(str(reply))
            return
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            self._ask(_pack(("SCRIPT", "LOAD", source(call.script)[0])), None, None)
            self._ask(item.command, call, future)
        elif call.plan is not None and isinstance(reply, list) and reply[0] == NEEDS_PLAN:
            for words in self._store.plan_commands(call.plan):
                self._ask(_pack(words), None, None)
            self._ask(item.command, call, future)
        elif not future.done():
            try:
                future.set_result(read_reply(call, reply))
            except Exception as exc:  # noqa: BLE001 - a bug in one description must not end the connection
                future.set_exception(exc)

    def _look(self) -> None:
        """Give a connection up when its oldest call has waited too long."""
        self._watch = None
        if not self._waiting:
            return
        if self._loop.time() - self._waiting[0].at > self._timeout_s:
            if self._transport is not None:
                self._transport.abort()
            self._transport = None
            self._fail(f"nothing within {self._timeout_s:g} s")
        else:
            self._watch = self._loop.call_later(self._timeout_s / 3, self._look)

    def _fail(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        error = StoreUnavailable(
            f"Redis at {self._where} did not answer ({reason}). "
            "What was asked may have been recorded; asking again is safe."
        )
        for item in waiting:
            if item.future is not None and not item.future.done():
                item.future.set_result(error)

"""uvicorn as `director up` runs it: bounds for what it leaves unbounded, signals and exit status of our own."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from director import log
from director.web import problems
from director.web.problems import Refusal

MAX_HEAD_BYTES = 65_536
MAX_MESSAGE_BYTES = 16 << 20
"""Over the largest body, however it is cut into chunks."""
MESSAGE_S = 40.0
"""For a whole request; the handlers give up on a body after 30 s, and answer."""
MAX_CONNECTIONS = 4000
"""A burst of a thousand copies of one delivery is answered."""
THREADS_START_S = 60.0
"""Within it, threads that the process needs have started, or have died before anybody saw them."""
_HOP_BY_HOP = (b"connection", b"upgrade", b"http2-settings")

logger = log.get("director.web")


class Protocol(HttpToolsProtocol):
    """uvicorn's, which has no bound for a request's head or time, and loses the body of `Connection: Upgrade`.

    Java's client and `curl --http2` ask for such an upgrade with every request; HTTP allows to ignore it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_head, self._in_message, self._size = True, True, 0
        self._running: Any = None
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(MESSAGE_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn tells the newest request only; the one that runs, of several in a row, would write to nobody.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        self._arm(False)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived; whole requests in one packet cost nothing more than uvicorn's own."""
        self._unset_keepalive_if_required()
        self._size += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as exc:
                    data = self._without_upgrade() + data[exc.args[0] :]
        except httptools.HttpParserError:
            if not self._in_head or self._size <= MAX_HEAD_BYTES:
                return self._refuse(400, "This is not a request in HTTP/1.1.")
        if self._in_head and self._size > MAX_HEAD_BYTES:
            return self._refuse(431, f"The request's head is over {MAX_HEAD_BYTES} bytes.")
        if self._size > MAX_MESSAGE_BYTES:
            return self.transport.abort()
        if self._in_message is not (self._deadline is not None):
            self._arm(self._in_message)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True

    def on_headers_complete(self) -> None:
        # What arrives at once may be a long head, or a short one and its body.
        if self._size > MAX_HEAD_BYTES and sum(len(k) + len(v) + 4 for k, v in self.headers) > MAX_HEAD_BYTES:
            raise httptools.HttpParserError
        self._in_head = False
        # An upgrade that nobody makes: the same head comes again, without it.
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message, self._size = False, 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _without_upgrade(self) -> bytes:
        """Return the head that has been read, without its wish to upgrade, and begin to read anew.

        The parser takes such a head for the end of HTTP, whatever body follows. It is right for a CONNECT, for
        which this raises HttpParserError.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError
        version = self.parser.get_http_version().encode()
        headers = (b"%s: %s" % header for header in self.headers if header[0] not in _HOP_BY_HOP)
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([b"%s %s HTTP/%s" % (method, self.url, version), *headers, b"", b""])

    def _arm(self, wanted: bool) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(MESSAGE_S, self.transport.close) if wanted else None

    def _refuse(self, status: int, detail: str) -> None:
        """Answer what is no request and close, after the answers that are still underway."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                return self.flow.pause_reading()
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                return self.transport.close()
        status, body, headers = problems.answer("", Refusal(status, detail, headers={"Connection": "close"}))
        headers.append((b"content-length", b"%d" % len(body)))
        lines = [b"HTTP/1.1 %d Refused" % status, *(b"%s: %s" % header for header in headers), b"", body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()


class Server:
    """uvicorn, with signals and an exit status of our own.

    When a thread of a `needed` name, which the application starts, ends, so does the process, with status 1.
    """

    def __init__(self, app: Any, needed: frozenset[str] = frozenset()) -> None:
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="on",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=5,
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(config)
        # uvicorn's own handlers would raise the signal anew once it has stopped, and leave the worker behind.
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        self._tick, self._server.on_tick = self._server.on_tick, self._on_tick  # type: ignore[method-assign]
        self._needed = needed
        self._seen: set[str] = set()
        self._started = time.monotonic()
        self._status = 0
        self.on_stop: Callable[[], None] = lambda: None
        """Called at the first signal."""
        self.on_impatience: Callable[[], None] = lambda: None
        """Called at a second signal, before the process ends at once."""

    def run(self, listener: socket.socket) -> int:
        """Serve until a signal or `stop`; return the exit status. Signals are the main thread's."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_CONNECTIONS + 256
        if soft < wanted:  # often 1,024
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))
        self._server.run(sockets=[listener])
        return self._status

    @property
    def is_started(self) -> bool:
        return self._server.started

    def stop(self, status: int) -> None:
        """End the process with a status, from any thread."""
        self._status = status
        self._server.should_exit = True

    def _on_signal(self, number: int, _: object) -> None:
        if self._server.should_exit:
            self.on_impatience()
            log.exit_at_once(128 + number)
        self._server.should_exit = True
        self.on_stop()

    async def _on_tick(self, counter: int) -> bool:
        alive = {thread.name for thread in threading.enumerate()} if self._needed else set()
        self._seen |= alive
        late = time.monotonic() - self._started > THREADS_START_S
        for name in self._needed - alive:
            if name in self._seen or late:
                logger.error("service.thread_died", thread=name)
                self.stop(1)
        return await self._tick(counter)

"""Logs: one event a line, JSON to a pipe, readable lines on a terminal."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from typing import Any

import msgspec

_wanted: tuple[str, bool] | None = None
_gathered: _Gathered | None = None


def configure(level: str = "INFO", *, gathered: bool = False) -> None:
    """Say how this process logs; lines go to stderr.

    Celery's and uvicorn's own records pass through the standard library to the same place. Costs nothing yet:
    the first line imports structlog.

    Args:
        level: the least that is written.
        gathered: a thread writes the lines, 20 times a second. For a process that answers requests: each
            line's own write makes its threads wait for each other (40 µs of a webhook's 200).
    """
    global _wanted  # noqa: PLW0603 - one log a process
    _wanted = level, gathered
    logging.basicConfig(handlers=[_Late()], level=logging.WARNING, force=True)


def _set_up(level: str, gathered: bool) -> None:
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    global _gathered  # noqa: PLW0603 - one log a process
    stream: Any = sys.stderr
    if gathered:
        stream = _gathered = _Gathered(sys.stderr)
    renderer: Any = structlog.processors.JSONRenderer(_json)
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer(colors=not os.environ.get("NO_COLOR"))
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper(), logging.INFO)),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _json(line: Any, **_: Any) -> str:
    return msgspec.json.encode(line, enc_hook=repr).decode()


def flush() -> None:
    """Write what is gathered, before the process ends by `os._exit`."""
    if _gathered is not None:
        _gathered.drain()


def _be_ready() -> None:
    global _wanted  # noqa: PLW0603 - one log a process
    if _wanted is not None:
        level, gathered = _wanted
        _wanted = None
        _set_up(level, gathered)


class _Late(logging.Handler):
    """Stands in for the handler until the first record of the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        _be_ready()
        for handler in logging.getLogger().handlers:
            if handler is not self:
                handler.handle(record)


class _Gathered:
    """A stream that a thread writes, many lines at once; the rest at the process's end."""

    def __init__(self, stream: Any, pause_s: float = 0.05) -> None:
        self._stream = stream
        self._pause_s = pause_s
        self._lines: deque[str] = deque()
        self._some = threading.Event()
        self._pid = 0
        atexit.register(self.drain)
        os.register_at_fork(after_in_child=self._lines.clear)

    def write(self, text: str) -> None:
        self._lines.append(text)

    def flush(self) -> None:
        if self._pid != os.getpid():  # the first line, or a forked child's
            self._pid = os.getpid()
            threading.Thread(target=self._run, name="log", daemon=True).start()
        if not self._some.is_set():
            self._some.set()

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(self._pause_s)
            self._some.clear()
            self.drain()

    def drain(self) -> None:
        lines = []
        with contextlib.suppress(IndexError):
            while True:
                lines.append(self._lines.popleft())
        if lines:
            self._stream.write("".join(lines))
            self._stream.flush()


class _Logger:
    """Imports structlog at the first line that is written: 0.1 s that a start need not wait for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Any:
        _be_ready()
        import structlog

        method = getattr(structlog.get_logger(component=self._name), level)
        setattr(self, level, method)
        return method


def get(name: str) -> Any:
    """Return a logger whose events are constants, `noun.past_participle`, with facts in keys."""
    return _Logger(name)

"""Logs: one event a line on standard error; JSON to a pipe, readable lines on a terminal."""

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
_lock = threading.RLock()
_lines: deque[str] = deque(maxlen=10_000)
"""What is gathered and not yet written; the oldest go when nobody reads."""
QUIET = ("celery", "kombu", "amqp", "billiard", "uvicorn", "asyncio", "tzlocal", "watchfiles", "urllib3")
"""Others whose information is noise here."""


def configure(level: str = "INFO", *, gathered: bool = False) -> None:
    """Say how this process logs; what tasks and libraries log with `logging` goes the same way.

    Costs nothing yet: the first line imports structlog, 0.1 s that a start need not wait for. `gathered`: a
    thread writes the lines, 20 times a second; each line's own write takes 40 µs of a webhook's 200.
    """
    global _wanted  # noqa: PLW0603 - one log a process
    _wanted = level, gathered
    logging.basicConfig(handlers=[_Late()], level=level, force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, getattr(logging, level)))


def get(name: str) -> Any:
    """Return a logger whose events are constants, `noun.past_participle`, with facts in keys."""
    return _Logger(name)


def exit_at_once(status: int) -> None:
    """End the process without waiting for its threads, but with all that is printed and logged."""
    flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _be_ready() -> None:
    global _wanted  # noqa: PLW0603 - one log a process
    with _lock:
        if _wanted is not None:
            _set_up(*_wanted)
            _wanted = None


def _set_up(level: str, gathered: bool) -> None:
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = structlog.processors.JSONRenderer(_json)
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer(colors=not os.environ.get("NO_COLOR"))
    out = _Gathered() if gathered else _Out()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level)),
        logger_factory=lambda *_: out,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    foreign = [*shared, structlog.stdlib.add_logger_name]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=foreign))
    logging.basicConfig(handlers=[handler], level=level, force=True)


def _json(line: Any, **_: Any) -> str:
    return msgspec.json.encode(line, enc_hook=repr).decode()


def flush() -> None:
    """Write what is gathered."""
    _Out().write("".join([_lines.popleft() for _ in range(len(_lines))]))


class _Out:
    """Standard error without a lock or a buffer: a child forked meanwhile would inherit them as they are."""

    def write(self, text: str) -> None:
        """Write at once; where standard error is closed or full, the line is lost and nothing else."""
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(2, data) :]

    def flush(self) -> None:
        """Do nothing; for the standard library."""

    def msg(self, line: str) -> None:
        """Write one line; structlog asks for it by the level's name."""
        self.write(line + "\n")

    debug = info = warning = error = critical = exception = msg


class _Late(logging.Handler):
    """Stands in for the handler until the first record of the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        _be_ready()
        for handler in logging.getLogger().handlers:
            if handler is not self:
                handler.handle(record)


class _Gathered(_Out):
    """What a thread writes, many lines at once; the rest at the process's end."""

    def __init__(self) -> None:
        self._some = threading.Event()
        atexit.register(flush)
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> None:
        """Keep it for the thread."""
        _lines.append(text)
        if not self._some.is_set():  # which costs less than to set it
            self._some.set()

    def _run(self) -> None:
        while self._some.wait():
            time.sleep(0.05)
            self._some.clear()
            flush()


class _Logger:
    """A logger that is bound at its first line."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Any:
        _be_ready()
        import structlog

        method = getattr(structlog.get_logger(component=self._name), level)
        setattr(self, level, method)
        return method

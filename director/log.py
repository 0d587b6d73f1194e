"""Logs: one event a line, JSON to a pipe, readable lines on a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any


def configure(level: str = "INFO") -> None:
    """Set structlog up once for this process; lines go to stderr.

    Celery's and uvicorn's own records pass through the standard library to the same place.
    """
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    tty = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if tty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper(), logging.INFO)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class _Logger:
    """Imports structlog at the first line that is written: 0.1 s that a start need not wait for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Any:
        import structlog

        method = getattr(structlog.get_logger(component=self._name), level)
        setattr(self, level, method)
        return method


def get(name: str) -> Any:
    """Return a logger whose events are constants, `noun.past_participle`, with facts in keys."""
    return _Logger(name)

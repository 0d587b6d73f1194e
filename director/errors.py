"""The one tree of errors.

    DirectorError
    ├── SettingsError          the environment or .env says something unusable        exit 2
    ├── DefinitionError        a workflow cannot be used; carries its problems        409
    ├── NotFound               no such workflow, run, task or source                  404
    ├── Conflict               the run's state does not allow it; nothing was changed 409
    ├── InvalidPayload         schema or shape refuses the payload; carries paths     422
    ├── TooLarge               payload, result or arguments over the limit            413
    └── StoreUnavailable       the store did not answer                              503

Messages say what happened, where and what to do. Arguments are positional, so that
Celery can rebuild an error from its `args`.
"""

from __future__ import annotations

from collections.abc import Sequence


class DirectorError(Exception):
    """The root: its text is always fit to be shown to the caller."""


class SettingsError(DirectorError):
    """The environment or `.env` holds something unusable."""


class _Listing(DirectorError):
    """A sentence, and lines that say where."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(lines))

    def __str__(self) -> str:
        return str(self.args[0])


class DefinitionError(_Listing):
    """A workflow has problems and cannot be started."""

    @property
    def problems(self) -> tuple[str, ...]:
        """One line each, `file:line:column: text`."""
        return tuple(self.args[1])


class NotFound(DirectorError):
    """Nothing has that name or id."""


class Conflict(DirectorError):
    """The present state does not allow it; nothing was changed."""


class InvalidPayload(_Listing):
    """The payload is refused."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Where, one line each, as `$.order.id: 'x' is not of type 'integer'`."""
        return tuple(self.args[1])


class TooLarge(DirectorError):
    """A payload, a result or a task's arguments are over the limit."""


class StoreUnavailable(DirectorError):
    """The store did not answer; what was asked may have been recorded all the same."""

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


class DefinitionError(DirectorError):
    """A workflow has problems and cannot be started.

    Args:
        message: one sentence.
        problems: one line each, `file:line:column: text`.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(problems))
        self.message = message
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return self.message


class NotFound(DirectorError):
    """Nothing has that name or id."""


class Conflict(DirectorError):
    """The present state does not allow it; nothing was changed."""


class InvalidPayload(DirectorError):
    """The payload is refused.

    Args:
        message: one sentence.
        paths: where, one line each, as `$.order.id: 'x' is not of type 'integer'`.
    """

    def __init__(self, message: str, paths: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(paths))
        self.message = message
        self.paths = tuple(paths)

    def __str__(self) -> str:
        return self.message


class TooLarge(DirectorError):
    """A payload, a result or a task's arguments are over the limit."""


class StoreUnavailable(DirectorError):
    """The store did not answer; what was asked may have been recorded all the same."""

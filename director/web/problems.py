"""Errors as RFC 9457 problem details."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from director import errors, log

MEDIA_TYPE = "application/problem+json"
STATUS: dict[type[errors.DirectorError], int] = {
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.DefinitionError: 409,
    errors.TooLarge: 413,
    errors.InvalidPayload: 422,
    errors.StoreUnavailable: 503,
}

logger = log.get("director.web")


class Refusal(Exception):
    """An answer that ends a request: a status, a sentence, and what else the problem and its headers hold."""

    def __init__(
        self, status: int, detail: str | None = None, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.members = body(status, detail, **more)
        self.headers = headers or {}


def body(status: int, detail: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a problem's members."""
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    return {**problem, **({"detail": detail} if detail else {}), **more}


def of_error(exc: errors.DirectorError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return status, members and headers for one of our errors."""
    status = next((code for kind, code in STATUS.items() if isinstance(exc, kind)), 500)
    more: dict[str, Any] = {}
    if isinstance(exc, errors.DefinitionError):
        more["problems"] = list(exc.problems)
    if isinstance(exc, errors.InvalidPayload):
        more["paths"] = list(exc.paths)
    headers = {"Retry-After": "1"} if status == 503 else {}
    return status, body(status, str(exc), **more), headers


def answer(status: int, members: dict[str, Any], headers: dict[str, str] | None = None) -> Response[bytes]:
    """Return a problem as a response."""
    return Response(msgspec.json.encode(members), status_code=status, media_type=MEDIA_TYPE, headers=headers or {})


def on_refusal(_: Request[Any, Any, Any], exc: Refusal) -> Response[bytes]:
    """Answer a refusal."""
    return answer(exc.status, exc.members, exc.headers)


def on_director_error(_: Request[Any, Any, Any], exc: errors.DirectorError) -> Response[bytes]:
    """Answer one of our errors."""
    return answer(*of_error(exc))


def on_http_error(_: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
    """Answer what Litestar refuses: unknown routes and methods, malformed requests, large bodies."""
    headers = dict(exc.headers or {})
    if exc.status_code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    phrase = HTTPStatus(exc.status_code).phrase
    detail = exc.detail if exc.detail != phrase else None
    if isinstance(exc.extra, list) and exc.extra:
        # Litestar's own text names the whole address; what was wrong with which parameter is in `extra`.
        detail = "; ".join(f"{part.get('key', '')}: {part.get('message', '')}" for part in exc.extra) + "."
    return answer(exc.status_code, body(exc.status_code, detail), headers)


def on_any_error(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Log a bug; the caller learns only that there is one."""
    logger.error("request.failed", path=request.scope["path"], reason=repr(exc), exc_info=exc)
    return answer(500, body(500, "This is a bug of the service; its log has the details."))


HANDLERS: dict[Any, Any] = {
    Refusal: on_refusal,
    errors.DirectorError: on_director_error,
    HTTPException: on_http_error,
    Exception: on_any_error,
}

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
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more


def refusal(exc: Exception) -> Refusal:
    """Return how an error is answered; of a bug the caller learns only that there is one."""
    if isinstance(exc, Refusal):
        return exc
    if isinstance(exc, errors.DirectorError):
        status = next((code for kind, code in STATUS.items() if isinstance(exc, kind)), 500)
        more = {name: list(getattr(exc, name)) for name in ("problems", "paths") if hasattr(exc, name)}
        return Refusal(status, str(exc), headers={"Retry-After": "1"} if status == 503 else None, **more)
    if isinstance(exc, HTTPException):  # unknown routes and methods, malformed requests, large bodies
        headers = dict(exc.headers or {})
        if exc.status_code == 401:
            headers["WWW-Authenticate"] = "Bearer"
        detail = exc.detail if exc.detail != HTTPStatus(exc.status_code).phrase else None
        if isinstance(exc.extra, list) and exc.extra:
            # Litestar's own text names the whole address; what was wrong with which parameter is in `extra`.
            detail = "; ".join(f"{part.get('key', '')}: {part.get('message', '')}" for part in exc.extra) + "."
        return Refusal(exc.status_code, detail, headers=headers)
    return Refusal(500, "This is a bug of the service; its log has the details.")


def answer(path: str, exc: Exception) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Return status, body and headers of the answer to any error; bugs are logged."""
    found = refusal(exc)
    if found.status == 500:
        logger.error("request.failed", path=path, reason=repr(exc), exc_info=exc)
    members = {"type": "about:blank", "title": HTTPStatus(found.status).phrase, "status": found.status}
    members |= {"detail": found.detail} if found.detail else {}
    headers = {"content-type": MEDIA_TYPE, **found.headers}
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return found.status, msgspec.json.encode(members | found.more, enc_hook=repr), pairs


def respond(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Answer an error of a handler, or of Litestar's own."""
    status, body, pairs = answer(request.scope["path"], exc)
    headers = {name.decode(): value.decode("latin-1") for name, value in pairs}
    return Response(body, status_code=status, media_type=headers.pop("content-type"), headers=headers)


HANDLERS: dict[Any, Any] = {HTTPException: respond, Exception: respond}

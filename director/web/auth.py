"""Lets a request pass, or not; the rule itself is `access.authorize`."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers.base import BaseRouteHandler

from director.access import Denial, authorize
from director.web.service import Service

Connection = ASGIConnection[Any, Any, Any, Any]


def require_access(connection: Connection, handler: BaseRouteHandler) -> None:
    """Guard every route: those with the option `open` need nothing, `/status` nothing once it is public."""
    settings = connection.app.state.service.settings
    if handler.opt.get("open") or (handler.opt.get("glance") and settings.public_status):
        return
    if refused := denial(connection):
        raise HTTPException(status_code=refused.status, detail=refused.detail)


def denial(connection: Connection) -> Denial | None:
    """Return why a request may not pass, whatever its route is."""
    service: Service = connection.app.state.service
    # Repeats are joined as HTTP says, so that a second one can only add to what is refused.
    given = connection.headers
    headers = {name.lower(): ", ".join(given.getall(name)) for name in given}
    peer = connection.client.host if connection.client else None
    if connection.scope["http_version"] == "1.0":
        headers.setdefault("via", "1.0")  # what speaks it today is a proxy that says nothing of itself
    return authorize(service.settings.token, peer=peer, headers=headers)


def require_document(connection: Connection, _: BaseRouteHandler) -> None:
    """Let nothing pass below /schema but the document."""
    if not connection.scope["path"].endswith("/openapi.json"):
        raise NotFoundException

"""Lets a request pass, or not; the rule itself is `access.authorize`."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers.base import BaseRouteHandler

from director.access import authorize
from director.web.service import Service

Connection = ASGIConnection[Any, Any, Any, Any]


def require_access(connection: Connection, handler: BaseRouteHandler) -> None:
    """Guard every route: those with the option `open` need nothing, `/status` nothing once it is public."""
    service: Service = connection.app.state.service
    if handler.opt.get("open") or (handler.opt.get("glance") and service.settings.public_status):
        return
    headers: dict[str, str] = {}
    for raw_name, raw_value in connection.scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        # Repeats are joined as HTTP says, so that a second one can only add to what is refused.
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    peer = connection.client.host if connection.client else None
    denial = authorize(service.settings.token, peer=peer, headers=headers)
    if denial is not None:
        raise HTTPException(status_code=denial.status, detail=denial.detail)


def require_document(connection: Connection, _: BaseRouteHandler) -> None:
    """Let nothing pass below /schema but the document."""
    if not connection.scope["path"].endswith("/openapi.json"):
        raise NotFoundException

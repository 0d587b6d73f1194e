"""Lets a request pass, or not; the rule itself is `access.authorize`."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers.base import BaseRouteHandler

from director.access import authorize
from director.web.service import Service

Connection = ASGIConnection[Any, Any, Any, Any]


def require_access(connection: Connection, _: BaseRouteHandler) -> None:
    """Guard every route but webhooks and health checks."""
    service: Service = connection.app.state.service
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in connection.scope["headers"]
    }
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    denial = authorize(
        service.settings.token,
        authorization=headers.get("authorization"),
        peer=connection.client.host if connection.client else None,
        host=headers.get("host"),
        headers=headers,
        content_type=headers.get("content-type"),
        has_body=has_body,
    )
    if denial is not None:
        raise HTTPException(status_code=denial.status, detail=denial.detail)


def require_access_to_status(connection: Connection, handler: BaseRouteHandler) -> None:
    """Guard `/status`, which DIRECTOR_PUBLIC_STATUS opens."""
    service: Service = connection.app.state.service
    if not service.settings.public_status:
        require_access(connection, handler)

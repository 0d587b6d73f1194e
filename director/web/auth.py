"""Lets a request pass, or not; the rules themselves are in `access`.

Each handler says in its options what it needs: `scope="read"`, or `open=True` for nothing at all. `bound`
says who holds a token that is bound to workflows to them: "path", this guard, by the workflow in the
path; "handler", the handler, which narrows down what it shows or does. Without it, the route concerns
all workflows, and such a token does not reach it.
"""

from __future__ import annotations

from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers.base import BaseRouteHandler

from director import access
from director.access import Denial, Grant
from director.errors import StoreUnavailable
from director.models import Presented
from director.web.problems import Refusal
from director.web.service import Service

Connection = ASGIConnection[Any, Any, Any, Any]


async def require_access(connection: Connection, handler: BaseRouteHandler) -> None:
    """Guard every route; what the caller may do is kept for `grant_of`."""
    connection.state.grant = None
    if handler.opt.get("open"):
        return
    found = await _ask(connection)
    if isinstance(found, Grant):
        found = _denial(found, connection, handler) or found
    if isinstance(found, Grant):
        connection.state.grant = found
    elif not (handler.opt.get("glance") and connection.app.state.service.settings.public_status):
        raise HTTPException(status_code=found.status, detail=found.detail)


def grant_of(request: Request[Any, Any, Any]) -> Grant | None:
    """Return what the caller may do; None where a route is open to anybody and this is nobody known."""
    grant: Grant | None = request.state.grant
    return grant


def hold(grant: Grant, workflow: str) -> None:
    """Raise a Refusal when a grant does not reach a workflow."""
    if denial := access.beyond_workflows(grant, workflow):
        raise Refusal(denial.status, denial.detail)


async def _ask(connection: Connection) -> Grant | Denial:
    service: Service = connection.app.state.service
    # Repeats are joined as HTTP says, so that a second one can only add to what is refused.
    given = connection.headers
    headers = {name.lower(): ", ".join(given.getall(name)) for name in given}
    peer = connection.client.host if connection.client else None
    if connection.scope["http_version"] == "1.0":
        headers.setdefault("via", "1.0")  # what speaks it today is a proxy that says nothing of itself
    token = service.settings.token
    question = access.question(token, headers)
    try:
        known = Presented() if question is None else await service.do(service.store.authenticate(question))
    except StoreUnavailable:
        # Anybody may ask: not where it is.
        raise StoreUnavailable("The store does not answer, so no token can be looked up.") from None
    return access.authorize(token, peer=peer, headers=headers, known=known)


def _denial(grant: Grant, connection: Connection, handler: BaseRouteHandler) -> Denial | None:
    small = access.beyond_scope(grant, handler.opt.get("scope", "admin"))
    if small or handler.opt.get("bound") == "handler":
        return small
    in_path = connection.path_params.get("workflow", connection.path_params.get("name"))
    return access.beyond_workflows(grant, in_path if handler.opt.get("bound") == "path" else None)


def require_document(connection: Connection, _: BaseRouteHandler) -> None:
    """Let nothing pass below /schema but the document."""
    if not connection.scope["path"].endswith("/openapi.json"):
        raise NotFoundException

"""The inbox over HTTP."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from director.deliveries import VERDICTS, shown
from director.errors import StoreUnavailable
from director.models import FullDelivery
from director.store.shapes import DeliveryFilter
from director.web import shapes
from director.web.problems import Refusal
from director.web.service import Service

Limit = Annotated[int, QueryParameter(ge=1, le=200)]
Text = FromQuery[str | None]
AnyRequest = Request[Any, Any, Any]


async def _written(request: AnyRequest) -> None:
    """Let what this process has gathered be read."""
    with contextlib.suppress(StoreUnavailable):
        await request.app.state.webhooks.inbox.flush()


@get("/deliveries", summary="The inbox, newest first", operation_id="ListDeliveries", scope="read")
async def list_deliveries(
    request: AnyRequest,
    service: NamedDependency[Service],
    source: Text = None,
    verdict: Text = None,
    cursor: Text = None,
    limit: Limit = 50,
) -> shapes.DeliveryList:
    """Return what came in and what became of it, with the reason; `next` is the cursor of the next page."""
    if verdict is not None and verdict not in VERDICTS:
        raise Refusal(400, f'There is no verdict "{verdict}"; there are {", ".join(VERDICTS)}.')
    await _written(request)
    found, following = await service.do(service.store.deliveries(DeliveryFilter(source, verdict, cursor, limit)))
    return shapes.DeliveryList(deliveries=list(found), next=following)


@get("/deliveries/{delivery:str}", summary="One delivery, with its body", operation_id="GetDelivery", scope="read")
async def get_delivery(
    request: AnyRequest, service: NamedDependency[Service], delivery: FromPath[str]
) -> FullDelivery:
    """Return a delivery by the inbox's id or the sender's; the body only of a verified one, up to 64 KiB."""
    await _written(request)
    return shown(*await service.do(service.store.delivery(delivery)))


@post(
    "/deliveries/{delivery:str}/replay",
    summary="Do again what it wants",
    status_code=202,
    operation_id="Replay",
    scope="run",
)
async def replay(
    request: AnyRequest, service: NamedDependency[Service], delivery: FromPath[str]
) -> Response[shapes.HookAnswer]:
    """Start fresh runs as if the delivery were new, by the workflows of now; 409 when it cannot be played."""
    await _written(request)
    entry, body = await service.do(service.store.delivery(delivery))
    status, answer = await request.app.state.webhooks.replay(entry, body)
    return Response(answer, status_code=status)


HANDLERS = [list_deliveries, get_delivery, replay]

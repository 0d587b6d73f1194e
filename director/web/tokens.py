"""Access tokens: who may call. The token itself is shown once, to whoever creates it."""

from __future__ import annotations

import msgspec
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from director import log, tokens
from director.web import shapes
from director.web.api import AnyRequest, read_object
from director.web.service import Service

logger = log.get("director.web")


@get("/tokens", summary="Access tokens, oldest first", operation_id="ListTokens", scope="admin")
async def list_tokens(service: NamedDependency[Service]) -> shapes.TokenList:
    """Return all tokens with their last use, expired ones too; DIRECTOR_TOKEN is none of them."""
    return shapes.TokenList(tokens=await service.do(service.store.tokens()))


@post("/tokens", summary="Create an access token", status_code=201, operation_id="CreateToken", scope="admin")
async def create_token(request: AnyRequest, service: NamedDependency[Service]) -> Response[shapes.CreatedToken]:
    """Create a token; this answer is the only place where it is ever shown."""
    order, _ = await read_object(request)
    new, token = tokens.make(order, service.definitions.project)
    made = await service.do(service.store.add_token(new))
    logger.info("token.created", token_id=made.id, scope=made.scope, workflows=made.workflows)
    shape = shapes.CreatedToken(**msgspec.structs.asdict(made), token=token)
    return Response(shape, status_code=201, headers={"Cache-Control": "no-store"})


@delete("/tokens/{token_id:str}", summary="Revoke an access token", operation_id="RevokeToken", scope="admin")
async def revoke_token(service: NamedDependency[Service], token_id: FromPath[str]) -> None:
    """Revoke a token: the next request with it is refused."""
    await service.do(service.store.revoke(token_id))
    logger.info("token.revoked", token_id=token_id)


HANDLERS = [list_tokens, create_token, revoke_token]

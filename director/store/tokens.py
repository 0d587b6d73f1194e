"""Access tokens as both stores keep them: facts that never change, and times in ms."""

from __future__ import annotations

import msgspec

from director.errors import Conflict, NotFound
from director.models import AccessToken, Scope, Struct, time_text
from director.store.shapes import NewToken


class Facts(Struct, frozen=True):
    """What the maker of a token said of it."""

    name: str
    scope: Scope
    workflows: tuple[str, ...]


_FACTS = msgspec.json.Decoder(Facts)


def facts(new: NewToken) -> bytes:
    """Return what is kept of a new token as it is, JSON."""
    return msgspec.json.encode(Facts(name=new.name, scope=new.scope, workflows=new.workflows))


def token(id_: str, created: int, expires: int | None, used: int | None, facts: bytes | str) -> AccessToken:
    """Return a token as it is shown."""
    return AccessToken(
        id=id_,
        **msgspec.structs.asdict(_FACTS.decode(facts)),
        created_at=time_text(created) or "",
        expires_at=time_text(expires),
        last_used_at=time_text(used),
    )


def taken(id_: str) -> Conflict:
    """Return the error for a new token whose id another one has."""
    return Conflict(f'Another token has the id "{id_}". Nothing was created; ask again.')


def missing(id_: str) -> NotFound:
    """Return the error for a token that is not there."""
    return NotFound(f'No token has the id "{id_}"; it may have been revoked already.')

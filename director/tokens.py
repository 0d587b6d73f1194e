"""New access tokens, from what somebody asks for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from director.access import SCOPES, digest
from director.errors import InvalidPayload
from director.models import Project, duration_s
from director.settings import MAX_DAYS
from director.store.shapes import NewToken
from director.yamltree import did_you_mean, quote

FIELDS = ("scope", "workflows", "expires_in", "name")
MAX_NAME = 100


def make(order: Mapping[str, Any], project: Project) -> tuple[NewToken, str]:
    """Return what the store keeps, and the token, which nobody can find out later.

    Args:
        order: `scope`, and if wanted `workflows` (left out: all), `expires_in` (such as 90d), `name`; JSON values.
        project: whose workflows there are, broken ones too.

    Raises:
        InvalidPayload: with every problem.
    """
    if wrong := slips(order, project):
        raise InvalidPayload(
            'The body must be {"scope": "read", "run" or "admin"}, and if wanted "workflows": a list of names, '
            '"expires_in": a time such as "90d", "name": a text.',
            [f"$.{place}: {text}" for place, text in wrong.items()],
        )
    token = f"director_{secrets.token_urlsafe(32)}"
    seconds = duration_s(order.get("expires_in") or "")
    new = NewToken(
        id=secrets.token_hex(4),
        digest=digest(token),
        scope=order["scope"],
        workflows=tuple(dict.fromkeys(order.get("workflows") or ())),
        name=order.get("name") or "",
        expires_in_ms=None if seconds is None else seconds * 1000,
    )
    return new, token


def slips(order: Mapping[str, Any], project: Project) -> dict[str, str]:
    """Return what is wrong in an order, by its place in it."""
    found = dict.fromkeys(sorted(set(order) - set(FIELDS)), "unknown")
    scope, names, lasts, name = (order.get(field) for field in FIELDS)
    if scope not in SCOPES:
        found["scope"] = f"must be {', '.join(SCOPES[:-1])} or {SCOPES[-1]}"
    if names is not None and not (isinstance(names, list) and names):
        # An empty one is what a program makes that has found none, and surely does not mean all.
        found["workflows"] = "must be a list of names; leave it out for all"
    known = {*project.workflows, *project.broken}
    for place, workflow in enumerate(names if isinstance(names, list) else ()):
        if not isinstance(workflow, str):
            found[f"workflows[{place}]"] = "must be a name"
        elif workflow not in known:
            hint = did_you_mean(workflow, known) if place < 50 else ""
            found[f"workflows[{place}]"] = f"no workflow is named {quote(workflow)}" + (
                f"; {hint}" if hint else ""
            )
    if lasts is not None:
        seconds = duration_s(lasts) if isinstance(lasts, str) else None
        if not seconds or seconds > MAX_DAYS * 86_400:
            found["expires_in"] = f"must be a time such as 90d, 12h or 30m, at most {MAX_DAYS}d"
    if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME and name.isprintable()):
        found["name"] = f"must be a text of at most {MAX_NAME} printable characters"
    return found

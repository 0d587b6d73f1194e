"""Who may call the API, and what. Pure."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from typing import get_args

from director.models import Presented, Scope, Struct

SCOPES: tuple[Scope, ...] = get_args(Scope)
_FORWARDING = re.compile(r"forwarded|envoy|(client|real|connecting).?ip$|original-url$|^via$|^cdn-loop$")
"""In the name of a header that a proxy adds."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z.-]+)(:[0-9]{1,5})?")
WAY_IN = "Set DIRECTOR_TOKEN or run `director tokens create`, and send a token as `Authorization: Bearer …`."


class Grant(Struct, frozen=True):
    """What a caller may do."""

    scope: Scope
    workflows: tuple[str, ...] = ()
    """The only ones; empty: all."""

    def may(self, scope: Scope) -> bool:
        """Return whether this scope includes another: `run` may read, `admin` may all."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def covers(self, workflow: str) -> bool:
        """Return whether this reaches a workflow."""
        return not self.workflows or workflow in self.workflows


class Denial(Struct, frozen=True):
    """Why a request is refused: an HTTP status, and a sentence that says what to do."""

    status: int
    detail: str


ADMIN = Grant(scope="admin")


def bearer(headers: Mapping[str, str]) -> str:
    """Return the token that a request carries, or nothing."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if kind.lower() == "bearer" else ""


def digest(token: str) -> str:
    """Return what the store knows a token by: the SHA-256 of its latin-1 bytes, hex."""
    return hashlib.sha256(token.encode("latin-1")).hexdigest()


def question(token: str | None, headers: Mapping[str, str]) -> str | None:
    """Return the digest to ask the store about, "" for whether it has any token; None: DIRECTOR_TOKEN decides."""
    given = bearer(headers)
    if token and (not given or _same(given, token)):
        return None
    return digest(given) if given else ""


def authorize(
    token: str | None, *, peer: str | None, headers: Mapping[str, str], known: Presented
) -> Grant | Denial:
    """Return what a request may do, or why it may not pass.

    Where there is any token, the request must carry a right one. Where there is none, it must come from
    this machine and from no browser page of another site: loopback peer and `Host`, no proxy, no foreign
    `Origin`, JSON bodies only.

    Args:
        token: DIRECTOR_TOKEN.
        peer: the address that the connection comes from; None for a unix socket.
        headers: by lower-case name, repeats joined by a comma; read as latin-1.
        known: the store's answer to `question`; empty where that is None.
    """
    given = bearer(headers)
    if token and given and _same(given, token):
        return ADMIN
    if known.token is not None:
        if not known.expired:
            return Grant(scope=known.token.scope, workflows=known.token.workflows)
        return Denial(401, f"The token has expired, at {known.token.expires_at}. Ask for a new one.")
    if token or given or known.any_token:
        detail = "The token is not right." if "authorization" in headers else "A token is needed."
        return Denial(401, f"{detail} Send one as `Authorization: Bearer …`.")
    return _from_here(peer, headers) or ADMIN


def _from_here(peer: str | None, headers: Mapping[str, str]) -> Denial | None:
    if not is_loopback(peer):
        return Denial(401, f"Without a token only this machine may call. {WAY_IN}")
    host = headers.get("host", "").lower()
    name = _HOST.fullmatch(host)
    if not name or not is_loopback(name[1].strip("[]")):
        return Denial(401, f"Without a token the Host must be localhost. {WAY_IN}")
    if any(map(_FORWARDING.search, headers)):
        return Denial(401, f"The request came through a proxy. {WAY_IN}")
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host}":
        return Denial(403, f"The request comes from another site's page. {WAY_IN}")
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if has_body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Denial(415, "Send the body as `Content-Type: application/json`.")
    return None


def beyond_scope(grant: Grant, scope: Scope) -> Denial | None:
    """Return why a grant's scope is too small, or None."""
    if grant.may(scope):
        return None
    return Denial(403, f'The token\'s scope is "{grant.scope}"; this needs "{scope}".')


def beyond_workflows(grant: Grant, workflow: str | None = None) -> Denial | None:
    """Return why a grant does not reach a workflow, or (None) what concerns all of them; None when it does."""
    if not grant.workflows or (workflow is not None and grant.covers(workflow)):
        return None
    what = "concerns all workflows" if workflow is None else "belongs to another workflow"
    return Denial(403, f"The token is bound to {', '.join(grant.workflows)}; this {what}.")


def is_loopback(host: str | None) -> bool:
    """Return whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("latin-1"), token.encode("utf-8", "surrogateescape"))

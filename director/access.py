"""Who may call the API. Pure."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

FORWARDING = ("forwarded", "x-real-ip", "via", "cf-connecting-ip", "true-client-ip", "fly-client-ip")
WAY_IN = "Set DIRECTOR_TOKEN and send it as `Authorization: Bearer …`."


class Denial(msgspec.Struct, frozen=True):
    """Why a request is refused: an HTTP status, and a sentence that says what to do."""

    status: int
    detail: str


def authorize(
    token: str | None,
    *,
    authorization: str | None,
    peer: str | None,
    host: str | None,
    headers: Mapping[str, str],
    content_type: str | None,
    has_body: bool,
) -> Denial | None:
    """Return None for a request that may pass.

    With a token, the request must carry it. Without one, it must come from this machine and from no
    browser page of another site: loopback peer and `Host`, no proxy, no foreign `Origin`, JSON bodies only.

    Args:
        token: DIRECTOR_TOKEN.
        authorization: that header.
        peer: the address that the connection comes from; None for a unix socket.
        host: the `Host` header.
        headers: all, by lower-case name.
        content_type: that header.
        has_body: whether a body comes along.
    """
    if token:
        kind, _, given = (authorization or "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), token):
            return None
        detail = "The token is not right." if authorization else "A token is needed."
        return Denial(status=401, detail=f"{detail} Send DIRECTOR_TOKEN as `Authorization: Bearer …`.")
    if not _is_loopback(peer):
        return Denial(status=401, detail=f"Without a token only this machine may call. {WAY_IN}")
    if not _is_loopback(_host_name(host)):
        return Denial(status=401, detail=f"Without a token the Host must be localhost. {WAY_IN}")
    if any(name in FORWARDING or name.startswith("x-forwarded-") for name in headers):
        return Denial(status=401, detail=f"The request came through a proxy. {WAY_IN}")
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return Denial(status=403, detail=f"The request comes from another site's page. {WAY_IN}")
    if has_body and (content_type or "").partition(";")[0].strip().lower() != "application/json":
        return Denial(status=415, detail="Send the body as `Content-Type: application/json`.")
    return None


def may_listen(host: str, *, has_token: bool) -> str | None:
    """Return why the service must not listen on an address, or None."""
    if has_token or _is_loopback(host):
        return None
    return (
        f"DIRECTOR_HOST is {host}, which others can reach, and DIRECTOR_TOKEN is not set. "
        "Set DIRECTOR_TOKEN to a long random text, or DIRECTOR_HOST to 127.0.0.1."
    )


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode())


def _is_loopback(host: str | None) -> bool:
    if not host:
        return False
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _host_name(host: str | None) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname if host else None
    except ValueError:
        return None

"""Who may call the API. Pure."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from director.models import Struct

FORWARDING = (
    *("forwarded", "forwarded-for", "via", "x-forwarded", "x-real-ip", "x-client-ip", "x-cluster-client-ip"),
    *("cf-connecting-ip", "true-client-ip", "fly-client-ip"),
)
WAY_IN = "Set DIRECTOR_TOKEN and send it as `Authorization: Bearer …`."


class Denial(Struct, frozen=True):
    """Why a request is refused: an HTTP status, and a sentence that says what to do."""

    status: int
    detail: str


def authorize(token: str | None, *, peer: str | None, headers: Mapping[str, str]) -> Denial | None:
    """Return None for a request that may pass.

    With a token, the request must carry it. Without one, it must come from this machine and from no
    browser page of another site: loopback peer and `Host`, no proxy, no foreign `Origin`, JSON bodies only.

    Args:
        token: DIRECTOR_TOKEN.
        peer: the address that the connection comes from; None for a unix socket.
        headers: by lower-case name, repeats joined by a comma; read as latin-1.
    """
    if token:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode()):
            return None
        detail = "The token is not right." if "authorization" in headers else "A token is needed."
        return Denial(401, f"{detail} Send DIRECTOR_TOKEN as `Authorization: Bearer …`.")
    if not _is_loopback(peer):
        return Denial(401, f"Without a token only this machine may call. {WAY_IN}")
    host = headers.get("host")
    if not _is_loopback(_host_name(host)):
        return Denial(401, f"Without a token the Host must be localhost. {WAY_IN}")
    if any(name in FORWARDING or name.startswith("x-forwarded-") for name in headers):
        return Denial(401, f"The request came through a proxy. {WAY_IN}")
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return Denial(403, f"The request comes from another site's page. {WAY_IN}")
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if has_body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Denial(415, "Send the body as `Content-Type: application/json`.")
    return None


def may_listen(host: str, *, has_token: bool) -> str | None:
    """Return why the service must not listen on an address, or None."""
    if has_token or _is_loopback(host):
        return None
    return (
        f"DIRECTOR_HOST is {host}, which others can reach, and DIRECTOR_TOKEN is not set. "
        "Set DIRECTOR_TOKEN to a long random text, or DIRECTOR_HOST to 127.0.0.1."
    )


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def _host_name(host: str | None) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname if host else None
    except ValueError:
        return None

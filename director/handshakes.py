"""What providers ask before they send, or between: answered without starting anything. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from director.schemes import Handshake

TALKING = ("slack-url-verification", "discord-ping")
"""Of providers whose people give commands, and wait for a word."""


def answer(handshake: Handshake, event: str, document: Any, secret: str) -> dict[str, Any] | None:
    """Return the answer that a verified delivery asks for, None when it is an ordinary one.

    Args:
        handshake: of the source's scheme.
        event: of the delivery.
        document: its body.
        secret: the one that it was signed with.
    """
    asked = document if isinstance(document, Mapping) else {}
    if handshake == "github-ping" and event == "ping":
        return {}
    # docs.slack.dev, url_verification
    if handshake == "slack-url-verification" and event == "url_verification":
        return {"challenge": asked.get("challenge")}
    # docs.discord.com, "Interactions": PING is type 1, and so is PONG
    if handshake == "discord-ping" and asked.get("type") == 1:
        return {"type": 1}
    # developers.zoom.us, "Validate your webhook endpoint"
    if handshake == "zoom-url-validation" and event == "endpoint.url_validation":
        payload = asked.get("payload")
        token = str(payload.get("plainToken", "") if isinstance(payload, Mapping) else "")
        mac = hmac.digest(secret.encode(), token.encode("utf-8", "surrogatepass"), "sha256").hex()
        return {"plainToken": token, "encryptedToken": mac}
    return None


def message(handshake: Handshake, document: Any, said: str) -> dict[str, Any]:
    """Return what shows a text to the person who gave a command; nothing where no person waits.

    docs.slack.dev, "Slash commands": a text for them alone; docs.discord.com, "Interactions": type 4, flag 64.
    """
    asked = document if isinstance(document, Mapping) else {}
    if handshake == "slack-url-verification" and "command" in asked:
        return {"response_type": "ephemeral", "text": said}
    if handshake == "discord-ping":
        return {"type": 4, "data": {"content": said[:2000], "flags": 64}}
    return {}


def challenge(handshake: Handshake, query: str, tokens: Sequence[str]) -> str | None:
    """Return what a GET that subscribes asks to have back (developers.facebook.com, "Verification requests").

    Args:
        handshake: of the source's scheme.
        query: of the address.
        tokens: what `hub.verify_token` may be; empty ones never match.
    """
    if handshake != "meta-hub-challenge":
        return None
    asked = parse_qs(query)
    modes, given, wanted = (asked.get(f"hub.{name}", []) for name in ("mode", "verify_token", "challenge"))
    if modes != ["subscribe"] or len(given) != 1 or len(wanted) != 1:
        return None
    right = [token.encode() for token in tokens if token]
    # Every one is compared, in constant time each.
    matches = [hmac.compare_digest(given[0].encode("utf-8", "surrogatepass"), token) for token in right]
    return wanted[0] if any(matches) else None

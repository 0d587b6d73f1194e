"""Deliveries made here: signed for sending, played without starting anything, played again."""

from __future__ import annotations

import shlex
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from director import deliveries, documents, handshakes
from director.definitions import Definitions
from director.engine import Engine
from director.errors import DirectorError
from director.models import Delivery
from director.settings import Settings
from director.signing import SignedRequest, claims, scheme, sign, verify
from director.store.base import Store
from director.triggers import Router


def signed(
    settings: Settings, definitions: Definitions, name: str, file: Path, event: str, key: str | None = None
) -> SignedRequest:
    """Return a request that the source's endpoint accepts, with a fresh delivery id.

    `key`: a variable that holds what to sign with instead of the source's secret: Ed25519's private key.
    """
    source = definitions.source(name)
    made = scheme(source.scheme)
    secret = next(filter(None, definitions.values((key,) if key else source.secrets)), None)
    if secret is None:
        why = (
            f"--key names {key}, which" if key else f'Source "{name}" has no secret: {" or ".join(source.secrets)}'
        )
        raise DirectorError(f"{why} is not set.")
    if made.type == "ed25519" and not key and not secret.startswith("whsk_"):
        raise DirectorError(
            f'Source "{name}" holds a public key, which signs nothing; --key names the variable of a private one.'
        )
    if not event.isascii() or not event.isprintable() or event != event.strip():
        raise DirectorError(f"The event is {event!r}, which no header can hold as it is: printable ASCII only.")
    body = file.read_bytes()
    headers = [("Content-Type", _content_type(body))]
    headers += [(made.event_header, event)] if made.event_header else []
    headers += [(made.id_header, str(uuid.uuid4()))] if made.id_header else []
    request = SignedRequest("POST", f"{settings.local_url}/hooks/{name}", headers, body)
    now = time.time()
    try:
        request = msgspec.structs.replace(request, headers=[*headers, *sign(made, secret, request, now=now)])
    except ValueError as exc:
        raise DirectorError(f'Source "{name}" cannot sign: {exc}.') from None
    # A time in the body may be over, and a private key may be that of another public one.
    verdict = verify(made, definitions.secrets(source), request, now=now)
    if not verdict.ok:
        raise DirectorError(f'Source "{name}" would refuse {file}: {verdict.detail} ({verdict.reason}).')
    return request


def _content_type(body: bytes) -> str:
    """Return JSON, or a form for what is `name=value`, as Slack's commands are."""
    return documents.FORM if body.lstrip()[:1] not in (b"{", b"[", b'"') and b"=" in body else "application/json"


def curl_line(request: SignedRequest, file: Path) -> str:
    """Return a curl command for a request whose body is in a file."""
    headers = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in request.headers]
    return " ".join(["curl -sS", *headers, f"--data-binary {shlex.quote(f'@{file}')}", shlex.quote(request.url)])


def send(request: SignedRequest) -> tuple[int, str]:
    """Send a request; return status and body. Raise DirectorError when nobody answers."""
    import http.client
    import urllib.error
    import urllib.request

    made = urllib.request.Request(request.url, data=request.body, headers=dict(request.headers), method="POST")
    try:
        with urllib.request.urlopen(made, timeout=30) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as exc:
        why = getattr(exc, "reason", exc)
        raise DirectorError(f"{request.url} does not answer: {why}. Is the service running?") from exc


def dry_run(definitions: Definitions, name: str, file: Path, event: str | None) -> dict[str, Any]:
    """Return what a body would start or relaunch, and why the other workflows would not.

    `handshake`: the name of the one that it is; then nothing starts.
    """
    made, body = scheme(definitions.source(name).scheme), file.read_bytes()
    kind = _content_type(body)
    try:
        document = documents.decode(kind, body)
    except ValueError as exc:
        raise DirectorError(f"{file}: {exc}") from None
    if event is None:
        said = claims(made, SignedRequest("POST", "/", [("Content-Type", kind)], body))[1]
        event = said or ("push" if made.event_header else "")
    shown: dict[str, Any] = {"event": event, "handshake": None, "starts": [], "relaunches": [], "others": []}
    if handshakes.answer(made.handshake, event, document, "") is not None:
        return {**shown, "handshake": made.handshake}
    router = Router(definitions.project.workflows.values())
    routing = deliveries.route(definitions, router, name, event, document)
    shown["others"] = [{"workflow": workflow, "reason": reason} for workflow, reason in routing.reasons]
    for match in routing.matches:
        if match.relaunch is not None or match.workflow is None:
            workflow = match.workflow.name if match.workflow else None
            shown["relaunches"].append({"workflow": workflow, "run": match.relaunch, "from": match.origin})
            continue
        name = match.workflow.name
        try:
            payload = Engine().start(match.workflow, match.payload, trigger={}).payload
            shown["starts"].append({"workflow": name, "payload": msgspec.json.decode(payload)})
        except DirectorError as exc:
            shown["others"].append({"workflow": name, "reason": str(exc)})
    return shown


def replay(
    store: Store, engine: Engine, definitions: Definitions, entry: Delivery, body: bytes | None
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Do what a delivery wants, as if it were new; return (workflow, run) and (workflow, reason) of the others.

    Raises:
        Conflict: nobody vouches for it, or its body is not kept.
    """
    document = deliveries.replayed(entry, body)
    router = Router(definitions.project.workflows.values())
    routing = deliveries.route(definitions, router, entry.source, entry.event, document)
    trigger = {"kind": "webhook", "source": entry.source, "event": entry.event, "delivery": entry.delivery}
    done, others, comment = [], list(routing.reasons), f"replay of delivery {entry.id}"
    for match in routing.matches:
        steps = deliveries.act(engine, store, definitions.workflow, match, trigger, comment=comment)
        try:
            started, name = store.play(steps)
            done.append((name, started.run_id))
        except DirectorError as exc:
            others.append((match.workflow.name if match.workflow else "", str(exc)))
    return done, others

"""Deliveries made here: signed for sending, or played without starting anything."""

from __future__ import annotations

import shlex
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec

from director.definitions import Definitions, check_payload
from director.errors import DirectorError, InvalidPayload, NotFound
from director.models import Source
from director.settings import Settings
from director.signing import SignedRequest, scheme, sign, verify
from director.triggers import Router

PROBE = "cHJvYmU="
"""A secret that every scheme can read."""


def _source(definitions: Definitions, name: str) -> Source:
    source = definitions.project.sources.get(name)
    if source is None:
        known = ", ".join(definitions.project.sources) or "none"
        raise NotFound(f'No source is named "{name}"; there are: {known}.')
    return source


def signed(settings: Settings, definitions: Definitions, name: str, file: Path, event: str) -> SignedRequest:
    """Return a request that the source's endpoint accepts, with a fresh delivery id."""
    source = _source(definitions, name)
    made = scheme(source.scheme)
    secret = next(filter(None, definitions.secrets(source)), None)
    if secret is None:
        raise DirectorError(f'Source "{name}" has no secret: set {" or ".join(source.secrets)}.')
    headers = [("Content-Type", "application/json")]
    headers += [(made.event_header, event)] if made.event_header else []
    headers += [(made.id_header, str(uuid.uuid4()))] if made.id_header else []
    request = SignedRequest("POST", f"{settings.local_url}/hooks/{name}", headers, file.read_bytes())
    try:
        return msgspec.structs.replace(request, headers=[*headers, *sign(made, secret, request, now=time.time())])
    except ValueError as exc:
        raise DirectorError(f'Source "{name}" cannot sign: {exc}.') from None


def curl_line(request: SignedRequest, file: Path) -> str:
    """Return a curl command for a request whose body is in a file."""
    headers = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in request.headers]
    return " ".join(["curl -sS", *headers, f"--data-binary {shlex.quote(f'@{file}')}", shlex.quote(request.url)])


def send(request: SignedRequest) -> tuple[int, str]:
    """Send a request; return status and body. Raise DirectorError when nobody answers."""
    import urllib.error
    import urllib.request

    made = urllib.request.Request(request.url, data=request.body, headers=dict(request.headers), method="POST")
    try:
        with urllib.request.urlopen(made, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()
    except OSError as exc:
        raise DirectorError(f"{request.url} does not answer: {exc}. Is the service running?") from exc


def dry_run(definitions: Definitions, name: str, file: Path, event: str | None) -> dict[str, Any]:
    """Return what a body would start, with which payload, and why the others would not."""
    made = scheme(_source(definitions, name).scheme)
    try:
        body = msgspec.json.decode(file.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise DirectorError(f"{file} is not valid JSON: {exc}.") from None
    if event is None:
        request = SignedRequest("POST", "/", [], file.read_bytes())
        probe = msgspec.structs.replace(request, headers=sign(made, PROBE, request, now=0))
        event = verify(made, [PROBE], probe, now=0).event or "push"
    routing = Router(definitions.project.workflows.values()).route(name, event, body)
    starts: list[dict[str, Any]] = []
    others = [{"workflow": workflow, "reason": reason} for workflow, reason in routing.reasons]
    for match in routing.matches:
        name = match.workflow.name
        try:
            starts.append({"workflow": name, "payload": check_payload(match.workflow, match.payload)})
        except InvalidPayload as exc:
            others.append({"workflow": name, "reason": str(exc)})
    return {"event": event, "starts": starts, "others": others}

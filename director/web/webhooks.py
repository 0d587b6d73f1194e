"""MAIN PATH: POST /hooks/{source}.

    read the raw body (bounded) → verify the signature → decode → which workflows → start each → answer

A plain ASGI application: the raw bytes are what gets verified, and nothing else stands between.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from director import log
from director.definitions import Definitions
from director.engine import Engine
from director.errors import DirectorError, StoreUnavailable
from director.models import Project
from director.settings import MAX_PAYLOAD_BYTES, Settings
from director.signing import Scheme, SignedRequest, Verdict, scheme, verify
from director.store.base import Dedupe, Started
from director.triggers import Match, Router
from director.web import problems
from director.web.calls import Calls
from director.web.shapes import HookAnswer, HookRun, Refused

SEEN_S = 7 * 86400
BODY_DEADLINE_S = 30.0

logger = log.get("director.webhooks")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


_ANSWERS = {
    "200": "Seen before, or no trigger wants it",
    "202": "Runs were started",
    "400": "Not what its Content-Type says, or nested too deep",
    "401": "The signature is missing, malformed, wrong or stale, or the source is closed",
    "404": "No such source",
    "413": "The body is too large",
    "422": "The schema of every wanted workflow refuses the payload",
    "503": "The store is away; send it again",
}
OPENAPI = {
    "post": {
        "summary": "Take a signed delivery",
        "operationId": "ReceiveDelivery",
        "parameters": [{"name": "source", "in": "path", "required": True, "schema": {"type": "string"}}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {}}}},
        "responses": {code: {"description": text} for code, text in _ANSWERS.items()},
    }
}


class _Refusal(Exception):
    """An answer that ends the path."""

    def __init__(self, status: int, detail: str | None = None, **more: Any) -> None:
        super().__init__(status)
        self.status = status
        self.members = problems.body(status, detail, **more)


class _Source:
    """A source, ready to verify."""

    def __init__(self, name: str, made: Scheme, secrets: list[str | None]) -> None:
        self.name = name
        self.scheme = made
        self.secrets = secrets


class Webhooks:
    """Accepts deliveries."""

    def __init__(self, settings: Settings, definitions: Definitions, engine: Engine, calls: Calls) -> None:
        self._settings = settings
        self._definitions = definitions
        self._engine = engine
        self._calls = calls
        self._project: Project | None = None
        self._sources: dict[str, _Source] = {}
        self._router = Router(())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        name = scope["path"].strip("/")
        try:
            status, body = await self._accept(name, scope, receive)
            await _send(send, status, _encode(body), b"application/json")
        except _Refusal as refusal:
            await _send(send, refusal.status, _encode(refusal.members), problems.MEDIA_TYPE.encode())
        except DirectorError as exc:
            status, members, headers = problems.of_error(exc)
            extra = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
            await _send(send, status, _encode(members), problems.MEDIA_TYPE.encode(), extra)

    async def _accept(self, name: str, scope: Any, receive: Any) -> tuple[int, HookAnswer]:
        if scope["method"] != "POST":
            raise _Refusal(405, "Deliveries are sent with POST.")
        source = self._source(name)
        body = await _read(receive, scope)
        verdict = self._verify(source, scope, body)
        document = _document(scope, body)
        delivery = verdict.id or str(uuid.uuid4())
        if source.scheme.handshake == "github-ping" and verdict.event == "ping":
            return 200, HookAnswer(delivery=delivery, runs=[], duplicate=False, reason="a ping starts nothing")
        routing = self._router.route(name, verdict.event, document)
        if not routing.matches:
            reasons = [f"{workflow}: {reason}" for workflow, reason in routing.reasons]
            reason = "; ".join(reasons) or f'no workflow has a trigger for source "{name}"'
            logger.info(
                "webhook.ignored", source=name, event_name=verdict.event, delivery_id=delivery, reason=reason
            )
            return 200, HookAnswer(delivery=delivery, runs=[], duplicate=False, reason=reason)
        starts = [self._start(match, source, verdict, delivery) for match in routing.matches]
        if len(starts) == 1:
            outcomes = [await starts[0]]
        else:
            outcomes = await asyncio.gather(*starts)
        return self._answer(source, verdict, delivery, routing.matches, outcomes)

    def _source(self, name: str) -> _Source:
        """Return a source; everything is made anew once the definitions have changed."""
        project = self._definitions.project
        if project is not self._project:
            environ = self._settings.environ
            self._sources = {
                key: _Source(key, scheme(source.scheme), [environ.get(name) for name in source.secrets])
                for key, source in project.sources.items()
            }
            self._router = Router(project.workflows.values())
            self._project = project
        source = self._sources.get(name)
        if source is None:
            raise _Refusal(404, "No such source.")
        return source

    def _verify(self, source: _Source, scope: Any, body: bytes) -> Verdict:
        request = SignedRequest(method=scope["method"], url=self._url(scope), headers=scope["headers"], body=body)
        verdict = verify(source.scheme, source.secrets, request, now=time.time())
        if not verdict.ok:
            logger.warning("webhook.rejected", source=source.name, reason=verdict.reason, size=len(body))
            raise _Refusal(401)
        return verdict

    def _url(self, scope: Any) -> str:
        """Return the address as the sender wrote it; behind a proxy only the settings know it."""
        query: str = scope["query_string"].decode("latin-1")
        path: str = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else scope["path"]
        path = path.partition("?")[0] + (f"?{query}" if query else "")
        if self._settings.public_url:
            return self._settings.public_url + path
        host = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"host"), "")
        return f"{scope['scheme']}://{host}{path}"

    async def _start(
        self, match: Match, source: _Source, verdict: Verdict, delivery: str
    ) -> Started | DirectorError:
        trigger = {"kind": "webhook", "source": source.name, "event": verdict.event, "delivery": delivery}
        dedupe = Dedupe(key=f"{source.name}:{verdict.id}", ttl_s=SEEN_S) if verdict.id else None
        try:
            return await self._calls.run(
                self._engine.start(match.workflow, match.payload, trigger=trigger, dedupe=dedupe)
            )
        except StoreUnavailable:
            raise
        except DirectorError as exc:
            return exc

    def _answer(
        self,
        source: _Source,
        verdict: Verdict,
        delivery: str,
        matches: list[Match],
        outcomes: list[Started | DirectorError],
    ) -> tuple[int, HookAnswer]:
        runs, refused, duplicate = [], [], True
        for match, outcome in zip(matches, outcomes, strict=True):
            name = match.workflow.name
            if isinstance(outcome, DirectorError):
                where = "; ".join(getattr(outcome, "paths", ()))
                refused.append(Refused(workflow=name, reason=f"{outcome} {where}".strip()))
            else:
                url = self._settings.run_url(outcome.run_id)
                runs.append(HookRun(id=outcome.run_id, workflow=name, url=url))
                duplicate = duplicate and outcome.duplicate
        facts = {"source": source.name, "event_name": verdict.event, "delivery_id": delivery}
        if not runs:
            logger.warning("webhook.refused", **facts, refused=[f"{r.workflow}: {r.reason}" for r in refused])
            paths = [path for outcome in outcomes for path in getattr(outcome, "paths", ())]
            raise _Refusal(
                422,
                "No wanted workflow takes the payload.",
                refused=[msgspec.to_builtins(entry) for entry in refused],
                paths=paths,
            )
        logger.info("webhook.accepted", **facts, run_ids=[run.id for run in runs], duplicate=duplicate)
        answer = HookAnswer(delivery=delivery, runs=runs, duplicate=duplicate, reason=None, refused=refused)
        return 200 if duplicate else 202, answer


async def _read(receive: Any, scope: Any) -> bytes:
    """Return the body; stop reading at the limit or when the sender takes too long."""
    for key, value in scope["headers"]:
        if key == b"content-length" and value.isdigit() and int(value) > MAX_PAYLOAD_BYTES:
            raise _Refusal(413, f"The body is over the limit of {MAX_PAYLOAD_BYTES} bytes.")
        if key == b"content-encoding" and value.lower() != b"identity":
            raise _Refusal(415, "Send the body without Content-Encoding.")
    message = await receive()
    if not message.get("more_body"):
        return _bounded(message.get("body", b""))
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            chunks, size = [message.get("body", b"")], len(message.get("body", b""))
            while message.get("more_body"):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Refusal(400, "The body ended early.")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > MAX_PAYLOAD_BYTES:
                    _bounded(b"".join(chunks))
    except TimeoutError:
        raise _Refusal(408, f"The body did not arrive within {BODY_DEADLINE_S:g} s.") from None
    return b"".join(chunks)


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_PAYLOAD_BYTES:
        raise _Refusal(413, f"The body is over the limit of {MAX_PAYLOAD_BYTES} bytes.")
    return body


def _document(scope: Any, body: bytes) -> Any:
    """Return the decoded body: JSON, or a form with JSON in `payload` or plain fields."""
    kind = next((value for key, value in scope["headers"] if key == b"content-type"), b"")
    try:
        if kind.partition(b";")[0].strip().lower() == b"application/x-www-form-urlencoded":
            fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000))
            return _decode(fields["payload"].encode()) if "payload" in fields else fields
        return _decode(body)
    except (ValueError, RecursionError) as exc:
        deep = isinstance(exc, RecursionError)
        raise _Refusal(400, "The body is nested too deep." if deep else "The body is not valid JSON.") from None


async def _send(
    send: Any, status: int, body: bytes, media_type: bytes, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    length = str(len(body)).encode()
    headers = [(b"content-type", media_type), (b"content-length", length), *(extra or ())]
    if status == 401:
        headers.append((b"www-authenticate", b"Signature"))
    if status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""MAIN PATH: POST /hooks/{source}.

    read the raw body (bounded) → verify the signature → decode → which workflows → start each → answer

A plain ASGI application: the raw bytes are what gets verified, and nothing else stands between.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import msgspec

from director import log
from director.errors import DirectorError, InvalidPayload, StoreUnavailable
from director.models import Project
from director.signing import Scheme, SignedRequest, Verdict, scheme, verify
from director.store.base import Dedupe, Started
from director.triggers import Match, Router
from director.web import bodies, problems
from director.web.problems import Refusal
from director.web.service import Service
from director.web.shapes import Delivery, DeliveryRun, Refused

SEEN_S = 7 * 86400
UNREADABLE = (400, 408, 413, 415)
Outcome = Started | DirectorError

logger = log.get("director.webhooks")
_encode = msgspec.json.Encoder().encode


class _Source:
    """A source, ready to verify."""

    def __init__(self, name: str, made: Scheme, secrets: list[str]) -> None:
        self.name, self.scheme, self.secrets = name, made, secrets
        self.signs_url = "{url}" in made.signed_content or "{path}" in made.signed_content


class Webhooks:
    """Accepts deliveries."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._project: Project | None = None
        self._sources: dict[str, _Source] = {}
        self._router = Router(())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request to `/hooks/{source}`."""
        try:
            source = self._source(scope)
            body = await bodies.read(scope["headers"], receive)
            verdict = self._verify(source, scope, body)
            document = bodies.decode(scope["headers"], body)
            status, answer = await self._accept(source, verdict, document, len(body))
            text, headers = _encode(answer), [(b"content-type", b"application/json")]
        except Exception as exc:  # noqa: BLE001 - a bug too is answered, and logged
            status, text, headers = problems.answer(scope["path"], exc)
            if isinstance(exc, Refusal) and status in UNREADABLE:
                logger.warning("webhook.unreadable", path=scope["path"], status=status, reason=exc.detail)
        headers.append((b"content-length", b"%d" % len(text)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    def _source(self, scope: Any) -> _Source:
        """Return a source; everything is made anew once the definitions have changed."""
        if scope["method"] != "POST":
            raise Refusal(405, "Deliveries are sent with POST.", headers={"Allow": "POST"})
        project = self._service.definitions.project
        if project is not self._project:
            secrets = self._service.definitions.secrets
            known = project.sources.items()
            self._sources = {name: _Source(name, scheme(it.scheme), secrets(it)) for name, it in known}
            self._router, self._project = Router(project.workflows.values()), project
        source = self._sources.get(scope["path"].removeprefix("/hooks/").strip("/"))
        if source is None:
            raise Refusal(404, "No such source.")
        return source

    def _verify(self, source: _Source, scope: Any, body: bytes) -> Verdict:
        url = self._url(scope) if source.signs_url else ""
        request = SignedRequest(scope["method"], url, scope["headers"], body)
        verdict = verify(source.scheme, source.secrets, request, now=time.time())
        if not verdict.ok:
            logger.warning("webhook.rejected", source=source.name, reason=verdict.reason, size=len(body))
            # The reason stays here: a guesser must not learn how close it came.
            raise Refusal(401, headers={"WWW-Authenticate": "Signature"})
        return verdict

    def _url(self, scope: Any) -> str:
        """Return the address as the sender wrote it; behind a proxy only the settings know it."""
        query: str = scope["query_string"].decode("latin-1")
        path: str = scope["raw_path"].decode("latin-1") if scope.get("raw_path") else scope["path"]
        path = path.partition("?")[0] + (f"?{query}" if query else "")
        if self._service.settings.public_url:
            return self._service.settings.public_url + path
        host = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"host"), "")
        return f"{scope['scheme']}://{host}{path}"

    async def _accept(self, source: _Source, verdict: Verdict, document: Any, size: int) -> tuple[int, Delivery]:
        delivery = verdict.id or str(uuid.uuid4())
        facts = {"source": source.name, "event_name": verdict.event, "delivery_id": delivery}
        if source.scheme.handshake == "github-ping" and verdict.event == "ping":
            return 200, Delivery(delivery, [], False, "a ping starts nothing")
        routing = self._router.route(source.name, verdict.event, document)
        if not routing.matches:
            reasons = [f"{workflow}: {reason}" for workflow, reason in routing.reasons]
            reason = "; ".join(reasons) or f'no workflow has a trigger for source "{source.name}"'
            logger.info("webhook.ignored", **facts, reason=reason)
            return 200, Delivery(delivery, [], False, reason)
        starts = [self._start(match, source, verdict, delivery, size) for match in routing.matches]
        # Together, in one exchange. When one finds the store away, so will the sender's next try: what has
        # started meanwhile is then a duplicate.
        outcomes = [await starts[0]] if len(starts) == 1 else await asyncio.gather(*starts)
        names = [match.workflow.name for match in routing.matches]
        return self._answer(facts, delivery, dict(zip(names, outcomes, strict=True)))

    async def _start(self, match: Match, source: _Source, verdict: Verdict, delivery: str, size: int) -> Outcome:
        trigger = {"kind": "webhook", "source": source.name, "event": verdict.event, "delivery": delivery}
        dedupe = Dedupe(key=f"{source.name}:{verdict.id}", ttl_s=SEEN_S) if verdict.id else None
        try:
            return await self._service.start(match.workflow, match.payload, size, trigger=trigger, dedupe=dedupe)
        except StoreUnavailable:
            raise
        except DirectorError as exc:
            return exc

    def _answer(self, facts: dict[str, str], delivery: str, outcomes: dict[str, Outcome]) -> tuple[int, Delivery]:
        runs, refused, duplicate, run_url = [], [], True, self._service.settings.run_url
        for name, outcome in outcomes.items():
            if isinstance(outcome, DirectorError):
                refused.append(Refused(name, str(outcome)))
            else:
                runs.append(DeliveryRun(outcome.run_id, name, run_url(outcome.run_id)))
                duplicate = duplicate and outcome.duplicate
        if not runs:
            # Not why: the sentences quote the payload.
            logger.warning("webhook.refused", **facts, workflows=[entry.workflow for entry in refused])
            paths = [path for one in outcomes.values() if isinstance(one, InvalidPayload) for path in one.paths]
            more: dict[str, Any] = {"paths": paths} if paths else {}
            raise Refusal(422, "No wanted workflow can be started.", delivery=delivery, refused=refused, **more)
        ids = [run.id for run in runs]
        logger.info("webhook.accepted", **facts, run_ids=ids, duplicate=duplicate, refused=len(refused))
        return 200 if duplicate else 202, Delivery(delivery, runs, duplicate, None, refused)

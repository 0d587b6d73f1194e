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
from director.definitions import Definitions
from director.engine import Engine
from director.errors import DirectorError, InvalidPayload, StoreUnavailable
from director.models import Project
from director.settings import Settings
from director.signing import ALIASES, Scheme, SignedRequest, Verdict, scheme, verify
from director.store.base import Dedupe, Started
from director.triggers import Match, Router, Routing
from director.web import bodies, problems
from director.web.calls import Calls
from director.web.problems import Refusal
from director.web.shapes import HookAnswer, HookRun, Refused

SEEN_S = 7 * 86400

logger = log.get("director.webhooks")
_encode = msgspec.json.Encoder().encode


class _Source:
    """A source, ready to verify."""

    def __init__(self, name: str, made: Scheme, secrets: list[str | None]) -> None:
        self.name = name
        self.scheme = made
        self.secrets = secrets
        self.signs_url = any(part in made.signed_content for part in ("{url}", "{path}"))
        read = (made.header, *made.header_aliases, made.timestamp_header, made.id_header, made.event_header)
        # Only these headers are decoded for the signature's check.
        self.headers = {
            name.lower().encode() for known in read if known for name in (known, ALIASES.get(known, known))
        }


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
        """Answer one request to `/hooks/{source}`; the server has taken `/hooks` off its path."""
        try:
            status, answer = await self._accept(scope, receive)
            await _send(send, status, _encode(answer))
        except bodies.Disconnected:
            return
        except Refusal as refusal:
            await _send_problem(send, refusal.status, refusal.members, refusal.headers)
        except DirectorError as exc:
            await _send_problem(send, *problems.of_error(exc))

    async def _accept(self, scope: Any, receive: Any) -> tuple[int, HookAnswer]:
        source = self._source(scope)
        body = await bodies.read(scope["headers"], receive)
        verdict = self._verify(source, scope, body)
        delivery = verdict.id or str(uuid.uuid4())
        document = bodies.decode(scope["headers"], body)
        if _is_handshake(source, verdict):
            return 200, _nothing(delivery, "a ping starts nothing")
        routing = self._router.route(source.name, verdict.event, document)
        if not routing.matches:
            return 200, _ignored(source, verdict, delivery, routing)
        outcomes = await self._start_all(routing.matches, source, verdict, delivery)
        return self._answer(source, verdict, delivery, routing.matches, outcomes)

    def _source(self, scope: Any) -> _Source:
        """Return a source; everything is made anew once the definitions have changed."""
        if scope["method"] != "POST":
            raise Refusal(405, "Deliveries are sent with POST.", headers={"Allow": "POST"})
        project = self._definitions.project
        if project is not self._project:
            environ = self._settings.environ
            self._sources = {
                name: _Source(name, scheme(source.scheme), [environ.get(variable) for variable in source.secrets])
                for name, source in project.sources.items()
            }
            self._router = Router(project.workflows.values())
            self._project = project
        source = self._sources.get(scope["path"].strip("/"))
        if source is None:
            raise Refusal(404, "No such source.")
        return source

    def _verify(self, source: _Source, scope: Any, body: bytes) -> Verdict:
        headers = [pair for pair in scope["headers"] if pair[0] in source.headers]
        url = self._url(scope) if source.signs_url else ""
        request = SignedRequest(method=scope["method"], url=url, headers=headers, body=body)
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
        if self._settings.public_url:
            return self._settings.public_url + path
        host = next((value.decode("latin-1") for key, value in scope["headers"] if key == b"host"), "")
        return f"{scope['scheme']}://{host}{path}"

    async def _start_all(
        self, matches: list[Match], source: _Source, verdict: Verdict, delivery: str
    ) -> list[Started | DirectorError]:
        starts = [self._start(match, source, verdict, delivery) for match in matches]
        if len(starts) == 1:
            return [await starts[0]]
        # Together, so that the store's thread makes them in one exchange. When one finds the store away, so
        # will the sender's next try: what has started meanwhile is then a duplicate.
        return await asyncio.gather(*starts)

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
                refused.append(Refused(workflow=name, reason=str(outcome)))
            else:
                url = self._settings.run_url(outcome.run_id)
                runs.append(HookRun(id=outcome.run_id, workflow=name, url=url))
                duplicate = duplicate and outcome.duplicate
        if not runs:
            raise _refused(source, verdict, delivery, refused, outcomes)
        logger.info(
            "webhook.accepted",
            source=source.name,
            event_name=verdict.event,
            delivery_id=delivery,
            run_ids=[run.id for run in runs],
            duplicate=duplicate,
            refused=len(refused),
        )
        answer = HookAnswer(delivery=delivery, runs=runs, duplicate=duplicate, reason=None, refused=refused)
        return 200 if duplicate else 202, answer


def _is_handshake(source: _Source, verdict: Verdict) -> bool:
    return source.scheme.handshake == "github-ping" and verdict.event == "ping"


def _nothing(delivery: str, reason: str) -> HookAnswer:
    return HookAnswer(delivery=delivery, runs=[], duplicate=False, reason=reason)


def _ignored(source: _Source, verdict: Verdict, delivery: str, routing: Routing) -> HookAnswer:
    reasons = [f"{workflow}: {reason}" for workflow, reason in routing.reasons]
    reason = "; ".join(reasons) or f'no workflow has a trigger for source "{source.name}"'
    logger.info(
        "webhook.ignored", source=source.name, event_name=verdict.event, delivery_id=delivery, reason=reason
    )
    return _nothing(delivery, reason)


def _refused(
    source: _Source,
    verdict: Verdict,
    delivery: str,
    refused: list[Refused],
    outcomes: list[Started | DirectorError],
) -> Refusal:
    """Return the answer to a delivery that no wanted workflow takes."""
    paths = [path for outcome in outcomes if isinstance(outcome, InvalidPayload) for path in outcome.paths]
    logger.warning(
        "webhook.refused",
        source=source.name,
        event_name=verdict.event,
        delivery_id=delivery,
        # Not why: the sentences quote the payload.
        workflows=[entry.workflow for entry in refused],
    )
    return Refusal(
        422,
        "No wanted workflow takes the payload.",
        delivery=delivery,
        refused=[msgspec.to_builtins(entry) for entry in refused],
        paths=paths,
    )


async def _send_problem(send: Any, status: int, members: dict[str, Any], headers: dict[str, str]) -> None:
    extra = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await _send(send, status, _encode(members), problems.MEDIA_TYPE.encode(), extra)


async def _send(
    send: Any,
    status: int,
    body: bytes,
    media_type: bytes = b"application/json",
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    length = str(len(body)).encode()
    headers = [(b"content-type", media_type), (b"content-length", length), *(extra or ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

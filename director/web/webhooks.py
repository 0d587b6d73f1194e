"""MAIN PATH: POST /hooks/{source}.

    read the raw body (bounded) → verify the signature → decode → what it wants → do it → answer → the inbox

A plain ASGI application: the raw bytes are what gets verified, and nothing else stands between.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from director import deliveries, handshakes, log
from director.definitions import BUILT_IN
from director.engine import new_run_id
from director.errors import DirectorError, InvalidPayload, StoreUnavailable
from director.models import Delivery, DeliveryRun, Project, Source, time_text
from director.signing import SignedRequest, Verdict, claims, scheme, secret_problem, verify
from director.store.shapes import Dedupe, Started
from director.triggers import Match, Router, Routing
from director.web import bodies, problems
from director.web.inbox import Inbox
from director.web.problems import Refusal
from director.web.service import LONG_CHECK_BYTES, Service
from director.web.shapes import HookAnswer, HookRun, Refused

MAX_REASON = 4000
VERDICTS = {
    400: "unreadable",
    408: "unreadable",
    413: "unreadable",
    415: "unreadable",
    401: "rejected",
    404: "rejected",
}
"""Status of a refusal → the inbox's word for it."""

logger = log.get("director.webhooks")
_encode = msgspec.json.Encoder().encode


def _bounded(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else reason[:MAX_REASON] + "…"


class _Source:
    """A source, ready to verify."""

    def __init__(self, known: Source, secrets: list[str], tokens: list[str]) -> None:
        self.name, self.variables, self.secrets = known.name, known.secrets, secrets
        self.scheme, self.relaunches, self.tokens = scheme(known.scheme), known.redelivery == "relaunch", tokens
        self.signs_url = "{url}" in self.scheme.signed_content or "{path}" in self.scheme.signed_content
        tried = [(name, secret) for name, secret in zip(known.secrets, secrets, strict=True) if secret]
        wrong = [f"{name} {text}" for name, secret in tried if (text := secret_problem(self.scheme, secret))]
        names = ", ".join(name for name, _ in tried)
        self.hint = "; ".join(wrong) or (f"tried {names}" if tried else f"set {' or '.join(known.secrets)}")
        """For whoever runs the service, when no secret matches."""


class _Taking:
    """A delivery that is underway: what the inbox will say of it."""

    def __init__(self, scope: Any) -> None:
        self.id = self.delivery = new_run_id()
        self.scope = scope
        self.source: str = scope["path"].removeprefix("/hooks/").strip("/")[:100]
        self.body, self.event, self.verdict, self.reason = b"", "", "", ""
        self.secret: str | None = None
        self.runs: list[HookRun] = []

    @property
    def facts(self) -> dict[str, str]:
        """What the log says of it."""
        return {"source": self.source, "event_name": self.event, "delivery_id": self.delivery}

    def entry(self, status: int) -> Delivery:
        kinds = (value.decode("latin-1") for name, value in self.scope["headers"] if name == b"content-type")
        return Delivery(
            id=self.id,
            at=time_text(int(self.id[:8] + self.id[9:13], 16)) or "",  # a UUIDv7 begins with its ms
            source=self.source,
            event=self.event,
            delivery=self.delivery,
            verdict=self.verdict,  # type: ignore[arg-type]  # one of its words
            status=status,
            reason=_bounded(self.reason) or None,
            secret=self.secret,
            runs=tuple(DeliveryRun(id=run.id, workflow=run.workflow) for run in self.runs),
            size=len(self.body),
            content_type=next(kinds, "")[:100],
        )


class Webhooks:
    """Accepts deliveries."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._project: Project | None = None
        self._sources: dict[str, _Source] = {}
        self._router = Router(())
        self.inbox = Inbox(service)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request to `/hooks/{source}`."""
        taking, recorded = _Taking(scope), scope["method"] == "POST"
        try:
            source = self._source(taking)
            if recorded:
                taking.body = await bodies.read(scope["headers"], receive)
                status, answer = await self._accept(taking, source)
                text, headers = _encode(answer), [(b"content-type", b"application/json")]
            else:
                status, text, headers = 200, self._challenge(taking, source), [(b"content-type", b"text/plain")]
        except Exception as exc:  # noqa: BLE001 - a bug too is answered, and logged
            # Not where the store is: the inbox and the log say that.
            told = StoreUnavailable("The store does not answer; send it again.")
            status, text, headers = problems.answer(
                scope["path"], told if isinstance(exc, StoreUnavailable) else exc
            )
            self._refuse(taking, status, exc)
            recorded = recorded or status == 401
        if recorded:
            self.inbox.add(taking.entry(status), taking.body)
        headers.append((b"content-length", b"%d" % len(text)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    def _source(self, taking: _Taking) -> _Source:
        """Return a source; everything is made anew once the definitions have changed."""
        definitions = self._service.definitions
        project = definitions.project
        if project is not self._project:
            values = definitions.values
            known = {**project.sources, BUILT_IN.name: BUILT_IN}.items()
            self._sources = {
                name: _Source(it, values(it.secrets), values(it.verify_tokens or it.secrets)) for name, it in known
            }
            self._router, self._project = Router(project.workflows.values()), project
        source = self._sources.get(taking.source)
        if source is None:
            taking.reason = "no_source: no source has this name"
            raise Refusal(404, "No such source.")
        asks = taking.scope["method"] == "GET" and source.scheme.handshake == "meta-hub-challenge"
        if taking.scope["method"] != "POST" and not asks:
            raise Refusal(405, "Deliveries are sent with POST.", headers={"Allow": "POST"})
        return source

    def _challenge(self, taking: _Taking, source: _Source) -> bytes:
        query = taking.scope["query_string"].decode("latin-1")
        answer = handshakes.challenge(source.scheme.handshake, query, source.tokens)
        if answer is None:
            taking.reason = "bad_signature: hub.verify_token is not the source's verify_token"
            raise Refusal(401)
        logger.info("webhook.subscribed", source=source.name)
        return answer.encode()

    def _verify(self, taking: _Taking, source: _Source) -> Verdict:
        scope = taking.scope
        url = self._url(scope) if source.signs_url else ""
        request = SignedRequest(scope["method"], url, scope["headers"], taking.body)
        verdict = verify(source.scheme, source.secrets, request, now=time.time())
        if verdict.secret is None:
            identity, taking.event = claims(source.scheme, request, reads_body=False)
            taking.delivery = identity or taking.id
            hint = f" ({source.hint})" if verdict.reason in ("no_secret", "bad_signature") else ""
            if source.signs_url and verdict.reason == "bad_signature":
                hint += f"; it covers the address, which was taken for {url}: is DIRECTOR_PUBLIC_URL right?"
            taking.reason = f"{verdict.reason}: {verdict.detail}{hint}"
            # The reason stays here: a guesser must not learn how close it came.
            raise Refusal(401, headers={"WWW-Authenticate": "Signature"})
        taking.delivery, taking.event = verdict.id or taking.id, verdict.event
        taking.secret = source.variables[verdict.secret]
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

    async def _accept(self, taking: _Taking, source: _Source) -> tuple[int, Any]:
        verdict = self._verify(taking, source)
        document = bodies.decode(taking.scope["headers"], taking.body)
        asked = handshakes.answer(
            source.scheme.handshake, verdict.event, document, source.secrets[verdict.secret or 0]
        )
        if asked is not None:
            taking.verdict, taking.reason = "handshake", source.scheme.handshake
            logger.info("webhook.answered", **taking.facts, handshake=taking.reason)
            return 200, asked or HookAnswer(taking.delivery, [], False, "a ping starts nothing")
        dedupe = Dedupe(key=f"{source.name}:{verdict.id}", ttl_s=deliveries.SEEN_S) if verdict.id else None
        status, answer = await self._do(taking, document, dedupe, source.relaunches)
        if source.scheme.handshake in handshakes.TALKING:
            said = "\n".join(f"{run.workflow}: {run.url}" for run in answer.runs) or answer.reason or ""
            more = handshakes.message(source.scheme.handshake, document, said)
            return status, {**msgspec.to_builtins(answer), **more}
        return status, answer

    async def _do(
        self, taking: _Taking, document: Any, dedupe: Dedupe | None, relaunches: bool, comment: str = ""
    ) -> tuple[int, HookAnswer]:
        """Start and relaunch what a delivery wants; return how it is answered."""
        definitions = self._service.definitions
        routing = deliveries.route(definitions, self._router, taking.source, taking.event, document)
        trigger = {"kind": "webhook", "source": taking.source, "event": taking.event, "delivery": taking.delivery}

        async def act(match: Match) -> tuple[str, Started | DirectorError]:
            engine, workflow = await self._service.informed(), match.workflow
            more: dict[str, Any] = {"dedupe": dedupe, "relaunches": relaunches, "comment": comment}
            steps = deliveries.act(engine, self._service.store, definitions.workflow, match, trigger, **more)
            # A schema can take a second over a large payload, and others wait.
            is_long = workflow is not None and workflow.schema is not None and len(taking.body) > LONG_CHECK_BYTES
            try:
                started, name = await self._service.play(steps, in_thread=is_long)
            except StoreUnavailable:
                raise
            except DirectorError as exc:
                return (workflow.name if workflow else ""), exc
            return name, started

        # Together, in one exchange. When one finds the store away, so will the sender's next try: what has
        # started meanwhile is then a duplicate.
        acts = map(act, routing.matches)
        outcomes = [await next(acts)] if len(routing.matches) == 1 else await asyncio.gather(*acts)
        return self._answer(taking, routing, outcomes)

    def _answer(
        self, taking: _Taking, routing: Routing, outcomes: list[tuple[str, Started | DirectorError]]
    ) -> tuple[int, HookAnswer]:
        run_url, duplicate = self._service.settings.run_url, True
        reasons, refused = list(routing.reasons), list[Refused]()
        invalid: list[str] = []
        for match, (name, outcome) in zip(routing.matches, outcomes, strict=True):
            if isinstance(outcome, Started):
                taking.runs.append(HookRun(outcome.run_id, name, run_url(outcome.run_id)))
                duplicate = duplicate and outcome.duplicate
            elif taking.source == BUILT_IN.name and len(outcomes) == 1:
                raise outcome  # its sender knows what it asks for
            elif match.relaunch is not None:
                reasons.insert(0, (name, str(outcome)))
            else:
                refused.append(Refused(name, str(outcome)))
                invalid += outcome.paths if isinstance(outcome, InvalidPayload) else ()
        taking.reason = "; ".join(
            f"{name}: {text}" for name, text in [*((r.workflow, r.reason) for r in refused), *reasons]
        )
        if taking.runs:
            taking.verdict = "duplicate" if duplicate else "accepted"
            ids = [run.id for run in taking.runs]
            logger.info("webhook.accepted", **taking.facts, run_ids=ids, duplicate=duplicate, refused=len(refused))
            answer = HookAnswer(taking.delivery, taking.runs, duplicate, None, refused)
            return 200 if duplicate else 202, answer
        if refused:
            more: dict[str, Any] = {"paths": invalid} if invalid else {}
            raise Refusal(
                422, "No wanted workflow can be started.", delivery=taking.delivery, refused=refused, **more
            )
        taking.verdict = "ignored"
        taking.reason = taking.reason or f'no workflow has a trigger for source "{taking.source}"'
        logger.info("webhook.ignored", **taking.facts, reason=_bounded(taking.reason))
        return 200, HookAnswer(taking.delivery, [], False, _bounded(taking.reason))

    def _refuse(self, taking: _Taking, status: int, exc: Exception) -> None:
        """Say in inbox and log why; neither quotes a body that nobody vouches for, the log none at all."""
        if status == 405:
            return
        taking.verdict = VERDICTS.get(status, "refused" if status < 500 else "unavailable")
        if taking.secret is not None and status == 404:
            taking.verdict = "refused"
        told = exc.detail if isinstance(exc, Refusal) else str(exc) if isinstance(exc, DirectorError) else ""
        taking.reason = taking.reason or told or f"a bug of the service: {type(exc).__name__}"
        facts = {**taking.facts, "status": status, "size": len(taking.body)}
        if taking.verdict == "refused":
            logger.warning("webhook.refused", **facts, kind=type(exc).__name__)
        else:
            logger.warning(f"webhook.{taking.verdict}", **facts, reason=taking.reason)

    async def replay(self, entry: Delivery, body: bytes | None) -> tuple[int, HookAnswer]:
        """Do what a delivery of the inbox wants, as if it were new. Raises Conflict when it cannot be played."""
        document = deliveries.replayed(entry, body)
        taking = _Taking({"path": f"/hooks/{entry.source}", "headers": [], "method": "POST"})
        taking.delivery, taking.event, taking.body = entry.delivery, entry.event, body or b""
        self._source(taking)
        return await self._do(taking, document, None, False, f"replay of delivery {entry.id}")

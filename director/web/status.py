"""The service at a glance: status, sources, health."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from director import states
from director.access import Grant
from director.errors import StoreUnavailable
from director.models import Workflow, duration_s, time_ms, time_text
from director.store.shapes import ScheduleState, StoreState, WorkflowState
from director.web import schedules, shapes
from director.web.problems import Refusal
from director.web.service import Service

GLANCE: dict[str, Any] = {"scope": "read", "glance": True}
"""Options of what DIRECTOR_PUBLIC_STATUS opens."""


@get("/status", summary="Everything at a glance", operation_id="GetStatus", **GLANCE, bound="handler")
async def status(
    request: Request[Any, Any, Any], service: NamedDependency[Service], grant: NamedDependency[Grant | None]
) -> Response[shapes.Status]:
    """Return workers, queue, problems and a line for each workflow; `ETag` for what changes rarely."""
    workflows = service.definitions.project.workflows
    if grant is not None:
        workflows = {name: workflow for name, workflow in workflows.items() if grant.covers(name)}
    known = await service.do(service.store.state(list(workflows)))
    due = await schedules.states(service, workflows.values())
    found = problems_of(service, known)
    if not await _broker_answers(service):
        found.append(f"The broker {service.settings.broker_name} does not answer; what it has to carry waits.")
    shape = shapes.Status(
        at=time_text(int(time.time() * 1000)) or "",
        mode="embedded" if service.settings.embedded else "redis",
        workers=known.workers,
        queued=known.queued,
        oldest_queued_s=known.oldest_queued_s,
        problems=known_to(grant, found),
        workflows={name: _line(state, workflows[name], due) for name, state in known.workflows.items()},
    )
    return _tagged(request, shape, msgspec.structs.replace(shape, at="", oldest_queued_s=None))


@get(
    "/status/{workflow:str}",
    summary="One workflow at a glance",
    operation_id="GetWorkflowStatus",
    **GLANCE,
    bound="path",
)
async def workflow_status(
    request: Request[Any, Any, Any],
    service: NamedDependency[Service],
    workflow: FromPath[str],
    strict: FromQuery[bool] = False,
    max_age: FromQuery[str | None] = None,
) -> Response[shapes.WorkflowStatus]:
    """Return a workflow's line. `strict=1`: 503 when the last run failed or no success is young enough."""
    known = service.definitions.workflow(workflow)
    age = duration_s(max_age) if max_age is not None else None
    if max_age is not None and age is None:
        raise Refusal(400, f'max_age is "{max_age}"; expected a time such as 90s, 15m, 26h or 7d.')
    state = (await service.do(service.store.state([workflow]))).workflows[workflow]
    line = _line(state, known, await schedules.states(service, [known]))
    success, wrong = line.last_success_at, ""
    if line.status == states.FAILED:
        wrong = f"The last run of {workflow}, {line.last_run}, has failed."
    elif age is not None and (not success or time_ms(success) / 1000 < time.time() - age):
        wrong = f"{workflow} has not succeeded for {max_age}; the last time was {success or 'never'}."
    if strict and wrong:
        raise Refusal(503, wrong, workflow=msgspec.to_builtins(line))
    return _tagged(request, line, line)


def _line(state: WorkflowState, workflow: Workflow, due: Mapping[str, ScheduleState]) -> shapes.WorkflowStatus:
    return shapes.WorkflowStatus(**msgspec.structs.asdict(state), next_due=schedules.next_due(workflow, due))


def _tagged(request: Request[Any, Any, Any], shape: Any, stable: Any) -> Response[Any]:
    """Answer 304 when the caller has it already; `stable` is the shape without what time alone changes."""
    tag = f'"{hashlib.sha256(msgspec.json.encode(stable)).hexdigest()[:20]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(None, status_code=304, headers=headers)
    return Response(shape, headers=headers)


def known_to(grant: Grant | None, problems: list[str]) -> list[str]:
    """Return problems as a caller may see them: they name any workflow."""
    if not problems or (grant is not None and not grant.workflows):
        return problems
    return [f"{len(problems)} problem{'s' * (len(problems) != 1)}; a token for all workflows can see more."]


def problems_of(service: Service, known: StoreState | None = None) -> list[str]:
    """Return what a person should look at, a sentence each."""
    project = service.definitions.project
    found = [*service.settings.warnings, *map(str, project.problems)]
    found += map(str, (*service.definitions.source_problems(), *service.task_problems))
    if known is not None and known.queued and not known.workers:
        found.append(f"{known.queued} task runs wait and no worker has been seen for 30 s.")
    return found


@get("/sources", summary="Who may send webhooks", operation_id="ListSources", scope="read")
async def sources(service: NamedDependency[Service]) -> shapes.SourceList:
    """Return every source, where it sends to, and whether it is open."""
    definitions = service.definitions
    return shapes.SourceList(
        sources=[
            shapes.SourceView(
                name=source.name,
                scheme=source.preset,
                url=f"{service.settings.public_url or ''}/hooks/{source.name}",
                open=definitions.is_open(source),
                secrets=[
                    shapes.SecretView(name, bool(secret))
                    for name, secret in zip(source.secrets, definitions.secrets(source), strict=True)
                ],
            )
            for source in definitions.known_sources()
        ]
    )


@get("/health/live", summary="The process is up", operation_id="HealthLive", open=True)
async def live() -> dict[str, str]:
    """Answer always."""
    return {"status": "live"}


@get("/health/ready", summary="Store and broker answer", operation_id="HealthReady", open=True)
async def ready(service: NamedDependency[Service]) -> dict[str, str]:
    """Answer 200 when the store does and the broker lets us connect, else 503."""
    try:
        await service.do(service.store.state([]))
    except StoreUnavailable:
        raise StoreUnavailable("The store does not answer.") from None  # anybody may ask: not where it is
    if not await _broker_answers(service):
        raise StoreUnavailable("The broker does not answer.")
    return {"status": "ready"}


async def _broker_answers(service: Service) -> bool:
    settings = service.settings
    if settings.embedded or settings.broker_is_store:
        return True  # asked with the store
    return await asyncio.to_thread(answers, settings.broker_uri or "")


def answers(url: str) -> bool:
    """Return whether a store or broker lets us connect, or a folder write; their clients take 0.1 s to import."""
    parts = urlsplit(url)
    if not parts.hostname:
        # The first who publishes or works makes the folder.
        missing = parts.scheme == "filesystem" and not os.path.exists(parts.path)
        return missing or os.access(parts.path, os.W_OK)
    port = parts.port or {"amqp": 5672, "amqps": 5671}.get(parts.scheme, 6379)
    try:
        socket.create_connection((parts.hostname, port), timeout=0.5).close()
    except OSError:
        return False
    return True


HANDLERS = [status, workflow_status, sources, live, ready]

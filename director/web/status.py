"""The service at a glance: status, sources, health."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery

from director import states
from director.errors import StoreUnavailable
from director.store.base import StoreState
from director.web.problems import Refusal
from director.web.service import Service
from director.web.shapes import SecretShape, SourceList, SourceShape, Status, WorkflowStatus, time_text

_AGE = re.compile(r"(\d{1,9})([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@get("/status", summary="Everything at a glance", operation_id="GetStatus")
async def status(request: Request[Any, Any, Any], state: State) -> Response[Status]:
    """Return workers, queue, problems and a line for each workflow; `ETag` for what changes rarely."""
    service: Service = state.service
    known = await service.calls.do(service.store.state(list(service.definitions.project.workflows)))
    shape = Status(
        at=time_text(int(time.time() * 1000)) or "",
        mode="embedded" if service.settings.embedded else "redis",
        workers=known.workers,
        queued=known.queued,
        oldest_queued_s=known.oldest_queued_s,
        problems=problems_of(service, known),
        workflows=_lines(known),
    )
    return _tagged(request, shape, msgspec.structs.replace(shape, at="", oldest_queued_s=None))


@get("/status/{workflow:str}", summary="One workflow at a glance", operation_id="GetWorkflowStatus")
async def workflow_status(
    request: Request[Any, Any, Any],
    state: State,
    workflow: FromPath[str],
    strict: FromQuery[bool] = False,
    max_age: FromQuery[str | None] = None,
) -> Response[WorkflowStatus]:
    """Return a workflow's line. `strict=1`: 503 when the last run failed or no success is young enough."""
    service: Service = state.service
    service.definitions.workflow(workflow)
    oldest_ms = _age_ms(max_age)
    known = await service.calls.do(service.store.state([workflow]))
    line = _lines(known)[workflow]
    success = known.workflows[workflow].last_success_at
    wrong = ""
    if line.status == states.FAILED:
        wrong = f"The last run of {workflow}, {line.last_run}, has failed."
    elif oldest_ms is not None and (success is None or success < time.time() * 1000 - oldest_ms):
        wrong = f"{workflow} has not succeeded for {max_age}; the last time was {time_text(success) or 'never'}."
    if strict and wrong:
        raise Refusal(503, wrong, workflow=msgspec.to_builtins(line))
    return _tagged(request, line, line)


def _age_ms(text: str | None) -> int | None:
    if text is None:
        return None
    found = _AGE.fullmatch(text)
    if not found:
        raise Refusal(400, f'max_age is "{text}"; expected a time such as 90s, 15m, 26h or 7d.')
    return int(found[1]) * _UNITS[found[2]] * 1000


def _tagged(request: Request[Any, Any, Any], shape: Any, stable: Any) -> Response[Any]:
    """Answer 304 when the caller has it already; `stable` is the shape without what time alone changes."""
    tag = f'"{hashlib.sha256(msgspec.json.encode(stable)).hexdigest()[:20]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(None, status_code=304, headers=headers)
    return Response(shape, headers=headers)


def _lines(known: StoreState) -> dict[str, WorkflowStatus]:
    return {
        name: WorkflowStatus(
            status=line.status,
            last_run=line.last_run,
            last_success_at=time_text(line.last_success_at),
            active=line.active,
            next_due=None,
        )
        for name, line in known.workflows.items()
    }


def problems_of(service: Service, known: StoreState | None = None) -> list[str]:
    """Return what a person should look at, a sentence each."""
    found = [*service.settings.warnings, *map(str, service.definitions.project.problems)]
    for name in service.definitions.closed_sources():
        variables = " or ".join(service.definitions.project.sources[name].secrets)
        found.append(f"Source {name} is closed: set {variables}.")
    if known is not None and known.queued and not known.workers:
        found.append(f"{known.queued} task runs wait and no worker has been seen for 30 s.")
    return found


@get("/sources", summary="Who may send webhooks", operation_id="ListSources")
async def sources(state: State) -> SourceList:
    """Return every source, where it sends to, and whether it is open."""
    service: Service = state.service
    closed = service.definitions.closed_sources()
    environ = service.settings.environ
    return SourceList(
        sources=[
            SourceShape(
                name=name,
                scheme=source.scheme if isinstance(source.scheme, str) else source.scheme.get("scheme", "hmac"),
                url=f"{service.settings.public_url or ''}/hooks/{name}",
                open=name not in closed,
                secrets=[
                    SecretShape(name=variable, set=bool(environ.get(variable, "").strip()))
                    for variable in source.secrets
                ],
            )
            for name, source in service.definitions.project.sources.items()
        ]
    )


@get("/health/live", summary="The process is up", operation_id="HealthLive")
async def live() -> dict[str, str]:
    """Answer always."""
    return {"status": "live"}


@get("/health/ready", summary="The store can be reached", operation_id="HealthReady")
async def ready(state: State) -> dict[str, str]:
    """Answer 200 when the store does, else 503."""
    service: Service = state.service
    try:
        await service.calls.do(service.store.ping())
    except StoreUnavailable:
        raise StoreUnavailable(f"The store at {service.settings.store_name} does not answer.") from None
    return {"status": "ready"}

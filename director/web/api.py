"""Workflows and runs."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery, QueryParameter

from director import states
from director.definitions import describe
from director.errors import InvalidPayload
from director.models import Workflow
from director.store.base import Dedupe, Filter, WorkflowState
from director.web import bodies
from director.web.problems import Refusal
from director.web.service import Service
from director.web.shapes import (
    FullRun,
    RelaunchedShape,
    RunList,
    StartedShape,
    WorkflowList,
    WorkflowShape,
    full_run,
    run_shape,
    time_text,
)

IDEMPOTENCY_S = 72 * 3600
MAX_WAIT_S = 60.0
MAX_LIMIT = 200
WAIT_LOOK_S = (0.01, 0.25)
"""How often a waiting request looks: at first, and at the most."""
Anything = Request[Any, Any, Any]


async def read_object(request: Anything) -> dict[str, Any]:
    """Return the body as an object; an empty body is `{}`.

    Raises:
        Refusal: 400 for what is no JSON, 408, 413, 415 as in `bodies.read`.
        InvalidPayload: it is JSON, but no object.
    """
    try:
        body = await bodies.read(request.scope["headers"], request.receive)
    except bodies.Disconnected:
        raise Refusal(400, "The body ended early.") from None
    if not body.strip():
        return {}
    value = bodies.decode_json(body)
    if not isinstance(value, dict):
        kinds = {list: "an array", str: "a text", bool: "a boolean", type(None): "null"}
        kind = kinds.get(type(value), "a number")
        raise InvalidPayload(
            f'The body must be an object such as {{"key": "value"}}; this is {kind}.', [f"$: is {kind}"]
        )
    return value


def find(service: Service, name: str) -> Workflow:
    """Return a workflow that is in service."""
    return service.definitions.workflow(name)


@get("/workflows", summary="All workflows", operation_id="ListWorkflows")
async def list_workflows(state: State) -> WorkflowList:
    """Return every workflow in service with its newest run, and every problem of the files."""
    service: Service = state.service
    project = service.definitions.project
    known = await service.calls.do(service.store.state(list(project.workflows)))
    return WorkflowList(
        workflows=[_workflow(workflow, known.workflows[name]) for name, workflow in project.workflows.items()],
        problems=[str(problem) for problem in project.problems],
    )


@get("/workflows/{name:str}", summary="One workflow", operation_id="GetWorkflow")
async def get_workflow(state: State, name: FromPath[str]) -> WorkflowShape:
    """Return a workflow's definition and its newest run."""
    service: Service = state.service
    workflow = find(service, name)
    known = await service.calls.do(service.store.state([name]))
    return _workflow(workflow, known.workflows[name])


def _workflow(workflow: Workflow, line: WorkflowState) -> WorkflowShape:
    shown = {
        **describe(workflow),
        "status": line.status,
        "last_run": line.last_run,
        "last_success_at": time_text(line.last_success_at),
        "active": line.active,
        "next_due": None,
    }
    return msgspec.convert(shown, WorkflowShape)


@post(
    "/workflows/{name:str}/runs",
    summary="Start a run; the body is its payload",
    status_code=202,
    operation_id="StartRun",
)
async def start_run(
    request: Anything,
    state: State,
    name: FromPath[str],
    wait: Annotated[float, QueryParameter(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the end")] = 0,
    comment: Annotated[str, QueryParameter(max_length=1000)] = "",
) -> Response[StartedShape | FullRun]:
    """Start a run: 202, or with `wait` 200 and the whole run once it has ended.

    With an `Idempotency-Key` (72 h) the same payload gives 200 and the same run, another one 422.
    """
    service: Service = state.service
    payload = await read_object(request)
    workflow = find(service, name)
    steps = service.engine.start(
        workflow, payload, trigger={"kind": "api"}, comment=comment, dedupe=_idempotency(request.headers, payload)
    )
    started = await service.calls.run(steps)
    if started.conflict:
        raise InvalidPayload(
            f"This Idempotency-Key has started run {started.run_id} with another payload. Nothing was started."
        )
    url = service.settings.run_url(started.run_id)
    status = await _wait(service, started.run_id, wait) if wait or started.duplicate else states.QUEUED
    if wait and status in states.ENDED:
        run = await service.calls.do(service.store.get(started.run_id))
        return Response(full_run(run, service.settings), status_code=200)
    shape = StartedShape(id=started.run_id, workflow=name, status=status, url=url)
    return Response(shape, status_code=200 if started.duplicate else 202, headers={"Location": url})


def _idempotency(headers: Mapping[str, str], payload: Mapping[str, Any]) -> Dedupe | None:
    key = headers.get("idempotency-key")
    if not key:
        return None
    if len(key) > 255:
        raise Refusal(400, "The Idempotency-Key has more than 255 characters.")
    canonical = msgspec.json.encode(payload, order="deterministic")
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Dedupe(key=f"api:{name}", ttl_s=IDEMPOTENCY_S, fingerprint=hashlib.sha256(canonical).hexdigest()[:16])


async def _wait(service: Service, run_id: str, seconds: float) -> str:
    """Return the run's status once it has ended, or as it is when the time is over.

    It looks after 10 ms, then less and less often, at last four times a second: a short run is answered at
    once, and a long one costs little.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    pause_s, longest_s = WAIT_LOOK_S
    while True:
        status = await service.calls.do(service.store.status_of(run_id))
        left_s = deadline - asyncio.get_running_loop().time()
        if status in states.ENDED or left_s <= 0:
            return status
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, longest_s)


@get("/workflows/{name:str}/runs", summary="Runs of a workflow", operation_id="ListRunsOfWorkflow")
async def list_runs_of_workflow(
    state: State,
    name: FromPath[str],
    status: FromQuery[str | None] = None,
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT)] = 50,
) -> RunList:
    """Return runs, newest first. A workflow that is gone still has its runs."""
    page = await _list(state.service, name, status, since, until, cursor, limit)
    if not page.runs and not cursor and name not in state.service.definitions.project.workflows:
        find(state.service, name)
    return page


@get("/runs", summary="Runs, newest first", operation_id="ListRuns")
async def list_runs(
    state: State,
    workflow: FromQuery[str | None] = None,
    status: FromQuery[str | None] = None,
    since: FromQuery[str | None] = None,
    until: FromQuery[str | None] = None,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT)] = 50,
) -> RunList:
    """Return runs, filtered; `next` is the cursor of the next page."""
    return await _list(state.service, workflow, status, since, until, cursor, limit)


async def _list(
    service: Service,
    workflow: str | None,
    status: str | None,
    since: str | None,
    until: str | None,
    cursor: str | None,
    limit: int,
) -> RunList:
    if status is not None and status not in states.RUN_STATES:
        raise Refusal(400, f'There is no status "{status}"; there are {", ".join(states.RUN_STATES)}.')
    which = Filter(
        workflow=workflow,
        status=status,
        since=_instant("since", since),
        until=_instant("until", until),
        after=_cursor(cursor),
        limit=limit,
    )
    runs, following = await service.calls.do(service.store.list(which))
    return RunList(runs=[run_shape(run, service.settings) for run in runs], next=following)


def _cursor(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise Refusal(400, f'cursor is "{text}"; expected the `next` of an earlier page.') from None


def _instant(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
        if at.tzinfo is not None:
            return int(at.timestamp() * 1000)
    except (ValueError, OverflowError):
        pass
    raise Refusal(400, f'{name} is "{text}"; expected a time such as 2030-01-31T08:00:00Z.')


@get("/runs/{run_id:str}", summary="All of a run", operation_id="GetRun")
async def get_run(state: State, run_id: FromPath[str]) -> FullRun:
    """Return a run with payload, task runs, results and errors."""
    service: Service = state.service
    return full_run(await service.calls.do(service.store.get(run_id)), service.settings)


@post(
    "/runs/{run_id:str}/relaunch", summary="Run again what is needed", status_code=202, operation_id="RelaunchRun"
)
async def relaunch_run(
    request: Anything, state: State, run_id: FromPath[str], plan: FromQuery[bool] = False
) -> Response[RelaunchedShape]:
    """Relaunch from what failed, from the start, or from a task; `plan=1` only says what would run."""
    service: Service = state.service
    order = await read_object(request)
    unknown = sorted(set(order) - {"from", "payload"})
    origin, payload = order.get("from", "failed"), order.get("payload")
    if unknown or not isinstance(origin, str) or not isinstance(payload, dict | None):
        raise InvalidPayload(
            'The body must be {"from": "failed", "start" or a task\'s key, "payload": an object}, both optional.',
            [f"$.{key}: unknown" for key in unknown],
        )
    done = await service.calls.run(
        service.engine.relaunch(
            run_id,
            service.definitions.workflow,
            origin=origin,
            payload=payload,
            trigger={"kind": "api"},
            plan_only=plan,
        )
    )
    url = service.settings.run_url(done.id)
    shape = RelaunchedShape(
        id=done.id, url=url, rerun=list(done.rerun), keep=list(done.keep), note=done.note or None
    )
    return Response(shape, status_code=200 if plan else 202, headers={} if plan else {"Location": url})


@post("/runs/{run_id:str}/cancel", summary="End a run at once", status_code=202, operation_id="CancelRun")
async def cancel_run(state: State, run_id: FromPath[str]) -> StartedShape:
    """Cancel a run that has not ended."""
    service: Service = state.service
    await service.calls.run(service.engine.cancel(run_id))
    run = await service.calls.do(service.store.get(run_id))
    url = service.settings.run_url(run_id)
    return StartedShape(id=run_id, workflow=run.workflow, status=states.CANCELED, url=url)


HANDLERS = [
    list_workflows,
    get_workflow,
    start_run,
    list_runs_of_workflow,
    list_runs,
    get_run,
    relaunch_run,
    cancel_run,
]

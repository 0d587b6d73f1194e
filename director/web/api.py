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
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from director import states
from director.access import Grant
from director.engine import new_token
from director.errors import InvalidPayload, NotFound
from director.models import FullRun, Plan, Run, Workflow
from director.store.shapes import Dedupe, Filter, ScheduleState, WorkflowState
from director.web import auth, bodies, schedules, shapes
from director.web.problems import Refusal
from director.web.service import Service
from director.web.status import known_to

IDEMPOTENCY_S = 72 * 3600
MAX_WAIT_S = 60.0
MAX_LIMIT = 200
WAIT_LOOK_S = (0.01, 0.25)
"""How often a waiting request looks: at first, and at the most."""
AnyRequest = Request[Any, Any, Any]
Wait = Annotated[float, QueryParameter(ge=0, le=MAX_WAIT_S, description="Seconds to wait for the end")]
Comment = Annotated[str, QueryParameter(max_length=1000)]
Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT)]
Text = FromQuery[str | None]


async def read_object(request: AnyRequest) -> tuple[dict[str, Any], int]:
    """Return the body as an object, and its size; an empty body is `{}`.

    Raises:
        Refusal: 400 for what is no JSON, 408, 413, 415 as in `bodies.read`.
        InvalidPayload: it is JSON, but no object.
    """
    body = await bodies.read(request.scope["headers"], request.receive)
    value = bodies.decode_json(body) if body.strip() else {}
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a text", bool: "a boolean", type(None): "null"}.get(
            type(value), "a number"
        )
        raise InvalidPayload(
            f'The body must be an object such as {{"key": "value"}}; this is {kind}.', [f"$: is {kind}"]
        )
    return value, len(body)


def shown(run: Any, service: Service) -> Any:
    """Return a run with its address."""
    return msgspec.structs.replace(run, url=service.settings.run_url(run.id))


@get("/workflows", summary="All workflows", operation_id="ListWorkflows", scope="read", bound="handler")
async def list_workflows(service: NamedDependency[Service], grant: NamedDependency[Grant]) -> shapes.WorkflowList:
    """Return every workflow in service with its newest run, and every problem of the files."""
    project = service.definitions.project
    workflows = {name: workflow for name, workflow in project.workflows.items() if grant.covers(name)}
    known = await service.do(service.store.state(list(workflows)))
    due = await schedules.states(service, workflows.values())
    views = [_view(workflow, known.workflows[name], due) for name, workflow in workflows.items()]
    return shapes.WorkflowList(workflows=views, problems=known_to(grant, list(map(str, project.problems))))


@get("/workflows/{name:str}", summary="One workflow", operation_id="GetWorkflow", scope="read", bound="path")
async def get_workflow(service: NamedDependency[Service], name: FromPath[str]) -> shapes.WorkflowView:
    """Return a workflow's definition and its newest run."""
    workflow = service.definitions.workflow(name)
    known = await service.do(service.store.state([name]))
    return _view(workflow, known.workflows[name], await schedules.states(service, [workflow]))


def _view(workflow: Workflow, known: WorkflowState, due: Mapping[str, ScheduleState]) -> shapes.WorkflowView:
    shown = msgspec.structs.asdict(workflow) | msgspec.structs.asdict(known)
    return shapes.WorkflowView(**shown, next_due=schedules.next_due(workflow, due))


@post(
    "/workflows/{name:str}/runs",
    summary="Start a run; the body is its payload",
    status_code=202,
    operation_id="StartRun",
    scope="run",
    bound="path",
)
async def start_run(
    request: AnyRequest,
    service: NamedDependency[Service],
    name: FromPath[str],
    wait: Wait = 0,
    comment: Comment = "",
) -> Response[shapes.StartedRun | FullRun]:
    """Start a run: 202, or with `wait` 200 and the whole run once it has ended.

    With an `Idempotency-Key` (72 h) the same payload gives 200 and the same run, another one 422.
    """
    payload, size = await read_object(request)
    workflow, dedupe = service.definitions.workflow(name), _idempotency(request.headers, payload)
    more = {"trigger": {"kind": "api"}, "comment": comment, "dedupe": dedupe}
    started = await service.start(workflow, payload, size, **more)
    if started.conflict:
        raise InvalidPayload(
            f"This Idempotency-Key has started run {started.run_id} with another payload. Nothing was started."
        )
    status: str | None = states.QUEUED
    if wait or started.duplicate:
        try:
            run = await _wait(service, started.run_id, wait)
        except NotFound:  # of the run that the first copy started nothing is left but its id
            status = None
        else:
            if wait and run.status in states.ENDED:
                return Response(shown(run, service), status_code=200)
            status = run.status
    url = service.settings.run_url(started.run_id)
    shape = shapes.StartedRun(id=started.run_id, workflow=name, status=status, url=url)
    return Response(shape, status_code=200 if started.duplicate else 202, headers={"Location": url})


def _idempotency(headers: Mapping[str, str], payload: Mapping[str, Any]) -> Dedupe | None:
    key = headers.get("idempotency-key")
    if not key:
        return None
    if len(key) > 255:
        raise Refusal(400, "The Idempotency-Key has more than 255 characters.")
    canonical = msgspec.json.encode(payload, order="deterministic")
    name, fingerprint = (hashlib.sha256(text).hexdigest() for text in (key.encode(), canonical))
    # No source can have such a name, whose deliveries are remembered beside.
    return Dedupe(key=f":api:{name[:32]}", ttl_s=IDEMPOTENCY_S, fingerprint=fingerprint[:16])


async def _wait(service: Service, run_id: str, seconds: float) -> FullRun:
    """Return the run once it has ended, or as it is when the time is over.

    It looks after 10 ms, then less and less often, at last four times a second: a short run is answered at
    once, and a long one costs little.
    """
    clock = asyncio.get_running_loop().time
    deadline, (pause_s, longest_s) = clock() + seconds, WAIT_LOOK_S
    while True:
        run, _ = await service.do(service.store.get(run_id))
        left_s = deadline - clock()
        if run.status in states.ENDED or left_s <= 0:
            return run
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, longest_s)


@get(
    "/workflows/{name:str}/runs",
    summary="Runs of a workflow",
    operation_id="ListRunsOfWorkflow",
    scope="read",
    bound="path",
)
async def list_runs_of_workflow(
    service: NamedDependency[Service],
    name: FromPath[str],
    status: Text = None,
    since: Text = None,
    until: Text = None,
    cursor: Text = None,
    limit: Limit = 50,
) -> shapes.RunList:
    """Return runs, newest first. A workflow that is gone still has its runs."""
    times = _instant("since", since), _instant("until", until)
    page = await _list(service, Filter(name, status, *times, _cursor(cursor), limit))
    if not page.runs and not cursor:
        service.definitions.workflow(name)
    return page


@get("/runs", summary="Runs, newest first", operation_id="ListRuns", scope="read", bound="handler")
async def list_runs(
    service: NamedDependency[Service],
    grant: NamedDependency[Grant],
    workflow: Text = None,
    status: Text = None,
    since: Text = None,
    until: Text = None,
    cursor: Text = None,
    limit: Limit = 50,
) -> shapes.RunList:
    """Return runs, filtered; `next` is the cursor of the next page."""
    if grant.workflows and workflow is None:
        if len(grant.workflows) > 1:
            names = ", ".join(grant.workflows)
            raise Refusal(403, f"The token is bound to {names}; add `?workflow=` with one of them.")
        workflow = grant.workflows[0]
    auth.hold(grant, workflow or "")
    times = _instant("since", since), _instant("until", until)
    return await _list(service, Filter(workflow, status, *times, _cursor(cursor), limit))


async def _list(service: Service, which: Filter) -> shapes.RunList:
    if which.status is not None and which.status not in states.RUN_STATES:
        raise Refusal(400, f'There is no status "{which.status}"; there are {", ".join(states.RUN_STATES)}.')
    runs, following = await service.do(service.store.list(which))
    return shapes.RunList(runs=[shown(run, service) for run in runs], next=following)


def _cursor(text: str | None) -> str | None:
    try:
        return str(uuid.UUID(text)) if text is not None else None
    except ValueError:
        raise Refusal(400, f'cursor is "{text}"; expected the `next` of an earlier page.') from None


def _instant(name: str, text: str | None) -> int | None:
    """Return a time with a zone as ms."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
        if at.tzinfo is not None:
            return int(at.timestamp() * 1000)
    except (ValueError, OverflowError):
        pass
    raise Refusal(400, f'{name} is "{text}"; expected a time such as 2030-01-31T08:00:00Z.')


async def _load(service: Service, grant: Grant, run_id: str) -> tuple[FullRun, Plan]:
    """Return a run that the caller may see, and its plan."""
    run, pinned = await service.do(service.store.get(run_id))
    auth.hold(grant, run.workflow)
    return run, pinned


@get("/runs/{run_id:str}", summary="All of a run", operation_id="GetRun", scope="read", bound="handler")
async def get_run(
    service: NamedDependency[Service], grant: NamedDependency[Grant], run_id: FromPath[str]
) -> FullRun:
    """Return a run with payload, task runs, results and errors."""
    run, _ = await _load(service, grant, run_id)
    found: FullRun = shown(run, service)
    return found


@post(
    "/runs/{run_id:str}/relaunch",
    summary="Run again what is needed",
    status_code=202,
    operation_id="RelaunchRun",
    scope="run",
    bound="handler",
)
async def relaunch_run(
    request: AnyRequest,
    service: NamedDependency[Service],
    grant: NamedDependency[Grant],
    run_id: FromPath[str],
    plan: FromQuery[bool] = False,
) -> Response[shapes.Relaunch]:
    """Relaunch from what failed, from the start, or from a task; `plan=1` only says what would run."""
    order, _ = await read_object(request)
    unknown = sorted(set(order) - {"from", "payload"})
    origin, payload = order.get("from", "failed"), order.get("payload")
    wrong = [f"$.{key}: unknown" for key in unknown]
    wrong += [] if isinstance(origin, str) else ["$.from: no text"]
    wrong += [] if isinstance(payload, dict | None) else ["$.payload: no object"]
    if wrong:
        raise InvalidPayload(
            'The body must be {"from": "failed", "start" or a task\'s key, "payload": an object}, both optional.',
            wrong,
        )
    run, pinned = await _load(service, grant, run_id)
    engine, find = await service.informed(), service.definitions.workflow
    done = engine.relaunch(run, pinned, find, origin=origin, payload=payload, trigger={"kind": "api"})
    if not plan:
        await service.do(service.store.carry_out(done.order))
    url = service.settings.run_url(done.id)
    shape = shapes.Relaunch(id=done.id, url=url, rerun=done.rerun, keep=done.keep, note=done.note or None)
    return Response(shape, status_code=200 if plan else 202, headers={} if plan else {"Location": url})


@post(
    "/runs/{run_id:str}/cancel",
    summary="End a run at once",
    status_code=202,
    operation_id="CancelRun",
    scope="run",
    bound="handler",
)
async def cancel_run(
    service: NamedDependency[Service], grant: NamedDependency[Grant], run_id: FromPath[str]
) -> shapes.StartedRun:
    """Cancel a run that has not ended."""
    if grant.workflows:
        await _load(service, grant, run_id)  # a run's workflow never changes
    await service.do(service.store.cancel(run_id, new_token()))
    run: Run = (await service.do(service.store.get(run_id)))[0]
    url = service.settings.run_url(run_id)
    return shapes.StartedRun(id=run_id, workflow=run.workflow, status=run.status, url=url)


HANDLERS = [
    *(list_workflows, get_workflow, start_run, list_runs_of_workflow),
    *(list_runs, get_run, relaunch_run, cancel_run),
]

"""Schedules: what comes when, and a clock from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from litestar import get, post
from litestar.di import NamedDependency

from director.access import Grant
from director.models import Workflow
from director.store.shapes import ScheduleState
from director.web import shapes
from director.web.service import Service


async def states(service: Service, workflows: Iterable[Workflow]) -> dict[str, ScheduleState]:
    """Return what the store knows of the schedules of some workflows, by id."""
    ids = [schedule.id for workflow in workflows for schedule in workflow.periodic]
    known = await service.do(service.store.schedules(ids)) if ids else ()
    return dict(zip(ids, known, strict=True))


def next_due(workflow: Workflow, known: Mapping[str, ScheduleState]) -> str | None:
    """Return when a workflow is due next by any of its schedules."""
    return min(
        (due for one in workflow.periodic if workflow.enabled and one.enabled and (due := known[one.id].next_due)),
        default=None,
    )


@get("/schedules", summary="What starts when", operation_id="ListSchedules", scope="read", bound="handler")
async def list_schedules(service: NamedDependency[Service], grant: NamedDependency[Grant]) -> shapes.ScheduleList:
    """Return every schedule, its next due time, its last run and what it has skipped."""
    workflows = [one for one in service.definitions.project.workflows.values() if grant.covers(one.name)]
    known = await states(service, workflows)
    return shapes.ScheduleList(
        schedules=[
            shapes.ScheduleView(
                id=one.id,
                workflow=workflow.name,
                crontab=one.crontab,
                interval=one.interval_s,
                timezone=one.timezone,
                payload=one.payload,
                catchup=one.catchup,
                overlap=one.overlap,
                enabled=workflow.enabled and one.enabled,
                next_due=known[one.id].next_due if workflow.enabled and one.enabled else None,
                last_due=known[one.id].last_due,
                last_run=known[one.id].last_run,
                skipped=known[one.id].skipped,
                last_skip=known[one.id].last_skip,
            )
            for workflow in workflows
            for one in workflow.periodic
        ]
    )


@post("/tick", summary="Fire what is due, mend what is stuck", status_code=200, operation_id="Tick", scope="run")
async def tick(service: NamedDependency[Service]) -> shapes.Ticked:
    """Make one pass of the scheduler, for a clock outside: where no scheduler runs, or the machine sleeps."""
    done = await service.tick()
    workflows = service.definitions.project.workflows.values()
    known = await states(service, workflows)
    return shapes.Ticked(
        fired=len(done.fired),
        requeued=len(done.swept.lost) + len(done.swept.resent) + len(done.swept.released),
        next_due=min((due for workflow in workflows if (due := next_due(workflow, known))), default=None),
    )


HANDLERS = [list_schedules, tick]

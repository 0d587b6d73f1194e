"""rq-scheduler's timetable, on Redis: which schedules there are, and when each is due next."""

from __future__ import annotations

from typing import Any

import redis
import rq_scheduler
from rq.job import Job
from rq.serializers import JSONSerializer

from director.models import Schedule


class WorkflowScheduler(rq_scheduler.Scheduler):  # type: ignore[misc]
    """rq-scheduler's timetable, under our prefix: its due times and its job hashes, as JSON.

    What fires is our own script. Of rq-scheduler's loop nothing is left: it forgets and doubles schedules
    when it is killed, ends when Redis is away, and costs two commands a pass.
    """

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__(queue_name="director", connection=redis.Redis.from_url(url), interval=1)
        self.scheduler_key = f"{prefix}rq:scheduler"
        self.scheduler_lock_key = f"{prefix}rq:scheduler_lock"
        self.scheduled_jobs_key = f"{prefix}rq:scheduler:scheduled_jobs"
        self.redis_scheduler_namespace_prefix = f"{prefix}rq:scheduler_instance:"
        self.job_class = type("WorkflowJob", (_JsonJob,), {"redis_job_namespace_prefix": f"{prefix}rq:job:"})

    def fields(self, workflow: str, schedule: Schedule) -> dict[str, Any]:
        """Return the hash of a schedule's job."""
        timing = {"cron_string": schedule.crontab, "interval": schedule.interval_s, "timezone": schedule.timezone}
        job = self._create_job(
            "director.workflow",
            kwargs={"workflow": workflow, "payload": dict(schedule.payload)},
            id=schedule.id,
            description=workflow,
            meta={name: value for name, value in timing.items() if value is not None},
            commit=False,
        )
        found: dict[str, Any] = job.to_dict()
        return found


class _JsonJob(Job):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{**more, "serializer": JSONSerializer})

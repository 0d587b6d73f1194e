"""The loop: what is due, what may be stuck, what is not kept any more. Any number of processes may run it.

A pass is one call that answers what is due, and one for each due time: that starts its run and moves the
schedule on in the same step (`Store.start`), so that a second scheduler, or a kill, changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from msgspec.structs import replace

from director import log, schedules
from director.definitions import Definitions
from director.engine import Engine, report
from director.errors import DirectorError
from director.models import Project, Retention, Schedule, Struct, Workflow, time_text
from director.settings import Settings
from director.store.base import Store
from director.store.shapes import PRUNE_LIMIT, SWEEP_LIMIT, Entry, Fire, Keep, Swept

PASS_S = 1.0
REFRESH_S = 120.0
"""How often the store is told that schedules are still in the files."""
PRUNE_S = 60.0
FIRST_PRUNE_S = 5.0
"""What starts has better things to do at first."""
DAY_MS = 86_400_000
CHUNK = 500

logger = log.get("director.scheduler")


class Pass(Struct, frozen=True):
    """What one pass has done."""

    fired: tuple[str, ...]
    """Runs that were started."""
    swept: Swept
    full: bool
    """Another one should follow at once."""


class Loop:
    """Fires, sweeps and prunes, in a thread of its own.

    Args:
        settings: the store's place, and how long runs are kept by default.
        store: a client of its own, or one that many threads may use.
        definitions: whose schedules fire, and which runs are kept; None: nothing fires or goes.
        on_death: called when the thread ends by an error.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        definitions: Definitions | None = None,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.failed: BaseException | None = None
        self._definitions = definitions
        self._engine = Engine()
        self._known: dict[str, tuple[Workflow, Schedule]] = {}
        self._project: object = None
        self._refreshed_at = 0.0
        self._prune_at = time.monotonic() + FIRST_PRUNE_S
        self._on_death = on_death
        self._stop = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._guarded, name="scheduler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after the pass that is underway."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(PASS_S * 5)

    def run_forever(self) -> None:
        """Make passes until `stop`; a store that is away is waited for."""
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            wait_s = self.step()

    def step(self) -> float:
        """Make one pass; return the seconds until the next one should follow."""
        try:
            done = self.make_pass()
        except DirectorError as exc:
            if not self._away:
                logger.warning("scheduler.store_away", reason=str(exc))
            self._away = True
            return PASS_S
        if self._away:
            logger.info("scheduler.store_back")
            self._away = False
        if done.full:
            return 0.0
        return min(PASS_S, PASS_S if done.swept.next_in_ms is None else done.swept.next_in_ms / 1000)

    def make_pass(self) -> Pass:
        """Start what is due, mend what is stuck; once a minute, remove what is not kept.

        Raises:
            StoreUnavailable: the store did not answer; another pass is safe.
        """
        self._look()
        swept = report(self.store.do(self.store.sweep(fires=self._definitions is not None)), "its lease ended")
        if swept.missed_until < 0:
            self._project = None
        due = [(id_, at) for id_, at in swept.due if id_ in self._known]
        fired = [run for id_, at in due for run in self._fire(id_, at, swept)]
        parts = (swept.lost, swept.failed, swept.released, swept.resent)
        # What has fired, here or elsewhere, may be due again before anything that this pass has seen.
        full = self._prune() or bool(due) or any(len(part) >= SWEEP_LIMIT for part in parts)
        return Pass(fired=tuple(fired), swept=swept, full=full)

    def _prune(self) -> bool:
        """Remove what is not kept, when it is time; return whether there may be more."""
        if self._definitions is None or time.monotonic() < self._prune_at:
            return False
        self._prune_at = time.monotonic() + PRUNE_S
        gone = self.store.do(self.store.prune(keeps(self._definitions.project, self.settings)))
        if gone:
            logger.info("runs.pruned", count=gone)
        if gone < PRUNE_LIMIT:
            return False
        self._prune_at = 0.0
        return True

    def _look(self) -> None:
        """Take over changed files; tell the store which schedules are somebody's."""
        if self._definitions is None:
            return
        self._definitions.refresh()
        project, now = self._definitions.project, time.monotonic()
        if project is self._project and now < self._refreshed_at + REFRESH_S:
            return
        known = {
            schedule.id: (workflow, schedule)
            for workflow in project.workflows.values()
            for schedule in workflow.periodic
            if workflow.enabled and schedule.enabled
        }
        for ids in _chunks(known):
            at, missing = self.store.do(self.store.refresh(ids))
            if missing:
                self.store.do(self.store.add(self._entries([known[id_] for id_ in missing], at)))
        self._known, self._project, self._refreshed_at = known, project, now

    def _entries(self, new: Sequence[tuple[Workflow, Schedule]], now: int) -> list[Entry]:
        entries = [Entry(schedule=one.id, due=schedules.next_due(one, now)) for _, one in new]
        if self.settings.redis_url:
            from director.scheduler import WorkflowScheduler

            timetable = WorkflowScheduler(self.settings.redis_url, self.settings.prefix)
            jobs = [timetable.fields(workflow.name, schedule) for workflow, schedule in new]
            entries = [replace(entry, job=job) for entry, job in zip(entries, jobs, strict=True)]
        return entries

    def _fire(self, id_: str, due: int, swept: Swept) -> Iterable[str]:
        """Start the runs of a schedule that is due; yield their ids."""
        workflow, schedule = self._known[id_]
        todo = schedules.firing(schedule, due, max(swept.now, due), swept.missed_until)
        times = [*todo.due, todo.next]
        reason = f"missed while no scheduler ran; catchup is {schedule.catchup}" if todo.skipped else ""
        fire = Fire(schedule=id_, was=due, due=due, next=times[0], skipped=todo.skipped, reason=reason)
        if not todo.due:
            self._skip(workflow, fire)
        for at, following in pairwise(times):
            fire = replace(fire, due=at, next=following, alone=schedule.overlap == "skip")
            if run_id := self._start(workflow, schedule, fire):
                yield run_id
            fire = replace(fire, was=following, skipped=0, reason="")

    def _start(self, workflow: Workflow, schedule: Schedule, fire: Fire) -> str | None:
        """Start one run; return its id, None when none was started."""
        if self._engine.is_stale:
            self._engine.learn(self.store.do(self.store.task_options()))
        facts = {"workflow": workflow.name, "schedule": schedule.id, "due_at": time_text(fire.due)}
        try:
            new = self._engine.fire(workflow, schedule, fire)
        except DirectorError as exc:
            self._skip(workflow, replace(fire, skipped=fire.skipped + 1, reason=str(exc)))
            return None
        started = self.store.do(self.store.start(new))
        if fire.skipped and started.refused != "moved":
            logger.warning("schedule.skipped", **facts, count=fire.skipped, reason=fire.reason)
        if started.refused == "overlap":
            logger.warning("schedule.skipped", **facts, count=1, reason="its last run is going on")
        elif not started.refused:
            logger.info("schedule.fired", **facts, run_id=started.run_id)
            return started.run_id
        return None

    def _skip(self, workflow: Workflow, fire: Fire) -> None:
        if self.store.do(self.store.skip(fire)):
            logger.warning(
                "schedule.skipped",
                workflow=workflow.name,
                schedule=fire.schedule,
                due_at=time_text(fire.was),
                count=fire.skipped,
                reason=fire.reason,
            )

    def _guarded(self) -> None:
        try:
            self.run_forever()
        except BaseException as exc:
            self.failed = exc
            logger.exception("scheduler.died")
            if self._on_death:
                self._on_death(exc)


def keeps(project: Project, settings: Settings) -> dict[str, Keep]:
    """Return which finished runs stay, by workflow, "" for every other.

    A workflow that was never read without problems keeps all it has, since what it says is not known; so do
    all others while a whole file is out of service.
    """

    def keep(of: Retention) -> Keep:
        days = settings.retention_days if of.days is None else of.days
        runs = settings.retention_runs if of.runs is None else of.runs
        return Keep(age_ms=int(days * DAY_MS) if days else None, runs=runs if runs > 0 else None)

    found = dict.fromkeys(project.broken, Keep())
    if not any(problem.file in project.broken for problem in project.problems):
        found[""] = keep(Retention())
    return found | {name: keep(workflow.retention) for name, workflow in project.workflows.items()}


def _chunks(ids: Iterable[str]) -> Iterable[Sequence[str]]:
    found = list(ids)
    return (found[first : first + CHUNK] for first in range(0, len(found), CHUNK))

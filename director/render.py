"""How runs and workflows look in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from director import plan, states
from director.models import Call, Element, FullRun, Plan, Struct, TaskRun, Workflow, time_ms, time_text

LOOK_S = 0.1
STYLE = {
    states.PENDING: ("·", "not bold"),
    states.QUEUED: ("○", "not bold"),
    states.RUNNING: ("▶", "not bold cyan"),
    states.RETRYING: ("↻", "not bold yellow"),
    states.SUCCEEDED: ("✓", "not bold green"),
    states.FAILED: ("✗", "not bold red"),
    states.CANCELED: ("■", "not bold yellow"),
    states.SKIPPED: ("-", "not bold"),
}
"""Status → mark and style."""
MAX_RESULT = 60

Look = Callable[[], tuple[FullRun, Plan]]


class Row(Struct, frozen=True):
    """A line of a run's tree: a group, a chain or a task run."""

    depth: int
    path: str
    """Groups and chains above it, and its own name: `SPREAD/CLEAN`."""
    task: TaskRun | None = None
    """None for a group or a chain."""

    def line(self, name: str, now: int) -> str:
        """Return mark, name, status, time taken, tries and result; `now` is where a running one has come to."""
        task = self.task
        if task is None:
            return f"  {name}"
        timed = task.ended_at or task.status == states.RUNNING
        took = _took(task.started_at, task.ended_at, now) if timed else ""
        tries = f"try {task.attempts}" if task.attempts > 1 else ""
        result = bytes(task.result).decode() if task.result is not None and task.status == states.SUCCEEDED else ""
        result = result if len(result) <= MAX_RESULT else result[: MAX_RESULT - 1] + "…"
        return f"{STYLE[task.status][0]} {name:<28} {task.status:<10} {took:>8}  {tries:<6} {result}".rstrip()

    def tree_line(self, now: int) -> str:
        """Return the line with its name indented."""
        return self.line("  " * self.depth + self.path.rpartition("/")[2], now)


def rows(run: FullRun, pinned: Plan, workflow: Workflow | None) -> list[Row]:
    """Return a run's lines, nested as in the workflow where that still has the same tasks."""
    tasks = [task for task in run.tasks if not task.hook]
    if workflow is not None and plan.same_shape(plan.build(workflow), pinned):
        found = list(_nested(workflow.tasks, iter(tasks), 0, ""))
    else:
        found = [Row(0, task.key, task) for task in tasks]
    return found + [Row(0, f"{task.key} (hook)", task) for task in run.tasks if task.hook]


def _nested(members: Iterable[Element], tasks: Iterator[TaskRun], depth: int, above: str) -> Iterator[Row]:
    for member in members:
        if isinstance(member, Call):
            task = next(tasks)  # they are numbered in the order of the YAML
            yield Row(depth, above + task.key, task)
        else:
            yield Row(depth, above + member.name)
            yield from _nested(member.members, tasks, depth + 1, f"{above}{member.name}/")


def definition_lines(workflow: Workflow) -> list[str]:
    """Return a workflow as a tree, its hooks and what starts it."""
    lines = [f"{workflow.name}  {workflow.description}".rstrip(), *_tree(workflow.tasks, "")]
    hooks = {"success": workflow.hooks.success, "failure": workflow.hooks.failure}
    lines += [f"on {kind}: {hook}" for kind, hook in hooks.items() if hook]
    for trigger in workflow.triggers:
        events = f" {' or '.join(trigger.events)}" if trigger.events else ""
        when, off = f" when {trigger.when}" if trigger.when else "", "" if trigger.enabled else " (disabled)"
        lines.append(f"starts on {trigger.source}{events}{when}{off}")
    for one in workflow.periodic:
        timing = f"at {one.crontab} ({one.timezone})" if one.crontab else f"every {one.interval_s:g} s"
        lines.append(f"starts {timing}{'' if one.enabled else ' (disabled)'}")
    return lines


def _tree(members: tuple[Element, ...], indent: str) -> Iterator[str]:
    for member in members:
        mark, below = ("└─", "   ") if member is members[-1] else ("├─", "│  ")
        if isinstance(member, Call):
            options = {name: getattr(member, name) for name in ("queue", "retries", "backoff", "timeout")}
            more = " ".join(f"{name}={value}" for name, value in options.items() if value is not None)
            yield f"{indent}{mark} {member.name}  {more}".rstrip()
        else:
            yield f"{indent}{mark} {member.name} ({type(member).__name__.lower()})"
            yield from _tree(member.members, indent + below)


def run_lines(run: FullRun, pinned: Plan, workflow: Workflow | None) -> list[str]:
    """Return a run as plain text: a head, then a line for each task run, errors below it."""
    head = {
        "run": run.id,
        "workflow": run.workflow,
        "status": run.status + (f" (launch {run.launch})" if run.launch > 1 else ""),
        "trigger": " ".join(str(value) for value in run.trigger.values() if value),
        "created": run.created_at,
        "started": run.started_at,
        "ended": run.ended_at,
        "comment": run.comment,
        "again of": run.relaunch_of,
    }
    lines = [*(f"{name:<9} {value}" for name, value in head.items() if value), ""]
    for row in rows(run, pinned, workflow):
        lines.append(row.tree_line(_now()))
        task = row.task
        if task is not None and task.error is not None and task.status in (states.FAILED, states.RETRYING):
            lines.append(f"      {task.error.type}: {task.error.message}")
            own = [line for line in task.error.traceback.splitlines() if line.startswith("  File")]
            lines += [f"    {own[-1].strip()}"] if own else []
            lines += [f"      tries again at {task.next_at}"] if task.next_at else []
    return lines


def follow(look: Look, workflow: Workflow | None, *, draw: bool) -> FullRun:
    """Wait for a run's end, hooks included; with `draw` show a live tree on a terminal, else a line per change."""
    if draw and sys.stdout.isatty():
        return _follow_live(look, workflow)
    seen: dict[int, tuple[str, int]] = {}
    while True:
        run, pinned = look()
        over = _is_over(run)
        if draw:
            for line in (*_changes(run, rows(run, pinned, workflow), seen), *(_outcome(run) if over else ())):
                print(line, flush=True)
        if over:
            return run
        time.sleep(LOOK_S)


def _changes(run: FullRun, lines: list[Row], seen: dict[int, tuple[str, int]]) -> list[str]:
    """Return a line for each task run that has changed, in the order of the changes."""
    found = []
    for row in lines:
        task = row.task
        if task is None or seen.get(task.number) == (task.status, task.attempts):
            continue
        seen[task.number] = (task.status, task.attempts)
        if task.status not in (states.PENDING, states.QUEUED):
            at = task.started_at if task.status == states.RUNNING else task.ended_at or run.ended_at
            error = task.error if task.status in (states.FAILED, states.RETRYING) else None
            why = f"  {error.type}: {error.message}".splitlines()[0] if error else ""
            found.append((at or time_text(_now()), row.line(row.path, 0) + why))
    return [f"{at}  {line}" for at, line in sorted(found, key=lambda change: change[0] or "")]


def _follow_live(look: Look, workflow: Workflow | None) -> FullRun:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def picture(run: FullRun, pinned: Plan) -> Text:
        took = _took(run.started_at, run.ended_at, _now())
        text = Text(f"{run.workflow}  {run.status}  {took}\n", style="bold")
        for row in rows(run, pinned, workflow):
            text.append(row.tree_line(_now()) + "\n", style=STYLE[row.task.status][1] if row.task else "not bold")
        return text

    # What tasks print comes by standard error (`host.Results`), which Live shows above the tree. A proxy before
    # standard output as well would send it round in a circle.
    console = Console(file=getattr(sys.stdout, "terminal", sys.stdout), highlight=False)
    # Live shows what fits the terminal; the whole tree stays behind once the run is over.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        while not _is_over((found := look())[0]):
            live.update(picture(*found), refresh=True)
            time.sleep(LOOK_S)
    console.print(picture(*found), end="")
    for line in _outcome(found[0]):
        console.print(line, markup=False)
    return found[0]


def _now() -> int:
    return int(time.time() * 1000)


def _is_over(run: FullRun) -> bool:
    """Return whether the run has ended, its hook too."""
    return run.status in states.ENDED and not any(task.status in states.ACTIVE for task in run.tasks)


def _took(started_at: str | None, ended_at: str | None, now: int) -> str:
    if started_at is None:
        return ""
    end = time_ms(ended_at) if ended_at else now
    return f"{max(0, end - time_ms(started_at)) / 1000:.2f}s"


def _outcome(run: FullRun) -> Iterator[str]:
    took = _took(run.started_at, run.ended_at, _now())
    yield f"{run.status} in {took}" if took else run.status
    if run.error is not None:
        yield f"{run.error.task}: {run.error.type}: {run.error.message}"
        errors = (task.error for task in run.tasks if task.key == run.error.task and not task.hook)
        yield from (error.traceback.rstrip() for error in errors if error and error.traceback)
    if run.status in (states.FAILED, states.CANCELED):
        yield f"To go on from there: director runs relaunch {run.id}"

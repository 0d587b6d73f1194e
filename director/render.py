"""How runs and workflows look in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from director import plan, states
from director.models import Call, Element, FullRun, Plan, Struct, TaskRun, Workflow, time_ms, time_text

LOOK_S = 0.1
MARK = {
    states.PENDING: "·",
    states.QUEUED: "○",
    states.RUNNING: "▶",
    states.RETRYING: "↻",
    states.SUCCEEDED: "✓",
    states.FAILED: "✗",
    states.CANCELED: "■",
    states.SKIPPED: "-",
}
COLOR = {
    states.RUNNING: "cyan",
    states.RETRYING: "yellow",
    states.SUCCEEDED: "green",
    states.FAILED: "red",
    states.CANCELED: "yellow",
}
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
        if self.task is None:
            return f"  {name}"
        task = self.task
        end = time_ms(task.ended_at) if task.ended_at else now if task.status == states.RUNNING else None
        took = (
            ""
            if task.started_at is None or end is None
            else f"{max(0, end - time_ms(task.started_at)) / 1000:.2f}s"
        )
        tries = f"try {task.attempts}" if task.attempts > 1 else ""
        result = bytes(task.result).decode() if task.result is not None and task.status == states.SUCCEEDED else ""
        result = result if len(result) <= MAX_RESULT else result[: MAX_RESULT - 1] + "…"
        return f"{MARK[task.status]} {name:<28} {task.status:<10} {took:>8}  {tries:<6} {result}".rstrip()

    def tree_line(self, now: int) -> str:
        """Return the line with its name indented."""
        return self.line("  " * self.depth + self.path.rpartition("/")[2], now)


def rows(run: FullRun, pinned: Plan, workflow: Workflow | None) -> list[Row]:
    """Return the lines of a run, groups nested as in the workflow.

    Without a workflow, or with one whose tasks have changed since the run started, task runs just stand
    below each other.
    """
    tasks = [task for task in run.tasks if not task.hook]
    if workflow is not None and plan.same_shape(plan.build(workflow), pinned):
        found = list(_nested(workflow.tasks, iter(tasks), 0, ""))
    else:
        found = [Row(0, task.key, task) for task in tasks]
    return found + [Row(0, f"{task.key} (hook)", task) for task in run.tasks if task.hook]


def _nested(members: Iterable[Element], tasks: Iterator[TaskRun], depth: int, above: str) -> Iterator[Row]:
    """Yield the rows of some members; task runs are numbered in the order of the YAML."""
    for member in members:
        if isinstance(member, Call):
            task = next(tasks)
            yield Row(depth, above + task.key, task)
        else:
            yield Row(depth, above + member.name)
            yield from _nested(member.members, tasks, depth + 1, f"{above}{member.name}/")


def definition_lines(workflow: Workflow) -> list[str]:
    """Return a workflow as a tree, its hooks and what starts it."""
    lines = [f"{workflow.name}  {workflow.description}".rstrip(), *_tree(workflow.tasks, "")]
    for kind, hook in (("success", workflow.hooks.success), ("failure", workflow.hooks.failure)):
        if hook:
            lines.append(f"on {kind}: {hook}")
    for trigger in workflow.triggers:
        events = f" {' or '.join(trigger.events)}" if trigger.events else ""
        when, off = f" when {trigger.when}" if trigger.when else "", "" if trigger.enabled else " (disabled)"
        lines.append(f"starts on {trigger.source}{events}{when}{off}")
    return lines


def _tree(members: tuple[Element, ...], indent: str) -> Iterator[str]:
    for member in members:
        last = member is members[-1]
        if isinstance(member, Call):
            options = {name: getattr(member, name) for name in ("queue", "retries", "backoff", "timeout")}
            more = " ".join(f"{name}={value}" for name, value in options.items() if value is not None)
            yield f"{indent}{'└─' if last else '├─'} {member.name}  {more}".rstrip()
        else:
            yield f"{indent}{'└─' if last else '├─'} {member.name} ({type(member).__name__.lower()})"
            yield from _tree(member.members, indent + ("   " if last else "│  "))


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
    """Wait for a run's end, hooks included.

    Args:
        look: reads the run.
        workflow: its definition, for the names of groups.
        draw: show it meanwhile: a live tree on a terminal, else a line per change.
    """
    if draw and sys.stdout.isatty():
        return _follow_live(look, workflow)
    seen: dict[int, tuple[str, int]] = {}
    while True:
        run, pinned = look()
        over = _is_over(run)
        lines = chain(_changes(run, pinned, workflow, seen), _outcome(run) if over else ())
        for line in lines if draw else ():
            print(line, flush=True)
        if over:
            return run
        time.sleep(LOOK_S)


def _changes(
    run: FullRun, pinned: Plan, workflow: Workflow | None, seen: dict[int, tuple[str, int]]
) -> Iterator[str]:
    """Yield a line for each task run that has changed, in the order of the changes."""
    found = []
    for row in rows(run, pinned, workflow):
        task = row.task
        if task is None or seen.get(task.number) == (task.status, task.attempts):
            continue
        seen[task.number] = (task.status, task.attempts)
        if task.status not in (states.PENDING, states.QUEUED):
            now = time_text(_now()) or ""
            at = task.started_at if task.status == states.RUNNING else task.ended_at or run.ended_at
            error = task.error if task.status in (states.FAILED, states.RETRYING) else None
            why = f"  {error.type}: {error.message}".splitlines()[0] if error else ""
            found.append((at or now, row.line(row.path, 0) + why))
    for at, line in sorted(found, key=lambda change: change[0]):
        yield f"{at}  {line}"


def _follow_live(look: Look, workflow: Workflow | None) -> FullRun:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def picture(run: FullRun, pinned: Plan) -> Text:
        text = Text(f"{run.workflow}  {run.status}  {_took(run)}\n", style="bold")
        for row in rows(run, pinned, workflow):
            color = COLOR.get(row.task.status, "") if row.task else ""
            text.append(row.tree_line(_now()) + "\n", style=f"not bold {color}".strip())
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


def _took(run: FullRun) -> str:
    if run.started_at is None:
        return ""
    took_s = (_now() - time_ms(run.started_at)) / 1000 if run.duration_s is None else run.duration_s
    return f"{max(0.0, took_s):.2f}s"


def _outcome(run: FullRun) -> Iterator[str]:
    yield run.status + (f" in {_took(run)}" if run.started_at else "")
    if run.error is not None:
        yield f"{run.error.task}: {run.error.type}: {run.error.message}"
        errors = (task.error for task in run.tasks if task.key == run.error.task and not task.hook)
        yield from (error.traceback.rstrip() for error in errors if error and error.traceback)
    if run.status in (states.FAILED, states.CANCELED):
        yield f"To go on from there: director runs relaunch {run.id}"

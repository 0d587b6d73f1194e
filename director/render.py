"""How runs and workflows look in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from director import plan, states
from director.models import Call, Element, Run, Struct, TaskRun, Workflow
from director.store.base import Store
from director.web.shapes import time_text

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


class Row(Struct, frozen=True):
    """A line of a run's tree: a group, a chain or a task run."""

    depth: int
    path: str
    """Groups and chains above it, and its own name: `SPREAD/CLEAN`."""
    task: TaskRun | None = None
    """None for a group or a chain."""

    @property
    def name(self) -> str:
        """The last part of the path, indented."""
        return "  " * self.depth + self.path.rpartition("/")[2]


def rows(run: Run, workflow: Workflow | None) -> list[Row]:
    """Return the lines of a run, groups nested as in the workflow.

    Without a workflow, or with one whose tasks have changed since the run started, task runs just stand
    below each other.
    """
    tasks = [task for task in run.tasks or () if not task.hook]
    if workflow is not None and _fits(tasks, workflow):
        found = list(_nested(workflow.tasks.members, iter(tasks), 0, ""))
    else:
        found = [Row(depth=0, path=task.key, task=task) for task in tasks]
    hooks = [task for task in run.tasks or () if task.hook]
    return found + [Row(depth=0, path=f"{task.key} (hook)", task=task) for task in hooks]


def _fits(tasks: list[TaskRun], workflow: Workflow) -> bool:
    built = plan.build(workflow)
    shape = [
        (node.key, tuple(built.nodes[parent].key for parent in plan.inputs(built, number)))
        for number, node in enumerate(built.nodes[: built.total])
    ]
    return shape == [(task.key, task.parents) for task in tasks]


def _nested(members: tuple[Element, ...], tasks: Iterator[TaskRun], depth: int, above: str) -> Iterator[Row]:
    """Yield the rows of some members; task runs are numbered in the order of the YAML."""
    for member in members:
        if isinstance(member, Call):
            task = next(tasks)
            yield Row(depth=depth, path=above + task.key, task=task)
        else:
            yield Row(depth=depth, path=above + member.name)
            yield from _nested(member.members, tasks, depth + 1, f"{above}{member.name}/")


def definition_lines(shape: dict[str, Any]) -> list[str]:
    """Return a workflow, as `describe` gives it, as a tree."""
    lines = [shape["name"] + (f"  {shape['description']}" if shape["description"] else "")]
    lines += _tree(shape["tasks"], "")
    for kind, hook in shape["hooks"].items():
        if hook:
            lines.append(f"on {kind}: {hook}")
    for trigger in shape["triggers"]:
        events = f" {' or '.join(trigger['events'])}" if trigger["events"] else ""
        when = f" when {trigger['when']}" if trigger["when"] else ""
        lines.append(f"starts on {trigger['source']}{events}{when}")
    return lines


def _tree(items: list[dict[str, Any]], indent: str) -> list[str]:
    lines = []
    for index, item in enumerate(items):
        last = index == len(items) - 1
        if "task" in item:
            options = " ".join(f"{key}={value}" for key, value in item.items() if key != "task")
            text = f"{item['task']}  {options}".rstrip()
        else:
            kind = "group" if "group" in item else "chain"
            text = f"{item[kind]} ({kind})"
        lines.append(f"{indent}{'└─' if last else '├─'} {text}")
        lines += _tree(item.get("tasks", []), indent + ("   " if last else "│  "))
    return lines


def run_lines(run: Run, workflow: Workflow | None) -> list[str]:
    """Return a run as plain text: a head, then a line for each task run, errors below it."""
    lines = [
        f"run       {run.id}",
        f"workflow  {run.workflow}",
        f"status    {run.status}" + (f" (launch {run.launch})" if run.launch > 1 else ""),
        f"trigger   {' '.join(str(value) for value in run.trigger.values() if value)}",
        f"created   {time_text(run.created_at)}",
    ]
    if run.started_at is not None:
        lines.append(f"started   {time_text(run.started_at)}")
    if run.ended_at is not None:
        lines.append(f"ended     {time_text(run.ended_at)}")
    if run.comment:
        lines.append(f"comment   {run.comment}")
    if run.relaunch_of:
        lines.append(f"again of  {run.relaunch_of}")
    lines.append("")
    for row in rows(run, workflow):
        lines.append(_row_line(row, row.name, run.ended_at))
        task = row.task
        if task is not None and task.error is not None and task.status in (states.FAILED, states.RETRYING):
            lines.append(f"      {task.error.type}: {task.error.message}")
            own = [line for line in task.error.traceback.splitlines() if line.startswith("  File")]
            if own:
                lines.append(f"    {own[-1].strip()}")
    return lines


def _row_line(row: Row, name: str, now: int | None) -> str:
    task = row.task
    if task is None:
        return f"  {name}"
    took = ""
    end = task.ended_at or (now if task.status == states.RUNNING else None)
    if task.started_at is not None and end is not None:
        took = f"{max(0, end - task.started_at) / 1000:.2f}s"
    tries = f"try {task.attempts}" if task.attempts > 1 else ""
    result = ""
    if task.result is not None and task.status == states.SUCCEEDED:
        result = bytes(task.result).decode()
        result = result if len(result) <= MAX_RESULT else result[: MAX_RESULT - 1] + "…"
    return f"{MARK[task.status]} {name:<28} {task.status:<10} {took:>8}  {tries:<6} {result}".rstrip()


def follow(
    store: Store, run_id: str, workflow: Workflow | None, *, draw: bool, tend: Callable[[], None] | None = None
) -> Run:
    """Wait for a run's end, hooks included.

    Args:
        store: where it is.
        run_id: which.
        workflow: its definition, for the names of groups.
        draw: show it meanwhile: a live tree on a terminal, else a line per change.
        tend: called between looks.
    """
    seen: dict[int, tuple[str, int]] = {}

    def look() -> Run:
        if tend is not None:
            tend()
        return store.do(store.get(run_id))

    if draw and sys.stdout.isatty():
        return _follow_live(look, workflow)
    while True:
        run = look()
        if draw:
            for line in _changes(run, workflow, seen):
                print(line, flush=True)
        if _is_over(run):
            if draw:
                print("\n".join(_outcome(run)), flush=True)
            return run
        time.sleep(LOOK_S)


def _changes(run: Run, workflow: Workflow | None, seen: dict[int, tuple[str, int]]) -> list[str]:
    """Return a line for each task run that has changed, in the order of the changes."""
    found = []
    for row in rows(run, workflow):
        task = row.task
        if task is None or seen.get(task.number) == (task.status, task.attempts):
            continue
        seen[task.number] = (task.status, task.attempts)
        if task.status not in (states.PENDING, states.QUEUED):
            at = task.started_at if task.status == states.RUNNING else (task.ended_at or run.ended_at)
            at = at or int(time.time() * 1000)
            error = ""
            if task.error is not None and task.status in (states.FAILED, states.RETRYING):
                error = f"  {task.error.type}: {task.error.message}".splitlines()[0]
            found.append((at, f"{time_text(at)}  {_row_line(row, row.path, None)}{error}"))
    return [line for _, line in sorted(found, key=lambda change: change[0])]


def _follow_live(look: Callable[[], Run], workflow: Workflow | None) -> Run:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def picture(run: Run) -> Text:
        now = int(time.time() * 1000)
        text = Text(f"{run.workflow}  {run.status}  {_took(run, now)}\n", style="bold")
        for row in rows(run, workflow):
            status = row.task.status if row.task else ""
            text.append(_row_line(row, row.name, now) + "\n", style=f"not bold {COLOR.get(status, '')}".strip())
        return text

    # What tasks print comes by standard error (`host.Results`), which Live shows above the tree. A proxy before
    # standard output as well would send it round in a circle.
    console = Console(file=getattr(sys.stdout, "terminal", sys.stdout), highlight=False)
    # Live shows what fits the terminal; the whole tree stays behind once the run is over.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        while not _is_over(run := look()):
            live.update(picture(run), refresh=True)
            time.sleep(LOOK_S)
    console.print(picture(run), end="")
    for line in _outcome(run):
        console.print(line, markup=False)
    return run


def _is_over(run: Run) -> bool:
    """Return whether the run has ended, its hook too."""
    active = any(task.status in states.ACTIVE for task in run.tasks or ())
    return run.status in states.ENDED and not active


def _took(run: Run, now: int | None = None) -> str:
    end = run.ended_at or now
    if run.started_at is None or end is None:
        return ""
    return f"{max(0, end - run.started_at) / 1000:.2f}s"


def _outcome(run: Run) -> list[str]:
    took = _took(run)
    lines = [run.status + (f" in {took}" if took else "")]
    if run.error is not None:
        lines.append(f"{run.error_task}: {run.error.type}: {run.error.message}")
        if run.error.traceback:
            lines.append(run.error.traceback.rstrip())
    if run.status in (states.FAILED, states.CANCELED):
        lines.append(f"To go on from there: director runs relaunch {run.id}")
    return lines

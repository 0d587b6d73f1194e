"""How runs and workflows look in a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from director import states
from director.models import Run, TaskRun
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


def run_lines(run: Run) -> list[str]:
    """Return a run as plain text: a head, then a line for each task run, errors below it."""
    lines = [
        f"run       {run.id}",
        f"workflow  {run.workflow}",
        f"status    {run.status}" + (f" (launch {run.launch})" if run.launch > 1 else ""),
        f"trigger   {' '.join(str(value) for value in run.trigger.values() if value)}",
        f"created   {time_text(run.created_at)}",
    ]
    if run.comment:
        lines.append(f"comment   {run.comment}")
    if run.relaunch_of:
        lines.append(f"again of  {run.relaunch_of}")
    lines.append("")
    depths = _depths(run)
    for task in run.tasks or ():
        lines.append(_task_line(task, depths[task.number], run.ended_at))
        if task.error is not None and task.status in (states.FAILED, states.RETRYING):
            lines.append(f"      {task.error.type}: {task.error.message}")
            own = [line for line in task.error.traceback.splitlines() if line.startswith("  File")]
            if own:
                lines.append(f"    {own[-1].strip()}")
    return lines


def _depths(run: Run) -> dict[int, int]:
    """Return how far each task run is indented: members of a group stand to the right of what is alone."""
    parents = {task.key: task for task in run.tasks or () if not task.hook}
    levels: dict[str, int] = {}
    for task in parents.values():
        levels[task.key] = 1 + max((levels[key] for key in task.parents), default=-1)
    count: dict[int, int] = {}
    for level in levels.values():
        count[level] = count.get(level, 0) + 1
    return {task.number: 0 if task.hook or count[levels[task.key]] == 1 else 1 for task in run.tasks or ()}


def _task_line(task: TaskRun, depth: int, now: int | None) -> str:
    name = "  " * depth + task.key + (" (hook)" if task.hook else "")
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


def follow(store: Store, run_id: str, *, draw: bool) -> Run:
    """Wait for a run's end, drawing it meanwhile: a live tree on a terminal, else a line per change."""
    if draw and sys.stdout.isatty():
        return _follow_live(store, run_id)
    seen: dict[int, tuple[str, int]] = {}
    while True:
        run = store.do(store.get(run_id))
        for task in run.tasks or ():
            state = (task.status, task.attempts)
            if draw and task.status not in (states.PENDING, states.QUEUED) and seen.get(task.number) != state:
                print(_task_line(task, 0, None), flush=True)
            seen[task.number] = state
        if _is_over(run):
            if draw:
                print("\n".join(_outcome(run)), flush=True)
            return run
        time.sleep(LOOK_S)


def _follow_live(store: Store, run_id: str) -> Run:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def picture(run: Run) -> Text:
        text = Text(f"{run.workflow}  {run.status}\n", style="bold")
        depths = _depths(run)
        for task in run.tasks or ():
            line = _task_line(task, depths[task.number], int(time.time() * 1000))
            text.append(line + "\n", style=f"not bold {COLOR.get(task.status, '')}".strip())
        return text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            run = store.do(store.get(run_id))
            live.update(picture(run), refresh=True)
            if _is_over(run):
                break
            time.sleep(LOOK_S)
    for line in _outcome(run):
        console.print(line, markup=False)
    return run


def _is_over(run: Run) -> bool:
    """Return whether the run has ended, its hook too."""
    active = any(task.status in states.ACTIVE for task in run.tasks or ())
    return run.status in states.ENDED and not active


def _outcome(run: Run) -> list[str]:
    took = ""
    if run.started_at is not None and run.ended_at is not None:
        took = f" in {(run.ended_at - run.started_at) / 1000:.2f} s"
    lines = [f"{run.status}{took}"]
    if run.error is not None:
        lines.append(f"{run.error_task}: {run.error.type}: {run.error.message}")
        if run.error.traceback:
            lines.append(run.error.traceback.rstrip())
        lines.append(f"Once it is mended: director runs relaunch {run.id}")
    return lines

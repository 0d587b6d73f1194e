"""Real projects and real worker processes for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from director import plan
from director.engine import new_run_id
from director.models import Call, Chain, FullRun, Group, Hooks, Workflow
from director.states import ENDED
from director.store.base import Store
from director.store.redis import RedisStore
from director.store.shapes import NewRun

TASKS = '''
import os, time
from pathlib import Path
from director import task

CALLS = Path(__file__).parent.parent / "calls.log"

def note(line):
    """Count executions outside of director: one line each, appended whole."""
    with CALLS.open("a") as file:
        file.write(line + "\\n")

@task(name="ECHO", bind=True)
def echo(self, *args, **kwargs):
    note(f"ECHO {self.request.id}")
    return {"args": list(args), "id": self.request.id, "payload": kwargs["payload"], "run": kwargs["workflow_id"]}

@task(name="ONE")
def one(previous):
    note("ONE")
    return 1

@task(name="SUM")
def total(previous):
    note("SUM")
    return sum(previous)

@task(name="FRAGILE")
def fragile(previous, payload):
    note("FRAGILE")
    if not Path(payload["flag"]).exists():
        raise ValueError("no flag")
    return 10

@task(name="SLEEP")
def sleep(previous, payload):
    note(f"SLEEP {os.getpid()}")
    time.sleep(payload.get("seconds", 1))
    return "slept"

@task(name="SLEEP_ONCE")
def sleep_once(previous, payload):
    first = not CALLS.exists() or "SLEEP_ONCE" not in CALLS.read_text()
    note(f"SLEEP_ONCE {os.getpid()}")
    if first:
        time.sleep(payload.get("seconds", 60))
    return "second"

@task(name="NOT_JSON")
def not_json(previous):
    return {1, 2}

@task(name="HUGE")
def huge(previous):
    return "x" * (2 << 20)

@task(name="EXIT")
def leave(previous):
    raise SystemExit(3)

@task(name="AGAIN", bind=True, autoretry_for=(KeyError,), max_retries=2, default_retry_delay=0, retry_backoff=False)
def again(self, previous):
    note("AGAIN")
    if self.request.retries < 2:
        raise KeyError("not yet")
    return self.request.retries

@task(name="STUBBORN")
def stubborn(previous):
    note("STUBBORN")
    try:
        time.sleep(60)
    except BaseException:
        return "caught"

class Mute(Exception):
    def __str__(self):
        raise ZeroDivisionError

@task(name="MUTE")
def mute(previous):
    raise Mute

@task(name="SURROGATE")
def surrogate(previous):
    raise ValueError("bad\\udcffname")

@task(name="INTERRUPT")
def interrupt(previous):
    raise KeyboardInterrupt

@task(name="HEAVY", queue="heavy")
def heavy(previous):
    return "heavy"

@task(name="ALERT")
def alert(previous, run=None):
    note(f"ALERT {run['failed'][0]['task'] if run else 'no run'}")
'''


def project(home: Path) -> Path:
    """Write a project with the tasks above; return its folder."""
    (home / "tasks").mkdir(parents=True, exist_ok=True)
    (home / "workflows").mkdir(exist_ok=True)
    (home / "tasks" / "sample.py").write_text(TASKS)
    return home


def calls(home: Path) -> list[str]:
    """Return what the tasks noted, in the order of their execution."""
    file = home / "calls.log"
    return file.read_text().splitlines() if file.exists() else []


@contextmanager
def worker(
    home: Path, redis_url: str, *options: str, stock: bool = False, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker process until the block ends; it is SIGKILLed if it is still there."""
    command = [sys.executable, "-m", "director", "worker", "-c", "2", *options]
    if stock:
        command = [sys.executable, "-m", "celery", "-A", "director.worker", "worker", "-c", "2", *options]
    environ = {**os.environ, "DIRECTOR_HOME": str(home), "DIRECTOR_REDIS_URL": redis_url, **env}
    with (home / "worker.log").open("ab") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        kill_all(process)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a worker and its children; they are one process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def until(condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "") -> Any:
    """Return the condition's value as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.02)


def ready(store: Store, count: int = 1) -> None:
    """Wait until workers have published their tasks, so that plans know their options."""
    until(lambda: store.do(store.state([])).workers >= count, what="worker")


def element(spec: Any) -> Call | Group | Chain:
    """Return a workflow's element: a text is a task, a list a chain, a set-like tuple a group."""
    if isinstance(spec, str | Call):
        return Call(name=spec) if isinstance(spec, str) else spec
    members = tuple(element(member) for member in spec)
    return Chain(name="c", members=members) if isinstance(spec, list) else Group(name="g", members=members)


def workflow(spec: list[Any], name: str = "w", **fields: Any) -> Workflow:
    """Return a workflow from nested lists (chains) and tuples (groups)."""
    tasks = element(spec)
    assert isinstance(tasks, Chain)
    hooks = Hooks(success=fields.pop("success_hook", None), failure=fields.pop("failure_hook", None))
    return Workflow(**{"name": name, "tasks": tasks.members, "hooks": hooks, **fields})


def start(store: Store, definition: Workflow, payload: Any = None) -> str:
    """Start a run without the engine's cache of options; return its id."""
    built = plan.build(definition, store.do(store.task_options()))
    new = NewRun(
        run_id=new_run_id(),
        plan=built,
        payload=msgspec.json.encode(payload or {}),
        trigger={"kind": "api"},
        roots=tuple(n for n, node in enumerate(built.nodes) if not node.parents),
    )
    return store.do(store.start(new)).run_id


def ended(store: RedisStore, run_id: str, timeout_s: float = 20.0, *, sweep: bool = False) -> FullRun:
    """Wait for a run's end; with `sweep`, play the scheduler meanwhile."""

    def look() -> FullRun | None:
        if sweep:
            store.do(store.sweep())
        run, _ = store.do(store.get(run_id))
        return run if run.status in ENDED else None

    run: FullRun = until(look, timeout_s, f"end of run {run_id}")
    return run


def results(run: FullRun) -> dict[str, Any]:
    """Return key → result."""
    return {task.key: msgspec.json.decode(task.result) for task in run.tasks if task.result is not None}

"""The project under test: workflows with known results, tasks that append each execution to a history.

A result is `{"value", "nonce"}`. The value follows from the payload and the parents' values, so a wrong join shows.
The nonce is new in each execution and its children note it, so a second accepted result shows.
"""

from __future__ import annotations

import inspect
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

SECRET = "faults-secret"


def value(task: str, n: int, previous: Any) -> int:
    """Return the right value of a task: `previous` is None, a value, or a list of values."""
    return zlib.crc32(json.dumps([task, n, previous]).encode())


TASKS = (
    f"""
import itertools, json, os, signal, time, zlib
from pathlib import Path
from director import task

HOME = Path(__file__).parent.parent
NUMBERS = itertools.count(1)

{inspect.getsource(value).replace(": str, n: int, previous: Any) -> int", ", n, previous)")}

def note(what, request, nonce, seen=()):
    "Append one line, whole: a write to a file opened with O_APPEND is atomic."
    words = [what, request.id, nonce, str(os.getpid()), str(os.getpgid(0)), str(int(time.time() * 1000)), *seen]
    file = os.open(HOME / "history", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(words) + "\\n").encode())
    os.close(file)

def execute(self, previous, n, seconds=0.0, act=lambda: None):
    nonce = f"{{os.getpid():x}}.{{next(NUMBERS)}}.{{time.time_ns() % 10**9:x}}"
    parents = previous if isinstance(previous, list) else [previous] if previous else []
    note("begin", self.request, nonce, [parent["nonce"] for parent in parents])
    act()
    time.sleep(seconds)
    values = [parent["value"] for parent in parents]
    right = value(self.name, n, values if isinstance(previous, list) else (values or [None])[0])
    note("end", self.request, nonce)
    return {{"value": right, "nonce": nonce}}
"""
    + '''
def quick(name):
    @task(name=name, bind=True)
    def run(self, previous, payload):
        return execute(self, previous, payload["n"], (value(name, payload["n"], None) % 20) / 1000)

for name in "ABCDEF":
    quick(name)

@task(name="SLOW", bind=True)
def slow(self, previous, payload):
    return execute(self, previous, payload["n"], payload.get("seconds", 1 + payload["n"] % 3))

@task(name="FLAKY", bind=True)
def flaky(self, previous, payload):
    def act():
        if self.request.retries < payload["n"] % 3:
            raise ValueError("not yet")
    return execute(self, previous, payload["n"], act=act)

@task(name="SUICIDE", bind=True)
def suicide(self, previous, payload):
    """Kill its own process `payload.kills` times, by default in the first try of every third run."""
    def act():
        for number in range(payload.get("kills", payload["n"] % 3 == 0)):
            try:
                os.close(os.open(HOME / f"killed-{self.request.id}-{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            note("suicide", self.request, "-")
            os.kill(os.getpid(), signal.SIGKILL)
    return execute(self, previous, payload["n"], act=act)

@task(name="BOOM", bind=True)
def boom(self, previous, payload):
    def act():
        raise RuntimeError("always")
    return execute(self, previous, payload["n"], act=act)

@task(name="HOOK", bind=True)
def hook(self, previous, payload):
    return execute(self, previous, payload["n"])
'''
)

Spec = Any
"""A task's name, a list (chain) or a tuple (group) of specs."""


class Flow(NamedTuple):
    """A workflow, and what is known of its runs."""

    tasks: list[Spec]
    event: str
    weight: int
    status: str = "succeeded"
    hook: str = ""
    """`success` or `failure`: the hook that its runs fire."""


FLOWS = {
    "f.single": Flow(["A"], "single", 4),
    "f.chain": Flow(["A", "B", "C", "D", "E"], "chain", 3),
    "f.fan": Flow(["A", ("B",) * 10, "C"], "fan", 2),
    "f.nested": Flow([("A", ["B", ("C", "D"), "E"], "F"), ("A", "B"), "C"], "nested", 2, hook="success"),
    "f.retried": Flow(["A", "FLAKY", "B"], "retried", 2),
    "f.suicide": Flow(["A", "SUICIDE", "B"], "suicide", 1),
    "f.slow": Flow(["SLOW", "A"], "slow", 1),
    "f.failing": Flow([("A", ["BOOM", "B"], "C"), "D"], "failing", 1, "failed", "failure"),
    # One delivery, two runs.
    "f.twin": Flow(["A", "B"], "both", 1),
    "f.twin2": Flow([("A", "B"), "C"], "both", 0),
}


def flow_spec(spec: Spec) -> Any:
    """Return a spec as YAML wants it."""
    if isinstance(spec, str):
        return {spec: {"retries": 3, "backoff": 0.2}} if spec == "FLAKY" else spec
    kind = "chain" if isinstance(spec, list) else "group"
    return {f"{kind}{len(spec)}": {"type": kind, "tasks": [flow_spec(member) for member in spec]}}


def write(home: Path) -> Path:
    """Write the project into a folder and return it."""
    (home / "tasks").mkdir(parents=True)
    (home / "workflows").mkdir()
    (home / "tasks" / "history.py").write_text(TASKS)
    made: dict[str, Any] = {"sources": {"github": {"secret": "$GITHUB_WEBHOOK_SECRET"}}}
    for name, flow in FLOWS.items():
        made[name] = {
            "tasks": [flow_spec(member) for member in flow.tasks],
            "triggers": [{"source": "github", "event": flow.event}],
        }
        if flow.hook:
            made[name]["hooks"] = {flow.hook: "HOOK"}
    (home / "workflows" / "faults.yml").write_bytes(msgspec.json.encode(made))
    return home


class Expected(NamedTuple):
    """What is known of one task run, in YAML order: worked out here, not by director's planner."""

    task: str
    value: int
    parents: tuple[int, ...]
    """Numbers of the task runs whose results it gets."""


def expected(flow: Flow, n: int) -> list[Expected]:
    """Return every task run of a flow in YAML order with its right value; failing ones too."""
    found: list[Expected] = []

    def walk(spec: Spec, previous: Any, parents: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
        if isinstance(spec, str):
            found.append(Expected(spec, value(spec, n, previous), parents))
            return found[-1].value, (len(found) - 1,)
        if isinstance(spec, list):
            for member in spec:
                previous, parents = walk(member, previous, parents)
            return previous, parents
        ends = [walk(member, previous, parents) for member in spec]
        # Nested groups give one flat list.
        values = [one for end, _ in ends for one in (end if isinstance(end, list) else [end])]
        return values, tuple(number for _, numbers in ends for number in numbers)

    walk(flow.tasks, None, ())
    return found

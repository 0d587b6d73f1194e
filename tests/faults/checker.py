"""What must hold once the nemesis has stopped and nothing is active: read from the store and from the history."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import redis

from director.models import FullRun, TaskRun
from director.store.redis import RedisStore
from tests.faults.project import FLOWS, Expected, expected
from tests.faults.sender import Delivery
from tests.faults.services import Fault

LEASE_MS = 30_000
MAX_LOST = 3


class Line(NamedTuple):
    """One line of the history."""

    place: int
    """Lines are in the order of the writes."""
    what: str
    """begin, end or suicide"""
    ref: str
    nonce: str
    pid: int
    group: int
    at: int
    """ms"""
    seen: tuple[str, ...]
    """Nonces of the parents' results that a begin was given."""


class Violation(NamedTuple):
    text: str
    run_id: str = ""


class Attempts(NamedTuple):
    """The exact counts that the store keeps of a task run."""

    attempts: int
    retries: int
    losses: int


def read_history(file: Path) -> dict[str, list[Line]]:
    """Return RUN:NUMBER → its lines."""
    found: dict[str, list[Line]] = defaultdict(list)
    for place, text in enumerate(file.read_text().splitlines() if file.exists() else ()):
        what, ref, nonce, pid, group, at, *seen = text.split(" ")
        found[ref].append(Line(place, what, ref, nonce, int(pid), int(group), int(at), tuple(seen)))
    return found


class Checker:
    """Compares what was sent, what the store says, what was executed and what was done to the processes."""

    def __init__(self, url: str, deliveries: list[Delivery], history: Path, faults: list[Fault]) -> None:
        self.store, self.client = RedisStore(url), redis.Redis.from_url(url, decode_responses=True)
        self.deliveries = deliveries
        self.file = history
        self.history: dict[str, list[Line]] = {}
        self.faults = sorted(faults, key=lambda fault: fault.at)
        self.runs: dict[str, FullRun] = {}
        self.counts: Counter[str] = Counter()

    def is_idle(self) -> bool:
        """Return whether no run and no hook is active."""
        return self.store.do(self.store.sweep()).idle and not self.client.zcard("director:runs.active")

    def violations(self) -> list[Violation]:
        """Return everything that does not hold."""
        self.history = read_history(self.file)
        ids = self.client.zrange("director:runs", 0, -1)
        self.runs = {run_id: self.store.do(self.store.get(run_id))[0] for run_id in ids}
        found = [*self._deliveries(), *self._indexes()]
        for run in self.runs.values():
            found += [Violation(f"{run.workflow}: {text}", run.id) for text in self._run(run)]
        known = {f"{run.id}:{task.number}" for run in self.runs.values() for task in run.tasks}
        found += [Violation(f"{ref} was executed and is in no run") for ref in self.history.keys() - known]
        return found

    def story(self, run_id: str) -> str:
        """Return a run as JSON, its history, and the faults of its time."""
        run = self.runs[run_id]
        lines = sorted(line for ref, all_ in self.history.items() if ref.startswith(run_id) for line in all_)
        first, last = (lines[0].at, lines[-1].at) if lines else (0, 0)
        faults = [fault for fault in self.faults if first - 5000 <= fault.until and fault.at <= last + 60_000]
        raw = self.client.hgetall(f"director:run:{run_id}")
        return "\n".join([msgspec.json.encode(run).decode(), str(raw), *map(str, lines), *map(str, faults)])

    # One delivery, one run a workflow

    def _deliveries(self) -> Iterator[Violation]:
        runs = defaultdict(list)
        for run in self.runs.values():
            runs[run.trigger["delivery"]].append(run)
        for delivery in self.deliveries:
            wanted = sorted(name for name, flow in FLOWS.items() if flow.event == delivery.event)
            there = sorted(runs.pop(delivery.id, []), key=lambda run: run.workflow)
            self.counts["deliveries"] += 1
            self.counts["tries"] += delivery.tries
            if delivery.refused:
                yield Violation(f"{delivery.id} was answered with {delivery.refused}")
            if not delivery.answers:
                yield Violation(f"{delivery.id} was never accepted")
                continue
            if [run.workflow for run in there] != wanted:
                yield Violation(f"{delivery.id} has runs of {[run.workflow for run in there]}, not of {wanted}")
            ids = sorted(run.id for run in there)
            for status, body in delivery.answers:
                if sorted(run["id"] for run in body["runs"]) != ids:
                    yield Violation(f"{delivery.id}: {status} named {body['runs']}, the store has {ids}")
                if (status == 202) is body["duplicate"]:
                    yield Violation(f"{delivery.id}: {status} with duplicate {body['duplicate']}")
        for delivery_id, there in runs.items():
            yield Violation(f"{[run.id for run in there]} have no cause: nobody sent {delivery_id}")

    def _indexes(self) -> Iterator[Violation]:
        of_status = Counter(run.status for run in self.runs.values())
        of_workflow = Counter(run.workflow for run in self.runs.values())
        self.counts.update({f"runs {status}": count for status, count in of_status.items()})
        for key in ("leases", "delayed", "runs.active", *self.client.keys("director:queued:*")):
            name = key.removeprefix("director:")
            if members := self.client.zrange(f"director:{name}", 0, 5):
                yield Violation(f"{name} holds {members}", members[0].partition(":")[0])
        for name, count in self.client.hgetall("director:stats").items():
            if name.startswith("active:") and count != "0":
                yield Violation(f"the counter {name} is {count}")
        failed = {run.id for run in self.runs.values() if run.status == "failed"}
        if set(self.client.zrange("director:runs.failed", 0, -1)) != failed:
            yield Violation("runs.failed does not hold the failed runs")
        for workflow, count in of_workflow.items():
            if self.client.zcard(f"director:runs:{workflow}") != count:
                yield Violation(f"runs:{workflow} does not hold its {count} runs")

    # One run

    def _run(self, run: FullRun) -> Iterator[str]:
        flow, n = FLOWS[run.workflow], msgspec.json.decode(run.payload)["n"]
        plan = expected(flow, n)
        tasks = [task for task in run.tasks if not task.hook]
        if [task.task for task in tasks] != [one.task for one in plan]:
            yield f"its task runs are {[task.task for task in tasks]}"
            return
        lost = [task for task in run.tasks if task.error and task.error.type == "WorkerLost"]
        self.counts["task runs failed after three losses"] += len(lost)
        if run.status != flow.status and not (run.status == "failed" and lost):
            yield f"it is {run.status}, not {flow.status}"
        raw = self.client.hgetall(f"director:run:{run.id}")
        for task, one in zip(tasks, plan, strict=True):
            for text in (
                *self._status(run, task, one, tasks),
                *self._executions(run, task, raw),
                *self._parents(run, task, one, tasks),
            ):
                yield f"{task.key}: {text}"
        hooks = [task for task in run.tasks if task.hook]
        if flow.hook == {"succeeded": "success", "failed": "failure"}[run.status]:
            if [hook.status for hook in hooks] != ["succeeded"] and not lost:
                yield f"its hooks are {[hook.status for hook in hooks]}"
        elif hooks:
            yield "it has a hook that nobody asked for"
        for hook in hooks:
            yield from (f"hook: {text}" for text in self._executions(run, hook, raw))

    def _status(self, run: FullRun, task: TaskRun, one: Expected, tasks: list[TaskRun]) -> Iterator[str]:
        ready = all(tasks[parent].status == "succeeded" for parent in one.parents)
        boom = one.task == "BOOM"
        lost = task.error is not None and task.error.type == "WorkerLost"
        right = "skipped" if not ready else "failed" if boom or lost else "succeeded"
        if task.status != right:
            yield f"it is {task.status}, not {right}"
        elif task.status == "succeeded" and task.result is not None:
            got = msgspec.json.decode(task.result)["value"]
            if got != one.value:
                yield f"its value is {got}, not {one.value}"
        elif task.status == "succeeded":
            yield "it has no result"

    def _executions(self, run: FullRun, task: TaskRun, raw: dict[str, str]) -> Iterator[str]:
        lines = self.history.get(f"{run.id}:{task.number}", [])
        begins = [line for line in lines if line.what == "begin"]
        ends = {line.nonce for line in lines if line.what == "end"}
        self.counts["executions"] += len(begins)
        self.counts["suicides"] += sum(line.what == "suicide" for line in lines)
        if task.status == "succeeded":
            self.counts["results"] += 1
            if not task.result or msgspec.json.decode(task.result)["nonce"] not in ends:
                yield "its result is of no execution that ended"
        counted = counters(raw.get(str(task.number), ""))
        if len(begins) > task.attempts:
            yield f"{len(begins)} executions in {task.attempts} attempts"
        # What the store counts: a first attempt, retries, losses; what is over was handed back in a SIGTERM's grace.
        handed_back = task.attempts - counted.retries - counted.losses - 1 if task.attempts else 0
        if task.status == "failed" and counted.losses >= MAX_LOST:
            handed_back += 1  # the last loss gave no further attempt
        self.counts["losses"] += counted.losses
        self.counts["handed back"] += handed_back
        self.counts["retries"] += counted.retries
        if handed_back < 0 or (handed_back and not any(fault.kind == "TERM" for fault in self.faults)):
            yield f"{task.attempts} attempts, {counted.retries} retries, {counted.losses} losses do not add up"
        raised = sum(line.nonce not in ends for line in begins) if task.task in ("FLAKY", "BOOM") else 0
        unexplained = 0
        for this, following in pairwise(begins):
            if raised and this.nonce not in ends and counted.retries:
                continue
            unexplained += not self._explained(this, following, lines)
        if unexplained:
            yield f"{unexplained} repeated executions that no fault explains"

    def _explained(self, this: Line, following: Line, lines: list[Line]) -> bool:
        """Return whether something happened to who executed, between this execution and the next one."""
        if any(line.what == "suicide" and line.pid == this.pid for line in lines):
            return True
        for fault in self.faults:
            if fault.until < this.at - 1000 or fault.at > following.at:
                continue
            if fault.target == "redis":
                return True
            if this.pid in fault.pids or (fault.group == this.group and fault.kind in ("EXIT", "TERM", "KILL")):
                return True
            if fault.group == this.group and fault.kind == "STOP" and fault.until - fault.at > LEASE_MS:
                return True
        return False

    def _parents(self, run: FullRun, task: TaskRun, one: Expected, tasks: list[TaskRun]) -> Iterator[str]:
        """Each execution came after its parents', and saw the one accepted result of each."""
        accepted = [tasks[parent].result for parent in one.parents]
        nonces = tuple(msgspec.json.decode(result)["nonce"] if result else "" for result in accepted)
        for line in self.history.get(f"{run.id}:{task.number}", []):
            if line.what != "begin":
                continue
            if line.seen != nonces:
                yield f"an execution saw the results {line.seen}, accepted are {nonces}"
            for parent in one.parents:
                before = self.history.get(f"{run.id}:{parent}", [])
                if not any(other.what == "end" and other.place < line.place for other in before):
                    yield f"it was executed before its parent {tasks[parent].key} had ended"


def counters(text: str) -> Attempts:
    """Read a task run's field: its second word is ATTEMPTS,RETRIES,LOSSES,…"""
    numbers = [int(number) for number in text.split(" ")[1].split(",")] if text else []
    attempts, retries, losses, *_ = [*numbers, 0, 0, 0]
    return Attempts(attempts, retries, losses)


def summary(counts: Counter[str]) -> dict[str, Any]:
    return dict(sorted(counts.items()))

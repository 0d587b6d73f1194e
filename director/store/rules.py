"""The state machine in Python: what TinyStore runs, what tests hold the Lua files against.

Pure: a `Moves` changes the one run it is given and the data beside it; time comes in as `now`. The Lua
twin is `lua/common.lua`; the names of the moves are the same there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import msgspec

from director import messages
from director import plan as plans
from director.models import FullRun, Node, Plan, Progress, Run, RunError, TaskError, TaskRun, time_text
from director.states import CANCELED, ENDED, PENDING, SKIPPED, WORD
from director.store.shapes import LEASE_MS, UNKNOWN_MS, Begun, Next, Outcome, Ref, ScheduleState


class Task(msgspec.Struct, array_like=True, omit_defaults=True):
    """One task run's state; times in ms. `s` is the status letter of `states.LETTER`."""

    s: str = "p"
    attempts: int = 0
    retries: int = 0
    losses: int = 0
    waits: int = 0
    """Parents that have not succeeded."""
    queued: int | None = None
    started: int | None = None
    ended: int | None = None
    """When it ended; of a retrying one, when it is queued again."""
    holder: str = ""
    token: str = ""
    lease: int | None = None
    """When the lease ends (TinyStore; Redis keeps leases in a zset)."""


class RunState(msgspec.Struct, omit_defaults=True):
    """One run's state; a task run that was never touched has no entry in `tasks`."""

    id: str
    workflow: str
    plan: str
    total: int
    nodes: int
    created: int
    s: str = "q"
    launch: int = 1
    started: int | None = None
    ended: int | None = None
    succeeded: int = 0
    failed: int = 0
    active: int = 0
    hooks: str = ""
    """A letter per ended launch: s or f, or - when no hook ran."""
    first_failed: int | None = None
    token: str = ""
    """Of the last relaunch or cancel."""
    tasks: dict[str, Task] = {}


class Moves:
    """The moves of one run.

    Args:
        run: changed in place.
        plan: the run's plan.
        data: results `r{n}` and errors `e{n}`, JSON; changed in place.
        now: ms.
        max_lost: losses after which a task run fails.
    """

    def __init__(
        self, run: RunState, plan: Plan, data: MutableMapping[str, bytes], now: int, max_lost: int
    ) -> None:
        self.run = run
        self.plan = plan
        self.data = data
        self.now = now
        self.max_lost = max_lost
        self.wish: Next | None = None
        self.holder = ""
        self.ended = False
        """The run has failed in this call."""
        self.kept: int | None = None
        """What the wish was granted."""

    def node(self, number: int) -> tuple[Node, str]:
        """Return a number's node, and its kind when it is a hook."""
        if number < self.run.nodes:
            return self.plan.nodes[number], ""
        kind = self.run.hooks[number - self.run.nodes]
        hook = self.plan.hook(kind)
        assert hook is not None
        return hook, kind

    def task(self, number: int) -> Task:
        """Return a number's state, made on first use."""
        task = self.run.tasks.get(str(number))
        if task is None:
            waits = len(self.plan.nodes[number].parents) if number < self.run.nodes else 0
            task = self.run.tasks[str(number)] = Task(waits=waits)
        return task

    def start(self, roots: Sequence[int], kept: Sequence[int], waits: Mapping[int, int]) -> None:
        """Queue the roots of a new run; `kept` have their results already."""
        for number in kept:
            self.run.tasks[str(number)] = Task(s="s", ended=self.now)
            self.run.succeeded += number < self.run.total
        for number, left in waits.items():
            self.run.tasks[str(number)] = Task(waits=left)
        for number in roots:
            self.run.tasks[str(number)] = Task()
            self.queue(number)
        self.run.active = len(roots)

    def begin(self, number: int, token: str, holder: str) -> Begun | None:
        """queued → running; the same answer for the token that holds it."""
        task = self.run.tasks.get(str(number))
        if task is None:
            return None
        if task.s == "q":
            self._begin(number, task, token, holder)
        elif task.s != "r" or task.token != token:
            return None
        return self.begun(number)

    def finish(self, number: int, token: str, outcome: Outcome, holder: str, wish: Next | None) -> int | None:
        """running → succeeded, failed or retrying; return the number that the wish was granted, if any.

        The caller has checked that the token is live.
        """
        task = self.task(number)
        if outcome.retry_in_ms is not None:
            task.retries += 1
            self._delay(task, self.now + outcome.retry_in_ms)
            self.data[f"e{number}"] = msgspec.json.encode(outcome.error)
            return None
        self.wish, self.holder = wish, holder
        if outcome.error is not None:
            self._complete(number, "f", msgspec.json.encode(outcome.error))
        else:
            self._complete(number, "s", outcome.result or b"null")
        return self.kept

    def kept_before(self, number: int, token: str) -> int | None:
        """Return what a repeated finish of `number` had begun with its wish's token."""
        candidates = [*self._releases(number), self.run.nodes + self.run.launch - 1]
        for candidate in candidates:
            task = self.run.tasks.get(str(candidate))
            if task is not None and task.s == "r" and task.token == token:
                return candidate
        return None

    def take_back(self, number: int, *, counted: bool) -> bool:
        """running → queued, or failed (return True): past its timeout, or after too many losses."""
        task, timeout_s = self.task(number), self.node(number)[0].timeout_s
        task.token, task.lease, error = "", None, b""
        if timeout_s and task.started is not None and self.now >= task.started + int(timeout_s * 1000):
            error = _error("Timeout", f"it took longer than its timeout of {timeout_s:g} s")
        else:
            task.losses += counted
            if counted and task.losses >= self.max_lost:
                error = _error("WorkerLost", f"its worker disappeared {task.losses} times")
        if error:
            self._complete(number, "f", error)
        else:
            self.queue(number)
        return bool(error)

    def unknown(self, number: int, error: TaskError) -> bool:
        """queued or running → retrying, or failed with `error` after too many losses (return True)."""
        task = self.task(number)
        task.losses += 1
        task.token = ""
        if task.losses < self.max_lost:
            self._delay(task, self.now + UNKNOWN_MS)
            return False
        self._complete(number, "f", msgspec.json.encode(error))
        return True

    def cancel(self, token: str) -> None:
        """The run and all that is underway in it → canceled."""
        for number, task in self.run.tasks.items():
            if int(number) < self.run.nodes and task.s in "qry":
                task.s, task.token, task.ended, task.lease = "c", "", self.now, None
        run = self.run
        run.s, run.ended, run.active, run.token, run.hooks = "c", self.now, 0, token, run.hooks + "-"

    def relaunch(self, resets: Mapping[int, int], token: str) -> None:
        """failed or canceled → queued; the plan has been exchanged already."""
        run = self.run
        run.launch += 1
        roots = []
        for number, waits in resets.items():
            before = self.task(number)
            if self.plan.nodes[number].task:
                run.succeeded -= before.s == "s"
                run.failed -= before.s == "f"
                self.data.pop(f"r{number}", None)
                self.data.pop(f"e{number}", None)
            run.tasks[str(number)] = Task(attempts=before.attempts, waits=waits)
            if waits == 0:
                roots.append(number)
        if run.first_failed in resets:
            failed = (n for n in range(run.total) if str(n) in run.tasks and run.tasks[str(n)].s == "f")
            run.first_failed = next(failed, None)
        for number in roots:
            self.queue(number)
        run.s, run.started, run.ended, run.active, run.token = "q", None, None, len(roots), token

    def queue(self, number: int) -> None:
        """any → queued"""
        task = self.task(number)
        task.s, task.queued, task.token, task.holder = "q", self.now, "", ""
        task.started = task.ended = task.lease = None

    def renew(self, number: int) -> None:
        """Lengthen a lease, never beyond the timeout."""
        task, timeout_s = self.task(number), self.node(number)[0].timeout_s
        task.lease = self.now + LEASE_MS
        if timeout_s and task.started is not None:
            task.lease = min(task.lease, task.started + int(timeout_s * 1000))

    def begun(self, number: int) -> Begun:
        """Return what the executing process needs of a running task run."""
        task, (node, kind) = self.task(number), self.node(number)
        parents = () if kind or node.shape == "none" else plans.inputs(self.plan, number)
        return Begun(
            ref=Ref(run_id=self.run.id, number=number),
            token=task.token,
            workflow=self.run.workflow,
            plan=self.run.plan,
            task=node.task,
            shape=node.shape,
            attempt=task.attempts,
            retries=task.retries,
            launch=number - self.run.nodes + 1 if kind else self.run.launch,
            hook=kind,
            payload=self.data.get("p", b"{}"),
            trigger=unpack_trigger(self.data.get("t", b"")),
            results=tuple(self.data.get(f"r{parent}", b"null") for parent in parents),
        )

    def _begin(self, number: int, task: Task, token: str, holder: str) -> None:
        task.s, task.token, task.holder, task.started, task.ended = "r", token, holder, self.now, None
        task.attempts += 1
        self.renew(number)
        if self.run.s == "q" and number < self.run.nodes:  # a former launch's hook is none of this launch
            self.run.s, self.run.started = "r", self.now

    def _queue_or_keep(self, number: int) -> None:
        node, wish = self.node(number)[0], self.wish
        fits = node.ahead and wish and messages.queue_list(node.queue, node.priority) == wish.queue
        if wish is None or not fits or self.kept is not None:
            return self.queue(number)
        task = self.task(number)
        task.queued, self.kept = self.now, number
        self._begin(number, task, wish.token, self.holder)

    def _release(self, children: Sequence[int]) -> None:
        for child in children:
            task, node = self.task(child), self.plan.nodes[child]
            if task.s != "p":
                continue
            task.waits -= 1
            if task.waits > 0:
                continue
            if not node.task:
                task.s, task.ended = "s", self.now
                self._release(node.children)
            else:
                self.run.active += 1
                self._queue_or_keep(child)

    def _releases(self, number: int) -> Iterator[int]:
        if number >= self.run.nodes:
            return
        for child in self.plan.nodes[number].children:
            if self.plan.nodes[child].task:
                yield child
            else:
                yield from self._releases(child)

    def _delay(self, task: Task, until: int) -> None:
        task.s, task.ended, task.lease = "y", until, None

    def _complete(self, number: int, letter: str, body: bytes) -> None:
        task, (node, kind) = self.task(number), self.node(number)
        task.s, task.ended, task.lease = letter, self.now, None
        if letter == "f":
            self.data[f"e{number}"] = body
        else:
            self.data.pop(f"e{number}", None)
            if body != b"null":
                self.data[f"r{number}"] = body
        if kind:
            return
        run = self.run
        run.active -= 1
        if letter == "s":
            run.succeeded += 1
            self._release(node.children)
        else:
            run.failed += 1
            if run.first_failed is None:
                run.first_failed = number
        if run.active == 0:
            self._end()

    def _end(self) -> None:
        run = self.run
        run.s = "s" if run.succeeded == run.total else "f"
        self.ended = run.s == "f"
        run.ended = self.now
        hook = self.plan.hook(run.s)
        run.hooks += run.s if hook else "-"
        if hook:
            self._queue_or_keep(run.nodes + run.launch - 1)


def _error(kind: str, message: str) -> bytes:
    return msgspec.json.encode(TaskError(type=kind, message=message))


# What both stores show of a run -----------------------------------------------------------------

_ERROR = msgspec.json.Decoder(TaskError)
_TRIGGER = ("kind", "source", "event", "delivery")


def pack_trigger(trigger: Mapping[str, Any]) -> bytes:
    """Return a trigger as lines, which mostly fit in a small hash's 64 bytes; JSON where it has other keys."""
    words = list(map(str, trigger.values()))
    if tuple(trigger) == _TRIGGER[: len(words)] and not any("\n" in word for word in words):
        return "\n".join(words).encode()
    return msgspec.json.encode(trigger)


def unpack_trigger(text: bytes) -> dict[str, Any]:
    """Return what `pack_trigger` was given."""
    if text.startswith(b"{"):
        found: dict[str, Any] = msgspec.json.decode(text)
        return found
    return dict(zip(_TRIGGER, text.decode().split("\n"), strict=False)) if text else {}


def header(run: RunState, data: Mapping[str, bytes], failed_key: str) -> Run:
    """Return a run as listings show it.

    Args:
        run: its state; task runs are not looked at.
        data: t, c, z and the first failure's error.
        failed_key: of the first failed task run.
    """
    return Run(**_header(run, data, failed_key))


def view(run: RunState, plan: Plan, data: Mapping[str, bytes]) -> FullRun:
    """Return all of a run."""
    failed_key = "" if run.first_failed is None else plan.nodes[run.first_failed].key
    tasks = [
        _task_run(run, node, number, data, tuple(plan.nodes[parent].key for parent in plans.inputs(plan, number)))
        for number, node in enumerate(plan.nodes[: plan.total])
    ]
    for number, kind in enumerate(run.hooks, run.nodes):
        hook = plan.hook(kind)
        if hook and str(number) in run.tasks:
            tasks.append(_task_run(run, hook, number, data, ()))
    payload = msgspec.Raw(data.get("p", b"{}"))
    return FullRun(**_header(run, data, failed_key), payload=payload, tasks=tuple(tasks))


def schedule_state(coming: int, due: int, run: str, count: int, skip: str) -> ScheduleState:
    """Return how a schedule's state is shown; 0, -1 and "" for what is not there, ms."""
    at, was, reason = [*skip.split(" ", 2), "", ""][:3]
    text = f"{time_text(int(at))}: {count and time_text(int(was))} {reason}" if skip else None
    return ScheduleState(
        next_due=time_text(coming) if coming > 0 else None,
        last_due=time_text(due) if due else None,
        last_run=run or None,
        skipped=count,
        last_skip=text,
    )


def _header(run: RunState, data: Mapping[str, bytes], failed_key: str) -> dict[str, Any]:
    text = data.get(f"e{run.first_failed}")
    error = _ERROR.decode(text) if text else None
    timed = run.started is not None and run.ended is not None
    return {
        "id": run.id,
        "workflow": run.workflow,
        "status": WORD[run.s],
        "launch": run.launch,
        "trigger": unpack_trigger(data.get("t", b"")),
        "comment": data.get("c", b"").decode(),
        "relaunch_of": data["z"].decode() if "z" in data else None,
        "created_at": time_text(run.created),
        "started_at": time_text(run.started),
        "ended_at": time_text(run.ended),
        "duration_s": ((run.ended or 0) - (run.started or 0)) / 1000 if timed else None,
        "progress": Progress(total=run.total, succeeded=run.succeeded, failed=run.failed),
        "error": RunError(task=failed_key, type=error.type, message=error.message) if error else None,
    }


def _task_run(
    run: RunState, node: Node, number: int, data: Mapping[str, bytes], parents: tuple[str, ...]
) -> TaskRun:
    task = run.tasks.get(str(number)) or Task()
    status = WORD[task.s]
    if status == PENDING and WORD[run.s] in ENDED:
        status = CANCELED if WORD[run.s] == CANCELED else SKIPPED
    result, error = data.get(f"r{number}"), data.get(f"e{number}")
    waits = task.s == "y"
    return TaskRun(
        number=number,
        key=node.key,
        task=node.task,
        status=status,
        attempts=task.attempts,
        parents=parents,
        queue=node.queue,
        hook=number >= run.nodes,
        queued_at=time_text(task.queued),
        started_at=time_text(task.started),
        ended_at=None if waits else time_text(task.ended),
        next_at=time_text(task.ended) if waits else None,
        worker=task.holder or None,
        result=msgspec.Raw(result) if result is not None else None,
        error=_ERROR.decode(error) if error else None,
    )

"""MAIN PATH, in the process that executes: begin, call the function, finish, go on with the next.

Nothing here knows Celery: `worker` hands in how a function is called (through Celery's tracer).
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import msgspec

from director import log, registry
from director.engine import new_token, report
from director.errors import NotFound, StoreUnavailable
from director.models import Plan, TaskError
from director.settings import MAX_ARGUMENT_BYTES, Settings
from director.states import CANCELED, ENDED, FAILED
from director.store.base import Store
from director.store.shapes import Begun, Described, Finished, Next, Outcome, Ref

LOOK_S = 2.0
"""How often a process renews its leases and looks whether its runs were canceled."""
AGAIN_S = 10.0
"""How long a task that has caught Canceled may clean up before it is raised again."""
INTERRUPT = signal.SIGURG
"""Sent by a process to its own main thread. Nothing else uses it, and without a handler it does nothing."""
MAX_BACKOFF_S = 600.0
T = TypeVar("T")

logger = log.get("director.execution")


class CallFunction(Protocol):
    """Calls a task's function; returns how that ended, its result not yet encoded."""

    def __call__(self, begun: Begun, arguments: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]) -> Result:
        """Raises UnknownTask, and nothing of the function's."""


class UnknownTask(Exception):
    """No function is registered under the name, in this process."""


class Result(msgspec.Struct):
    """How a function ended: a value, an error, or an error and the wish to be called again."""

    value: Any = None
    error: TaskError | None = None
    retry_in_s: float | None = None
    final: bool = False
    """No other try, whatever the plan grants."""


class Executor:
    """Executes task runs in this process and keeps their leases alive.

    Args:
        store: any; a forked child may use its parent's.
        settings: limits and the run-ahead budget.
    """

    threads = False
    """Whether several task runs execute in one process; the worker says so before it begins."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.boot = secrets.token_urlsafe(3)
        self.ahead_s = settings.run_ahead_s
        self._local = threading.local()
        self._numbers = itertools.count(1)
        self._start()
        os.register_at_fork(after_in_child=self._start)

    def _start(self) -> None:
        """Begin with nothing, in a forked child too: it has neither its parent's threads nor its task runs."""
        self._process = f"{self.boot}.{os.getpid():x}"
        self._held: dict[str, _Held] = {}
        self._keeper: threading.Thread | None = None

    def execute(self, ref: Ref, queue: str, ahead: bool, call: CallFunction) -> None:
        """Begin a task run; call its function; finish it; go on with what the store hands over.

        A message that comes twice, late, or for a canceled run finds nothing to begin.
        """
        holder = self.holder()
        begun = self._insist(self.store.begin(ref, new_token(), holder), "task.not_begun", ref)
        deadline = time.monotonic() + self.ahead_s
        while begun is not None:
            try:
                outcome = self._call(begun, call)
            except UnknownTask:
                # Another worker of the same queue may know it; this one has taken it only to go on.
                return self.unknown(begun.ref, begun.token, begun.task, queue)
            wish = None
            if ahead and time.monotonic() < deadline:
                wish = Next(token=new_token(), queue=queue, take=True)
            begun = self._finish(begun, outcome, holder, wish).begun

    def unknown(self, ref: Ref, token: str, task: str, queue: str) -> None:
        """Tell the store that this worker does not know a task run's task."""
        message = f'no worker of queue "{queue}" knows "{task}"'
        logger.error("task.unknown", task_run=str(ref), task=task, queue=queue, hint="restart it for new tasks")
        error = TaskError(type="UnknownTask", message=message)
        report(self.store.do(self.store.unknown(ref, token, error)), message)

    def holder(self) -> str:
        """Return the name under which this thread holds leases: `boot.process`, at most 11 characters."""
        if not self.threads:
            return self._process
        if not hasattr(self._local, "number"):
            self._local.number = next(self._numbers)
        return f"{self.boot}.{self._local.number:x}"

    def idle(self) -> bool:
        """Return whether nothing executes in this process."""
        return not self._held

    def _call(self, begun: Begun, call: CallFunction) -> Outcome:
        if self._keeper is None:
            if threading.current_thread() is threading.main_thread():
                signal.signal(INTERRUPT, registry.interrupt)
            self._keeper = threading.Thread(target=self._renew_for_ever, name="leases", daemon=True)
            self._keeper.start()
        held = self._held[begun.token] = _Held(begun.ref, threading.get_ident())
        registry.set_current(lambda: held.gone)
        started = time.monotonic()
        try:
            outcome = self._outcome(begun, call(begun, lambda: self._arguments(begun)))
        finally:
            registry.set_current(None)
            del self._held[begun.token]
        duration_s = round(time.monotonic() - started, 4)
        facts = {"run_id": begun.ref.run_id, "task": begun.task, "attempt": begun.attempt}
        if outcome.error is None:
            logger.debug("task.succeeded", **facts, duration_s=duration_s)
        elif not held.gone:
            event = "task.failed" if outcome.retry_in_ms is None else "task.retried"
            reason = f"{outcome.error.type}: {outcome.error.message}"
            logger.warning(event, **facts, duration_s=duration_s, reason=reason)
        return outcome

    def _finish(self, begun: Begun, outcome: Outcome, holder: str, wish: Next | None) -> Finished:
        """Record the outcome: it is here and nowhere else."""
        call = self.store.finish(begun.ref, begun.token, outcome, holder, wish)
        finished = self._insist(call, "task.not_recorded", begun.ref)
        if not finished.accepted and finished.run_status == CANCELED:
            logger.info("task.canceled", task_run=str(begun.ref), task=begun.task)
        elif not finished.accepted:
            logger.warning("task.refused", task_run=str(begun.ref), reason="its lease was taken away")
        elif finished.run_status in ENDED and not begun.hook:
            # Only the last task run of a run can end it, whatever its own outcome.
            level = logger.error if finished.run_status == FAILED else logger.debug
            level(f"run.{finished.run_status}", run_id=begun.ref.run_id, workflow=begun.workflow)
        return finished

    def _insist(self, call: Described[T], event: str, ref: Ref) -> T:
        """Make a call until it is answered, however long the store is away; repeats change nothing."""
        wait_s = 0.1
        while True:
            try:
                return self.store.do(call)
            except StoreUnavailable as exc:
                logger.warning(event, task_run=str(ref), reason=str(exc), wait_s=wait_s)
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, 2.0)

    def _arguments(self, begun: Begun) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the function is called with, as celery-director does."""
        size = len(begun.payload) + sum(map(len, begun.results))
        if size > MAX_ARGUMENT_BYTES:
            raise ValueError(f"its arguments have {size} bytes; the limit is {MAX_ARGUMENT_BYTES}")
        results = [msgspec.json.decode(result) for result in begun.results]
        previous = results if begun.shape == "list" else (results[0] if results else None)
        kwargs = {
            "payload": msgspec.json.decode(begun.payload),
            "workflow_id": begun.ref.run_id,
            "trigger": begun.trigger,
        }
        if begun.hook == "f":
            kwargs["run"] = self._failed_run(begun.ref)
        return (previous,), kwargs

    def _failed_run(self, hook: Ref) -> dict[str, Any]:
        run_id = hook.run_id
        run, _ = self._insist(self.store.get(run_id), "task.not_recorded", hook)
        failed = [
            {"key": task.key, "task": task.task, "error": msgspec.to_builtins(task.error)}
            for task in run.tasks
            if task.status == FAILED and not task.hook
        ]
        url = self.settings.run_url(run_id)
        return {"id": run_id, "workflow": run.workflow, "url": url, "failed": failed}

    def _outcome(self, begun: Begun, result: Result) -> Outcome:
        if result.error is None:
            try:
                return Outcome(result=self._encode(result.value))
            except (TypeError, ValueError, RecursionError) as exc:
                message = (
                    f"the result is not JSON: {exc}. Return dicts, lists, strings, numbers, true/false, None."
                )
                if isinstance(exc, OverflowError | _TooLarge):
                    message = str(exc)
                return Outcome(error=TaskError(type="ResultError", message=message))
        retry_in_s = None if result.final else self._retry_in_s(begun, result.retry_in_s)
        return Outcome(
            error=result.error, retry_in_ms=None if retry_in_s is None else max(0, int(retry_in_s * 1000))
        )

    def _encode(self, value: Any) -> bytes:
        # Not msgspec: it would let datetimes, sets and NaN through in another shape.
        body = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        if len(body) > self.settings.max_result_bytes:
            raise _TooLarge(
                f"the result has {len(body)} bytes; the limit is {self.settings.max_result_bytes} "
                "(DIRECTOR_MAX_RESULT_BYTES). Store it elsewhere and return where."
            )
        return body

    def _retry_in_s(self, begun: Begun, asked_s: float | None) -> float | None:
        """Return seconds until the next try, or None: what YAML says wins over what the task itself asks for.

        YAML's pauses double, with jitter.
        """
        if begun.hook:
            return asked_s
        try:
            plan: Plan = self._insist(self.store.plan(begun.plan), "task.not_recorded", begun.ref)
        except NotFound:
            return asked_s
        node = plan.nodes[begun.ref.number]
        if begun.retries >= (node.retries or 0) and (asked_s is None or node.retries is not None):
            return None
        if asked_s is not None and node.backoff is None:
            return asked_s
        backoff_s: float = (node.backoff or 1.0) * 2**begun.retries
        return min(backoff_s, MAX_BACKOFF_S) * random.uniform(0.75, 1.0)

    def _renew_for_ever(self) -> None:
        while True:
            time.sleep(LOOK_S)
            held = [(held.ref, token) for token, held in list(self._held.items()) if held.is_old()]
            if not held:
                continue
            try:
                gone: tuple[Ref, ...] = self.store.do(self.store.renew(held))
            except Exception as exc:  # noqa: BLE001 - this thread must not end: without it, long tasks are lost
                logger.warning("lease.not_renewed", count=len(held), reason=repr(exc))
                continue
            for ref, token in held:
                if ref in gone and (lost := self._held.get(token)):
                    lost.interrupt()


class _Held:
    """A task run that executes here."""

    def __init__(self, ref: Ref, thread: int) -> None:
        self.ref = ref
        self.thread = thread
        self.since = time.monotonic()
        self.gone = False
        self._again_at = 0.0

    def is_old(self) -> bool:
        """Return whether it is worth a call: most task runs end before."""
        return time.monotonic() - self.since > LOOK_S / 2

    def interrupt(self) -> None:
        """Say that it is held no more; in the main thread, raise Canceled inside its function, now and then.

        The signal may arrive when the next task run executes: what it does depends on that one's state.
        """
        self.gone = True
        if self.thread == threading.main_thread().ident and time.monotonic() >= self._again_at:
            self._again_at = time.monotonic() + AGAIN_S
            signal.pthread_kill(self.thread, INTERRUPT)


class _TooLarge(ValueError):
    """A result over the limit."""


class Arguments:
    """Which of the offered arguments a function takes: all, or those it names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.positional = 1
        self.names: frozenset[str] | None = None
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return
        kinds = {parameter.kind for parameter in parameters}
        offered = {"payload", "workflow_id", "trigger", "run"}
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        taken = [p for p in parameters if p.kind in positional and p.name not in offered]
        if not taken and inspect.Parameter.VAR_POSITIONAL not in kinds:
            self.positional = 0
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            self.names = frozenset(p.name for p in parameters)

    def select(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the function is called with."""
        if self.names is None:
            return args[: self.positional], dict(kwargs)
        return args[: self.positional], {name: value for name, value in kwargs.items() if name in self.names}


def seconds_until(when: object) -> float:
    """Return the seconds of Celery's `Retry.when`: a number of seconds, or a time."""
    if isinstance(when, datetime):
        return (when.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return float(when) if isinstance(when, int | float) else 0.0

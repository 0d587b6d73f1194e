"""What a worker's parent process looks after, beside Celery: signs of life, queues, dead children, shutdown."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import msgspec
from celery import Celery, signals
from celery.apps import worker as celery_worker
from celery.platforms import SecurityWarning
from celery.worker import consumer
from kombu.exceptions import SerializationError

from director import definitions, log, messages, plan, registry
from director.broker import Publisher
from director.engine import report
from director.errors import DirectorError, StoreUnavailable
from director.execution import Executor
from director.plan import DEFAULT_QUEUE
from director.settings import Settings
from director.store.shapes import Ref

ALIVE_S = 2.0
SWEEP_S = 3.0
"""Rarer than the scheduler's, often enough that the store is never taken to have been away."""
PASS_S = 0.5
WAKE_S = 0.05
SELDOM_S = 30.0

logger = log.get("director.worker")


_OF_THE_MESSAGE = (LookupError, TypeError, ValueError, AttributeError, RecursionError, SerializationError)
"""What Celery raises for messages of strange shapes. (It takes KeyError for a broker that is away.)"""


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Celery's, but a message that nobody can use is dropped; Celery would end, or reconnect for ever."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return what is called with each message."""
        handle = super().create_task_handler(*args, **kwargs)

        def receive(message: Any) -> Any:
            try:
                _check(message.headers)
                return handle(message)
            except _OF_THE_MESSAGE as exc:
                logger.warning(
                    "message.dropped", reason=f"it is no task's message: {type(exc).__name__}: {exc}"[:200]
                )
                message.reject_log_error(logger, self.connection_errors)

        return receive


def _check(headers: object) -> None:
    """Raise what is wrong with a message's headers where Celery would find it too late."""
    if not isinstance(headers, dict) or "task" not in headers:
        return  # of an older protocol, or none: Celery looks at its body first
    header = headers.get(messages.HEADER)
    if header is not None and messages.parse(header) is None:
        raise ValueError(f"its header {messages.HEADER} is broken")
    hard, soft = headers.get("timelimit") or (None, None)
    if not all(isinstance(limit, int | float | None) for limit in (hard, soft)):
        raise TypeError("a limit is no number")
    if not isinstance(headers["id"], str):
        raise TypeError("its id is no text")


class Parent:
    """What a worker's parent process looks after, beside Celery: signs of life, dead children, shutdown."""

    def __init__(self, app: Celery, settings: Settings, executor: Executor, found: registry.Discovery) -> None:
        self.app, self.settings, self.executor, self.discovery = app, settings, executor, found
        self.tasks = {name: entry.published() for name, entry in found.tasks.items()}
        self.store = executor.store
        self.consumes_all = True
        self.stopping = threading.Event()
        self._impatient = threading.Event()
        """A second signal has come."""
        self.instance: Any = None
        self._children: set[int] = set()
        self._publisher: Publisher | None = None
        self._due: dict[Callable[[], object], float] = {}

    def connect_signals(self) -> None:
        """Follow the life of the one Celery worker of this process."""
        # Containers run as root; with JSON messages that is what the warning itself allows.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        # What Celery logs of our task runs, `execution` says in one line, with the run's id.
        consumer = logging.getLogger("celery.worker.consumer.consumer")
        consumer.addFilter(_is_not_ours)
        consumer.addFilter(_Seldom())
        logging.getLogger("celery.app.trace").addFilter(lambda record: not registry.executing())
        # Celery would print its farewell among our lines.
        celery_worker.safe_say = lambda *_: None
        signals.setup_logging.connect(self._on_logging, weak=False)
        signals.celeryd_init.connect(self._on_init, weak=False)
        signals.celeryd_after_setup.connect(self._on_setup, weak=False)
        signals.worker_ready.connect(self._on_ready, weak=False)
        signals.worker_shutting_down.connect(self._on_shutdown, weak=False)
        signals.task_unknown.connect(self._on_unknown, weak=False)

    def hand_back(self, holder: str, *, counted: bool) -> int:
        """Put back in the queue what a holder executes; return how many."""
        reason = "its process has ended" if counted else "the worker stops"
        return len(report(self.store.do(self.store.hand_back(holder, counted)), reason).lost)

    def hand_back_of_the_dead(self) -> None:
        """Return the leases of pool children that are gone: a loss each, unless this worker stops."""
        alive = self._pool_pids()
        for pid in self._children - alive:
            self.hand_back(f"{self.executor.boot}.{pid:x}", counted=not self.stopping.is_set())
        self._children = alive

    def _on_logging(self, loglevel: Any = None, **_: Any) -> None:
        """Keep `log`'s set-up; `--loglevel` is for what Celery itself says."""
        if loglevel:
            logging.getLogger("celery").setLevel(loglevel)

    def _on_init(self, options: dict[str, Any] | None = None, **_: Any) -> None:
        self.consumes_all = not (options or {}).get("queues")

    def _on_setup(self, instance: Any, **_: Any) -> None:
        self.instance = instance
        limits = {name: getattr(instance, name, None) for name in ("time_limit", "soft_time_limit")}
        if any(limits.values()):
            # Of the whole worker: published as each task's, so that what it ends is known for a timeout.
            for name, options in self.tasks.items():
                own = {limit: getattr(options, limit) or value for limit, value in limits.items()}
                self.tasks[name] = msgspec.structs.replace(options, limited=True, **own)
        for queue in self._queues() if self.consumes_all else ():
            self.app.amqp.queues.select_add(queue, routing_key=queue)
        self.executor.threads = "prefork" not in instance.pool_cls.__module__
        # Celery counts and shows messages; with these options one message must stay one task.
        names = ("max_tasks_per_child", "task_events", "time_limit", "soft_time_limit")
        if any(getattr(instance, name, None) for name in names):
            self.executor.ahead_s = 0.0

    def _on_ready(self, **_: Any) -> None:
        pool = "threads" if self.executor.threads else "prefork"
        logger.info("worker.started", worker=self.executor.boot, pool=pool)
        self._children = self._pool_pids()
        if self.executor.threads and (hub := getattr(self.instance, "hub", None)):
            # A thread that ends its task wakes nobody, and Celery's loop would sleep on beside a full queue.
            hub.call_repeatedly(WAKE_S, int)
        threading.Thread(target=self._look_after, name="parent", daemon=True).start()
        if not (self.settings.embedded or self.settings.broker_is_store):
            self._publisher = Publisher(self.settings, self.store, self.executor.boot)
            self._publisher.start()

    def _on_shutdown(self, **_: Any) -> None:
        if self.stopping.is_set():
            self._impatient.set()
        else:
            self.stopping.set()
            threading.Thread(target=self._end_of_grace, name="grace", daemon=True).start()

    def _on_unknown(self, message: Any = None, name: str = "", **_: Any) -> None:
        ours = messages.parse((getattr(message, "headers", None) or {}).get(messages.HEADER))
        if ours:
            queue = (message.delivery_info or {}).get("routing_key") or DEFAULT_QUEUE
            with contextlib.suppress(DirectorError):
                self.executor.unknown(Ref(ours[0], ours[1]), "", name, queue)

    def _queues(self) -> set[str]:
        """Return every queue that a workflow or a stored plan names."""
        found = {DEFAULT_QUEUE}
        for workflow in definitions.load(self.settings.home).workflows.values():
            found.update(node.queue for node in plan.build(workflow, self.tasks).messaged)
        with contextlib.suppress(StoreUnavailable):
            found.update(self._publish())
        return found

    def _look_after(self) -> None:
        duties = ((self._publish, ALIVE_S), (self._sweep, SWEEP_S))
        away = False
        while True:
            # Until the process ends: a child that dies while the worker stops is noticed too.
            time.sleep(PASS_S)
            try:
                self.hand_back_of_the_dead()
                for duty, every_s in () if self.stopping.is_set() else duties:
                    if time.monotonic() >= self._due.get(duty, 0.0):
                        duty()
                        self._due[duty] = time.monotonic() + every_s
                if away:
                    logger.info("worker.store_back")
                away = False
            except DirectorError as exc:
                if not away:
                    logger.warning("worker.store_away", reason=str(exc))
                away = True

    def _sweep(self) -> None:
        report(self.store.do(self.store.sweep()), "its lease ended")

    def _publish(self) -> tuple[str, ...]:
        """Say that this worker is there; take up queues that runs have brought meanwhile."""
        queues: tuple[str, ...] = self.store.do(
            self.store.publish(self.executor.boot, self.tasks, sorted(self.app.amqp.queues.consume_from))
        )
        consumer = getattr(self.instance, "consumer", None)
        if self.consumes_all and consumer is not None and consumer.task_consumer is not None:
            for queue in queues:
                if queue not in self.app.amqp.queues:
                    logger.info("worker.queue_added", queue=queue)
                    consumer.call_soon(consumer.add_task_queue, queue)
        return queues

    def _pool_pids(self) -> set[int]:
        """Return the living children of a prefork pool."""
        if self.executor.threads:
            return set()
        pool = getattr(getattr(self.instance, "pool", None), "_pool", None)
        return {process.pid for process in getattr(pool, "_pool", None) or () if process.is_alive()}

    def _end_of_grace(self) -> None:
        """Give running tasks their time, or until a second signal; then hand them back, which is no loss."""
        logger.info("worker.stopping", grace_s=self.settings.grace_s)
        self._impatient.wait(self.settings.grace_s)
        for pid in self._pool_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._publisher is not None:
            self._publisher.stop()
        # Redis would give what is handed back to this worker's blocking pop, and it would end with it.
        with contextlib.suppress(AttributeError):
            for channel in self.instance.consumer.connection.transport.channels:
                channel.client.connection_pool.disconnect()
        try:
            count = self.hand_back(f"{self.executor.boot}.", counted=False)
            logger.warning("worker.stopped", reason="grace is over", handed_back=count)
        finally:  # with the store away, a sweep takes the leases back once they end
            os._exit(0)


class _Seldom(logging.Filter):
    """Lets pass once in half a minute what Celery says each second while the broker is away."""

    _last = -SELDOM_S

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged."""
        if "Cannot connect to" not in str(record.msg):
            return True
        if record.created < self._last + SELDOM_S:
            return False
        self._last = record.created
        return True


def _is_not_ours(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not (text.startswith("Received unregistered task") and f"'{messages.HEADER}': '" in text)

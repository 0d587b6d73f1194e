"""The Celery side: the app, the tasks' base class, and what a worker's parent process looks after.

Every user task is a real Celery task. `DirectorTask.__trace__` stands where Celery keeps a task's tracer:
a message of ours goes to `execution.Executor`, which calls the tracer between begin and finish; any
other message goes to the tracer as ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, signals
from celery.app.trace import trace_ok_t
from celery.exceptions import Ignore, Reject, Retry
from celery.platforms import SecurityWarning
from kombu.entity import Queue

from director import definitions, log, messages, plan, registry
from director.engine import sweep
from director.errors import DirectorError, StoreUnavailable
from director.execution import Arguments, Executor, Result, UnknownTask, seconds_until
from director.models import Plan, TaskError, TaskOptions
from director.plan import DEFAULT_QUEUE
from director.settings import Settings
from director.store import keys, open_store
from director.store.base import Begun, Outbox, Ref, Store

ALIVE_S = 2.0
SWEEP_S = 3.0
"""Rarer than the scheduler's, often enough that the store is never taken to have been away."""
PASS_S = 0.5
TRACEBACK_CHARS = 8000

# The tracer's own frames, which stand above those of the user's function.
_CELERY_FRAMES = re.compile(r'^  File "[^"]*celery/app/(?:trace|autoretry)\.py".*\n(?:    .*\n)*', re.MULTILINE)

logger = log.get("director.worker")


class DirectorTask(Task):  # type: ignore[misc]
    """The base class of all tasks."""

    abstract = True
    executor: Executor
    """Set on a class of its own for each app."""

    @property
    def __trace__(self) -> Callable[..., Any] | None:
        """Celery's tracer, wrapped; None until Celery has built it."""
        return self._trace_message if self.__dict__.get("_tracer") else None

    @__trace__.setter
    def __trace__(self, tracer: Callable[..., Any] | None) -> None:
        self.__dict__["_tracer"] = tracer

    def _trace_message(self, uuid: str, args: Any, kwargs: Any, request: dict[str, Any]) -> Any:
        """Stand in for the tracer: execute a message of ours, and what may run ahead after it."""
        ours = messages.parse(request.get(messages.HEADER))
        if ours is None:
            return self.__dict__["_tracer"](uuid, args, kwargs, request)
        run_id, number, ahead = ours
        info = request.get("delivery_info") or {}
        queue = messages.queue_list(info.get("routing_key") or DEFAULT_QUEUE, info.get("priority") or 0)
        tasks = self.app.tasks

        def call(begun: Begun, arguments: Any) -> Result:
            task = tasks.get(begun.task)
            if not isinstance(task, DirectorTask):
                raise UnknownTask(begun.task)
            return task._call(begun, arguments, request)

        self.executor.execute(Ref(run_id=run_id, number=number), queue, ahead, call)
        return trace_ok_t(None, None, 0.0, None)

    def _call(self, begun: Begun, arguments: Any, request: dict[str, Any]) -> Result:
        """Call the function through Celery's tracer, with a request of its own."""
        try:
            args, kwargs = self._arguments.select(*arguments())
            uuid = str(begun.ref)
            own = {**request, "id": uuid, "root_id": uuid, "correlation_id": uuid, "task": begun.task}
            # With headers given, Celery need not look for them in each request.
            headers = {messages.HEADER: request[messages.HEADER]}
            own.update(retries=begun.retries, args=args, kwargs=kwargs, headers=headers)
            # Celery builds tracers when a worker starts; a task that was registered later has none yet.
            tracer = self.__dict__.get("_tracer") or self._build_tracer()
            value, info, _, _ = tracer(uuid, args, kwargs, own)
        except registry.Canceled:
            return Result(error=TaskError(type="Canceled", message="its run was canceled"))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever a user's function raises
            return Result(error=_task_error(exc))
        if info is None:
            return Result(value=value)
        cause = info.retval
        if isinstance(cause, Ignore) and not isinstance(cause, Reject):
            return Result()
        text = getattr(value, "traceback", "") or ""
        if isinstance(cause, Retry):
            return Result(
                error=_task_error(cause.exc or cause, text), retry_in_s=max(0.0, seconds_until(cause.when))
            )
        return Result(error=_task_error(cause, text))

    @property
    def _arguments(self) -> Arguments:
        known = self.__dict__.get("_known_arguments")
        if known is None:
            known = self.__dict__["_known_arguments"] = Arguments(self.run)
        return known

    def _build_tracer(self) -> Callable[..., Any]:
        from celery.app.trace import build_tracer

        self.__trace__ = build_tracer(self.name, self, app=self.app)
        return self.__dict__["_tracer"]  # type: ignore[no-any-return]

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Ask for another try; as Celery's, but it waits in the store and never in a worker's memory."""
        request = self.request
        if messages.parse(request.get(messages.HEADER)) is None:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        most = self.max_retries if max_retries is None else max_retries
        if most is not None and request.retries >= most:
            if exc is not None:
                raise exc
            raise self.MaxRetriesExceededError(
                f"Can't retry {self.name}[{request.id}]", request.args, request.kwargs
            )
        wait = eta if eta is not None else (self.default_retry_delay if countdown is None else countdown)
        again = Retry(exc=exc, when=wait, is_eager=False)
        if throw:
            raise again from exc
        return again


def _task_error(exc: BaseException, text: str = "") -> TaskError:
    if not text:
        import traceback

        text = "".join(traceback.format_exception(exc))
    message = str(exc) or repr(exc)
    text = _CELERY_FRAMES.sub("", text)
    return TaskError(type=type(exc).__name__, message=message[:2000], traceback=text[-TRACEBACK_CHARS:])


def build_app(settings: Settings, store: Store | None = None, *, threads: bool | None = None) -> Celery:
    """Return the Celery app: broker, limits, and every task of `tasks/` registered on it."""
    threads = settings.pool != "prefork" if threads is None else threads
    store = store or open_store(settings)
    executor = Executor(store, settings, threads=threads)
    base = type("Task", (DirectorTask,), {"abstract": True, "executor": executor})
    app = Celery("director", task_cls=base, set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        task_default_queue=DEFAULT_QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_concurrency=settings.concurrency,
        worker_pool=settings.pool,
        **_broker(settings),
    )
    discovery = registry.discover(settings.home)
    for problem in discovery.problems:
        logger.error("tasks.broken", problem=str(problem))
    for entry in discovery.tasks.values():
        options = dict(entry.options)
        if options.pop("acks_late", None):
            logger.warning("task.option_ignored", task=entry.name, option="acks_late")
        app.task(name=entry.name, **options)(entry.function)
    published = {name: entry.published() for name, entry in discovery.tasks.items()}
    app.director = Parent(app, settings, executor, published)
    return app


def _broker(settings: Settings) -> dict[str, Any]:
    """Return Celery's settings of the broker."""
    if settings.embedded:
        return {"broker_url": "memory://localhost", "broker_transport_options": {"polling_interval": 0.01}}
    url = settings.broker_uri or settings.redis_url or ""
    if not url.startswith(("redis", "unix")):
        return {"broker_url": url}
    options = {
        "global_keyprefix": keys.queue_prefix(settings.prefix),
        "health_check_interval": 5,
        "socket_timeout": 10,
        "socket_connect_timeout": 2,
    }
    return {"broker_url": url.replace("unix://", "redis+socket://"), "broker_transport_options": options}


class Parent:
    """What a worker's parent process looks after, beside Celery: signs of life, dead children, shutdown."""

    def __init__(self, app: Celery, settings: Settings, executor: Executor, tasks: dict[str, TaskOptions]) -> None:
        self.app, self.settings, self.executor, self.tasks = app, settings, executor, tasks
        self.store = executor.store
        self.consumes_all = True
        self.stopping = threading.Event()
        self.instance: Any = None
        self._children: set[int] = set()
        self._due: dict[Callable[[], object], float] = {}

    def connect_signals(self) -> None:
        """Follow the life of the one Celery worker of this process."""
        # Containers run as root; with JSON messages that is what the warning itself allows.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        # What Celery logs of our task runs, `execution` says in one line, with the run's id.
        logging.getLogger("celery.worker.consumer.consumer").addFilter(_is_not_ours)
        logging.getLogger("celery.app.trace").addFilter(lambda record: not registry.executing())
        signals.celeryd_init.connect(self._on_init, weak=False)
        signals.celeryd_after_setup.connect(self._on_setup, weak=False)
        signals.worker_ready.connect(self._on_ready, weak=False)
        signals.worker_shutting_down.connect(self._on_shutdown, weak=False)
        signals.task_unknown.connect(self._on_unknown, weak=False)

    def hand_back(self, holder: str, *, counted: bool) -> int:
        """Put back in the queue what a holder executes; return how many."""
        back = self.store.do(self.store.hand_back(holder, counted))
        for ref in back:
            logger.warning("task.requeued", task_run=str(ref), reason="lost" if counted else "shutdown")
        return len(back)

    def hand_back_of_the_dead(self) -> None:
        """Return the leases of pool children that are gone: a loss each."""
        alive = self._pool_pids()
        for pid in self._children - alive:
            self.hand_back(f"{self.executor.boot}.{pid:x}", counted=True)
        self._children = alive

    def _on_init(self, options: dict[str, Any] | None = None, **_: Any) -> None:
        self.consumes_all = not (options or {}).get("queues")

    def _on_setup(self, instance: Any, **_: Any) -> None:
        self.instance = instance
        for queue in self._queues() if self.consumes_all else ():
            self.app.amqp.queues.add(Queue(queue, routing_key=queue))
        # Celery counts and shows messages; with these options one message must stay one task.
        if getattr(instance, "max_tasks_per_child", None) or getattr(instance, "task_events", None):
            self.executor.ahead_s = 0.0

    def _on_ready(self, **_: Any) -> None:
        pool = "threads" if self.executor.threads else "prefork"
        logger.info("worker.started", worker=self.executor.boot, pool=pool)
        self._children = self._pool_pids()
        threading.Thread(target=self._look_after, name="parent", daemon=True).start()

    def _on_shutdown(self, **_: Any) -> None:
        if not self.stopping.is_set():
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
        while not self.stopping.wait(PASS_S):
            try:
                self.hand_back_of_the_dead()
                for duty, every_s in duties:
                    if time.monotonic() >= self._due.get(duty, 0.0):
                        duty()
                        self._due[duty] = time.monotonic() + every_s
            except DirectorError as exc:
                logger.warning("worker.store_away", reason=str(exc))

    def _sweep(self) -> None:
        sweep(self.store)

    def _publish(self) -> tuple[str, ...]:
        """Say that this worker is there; take up queues that runs have brought meanwhile."""
        queues: tuple[str, ...] = self.store.do(self.store.publish(self.executor.boot, self.tasks))
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
        """Give running tasks their time; then stop them and hand them back, which is no loss."""
        time.sleep(self.settings.grace_s)
        for pid in self._pool_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Redis would give what is handed back to this worker's blocking pop, and it would end with it.
        with contextlib.suppress(AttributeError):
            for channel in self.instance.consumer.connection.transport.channels:
                channel.client.connection_pool.disconnect()
        try:
            count = self.hand_back(f"{self.executor.boot}.", counted=False)
            logger.warning("worker.stopped", reason="grace is over", handed_back=count)
        finally:  # with the store away, a sweep takes the leases back once they end
            os._exit(0)


def _is_not_ours(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not (text.startswith("Received unregistered task") and f"'{messages.HEADER}': '" in text)


def run_worker(settings: Settings, argv: list[str]) -> int:
    """Become a Celery worker; `argv` are Celery's own options. Returns its exit status."""
    threads = settings.pool != "prefork"
    for index, word in enumerate(argv):
        pool = word.partition("=")[2] or (argv[index + 1] if index + 1 < len(argv) else "")
        if word in ("-P", "--pool") or word.startswith("--pool="):
            threads = pool != "prefork"
    app = build_app(settings, threads=threads)
    app.director.connect_signals()
    app.set_current()
    given = {word.partition("=")[0] for word in argv}
    quiet = [] if given & {"-l", "--loglevel"} else ["--loglevel", "WARNING"]
    app.worker_main(["--quiet", "worker", "--without-gossip", "--without-mingle", *quiet, *argv])
    return 0


class EmbeddedWorker:
    """A Celery worker in a thread of this process, on the in-memory broker.

    Args:
        settings: of embedded mode.
        store: shared with the web handlers.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings, self.store = settings, store
        self.failed: BaseException | None = None
        self.ready = threading.Event()
        self._publisher: Publisher | None = None
        self._app: Celery | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Start the thread; it imports Celery and `tasks/`, so that the caller need not wait."""
        self._thread.start()

    def stop(self, grace_s: float | None = None) -> None:
        """Take no new work, give running tasks their grace, hand back what does not finish."""
        from celery.worker import state

        if self._app is None or not self._thread.is_alive():
            return
        if self._publisher:
            self._publisher.stop()
        parent: Parent = self._app.director
        deadline = time.monotonic() + (self.settings.grace_s if grace_s is None else grace_s)
        state.should_stop = 0
        while not parent.executor.idle() and time.monotonic() < deadline:
            time.sleep(0.02)
        parent.stopping.set()
        parent.hand_back(f"{parent.executor.boot}.", counted=False)
        # Celery's own way out takes seconds; nothing of it is needed any more.
        self._thread.join(0.2)

    def _run(self) -> None:
        from celery.worker import state

        try:
            state.should_stop = None
            app = self._app = build_app(self.settings, self.store, threads=True)
            app.set_current()
            # No other process executes here: whatever holds a lease died with the last service.
            app.director.hand_back(".", counted=True)
            app.director.connect_signals()
            signals.worker_ready.connect(self._on_ready, weak=False)
            without = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
            count = self.settings.concurrency
            app.Worker(pool="threads", concurrency=count, loglevel="WARNING", quiet=True, **without).start()
        except SystemExit:
            pass
        except BaseException as exc:
            self.failed = exc
            logger.exception("worker.died")

    def _on_ready(self, **_: Any) -> None:
        self._publisher = Publisher(self._app, self.store)
        self._publisher.start()
        self.ready.set()


class Publisher:
    """Publishes queued task runs to a broker that the store cannot write to, after the commit.

    What a crash leaves unpublished is found again: the outbox lists what is queued, and this process
    remembers only what it has published itself.
    """

    def __init__(self, app: Any, store: Store) -> None:
        self._app, self._store = app, store
        self._sent: dict[Ref, int] = {}
        self._plans: dict[str, Plan] = {}
        self._changed: threading.Event = getattr(store, "changed", threading.Event())
        self._stopped = False

    def start(self) -> None:
        """Start publishing: at every change made in this process, and once a second."""
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def stop(self) -> None:
        """Publish nothing more."""
        self._stopped = True
        self._changed.set()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self.publish()
            except DirectorError as exc:
                logger.warning("message.not_published", reason=str(exc))
            self._changed.wait(1.0)
            self._changed.clear()

    def publish(self) -> None:
        """Publish what is queued and not yet published."""
        waiting = self._store.do(self._store.outbox())
        self._sent = {item.ref: at for item in waiting if (at := self._sent.get(item.ref)) is not None}
        for item in waiting:
            if self._sent.get(item.ref) != item.queued_at:
                self._send(item)
                self._sent[item.ref] = item.queued_at

    def _send(self, item: Outbox) -> None:
        if item.plan not in self._plans:
            self._plans[item.plan] = self._store.do(self._store.plan(item.plan))
        of = self._plans[item.plan]
        node = of.hook(item.hook) if item.hook else of.nodes[item.ref.number]
        assert node is not None
        with self._app.producer_or_acquire() as producer:
            producer.publish(
                messages.ARGUMENTS,
                headers=messages.headers(node, str(item.ref), str(item.queued_at)),
                correlation_id=str(item.ref),
                routing_key=node.queue,
                exchange="",
                serializer="json",
                priority=node.priority,
                declare=[Queue(node.queue, routing_key=node.queue)],
            )


def __getattr__(name: str) -> Any:
    """Build the app for `celery -A director.worker`, and only then."""
    if name == "app":
        settings = Settings.from_env()
        log.configure(settings.log_level)
        app = build_app(settings)
        app.director.connect_signals()
        globals()["app"] = app
        return app
    raise AttributeError(name)

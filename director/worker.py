"""The Celery side: the app, the tasks' base class, `director worker`.

Every user task is a real Celery task. `DirectorTask.__trace__` stands where Celery keeps a task's tracer:
a message of ours goes to `execution.Executor`, which calls the tracer between begin and finish; any
other message goes to the tracer as ever. `parent` is what else a worker's parent process does.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from typing import Any

from billiard.common import terminate_handler_fired
from celery import Celery, Task
from celery.app.trace import trace_ok_t
from celery.exceptions import Ignore, Retry
from celery.utils.time import rate
from kombu.transport import TRANSPORT_ALIASES

from director import broker, log, messages, registry
from director.execution import Arguments, Executor, Result, UnknownTask, seconds_until
from director.models import TaskError
from director.parent import Consumer, Parent
from director.plan import DEFAULT_QUEUE
from director.settings import Settings
from director.store import keys, open_store
from director.store.base import Store
from director.store.shapes import Begun, Ref

TRACEBACK_CHARS = 8000

# What stands above and below the frames of the user's function.
_FILES = r"(?:celery/app/(?:trace|autoretry|task)|director/(?:worker|execution))\.py"
_NOT_THE_TASKS = re.compile(rf'^  File "[^"]*{_FILES}".*\n(?:    .*\n)*', re.MULTILINE)

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
            return Result(error=TaskError(type="Canceled", message="its run was canceled"), final=True)
        except BaseException as exc:
            if terminate_handler_fired():
                raise  # the pool ends this process; the task has not failed, its worker goes
            return Result(error=_task_error(exc))
        if info is None:
            return Result(value=value)
        cause = info.retval
        if isinstance(cause, Ignore):
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
    """Return an error as it is kept, whatever its class does when it is asked for its text."""
    text = _NOT_THE_TASKS.sub("", text or "".join(traceback.format_exception(exc)))
    try:
        message = str(exc) or repr(exc)
    except Exception as other:  # noqa: BLE001
        message = f"its text cannot be had: {type(other).__name__}"
    parts = (type(exc).__name__, message[:2000], text[-TRACEBACK_CHARS:])
    # A lone surrogate, as in the names of files that are no UTF-8, cannot be stored.
    kind, message, text = (part.encode("utf-8", "backslashreplace").decode() for part in parts)
    return TaskError(type=kind, message=message, traceback=text)


def build_app(settings: Settings, store: Store | None = None) -> Celery:
    """Return the Celery app: broker, limits, and every task of `tasks/` registered on it."""
    executor = Executor(store or open_store(settings), settings)
    base = type("Task", (DirectorTask,), {"abstract": True, "executor": executor})
    app = Celery("director", task_cls=base, set_as_current=False)
    app.amqp.Connection = broker.Connection
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
        worker_consumer=Consumer,
        **_broker(settings),
    )
    app.director = Parent(app, settings, executor, register(registry.discover(settings.home), app))
    for problem in app.director.discovery.problems:
        logger.error("tasks.broken", problem=str(problem))
    return app


def register(found: registry.Discovery, app: Celery | None = None) -> registry.Discovery:
    """Make Celery tasks of what was discovered; return what could be made, and what is wrong with the rest."""
    app = app or Celery(set_as_current=False)
    tasks, problems = {}, list(found.problems)
    for entry in found.tasks.values():
        options = dict(entry.options)
        if options.pop("acks_late", None):
            logger.warning("task.option_ignored", task=entry.name, option="acks_late")
        try:
            rate(options.get("rate_limit"))
            app.task(name=entry.name, lazy=False, shared=False, **options)(entry.function)
            tasks[entry.name] = entry
        except Exception as exc:  # noqa: BLE001 - whatever Celery makes of any option
            problems.append(found.problem_of(entry, f"cannot be a Celery task: {type(exc).__name__}: {exc}"))
    return registry.Discovery(home=found.home, tasks=tasks, problems=tuple(sorted(problems)))


def _broker(settings: Settings) -> dict[str, Any]:
    """Return Celery's settings of the broker."""
    if settings.embedded:
        return {"broker_url": "memory://localhost", "broker_transport_options": {"polling_interval": 0.01}}
    if not settings.broker_is_store:
        made = broker.transport(settings)
        return {
            "broker_url": broker.url(settings),
            "broker_transport_options": made["transport_options"],
            "broker_use_ssl": made.get("ssl"),
            "broker_heartbeat": 10,
        }
    url = settings.redis_url or ""
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "director.transport:Transport"
    options = {
        "global_keyprefix": keys.queue_prefix(settings.prefix),
        "health_check_interval": 5,
        "socket_timeout": 10,
        "socket_connect_timeout": 2,
    }
    return {
        "broker_url": url.replace("unix://", "redis+socket://"),
        "broker_transport_options": options,
        # No message waits behind a running task while another worker is free.
        "worker_disable_prefetch": True,
    }


def run_worker(settings: Settings, argv: list[str]) -> int:
    """Become a Celery worker; `argv` are Celery's own options. Returns its exit status."""
    app = build_app(settings)
    app.director.connect_signals()
    app.set_current()
    given = {word.partition("=")[0] for word in argv}
    quiet = [] if given & {"-l", "--loglevel"} else ["--loglevel", "WARNING"]
    status: int | None = app.start(["--quiet", "worker", "--without-gossip", "--without-mingle", *quiet, *argv])
    return status or 0


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

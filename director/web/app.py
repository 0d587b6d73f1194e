"""The Litestar application: routes, and what lives as long as the process does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from director import log
from director.loop import Loop
from director.settings import MAX_PAYLOAD_BYTES, Settings
from director.store import open_store
from director.web import api, auth, deliveries, openapi, problems, schedules, status, tokens
from director.web.service import Service
from director.web.webhooks import Webhooks

if TYPE_CHECKING:
    from director.embedded import EmbeddedWorker

REFRESH_S = 1.0
STORE_TIMEOUT_S = 0.9
LATER_S = 0.1
"""What the first answer does not need is imported so long after the start: 0.1 s for structlog, 0.5 s for
Celery, and imports in one thread slow all others down."""

logger = log.get("director.web")


class App(Litestar):
    """The API is Litestar's; deliveries go straight to their own handler, which halves what a request costs."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].startswith("/hooks/"):
            await self.state.webhooks(scope, receive, send)
        else:
            if scope.get("method") == "HEAD":
                # As monitors ask. The server below leaves the body away.
                scope = {**scope, "method": "GET"}
            await super().__call__(scope, receive, send)


def create_app(settings: Settings | None = None, *, worker: bool = True, scheduler: bool = True) -> Litestar:
    """Return the application; embedded, it starts the scheduler and worker threads where they are wanted.

    Raises:
        SettingsError: the settings cannot be used. Broken workflow files never keep it from starting.
    """
    settings = settings or Settings.from_env()
    log.configure(settings.log_level, gathered=True)
    service = Service(settings, open_store(settings, timeout_s=STORE_TIMEOUT_S))
    webhooks = Webhooks(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        embedded = settings.embedded
        companion = _Companion(service, worker=worker and embedded, scheduler=scheduler and embedded)
        try:
            yield
        finally:
            await asyncio.to_thread(companion.stop)
            await webhooks.inbox.close()
            service.close()

    return App(
        [*api.HANDLERS, *deliveries.HANDLERS, *schedules.HANDLERS, *status.HANDLERS, *tokens.HANDLERS],
        guards=[auth.require_access],
        dependencies={
            "service": Provide(lambda: service, sync_to_thread=False),
            "grant": Provide(auth.grant_of, sync_to_thread=False),
        },
        lifespan=[lifespan],
        state=State({"service": service, "webhooks": webhooks}),
        exception_handlers=problems.HANDLERS,
        request_max_body_size=MAX_PAYLOAD_BYTES,
        openapi_config=openapi.config(),
        logging_config=None,
    )


class _Companion:
    """The thread beside the loop: starts what may come late, then looks at the workflow files."""

    def __init__(self, service: Service, *, worker: bool, scheduler: bool) -> None:
        self._service, self._with_worker, self._with_scheduler = service, worker, scheduler
        self._worker: EmbeddedWorker | None = None
        self._started: list[Any] = []
        self._project = service.definitions.project
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="companion", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop what was started, last things first; a worker gets its grace."""
        self._ended.set()
        self._thread.join()
        for thread in reversed(self._started):
            thread.stop()

    def _run(self) -> None:
        if self._ended.wait(LATER_S):
            return
        if not self._service.settings.embedded:
            # What has been imported stays; what a request makes, it frees. Collecting costs a fifth of a webhook.
            gc.freeze()
            gc.set_threshold(20_000, 20, 20)
        settings, store = self._service.settings, self._service.store
        if self._with_scheduler:
            self._begin(Loop(settings, store, self._service.definitions, self._service.on_death))
        if self._with_worker:
            from director.embedded import EmbeddedWorker

            self._worker = EmbeddedWorker(settings, store)
            self._begin(self._worker)
        for text in status.problems_of(self._service):
            logger.warning("service.problem", problem=text)
        while not self._ended.wait(REFRESH_S):
            self._refresh()

    def _begin(self, thread: Any) -> None:
        if not self._ended.is_set():
            thread.start()
            self._started.append(thread)

    def _refresh(self) -> None:
        """Pick up changed workflow files, and the tasks that they may name."""
        definitions = self._service.definitions
        if self._worker is not None and self._worker.discovery is not None:
            definitions.tasks = self._worker.discovery.files
            self._service.task_problems = self._worker.discovery.problems
        before, self._project = self._project, definitions.project
        try:
            definitions.refresh()  # the scheduler's loop may have done so
            self._project = definitions.project
            changed = self._project is not before and self._project != before
        except Exception as exc:  # noqa: BLE001 - the last good version serves on; the next look may succeed
            logger.warning("definitions.unreadable", reason=repr(exc))
            return
        if changed:
            logger.info("definitions.changed", workflows=len(definitions.project.workflows))
            for problem in definitions.project.problems:
                logger.error("definitions.problem", problem=str(problem))

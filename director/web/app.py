"""The Litestar application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from litestar import Litestar, Router, asgi
from litestar.datastructures import State
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from director import __version__, log
from director.settings import MAX_PAYLOAD_BYTES, Settings
from director.store import open_store
from director.web import api, auth, problems, status
from director.web.service import Service
from director.web.webhooks import OPENAPI, Webhooks

REFRESH_S = 1.0
STORE_TIMEOUT_S = 0.9

logger = log.get("director.web")


def create_app(settings: Settings | None = None, *, worker: bool = True, scheduler: bool = True) -> Litestar:
    """Return the application. Embedded, it runs the scheduler and worker threads too.

    Args:
        settings: default `Settings.from_env()`.
        worker: embedded mode only: start the worker thread.
        scheduler: embedded mode only: start the scheduler thread.
    """
    settings = settings or Settings.from_env()
    service = Service(settings, open_store(settings, timeout_s=STORE_TIMEOUT_S))
    webhooks = Webhooks(settings, service.definitions, service.engine, service.calls)

    @asgi("/hooks", is_mount=True, copy_scope=False)
    async def hooks(scope: Any, receive: Any, send: Any) -> None:
        await webhooks(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        service.calls.start()
        refresher = asyncio.create_task(_refresh(service))
        threads = _threads(service, worker=worker, scheduler=scheduler) if settings.embedded else []
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            refresher.cancel()
            for thread in threads:
                await asyncio.to_thread(thread.stop)
            service.calls.stop()
            service.store.close()

    guarded = Router("/", route_handlers=[*api.HANDLERS, status.sources], guards=[auth.require_access])
    glance = Router(
        "/", route_handlers=[status.status, status.workflow_status], guards=[auth.require_access_to_status]
    )
    return Litestar(
        [hooks, guarded, glance, status.live, status.ready],
        lifespan=[lifespan],
        state=State({"service": service}),
        exception_handlers=problems.HANDLERS,
        request_max_body_size=MAX_PAYLOAD_BYTES + 65536,
        openapi_config=OpenAPIConfig(
            title="director",
            version=__version__,
            description="YAML workflows from signed webhooks, curl and schedules.",
            path="/schema",
            render_plugins=[_Document(path="/openapi.json")],
        ),
        logging_config=None,
    )


class _Document(JsonRenderPlugin):
    """The OpenAPI document, with the webhook route that is no Litestar handler."""

    def render(self, request: Any, openapi_schema: dict[str, Any]) -> bytes:
        paths = {**openapi_schema.get("paths", {}), "/hooks/{source}": OPENAPI}
        return super().render(request, {**openapi_schema, "paths": paths})


def _threads(service: Service, *, worker: bool, scheduler: bool) -> list[Any]:
    from director.scheduler import Loop

    threads: list[Any] = []
    if scheduler:
        threads.append(Loop(service.settings, service.store))
    if worker:
        threads.append(_LateWorker(service))
    return threads


class _LateWorker:
    """The embedded worker, imported by its own thread: Celery must not hold up the first answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._worker: Any = None
        self._stopped = False

    def start(self) -> None:
        import threading

        threading.Thread(target=self._start, name="worker-start", daemon=True).start()

    def _start(self) -> None:
        from director.worker import EmbeddedWorker

        if not self._stopped:
            self._worker = EmbeddedWorker(self._service.settings, self._service.store)
            self._worker.start()

    def stop(self) -> None:
        self._stopped = True
        if self._worker is not None:
            self._worker.stop()


async def _refresh(service: Service) -> None:
    """Pick up changed workflow files, once a second."""
    for text in status.problems_of(service):
        logger.warning("service.problem", problem=text)
    while True:
        await asyncio.sleep(REFRESH_S)
        try:
            changed = await asyncio.to_thread(service.definitions.refresh)
        except OSError as exc:
            logger.warning("definitions.unreadable", reason=str(exc))
            continue
        if changed:
            logger.info("definitions.changed", workflows=len(service.definitions.project.workflows))
            for problem in service.definitions.project.problems:
                logger.error("definitions.problem", problem=str(problem))

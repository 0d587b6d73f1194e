"""Embedded mode's worker: Celery in a thread of this process, on the in-memory broker."""

from __future__ import annotations

import threading
import time
from typing import Any

from celery import Celery, signals
from celery.worker import state

from director import log, messages
from director.broker import send
from director.errors import DirectorError
from director.models import Plan
from director.parent import Parent
from director.registry import Discovery
from director.settings import Settings
from director.store.base import Store
from director.store.shapes import Outbox, Ref
from director.worker import build_app

logger = log.get("director.worker")


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
        self.discovery: Discovery | None = None
        """What is in `tasks/`, once it has been imported."""
        self._publisher: Publisher | None = None
        self._app: Celery | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Start the thread; it imports Celery and `tasks/`, so that the caller need not wait."""
        self._thread.start()

    def stop(self, grace_s: float | None = None) -> None:
        """Take no new work, give running tasks their grace, hand back what does not finish."""
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
        try:
            state.should_stop = None
            app = self._app = build_app(self.settings, self.store)
            self.discovery = app.director.discovery
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
    """Publishes queued task runs to the in-memory broker, after the commit.

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
            send(producer, messages.headers(node, str(item.ref), str(item.queued_at)), node.queue, node.priority)

"""The way to the broker: Celery's connection to it, and the publisher to any broker but the store's Redis.

Scripts put the message of what they queue into the store's outbox. Each publisher takes over one at a time,
publishes it and drops it once the broker has confirmed it. A publisher that dies has its message taken from it
10 s later. What the broker itself loses is found after 20 s, once it says that the queue is empty; see `sweep`.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kombu import connection
from kombu.entity import Queue
from kombu.messaging import Producer

from director import log, messages
from director.engine import report
from director.settings import Settings
from director.store.base import Store
from director.store.redis import RedisStore

WAIT_S = 1.0
LOOK_S = 2.0
CONFIRM_S = 5.0
PAUSE_S = 0.5
RETRIES = {"interval_start": 1, "interval_step": 0, "interval_max": 1}
"""kombu waits longer each time, 32 s in the end, and so would the first message after an outage."""

logger = log.get("director.broker")


class Connection(connection.Connection):
    """kombu's, for workers: back within a second of the broker."""

    def ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Connect, however long it takes."""
        return super().ensure_connection(*args, **{**RETRIES, **kwargs})

    def collect(self, socket_timeout: float | None = None) -> None:
        """Let go of a lost connection; but its channels look at this object when they acknowledge or restore.

        Where kombu has taken it from them, they raise AttributeError, and the worker ends.
        """
        transport = self._transport
        super().collect(socket_timeout)
        if transport is not None:
            transport.client = self


def url(settings: Settings) -> str:
    """Return what kombu calls the broker; a folder is among the options."""
    uri = settings.broker_uri or ""
    return "filesystem://localhost/" if uri.startswith("filesystem") else uri


def transport(settings: Settings) -> dict[str, Any]:
    """Return kombu's options for the broker: `transport_options`, and `ssl` where it is encrypted."""
    uri = urlsplit(settings.broker_uri or "")
    if uri.scheme == "filesystem":
        folder = Path(uri.path)
        control = folder / "control"
        control.mkdir(parents=True, exist_ok=True)
        folders = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": control}
        options = {name: str(path) for name, path in folders.items()}
        return {"transport_options": {**options, "polling_interval": 0.05}}
    # Certificates are verified; with a name to expect, the host's too, and None is the URL's.
    encrypted = {"ssl": {"server_hostname": None}} if uri.scheme == "amqps" else {}
    return {"transport_options": {"confirm_publish": True}, **encrypted}


def send(producer: Producer, headers: dict[str, Any], queue: str, priority: int) -> None:
    """Publish the message of one task run; where the broker confirms, wait for that."""
    producer.publish(
        messages.ARGUMENTS,
        headers=headers,
        correlation_id=headers["id"],
        routing_key=queue,
        exchange="",
        serializer="json",
        priority=priority,
        declare=[Queue(queue, routing_key=queue)],
        confirm_timeout=CONFIRM_S,
    )


class Publisher:
    """A thread that empties the outbox.

    Args:
        settings: name the broker.
        store: of this process; a RedisStore, as embedded mode has no other broker.
        name: nobody else's.
    """

    def __init__(self, settings: Settings, store: Store, name: str) -> None:
        assert isinstance(store, RedisStore)
        self._settings, self._store, self._name = settings, store, name
        self._stopped = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more messages over; what is being sent gets a moment."""
        self._stopped.set()
        self._thread.join(WAIT_S * 2)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._connect() as connection:
                    self._publish(connection)
            except Exception as exc:  # noqa: BLE001 - whatever the client makes of a broker in trouble
                if not self._away:
                    broker = self._settings.broker_name
                    logger.warning("publisher.broker_away", broker=broker, reason=str(exc) or repr(exc))
                self._away = True
            self._stopped.wait(PAUSE_S)

    def _connect(self) -> Connection:
        options = transport(self._settings)
        if "confirm_publish" in options["transport_options"]:
            options["transport_options"].update(read_timeout=CONFIRM_S, write_timeout=CONFIRM_S)
        return Connection(url(self._settings), connect_timeout=CONFIRM_S, **options)

    def _publish(self, connection: Connection) -> None:
        store, name = self._store, self._name
        producer, looked_at = Producer(connection.channel()), 0.0
        while not self._stopped.is_set():
            if time.monotonic() > looked_at + LOOK_S:
                self._look(connection)
                looked_at = time.monotonic()
            message = store.do(store.take_message(name, WAIT_S))
            if message is None:
                continue
            found = json.loads(message)
            properties = found["properties"]
            send(producer, found["headers"], properties["delivery_info"]["routing_key"], properties["priority"])
            store.do(store.drop_message(name, message))
            if self._away:
                logger.info("publisher.broker_back")
                self._away = False

    def _look(self, connection: Connection) -> None:
        """Return what has not been confirmed; have sent again what the broker has lost."""
        store, name = self._store, self._name
        while store.do(store.return_message(name)) is not None:
            pass
        unsure = report(store.do(store.sweep(publisher=name)), "its lease ended").unsure
        if drained := [queue for queue in unsure if not _count(connection, queue)]:
            report(store.do(store.sweep(publisher=name, drained=drained)), "its lease ended")


def _count(connection: Connection, queue: str) -> int:
    """Return how many messages wait in a broker's queue; none where it does not exist."""
    with contextlib.suppress(*connection.channel_errors), connection.channel() as channel:
        return int(Queue(queue, channel=channel).queue_declare(passive=True).message_count)
    return 0

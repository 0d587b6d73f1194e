"""A provider of webhooks: signed deliveries, each sent again under its id until it is answered with a 2xx."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import random
import threading
import time

import msgspec

from tests.faults.project import FLOWS, SECRET

TIMEOUT_S = 5.0


class Delivery(msgspec.Struct):
    id: str
    event: str
    n: int
    payload: dict[str, object] = {}
    """Beside `n`."""
    answers: list[tuple[int, dict]] = msgspec.field(default_factory=list)
    """Every 2xx: status and body."""
    tries: int = 0
    refused: list[str] = msgspec.field(default_factory=list)
    """What came that is neither a 2xx, nor a 503, nor a broken connection."""


class Sender:
    """Several threads that send until `stop`.

    Args:
        ports: of the web processes; a repeat goes to the next one.
        pause_s: between two deliveries of a thread, on average.
    """

    def __init__(self, ports: list[int], seed: int, *, threads: int, pause_s: float) -> None:
        self._ports, self._pause_s = ports, pause_s
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.deliveries: list[Delivery] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Make no new deliveries; finish what was begun."""
        self._stop.set()

    def join(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while not self._stop.is_set():
            delivery, again, turn = self._next()
            pause_s = 0.2
            while not self.send(delivery, turn):
                turn += 1
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 2.0)
            if again:
                self.send(delivery, turn + 1)
            self._stop.wait(self._pause_s * 2 * random.random())

    def _next(self) -> tuple[Delivery, bool, int]:
        with self._lock:
            n = len(self.deliveries) + 1
            flows = list(FLOWS.values())
            flow = self._rng.choices(flows, [flow.weight for flow in flows])[0]
            delivery = Delivery(f"delivery-{n}", flow.event, n)
            self.deliveries.append(delivery)
            # Some providers send what they know to be answered.
            return delivery, self._rng.random() < 0.1, self._rng.randrange(len(self._ports))

    def send(self, delivery: Delivery, turn: int) -> bool:
        """Send once; return whether it was answered with a 2xx."""
        body = json.dumps({"n": delivery.n, **delivery.payload}).encode()
        headers = {
            "Content-Type": "application/json",
            "X-GitHub-Event": delivery.event,
            "X-GitHub-Delivery": delivery.id,
            "X-Hub-Signature-256": "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest(),
        }
        delivery.tries += 1
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._ports[turn % len(self._ports)], timeout=TIMEOUT_S
        )
        try:
            connection.request("POST", "/hooks/github", body, headers)
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if status // 100 == 2:
            delivery.answers.append((status, json.loads(text)))
            return True
        if status != 503:
            delivery.refused.append(f"{status} {text[:300]!r}")
        return False

"""The faults: a schedule that follows from a seed, and the thread that carries it out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from tests.faults.services import Fault, Server, Service

REDIS_S = (5.0, 40.0)

# role, signal, whom, weight
CHOICES = [
    ("worker", "KILL", "all", 3),
    ("worker", "KILL", "parent", 2),
    ("worker", "KILL", "child", 6),
    ("worker", "STOP", "all", 4),
    ("worker", "STOP", "parent", 2),
    ("worker", "STOP", "child", 4),
    ("worker", "TERM", "parent", 4),
    ("worker", "TERM", "child", 2),
    ("web", "KILL", "all", 3),
    ("web", "STOP", "all", 2),
    ("web", "TERM", "all", 2),
    ("scheduler", "KILL", "all", 2),
    ("scheduler", "STOP", "all", 2),
    ("scheduler", "TERM", "all", 1),
]


class Step(NamedTuple):
    at_s: float
    role: str
    kind: str
    whom: str
    pick: float
    """Which of the role's services, and which child, as a fraction."""
    seconds: float
    """Frozen, or down, for so long."""


def schedule(seed: int, seconds: float, *, mean_s: float = 3.0, longest_s: float = 40.0) -> list[Step]:
    """Return the faults of a seed, the same each time.

    Args:
        mean_s: between two faults.
        longest_s: of a freeze; one in ten is beyond the lease when this is.
    """
    rng = random.Random(seed)
    steps = []
    at = 1.0
    while at < seconds:
        role, kind, whom, _ = rng.choices(CHOICES, [choice[3] for choice in CHOICES])[0]
        frozen_s = rng.uniform(32, longest_s) if rng.random() < 0.1 and longest_s > 32 else rng.uniform(0.2, 6)
        steps.append(Step(at, role, kind, whom, rng.random(), frozen_s if kind == "STOP" else 0.0))
        at += rng.expovariate(1 / mean_s)
    at = rng.uniform(*REDIS_S) / 2
    while at < seconds:
        down_s = rng.choice([0.0, 0.5, 2.0, 7.0])
        steps.append(Step(at, "redis", "KILL", "all", 0.0, down_s))
        at += down_s + rng.uniform(*REDIS_S)
    return sorted(steps)


class Nemesis(threading.Thread):
    """Carries a schedule out."""

    def __init__(
        self, steps: list[Step], services: Mapping[str, list[Service]], server: Server, faults: list[Fault]
    ) -> None:
        super().__init__(daemon=True)
        self._steps, self._services, self._server, self._faults = steps, services, server, faults
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            started = time.monotonic()
            for step in self._steps:
                time.sleep(max(0.0, started + step.at_s - time.monotonic()))
                if step.role == "redis":
                    self._server.kill(step.seconds, self._faults)
                else:
                    several = self._services[step.role]
                    chosen = several[int(step.pick * len(several))]
                    chosen.hurt(step.kind, step.whom, step.pick * len(several) % 1, step.seconds)
        except BaseException as exc:
            self.error = exc

"""How long recovery takes, measured one fault at a time: `python -m tests.faults.recovery [NAME …]`."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import msgspec
import redis

from director.store.redis import RedisStore
from tests.faults.checker import Checker, Line, read_history
from tests.faults.sender import Delivery, Sender
from tests.faults.services import send
from tests.faults.soak import GRACE_S, Rig, Size, rig
from tests.processes import until


class Bench:
    """One installation, and deliveries made by hand."""

    def __init__(self, made: Rig) -> None:
        self.made, self.store = made, RedisStore(made.server.url)
        self.client = redis.Redis.from_url(made.server.url)
        self.sender = Sender(made.ports, 1, threads=0, pause_s=0)
        self.workers = made.services["worker"]
        until(lambda: self.store.do(self.store.state([])).workers == len(self.workers), 30, "workers")

    def start(self, event: str, n: int = 1, **payload: object) -> str:
        """Start a run; return its id."""
        delivery = Delivery(f"d{time.monotonic_ns()}", event, n, payload)
        self.sender.deliveries.append(delivery)
        until(lambda: self.sender.send(delivery, 0), 30, "a 2xx")
        return str(delivery.answers[0][1]["runs"][0]["id"])

    def lines(self, run_id: str, what: str = "begin", number: int = 0) -> list[Line]:
        history = read_history(self.made.home / "history")
        return [line for line in history.get(f"{run_id}:{number}", []) if line.what == what]

    def begun(self, run_id: str, times: int = 1, timeout_s: float = 60) -> Line:
        """Wait for an execution of the first task run."""
        return until(lambda: self.lines(run_id)[times - 1 :], timeout_s, f"execution {times}")[0]

    def end(self, run_id: str, timeout_s: float = 120) -> str:
        until(lambda: self.run(run_id).status in ("succeeded", "failed"), timeout_s, f"end of {run_id}")
        return str(self.run(run_id).status)

    def run(self, run_id: str):
        return self.store.do(self.store.get(run_id))[0]

    def check(self) -> None:
        """Nothing that the soak would call a violation."""
        checker = Checker(
            self.made.server.url, self.sender.deliveries, self.made.home / "history", self.made.faults
        )
        until(checker.is_idle, 90, "quiet")
        found = checker.violations()
        assert not found, found


def killed(bench: Bench, whom: str) -> str:
    """SIGKILL who executes; from there to the next execution."""
    run_id = bench.start("slow", seconds=4)
    line = bench.begun(run_id)
    worker = next(worker for worker in bench.workers if worker.pid == line.group)
    at = time.monotonic()
    if whom == "child":
        send("KILL", (line.pid,))
        worker.faults.append(worker.faults[-1]._replace(pids=(line.pid,), kind="KILL")) if worker.faults else None
    else:
        worker.hurt("KILL", "all")
    bench.begun(run_id, 2)
    took_s = time.monotonic() - at
    assert bench.end(run_id) == "succeeded"
    return f"{took_s:.1f} s until it runs again"


def pool_child(bench: Bench) -> str:
    return killed(bench, "child")


def whole_worker(bench: Bench) -> str:
    return killed(bench, "all")


def message_in_hand(bench: Bench) -> str:
    """A worker is killed between taking a message and beginning it."""
    taken = until(lambda: _take_along(bench), 60, "a message in a frozen worker's hands")
    at = time.monotonic()
    for worker in bench.workers:
        worker.hurt("KILL", "all")
    bench.begun(taken)
    took_s = time.monotonic() - at
    assert bench.end(taken) == "succeeded"
    return f"{took_s:.1f} s until it runs"


def _take_along(bench: Bench) -> str:
    for worker in bench.workers:
        send("STOP", worker.members("all"))
    run_id = bench.start("single")
    time.sleep(0.1)
    if not bench.client.llen("director:mq:celery"):
        return run_id
    for worker in bench.workers:
        send("CONT", worker.members("all"))
    bench.end(run_id)
    return ""


def frozen(bench: Bench) -> str:
    """A worker is frozen for 60 s in a task: its late result is refused."""
    run_id = bench.start("slow", seconds=3)
    line = bench.begun(run_id)
    worker = next(worker for worker in bench.workers if worker.pid == line.group)
    worker.hurt("STOP", "all", 0.0, 60.0)
    at = time.monotonic()
    bench.begun(run_id, 2)
    took_s = time.monotonic() - at
    assert bench.end(run_id) == "succeeded"
    accepted = msgspec.json.decode(bench.run(run_id).tasks[0].result)["nonce"]
    assert accepted == bench.lines(run_id)[1].nonce
    log = bench.made.home / f"{worker.name}.log"
    until(lambda: "task.refused" in log.read_text(), 90, "the refusal")
    assert msgspec.json.decode(bench.run(run_id).tasks[0].result)["nonce"] == accepted
    return f"{took_s:.1f} s until it runs again elsewhere; the late result was refused"


def long_task(bench: Bench) -> str:
    """A task of 90 s with a lease of 30 s."""
    run_id = bench.start("slow", seconds=90)
    assert bench.end(run_id) == "succeeded"
    return f"{len(bench.lines(run_id))} execution"


def poison(bench: Bench) -> str:
    """A task that kills its process each time fails after three losses; the others are served meanwhile."""
    at = time.monotonic()
    run_id = bench.start("suicide", kills=99)
    others, waits = [], []
    while bench.run(run_id).status not in ("failed", "succeeded"):
        others.append(bench.start("single"))
        began = time.monotonic()
        assert bench.end(others[-1], 20) == "succeeded"
        waits.append(time.monotonic() - began)
        assert time.monotonic() - at < 150, bench.run(run_id)
    run = bench.run(run_id)
    assert (run.status, run.error.type) == ("failed", "WorkerLost"), run
    gaps = [f"{(b.at - a.at) / 1000:.1f}" for a, b in pairwise(bench.lines(run_id, number=1))]
    return f"failed after {time.monotonic() - at:.1f} s (pauses {gaps} s); {len(others)} others took at most {max(waits):.2f} s"


def sigterm(bench: Bench, times: int = 20) -> str:
    """SIGTERM at random moments under load: nothing is lost, each worker ends within its grace and 5 s."""
    load = Sender(bench.made.ports, 3, threads=4, pause_s=0.6)
    rng, took = random.Random(5), []
    for _ in range(times):
        time.sleep(rng.uniform(0.5, 3))
        worker = rng.choice(bench.workers)
        process = worker._process
        worker.hurt("TERM", "parent")
        at = time.monotonic()
        until(lambda process=process: process.poll() is not None, GRACE_S + 10, "exit")
        took.append(time.monotonic() - at)
        assert process.returncode in (0, -signal.SIGTERM), process.returncode
    load.stop()
    load.join(60)
    bench.sender.deliveries += [msgspec.structs.replace(one) for one in load.deliveries]
    checker = Checker(
        bench.made.server.url, bench.sender.deliveries, bench.made.home / "history", bench.made.faults
    )
    until(checker.is_idle, 90, "quiet")
    found = checker.violations()
    assert not found, found[:5]
    # A task that kills its own process is a loss; a SIGTERM is none.
    losses = checker.counts["losses"] - checker.counts["suicides"]
    return (
        f"{times} SIGTERMs, {len(load.deliveries)} deliveries, {losses} of them counted as a loss, "
        f"{checker.counts['handed back']} handed back; exit within {max(took):.1f} s (grace {GRACE_S} s)"
    )


MEASURES: dict[str, Callable[[Bench], str]] = {
    made.__name__: made for made in (pool_child, whole_worker, message_in_hand, frozen, long_task, poison, sigterm)
}


def main(names: list[str]) -> None:
    for name in names or list(MEASURES):
        with rig(Size(webs=1, schedulers=1, workers=2), keep=True) as made:
            print(f"{name:16} {MEASURES[name](Bench(made))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

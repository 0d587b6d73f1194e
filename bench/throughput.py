"""Chains, fan-out and single tasks: ours beside Celery and huey, alternating in one run.

    python -m bench.throughput [--rounds 5] [--only chain,latency,fanout,single]

Every rival has one worker with two processes. The last task of a chain or a fan-out pushes to a list `done` in
Redis with a plain client; single tasks do nothing at all. With a backlog, the bench looks every 5 ms whether all
is done, so that watching costs next to nothing; alone, it waits for the push.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import harness
from director import plan
from director.engine import new_run_id
from director.models import Plan
from director.store.redis import RedisStore
from director.store.shapes import NewRun
from tests.processes import ready, workflow

TASKS = """
import os
import redis
from director import task

counter = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"])

@task(name="NOOP")
def noop(previous):
    return None

@task(name="MEMBER")
def member(previous):
    return 1

@task(name="LAST")
def last(previous):
    counter.rpush("done", 1)

@task(name="JOIN")
def join(results):
    assert len(results) == 100
    counter.rpush("done", 1)
"""
CHAINS, SINGLES, LATENCIES, FANOUTS = 300, 3000, 30, 10


class Rival:
    """One way to run tasks: a worker, and how to start each shape."""

    name = ""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = harness.client(url)

    def command(self) -> tuple[list[str], dict[str, str]]:
        raise NotImplementedError

    def prepare(self) -> None:
        """Wait until the worker takes tasks."""
        self.start_chain()
        self.wait(1)

    def start_chain(self) -> None:
        raise NotImplementedError

    def start_fanout(self) -> None:
        raise NotImplementedError

    def start_single(self) -> None:
        raise NotImplementedError

    def chains_left(self) -> bool:
        """Return whether chains of a backlog still wait."""
        return self.client.llen("done") < CHAINS

    def singles_left(self) -> bool:
        """Return whether single tasks still wait."""
        raise NotImplementedError

    def wait(self, count: int) -> None:
        """Return once `count` runs have ended."""
        for _ in range(count):
            if self.client.blpop(["done"], timeout=60) is None:
                raise TimeoutError(f"{self.name}: a run has not ended")

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        self.client.flushall()
        command, env = self.command()
        with harness.process(command, BENCH_REDIS_URL=self.url, **env) as process:
            self.prepare()
            yield process


class Ours(Rival):
    name = "director"

    def __init__(self, url: str, home: Path) -> None:
        super().__init__(url)
        self.home = home
        (home / "tasks").mkdir(parents=True)
        (home / "tasks" / "bench.py").write_text(TASKS)
        self.store = RedisStore(url)
        self.plans: dict[str, Plan] = {}

    def command(self) -> tuple[list[str], dict[str, str]]:
        env = {"DIRECTOR_HOME": str(self.home), "DIRECTOR_REDIS_URL": self.url, "DIRECTOR_LOG_LEVEL": "WARNING"}
        return [sys.executable, "-m", "director", "worker", "-c", "2"], env

    def prepare(self) -> None:
        ready(self.store)
        options = self.store.do(self.store.task_options())
        specs = {
            "chain": ["NOOP"] * 9 + ["LAST"],
            "fanout": ["NOOP", ("MEMBER",) * 100, "JOIN"],
            "single": ["NOOP"],
        }
        self.plans = {name: plan.build(workflow(spec), options) for name, spec in specs.items()}
        super().prepare()

    def start(self, name: str) -> None:
        new = NewRun(
            run_id=new_run_id(), plan=self.plans[name], payload=b"{}", trigger={"kind": "api"}, roots=(0,)
        )
        self.store.do(self.store.start(new))

    def start_chain(self) -> None:
        self.start("chain")

    def start_fanout(self) -> None:
        self.start("fanout")

    def start_single(self) -> None:
        self.start("single")

    def singles_left(self) -> bool:
        return int(self.client.hget("director:stats", "active:w") or 0) > 0


class CeleryRival(Rival):
    name = "celery"

    def command(self) -> tuple[list[str], dict[str, str]]:
        words = "-A bench.celery_rival worker -c 2 -l ERROR --without-gossip --without-mingle --without-heartbeat"
        return [sys.executable, "-m", "celery", *words.split()], {}

    def start_chain(self) -> None:
        from celery import chain

        from bench.celery_rival import app, last, noop

        with app.connection_for_write():
            chain(*[noop.si() for _ in range(9)], last.si()).apply_async()

    def start_fanout(self) -> None:
        from celery import chord, group

        from bench.celery_rival import join, member

        chord(group(member.si() for _ in range(100)))(join.s())

    def start_single(self) -> None:
        from bench.celery_rival import noop

        noop.delay()

    def singles_left(self) -> bool:
        # Acknowledged when taken: at most two are still underway when both are empty.
        return bool(self.client.llen("celery") or self.client.hlen("unacked"))


class HueyRival(Rival):
    name = "huey"

    def command(self) -> tuple[list[str], dict[str, str]]:
        consumer = Path(sys.executable).parent / "huey_consumer"
        if not consumer.exists():
            consumer = Path(sys.executable).parent / "huey_consumer.py"
        return [str(consumer), "bench.huey_rival.huey", "-w", "2", "-k", "process", "-q", "-n"], {
            "PYTHONPATH": "."
        }

    def start_chain(self) -> None:
        from bench.huey_rival import huey, last, noop

        pipeline = noop.s()
        for _ in range(8):
            pipeline = pipeline.then(noop)
        huey.enqueue(pipeline.then(last))


def backlog(
    start: Callable[[], None], process: subprocess.Popen[bytes], count: int, left: Callable[[], bool]
) -> float:
    """Return runs/s of `count` runs that all wait when the worker is let go: starting them costs nothing here."""
    os.killpg(process.pid, signal.SIGSTOP)
    for _ in range(count):
        start()
    began = time.perf_counter()
    os.killpg(process.pid, signal.SIGCONT)
    while left():
        time.sleep(0.005)
    return count / (time.perf_counter() - began)


def one_by_one(start: Callable[[], None], rival: Rival, count: int) -> float:
    """Return the median of seconds that a run takes alone."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        start()
        rival.wait(1)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="chain,latency,fanout,single")
    options = parser.parse_args()
    wanted = options.only.split(",")
    print(harness.environment())
    chain: dict[str, list[float]] = {}
    latency: dict[str, list[float]] = {}
    fanout: dict[str, list[float]] = {}
    single: dict[str, list[float]] = {}
    with harness.server() as url, tempfile.TemporaryDirectory() as home:
        os.environ["BENCH_REDIS_URL"] = url
        rivals = [Ours(url, Path(home) / "ours"), CeleryRival(url), HueyRival(url)]
        for _ in range(options.rounds):
            for rival in rivals:
                with rival.worker() as process:
                    both = rival.name != "huey"
                    if "chain" in wanted:
                        rival.client.delete("done")
                        chain.setdefault(rival.name, []).append(
                            backlog(rival.start_chain, process, CHAINS, rival.chains_left)
                        )
                        rival.client.delete("done")
                    if "latency" in wanted:
                        latency.setdefault(rival.name, []).append(
                            one_by_one(rival.start_chain, rival, LATENCIES) * 1000
                        )
                    if "fanout" in wanted and both:
                        fanout.setdefault(rival.name, []).append(
                            one_by_one(rival.start_fanout, rival, FANOUTS) * 1000
                        )
                    if "single" in wanted and both:
                        single.setdefault(rival.name, []).append(
                            backlog(rival.start_single, process, SINGLES, rival.singles_left)
                        )
    for title, unit, rows, more in (
        ("Chains of ten, a backlog of 300", "runs/s", chain, True),
        ("One chain of ten alone", "ms", latency, False),
        ("Fan-out of 100 with a join", "ms", fanout, False),
        ("Runs of one task, a backlog of 3,000", "runs/s", single, True),
    ):
        if rows:
            harness.table(title, unit, rows, "director", more_is_better=more)


if __name__ == "__main__":
    main()

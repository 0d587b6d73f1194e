"""Schedules: what fires, how late, and what the loop costs.

    python -m bench.schedules [--seconds 50]

Three parts, each with the real loop in processes of its own on a private server: two schedulers, one of which is killed
every 0.1 to 0.7 s; 10,000 schedules, 100 of them due each second; a pass with nothing to do. Exit status 1 when a due
time fires twice or not at all, or is more than 1.5 s late.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import harness
from director import log
from director.definitions import Definitions
from director.loop import Loop
from director.models import time_ms
from director.settings import Settings
from director.store import open_store
from director.store.base import Store
from director.store.shapes import Filter

LATE_MS = 1500
EVERY_MS = 500


def scheduler(settings: Settings) -> int:
    """Fork a process that makes passes; return its id. Forked, because starting Python takes half a second."""
    pid = os.fork()
    if pid == 0:
        try:
            Loop(settings, open_store(settings), Definitions(settings.home, settings.environ)).run_forever()
        finally:
            os._exit(1)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def project(home: str, url: str, text: str) -> Settings:
    (Path(home) / "workflows").mkdir(exist_ok=True)
    (Path(home) / "workflows" / "w.yml").write_text(text)
    return Settings.from_env({"DIRECTOR_HOME": home, "DIRECTOR_REDIS_URL": url})


def fired(store: Store) -> list[tuple[str, int, int]]:
    """Return schedule, due time and lateness in ms of every run."""
    found, cursor = [], None
    while True:
        runs, cursor = store.do(store.list(Filter(limit=200, after=cursor)))
        for run in runs:
            due = time_ms(run.trigger["due_at"])
            found.append((str(run.trigger["schedule"]), due, time_ms(run.created_at) - due))
        if cursor is None:
            return found


def killed(url: str, home: str, seconds: float) -> bool:
    """Two schedulers, one killed again and again: every due time is one run."""
    names = range(10)
    text = "".join(
        f"w{n}: {{tasks: [A], periodic: {{interval: {EVERY_MS / 1000}, catchup: all}}}}\n" for n in names
    )
    settings = project(home, url, text)
    store, rng, kills = open_store(settings), random.Random(7), 0
    both = [scheduler(settings), scheduler(settings)]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(rng.uniform(0.1, 0.7))
        which = rng.randrange(2)
        end(both[which])
        kills += 1
        both[which] = scheduler(settings)
    time.sleep(2)
    for pid in both:
        end(pid)
    found = fired(store)
    twice = len(found) - len({(schedule, due) for schedule, due, _ in found})
    due = {schedule: [at for name, at, _ in found if name == schedule] for schedule, _, _ in found}
    lacking = sum((max(times) - min(times)) // EVERY_MS + 1 - len(set(times)) for times in due.values())
    late = sorted(lateness for _, _, lateness in found)
    print(f"two schedulers, one killed {kills} times: {len(found)} runs, {twice} twice, {lacking} lacking")
    print(f"  late by {statistics.median(late):.0f} ms (median), {late[-1]} ms at most")
    return not twice and not lacking and late[-1] <= LATE_MS


def many(url: str, home: str, seconds: float) -> bool:
    """10,000 schedules, 100 due each second: one core keeps up."""
    count, spread_s = 10_000, 100
    text = "".join(f"w{n}: {{tasks: [A], periodic: {{interval: {spread_s}}}}}\n" for n in range(count))
    settings = project(home, url, text)
    store, redis = open_store(settings), harness.client(url)
    started = time.monotonic()
    Loop(settings, store, Definitions(settings.home, settings.environ)).make_pass()
    print(f"{count} schedules are read and written down in {time.monotonic() - started:.1f} s")
    timetable = f"{settings.prefix}rq:scheduler:scheduled_jobs"
    ids, first = redis.zrange(timetable, 0, -1), time.time() + 5
    redis.zadd(timetable, {id_: round(first + n * spread_s / count, 3) for n, id_ in enumerate(ids)})
    took = []
    for _ in range(200):
        before = time.perf_counter()
        store.do(store.sweep(fires=True))
        took.append((time.perf_counter() - before) * 1000)
    print(f"  a pass with nothing to do: {statistics.median(took):.2f} ms with the way there and back")
    pid = scheduler(settings)
    time.sleep(5 + seconds)
    os.kill(pid, signal.SIGKILL)
    used = os.wait4(pid, 0)[2]
    late = sorted(lateness for _, _, lateness in fired(store))
    cpu_s = used.ru_utime + used.ru_stime
    print(f"  {len(late)} runs in {seconds:g} s with {cpu_s:.1f} s of one core")
    print(f"  late by {statistics.median(late):.0f} ms (median), {late[-1]} ms at most")
    return late[-1] <= LATE_MS and len(late) >= 100 * (seconds - 2)


def idle(url: str, home: str) -> bool:
    """Nothing due for a day: what the loop asks of Redis."""
    settings = project(home, url, "w: {tasks: [A], periodic: {interval: 86400}}\n")
    redis, pid = harness.client(url), scheduler(settings)
    time.sleep(2)
    before = redis.info("stats")["total_commands_processed"]
    scripts = redis.info("commandstats")["cmdstat_evalsha"]
    time.sleep(10)
    calls = redis.info("commandstats")["cmdstat_evalsha"]
    # Two commands of ours, and those that the scripts make.
    asked = calls["calls"] - scripts["calls"]
    spent = (calls["usec"] - scripts["usec"]) / max(asked, 1)
    end(pid)
    print(f"idle: {asked / 10:.1f} calls a second, {spent / 1000:.2f} ms each in Redis ({before} commands so far)")
    return asked <= 20 and spent <= 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=50)
    options = parser.parse_args()
    log.configure("ERROR")
    print(harness.environment())
    good = []
    with tempfile.TemporaryDirectory() as home:
        for part in (
            lambda url: killed(url, home, options.seconds),
            lambda url: many(url, home, options.seconds / 2),
            lambda url: idle(url, home),
        ):
            with harness.server() as url:
                good.append(part(url))
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

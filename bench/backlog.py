"""A long queue and one slow worker: how many messages does the sweep send again?

    python -m bench.backlog [--runs 20000] [--seconds 60]

A real worker with one process whose task takes 0.1 s, and the scheduler's loop beside it. Nothing is lost here, so
every repeat is one too many. Exit status 1 when more than 1 % of the messages are sent again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench import harness
from director import plan
from director.engine import new_run_id
from director.store.redis import RedisStore
from director.store.shapes import NewRun
from tests.processes import ready, workflow

TASKS = """
import time
from director import task

@task(name="SLOW")
def slow(previous):
    time.sleep(0.1)
"""
LIMIT = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    print(harness.environment())
    with harness.server() as url, tempfile.TemporaryDirectory() as home:
        (Path(home) / "tasks").mkdir()
        (Path(home) / "tasks" / "slow.py").write_text(TASKS)
        env = {"DIRECTOR_HOME": home, "DIRECTOR_REDIS_URL": url, "DIRECTOR_LOG_LEVEL": "WARNING"}
        with harness.process([sys.executable, "-m", "director", "worker", "-c", "1"], **env):
            store = RedisStore(url)
            ready(store)
            built = plan.build(workflow(["SLOW"]), store.do(store.task_options()))
            for _ in range(options.runs):
                order = NewRun(run_id=new_run_id(), plan=built, payload=b"{}", trigger={"kind": "api"}, roots=(0,))
                store.do(store.start(order))
            again, deadline = 0, time.monotonic() + options.seconds
            while time.monotonic() < deadline:
                again += len(store.do(store.sweep()).resent)
                time.sleep(1)
            waiting = store.do(store.state([])).queued
    share = again / options.runs
    done = options.runs - waiting
    print(f"{options.runs} runs, {done} done in {options.seconds:g} s: {again} messages sent again ({share:.2%})")
    return 1 if share > LIMIT else 0


if __name__ == "__main__":
    raise SystemExit(main())

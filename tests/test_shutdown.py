"""SIGTERM under load: everything ends within its grace, and what was not finished runs later, as no loss."""

import os
import signal
import time

import pytest

from tests.processes import calls, project, until
from tests.test_supervisor import alive
from tests.test_up import Service

GRACE_S = 2.0
TASKS = """
import time
from pathlib import Path
from director import task
from tasks.sample import note

@task(name="LONG")
def long_one(previous, payload):
    note("LONG")
    time.sleep(0 if Path(payload["flag"]).exists() else 60)

@task(name="BRIEF")
def brief(previous):
    time.sleep(0.05)
"""
FLOWS = "w.LONG: {tasks: [LONG, BRIEF]}\nw.BRIEF: {tasks: [BRIEF, BRIEF, BRIEF]}\n"
MODES = ["embedded", "up prefork", "up threads", "worker prefork", "worker threads"]


class Load:
    """A service under load: 2 tasks that take a minute in 4 places, and many short ones."""

    def __init__(self, home, mode, redis_url):
        project(home)
        (home / "tasks" / "load.py").write_text(TASKS)
        (home / "workflows" / "w.yml").write_text(FLOWS)
        self.home, self.mode, self.flag = home, mode, home / "flag"
        self.env = {"DIRECTOR_GRACE_SECONDS": str(GRACE_S), "DIRECTOR_CONCURRENCY": "4", "DIRECTOR_MAX_LOST": "1"}
        if mode != "embedded":
            self.env |= {"DIRECTOR_REDIS_URL": redis_url, "DIRECTOR_POOL": mode.split()[1]}
        self.web = self.worker = None
        self.start()

    def start(self):
        """Start the web part and what is stopped: the same, or a worker of its own."""
        if self.mode.startswith("worker"):
            self.web = self.web or Service(self.home, "up", "--no-worker", **self.env)
            self.worker = Service(self.home, "worker", **self.env)
        else:
            self.web = self.worker = Service(self.home, **self.env)
        self.web.wait_up()

    def begin(self):
        """Start the runs; return their ids once the long ones execute."""
        ids = [self.run("LONG") for _ in range(2)]
        until(lambda: calls(self.home) == ["LONG", "LONG"], what="the long tasks")
        return ids + [self.run("BRIEF") for _ in range(60)]

    def run(self, name):
        return self.web.call("POST", f"/workflows/w.{name}/runs", {"flag": str(self.flag)})[1]["id"]

    def tasks(self, run_id):
        run = self.web.call("GET", f"/runs/{run_id}")[1]
        return run["status"], [task["status"] for task in run["tasks"]]

    def end(self):
        for service in {self.web, self.worker}:
            service.stop()


@pytest.fixture(params=MODES)
def load(request, tmp_path, redis_url):
    load = Load(tmp_path, request.param, redis_url)
    yield load
    load.end()


def test_sigterm_under_load_ends_within_the_grace_and_loses_nothing(load):
    ids = load.begin()
    children = load.worker.children()
    began = time.monotonic()
    load.worker.process.send_signal(signal.SIGTERM)
    assert load.worker.process.wait(GRACE_S + 5) == 0
    took_s = time.monotonic() - began
    print(f"{load.mode}: {took_s:.2f} s")
    assert GRACE_S <= took_s < GRACE_S + 5
    assert not any(map(alive, children))
    if load.mode.startswith("worker"):
        assert [load.tasks(run_id) for run_id in ids[:2]] == [("running", ["queued", "pending"])] * 2
        assert {word for run_id in ids for word in load.tasks(run_id)[1]} <= {"queued", "pending", "succeeded"}
    load.flag.touch()
    load.start()
    for run_id in ids:
        until(lambda run_id=run_id: load.tasks(run_id)[0] not in ("queued", "running"), 20, run_id)
        assert load.tasks(run_id)[0] == "succeeded"
    assert calls(load.home) == ["LONG"] * 4


@pytest.mark.parametrize("load", ["worker prefork", "worker threads"], indirect=True)
def test_an_idle_worker_ends_at_once(load):
    until(lambda: "worker.started" in load.worker.log.read_text(), what="the worker")
    began = time.monotonic()
    assert load.worker.stop() == 0
    print(f"{load.mode}: {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < GRACE_S + 1


@pytest.mark.parametrize("load", ["worker prefork", "worker threads"], indirect=True)
def test_a_second_signal_ends_a_worker_at_once_and_loses_nothing(load):
    load.end()
    load.env["DIRECTOR_GRACE_SECONDS"] = "30"
    load.web = None
    load.start()
    ids = load.begin()
    children = load.worker.children()
    for number in (signal.SIGTERM, signal.SIGTERM):
        os.kill(load.worker.process.pid, number)
        time.sleep(0.5)
    load.worker.process.wait(2)
    until(lambda: not any(map(alive, children)), 2, "the pool's end")
    assert [load.tasks(run_id) for run_id in ids[:2]] == [("running", ["queued", "pending"])] * 2

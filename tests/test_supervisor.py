"""How `director up` ends: by signals, by the death of a part, and with its parent."""

import json
import os
import signal
import time

import pytest

from tests.conftest import free_port
from tests.processes import calls, project, until
from tests.test_up import FLOW, Service

DEATHS = {
    "loop": "loop.Loop.step = broken",
    "parent": "parent.Parent.connect_signals = broken",
}


@pytest.fixture
def home(tmp_path):
    project(tmp_path)
    (tmp_path / "workflows" / "w.yml").write_text(FLOW)
    return tmp_path


def alive(pid):
    """Return whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("mode", ["embedded", "redis"])
def test_a_second_signal_ends_it_at_once(home, redis_url, mode):
    service = Service(home, **({"DIRECTOR_REDIS_URL": redis_url} if mode == "redis" else {}))
    service.wait_up()
    children = service.children()
    service.call("POST", "/workflows/w.SLEEP/runs", {"seconds": 60})
    until(lambda: calls(home), what="the task")
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert service.process.poll() is None, "it waits for the task"
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(5) == 128 + signal.SIGTERM
    until(lambda: not any(map(alive, children)), 5, "the worker's end")


@pytest.mark.parametrize("part", DEATHS)
def test_a_dead_thread_ends_the_process(home, part):
    (home / "tasks" / "broken.py").write_text(
        # Not at once: what dies before anybody has seen it is missed only after a minute.
        f"import time\nfrom director import {part}\n\n"
        f"def broken(self):\n    time.sleep(0.5)\n    raise SystemError('on purpose')\n\n{DEATHS[part]}\n"
    )
    service = Service(home)
    assert service.process.wait(30) == 1
    assert "service.thread_died" in service.log.read_text()


def test_a_killed_service_takes_its_worker_along(home, redis_url):
    service = Service(home, DIRECTOR_REDIS_URL=redis_url)
    service.wait_up()
    (worker,) = service.children()
    # Only then does it watch its parent.
    until(lambda: "worker.started" in service.log.read_text(), what="the worker")
    service.process.kill()
    service.process.wait(5)
    until(lambda: not alive(worker), 20, "the worker's end")


def test_a_dying_worker_is_started_again_with_longer_pauses(home, redis_url):
    # It cannot start: the pool is not there.
    (home / "tasks" / "broken.py").write_text("import os\nos._exit(7)\n")
    service = Service(home, DIRECTOR_REDIS_URL=redis_url)
    service.wait_up()
    log = until(lambda: (text := service.log.read_text()).count("worker.exited") >= 2 and text, 20, "two deaths")
    deaths = [json.loads(line) for line in log.splitlines() if "worker.exited" in line]
    assert [(line["status"], line["restart_in_s"]) for line in deaths[:2]] == [(7, 1.0), (7, 2.0)]
    assert service.stop() == 0


def test_redis_away_at_start_is_said(home):
    url = f"redis://127.0.0.1:{free_port()}/0"
    service = Service(home, "web", DIRECTOR_REDIS_URL=url)
    service.wait_up("/health/live")
    assert f"problem    {url} does not answer. Until it does, HTTP answers 503." in service.log.read_text()
    assert service.stop() == 0


def test_the_scheduler_alone_ends_in_order(home, redis_url):
    service = Service(home, "scheduler", DIRECTOR_REDIS_URL=redis_url)
    until(lambda: "scheduler.started" in service.log.read_text(), what="the scheduler")
    assert service.stop(10) == 0


def test_who_holds_the_folder_is_named(home):
    first = Service(home)
    try:
        first.wait_up()
        second = Service(home)
        assert second.process.wait(20) == 1
        assert f"already (process {first.process.pid}). Stop it" in second.log.read_text()
    finally:
        assert first.stop() == 0
    assert not any(map(alive, first.children()))


def test_an_ended_service_leaves_its_folder_to_the_next(home):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        service = Service(home)
        service.wait_up()
        os.kill(service.process.pid, number)
        service.process.wait(20)

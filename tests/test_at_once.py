"""One delivery, however often and however interrupted: real web processes, killed amid a burst of copies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from director.settings import Settings
from director.store import open_store
from director.store.shapes import Filter
from tests.conftest import free_port
from tests.processes import until
from tests.web_fixtures import SECRET, signature

WORKFLOWS = """
one: {tasks: [ONE], triggers: [{source: github, event: push}]}
three.A: {tasks: [ONE], triggers: [{source: github, event: three}]}
three.B: {tasks: [ONE], triggers: [{source: github, event: three}]}
three.C: {tasks: [ONE], triggers: [{source: github, event: three}]}
sources: {github: {secret: $GITHUB_WEBHOOK_SECRET}}
"""
BODY = b'{"ref": "refs/heads/main"}'
KILLED_AFTER_THE_FIRST = """
import asyncio, os, signal
from director.web.service import Service
play, count = Service.play, 0

async def one_then_death(self, *args, **more):
    global count
    count += 1
    if count > 1:
        await asyncio.Event().wait()
    await play(self, *args, **more)
    os.kill(os.getpid(), signal.SIGKILL)

if "KILL" in os.environ:
    Service.play = one_then_death
from director.cli import main
main(["web"])
"""


class Web:
    """A web process of its own."""

    def __init__(self, home: Path, port: int, **env: str) -> None:
        self.port = port
        environ = {**os.environ, **env, "PORT": str(port)}
        with (home / "web.log").open("ab") as log:
            command = [sys.executable, "-c", KILLED_AFTER_THE_FIRST]
            self.process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        until(self.is_up, what=(home / "web.log").read_text())

    def is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5).status == 200
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["tiny", "redis"])
def env(request, tmp_path):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "w.yml").write_text(WORKFLOWS)
    env = {"DIRECTOR_HOME": str(tmp_path), "GITHUB_WEBHOOK_SECRET": SECRET}
    return env | ({"DIRECTOR_REDIS_URL": request.getfixturevalue("redis_url")} if request.param == "redis" else {})


@pytest.fixture
def web(env, tmp_path):
    running: list[Web] = []

    def start(**more: str) -> Web:
        running.append(Web(tmp_path, running[0].port if running else free_port(), **env, **more))
        return running[-1]

    yield start
    for one in running:
        one.kill()


def request(event: str, delivery: str) -> bytes:
    lines = [
        "POST /hooks/github HTTP/1.1",
        "Host: x",
        f"X-GitHub-Event: {event}",
        f"X-GitHub-Delivery: {delivery}",
        f"X-Hub-Signature-256: {signature(BODY)}",
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n",
    ]
    return "\r\n".join(lines).encode() + BODY


async def send(port: int, text: bytes, copies: int, after: int = 0, then=lambda: None) -> list[tuple[int, dict]]:
    """Send copies at once, each on a connection of its own; return the answers that came.

    `then` is called once `after` answers have come.
    """
    answers: list[tuple[int, dict]] = []

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            body = await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
        except (OSError, asyncio.IncompleteReadError):
            return  # killed
        answers.append((int(head[9:12]), json.loads(body)))
        writer.close()
        if len(answers) == after:
            then()

    await asyncio.gather(*(one() for _ in range(copies)))
    return answers


def runs(env) -> list[tuple[str, str]]:
    settings = Settings.from_env(env)
    store = open_store(settings)
    found, _ = store.do(store.list(Filter(limit=200)))
    store.close()
    return sorted((run.workflow, run.id) for run in found)


def test_a_thousand_copies_at_once_are_one_run(env, web):
    answers = asyncio.run(send(web().port, request("push", "d-1"), 1000))
    assert sorted(status for status, _ in answers) == [200] * 999 + [202]
    ((_, run_id),) = runs(env)
    assert {answer["runs"][0]["id"] for _, answer in answers} == {run_id}


def test_copies_around_a_kill_are_one_run(env, web):
    first = web()
    before = asyncio.run(
        send(first.port, request("push", "d-2"), 1000, 50, lambda: first.process.send_signal(signal.SIGKILL))
    )
    assert 50 <= len(before) < 1000
    first.process.wait()
    after = asyncio.run(send(web().port, request("push", "d-2"), 1000))
    assert len(after) == 1000
    ((_, run_id),) = runs(env)
    assert {answer["runs"][0]["id"] for _, answer in before + after} == {run_id}
    assert {status for status, _ in before + after} == {200, 202}


def test_a_kill_between_the_starts_of_one_delivery_loses_none_and_doubles_none(env, web):
    first = web(KILL="1")
    assert asyncio.run(send(first.port, request("three", "d-3"), 1)) == []
    first.process.wait()
    assert [name for name, _ in runs(env)] == ["three.A"]
    ((status, answer),) = asyncio.run(send(web().port, request("three", "d-3"), 1))
    assert (status, answer["duplicate"]) == (202, False)
    assert sorted((run["workflow"], run["id"]) for run in answer["runs"]) == runs(env)
    assert [name for name, _ in runs(env)] == ["three.A", "three.B", "three.C"]
    ((status, again),) = asyncio.run(send(web().port, request("three", "d-3"), 1))
    assert (status, again) == (200, {**answer, "duplicate": True})

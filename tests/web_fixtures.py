"""A real web process in a thread, on a free port, over either store; nothing executes tasks."""

from __future__ import annotations

import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from director.engine import new_token
from director.models import FullRun, TaskError
from director.settings import Settings
from director.signing import SignedRequest, scheme, sign
from director.store.base import Store
from director.store.shapes import Outcome, Ref
from director.web.app import create_app
from director.web.server import Server
from director.web.service import Service
from tests.processes import until

SECRET = "It's a Secret to Everybody"
WORKFLOWS = """
plain:
  tasks: [ONE, TWO]
strict.ORDER:
  tasks: [ONE]
  schema: {type: object, required: [id], properties: {id: {type: integer}}}
  triggers:
    - {source: github, event: issues, payload: {id: issue.id}}
pushed:
  tasks: [ONE]
  triggers:
    - source: github
      event: push
      when: ref == 'refs/heads/main'
      payload: {sha: after}
also.pushed:
  tasks: [ONE]
  triggers:
    - {source: github, event: [push, issues], payload: {sha: after}}
only.strict:
  tasks: [ONE]
  schema: {type: object, required: [id], properties: {id: {type: integer}}}
  triggers:
    - {source: github, event: strict}
any.stripe:
  tasks: [ONE]
  triggers: [{source: billing}]
off:
  tasks: [ONE]
  enabled: false
  triggers: [{source: github, event: never}]
unwritable:
  tasks: [ONE]
  triggers: [{source: github, event: reference, payload: {all: "[&x]"}}]
broken:
  tasks: []
sources:
  github: {secret: $GITHUB_WEBHOOK_SECRET}
  billing: {scheme: stripe, secret: [$STRIPE_SECRET, $STRIPE_SECRET_OLD]}
  closed: {scheme: github, secret: $NOT_SET}
  partner: {scheme: hmac, header: X-Signature, secret: $PARTNER_SECRET}
"""


class Web:
    """A running service and a client of it."""

    def __init__(self, port: int, service: Service) -> None:
        self.port = port
        self.service = service
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)

    @property
    def store(self) -> Store:
        return self.service.store

    def hook(self, body: Any, source: str = "github", **headers: str) -> httpx.Response:
        """Send a delivery signed as GitHub does; headers replace what is made here."""
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        made = {
            "content-type": "application/json",
            "x-github-event": "push",
            "x-hub-signature-256": signature(raw),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        return self.client.post(f"/hooks/{source}", content=raw, headers=made)

    def raw(self, data: bytes, *, timeout_s: float = 10.0) -> bytes:
        """Send bytes as they are; return all that comes back until the server closes or says nothing more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(data)
            return connection.recv(65536)

    def finish(self, run_id: str) -> None:
        """Play the worker: execute the run to its end."""
        store = self.store
        while True:
            run, _ = store.do(store.get(run_id))
            queued = [task for task in run.tasks if task.status == "queued"]
            if not queued:
                return
            for task in queued:
                ref = Ref(run_id=run_id, number=task.number)
                store.do(store.begin(ref, f"t{task.number}", "boot.1"))
                store.do(store.finish(ref, f"t{task.number}", Outcome(result=b"1"), "boot.1"))

    def fail(self, run_id: str, key: str) -> None:
        """Play the worker until a task run has failed; what comes before it succeeds with 1."""
        store, outcome = self.store, Outcome(error=TaskError(type="ValueError", message="boom"))
        while True:
            run, _ = store.do(store.get(run_id))
            task = next(task for task in run.tasks if task.status == "queued")
            ref, token = Ref(run_id=run_id, number=task.number), new_token()
            store.do(store.begin(ref, token, "boot.1"))
            store.do(store.finish(ref, token, outcome if task.key == key else Outcome(result=b"1"), "boot.1"))
            if task.key == key:
                return

    def run(self, run_id: str) -> FullRun:
        """Return all of a run."""
        return self.store.do(self.store.get(run_id))[0]

    def send(self, source: str, secret: str, body: bytes, **headers: str) -> httpx.Response:
        """Send a body signed as the source's scheme says; `headers` as in `hook`."""
        made = scheme(self.service.definitions.source(source).scheme)
        given = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        request = SignedRequest("POST", f"{self.client.base_url}/hooks/{source}", list(given.items()), body)
        signed = sign(made, secret, request, now=time.time())
        return self.client.post(f"/hooks/{source}", content=body, headers=[*given.items(), *signed])

    def inbox(self, **which: str) -> list[dict[str, Any]]:
        """Return what the inbox lists, newest first."""
        answer = self.client.get("/deliveries", params=which)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["deliveries"]
        return found


def signature(body: bytes, secret: str = SECRET) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def settings_for(home: Path, redis_url: str | None = None, **environ: str) -> Settings:
    """Return the settings of a project with WORKFLOWS."""
    (home / "workflows").mkdir(exist_ok=True)
    file = home / "workflows" / "all.yml"
    if not file.exists():
        file.write_text(WORKFLOWS)
    env = {
        "DIRECTOR_HOME": str(home),
        "GITHUB_WEBHOOK_SECRET": SECRET,
        "STRIPE_SECRET_OLD": "whsec_old",
        "STRIPE_SECRET": "",
        "PARTNER_SECRET": "partner",
        **({"DIRECTOR_REDIS_URL": redis_url} if redis_url else {}),
        **environ,
    }
    return Settings.from_env(env)


@contextmanager
def serving(settings: Settings) -> Iterator[Web]:
    """Serve until the block ends; neither worker nor scheduler."""
    app = create_app(settings, worker=False, scheduler=False)
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app)
    thread = threading.Thread(target=server.run, args=(listener,), daemon=True)
    thread.start()
    until(lambda: server.is_started, what="the web server")
    web = Web(listener.getsockname()[1], app.state.service)
    try:
        yield web
    finally:
        web.client.close()
        server.stop(0)
        thread.join(10)
        assert not thread.is_alive(), "the web server did not stop"


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the problem details of an answer; anything else fails."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    members: dict[str, Any] = answer.json()
    assert members["status"] == status
    assert members["title"]
    assert members["type"] == "about:blank"
    assert "Traceback" not in answer.text
    return members

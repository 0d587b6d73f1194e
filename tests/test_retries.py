"""Another try: asked for by a task's Celery options, by itself, or granted by YAML; on Redis and embedded."""

import json
from datetime import datetime

import pytest
import redis

from tests.processes import calls, project, until
from tests.test_up import Service

TASKS = """
from director import task
from tasks.sample import note

class Odd(Exception):
    pass

def fail(self, kind=ValueError):
    note(f"{self.name} {self.request.retries}")
    raise kind(self.name)

@task(name="AUTO", bind=True, autoretry_for=(ValueError,), max_retries=2, default_retry_delay=0.1)
def auto(self, previous):
    fail(self)

@task(name="KWARGS", bind=True, autoretry_for=(ValueError,), retry_kwargs={"max_retries": 1, "countdown": 0.1})
def kwargs(self, previous):
    fail(self)

@task(name="BACKOFF", bind=True, autoretry_for=(ValueError,), retry_backoff=1, retry_jitter=False, max_retries=1)
def backoff(self, previous):
    fail(self)

@task(name="OTHER", bind=True, autoretry_for=(KeyError,), max_retries=5, default_retry_delay=0.1)
def other(self, previous):
    fail(self)

@task(name="ITSELF", bind=True, max_retries=2)
def itself(self, previous):
    try:
        fail(self, Odd)
    except Odd as exc:
        raise self.retry(exc=exc, countdown=0.1)

@task(name="NO_MORE", bind=True)
def no_more(self, previous):
    note(f"NO_MORE {self.request.retries}")
    self.retry(countdown=0.1, max_retries=1)

@task(name="POLL", bind=True, max_retries=None)
def poll(self, previous):
    note(f"POLL {self.request.retries}")
    if self.request.retries < 4:
        self.retry(countdown=0)
    return self.request.retries

@task(name="PLAIN", bind=True)
def plain(self, previous):
    fail(self)

@task(name="SLOW", bind=True, autoretry_for=(ValueError,), default_retry_delay=300)
def slow(self, previous):
    fail(self)

"""
FLOWS = """
w.AUTO: {tasks: [AUTO]}
w.KWARGS: {tasks: [KWARGS]}
w.BACKOFF: {tasks: [BACKOFF]}
w.OTHER: {tasks: [OTHER]}
w.ITSELF: {tasks: [ITSELF]}
w.NO_MORE: {tasks: [NO_MORE]}
w.POLL: {tasks: [POLL]}
w.FEWER: {tasks: [{AUTO: {retries: 1}}]}
w.MORE: {tasks: [{AUTO: {retries: 3, backoff: 0.05}}]}
w.NONE: {tasks: [{AUTO: {retries: 0}}]}
w.PLAIN: {tasks: [{PLAIN: {retries: 2, backoff: 0.1}}]}
w.SOONER: {tasks: [{SLOW: {retries: 1, backoff: 0.1}}]}
w.SLOW: {tasks: [SLOW]}
"""
ENDS = {
    "AUTO": (3, "ValueError"),
    "KWARGS": (2, "ValueError"),
    "BACKOFF": (2, "ValueError"),
    "OTHER": (1, "ValueError"),
    "ITSELF": (3, "Odd"),
    "NO_MORE": (2, "MaxRetriesExceededError"),
    "POLL": (5, None),
    "FEWER": (2, "ValueError"),
    "MORE": (4, "ValueError"),
    "NONE": (1, "ValueError"),
    "PLAIN": (3, "ValueError"),
    "SOONER": (2, "ValueError"),
}


@pytest.fixture(params=["redis", "embedded"])
def service(request, tmp_path):
    project(tmp_path)
    (tmp_path / "tasks" / "tries.py").write_text(TASKS)
    (tmp_path / "workflows" / "w.yml").write_text(FLOWS)
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    service = Service(tmp_path, **({"DIRECTOR_REDIS_URL": url} if url else {}))
    service.home, service.redis = tmp_path, url and redis.Redis.from_url(url)
    try:
        service.wait_up()
        if url:  # plans know the options once a worker has published them
            until(lambda: "worker.started" in service.log.read_text(), what="the worker")
        yield service
    finally:
        service.stop()


def start(service, name):
    return service.call("POST", f"/workflows/w.{name}/runs", {})[1]["id"]


def task_of(service, run_id):
    return service.call("GET", f"/runs/{run_id}")[1]["tasks"][0]


def test_each_way_to_ask_for_another_try_ends_as_it_should(service):
    ids = {name: start(service, name) for name in ENDS}
    for name, run_id in ids.items():
        until(lambda run_id=run_id: task_of(service, run_id)["status"] in ("failed", "succeeded"), 20, name)
    found = {name: task_of(service, run_id) for name, run_id in ids.items()}
    assert {name: (it["attempts"], it["error"] and it["error"]["type"]) for name, it in found.items()} == ENDS
    assert found["POLL"]["result"] == 4
    assert [line for line in calls(service.home) if line.startswith("BACKOFF")] == ["BACKOFF 0", "BACKOFF 1"]


def test_what_waits_is_retrying_in_the_store_and_a_relaunch_counts_afresh(service):
    """Given 300 s to the next try, then no message waits meanwhile, and cancel and relaunch start over."""
    run_id = start(service, "SLOW")
    task = until(lambda: (it := task_of(service, run_id))["status"] == "retrying" and it, what="retrying")
    at = {name: datetime.fromisoformat(task[name]) for name in ("started_at", "next_at")}
    assert 290 < (at["next_at"] - at["started_at"]).total_seconds() < 310
    assert (task["ended_at"], task["error"]["type"]) == (None, "ValueError")
    if service.redis:
        assert service.redis.zscore("director:delayed", f"{run_id}:0") is not None
        assert service.redis.llen("director:mq:celery") == service.redis.hlen("director:mq:unacked") == 0
    assert service.call("POST", f"/runs/{run_id}/cancel")[0] == 202
    assert task_of(service, run_id)["status"] == "canceled"
    assert service.call("POST", f"/runs/{run_id}/relaunch", {"from": "failed"})[0] == 202
    task = until(lambda: (it := task_of(service, run_id))["status"] == "retrying" and it, what="retrying")
    assert task["attempts"] == 2
    assert calls(service.home) == ["SLOW 0", "SLOW 0"], "the second launch begins with no retries used"
    assert "Traceback" not in json.dumps(service.log.read_text())

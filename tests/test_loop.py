"""The scheduler's loop on both stores: schedules of files fire once, whoever runs the loop, and go on."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import redis

from director.definitions import Definitions
from director.errors import StoreUnavailable
from director.loop import Loop
from director.models import time_ms
from director.scheduler import WorkflowScheduler
from director.settings import Settings
from director.store import open_store
from director.store.shapes import Filter
from tests.processes import until

FLOW = """
often:
  tasks: [A]
  periodic: {interval: 0.2, payload: {by: schedule}}
never:
  tasks: [A]
  enabled: false
  periodic: {interval: 0.2}
off:
  tasks: [A]
  periodic: {interval: 0.2, enabled: false}
"""


@pytest.fixture(params=["redis", "tiny"])
def settings(request, tmp_path):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "w.yml").write_text(FLOW)
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Settings.from_env({"DIRECTOR_HOME": str(tmp_path), "DIRECTOR_REDIS_URL": url})


@pytest.fixture
def store(settings):
    made = open_store(settings)
    yield made
    made.close()


def loop(settings, store):
    return Loop(settings, store, Definitions(settings.home, settings.environ))


def runs(store):
    return store.do(store.list(Filter(limit=200)))[0]


def due_times(store):
    return sorted(run.trigger["due_at"] for run in runs(store))


def test_a_schedule_fires_at_its_times_and_no_other(settings, store):
    made = loop(settings, store)
    made.start()
    until(lambda: len(runs(store)) >= 5, 10, "five runs")
    made.stop()
    found = runs(store)
    assert {run.workflow for run in found} == {"often"}
    assert all(run.trigger["kind"] == "schedule" for run in found)
    full, _ = store.do(store.get(found[0].id))
    assert bytes(full.payload) == b'{"by":"schedule"}'
    times = [time_ms(run.trigger["due_at"]) for run in reversed(found)]
    assert [later - earlier for earlier, later in pairwise(times)] == [200] * (len(times) - 1)


def test_two_loops_of_which_one_dies_again_and_again_fire_each_time_once(settings, store):
    beside = loop(settings, store)
    beside.start()
    ended = time.monotonic() + 3
    while time.monotonic() < ended:
        other = loop(settings, store)
        other.start()
        time.sleep(0.15)
        other.stop()
    beside.stop()
    found = due_times(store)
    assert len(found) == len(set(found)) >= 13
    assert sorted(map(time_ms, found)) == list(range(time_ms(found[0]), time_ms(found[-1]) + 1, 200))


def test_a_changed_file_is_taken_up_and_what_it_drops_fires_no_more(settings, store):
    made = loop(settings, store)
    made.start()
    until(lambda: runs(store), 10, "a run")
    (settings.home / "workflows" / "w.yml").write_text(FLOW.replace("often:", "renamed:"))
    until(lambda: any(run.workflow == "renamed" for run in runs(store)), 10, "a run under the new name")
    before = sum(run.workflow == "often" for run in runs(store))
    time.sleep(0.5)
    made.stop()
    assert sum(run.workflow == "often" for run in runs(store)) == before


@pytest.mark.parametrize(("catchup", "made_up"), [("none", 0), ("last", 1), ("all", 5)])
def test_after_an_outage_it_does_what_catchup_says_and_keeps_the_phase(
    settings, store, clock, monkeypatch, catchup, made_up
):
    (settings.home / "workflows" / "w.yml").write_text(
        f"slow: {{tasks: [A], periodic: {{interval: 60, catchup: {catchup}}}}}"
    )
    store.clock = clock
    first = loop(settings, store)
    first.make_pass()
    born = clock.now
    for _ in range(61):
        clock.pass_s(1)
        first.make_pass()
    assert len(runs(store)) == 1
    clock.pass_s(5 * 60)
    again = loop(settings, store)
    again.make_pass()
    assert len(runs(store)) == 1 + made_up
    clock.pass_s(59)
    for _ in range(60):
        clock.pass_s(1)
        again.make_pass()
    due = [time_ms(time) - born for time in due_times(store)]
    assert all(at % 60_000 == 0 for at in due), "the phase is kept"


def test_a_clock_that_jumps_harms_nothing(settings, store, clock):
    (settings.home / "workflows" / "w.yml").write_text("slow: {tasks: [A], periodic: {interval: 60}}")
    store.clock = clock
    made = loop(settings, store)
    made.make_pass()
    for jump_s in (61, 600, -600, 1, 700, 61):
        clock.pass_s(jump_s)
        made.make_pass()
    found = due_times(store)
    assert len(found) == len(set(found))
    assert made.failed is None


def test_what_the_store_cannot_take_fires_later(settings, store, monkeypatch):
    made = loop(settings, store)
    made.make_pass()
    assert made.step() <= 1.0
    time.sleep(0.25)
    real, calls = store.do, []

    def fails_once(call):
        calls.append(call)
        if len(calls) == 2:
            raise StoreUnavailable("away")
        return real(call)

    monkeypatch.setattr(store, "do", fails_once)
    made.step()
    monkeypatch.undo()
    until(lambda: made.make_pass().fired or runs(store), 5, "a run")


def test_rq_schedulers_own_tools_read_the_timetable(tmp_path, redis_url):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "w.yml").write_text(
        "nightly: {tasks: [A], periodic: {crontab: '0 3 * * *', timezone: Europe/Berlin, payload: {dry: true}}}"
    )
    settings = Settings.from_env({"DIRECTOR_HOME": str(tmp_path), "DIRECTOR_REDIS_URL": redis_url})
    store = open_store(settings)
    loop(settings, store).make_pass()
    timetable = WorkflowScheduler(redis_url, settings.prefix)
    ((job, due),) = timetable.get_jobs(with_times=True)
    assert (job.description, job.kwargs) == ("nightly", {"workflow": "nightly", "payload": {"dry": True}})
    assert job.meta == {"cron_string": "0 3 * * *", "timezone": "Europe/Berlin"}
    assert f"{due:%M:%S}" == "00:00"
    keys = redis.Redis.from_url(redis_url).keys()
    assert all(key.startswith(b"director:") for key in keys)
    timetable.cancel(job)
    assert timetable.count() == 0


def test_a_store_that_has_been_emptied_is_told_again(tmp_path, redis_url):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "w.yml").write_text("slow: {tasks: [A], periodic: {interval: 3600}}")
    settings = Settings.from_env({"DIRECTOR_HOME": str(tmp_path), "DIRECTOR_REDIS_URL": redis_url})
    made = loop(settings, open_store(settings))
    for _ in range(2):
        made.make_pass()
    redis.Redis.from_url(redis_url).flushall()
    for _ in range(2):
        made.make_pass()
    assert WorkflowScheduler(redis_url, settings.prefix).count() == 1


def test_a_pass_with_nothing_to_do_is_one_call(settings, store):
    (settings.home / "workflows" / "w.yml").write_text("slow: {tasks: [A], periodic: {interval: 3600}}")
    made = loop(settings, store)
    for _ in range(2):
        made.make_pass()
    calls = []
    real = store.do
    store.do = lambda call: calls.append(call) or real(call)
    assert made.step() == 1.0
    assert len(calls) == 1

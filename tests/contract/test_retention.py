"""The contract: prune removes what a rule does not keep, whole; nothing that is underway."""

import itertools

import pytest
import redis

from director.definitions import Definitions, load
from director.engine import Engine
from director.errors import NotFound, SettingsError, StoreUnavailable
from director.loop import Loop, keeps
from director.settings import Settings
from director.store.redis import RedisStore
from director.store.shapes import Dedupe, Filter, Keep, Ref
from tests.contract.driving import (
    BOOM,
    begin,
    cancel,
    fail,
    finish,
    get,
    new,
    plan_of,
    queued,
    relaunch,
    start,
    statuses,
    succeed,
)
from tests.processes import workflow

DAY_S = 86_400
WEEK = {"": Keep(age_ms=7 * DAY_S * 1000)}


def ended(store, clock, name="w", how=succeed):
    """Take a run of one task to its end; a second passes."""
    run_id = start(store, ["A"], name=name)
    how(store, run_id, 0)
    clock.pass_s(1)
    return run_id


def there(store):
    return {run.id for run in store.do(store.list(Filter(limit=200)))[0]}


def test_a_run_goes_by_its_end_and_whole(store, clock):
    long = start(store, ["A"])
    old = [ended(store, clock, how=how) for how in (succeed, fail, lambda s, run, _: cancel(s, run))]
    clock.pass_s(7 * DAY_S - 4)
    succeed(store, long, 0)
    assert store.do(store.prune(WEEK)) == 0
    clock.pass_s(3)
    assert store.do(store.prune(WEEK)) == 3
    assert there(store) == {long}, "it started first and ended last"
    for run_id in old:
        with pytest.raises(NotFound):
            store.do(store.get(run_id))
        with pytest.raises(NotFound):
            store.do(store.cancel(run_id, "t"))
        assert begin(store, run_id, 0) is None
    assert store.do(store.list(Filter(status="failed"))) == ((), None)
    state = store.do(store.state(["w"])).workflows["w"]
    assert (state.last_run, state.status, state.active) == (long, "succeeded", 0)
    assert store.do(store.prune(WEEK)) == 0, "again: nothing"


def test_redis_keeps_no_key_of_a_run_that_has_gone(redis_url, clock):
    store, client = RedisStore(redis_url, clock=clock), redis.Redis.from_url(redis_url)
    order = new(plan_of(["A", "B"], failure_hook="BAD"), payload={"x": 1})
    store.do(store.start(order))
    succeed(store, order.run_id, 0)
    fail(store, order.run_id, 1)
    succeed(store, order.run_id, 2)
    assert store.do(store.prune({"": Keep(age_ms=0)})) == 1
    left = {key.decode().removeprefix("director:") for key in client.keys("director:*")}
    assert left - {"mq:celery"} == {"queues", "stats", f"plan:{order.plan.digest}"}, "plans stay"


def test_a_workflow_has_its_own_rule_and_without_one_keeps_all(store, clock):
    runs = {name: [ended(store, clock, name) for _ in range(4)] for name in ("few", "all", "young")}
    clock.pass_s(5)
    rules = {"few": Keep(runs=2), "young": Keep(age_ms=7_500, runs=3)}
    assert store.do(store.prune(rules)) == 4
    assert there(store) == {*runs["all"], *runs["few"][2:], *runs["young"][2:]}
    assert store.do(store.prune({"": Keep(), **rules})) == 0
    assert store.do(store.prune({"": Keep(runs=1), "few": Keep()})) == 4
    assert there(store) == {runs["all"][3], *runs["few"][2:], runs["young"][3]}


def test_what_was_created_last_is_kept_and_what_is_active_counts(store, clock):
    active = start(store, ["A"])
    others = [ended(store, clock) for _ in range(3)]
    assert store.do(store.prune({"w": Keep(runs=2)})) == 1
    assert there(store) == {active, *others[1:]}
    succeed(store, active, 0)
    assert store.do(store.prune({"w": Keep(runs=2)})) == 1
    assert there(store) == set(others[1:])


def test_a_pass_is_bounded_and_takes_the_oldest_ends(store, clock):
    ids = [ended(store, clock) for _ in range(5)]
    clock.pass_s(DAY_S)
    assert store.do(store.prune({"": Keep(age_ms=1)}, 2)) == 2
    assert there(store) == set(ids[2:])
    assert store.do(store.prune({"": Keep(age_ms=1)}, 3)) == 3


def test_what_is_underway_stays(store, clock):
    waits, works, tries = (start(store, ["A"]) for _ in range(3))
    begin(store, works, 0)
    finish(store, begin(store, tries, 0), error=BOOM, retry_in_ms=10**12)
    clock.pass_s(365 * DAY_S)
    assert store.do(store.prune({"": Keep(age_ms=0, runs=1)})) == 0
    assert there(store) == {waits, works, tries}


@pytest.mark.parametrize("relaunched", [False, True])
def test_a_run_whose_hook_is_underway_stays_until_the_hook_has_ended(store, clock, relaunched):
    run_id = start(store, ["A"], failure_hook="BAD")
    fail(store, run_id, 0)
    if relaunched:  # the hook of the first launch is still queued when the second ends without one
        relaunch(store, run_id, workflow(["A"], failure_hook="BAD"))
        succeed(store, run_id, 0)
    everything = {"": Keep(age_ms=0)}
    clock.pass_s(1)
    assert store.do(store.prune(everything)) == 0
    hook = begin(store, run_id, 1)
    assert store.do(store.prune(everything)) == 0
    clock.pass_s(60)
    assert finish(store, hook).accepted
    clock.pass_s(1)
    assert store.do(store.prune({"": Keep(age_ms=62_001)})) == 0
    assert store.do(store.prune({"": Keep(age_ms=62_000)})) == 1, "the run's end counts, not the hook's"
    assert there(store) == set()


def test_a_hook_that_ends_beside_a_running_launch_lets_nothing_go(store, clock):
    run_id = start(store, ["A"], failure_hook="BAD")
    fail(store, run_id, 0)
    relaunch(store, run_id, workflow(["A"], failure_hook="BAD"))
    succeed(store, run_id, 1)
    assert store.do(store.prune({"": Keep(age_ms=0)})) == 0
    assert statuses(store, run_id) == {"A": "queued", "BAD!": "succeeded"}
    cancel(store, run_id)
    assert store.do(store.prune({"": Keep(age_ms=0)})) == 1


def test_a_relaunched_run_counts_from_its_last_end(store, clock):
    run_id = ended(store, clock, how=fail)
    clock.pass_s(6 * DAY_S)
    relaunch(store, run_id, workflow(["A"]))
    clock.pass_s(3 * DAY_S)
    assert store.do(store.prune(WEEK)) == 0, "it is active"
    fail(store, run_id, 0)
    clock.pass_s(6 * DAY_S)
    assert store.do(store.prune(WEEK)) == 0
    clock.pass_s(DAY_S)
    assert store.do(store.prune(WEEK)) == 1


def test_a_delivery_is_known_after_its_run_has_gone(store, clock):
    order = new(plan_of(["A"]), dedupe=Dedupe(key="github:d1", ttl_s=7 * DAY_S))
    store.do(store.start(order))
    succeed(store, order.run_id, 0)
    assert store.do(store.prune({"": Keep(age_ms=0)})) == 1
    again = store.do(store.start(new(plan_of(["A"]), dedupe=order.dedupe)))
    assert (again.run_id, again.duplicate) == (order.run_id, True)
    assert there(store) == set()


def test_a_new_run_never_goes_on_without_the_results_it_was_to_keep(store, clock):
    """Given a relaunch that was worked out before its run was removed, then it starts nothing."""
    run_id = start(store, ["A", "B"])
    succeed(store, run_id, 0, 1)
    clock.pass_s(1)

    def late(_):
        assert store.do(store.prune({"": Keep(age_ms=0)})) == 1
        return workflow(["A", "B"])

    done = Engine().relaunch(*store.do(store.get(run_id)), late, origin="B", trigger={"kind": "api"})
    with pytest.raises(NotFound, match=run_id):
        store.do(store.carry_out(done.order))
    assert there(store) == set()
    assert queued(store) == []


def test_late_calls_find_nothing_and_change_nothing(store, clock):
    run_id = start(store, ["A"])
    begun = begin(store, run_id, 0)
    finish(store, begun)
    assert store.do(store.prune({"": Keep(age_ms=0)})) == 1
    assert not finish(store, begun).accepted
    assert store.do(store.renew([(begun.ref, begun.token)])) == (Ref(run_id, 0),)
    swept = store.do(store.sweep())
    assert (swept.lost, swept.failed, swept.idle) == ((), (), True)


def test_runs_of_many_workflows_go_within_one_bound(store, clock):
    for name in itertools.islice(itertools.cycle("xyz"), 9):
        ended(store, clock, name)
    gone = [store.do(store.prune({"": Keep(age_ms=0)}, 4)) for _ in range(4)]
    assert gone == [4, 4, 1, 0]
    with pytest.raises(NotFound):
        get(store, "no-such-run")


# The loop -----------------------------------------------------------------------------------------

SAYS = """
kept: {tasks: [A], retention: {offset: 2}}
long: {tasks: [A], retention: {days: 3650}}
"""


@pytest.fixture
def loop(store, tmp_path):
    (tmp_path / "workflows.yml").write_text(SAYS)
    made = Loop(Settings.from_env({"DIRECTOR_HOME": str(tmp_path)}), store, Definitions(tmp_path))
    made._prune_at = 0.0
    return made


def test_the_loop_removes_what_files_and_settings_do_not_keep(store, clock, loop):
    runs = {
        name: [ended(store, clock, name) for _ in range(3)] for name in ("kept", "long", "gone from the files")
    }
    assert loop.step() > 0
    assert there(store) == {*runs["long"], *runs["kept"][1:], *runs["gone from the files"]}
    clock.pass_s(31 * DAY_S)
    assert loop.step() > 0
    assert len(there(store)) == 8, "a minute has not passed"
    loop._prune_at = 0.0
    loop.step()
    assert there(store) == set(runs["long"]), "30 days are the default"


def test_the_loop_goes_on_at_once_while_there_is_more(store, clock, loop):
    for _ in range(105):
        ended(store, clock, "kept")
    assert [loop.step() == 0, loop.step() == 0, len(there(store))] == [True, False, 2]


@pytest.mark.parametrize(
    "text", ["long: {tasks: [A], retention: {days: x}}", "long: [", "defaults: {retention: {days: -1}}\n" + SAYS]
)
def test_what_a_broken_file_says_is_not_taken_for_nothing(store, clock, loop, tmp_path, text):
    (tmp_path / "workflows.yml").write_text(text)
    run_id = ended(store, clock, "long")
    clock.pass_s(100 * DAY_S)
    loop.step()
    assert there(store) == {run_id}


def test_settings_of_retention(tmp_path):
    def found(**given):
        home = {"DIRECTOR_HOME": str(tmp_path)}
        return keeps(load(tmp_path), Settings.from_env({**home, **given}))

    assert found() == {"": Keep(age_ms=30 * DAY_S * 1000)}
    assert found(DIRECTOR_RETENTION_DAYS="0", DIRECTOR_DEFAULT_RETENTION_OFFSET="-1") == {"": Keep()}
    half = found(DIRECTOR_RETENTION_DAYS="0.5", DIRECTOR_DEFAULT_RETENTION_OFFSET="7")
    assert half == {"": Keep(age_ms=DAY_S * 500, runs=7)}
    (tmp_path / "workflows.yml").write_text("a: {tasks: [A], retention: {offset: -1, days: 1}}")
    assert found(DIRECTOR_DEFAULT_RETENTION_OFFSET="7")["a"] == Keep(age_ms=DAY_S * 1000)
    with pytest.raises(SettingsError, match="DIRECTOR_RETENTION_DAYS"):
        found(DIRECTOR_RETENTION_DAYS="-1")


def test_a_redis_without_memory_still_prunes(redis_url, clock):
    store, client = RedisStore(redis_url, clock=clock), redis.Redis.from_url(redis_url)
    ended(store, clock)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            start(store, ["A"])
        assert store.do(store.prune({"": Keep(age_ms=0)})) == 1
    finally:
        client.config_set("maxmemory", 0)

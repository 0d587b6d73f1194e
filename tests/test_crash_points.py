"""A process may end, or its connection break, at any point of any call to Redis: every point is tried.

A proxy passes commands on one by one and counts them. Point 2n is before the nth command reaches the server, point
2n + 1 after the server has executed it and before its reply is read.
"""

import asyncio
import contextlib
import itertools
import socket
import threading
from functools import cache
from typing import NamedTuple

import hiredis
import msgspec
import pytest
import redis
from msgspec.structs import replace

from director import messages
from director.errors import StoreUnavailable
from director.models import TaskError, TaskOptions
from director.store.redis import RedisStore
from director.store.shapes import Dedupe, Entry, Fire, Keep, Next, Outcome, Ref, Relaunch
from tests.conftest import Clock
from tests.contract.driving import BOOM, HOLDER, begin, finish, new, plan_of, relaunch
from tests.processes import workflow

SPEC = ["A", ("B", "C"), "D"]
HOOKS = {"success_hook": "GOOD", "failure_hook": "BAD"}
PLAN = plan_of(SPEC, ahead=True, **HOOKS)
MOVED = plan_of(SPEC, ahead=True, queue="elsewhere", **HOOKS)
RUN, OTHER = (f"01900000-0000-7000-8000-00000000000{n}" for n in (1, 2))
WISH = Next(token="kept", queue="celery")
TAKE = Next(token="kept", queue="celery", take=True)
GONE = TaskError(type="UnknownTask", message="nobody knows it")
prefixes = (f"crash{n}:" for n in itertools.count())


class Proxy:
    """Stands between a store and its server, and cuts at one point: once, or for good as if the process had ended."""

    def __init__(self, server, point=-1, *, dead=False):
        self._server, self._point, self._dead = server, point, dead
        self.points = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        commands, replies = hiredis.Reader(), hiredis.Reader()
        with client, socket.create_connection(self._server) as upstream, contextlib.suppress(OSError):
            for end in (client, upstream):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := client.recv(1 << 20):
                commands.feed(data)
                while (words := commands.gets()) is not False:
                    if self._is_cut():
                        return
                    upstream.sendall(hiredis.pack_command(tuple(words)))
                    raw = b""
                    while replies.gets() is False:
                        raw += (part := upstream.recv(1 << 20))
                        replies.feed(part)
                    if self._is_cut():
                        return
                    client.sendall(raw)

    def _is_cut(self):
        here, self.points = self.points, self.points + 1
        if here == self._point and self._dead:
            self.close()
        return here == self._point


class Scene(NamedTuple):
    """A verb in a state that it changes."""

    prepare: object
    """Brings a store into the state."""
    call: object
    """Describes the call."""
    again: object = lambda store: None
    """What somebody else does who has seen no answer: the provider, the person."""
    same_answer: bool = True
    """A repeat gets the first answer; not so where the answer only tells what was done, for the log."""
    ends: str = ""
    """How the run may end instead of succeeding: as the call says, where it was executed."""


def nothing(store, clock):
    pass


def queued(store, clock):
    store.do(store.start(started(RUN)))


def running(store, clock):
    queued(store, clock)
    begin(store, RUN, 0, "token")


def started(run_id):
    return new(PLAN, run_id, payload={"a": 1}, dedupe=Dedupe(key="github:1", ttl_s=60))


def running_beside_another(store, clock):
    running(store, clock)
    finish(store, begin(store, RUN, 0, "token"), 0)
    begin(store, RUN, 1, "token")
    pop(store)
    store.do(store.start(new(PLAN, OTHER)))


def at_the_last(store, clock):
    queued(store, clock)
    for number in range(3):
        finish(store, begin(store, RUN, number, f"t{number}"), number)
    begin(store, RUN, 3, "token")


def failed(store, clock):
    running(store, clock)
    finish(store, begin(store, RUN, 0, "token"), error=BOOM)


def later(prepare, seconds):
    def prepared(store, clock):
        prepare(store, clock)
        store.do(store.sweep())
        for _ in range(seconds):
            clock.pass_s(1)
            if _ < seconds - 1:
                store.do(store.sweep())

    return prepared


def retrying(store, clock):
    running(store, clock)
    store.do(store.finish(Ref(RUN, 0), "token", Outcome(error=BOOM, retry_in_ms=3000), HOLDER))


def popped(store, clock):
    queued(store, clock)
    pop(store)


def finishing(wish=None, number=0, **outcome):
    return lambda store: store.finish(Ref(RUN, number), "token", Outcome(**outcome), HOLDER, wish)


def relaunching(built):
    resets = {0: 0, 1: 1, 2: 1, 3: 1, 4: 2}
    resets = {number: waits for number, waits in resets.items() if number < len(built.nodes)}
    waits = {n: len(built.nodes[n].parents) for n in resets}
    order = Relaunch(run_id=RUN, launch=1, token="again", plan=built, resets=waits)
    return lambda store: store.relaunch(order)


def relaunch_unless_done(store):
    if store.do(store.get(RUN))[0].launch == 1:
        relaunch(store, RUN, workflow(SPEC, **HOOKS))


def ended(store, clock):
    failed(store, clock)
    begin(store, RUN, len(PLAN.nodes), "hook")
    store.do(store.finish(Ref(RUN, len(PLAN.nodes)), "hook", Outcome(result=b"1"), HOLDER))


def scheduled(store, clock):
    store.do(store.add([Entry(schedule="s", due=clock.now, job={"origin": "director"})]))


def fired(store):
    """A schedule's run has one id, whoever starts it."""
    at = Clock().now
    fire = Fire(schedule="s", was=at, due=at + 20_000, next=at + 30_000, skipped=2, reason="missed")
    return store.start(replace(started(RUN), dedupe=None, fire=fire))


def skipped(store):
    at = Clock().now
    return store.skip(Fire(schedule="s", was=at, due=at, next=at + 10_000, skipped=1, reason="missed"))


def prune_too(store):
    store.do(store.prune({"": Keep(runs=0)}))


def cancel_too(store):
    with contextlib.suppress(Exception):
        store.do(store.cancel(RUN, "another"))


SCENES = {
    "start": Scene(nothing, lambda store: store.start(started(RUN)), lambda s: s.do(s.start(started(OTHER)))),
    "start with a known plan": Scene(
        lambda store, clock: store.do(store.start(new(PLAN, OTHER))), lambda store: store.start(started(RUN))
    ),
    "begin": Scene(queued, lambda store: store.begin(Ref(RUN, 0), "token", HOLDER)),
    "finish": Scene(running, finishing(result=b"0")),
    "finish and keep": Scene(running, finishing(WISH, result=b"0")),
    "finish and take": Scene(running_beside_another, finishing(TAKE, 1, result=b"1")),
    "finish the run and keep its hook": Scene(at_the_last, finishing(WISH, 3, result=b"3")),
    "fail": Scene(running, finishing(error=BOOM), ends="failed"),
    "retry": Scene(running, finishing(error=BOOM, retry_in_ms=2000)),
    "retry and take": Scene(
        lambda store, clock: (running(store, clock), pop(store), store.do(store.start(new(PLAN, OTHER)))),
        finishing(TAKE, error=BOOM, retry_in_ms=2000),
    ),
    "renew": Scene(later(running, 10), lambda store: store.renew([(Ref(RUN, 0), "token")])),
    "hand back": Scene(running, lambda store: store.hand_back("boot.", False), same_answer=False),
    "hand back as a loss": Scene(running, lambda store: store.hand_back(HOLDER, True), same_answer=False),
    "unknown": Scene(queued, lambda store: store.unknown(Ref(RUN, 0), "", GONE), same_answer=False),
    "unknown when begun": Scene(
        running, lambda store: store.unknown(Ref(RUN, 0), "token", GONE), same_answer=False
    ),
    "cancel": Scene(running, lambda store: store.cancel(RUN, "stop"), cancel_too, ends="canceled"),
    "relaunch": Scene(failed, relaunching(PLAN), relaunch_unless_done),
    "relaunch with a new plan": Scene(failed, relaunching(MOVED), relaunch_unless_done),
    "sweep an ended lease": Scene(later(running, 31), lambda store: store.sweep(), same_answer=False),
    "sweep a wait that is over": Scene(later(retrying, 4), lambda store: store.sweep(), same_answer=False),
    "sweep a lost message": Scene(later(popped, 21), lambda store: store.sweep(), same_answer=False),
    "prune": Scene(
        ended, lambda store: store.prune({"": Keep(runs=0)}), prune_too, same_answer=False, ends="gone"
    ),
    "write a schedule down": Scene(
        queued, lambda store: store.add([Entry(schedule="s", due=5, job={"origin": "director"})])
    ),
    "refresh a schedule": Scene(
        lambda store, clock: (queued(store, clock), scheduled(store, clock)),
        lambda store: store.refresh(["s", "t"]),
    ),
    "fire a schedule": Scene(scheduled, fired, lambda store: store.do(fired(store))),
    "skip a due time": Scene(
        lambda store, clock: (queued(store, clock), scheduled(store, clock)), skipped, same_answer=False
    ),
    "publish": Scene(queued, lambda store: store.publish("boot", {"A": TaskOptions()})),
}


@cache
def connected(url):
    return redis.Redis.from_url(url)


def client_of(store):
    return contextlib.nullcontext(connected(store.url))


def pop(store, queue="celery"):
    """Take the oldest message as a worker does; return its task run."""
    with client_of(store) as client:
        message = client.rpop(f"{store.prefix}mq:{queue}")
    if message is None:
        return None
    run_id, number, _ = messages.parse(msgspec.json.decode(message)["headers"][messages.HEADER])
    return Ref(run_id, number)


def everything(store):
    """Return all that the server holds of a store."""
    found = {}
    with client_of(store) as client:
        for key in client.keys(store.prefix + "*"):
            kind = client.type(key)
            if kind == b"hash":
                value = client.hgetall(key)
            elif kind == b"zset":
                value = client.zrange(key, 0, -1, withscores=True)
            elif kind == b"list":
                value = client.lrange(key, 0, -1)
            elif kind == b"set":
                value = client.smembers(key)
            else:
                value = client.get(key)
            found[key.removeprefix(store.prefix.encode())] = value
    return found


@pytest.fixture
def made(redis_url):
    """Bring a store to a scene, under a prefix of its own; the server knows no script when the call is made."""
    stores = []

    def make(scene):
        clock = Clock()
        store = RedisStore(redis_url, next(prefixes), clock=clock)
        stores.append(store)
        scene.prepare(store, clock)
        with client_of(store) as client:
            client.script_flush()
        return store, clock

    yield make
    for store in stores:
        store.close()


def through(proxy, store):
    return RedisStore(proxy.url, store.prefix, clock=store.clock, timeout_s=2)


def do(store, call):
    return store.do(call(store))


def over_the_link(store, call):
    """Make a call as the web process does."""

    async def ask():
        link = store.link()
        try:
            return await link.submit(call(store))
        finally:
            link.close()

    answer = asyncio.run(ask())
    if isinstance(answer, Exception):
        raise answer
    return answer


def call_through(made, scene, make, point=-1, *, dead=False):
    """Make the scene's call with a cut at a point; return answer (or error), store, clock and points passed."""
    store, clock = made(scene)
    host, port = redis.connection.parse_url(store.url)["host"], redis.connection.parse_url(store.url)["port"]
    proxy = Proxy((host, port), point, dead=dead)
    caller = through(proxy, store)
    try:
        answer = make(caller, scene.call)
    except StoreUnavailable as exc:
        answer = exc
    finally:
        caller.close()
        proxy.close()
    return answer, store, clock, proxy.points


@pytest.mark.parametrize("make", [do, over_the_link], ids=["do", "link"])
@pytest.mark.parametrize("name", SCENES)
def test_a_connection_that_breaks_at_any_point_changes_neither_answer_nor_state(made, name, make):
    """The call is repeated by whoever made it: every byte that the server holds is as without the break."""
    scene = SCENES[name]
    right, undisturbed, _, points = call_through(made, scene, make)
    assert points >= 4, "the script is not there at first: asked, loaded, asked again"
    after = everything(undisturbed)
    for point in range(points):
        answer, store, _, _ = call_through(made, scene, make, point)
        assert everything(store) == after, f"point {point} of {points}"
        assert not isinstance(answer, Exception), f"point {point} of {points}"
        if scene.same_answer:
            assert answer == right, f"point {point} of {points}"


@pytest.mark.parametrize("name", SCENES)
def test_a_process_that_ends_at_any_point_leaves_nothing_stuck_and_nothing_twice(made, name):
    scene = SCENES[name]
    points = call_through(made, scene, do)[3]
    for point in range(points):
        answer, store, clock, _ = call_through(made, scene, do, point, dead=True)
        assert isinstance(answer, StoreUnavailable)
        scene.again(store)
        finished = live_on(store, clock)
        with client_of(store) as client:
            runs = [run.decode() for run in client.zrange(store.prefix + "runs", 0, -1)]
            wanted = 0 if scene.ends == "gone" else 1 + (OTHER in runs and RUN in runs)
            assert len(runs) == wanted, f"point {point}: {runs}"
            check_end(store, client, scene, runs, finished)


def live_on(store, clock):
    """Let other workers and the loop go on; return how often each task run was finished."""
    finished = {}
    for _ in range(60):
        if store.do(store.sweep()).idle:
            return finished
        while ref := pop(store) or pop(store, "elsewhere"):
            begun = store.do(store.begin(ref, f"w{next(tokens)}", "other.1"))
            if begun is not None:
                assert finish(store, begun, ref.number).accepted
                finished[begun.launch, ref] = finished.get((begun.launch, ref), 0) + 1
        clock.pass_s(1)
    raise AssertionError(f"still active: {everything(store)}")


tokens = itertools.count()


def check_end(store, client, scene, runs, finished):
    """The runs are over and right, and no index holds anything of them."""
    for run_id in runs:
        run, _ = store.do(store.get(run_id))
        assert run.status in ("succeeded", scene.ends)
        for task in run.tasks:
            if task.status == "succeeded" and not task.hook:
                assert msgspec.json.decode(task.result) == task.number
        hooks = [task.status for task in run.tasks if task.hook]
        assert hooks == {"succeeded": ["succeeded"], "canceled": []}.get(run.status, hooks) or run.launch > 1
    assert max(finished.values(), default=1) == 1, "nothing is finished twice"
    for key in client.keys(store.prefix + "*"):
        name = key.decode().removeprefix(store.prefix)
        if name in ("leases", "delayed", "runs.active") or name.startswith("queued:"):
            raise AssertionError(f"{name} holds {client.zrange(key, 0, -1)}")
    assert client.hget(store.prefix + "stats", "active:w") == b"0"

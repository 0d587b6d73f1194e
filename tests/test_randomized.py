"""One random history, played to both stores on one clock: every answer and every visible state agrees."""

import os
import random

import msgspec
import pytest

from director import plan
from director.engine import Engine
from director.errors import DirectorError
from director.models import Hooks, TaskError, TaskOptions
from director.store.base import Dedupe, Filter, Keep, Next, Outcome, Ref
from director.store.redis import RedisStore
from director.store.tiny import TinyStore
from tests.conftest import Clock
from tests.contract.driving import new
from tests.processes import workflow

HISTORIES = int(os.environ.get("DIRECTOR_TEST_HISTORIES", "60"))
STEPS = 60
ERROR = TaskError(type="Error", message="random")


def random_spec(rng, depth=0):
    """Return a chain: tasks, groups of chains, groups of groups."""
    members = []
    for _ in range(rng.randint(1, 3)):
        if depth < 2 and rng.random() < 0.45:
            members.append(tuple(random_spec(rng, depth + 1) for _ in range(rng.randint(1, 3))))
        else:
            members.append(rng.choice("ABCD"))
    return members


def random_hooks(rng):
    return Hooks(**{name: rng.choice([None, "HOOK", "HOOK", "OTHER"]) for name in ("success", "failure")})


def random_workflow(rng):
    queue = rng.choice([None, "q"])
    return workflow(random_spec(rng), rng.choice(["x", "y"]), queue=queue, hooks=random_hooks(rng))


def random_options(rng):
    """Return what workers would publish: some tasks have limits, some are urgent, some are not known."""
    options = {}
    for task in ("A", "B", "C", "D", "HOOK"):
        limit = rng.choice([None, None, None, 2.5, 40])
        if rng.random() < 0.8:
            options[task] = TaskOptions(
                time_limit=limit, limited=limit is not None, priority=rng.choice([None, 6])
            )
    return options


class History:
    """Plays each step to both stores and compares."""

    def __init__(self, rng, clock, stores):
        self.rng, self.clock, self.stores = rng, clock, stores
        self.runs, self.tokens, self.definitions = [], [], {}
        self.made = 0

    def both(self, make):
        answers = []
        for store in self.stores:
            try:
                answers.append(store.do(make(store)))
            except DirectorError as exc:
                answers.append((type(exc), str(exc)))
        assert answers[0] == answers[1]
        return answers[0]

    def twice(self, make):
        """Most calls are made once, some twice: the second answer is the first one."""
        first = self.both(make)
        if self.rng.random() < 0.2:
            assert self.both(make) == first
        return first

    def token(self):
        self.made += 1
        return f"t{self.made}"

    def ref(self):
        return Ref(run_id=self.rng.choice(self.runs), number=self.rng.randint(0, 12))

    def start(self):
        definition = random_workflow(self.rng)
        self.made += 1
        # UUIDv7-like and ascending, so that both stores order equal times alike.
        run_id = f"{self.clock.now:012x}"[:8] + f"-{self.made:027d}"
        dedupe = Dedupe(key=f"s:{self.rng.randint(0, 5)}", ttl_s=86_400, fingerprint=self.rng.choice(["", "f"]))
        built = plan.build(definition, random_options(self.rng))
        order = new(built, run_id, payload={"n": self.made}, dedupe=self.rng.choice([None, None, dedupe]))
        if self.twice(lambda store: store.start(order)).run_id != run_id:
            return  # a duplicate
        self.runs.append(run_id)
        self.definitions[run_id] = definition

    def begin(self):
        queued = [item.ref for item in self.stores[1].do(self.stores[1].outbox())]
        ref = self.rng.choice(queued) if queued and self.rng.random() < 0.8 else self.ref()
        token = self.token()
        holder = self.rng.choice(["w.1", "w.2", "v.1"])
        begun = self.twice(lambda store: store.begin(ref, token, holder))
        if begun:
            self.tokens.append((ref, token))

    def finish(self):
        if not self.tokens:
            return
        ref, token = self.rng.choice(self.tokens[-4:])
        outcome = self.rng.choice(
            [
                Outcome(result=b"1"),
                Outcome(result=b"null"),
                Outcome(result=b'"%s"' % (b"x" * 600)),
                Outcome(error=ERROR),
                Outcome(error=ERROR, retry_in_ms=3000),
            ]
            + [Outcome(result=b'"more"')] * 4
        )
        wish = None
        if self.rng.random() < 0.5:
            queue = self.rng.choice(["celery", "q", "celery", "q", "celery\x06\x166", "q\x06\x166"])
            wish = Next(token=self.token(), queue=queue)
        done = self.twice(lambda store: store.finish(ref, token, outcome, "w.1", wish))
        if done.begun:
            self.tokens.append((done.begun.ref, done.begun.token))

    def hand_back(self):
        holder, counted = self.rng.choice(["w.1", "w.2", "v.1", "v."]), self.rng.random() < 0.5
        self.same([store.do(store.hand_back(holder, counted)) for store in self.stores])

    def renew(self):
        held = self.tokens[-3:]
        self.twice(lambda store: store.renew(held))

    def same(self, swept):
        for part in ("lost", "failed", "ended"):
            assert sorted(getattr(swept[0], part)) == sorted(getattr(swept[1], part))

    def unknown(self):
        ref, token = self.ref(), ""
        if self.tokens and self.rng.random() < 0.3:
            ref, token = self.rng.choice(self.tokens[-4:])
        self.both(lambda store: store.unknown(ref, token, ERROR))

    def sweep(self):
        swept = [store.do(store.sweep()) for store in self.stores]
        self.same(swept)
        assert swept[0].released == swept[1].released
        assert swept[0].idle == swept[1].idle

    def prune(self):
        keep = Keep(age_ms=self.rng.choice([None, 20_000, 60_000]), runs=self.rng.choice([None, 2, 5]))
        if self.rng.random() < 0.5:
            self.both(lambda store: store.prune({"": Keep(runs=6), "x": keep}))

    def cancel(self):
        run_id, token = self.rng.choice(self.runs), self.token()
        self.twice(lambda store: store.cancel(run_id, token))

    def relaunch(self):
        run_id = self.rng.choice(self.runs)
        definition = self.definitions[run_id]
        if self.rng.random() < 0.3:
            definition = msgspec.structs.replace(definition, hooks=random_hooks(self.rng))
        origin = self.rng.choice(["failed", "failed", "A", "B.2"])
        try:
            run, pinned = self.stores[0].do(self.stores[0].get(run_id))
        except DirectorError:
            return  # it has been pruned
        if run.status == "succeeded":
            return
        engine = Engine()
        engine.learn(self.both(lambda store: store.task_options()))
        try:
            done = engine.relaunch(run, pinned, lambda _: definition, origin=origin, trigger={"kind": "api"})
        except DirectorError:
            return
        self.twice(lambda store: store.carry_out(done.order))

    def compare(self):
        for run_id in self.runs:
            self.both(lambda store, run_id=run_id: store.get(run_id))
        self.both(lambda store: store.list(Filter(limit=20)))
        self.both(lambda store: store.list(Filter(limit=3, status="failed")))
        self.both(lambda store: store.state(["x", "y"]))
        self.both(lambda store: store.list(Filter(limit=2, workflow="x", since=self.clock.now - 9000)))
        self.both(lambda store: store.renew(self.tokens[-10:]))
        outboxes = [sorted(item.ref for item in store.do(store.outbox())) for store in self.stores]
        assert outboxes[0] == outboxes[1]

    def play(self):
        self.start()
        moves = [self.begin] * 8 + [self.finish] * 8 + [self.sweep] * 2
        moves += [self.start, self.hand_back, self.renew, self.unknown, self.cancel, self.prune, self.relaunch]
        for _ in range(STEPS):
            # 6 s and more is an outage when no sweep comes between; 31 s ends every lease.
            self.clock.now += self.rng.choice([0, 1, 5, 900, 2500, 4900] * 3 + [6000, 16_000, 31_000])
            self.rng.choice(moves)()
            self.compare()


@pytest.mark.parametrize("block", range(4))
def test_both_stores_agree_on_every_history(redis_url, tmp_path, block):
    base = int(os.environ.get("DIRECTOR_TEST_SEED", "1000"))
    for index in range(HISTORIES // 4):
        seed = base + block * 100_000 + index
        prefix, clock = f"{seed}:", Clock()
        stores = [RedisStore(redis_url, prefix, clock=clock), TinyStore(tmp_path / str(seed), clock=clock)]
        try:
            History(random.Random(seed), clock, stores).play()
        except BaseException:
            print(f"failing seed: DIRECTOR_TEST_SEED={seed}")
            raise
        finally:
            stores[0].close()

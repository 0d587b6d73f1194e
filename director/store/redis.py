"""The Redis store: each verb is one script in `lua/`, described here once.

A `RedisCall` says which script, keys and arguments, and how to read the reply. A script that Redis has
forgotten is loaded and asked again; a plan that it does not have is stored and the call made again. Both
repeats are safe (see `store.base`). `do` makes a call over a plain socket, `link` makes it on an event loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from director.errors import DirectorError, NotFound, StoreUnavailable
from director.models import AccessToken, Delivery, FullRun, Plan, Presented, Run, TaskError, TaskOptions, time_text
from director.settings import hide_password
from director.states import LETTER, WORD
from director.store import base, keys, rules, shapes, tokens
from director.store.base import Store
from director.store.calls import RedisCall, source
from director.store.replies import (
    as_begun,
    as_finished,
    as_listed,
    as_queues,
    as_refs,
    as_schedule,
    as_started,
    as_state,
    as_swept,
    as_text,
    as_token,
    as_word,
    fire_words,
    groups,
    there,
)
from director.store.shapes import Begun, Described, Finished, NewRun, Outbox, Outcome, Ref, Started, Swept

if TYPE_CHECKING:
    from redis.connection import Connection

T = TypeVar("T")
PRELUDES = 2
"""How often a call is made again because Redis lacked its script or its plan."""
KNOWN_PLANS = 1000
_PLAN = msgspec.json.Decoder(Plan)
_DELIVERY = msgspec.json.Decoder(Delivery)
_OPTIONS = msgspec.json.Decoder(TaskOptions)


class RedisStore(Store):
    """What remembers runs, in Redis or Valkey.

    Args:
        url: `redis://…`, `rediss://…` or `unix://…`.
        prefix: before every key.
        max_lost: losses after which a task run fails.
        broker_is_store: scripts push messages to Celery's lists; else to an outbox, for `publisher`.
        timeout_s: how long one call may take.
    """

    def __init__(
        self,
        url: str,
        prefix: str = "director:",
        *,
        max_lost: int = 3,
        broker_is_store: bool = True,
        timeout_s: float = 5.0,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.url, self.prefix, self.timeout_s, self.clock = url, prefix, timeout_s, clock
        self._common: tuple[Any, ...] = ("1" if broker_is_store else "0", max_lost)
        self._connections: list[Connection] = []
        # A forked child's copies of its parent's sockets are not its own: it drops them and makes new ones.
        os.register_at_fork(after_in_child=self._connections.clear)
        self._plans: dict[str, Plan] = {}

    # Calls

    def do(self, call: Described[T]) -> T:
        assert isinstance(call, RedisCall)
        from redis import exceptions

        try:
            answer: T | DirectorError = call.answer(self._exchange(call))
        except (OSError, exceptions.RedisError) as exc:
            raise self.unavailable(str(exc) or type(exc).__name__) from exc
        if isinstance(answer, DirectorError):
            raise answer
        return answer

    def unavailable(self, reason: str) -> StoreUnavailable:
        """Return the error for a call whose answer is not known."""
        return StoreUnavailable(
            f"Redis at {hide_password(self.url)} did not answer ({reason}). "
            "What was asked may have been recorded all the same."
        )

    def _exchange(self, call: RedisCall[Any]) -> Any:
        """Make a call on an idle connection of this process."""
        try:
            connection = self._connections.pop()
        except IndexError:
            connection = self._connect()
        try:
            reply = self._send(connection, [self.command(call)])
            for _ in range(PRELUDES):
                if more := self.prelude(call, reply):
                    reply = self._send(connection, [*more, self.command(call)])
            return reply
        finally:
            self._connections.append(connection)

    def _connect(self) -> Connection:
        from redis import ConnectionPool
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        limits = {"socket_timeout": self.timeout_s, "socket_connect_timeout": min(self.timeout_s, 2.0)}
        pool = ConnectionPool.from_url(self.url, retry=Retry(NoBackoff(), 0), protocol=2, **limits)
        return cast("Connection", pool.make_connection())

    @staticmethod
    def _send(connection: Connection, commands: Sequence[tuple[Any, ...]]) -> Any:
        """Send the commands; return the last reply, or its ResponseError. Reconnect once."""
        from redis import exceptions

        for last in (False, True):
            try:
                connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                for _ in commands:
                    try:
                        reply = connection.read_response()
                    except exceptions.ResponseError as exc:
                        reply = exc
                break
            except (OSError, exceptions.ConnectionError):
                # An idle connection that Redis closed looks alive until it is used.
                connection.disconnect()
                if last:
                    raise
            except BaseException:
                # Replies may still be on their way: this connection would answer the next call with them.
                connection.disconnect()
                raise
        return reply

    def command(self, call: RedisCall[Any]) -> tuple[Any, ...]:
        """Return the words of a call's command."""
        if not call.script:
            return tuple(call.args)
        now = self.clock() if self.clock else ""
        common = (self.prefix, now, *self._common)
        return ("EVALSHA", source(call.script)[1], len(call.keys), *call.keys, *common, *call.args)

    def prelude(self, call: RedisCall[Any], reply: Any) -> list[tuple[Any, ...]]:
        """Return what Redis lacks, as commands that go before the call when it is made again."""
        if isinstance(reply, Exception) and str(reply).startswith(("NOSCRIPT", "No matching script")):
            return [("SCRIPT", "LOAD", source(call.script)[0])]
        if call.plan is not None and call.needs_plan(reply):
            fields: dict[str, Any] = {"json": msgspec.json.encode(call.plan), **keys.plan_fields(call.plan)}
            flat = [part for pair in fields.items() for part in pair]
            queues = ("SADD", self._key("queues"), *sorted(keys.lists(call.plan)))
            return [queues, ("HSET", keys.plan_key(self.prefix, call.plan.digest), *flat)]
        return []

    def link(self) -> shapes.Link | None:
        if self.url.startswith("rediss"):
            return None
        from director.store.link import Link

        return Link(self)

    def close(self) -> None:
        while self._connections:
            self._connections.pop().disconnect()

    def _key(self, *parts: str) -> str:
        return self.prefix + "".join(parts)

    def _on_run(self, script: str, run_id: str, *args: Any, read: Callable[[Any], T]) -> RedisCall[T]:
        return RedisCall(script, [self._key("run:", run_id)], [run_id, *args], read)

    # The life of a run

    def start(self, new: NewRun) -> RedisCall[Started]:
        workflow, run = new.plan.workflow, self._key("run:", new.run_id)
        made = [run, self._key("data:", new.run_id), keys.plan_key(self.prefix, new.plan.digest)]
        indexes = [self._key("runs"), self._key("runs:", workflow), self._key("runs.active")]
        seen = keys.seen_key(self.prefix, new.dedupe, workflow) if new.dedupe else run
        waits = [number for pair in new.waits.items() for number in pair]
        args = [
            *(new.run_id, workflow, new.plan.digest, new.plan.total, len(new.plan.nodes)),
            *(new.payload, rules.pack_trigger(new.trigger), new.comment, new.relaunch_of),
            *((new.dedupe.ttl_s, new.dedupe.fingerprint) if new.dedupe else (0, "")),
            *fire_words(new.fire),
            *(len(new.roots), *new.roots, len(new.kept), *new.kept, len(new.waits), *waits),
        ]
        return RedisCall("start", [*made, *indexes, seen], args, as_started, plan=new.plan)

    def begin(self, ref: Ref, token: str, holder: str) -> RedisCall[Begun | None]:
        return self._on_run("begin", ref.run_id, ref.number, token, holder, read=as_begun)

    def finish(
        self, ref: Ref, token: str, outcome: Outcome, holder: str, wish: shapes.Next | None = None
    ) -> RedisCall[Finished]:
        if outcome.error is None:
            status, body = "s", outcome.result or b"null"
        else:
            status, body = "f" if outcome.retry_in_ms is None else "y", msgspec.json.encode(outcome.error)
        wanted = (wish.token, wish.queue, int(wish.take)) if wish else ("", "", 0)
        args = (ref.number, token, status, body, outcome.retry_in_ms or 0, holder, *wanted)
        return self._on_run("finish", ref.run_id, *args, read=as_finished)

    def renew(self, held: Sequence[tuple[Ref, str]]) -> RedisCall[tuple[Ref, ...]]:
        args = [part for ref, token in held for part in (ref.run_id, ref.number, token)]
        return RedisCall("renew", [], args, lambda reply: tuple(held[index][0] for index in reply))

    def hand_back(self, holder: str, counted: bool) -> RedisCall[Swept]:
        return RedisCall("hand_back", [], [holder, int(counted)], as_swept)

    def unknown(self, ref: Ref, token: str, error: TaskError) -> RedisCall[Swept]:
        body = msgspec.json.encode(error)
        return self._on_run("unknown", ref.run_id, ref.number, token, body, read=as_swept)

    def cancel(self, run_id: str, token: str) -> RedisCall[None]:
        def read(reply: Any) -> None:
            if status := as_word(there(run_id, reply)):
                raise base.has_ended(run_id, status)

        return self._on_run("cancel", run_id, token, read=read)

    def relaunch(self, order: shapes.Relaunch) -> RedisCall[int]:
        def read(reply: Any) -> int:
            if reply[0] > 0:
                return int(reply[1]) if reply[0] == 1 else 0
            if reply[0] == 0:
                raise base.moved_on(order.run_id, WORD[as_text(reply[1])], reply[2])
            raise base.no_run(order.run_id)

        run, once = self._key("run:", order.run_id), order.dedupe
        seen = keys.seen_key(self.prefix, once, order.plan.workflow) if once else run
        resets = [part for pair in order.resets.items() for part in pair]
        return RedisCall(
            "relaunch",
            [run, keys.plan_key(self.prefix, order.plan.digest), seen],
            [order.run_id, order.launch, order.token, order.plan.digest, once.ttl_s if once else 0, *resets],
            read,
            plan=order.plan,
        )

    def seen(self, dedupe: shapes.Dedupe, workflow: str) -> RedisCall[str | None]:
        def read(reply: Any) -> str | None:
            return as_text(reply).partition(" ")[0] if reply else None

        return RedisCall("", [], ["GET", keys.seen_key(self.prefix, dedupe, workflow)], read)

    # The inbox

    def record(self, entries: Sequence[tuple[Delivery, bytes | None]]) -> RedisCall[None]:
        args: list[Any] = [*shapes.KEEP_DELIVERIES]
        for entry, body in entries:
            args += [entry.id, int(entry.secret is not None), entry.source, entry.verdict, entry.delivery]
            args += [msgspec.json.encode(entry), body or b""]
        return RedisCall("record", [], args, lambda _: None)

    def deliveries(self, which: shapes.DeliveryFilter) -> RedisCall[tuple[tuple[Delivery, ...], str | None]]:
        def read(reply: Any) -> tuple[tuple[Delivery, ...], str | None]:
            return tuple(_DELIVERY.decode(text) for text in reply[1:]), as_text(reply[0]) or None

        args = [which.source or "", which.verdict or "", which.after or "", which.limit]
        return RedisCall("deliveries", [], args, read)

    def delivery(self, name: str) -> RedisCall[tuple[Delivery, bytes | None]]:
        def read(reply: Any) -> tuple[Delivery, bytes | None]:
            if reply is None:
                raise base.no_delivery(name)
            entry = _DELIVERY.decode(reply[0])
            was_empty = entry.secret is not None and not entry.size  # a script's argument is no None
            return entry, b"" if was_empty else reply[1]

        return RedisCall("delivery", [], [name], read)

    # The loop and workers

    def sweep(self, fires: bool = False, publisher: str = "", drained: Iterable[str] = ()) -> RedisCall[Swept]:
        """As `Store.sweep`.

        Args:
            fires: of every store.
            publisher: who asks, if it is one: it says so every few seconds, or its message is taken from it.
            drained: queues of which its broker holds no message: what is queued there for 20 s is sent again.
        """

        def read(reply: Any) -> Swept:
            released, resent = map(as_refs, reply[3:5])
            due = tuple((as_text(name), at) for name, at in groups(reply[6], 2))
            coming, now, missed, unsure = reply[7:]
            return msgspec.structs.replace(
                as_swept(reply),
                released=released,
                resent=resent,
                idle=not reply[5],
                due=due,
                next_in_ms=None if coming < 0 else max(1, coming - now),
                now=now,
                missed_until=missed,
                unsure=tuple(sorted({as_text(queue) for queue in unsure})),
            )

        limits = (shapes.SWEEP_LIMIT, shapes.OUTAGE_MS, shapes.OUTAGE_GRACE_MS)
        asks = (int(fires), shapes.GAP_MS, shapes.FORGET_MS, publisher)
        return RedisCall("sweep", [], [*limits, *asks, *drained], read)

    def refresh(self, schedules: Sequence[str]) -> RedisCall[tuple[int, tuple[str, ...]]]:
        return RedisCall("refresh", [], schedules, lambda reply: (reply[0], tuple(map(as_text, reply[1:]))))

    def add(self, entries: Sequence[shapes.Entry]) -> RedisCall[None]:
        args: list[Any] = []
        for entry in entries:
            words = [word for pair in entry.job.items() for word in pair]
            args += [entry.schedule, entry.due, len(words), *words]
        return RedisCall("add", [], args, lambda _: None)

    def skip(self, fire: shapes.Fire) -> RedisCall[bool]:
        return RedisCall("skip", [], [fire.schedule, fire.was, fire.next, fire.skipped, fire.reason], bool)

    def schedules(self, ids: Sequence[str]) -> RedisCall[tuple[shapes.ScheduleState, ...]]:
        return RedisCall("schedules", [], ids, lambda reply: tuple(as_schedule(*row) for row in groups(reply, 5)))

    def prune(self, keeps: Mapping[str, shapes.Keep], limit: int = shapes.PRUNE_LIMIT) -> RedisCall[int]:
        args: list[Any] = [limit]
        for workflow, keep in keeps.items():
            args += [workflow, *("" if part is None else part for part in (keep.age_ms, keep.runs))]
        return RedisCall("prune", [], args, int)

    def take_message(self, publisher: str, wait_s: float) -> RedisCall[bytes | None]:
        """Take the oldest message of the outbox over; None when there was none for so long."""
        lists = (self._key("outbox"), self._key("outbox:", publisher))
        return RedisCall("", [], ["BLMOVE", *lists, "RIGHT", "LEFT", wait_s], lambda reply: reply)

    def drop_message(self, publisher: str, message: bytes) -> RedisCall[int]:
        """Forget a message that the broker has confirmed."""
        return RedisCall("", [], ["LREM", self._key("outbox:", publisher), 1, message], int)

    def return_message(self, publisher: str) -> RedisCall[bytes | None]:
        """Put back one message that was taken and not confirmed; None when there is none.

        Behind all others: one that its broker refuses must not keep them from leaving.
        """
        lists = (self._key("outbox:", publisher), self._key("outbox"))
        return RedisCall("", [], ["LMOVE", *lists, "RIGHT", "LEFT"], lambda reply: reply)

    def outbox(self) -> RedisCall[tuple[Outbox, ...]]:
        def read(reply: Any) -> tuple[Outbox, ...]:
            queued = [
                Outbox(
                    ref=Ref(run_id=as_text(run_id), number=number),
                    queued_at=int(at),
                    hook=as_text(kind),
                    plan=as_text(p),
                )
                for run_id, number, at, kind, p in groups(reply, 5)
            ]
            # The script reads list by list.
            return tuple(sorted(queued, key=lambda item: (item.queued_at, item.ref)))

        return RedisCall("outbox", [], [], read)

    def publish(
        self, worker: str, tasks: Mapping[str, TaskOptions], queues: Sequence[str] = ()
    ) -> RedisCall[tuple[str, ...]]:
        pairs = [part for name, options in tasks.items() for part in (name, msgspec.json.encode(options))]
        return RedisCall("publish", [], [worker, "\n".join(queues), *pairs], as_queues)

    def task_options(self) -> RedisCall[dict[str, TaskOptions]]:
        def read(reply: Any) -> dict[str, TaskOptions]:
            return {as_text(name): _OPTIONS.decode(text) for name, text in groups(reply, 2)}

        return RedisCall("", [], ["HGETALL", self._key("tasks")], read)

    # Access tokens

    def add_token(self, new: shapes.NewToken) -> RedisCall[AccessToken]:
        facts = tokens.facts(new)

        def read(reply: Any) -> AccessToken:
            if reply == 0:
                raise tokens.taken(new.id)
            created, expires = reply
            return as_token(new.id, created, expires, "", facts)

        lasts = "" if new.expires_in_ms is None else new.expires_in_ms
        return RedisCall("add_token", [], [new.id, new.digest, lasts, facts], read)

    def tokens(self) -> RedisCall[tuple[AccessToken, ...]]:
        def read(reply: Any) -> tuple[AccessToken, ...]:
            found = (as_token(*row) for row in groups(reply, 5))
            return tuple(sorted(found, key=lambda token: (token.created_at, token.id)))

        return RedisCall("tokens", [], [], read)

    def revoke(self, token_id: str) -> RedisCall[None]:
        def read(reply: Any) -> None:
            if reply == 0:
                raise tokens.missing(token_id)

        return RedisCall("revoke", [], [token_id], read)

    def authenticate(self, digest: str) -> RedisCall[Presented]:
        def read(reply: Any) -> Presented:
            any_token, *found = reply
            if not found:
                return Presented(any_token=bool(any_token))
            return Presented(token=as_token(*found[1:]), expired=bool(found[0]), any_token=bool(any_token))

        return RedisCall("authenticate", [], [digest, shapes.USE_NOTED_MS], read)

    # Reading

    def plan(self, digest: str) -> RedisCall[Plan]:
        def read(reply: Any) -> Plan:
            if reply is None:
                raise NotFound(f"No plan is called {digest}.")
            return self._plan(digest, reply)

        return RedisCall("", [], ["HGET", keys.plan_key(self.prefix, digest), "json"], read)

    def get(self, run_id: str) -> RedisCall[tuple[FullRun, Plan]]:
        def read(reply: Any) -> tuple[FullRun, Plan]:
            fields, more, text = there(run_id, reply)
            header = {as_text(name): as_text(value) for name, value in groups(fields, 2)}
            data = {as_text(name): value for name, value in groups(more, 2)}
            plan = self._plan(header["p"], text)
            return rules.view(as_state(run_id, header), plan, data), plan

        return RedisCall("get", [self._key("run:", run_id), self._key("data:", run_id)], [], read)

    def list(self, which: shapes.Filter) -> RedisCall[tuple[tuple[Run, ...], str | None]]:
        def read(reply: Any) -> tuple[tuple[Run, ...], str | None]:
            return tuple(as_listed(*entry) for entry in groups(reply[1:], 3)), as_text(reply[0]) or None

        by_status = {"failed": "runs.failed", "queued": "runs.active", "running": "runs.active"}
        index = f"runs:{which.workflow}" if which.workflow else by_status.get(which.status or "", "runs")
        args = [
            *(LETTER[which.status] if which.status else "", which.workflow or ""),
            *(
                "-inf" if which.since is None else which.since,
                "+inf" if which.until is None else f"({which.until}",
            ),
            *(which.after or "", which.limit),
        ]
        return RedisCall("list", [self._key(index)], args, read)

    def inspect(self) -> RedisCall[shapes.Inspection]:
        def read(reply: Any) -> shapes.Inspection:
            now, scheduled, lists, *workers = reply
            return shapes.Inspection(
                now=int(now),
                scheduled_at=int(scheduled) if scheduled else None,
                queues=as_queues(lists),
                workers={
                    as_text(name): tuple(as_text(line or b"").splitlines()) for name, line in groups(workers, 2)
                },
            )

        return RedisCall("inspect", [], [], read)

    def ask(self, *words: str) -> RedisCall[Any]:
        """Return a plain command, for questions about the server itself; its reply is as Redis gives it."""
        return RedisCall("", [], list(words), lambda reply: reply)

    def state(self, workflows: Sequence[str]) -> RedisCall[shapes.StoreState]:
        def line(status: bytes, last: bytes, success: bytes, active: bytes) -> shapes.WorkflowState:
            return shapes.WorkflowState(
                status=WORD.get(as_text(status)),
                last_run=as_text(last) or None,
                last_success_at=time_text(int(success)) if success else None,
                active=int(active),
            )

        def read(reply: Any) -> shapes.StoreState:
            lines = {name: line(*values) for name, values in zip(workflows, groups(reply[3:], 4), strict=True)}
            oldest = None if reply[1] < 0 else reply[1] / 1000
            return shapes.StoreState(queued=reply[0], oldest_queued_s=oldest, workers=reply[2], workflows=lines)

        return RedisCall("state", [], list(workflows), read)

    def _plan(self, digest: str, text: bytes) -> Plan:
        """Decode a plan once: a digest names one plan for ever."""
        plan = self._plans.get(digest)
        if plan is None:
            if len(self._plans) >= KNOWN_PLANS:
                self._plans.clear()
            plan = self._plans[digest] = _PLAN.decode(text)
        return plan

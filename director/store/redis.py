"""The Redis store: each verb is one script in `lua/`, described here once.

A `RedisCall` says which script, keys and arguments, and how to read the reply. `execute` sends any
number of them as one pipeline. A script that Redis has forgotten is loaded and asked again; a plan
that it does not have is stored and the call made again. Both repeats are safe (see `store.base`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from director.errors import Conflict, DirectorError, NotFound, StoreUnavailable
from director.models import Plan, Run, TaskError, TaskOptions
from director.settings import hide_password
from director.states import ENDED, LETTER, WORD
from director.store import keys, rules
from director.store.base import (
    OUTAGE_GRACE_MS,
    OUTAGE_MS,
    SWEEP_LIMIT,
    Begun,
    Described,
    Filter,
    Finished,
    Link,
    NewRun,
    Next,
    Outbox,
    Outcome,
    Ref,
    Relaunch,
    Started,
    Store,
    StoreState,
    Swept,
    WorkflowState,
)

if TYPE_CHECKING:
    from redis.connection import Connection

T = TypeVar("T")
NEEDS_PLAN = -1
_PLAN = msgspec.json.Decoder(Plan)


class RedisCall(Described[T]):
    """One script call, or one plain command when `script` is empty."""

    __slots__ = ("args", "keys", "plan", "read", "script")

    def __init__(
        self,
        script: str,
        keys: Sequence[str],
        args: Sequence[Any],
        read: Callable[[Any], T],
        plan: Plan | None = None,
    ) -> None:
        self.script = script
        self.keys = keys
        self.args = args
        self.read = read
        self.plan = plan


@cache
def source(script: str) -> tuple[str, str]:
    """Return a script's text, with what all scripts share before it, and its SHA-1."""
    folder = resources.files("director.store") / "lua"
    text = "\n".join((folder / f"{name}.lua").read_text() for name in ("common", script))
    return text, hashlib.sha1(text.encode()).hexdigest()


class RedisStore(Store):
    """What remembers runs, in Redis or Valkey.

    Args:
        url: `redis://…`, `rediss://…` or `unix://…`.
        prefix: before every key.
        max_lost: losses after which a task run fails.
        broker_is_store: scripts push the messages themselves.
        timeout_s: how long one exchange may take.
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
        self.clock = clock
        self.prefix = prefix
        self.url = url
        self._timeout_s = timeout_s
        self._common: tuple[Any, ...] = ("1" if broker_is_store else "0", max_lost)
        self._connections: list[Connection] = []
        self._pid = 0
        self._plans: dict[str, Plan] = {}

    # Exchange

    def execute(self, calls: Sequence[Described[Any]]) -> list[Any]:
        """Make the calls as one pipeline."""
        from redis import exceptions

        try:
            with _Borrowed(self) as connection:
                replies = self._exchange(connection, calls)  # type: ignore[arg-type]
        except (OSError, exceptions.ConnectionError, exceptions.TimeoutError) as exc:
            raise StoreUnavailable(
                f"Redis at {hide_password(self.url)} did not answer ({exc or type(exc).__name__}). "
                "What was asked may have been recorded; asking again is safe."
            ) from exc
        return [read_reply(call, reply) for call, reply in zip(calls, replies, strict=True)]

    def _exchange(self, connection: Connection, calls: Sequence[RedisCall[Any]]) -> list[Any]:
        from redis.exceptions import NoScriptError

        replies = self._send(connection, [self.command(call) for call in calls])
        for index, (call, reply) in enumerate(zip(calls, replies, strict=True)):
            again = reply
            if isinstance(again, NoScriptError):
                load = ("SCRIPT", "LOAD", source(call.script)[0])
                again = self._send(connection, [load, self.command(call)])[1]
            if call.plan is not None and isinstance(again, list) and again[0] == NEEDS_PLAN:
                again = self._send(connection, [*self.plan_commands(call.plan), self.command(call)])[-1]
            replies[index] = again
        return replies

    def _send(self, connection: Connection, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send the commands and read a reply, or a ResponseError, for each; reconnect once."""
        from redis import exceptions

        for last in (False, True):
            try:
                connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                return [_reply(connection) for _ in commands]
            except (OSError, exceptions.ConnectionError):
                # An idle connection that Redis closed looks alive until it is used.
                connection.disconnect()
                if last:
                    raise
            except BaseException:
                # Replies may still be on their way: this connection would answer the next call with them.
                connection.disconnect()
                raise
        raise AssertionError

    def command(self, call: RedisCall[Any]) -> tuple[Any, ...]:
        """Return the words of a call's command."""
        if not call.script:
            return tuple(call.args)
        now = self.clock() if self.clock else ""
        return (
            "EVALSHA",
            source(call.script)[1],
            len(call.keys),
            *call.keys,
            self.prefix,
            now,
            *self._common,
            *call.args,
        )

    def plan_commands(self, plan: Plan) -> list[tuple[Any, ...]]:
        """Return the commands that store a plan."""
        fields: dict[str, Any] = {"json": msgspec.json.encode(plan), **keys.plan_fields(plan)}
        flat = [part for pair in fields.items() for part in pair]
        return [
            ("SADD", f"{self.prefix}queues", *sorted(keys.lists(plan))),
            ("HSET", keys.plan_key(self.prefix, plan.digest), *flat),
        ]

    def connect(self) -> Connection:
        """Return a new connection of this store's URL and timeouts; nothing is sent yet."""
        from redis import ConnectionPool
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        pool = ConnectionPool.from_url(
            self.url,
            socket_timeout=self._timeout_s,
            socket_connect_timeout=min(self._timeout_s, 2.0),
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        return cast("Connection", pool.make_connection())

    def link(self) -> Link | None:
        """Return an asyncio connection; TLS is left to the thread and its client."""
        if self.url.startswith("rediss"):
            return None
        from director.store import link

        return link.Link(self, self._timeout_s)

    def close(self) -> None:
        """Close all idle connections."""
        while self._connections:
            self._connections.pop().disconnect()

    def _key(self, *parts: str) -> str:
        return self.prefix + "".join(parts)

    # The life of a run

    def start(self, new: NewRun) -> RedisCall[Started]:
        """See Store."""
        workflow = new.plan.workflow
        run = self._key("run:", new.run_id)
        waits = [number for pair in new.waits.items() for number in pair]
        return RedisCall(
            "start",
            [
                run,
                self._key("data:", new.run_id),
                keys.plan_key(self.prefix, new.plan.digest),
                self._key("runs"),
                self._key("runs:", workflow),
                self._key("runs.active"),
                keys.seen_key(self.prefix, new.dedupe, workflow) if new.dedupe else run,
            ],
            [
                *(new.run_id, workflow, new.plan.digest, new.plan.total, len(new.plan.nodes)),
                *(new.payload, msgspec.json.encode(new.trigger), new.comment, new.relaunch_of),
                *((new.dedupe.ttl_s, new.dedupe.fingerprint) if new.dedupe else (0, "")),
                *(len(new.roots), *new.roots, len(new.kept), *new.kept, len(new.waits), *waits),
            ],
            lambda reply: Started(run_id=_text(reply[1]), duplicate=reply[0] == 2, conflict=reply[0] == 3),
            plan=new.plan,
        )

    def begin(self, ref: Ref, token: str, holder: str) -> RedisCall[Begun | None]:
        """See Store."""
        return RedisCall("begin", [self._key("run:", ref.run_id)], [ref.run_id, ref.number, token, holder], _begun)

    def finish(
        self, ref: Ref, token: str, outcome: Outcome, holder: str, wish: Next | None = None
    ) -> RedisCall[Finished]:
        """See Store."""
        if outcome.retry_in_ms is not None:
            status, body = "y", msgspec.json.encode(outcome.error)
        elif outcome.error is not None:
            status, body = "f", msgspec.json.encode(outcome.error)
        else:
            status, body = "s", outcome.result or b"null"
        return RedisCall(
            "finish",
            [self._key("run:", ref.run_id)],
            [
                *(ref.run_id, ref.number, token, status, body, outcome.retry_in_ms or 0, holder),
                *((wish.token, wish.queue, int(wish.take)) if wish else ("", "", 0)),
            ],
            _finished,
        )

    def renew(self, held: Sequence[tuple[Ref, str]]) -> RedisCall[tuple[Ref, ...]]:
        """See Store."""
        args = [part for ref, token in held for part in (ref.run_id, ref.number, token)]
        return RedisCall("renew", [], args, lambda reply: tuple(held[index][0] for index in reply))

    def hand_back(self, ref: Ref, token: str, counted: bool) -> RedisCall[bool]:
        """See Store."""
        args = [ref.run_id, ref.number, token, int(counted)]
        return RedisCall("hand_back", [self._key("run:", ref.run_id)], args, bool)

    def held(self, holder: str) -> RedisCall[tuple[tuple[Ref, str], ...]]:
        """See Store."""
        return RedisCall("held", [], [holder], _held)

    def unknown(self, ref: Ref, error: TaskError) -> RedisCall[str]:
        """See Store."""
        args = [ref.run_id, ref.number, msgspec.json.encode(error)]
        return RedisCall(
            "unknown", [self._key("run:", ref.run_id)], args, lambda reply: WORD.get(_text(reply), "")
        )

    def cancel(self, run_id: str, token: str) -> RedisCall[str]:
        """See Store."""

        def read(reply: Any) -> str:
            if reply is None:
                raise _no_run(run_id)
            return WORD.get(_text(reply), "")

        return RedisCall("cancel", [self._key("run:", run_id)], [run_id, token], read)

    def relaunch(self, order: Relaunch) -> RedisCall[int]:
        """See Store."""

        def read(reply: Any) -> int:
            if reply[0] == 1:
                return int(reply[1])
            if reply[0] == 0:
                raise Conflict(
                    f"Run {order.run_id} is {WORD[_text(reply[1])]} in launch {reply[2]}; it was relaunched "
                    "or changed by somebody else. Nothing was changed."
                )
            raise _no_run(order.run_id)

        return RedisCall(
            "relaunch",
            [self._key("run:", order.run_id), keys.plan_key(self.prefix, order.plan.digest)],
            [
                *(order.run_id, order.launch, order.token, order.plan.digest),
                *(part for pair in order.resets.items() for part in pair),
            ],
            read,
            plan=order.plan,
        )

    # The loop

    def sweep(self) -> RedisCall[Swept]:
        """See Store."""

        def read(reply: Any) -> Swept:
            lost, timed_out, released, resent = (tuple(map(_ref, part)) for part in reply[:4])
            return Swept(lost=lost, timed_out=timed_out, released=released, resent=resent, idle=not reply[4])

        return RedisCall("sweep", [], [SWEEP_LIMIT, OUTAGE_MS, OUTAGE_GRACE_MS], read)

    def outbox(self) -> RedisCall[tuple[Outbox, ...]]:
        """See Store."""

        def read(reply: Any) -> tuple[Outbox, ...]:
            queued = [
                Outbox(
                    ref=Ref(run_id=_text(run_id), number=number),
                    plan=_text(digest),
                    queued_at=int(at),
                    hook=_text(kind),
                )
                for run_id, number, at, kind, digest in _groups(reply, 5)
            ]
            # The script reads list by list.
            return tuple(sorted(queued, key=lambda item: (item.queued_at, item.ref)))

        return RedisCall("outbox", [], [], read)

    # Workers

    def publish(self, worker: str, tasks: Mapping[str, TaskOptions]) -> RedisCall[None]:
        """See Store."""
        pairs = [part for name, options in tasks.items() for part in (name, msgspec.json.encode(options))]
        return RedisCall("publish", [], [worker, *pairs], lambda reply: None)

    def task_options(self) -> RedisCall[dict[str, TaskOptions]]:
        """See Store."""

        def read(reply: Any) -> dict[str, TaskOptions]:
            return {_text(name): msgspec.json.decode(text, type=TaskOptions) for name, text in _groups(reply, 2)}

        return RedisCall("", [], ["HGETALL", self._key("tasks")], read)

    def queues(self) -> RedisCall[tuple[str, ...]]:
        """See Store."""

        def read(reply: Any) -> tuple[str, ...]:
            return tuple(sorted({_text(name).partition("\x06")[0] for name in reply}))

        return RedisCall("", [], ["SMEMBERS", self._key("queues")], read)

    # Reading

    def plan(self, digest: str) -> RedisCall[Plan]:
        """See Store."""

        def read(reply: Any) -> Plan:
            if reply is None:
                raise NotFound(f"No plan is called {digest}.")
            return self._plan(digest, reply)

        return RedisCall("", [], ["HGET", keys.plan_key(self.prefix, digest), "json"], read)

    def get(self, run_id: str) -> RedisCall[Run]:
        """See Store."""

        def read(reply: Any) -> Run:
            if reply is None:
                raise _no_run(run_id)
            header = {_text(name): _text(value) for name, value in _groups(reply[0], 2)}
            data = {_text(name): value for name, value in _groups(reply[1], 2)}
            return rules.view(_state(run_id, header), self._plan(header["p"], reply[2]), data)

        return RedisCall("get", [self._key("run:", run_id), self._key("data:", run_id)], [], read)

    def status_of(self, run_id: str) -> RedisCall[str]:
        """See Store."""

        def read(reply: Any) -> str:
            if reply is None:
                raise _no_run(run_id)
            return WORD[_text(reply)]

        return RedisCall("", [], ["HGET", self._key("run:", run_id), "s"], read)

    def list(self, which: Filter) -> RedisCall[tuple[tuple[Run, ...], str | None]]:
        """See Store."""
        index = "runs"
        if which.workflow:
            index = "runs:" + which.workflow
        elif which.status in (None, *ENDED - {"failed"}):
            index = "runs"
        else:
            index = "runs.failed" if which.status == "failed" else "runs.active"

        def read(reply: Any) -> tuple[tuple[Run, ...], str | None]:
            runs = []
            for run_id, values, data in _groups(reply[1:], 3):
                header = {
                    name: _text(value)
                    for name, value in zip("wslcbenofxp", values, strict=True)
                    if value is not None
                }
                trigger, comment, relaunch_of, error, task = data
                known = {"t": trigger, "c": comment, "z": relaunch_of, f"e{header.get('x')}": error}
                run = rules.header(
                    _state(_text(run_id), header), {name: value for name, value in known.items() if value}
                )
                runs.append(msgspec.structs.replace(run, error_task=_text(task) if task else None))
            return tuple(runs), _text(reply[0]) or None

        return RedisCall(
            "list",
            [self._key(index)],
            [
                LETTER[which.status] if which.status else "",
                which.workflow or "",
                "-inf" if which.since is None else which.since,
                "+inf" if which.until is None else f"({which.until}",
                which.after or "",
                which.limit,
            ],
            read,
        )

    def state(self, workflows: Sequence[str]) -> RedisCall[StoreState]:
        """See Store."""

        def read(reply: Any) -> StoreState:
            lines = {
                name: WorkflowState(
                    status=WORD.get(_text(status)),
                    last_run=_text(last) or None,
                    last_success_at=int(success) if success else None,
                    active=int(active),
                )
                for name, (status, last, success, active) in zip(workflows, _groups(reply[3:], 4), strict=True)
            }
            oldest = None if reply[1] < 0 else reply[1] / 1000
            return StoreState(queued=reply[0], oldest_queued_s=oldest, workers=reply[2], workflows=lines)

        return RedisCall("state", [], list(workflows), read)

    def ping(self) -> RedisCall[None]:
        """See Store."""
        return RedisCall("", [], ["PING"], lambda reply: None)

    def _plan(self, digest: str, text: bytes) -> Plan:
        """Decode a plan once: a digest names one plan for ever."""
        plan = self._plans.get(digest)
        if plan is None:
            plan = self._plans[digest] = _PLAN.decode(text)
        return plan


class _Borrowed:
    """A connection for the length of one exchange; a forked process starts with none."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store

    def __enter__(self) -> Connection:
        import os

        store = self.store
        if store._pid != os.getpid():
            # The parent's sockets are its own; dropping the objects closes only our copies.
            store._connections, store._pid = [], os.getpid()
        try:
            self.connection = store._connections.pop()
        except IndexError:
            self.connection = store.connect()
        return self.connection

    def __exit__(self, *error: object) -> None:
        self.store._connections.append(self.connection)


def _reply(connection: Connection) -> Any:
    from redis.exceptions import ResponseError

    try:
        return connection.read_response()
    except ResponseError as exc:
        return exc


def read_reply(call: Any, reply: Any) -> Any:
    """Return what a reply means, or a DirectorError."""
    if isinstance(reply, Exception):
        # Out of memory, loading, read-only replica: Redis refuses before the script writes.
        return StoreUnavailable(f"Redis refused {call.script or call.args[0]}: {reply}")
    try:
        return call.read(reply)
    except DirectorError as exc:
        return exc


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _groups(flat: Sequence[Any], width: int) -> Iterable[tuple[Any, ...]]:
    return zip(*[iter(flat)] * width, strict=True)


def _ref(member: bytes) -> Ref:
    run_id, _, number = _text(member).rpartition(":")
    return Ref(run_id=run_id, number=int(number))


def _held(reply: Any) -> tuple[tuple[Ref, str], ...]:
    return tuple(
        (Ref(run_id=_text(run_id), number=number), _text(token)) for run_id, number, token in _groups(reply, 3)
    )


def _no_run(run_id: str) -> NotFound:
    return NotFound(f'No run has the id "{run_id}".')


def _begun(reply: Any) -> Begun | None:
    if not reply:
        return None
    payload, trigger, *results = reply[11]
    return Begun(
        ref=Ref(run_id=_text(reply[0]), number=reply[1]),
        token=_text(reply[2]),
        workflow=_text(reply[3]),
        plan=_text(reply[4]),
        task=_text(reply[5]),
        shape=_text(reply[6]),
        attempt=reply[7],
        retries=reply[8],
        launch=reply[9],
        hook=_text(reply[10]),
        payload=payload or b"{}",
        trigger=trigger or b"{}",
        results=tuple(result or b"null" for result in results),
    )


def _finished(reply: Any) -> Finished:
    status = WORD.get(_text(reply[1]), "")
    if not reply[0]:
        return Finished(accepted=False, run_status=status)
    return Finished(accepted=True, begun=_begun(reply[2]), run_status=status)


def _state(run_id: str, header: Mapping[str, str]) -> rules.RunState:
    """Return the state that a run's hash holds."""
    created = int(header["c"])
    return rules.RunState(
        id=run_id,
        workflow=header["w"],
        plan=header["p"],
        total=int(header["n"]),
        nodes=int(header.get("j", 0)),
        created=created,
        s=header["s"],
        launch=int(header["l"]),
        started=int(header["b"]) if "b" in header else None,
        ended=int(header["e"]) if "e" in header else None,
        succeeded=int(header["o"]),
        failed=int(header["f"]),
        hooks=header.get("h", ""),
        first_failed=int(header["x"]) if "x" in header else None,
        tasks={name: _task(text, created) for name, text in header.items() if name.isdecimal()},
    )


def _task(text: str, created: int) -> rules.Task:
    status, attempts, retries, losses, waits, queued, started, ended, holder, token = text.split(" ")

    def at(offset: str) -> int | None:
        return None if offset == "-" else created + int(offset, 16)

    return rules.Task(
        s=status,
        attempts=int(attempts),
        retries=int(retries),
        losses=int(losses),
        waits=int(waits),
        queued=at(queued),
        started=at(started),
        ended=at(ended),
        holder="" if holder == "-" else holder,
        token="" if token == "-" else token,
    )

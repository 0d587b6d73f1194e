"""How the replies of scripts read: numbers, texts and flat lists → the contract's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from director.models import AccessToken, Run
from director.states import WORD
from director.store import base, rules, shapes, tokens
from director.store.shapes import Begun, Finished, Ref, Started, Swept

LIST_HEADER = "wslcbenofxp"
"""The fields that `list` reads of each run, in the order of the script."""


def as_text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def as_word(reply: Any) -> str:
    return WORD.get(as_text(reply), "")


def groups(flat: Sequence[Any], width: int) -> Iterable[tuple[Any, ...]]:
    return zip(*[iter(flat)] * width, strict=True)


def as_refs(members: Iterable[bytes]) -> tuple[Ref, ...]:
    parts = (as_text(member).rpartition(":") for member in members)
    return tuple(Ref(run_id=run_id, number=int(number)) for run_id, _, number in parts)


def as_queues(lists: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(sorted({as_text(name).partition("\x06")[0] for name in lists}))


def as_swept(reply: Any) -> Swept:
    return Swept(lost=as_refs(reply[0]), failed=as_refs(reply[1]), ended=tuple(map(as_text, reply[2])), idle=False)


def there(run_id: str, reply: Any) -> Any:
    if reply is None:
        raise base.no_run(run_id)
    return reply


def as_token(id_: bytes | str, created: bytes, expires: bytes, used: bytes | str, facts: bytes) -> AccessToken:
    until, last = (int(ms) if ms else None for ms in (expires, used))
    return tokens.token(as_text(id_), int(created), until, last, facts)


def as_schedule(coming: int, due: bytes, run: bytes, count: bytes, skip: bytes) -> shapes.ScheduleState:
    texts = as_text(run or b""), as_text(skip or b"")
    return rules.schedule_state(coming, int(due or 0), texts[0], int(count or 0), texts[1])


def fire_words(fire: shapes.Fire | None) -> tuple[Any, ...]:
    if fire is None:
        return ("", 0, 0, 0, 0, "", 0)
    return (fire.schedule, fire.was, fire.due, fire.next, fire.skipped, fire.reason, int(fire.alone))


def as_started(reply: Any) -> Started:
    if reply[0] == -2:
        raise base.no_run(as_text(reply[1]))
    kind, run_id = reply[0], as_text(reply[1])
    refused: dict[int, Any] = {4: "moved", 5: "overlap"}
    return Started(run_id=run_id, duplicate=kind == 2, conflict=kind == 3, refused=refused.get(kind, ""))


def as_begun(reply: Any) -> Begun | None:
    if not reply:
        return None
    run_id, number, token, workflow, plan, task, shape, attempt, retries, launch, hook, data = reply
    payload, trigger, *results = data
    return Begun(
        ref=Ref(run_id=as_text(run_id), number=number),
        token=as_text(token),
        workflow=as_text(workflow),
        plan=as_text(plan),
        task=as_text(task),
        shape=as_text(shape),
        attempt=attempt,
        retries=retries,
        launch=launch,
        hook=as_text(hook),
        payload=payload or b"{}",
        trigger=rules.unpack_trigger(trigger or b""),
        results=tuple(result or b"null" for result in results),
    )


def as_finished(reply: Any) -> Finished:
    begun = as_begun(reply[2]) if reply[0] else None
    return Finished(accepted=bool(reply[0]), begun=begun, run_status=as_word(reply[1]))


def as_listed(run_id: bytes, values: Any, data: Any) -> Run:
    pairs = zip(LIST_HEADER, values, strict=True)
    header = {name: as_text(value) for name, value in pairs if value is not None}
    trigger, comment, relaunch_of, error, key = data
    known = {"t": trigger, "c": comment, "z": relaunch_of, f"e{header.get('x')}": error}
    state = as_state(as_text(run_id), header)
    return rules.header(state, {name: value for name, value in known.items() if value}, as_text(key or b""))


def as_state(run_id: str, header: Mapping[str, str]) -> rules.RunState:
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
        launch=int(header.get("l", 1)),
        started=int(header["b"]) if "b" in header else None,
        ended=int(header["e"]) if "e" in header else None,
        succeeded=int(header["o"]),
        failed=int(header.get("f", 0)),
        hooks=header.get("h", ""),
        first_failed=int(header["x"]) if "x" in header else None,
        tasks={name: as_task(text, created) for name, text in header.items() if name.isdecimal()},
    )


def as_task(text: str, created: int) -> rules.Task:
    status, counts, *words = text.split(" ")
    attempts, retries, losses, waits, *_ = [*map(int, counts.split(",")), 0, 0, 0]
    queued, started, ended = (None if word == "-" else created + int(word, 16) for word in words[:3])
    holder, token = ("" if word == "-" else word for word in words[3:])
    return rules.Task(status, attempts, retries, losses, waits, queued, started, ended, holder, token)

"""The grammar of a workflow's clauses that need no other: triggers, schedules, queues, retention."""

from __future__ import annotations

from typing import Any

from director import schedules, triggers, yamltree
from director.models import Schedule, Trigger
from director.scope import Scope
from director.settings import MAX_DAYS
from director.yamltree import Map, Text, Value, quote

_TRIGGER = ("source", "event", "when", "payload", "relaunch", "enabled")
_PERIODIC = ("crontab", "interval", "schedule", "timezone", "payload", "catchup", "overlap", "enabled")


def trigger(scope: Scope, value: Value) -> Trigger | None:
    """Return a trigger, its source still to be looked up; None when it names none."""
    given = scope.given(value, "a trigger", _TRIGGER)
    source = scope.text(given["source"], "source") if "source" in given else None
    if "source" not in given and isinstance(value, Map):
        scope.report(value, "a trigger needs a source")
    events = scope.items(given["event"], "event") if "event" in given else []
    payload: str | dict[str, str] | None = None
    chosen = given.get("payload")
    if isinstance(chosen, Map):
        fields = scope.map(chosen, "payload")
        payload = {str(k): _expression(scope, v, f"payload {quote(k)}") or "" for k, v in fields.items()}
    elif chosen is not None:
        payload = _expression(scope, chosen, "payload")
    relaunch = None
    if "relaunch" in given:
        relaunch = scope.text(given["relaunch"], "relaunch")
        if relaunch != triggers.LATEST:
            _expression(scope, given["relaunch"], "relaunch")
        if chosen is not None:
            scope.report(chosen, "a trigger that relaunches has no payload: the run keeps its own")
    if source is None:
        return None
    return Trigger(
        source=source,
        events=tuple(scope.text(item, "event") or "" for item in events),
        when=_expression(scope, given["when"], "when") if "when" in given else None,
        payload=payload,
        relaunch=relaunch,
        enabled=scope.flag(given["enabled"], "enabled") if "enabled" in given else True,
    )


def schedule(scope: Scope, value: Value) -> Schedule | None:
    """Return a schedule without its id; None when its timing has problems."""
    given, before = scope.given(value, "periodic", _PERIODIC), len(scope.problems)
    timing = [name for name in ("crontab", "interval", "schedule") if name in given]
    if isinstance(value, Map) and len(timing) != 1:
        found = f"both {timing[0]} and {timing[1]}" if timing else "neither crontab nor interval"
        scope.report(value, f"periodic: {found}; expected one of them")
    if "schedule" in given:  # celery-director's old name of both, with the day of the week in the middle
        old = given.pop("schedule")
        parts = old.split() if isinstance(old, Text) else []
        if isinstance(old, Text) and len(parts) == 5:
            given["crontab"] = old.replaced(" ".join((*parts[:2], *parts[3:], parts[2])))
        else:
            given["interval"] = old
    fields: dict[str, Any] = {}
    for name, check in (("crontab", schedules.check_crontab), ("timezone", schedules.zone)):
        if name in given and (text := scope.text(given[name], name)) is not None:
            try:
                check(text)
                fields[name] = text
            except ValueError as exc:
                scope.report(given[name], f"{name} {quote(text)}: {exc}")
    if "interval" in given:
        fields["interval_s"] = scope.seconds(given["interval"], "interval")
        if fields["interval_s"] is not None and fields["interval_s"] < schedules.MIN_INTERVAL_S:
            scope.report(given["interval"], f"interval must be at least {schedules.MIN_INTERVAL_S} s")
        if "timezone" in given:
            scope.report(given["timezone"], "an interval has no time zone; only a crontab has")
    for name, words in (("catchup", ("none", "last", "all")), ("overlap", ("allow", "skip"))):
        if name in given:
            fields[name] = scope.text(given[name], name)
            if fields[name] not in (None, *words):
                hint = scope.hint(fields[name], words) or f"; expected {', '.join(words)}"
                scope.report(given[name], f"{name} {quote(fields[name])} means nothing{hint}")
    if "payload" in given:
        fields["payload"] = scope.payload(given["payload"])
    if "enabled" in given:
        fields["enabled"] = scope.flag(given["enabled"], "enabled")
    return Schedule(**fields) if timing and len(scope.problems) == before else None


def queue(scope: Scope, value: Value, names: set[str] | None = None) -> tuple[str | None, dict[str, str]]:
    """Return the default queue and queues by task; `names` are the tasks that may be named."""
    if isinstance(value, Text):
        return scope.name(value, "queue"), {}
    fields = scope.given(value, "queue", ("default", "customs"))
    queues = {}
    for name, queue in scope.map(fields["customs"], "customs").items() if "customs" in fields else ():
        if names is not None and name not in names:
            scope.report(name, f"customs: {quote(name)} is no task of it{scope.hint(name, names)}")
        queues[str(name)] = scope.name(queue, "queue") or ""
    return scope.name(fields["default"], "queue") if "default" in fields else None, queues


def retention(scope: Scope, value: Value) -> dict[str, Any]:
    """Return `days` and `runs` where they are given; as `offset`, -1 and 0 mean no limit."""
    fields = scope.given(value, "retention", ("days", "runs", "offset"))
    found = {str(name): yamltree.plain(inner, scope.report) for name, inner in fields.items()}
    days, runs = found.get("days", 1), found.get("runs", 1)
    if type(days) not in (int, float) or not 0 < days <= MAX_DAYS:
        scope.report(fields["days"], f"days must be a number over 0, at most {MAX_DAYS}")
    if type(runs) is not int or runs < 1:
        scope.report(fields["runs"], "runs must be a whole number from 1")
    if "offset" in found:
        offset = found.pop("offset")
        if type(offset) is not int or offset < -1:
            scope.report(fields["offset"], "offset must be a whole number from -1")
        elif "runs" in found:
            scope.report(fields.key("offset"), "offset is another name of runs; write one of them")
        else:
            found["runs"] = max(offset, 0)
    return found


def _expression(scope: Scope, value: Value, what: str) -> str | None:
    text = scope.text(value, what)
    if text is not None and (wrong := triggers.check_expression(text)):
        scope.report(value, f"{what}: {wrong}")
    return text

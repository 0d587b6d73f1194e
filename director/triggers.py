"""Which workflows a delivery starts, and with which payload. Pure; jmespath's one home."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any

import msgspec

from director.models import Trigger, Workflow

MAX_EXPRESSION = 4096
LATEST = "latest"
_COMPARATORS = ("eq", "ne", "lt", "lte", "gt", "gte")
_PATHS = ("subexpression", "filter_projection", "value_projection", "flatten")
_OTHER_EVENT = 'the event "'
_WORDS = {"and": "&&", "or": "||", "not": "!"}


class Match(msgspec.Struct, frozen=True):
    """A workflow to start, or a run of it to relaunch."""

    workflow: Workflow | None
    """None: that of the run to relaunch."""
    payload: Mapping[str, Any] = {}
    relaunch: str | None = None
    """A run's id, or `latest`: the newest that failed."""
    origin: str = "failed"
    """Where the relaunch starts: `failed`, `start` or a task's key."""


class Routing(msgspec.Struct, frozen=True):
    """What a delivery does."""

    matches: list[Match]
    reasons: list[tuple[str, str]]
    """Workflow, and why it does not start, for each that listens to the source and was not matched. Where others
    start, those that wait for another event are left out."""


class Router:
    """The triggers of many workflows, by source."""

    def __init__(self, workflows: Iterable[Workflow]) -> None:
        self._by_source: dict[str, list[Workflow]] = {}
        for workflow in workflows:
            for source in dict.fromkeys(trigger.source for trigger in workflow.triggers):
                self._by_source.setdefault(source, []).append(workflow)

    def listens(self, source: str) -> bool:
        """Return whether any trigger is for a source."""
        return source in self._by_source

    def route(self, source: str, event: str, body: object) -> Routing:
        """Return which workflows a delivery starts; the first matching trigger of each wins."""
        routing = Routing(matches=[], reasons=[])
        unheard: list[tuple[str, str]] = []  # said last, since the inbox has room for so much
        for workflow in self._by_source.get(source, ()):
            if not workflow.enabled:
                routing.reasons.append((workflow.name, "the workflow is disabled"))
                continue
            reasons = []
            for number, trigger in enumerate(workflow.triggers, 1):
                if trigger.source != source:
                    continue
                found = _refusal(trigger, event, body) or _match(workflow, trigger, body)
                if isinstance(found, Match):
                    routing.matches.append(found)
                    break
                reasons.append(f"trigger {number}: {found}")
            else:
                heard = any(_OTHER_EVENT not in reason for reason in reasons)
                (routing.reasons if heard else unheard).append((workflow.name, "; ".join(reasons)))
        if not routing.matches:
            routing.reasons.extend(unheard)
        return routing


def _refusal(trigger: Trigger, event: str, body: object) -> str | None:
    if not trigger.enabled:
        return "it is disabled"
    if trigger.events and not any(_is(wanted, event, body) for wanted in trigger.events):
        wanted = " or ".join(f'"{name}"' for name in trigger.events)
        return f'{_OTHER_EVENT}{event}" is not {wanted}'
    if trigger.when is None:
        return None
    value, wrong = _search(trigger.when, body)
    if wrong:
        return f"when `{trigger.when}` failed: {wrong}"
    # JMESPath's own truth: 0 is true; false, null and what is empty are not.
    if value is None or value is False or value in ("", [], {}):
        gave = "false" if value is False else msgspec.json.encode(value).decode()
        return f"when `{trigger.when}` gave {gave}"
    return None


def _is(wanted: str, event: str, body: object) -> bool:
    if wanted == event:
        return True
    name, dot, action = wanted.rpartition(".")
    return bool(dot) and name == event and isinstance(body, dict) and body.get("action") == action


def _match(workflow: Workflow, trigger: Trigger, body: object) -> Match | str:
    """Return what a trigger that wants a delivery does with it, or why it cannot."""
    if trigger.relaunch == LATEST:
        return Match(workflow, relaunch=LATEST)
    if trigger.relaunch is not None:
        value, wrong = _search(trigger.relaunch, body)
        run_id = value.strip() if isinstance(value, str) else ""
        wrong = f"failed: {wrong}" if wrong else "" if run_id else f"gave {_kind(value)}; expected a run's id"
        return f"relaunch `{trigger.relaunch}` {wrong}" if wrong else Match(workflow, relaunch=run_id)
    if trigger.payload is None:
        return Match(workflow, dict(body) if isinstance(body, Mapping) else {"body": body})
    if isinstance(trigger.payload, str):
        value, wrong = _search(trigger.payload, body)
        if isinstance(value, Mapping):
            return Match(workflow, dict(value))
        wrong = f"failed: {wrong}" if wrong else f"gave {_kind(value)}; expected an object"
        return f"payload `{trigger.payload}` {wrong}"
    payload = {}
    for key, expression in trigger.payload.items():
        payload[key], wrong = _search(expression, body)
        if wrong:
            return f"payload {key} `{expression}` failed: {wrong}"
    return Match(workflow, payload)


def _kind(value: object) -> str:
    """Return how to name a value that is not shown."""
    if isinstance(value, str):
        return "a text" if value.strip() else "an empty text"
    kinds: dict[type, str] = {list: "an array", dict: "an object", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> Any:
    import jmespath

    return jmespath.compile(expression)


@cache
def _interpreter() -> Any:
    """Return what evaluates expressions; `search` would make a new one each time, longer than its work."""
    from jmespath.visitor import TreeInterpreter

    return TreeInterpreter()


def _search(expression: str, body: object) -> tuple[Any, str | None]:
    try:
        return _interpreter().visit(_compiled(expression).parsed, body), None
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as exc:
        told = vars(exc)
        if "expected_types" in told:  # JMESPathTypeError, whose own text quotes the value, perhaps all of the body
            wanted = " or ".join(told["expected_types"])
            return None, f"{told['function_name']}() got {told['actual_type']}, expected {wanted}"
        return None, (str(exc).splitlines() or [type(exc).__name__])[0]


def check_expression(text: str) -> str | None:
    """Return what is wrong with a JMESPath expression, or None; knows the usual slips."""
    if not text.strip() or len(text) > MAX_EXPRESSION:
        return f"an expression has 1 to {MAX_EXPRESSION} characters"
    if text.lstrip().startswith("&"):
        return "a reference (&…) is no value"
    import jmespath
    from jmespath import exceptions

    try:
        slip = _slip([*jmespath.lexer.Lexer().tokenize(text)])
    except exceptions.LexerError:
        slip = "write == to compare" if re.search(r"(?<![=!<>])=(?!=)", text) else None
    try:
        _compiled(text).search({})
    except (exceptions.UnknownFunctionError, exceptions.ArityError) as exc:
        return slip or str(exc)
    except (exceptions.JMESPathTypeError, TypeError, ArithmeticError):
        pass  # there is nothing in an empty body; literals may fail by themselves
    except (ValueError, RecursionError) as exc:
        return slip or f"not JMESPath: {(str(exc).splitlines() or ['it does not parse'])[0]}"
    return slip or _negated(_compiled(text).parsed)


def _negated(tree: dict[str, Any]) -> str | None:
    """Look for a path that starts from a negation: `!` binds closer than a dot does, and false has no fields."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        nodes += [child for child in node["children"] if isinstance(child, dict)]  # a slice has numbers
        if node["type"] in _PATHS and node["children"][0]["type"] == "not_expression":
            return "write !(a.b) for !a.b, which is (!a).b"
    return None


def _slip(tokens: list[dict[str, Any]]) -> str | None:
    """Look at what stands beside each comparison."""
    kinds = ["", *(token["type"] for token in tokens), "", ""]
    values = ["", *(token["value"] for token in tokens), "", ""]
    for at, kind in enumerate(kinds):
        word = values[at] if kind == "unquoted_identifier" else ""
        if word in _WORDS and kinds[at + 1] not in ("", "eof", "dot", "lparen"):
            return f"write {_WORDS[word]} for {word}"
        for side in (-1, 1) if kind in _COMPARATORS else ():
            beside, value = kinds[at + side], values[at + side]
            beyond, opposite = kinds[at + 2 * side] if at + 2 * side >= 0 else "", kinds[at - side]
            if beside == "number":
                return f"write `{value}` with backticks for the number {value}"
            if beside == "unquoted_identifier" and value in ("true", "false", "null") and beyond != "dot":
                return f"write `{value}` with backticks; without, it is a field"
            if beside == "quoted_identifier" and beyond != "dot" and opposite != "literal":
                return f"in JMESPath \"{value}\" is the name of a field; write '{value}' for a text"
    return None

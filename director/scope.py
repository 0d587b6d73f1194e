"""One workflow, source or default of a file: what is wrong in it, and the reading of its values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from director import yamltree
from director.models import Problem
from director.yamltree import MAX_NAME, List, Map, Place, Text, Value, did_you_mean, quote

MAX_RETRIES = 1_000_000
MAX_SECONDS = 10 * 365 * 86400


class Scope:
    """Collects what is wrong in one workflow, source or default; its label opens each text."""

    def __init__(self, file: str, key: Text | None = None, label: str = "") -> None:
        self.file, self.key, self.label = file, key, label
        self.problems: dict[Problem, None] = {}  # an alias is read once for each place it stands in

    def report(self, at: Place, text: str) -> None:
        text = f"{self.label}: {text}" if self.label else text
        # An escaped surrogate is no text that could be logged or sent.
        text = text.encode("utf-8", "backslashreplace").decode()
        self.problems[Problem(file=self.file, line=at.line, column=at.column, text=text)] = None

    def hint(self, name: str, known: Iterable[str]) -> str:
        """Return `; did you mean "…"?`, or nothing. Only for the first problems: looking is slow."""
        found = did_you_mean(name, known) if len(self.problems) < 50 else ""
        return f"; {found}" if found else ""

    def sorted(self) -> tuple[Problem, ...]:
        """Return the problems in the order of the file."""
        return tuple(sorted(self.problems))

    def clean(self, value: Value) -> bool:
        """Report what is wrong with a value by itself: duplicate keys, foreign tags."""
        for place, text in value.slips:
            self.report(place, text)
        return not value.slips

    def map(self, value: Value, what: str, allowed: Iterable[str] | None = None) -> Map:
        """Return a mapping without its unknown keys, which are reported; empty when it is none."""
        found = Map()
        if not isinstance(value, Map):
            if self.clean(value):
                self.report(value, f"{what} must be a mapping")
            return found
        self.clean(value)
        for key, inner in value.items():
            if allowed is None or key in allowed:
                found[key] = inner
            else:
                self.report(key, f"{what} has no key {quote(key)}{self.hint(key, allowed)}")
        return found

    def given(self, value: Value, what: str, allowed: Iterable[str]) -> Map:
        """As `map`, without what is null."""
        return Map((key, inner) for key, inner in self.map(value, what, allowed).items() if not is_null(inner))

    def items(self, value: Value, what: str) -> list[Value]:
        """Return the items of a list; one thing alone is a list of one."""
        if isinstance(value, List) and self.clean(value):
            if not value:
                self.report(value, f"{what} is empty")
            return value
        return [value]

    def text(self, value: Value, what: str) -> str | None:
        """Return a scalar as it is written, so that `NO` and `123` are names; None with a report otherwise."""
        if not self.clean(value):
            return None
        if not isinstance(value, Text):
            self.report(value, f"{what} must be a text")
        elif not value.strip():
            self.report(value, f"{what} is empty")
        else:
            return str(value)
        return None

    def name(self, value: Value, what: str) -> str | None:
        """Return the name of a task, group or queue."""
        text = self.text(value, what)
        if text is not None and len(text) > MAX_NAME:
            self.report(value, f"{what} has {len(text)} characters; the limit is {MAX_NAME}")
        elif text is not None and any(c.isspace() or not c.isprintable() for c in text):
            self.report(value, f"{what} {quote(text)} holds a space or a control character")
        else:
            return text
        return None

    def payload(self, value: Value) -> dict[str, Any]:
        """Return a mapping as plain values."""
        return dict(yamltree.plain(self.map(value, "payload"), self.report))

    def flag(self, value: Value, what: str) -> bool:
        found = yamltree.plain(value, self.report)
        if not isinstance(found, bool):
            self.report(value, f"{what} must be true or false")
        return found is not False

    def count(self, value: Value, what: str) -> int | None:
        found = yamltree.plain(value, self.report)
        if type(found) is int and 0 <= found <= MAX_RETRIES:
            return found
        self.report(value, f"{what} must be a whole number from 0 to {MAX_RETRIES}")
        return None

    def seconds(self, value: Value, what: str) -> float | None:
        found = yamltree.plain(value, self.report)
        if type(found) in (int, float) and 0 < found <= MAX_SECONDS:
            return float(found)
        self.report(value, f"{what} must be a number of seconds over 0")
        return None


def is_null(value: Value) -> bool:
    """Return whether nothing stands there."""
    return isinstance(value, Text) and value.is_null

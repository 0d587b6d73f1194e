"""Calls to Redis, described: which script, with which keys and arguments, and how its reply reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from director.errors import DirectorError, StoreUnavailable
from director.models import Plan
from director.store.shapes import Described

T = TypeVar("T")
NEEDS_PLAN = -1


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
        self.script, self.keys, self.args, self.read, self.plan = script, keys, args, read, plan

    def answer(self, reply: Any) -> Any:
        """Return what a reply means, or a DirectorError."""
        if isinstance(reply, Exception):
            # Out of memory, loading, read-only replica: Redis refuses before the script writes.
            return StoreUnavailable(f"Redis refused {self.script or self.args[0]}: {reply}")
        if self.needs_plan(reply):
            return StoreUnavailable(f"Redis refused to store the plan that {self.script} needs.")
        try:
            return self.read(reply)
        except DirectorError as exc:
            return exc

    def needs_plan(self, reply: Any) -> bool:
        """Return whether Redis answers that it does not have the call's plan."""
        return self.plan is not None and isinstance(reply, list) and reply[0] == NEEDS_PLAN


@cache
def source(script: str) -> tuple[str, str]:
    """Return a script's text, with what all scripts share before it, and its SHA-1."""
    folder = resources.files("director.store") / "lua"
    text = "\n".join((folder / f"{name}.lua").read_text() for name in ("common", script))
    return text, hashlib.sha1(text.encode()).hexdigest()

"""The tasks of `github.PUSH`: what a push to main starts."""

from __future__ import annotations

from typing import Any

from director import task


@task(name="DESCRIBE_PUSH")
def describe_push(payload: dict[str, Any]) -> str:
    """Name the commit as people do."""
    return f"{payload['repo']} is at {payload['sha'][:7]}"


@task(name="ANNOUNCE")
def announce(text: str) -> dict[str, str]:
    """Say what a real one would post to a chat."""
    return {"message": f"main was pushed: {text}"}

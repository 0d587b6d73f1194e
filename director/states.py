"""The words for states, and every allowed move with who makes it."""

from __future__ import annotations

from typing import Final

PENDING: Final = "pending"
QUEUED: Final = "queued"
RUNNING: Final = "running"
RETRYING: Final = "retrying"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
CANCELED: Final = "canceled"
SKIPPED: Final = "skipped"
"""Shown for a task run that never ran in a run that has ended; never stored."""

STATES: Final = (PENDING, QUEUED, RUNNING, RETRYING, SUCCEEDED, FAILED, CANCELED)
LETTER: Final = dict(zip(STATES, "pqrysfc", strict=True))
"""How the stores write a state; the Lua files use these letters."""

WORD: Final = {letter: word for word, letter in LETTER.items()}

RUN_STATES: Final = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELED)
ENDED: Final = frozenset({SUCCEEDED, FAILED, CANCELED})
ACTIVE: Final = frozenset({QUEUED, RUNNING, RETRYING})
"""A run ends when none of its task runs is in one of these."""

RUN_MOVES: Final = frozenset(
    {
        (QUEUED, RUNNING),  # begin of its first task run
        (RUNNING, SUCCEEDED),  # finish of its last task run
        (RUNNING, FAILED),  # finish of its last task run, or a sweep that gives one up
        (QUEUED, FAILED),  # a sweep or a worker that gives its first task run up
        (QUEUED, CANCELED),  # cancel
        (RUNNING, CANCELED),  # cancel
        (FAILED, QUEUED),  # relaunch
        (CANCELED, QUEUED),  # relaunch
    }
)

TASK_MOVES: Final = frozenset(
    {
        (PENDING, QUEUED),  # start, relaunch, or the finish of its last parent
        (PENDING, RUNNING),  # the finish of its last parent, which keeps it (run-ahead)
        (QUEUED, RUNNING),  # begin
        (RUNNING, SUCCEEDED),  # finish
        (RUNNING, FAILED),  # finish; a sweep past its timeout; the sweep that counts one loss too many
        (RUNNING, RETRYING),  # finish that asks for another try
        (RUNNING, QUEUED),  # a sweep (lease over), or its worker, which hands it back
        (RETRYING, QUEUED),  # a sweep, once its time has come
        (QUEUED, RETRYING),  # a worker that does not know the task: looked at again 5 s later
        (QUEUED, FAILED),  # unknown to every worker that took it
        (PENDING, CANCELED),  # cancel
        (QUEUED, CANCELED),  # cancel
        (RUNNING, CANCELED),  # cancel
        (RETRYING, CANCELED),  # cancel
        (FAILED, PENDING),  # relaunch
        (CANCELED, PENDING),  # relaunch
        (SUCCEEDED, PENDING),  # relaunch, downstream of what runs again
    }
)

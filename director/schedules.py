"""Due times. Pure: times come in and go out as milliseconds since 1970.

crontab    five fields, or @hourly and the like, read in the schedule's zone. A local time that a clock change
           skips fires once, as long after midnight as ever; one that it repeats fires the first time.
interval   the last due time plus so many seconds, so that nothing drifts
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections import deque
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec

from director.models import Schedule, Struct

MAX_CATCHUP = 100
MIN_INTERVAL_S = 0.1
COUNTED = 2000
"""Missed due times that are gone through one by one; beyond, the count of a skip is the least it can be."""
_DAY_MS = 86_400_000
_RANDOM = re.compile(r"(?:^|[\s,])[rh](?:$|[\s,(/])", re.IGNORECASE)


class Firing(Struct, frozen=True):
    """What to do about a schedule that is due."""

    due: tuple[int, ...]
    """To fire, in order; none when all were missed and none is made up for."""
    skipped: int
    """Due times before these that do not fire."""
    next: int
    """The first one that has not come yet."""


def identity(workflow: str, schedule: Schedule) -> str:
    """Return 24 hex digits: a schedule is the same one while workflow, timing, zone and payload are."""
    told = (workflow, schedule.crontab, schedule.interval_s, schedule.timezone, schedule.payload)
    return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()[:24]


def run_id(schedule: str, due: int) -> str:
    """Return the id of the run of one due time, a UUIDv7 (RFC 9562): whoever fires it makes the same one."""
    digest = int.from_bytes(hashlib.sha256(f"{schedule} {due}".encode()).digest()[:10])
    value = (due & (1 << 48) - 1) << 80 | digest & (1 << 80) - 1
    value = value & ~(0xF << 76) | 7 << 76
    return str(uuid.UUID(int=value & ~(0b11 << 62) | 0b10 << 62))


def zone(name: str) -> ZoneInfo:
    """Return a zone of the IANA database. Raises ValueError."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError) as exc:  # LookupError: ZoneInfoNotFoundError
        raise ValueError("no such time zone; expected a name such as Europe/Paris") from exc


def check_crontab(text: str) -> None:
    """Raise ValueError, with what is wrong, for what is no crontab or never comes."""
    from croniter import croniter

    if not text.startswith("@") and len(text.split()) != 5:
        raise ValueError(f"it has {len(text.split())} fields; expected five: minute hour day month weekday")
    if _RANDOM.search(text):
        raise ValueError("R and H are not supported")
    try:
        croniter(text, datetime(2000, 1, 1)).get_next(datetime)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as exc:
        raise ValueError(str(exc) or "it cannot be read") from exc


def next_due(schedule: Schedule, after: int) -> int:
    """Return the due time that follows another one, or any time."""
    if schedule.interval_s is not None:
        return after + round(schedule.interval_s * 1000)
    from croniter import croniter

    place = zone(schedule.timezone)
    # On local times without a zone: croniter's own handling of clock changes skips some and repeats others.
    times = croniter(schedule.crontab, datetime.fromtimestamp(after / 1000, place).replace(tzinfo=None))
    while True:
        local: datetime = times.get_next(datetime)
        due = int(local.replace(tzinfo=place).astimezone(UTC).timestamp()) * 1000
        if due > after:
            return due


def firing(schedule: Schedule, due: int, now: int, missed_until: int) -> Firing:
    """Return what of `due` and the times after it to fire by `now`.

    Args:
        schedule: its `catchup` says what of the missed ones is made up for.
        due: the due time that is written down, at or before `now`.
        now: ms.
        missed_until: what was due by then was due while nothing ran.
    """
    count, times = 0, deque[int](maxlen=COUNTED)
    at = due
    while at <= now:
        times.append(at)
        count += 1
        at = next_due(schedule, at)
        if count == COUNTED and at <= now:
            at, passed = _near(schedule, at, now)
            count += passed
    missed = [time for time in times if time <= missed_until]
    made_up = {"none": 0, "last": 1, "all": MAX_CATCHUP}[schedule.catchup]
    fires = (*missed[len(missed) - min(made_up, len(missed)) :], *(time for time in times if time > missed_until))
    return Firing(due=fires, skipped=count - len(fires), next=at)


def _near(schedule: Schedule, at: int, now: int) -> tuple[int, int]:
    """Return a due time not long before `now`, and how many from `at` on are passed over, as far as is known."""
    if schedule.interval_s is None:
        return max(at, next_due(schedule, now - _DAY_MS)), 0
    step = round(schedule.interval_s * 1000)
    passed = max(0, (now - at) // step - 2 * MAX_CATCHUP)
    return at + passed * step, passed

"""Due times: crontabs, zones, clock changes, intervals, and what is made up for after an outage."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from director import schedules
from director.models import Schedule

BERLIN = "Europe/Berlin"


def ms(*parts):
    return int(datetime(*parts, tzinfo=UTC).timestamp() * 1000)


def following(schedule, after, count):
    """Return the next due times, UTC, as `DD HH:MM`."""
    found = []
    for _ in range(count):
        after = schedules.next_due(schedule, after)
        found.append(f"{datetime.fromtimestamp(after / 1000, UTC):%d %H:%M}")
    return found


@pytest.mark.parametrize(
    ("crontab", "after", "expected"),
    [
        # In the night of 29 March 2026 the clock goes from 02:00 to 03:00.
        ("30 2 * * *", (2026, 3, 27, 12), ["28 01:30", "29 01:30", "30 00:30"]),
        ("0 3 * * *", (2026, 3, 28, 12), ["29 01:00", "30 01:00"]),
        ("30 * * * *", (2026, 3, 29, 0, 0), ["29 00:30", "29 01:30", "29 02:30"]),
        # In the night of 25 October 2026 it goes from 03:00 back to 02:00.
        ("30 2 * * *", (2026, 10, 24, 12), ["25 00:30", "26 01:30"]),
        ("0 3 * * *", (2026, 10, 24, 12), ["25 02:00", "26 02:00"]),
        ("30 * * * *", (2026, 10, 24, 23, 45), ["25 00:30", "25 02:30"]),
    ],
)
def test_a_local_time_that_the_clock_skips_or_repeats_fires_once(crontab, after, expected):
    schedule = Schedule(crontab=crontab, timezone=BERLIN)
    assert following(schedule, ms(*after), len(expected)) == expected


@given(
    after=st.integers(ms(2026, 1, 1), ms(2027, 1, 1)),
    crontab=st.sampled_from(["*/7 * * * *", "30 2 * * *", "0 0 * * sun", "15 1-3 * * *", "@hourly"]),
    zone=st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kolkata"]),
)
def test_due_times_rise_and_do_not_depend_on_where_one_looks_from(after, crontab, zone):
    schedule = Schedule(crontab=crontab, timezone=zone)
    first = schedules.next_due(schedule, after)
    assert first > after
    assert first % 60_000 == 0
    between = after + (first - after) // 2
    assert schedules.next_due(schedule, between) == (
        first if between < first else schedules.next_due(schedule, first)
    )


def test_an_interval_does_not_drift():
    schedule = Schedule(interval_s=0.7)
    due = 1000
    for _ in range(10):
        due = schedules.next_due(schedule, due)
    assert due == 1000 + 10 * 700


@pytest.mark.parametrize(
    ("catchup", "fires", "skipped"),
    [
        ("none", [], 6),
        ("last", [51_000], 5),
        ("all", [1_000, 11_000, 21_000, 31_000, 41_000, 51_000], 0),
    ],
)
def test_what_came_while_nothing_ran_is_made_up_for_as_the_schedule_says(catchup, fires, skipped):
    schedule = Schedule(interval_s=10, catchup=catchup)
    found = schedules.firing(schedule, due=1_000, now=56_000, missed_until=55_000)
    assert (list(found.due), found.skipped, found.next) == (fires, skipped, 61_000)


@pytest.mark.parametrize("catchup", ["none", "last", "all"])
def test_what_came_while_a_scheduler_ran_always_fires(catchup):
    schedule = Schedule(interval_s=1, catchup=catchup)
    found = schedules.firing(schedule, due=10_000, now=12_500, missed_until=5_000)
    assert (found.due, found.skipped, found.next) == ((10_000, 11_000, 12_000), 0, 13_000)


def test_at_most_a_hundred_are_made_up_for_and_a_long_outage_takes_no_time():
    year = ms(2026, 1, 1) - ms(2025, 1, 1)
    for schedule in (Schedule(interval_s=1, catchup="all"), Schedule(crontab="* * * * *", catchup="all")):
        found = schedules.firing(schedule, due=0, now=year, missed_until=year)
        assert len(found.due) == 100
        assert year - 101 * 60_000 <= found.due[0]
        assert found.due[-1] <= year < found.next
        assert found.skipped >= 1900


@given(st.text(), st.integers(0, (1 << 45)))
def test_the_run_of_a_due_time_has_one_id_that_sorts_by_it(schedule, due):
    import uuid

    made = uuid.UUID(schedules.run_id(schedule, due))
    assert made == uuid.UUID(schedules.run_id(schedule, due))
    assert (made.version, made.variant, made.int >> 80) == (7, uuid.RFC_4122, due)
    assert schedules.run_id(schedule, due + 1) > str(made)


@given(st.text())
def test_no_text_makes_the_check_of_a_crontab_raise_anything_else(text):
    for check in (schedules.check_crontab, schedules.zone):
        try:
            check(text)
        except ValueError:
            pass

"""A short soak of the rig in `tests/faults`: about a minute of real processes, killed and frozen. `make soak` is the long one."""

from tests.faults.nemesis import schedule
from tests.faults.soak import Size, soak


def test_a_seed_plays_the_same_faults_each_time():
    assert schedule(7, 600) == schedule(7, 600) != schedule(8, 600)


SEED = 30
"""Two Redis kills; workers killed whole and in part, frozen and told to end; web and scheduler too."""


def test_nothing_is_lost_and_nothing_happens_twice_whatever_is_killed():
    size = Size(webs=1, schedulers=1, workers=2, threads=3, pause_s=0.6, mean_s=3, longest_s=6)
    report = soak(SEED, 18, size, quiet_s=75)
    assert report.violations == []
    assert report.counts["fault KILL redis"] and report.counts["fault KILL worker"]
    assert report.counts["executions"] >= report.counts["results"] > 50
    assert None not in report.stops_s

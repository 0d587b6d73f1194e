"""`python -m tests.faults --seed N --seconds S`: exit 1 on a violation; the same seed plays the same faults."""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.faults.soak import Size, soak

parser = argparse.ArgumentParser(prog="python -m tests.faults")
parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
parser.add_argument("--seconds", type=float, default=600)
parser.add_argument("--keep", action="store_true", help="keep logs and history after a violation")
given = parser.parse_args()
print(f"seed {given.seed}, {given.seconds:g} s", flush=True)
started = time.monotonic()
report = soak(given.seed, given.seconds, Size(), keep=given.keep)
for name, count in report.counts.items():
    print(f"{name:40} {count}")
print(
    f"quiet {report.quiet_after_s} s after the last fault; stopped within {max(s or 99 for s in report.stops_s):.1f} s"
)
for text in report.violations:
    print(f"VIOLATION {text}")
print(f"seed {given.seed}: {len(report.violations)} violations in {time.monotonic() - started:.0f} s")
sys.exit(1 if report.violations else 0)

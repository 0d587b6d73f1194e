"""What a finished run of ten tasks costs in Redis, over all its keys and index entries.

    python -m bench.state_size [--url redis://…]

The mean over 300 runs; `--url` names another server (it is emptied) than the private one. Exit status 1 when one takes more than 1,500 bytes, or its hash has left the small encoding.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from typing import Any

from bench import harness
from director import plan
from director.engine import new_run_id, new_token
from director.models import TaskOptions
from director.store.redis import RedisStore
from director.store.shapes import Dedupe, NewRun, Next, Outcome
from tests.contract.driving import begin
from tests.processes import workflow

LIMIT = 1500
RUNS = 300
WEBHOOK = {
    "kind": "webhook",
    "source": "github",
    "event": "push",
    "delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
}
PUSH = b'{"sha":"4f2a9c1d4f2a9c1d4f2a9c1d4f2a9c1d4f2a9c1d"}'


def finished_run(store: RedisStore, trigger: dict[str, Any], payload: bytes, dedupe: Dedupe | None) -> str:
    """Drive one run of ten tasks to its end; each returns a small object."""
    names = [f"TASK_{number}" for number in range(10)]
    built = plan.build(workflow(names), {name: TaskOptions() for name in names})
    new = NewRun(run_id=new_run_id(), plan=built, payload=payload, trigger=trigger, roots=(0,), dedupe=dedupe)
    store.do(store.start(new))
    begun = begin(store, new.run_id, 0, holder="abcd.1f40")
    while begun is not None:
        wish = Next(token=new_token(), queue="celery")
        done = store.do(store.finish(begun.ref, begun.token, Outcome(result=b'{"rows": 1234}'), "abcd.1f40", wish))
        begun = done.begun
    return new.run_id


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    options = parser.parse_args()
    print(harness.environment())
    failed = False
    with harness.server() if options.url is None else contextlib.nullcontext(options.url) as url:
        store, client = RedisStore(url), harness.client(url)
        for title, trigger, payload, dedupes in (
            ("started by the API, payload {}", {"kind": "api"}, b"{}", False),
            ("started by a signed push, 50 bytes of payload, dedupe key", WEBHOOK, PUSH, True),
        ):
            client.flushall()
            ids = []
            for _ in range(RUNS):
                key = Dedupe(key=f"github:{new_run_id()}", ttl_s=604_800) if dedupes else None
                ids.append(finished_run(store, trigger, payload, key))
            sizes = {
                kind: statistics.mean(client.memory_usage(f"director:{kind}:{run_id}") for run_id in ids)
                for kind in ("run", "data")
            }
            for index in ("runs", "runs:w"):
                sizes[index] = client.memory_usage(f"director:{index}", samples=0) / RUNS
            if dedupes:
                sizes["seen"] = statistics.mean(client.memory_usage(key) for key in client.keys("director:seen:*"))
            total = sum(sizes.values())
            encoding = client.object("encoding", f"director:run:{ids[-1]}").decode()
            print(f"{title}: {total:.0f} bytes, run hash is a {encoding}")
            print("  " + ", ".join(f"{name} {size:.0f}" for name, size in sizes.items()))
            failed |= encoding != "listpack" or total > LIMIT
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

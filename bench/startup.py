"""How soon the web process answers: from exec to the first 200, beside a bare Litestar application.

    python -m bench.startup [--rounds 11]

Both serve as many routes, on uvicorn; ours has read its workflows and reaches a Redis.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time

from bench import harness
from tests.conftest import free_port


def first_answer(command: list[str], port: int, **env: str) -> float:
    """Return ms from starting the process to its first 200."""
    began = time.perf_counter()
    with harness.process(command, PORT=str(port), **env):
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/health/live")
                if connection.getresponse().status == 200:
                    return (time.perf_counter() - began) * 1000
            except (ConnectionError, OSError):
                time.sleep(0.002)
            finally:
                connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    print(harness.environment())
    rows: dict[str, list[float]] = {"director web": [], "bare Litestar": []}
    with harness.server() as url:
        env = {"DIRECTOR_HOME": str(harness.ROOT), "DIRECTOR_REDIS_URL": url, "BENCH_REDIS_URL": url}
        env["GITHUB_WEBHOOK_SECRET"] = "secret"
        for index in range(rounds + 1):
            took = [
                first_answer([sys.executable, "-m", "director", "web"], free_port(), **env),
                first_answer([sys.executable, "-m", "bench.web_rival"], free_port(), **env),
            ]
            if index:  # the first round fills the file cache
                for name, value in zip(rows, took, strict=True):
                    rows[name].append(value)
    harness.table("Until the first answer", "ms", rows, "director web", more_is_better=False)


if __name__ == "__main__":
    main()

"""Signed GitHub pushes in: ours beside a bare Litestar route with one Redis script call.

    python -m bench.ingress [--rounds 5] [--seconds 3] [--connections 64,1]

One web process each, one after the other in every round. Senders keep their connections and send the next
delivery when the last is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import harness
from tests.conftest import free_port

SECRET = "secret"
WORKFLOW = """
bench.PUSH:
  tasks: [NOOP]
  triggers: [{source: github, event: push, payload: {sha: after}}]
sources: {github: {secret: $GITHUB_WEBHOOK_SECRET}}
"""


def many() -> str:
    """Return twenty sources and fifty triggers, spread evenly; of the three for the sender one wants its events."""
    kinds = ("github", "slack", "stripe", "paddle")
    others = [f"  s{n}: {{scheme: {kinds[n % 4]}, secret: $GITHUB_WEBHOOK_SECRET}}" for n in range(1, 20)]
    flows = []
    for n in range(1, 50):
        source = f"s{n % 20}" if n % 20 else "github"
        triggers = f"[{{source: {source}, event: push, when: \"ref == 'refs/tags/{n}'\"}}]"
        flows.append(f"w{n}: {{tasks: [NOOP], triggers: {triggers}}}")
    return "\n".join(
        [WORKFLOW.rstrip().replace("sources: {", "sources:\n  ").removesuffix("}"), *others, *flows, ""]
    )


def body() -> bytes:
    """Return a push of about 8 KB."""
    commits = [{"id": f"{n:040x}", "message": "change " * 20, "author": {"name": "n"}} for n in range(32)]
    push = {"ref": "refs/heads/main", "after": "f" * 40, "repository": {"full_name": "a/b"}, "commits": commits}
    return json.dumps(push).encode()


class Sender(asyncio.Protocol):
    """One connection: sends, counts the answer, sends again."""

    def __init__(self, parts: tuple[bytes, bytes], name: str, counts: dict[int, int]) -> None:
        self.parts, self.name, self.counts = parts, name, counts
        self.number, self.pending = 0, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.number += 1
        head, tail = self.parts
        self.transport.write(head + f"{self.name}-{self.number}".encode() + tail)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.pending += data
        head, found, rest = self.pending.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(rest) >= length:
            status = int(head[9:12])
            self.counts[status] = self.counts.get(status, 0) + 1
            self.pending = rest[length:]
            self.send()


async def load(port: int, connections: int, seconds: float) -> None:
    """Send for a time; print answers per second, and the statuses."""
    text = body()
    mac = hmac.new(SECRET.encode(), text, hashlib.sha256).hexdigest()
    head = f"POST /hooks/github HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: "
    tail = f"\r\nX-Hub-Signature-256: sha256={mac}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    parts = (head.encode(), tail.encode() + text)
    counts: dict[int, int] = {}
    loop = asyncio.get_running_loop()
    salt = time.time_ns()
    senders = [Sender(parts, f"{salt}-{number}", counts) for number in range(connections)]
    for sender in senders:
        await loop.create_connection(lambda sender=sender: sender, "127.0.0.1", port)
    await asyncio.sleep(0.5)
    before, began = sum(counts.values()), time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (sum(counts.values()) - before) / (time.perf_counter() - began)
    print(json.dumps({"rate": rate, "statuses": counts}))


def measure(command: list[str], connections: int, seconds: float, **env: str) -> float:
    """Return accepted deliveries per second of a web process."""
    port = free_port()
    with harness.process(command, PORT=str(port), **env):
        harness.until(lambda: reaches(port))
        words = ["-m", "bench.ingress", "--load", f"{port},{connections},{seconds}"]
        done = subprocess.run([sys.executable, *words], capture_output=True, check=True, cwd=harness.ROOT)
    found = json.loads(done.stdout)
    if set(found["statuses"]) != {"202"}:
        raise RuntimeError(f"{command}: {found}")
    return float(found["rate"])


def reaches(port: int) -> bool:
    """Return whether a server answers."""
    import http.client

    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health/live")
        return connection.getresponse().status == 200
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", default="64,1")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        import uvloop

        port, connections, seconds = options.load.split(",")
        uvloop.run(load(int(port), int(connections), float(seconds)))
        return
    print(harness.environment())
    with harness.server() as url, tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "workflows").mkdir()
        (home / "workflows" / "bench.yml").write_text(WORKFLOW)
        env = {
            "DIRECTOR_HOME": folder,
            "DIRECTOR_REDIS_URL": url,
            "BENCH_REDIS_URL": url,
            "GITHUB_WEBHOOK_SECRET": SECRET,
        }
        client = harness.client(url)
        crowded = home / "crowded"
        (crowded / "workflows").mkdir(parents=True)
        (crowded / "workflows" / "bench.yml").write_text(many())
        web, quiet = [sys.executable, "-m", "director", "web"], {"DIRECTOR_LOG_LEVEL": "WARNING"}
        commands = {
            "director": (web, quiet),
            "director, one source": (web, quiet),  # the same once more: what the machine's noise is worth
            "20 sources, 50 triggers": (web, {**quiet, "DIRECTOR_HOME": str(crowded)}),
            "director, a log line each": (web, {}),
            "bare Litestar": ([sys.executable, "-m", "bench.web_rival"], {}),
        }
        for connections in map(int, options.connections.split(",")):
            rows: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(options.rounds):
                for name, (command, more) in commands.items():
                    client.flushall()
                    rows[name].append(measure(command, connections, options.seconds, **env | more))
            harness.table(
                f"Signed deliveries, {connections} connections", "1/s", rows, "director", more_is_better=True
            )


if __name__ == "__main__":
    main()

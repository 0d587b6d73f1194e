"""Senders that mean no good, beside one that does: what they cost the web process.

    python -m bench.hostile [--large 40] [--slow 300] [--seconds 5]

Bodies of 25 MiB, in chunks and by length, forty at once, while the resident memory is watched; then senders of
one byte a second, while another sends signed deliveries.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench import harness
from bench.ingress import SECRET, WORKFLOW, body, reaches
from tests.conftest import free_port

LARGE = 25 << 20
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
HEAD = (
    "POST /hooks/github HTTP/1.1\r\nHost: 127.0.0.1\r\nX-GitHub-Event: push\r\nContent-Type: application/json\r\n"
)


def memory(pid: int, name: str) -> float:
    """Return VmRSS or VmHWM of a process, MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


async def large(port: int, chunked: bool) -> tuple[str, int]:
    """Send a large body until the server refuses it; return the status, and how many bytes went out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    kind = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {LARGE}"
    writer.write(f"{HEAD}{kind}\r\n\r\n".encode())
    sent, answer = 0, asyncio.ensure_future(reader.readline())
    with contextlib.suppress(OSError):  # it closes while we write, and the answer may be lost on the way
        while sent < LARGE and not answer.done():
            writer.write(CHUNK if chunked else CHUNK[7:-2])
            await writer.drain()
            sent += 65536
    (line,) = await asyncio.gather(asyncio.wait_for(answer, 20), return_exceptions=True)
    writer.close()
    return line.decode()[9:12] if isinstance(line, bytes) and line else "closed", sent


async def trickle(port: int) -> None:
    """Send one byte a second until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{HEAD}Content-Length: 1000\r\n\r\n".encode())
    try:
        while not reader.at_eof():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1)
    except OSError:
        pass


async def deliver(port: int, seconds: float) -> list[float]:
    """Send signed deliveries one after the other; return how long each took, ms."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text, took = body(), []
    mac = hmac.new(SECRET.encode(), text, hashlib.sha256).hexdigest()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        delivery = f"X-GitHub-Delivery: {time.time_ns()}\r\nX-Hub-Signature-256: sha256={mac}\r\n"
        writer.write(f"{HEAD}{delivery}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
        if " 202 " not in head:
            raise RuntimeError(head)
        took.append((time.perf_counter() - began) * 1000)
    writer.close()
    return took


async def measure(port: int, pid: int, options: argparse.Namespace) -> None:
    await deliver(port, 1)
    before = memory(pid, "VmRSS")
    for chunked in (True, False):
        found = await asyncio.gather(*(large(port, chunked) for _ in range(options.large)))
        statuses = dict(Counter(status for status, _ in found))
        most = max(sent for _, sent in found) / (1 << 20)
        kind = "in chunks" if chunked else "by length"
        print(
            f"{options.large} bodies of 25 MiB at once, {kind}: answers {statuses}, at most {most:.1f} MiB sent; "
            f"RSS {before:.1f} -> {memory(pid, 'VmRSS'):.1f} MiB, peak {memory(pid, 'VmHWM'):.1f} MiB"
        )
    alone = await deliver(port, options.seconds)
    slow = [asyncio.ensure_future(trickle(port)) for _ in range(options.slow)]
    await asyncio.sleep(1)
    beside = await deliver(port, options.seconds)
    for one in slow:
        one.cancel()
    for name, took in (("alone", alone), (f"beside {options.slow} senders of 1 byte/s", beside)):
        p99 = statistics.quantiles(took, n=100)[98]
        print(f"a signed delivery {name}: p50 {statistics.median(took):.2f} ms, p99 {p99:.2f} ms ({len(took)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=40)
    parser.add_argument("--slow", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    with harness.server() as url, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "workflows").mkdir()
        (Path(folder) / "workflows" / "bench.yml").write_text(WORKFLOW)
        env = {"DIRECTOR_HOME": folder, "DIRECTOR_REDIS_URL": url, "GITHUB_WEBHOOK_SECRET": SECRET}
        port = free_port()
        with harness.process([sys.executable, "-m", "director", "web"], PORT=str(port), **env) as web:
            harness.until(lambda: reaches(port))
            asyncio.run(measure(port, web.pid, options))


if __name__ == "__main__":
    main()

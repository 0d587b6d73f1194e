"""Senders that mean no good cost the others nothing: a real web process, bodies of 25 MiB, one byte a second."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

import pytest

from bench import harness, hostile
from bench.ingress import SECRET, WORKFLOW, reaches
from tests.conftest import free_port


@pytest.fixture(params=["tiny", "redis"])
def web(request, tmp_path):
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "w.yml").write_text(WORKFLOW)
    env = {"DIRECTOR_HOME": str(tmp_path), "GITHUB_WEBHOOK_SECRET": SECRET, "PORT": str(free_port())}
    if request.param == "redis":
        env["DIRECTOR_REDIS_URL"] = request.getfixturevalue("redis_url")
    with harness.process([sys.executable, "-m", "director", "web"], **env) as process:
        harness.until(lambda: reaches(int(env["PORT"])))
        yield argparse.Namespace(port=int(env["PORT"]), pid=process.pid)


@pytest.mark.parametrize("chunked", [True, False])
def test_large_bodies_are_refused_while_they_are_read_and_not_kept(web, chunked):
    async def attack():
        await hostile.deliver(web.port, 0.5)
        before = hostile.memory(web.pid, "VmHWM")
        found = await asyncio.gather(*(hostile.large(web.port, chunked) for _ in range(20)))
        return found, hostile.memory(web.pid, "VmHWM") - before

    found, grown_mib = asyncio.run(attack())
    assert {status for status, _ in found} <= {"413", "closed"}
    assert max(sent for _, sent in found) < hostile.LARGE
    assert grown_mib < 20, "20 bodies of 25 MiB are 500"


def test_slow_senders_hold_nobody_up(web):
    async def attack():
        slow = [asyncio.ensure_future(hostile.trickle(web.port)) for _ in range(100)]
        await asyncio.sleep(0.5)
        try:
            return await asyncio.wait_for(hostile.deliver(web.port, 1), 10)
        finally:
            for one in slow:
                one.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*slow)

    took = asyncio.run(attack())
    assert len(took) > 5
    assert max(took) < 5000, "ms"

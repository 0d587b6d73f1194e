"""The README's commands, as a new user pastes them; the Makefile's first `.env`."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.processes import until

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.fixture
def home(tmp_path):
    for name in ("workflows", "tasks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "ready").touch()
    make = ["make", ".env", f"BIN={Path(sys.executable).parent}", "-o", ".venv/ready"]
    subprocess.run(make, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


@pytest.fixture
def service(home):
    """`director up` with nothing configured but the new `.env`."""
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DIRECTOR_")}
    environ |= {"PORT": str(port), "DIRECTOR_HOME": str(home)}

    def start():
        with (home / "up.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "director", "up"], env=environ, stderr=log)
        until(lambda: curl(port, "health/ready").returncode == 0, what="the service")
        return process

    processes = [start()]
    yield port, processes, start
    processes[-1].terminate()
    processes[-1].wait(40)


def curl(port, path):
    return subprocess.run(["curl", "-sf", f"http://localhost:{port}/{path}"], capture_output=True)


def paste(shell, block, home, port):
    done = subprocess.run(
        [shell, "-c", block.replace("localhost:8000", f"localhost:{port}")],
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_make_writes_secrets_once_and_for_the_user_only(home):
    file = home / ".env"
    text = file.read_text()
    assert re.fullmatch(r"GITHUB_WEBHOOK_SECRET=\w{64}\nDIRECTOR_TOKEN=[\w-]{43}\n", text)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    make = ["make", ".env", f"BIN={Path(sys.executable).parent}", "-o", ".venv/ready"]
    subprocess.run(make, cwd=home, check=True, capture_output=True)
    assert file.read_text() == text


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_the_pasted_lines_do_what_the_readme_says(home, service, shell):
    port, processes, start = service
    etl, push, listing = BLOCKS

    run = paste(shell, etl, home, port)
    assert run["status"] == "succeeded"
    assert run["progress"] == {"total": 6, "succeeded": 6, "failed": 0}

    first, second = paste(shell, push, home, port), paste(shell, push, home, port)
    assert first["runs"][0]["workflow"] == "github.PUSH"
    assert first["runs"][0]["id"] != second["runs"][0]["id"]
    assert not second["duplicate"]

    def newest():
        return paste(shell, listing, home, port)["runs"][0]

    assert newest()["id"] == second["runs"][0]["id"]
    until(lambda: newest()["status"] == "succeeded", what="the run of the push")

    processes[-1].send_signal(signal.SIGTERM)
    assert processes[-1].wait(40) == 0
    processes.append(start())
    assert newest()["id"] == second["runs"][0]["id"], "a restart keeps it"

"""One Node process with the vendors' SDKs: `oracle.mjs`, asked in JSON lines."""

from __future__ import annotations

import atexit
import base64
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MISSING = (
    ""
    if shutil.which("node") and (HERE / "node_modules" / ".ready").exists()
    else "there are no Node SDKs here; with npm installed `make test` gets them, and then this runs"
)
"""Why nothing can be asked; empty when it can."""


@cache
def _process() -> subprocess.Popen[str]:
    command = ["node", str(HERE / "oracle.mjs")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # the end of its input ends it
    return process


def ask(vendor: str, do: str, secret: str, body: bytes, headers: dict[str, str] | None = None, at: int = 0) -> Any:
    """Return what an SDK says; raise ValueError where it throws."""
    process = _process()
    assert process.stdin and process.stdout
    asked = {"vendor": vendor, "do": do, "secret": secret, "headers": headers, "at": at}
    process.stdin.write(json.dumps({**asked, "body": base64.b64encode(body).decode()}) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer.get("value")

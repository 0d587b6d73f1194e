"""The house: imports point one way, and each outside library has one home."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "director"
# From the ground up: a module imports only what stands before it (a folder counts as one).
FLOORS = [
    "errors states log models settings",
    "plan messages triggers access yamltree schemas documents",
    "schemes scope schedules",
    "signing clauses handshakes",
    "grammar",
    "definitions registry",
    "store",
    "engine tokens",
    "execution broker scheduler deliveries",
    "parent loop transport",
    "worker",
    "embedded",
    "web",
    "deliver supervisor render",
    "host doctor",
    "command",
    "cli_tokens cli_webhooks",
    "cli",
]
HOMES = {
    "celery": {"worker", "parent", "embedded"},
    "kombu": {"broker", "parent", "transport", "worker"},
    "billiard": {"worker"},
    "redis": {"store", "scheduler"},
    "tinydb": {"store"},
    "litestar": {"web"},
    "uvicorn": {"web"},
    "httptools": {"web"},
    "yaml": {"yamltree"},
    "cryptography": {"signing"},
    "jsonschema": {"schemas"},
    "referencing": {"schemas"},
    "jmespath": {"triggers"},
    "structlog": {"log"},
    "click": {"cli", "cli_tokens", "cli_webhooks", "command"},
    "rich": {"render"},
    "dotenv": {"settings"},
    "uuid_utils": {"engine"},
    "croniter": {"schedules"},
    "rq": {"scheduler"},
    "rq_scheduler": {"scheduler"},
}
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names.split()}


def part(path: Path) -> str:
    """Return a module's name; everything in a folder has the folder's."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return what a module imports at run time: `celery.app`, `director.store.base`, …"""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.add(child.module)
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


MODULES = [path for path in sorted(ROOT.rglob("*.py")) if part(path) not in ("__init__", "__main__")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    mine = part(path)
    for name in imports(path):
        words = name.split(".")
        if words[0] == "director" and len(words) > 1 and words[1] in LEVEL and words[1] != mine:
            assert LEVEL[words[1]] <= LEVEL[mine], f"{mine} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_outside_library_has_one_home(path):
    for name in imports(path):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or part(path) in homes, f"{name} belongs to {homes}"

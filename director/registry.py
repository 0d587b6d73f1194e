"""What `tasks/` imports from director, and the finding of its modules. No Celery here."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from director.models import Problem, Struct, TaskOptions

NOT_IMPORTED = "cannot be imported"


class Canceled(BaseException):
    """Raised inside a task whose run was canceled. Not an Exception, so that `except Exception` lets it pass."""


class Registered(Struct, frozen=True):
    """A function with what its decorator said."""

    name: str
    function: Callable[..., Any]
    options: dict[str, Any]
    file: str

    def published(self) -> TaskOptions:
        """Return what those who build messages need to know of the options."""
        options = self.options
        limits = ("time_limit", "soft_time_limit", "rate_limit")
        return TaskOptions(
            queue=options.get("queue"),
            priority=options.get("priority"),
            time_limit=options.get("time_limit"),
            soft_time_limit=options.get("soft_time_limit"),
            limited=any(options.get(name) is not None for name in limits),
        )


class Discovery(Struct, frozen=True):
    """What importing `tasks/` found."""

    tasks: dict[str, Registered]
    problems: tuple[Problem, ...]

    @property
    def files(self) -> dict[str, str] | None:
        """Task → its file; None when a module cannot be imported, so that more tasks may exist."""
        if any(NOT_IMPORTED in problem.text for problem in self.problems):
            return None
        return {name: entry.file for name, entry in self.tasks.items()}


_registered: list[Registered] = []
_current = threading.local()


def task(*args: Any, **options: Any) -> Any:
    """Register a function as a task.

    Args:
        name: how workflows call it; default the function's name.
        options: any of Celery's task options: `bind`, `queue`, `autoretry_for`, `time_limit`, …

    Returns:
        The function itself, so that it can be called and tested as it is.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = str(options.get("name") or function.__name__)
        rest = {key: value for key, value in options.items() if key != "name"}
        file = function.__code__.co_filename if hasattr(function, "__code__") else ""
        _registered.append(Registered(name=name, function=function, options=rest, file=file))
        return function

    return register(args[0]) if len(args) == 1 and callable(args[0]) else register


class _Config:
    """`config.X` is the environment's `DIRECTOR_X`, as in celery-director."""

    def __getattr__(self, name: str) -> str:
        try:
            return os.environ[f"DIRECTOR_{name}"]
        except KeyError:
            raise AttributeError(f"DIRECTOR_{name} is not set in the environment or .env") from None


config = _Config()


def check_canceled() -> None:
    """Raise Canceled when the run of the task that calls this was canceled; outside a task do nothing."""
    if getattr(_current, "canceled", None) and _current.canceled():
        raise Canceled


def set_current(canceled: Callable[[], bool] | None) -> None:
    """Say how `check_canceled` finds out, for the task that this thread executes."""
    _current.canceled = canceled


def executing() -> bool:
    """Return whether this thread executes a task run."""
    return getattr(_current, "canceled", None) is not None


def discover(home: Path) -> Discovery:
    """Import every module below `tasks/` and return the tasks; never raises for what is in them."""
    folder = home / "tasks"
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    problems: list[Problem] = []
    first = len(_registered)
    _own_package(folder)
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(home).with_suffix("").parts
        if any(not part.isidentifier() for part in parts):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            importlib.import_module(module)
        except Canceled:
            raise
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever a user's module does at import
            problems.append(_import_problem(home, path, exc))
    tasks: dict[str, Registered] = {}
    for entry in _registered[first:] or _registered:
        known = tasks.setdefault(entry.name, entry)
        if known is not entry and known.file != entry.file:
            line = getattr(getattr(entry.function, "__code__", None), "co_firstlineno", 1)
            problems.append(
                Problem(
                    file=_relative(home, entry.file),
                    line=line,
                    column=1,
                    text=f'task "{entry.name}" is also in {_relative(home, known.file)}; rename one of them',
                )
            )
    return Discovery(tasks=tasks, problems=tuple(sorted(problems)))


def _own_package(folder: Path) -> None:
    """Make `tasks` mean this folder, whatever else on the path has the same name."""
    known = sys.modules.get("tasks")
    if known is not None and list(getattr(known, "__path__", ())) == [str(folder)]:
        return
    for name in [name for name in sys.modules if name == "tasks" or name.startswith("tasks.")]:
        del sys.modules[name]
    if not (folder / "__init__.py").is_file():
        package = ModuleType("tasks")
        package.__path__ = [str(folder)]
        sys.modules["tasks"] = package


def _relative(home: Path, file: str) -> str:
    path = Path(file)
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else file


def _import_problem(home: Path, path: Path, exc: BaseException) -> Problem:
    """Point at the deepest line of the project's own, and show the way there."""
    own = [frame for frame in traceback.extract_tb(exc.__traceback__) if Path(frame.filename).is_relative_to(home)]
    file, line = path, 1
    if isinstance(exc, SyntaxError) and exc.filename:
        file, line = Path(exc.filename), exc.lineno or 1
    elif own:
        file, line = Path(own[-1].filename), own[-1].lineno or 1
    way = " > ".join(f"{_relative(home, frame.filename)}:{frame.lineno} {frame.line}" for frame in own[-3:])
    text = f"{NOT_IMPORTED}: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
    return Problem(file=_relative(home, str(file)), line=line, column=1, text=f"{text} ({way})" if way else text)

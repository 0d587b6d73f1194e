"""What `tasks/` imports from director, and the finding of its modules. No Celery here."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import msgspec

from director.models import Problem, Struct, TaskOptions

NOT_IMPORTED = "cannot be imported"


class Canceled(BaseException):
    """Raised inside a task whose run was canceled, or which was taken away from its worker (past its timeout, or
    started elsewhere after this process was frozen): whatever it returns will be refused.

    Not an Exception, so that `except Exception` lets it pass.
    """


class Registered(Struct, frozen=True):
    """A function with what its decorator said."""

    name: str
    function: Callable[..., Any]
    options: dict[str, Any]

    @property
    def file(self) -> str:
        return self.function.__code__.co_filename

    @property
    def line(self) -> int:
        return self.function.__code__.co_firstlineno

    def published(self) -> TaskOptions:
        """Return what builders of messages need to know; raise ValidationError for an option of a wrong kind."""
        given = {name: value for name, value in self.options.items() if value is not None}
        limited = any(name in given for name in ("time_limit", "soft_time_limit", "rate_limit"))
        return msgspec.convert({**given, "limited": limited}, TaskOptions)


class Discovery(Struct, frozen=True):
    """What importing `tasks/` found."""

    home: Path
    tasks: dict[str, Registered]
    problems: tuple[Problem, ...]

    @property
    def files(self) -> dict[str, str] | None:
        """Task → its file; None when a module cannot be imported, so that more tasks may exist."""
        if any(NOT_IMPORTED in problem.text for problem in self.problems):
            return None
        return {name: entry.file for name, entry in self.tasks.items()}

    def problem_of(self, entry: Registered, text: str) -> Problem:
        """Return what is wrong with a task, where it stands."""
        text = f'task "{entry.name}" {text}'
        return Problem(file=_relative(self.home, entry.file), line=entry.line, column=1, text=text)


_registered: dict[tuple[str, str, int], Registered] = {}
"""By name, file and line: a module may be imported again."""
_current = threading.local()


def task(*args: Any, **options: Any) -> Any:
    """Register a function as a task; return the function itself, to be called and tested as it is.

    Args:
        name: how workflows call it; default the function's name.
        options: any of Celery's task options: `bind`, `queue`, `autoretry_for`, `time_limit`, …
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.isfunction(function):
            raise TypeError(f"@task is for functions, and {function!r} is none")
        rest = dict(options)
        entry = Registered(name=str(rest.pop("name", None) or function.__name__), function=function, options=rest)
        _registered[entry.name, entry.file, entry.line] = entry
        return function

    if args and isinstance(args[0], str):
        raise TypeError(f"write @task(name={args[0]!r})")
    return register(args[0]) if args else register


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


def interrupt(_signal: int, frame: FrameType | None) -> None:
    """Handle a signal: raise Canceled, if this thread is inside the function of a task whose run was canceled.

    Not between two functions, where Celery's code and ours would be hit: by the frames, so that no
    instruction is left at which a flag could lie.
    """
    functions = {entry.function.__code__ for entry in _registered.values()}
    while frame is not None:
        if frame.f_code in functions:
            return check_canceled()
        frame = frame.f_back


def executing() -> bool:
    """Return whether this thread executes a task run."""
    return getattr(_current, "canceled", None) is not None


def discover(home: Path) -> Discovery:
    """Import every module below `tasks/` and return the tasks; never raises for what is in them."""
    folder = home / "tasks"
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
    problems: list[Problem] = []
    _own_package(folder)
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(home).with_suffix("").parts
        if any(not part.isidentifier() for part in parts):
            text = f"{NOT_IMPORTED}: the names of modules have letters, digits and _ only"
            problems.append(Problem(file=path.relative_to(home).as_posix(), line=1, column=1, text=text))
            continue
        try:
            importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever a user's module does at import
            problems.append(_import_problem(home, path, exc))
    found = Discovery(home=home, tasks={}, problems=())
    for entry in _registered.values():
        # A module `tasks.…` of another folder was imported earlier, by a test.
        if entry.function.__module__.split(".")[0] == "tasks" and not Path(entry.file).is_relative_to(folder):
            continue
        first = found.tasks.setdefault(entry.name, entry)
        if first is not entry:
            where = f"{_relative(home, first.file)}:{first.line}"
            problems.append(found.problem_of(entry, f"is also at {where}; rename one of them"))
    for name, entry in list(found.tasks.items()):
        try:
            entry.published()
        except msgspec.ValidationError as exc:
            wrong, _, option = str(exc).partition(" - at `$.")
            problems.append(found.problem_of(entry, f"has a wrong {option[:-1]}: e{wrong[1:]}"))
            del found.tasks[name]
    return msgspec.structs.replace(found, problems=tuple(sorted(problems)))


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
    file, line = (own[-1].filename, own[-1].lineno) if own else (str(path), 1)
    if isinstance(exc, SyntaxError) and exc.filename:
        file, line = exc.filename, exc.lineno
    way = " > ".join(f"{_relative(home, frame.filename)}:{frame.lineno} {frame.line}" for frame in own[-3:])
    text = f"{NOT_IMPORTED}: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}"
    text += f" ({way})" if way else ""
    return Problem(file=_relative(home, file), line=line or 1, column=1, text=text)

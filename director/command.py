"""What the commands of `director` share: settings and store of one command, and how it prints."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import click
import msgspec

from director import log, render
from director.definitions import Definitions
from director.engine import Engine
from director.errors import NotFound
from director.models import FullRun, Plan
from director.registry import Discovery, discover
from director.settings import Settings
from director.states import ENDED, SUCCEEDED
from director.store import open_store
from director.store.base import Store
from director.store.shapes import Described, Filter


def as_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command print JSON; it takes the context too."""
    return click.option("--json", "json_", is_flag=True, help="Print JSON for programs.")(click.pass_obj(command))


class Context:
    """Settings and store of one command, opened when they are first needed."""

    @cached_property
    def settings(self) -> Settings:
        """The settings; read once."""
        settings = Settings.from_env()
        log.configure(settings.log_level)
        return settings

    @cached_property
    def store(self) -> Store:
        """The store that the settings name."""
        return open_store(self.settings)

    @property
    def engine(self) -> Engine:
        """An engine that knows what workers have published by now."""
        engine = Engine()
        engine.learn(self.do(lambda store: store.task_options()))
        return engine

    def do(self, call: Callable[[Store], Described[Any]]) -> Any:
        """Make one call to the store."""
        return self.store.do(call(self.store))

    def definitions(self, tasks: Mapping[str, str] | None = None) -> Definitions:
        """Read the project's files; with registered tasks, unknown ones are problems."""
        return Definitions(self.settings.home, self.settings.environ, tasks)

    def discover(self) -> Discovery:
        """Import `tasks/`, and make Celery tasks of it."""
        from director.worker import register

        # Modules print what they like at import.
        with contextlib.redirect_stdout(sys.stderr):
            return register(discover(self.settings.home))

    def run_id(self, text: str) -> str:
        """Return the id that `latest`, an id or the start of one means."""
        if len(text) == 36:
            return text
        runs, _ = self.do(lambda store: store.list(Filter(limit=1 if text == "latest" else 200)))
        found = [str(run.id) for run in runs if text == "latest" or run.id.startswith(text)]
        if len(found) != 1:
            wrong = f'{len(found) or "No"} recent runs have an id that starts with "{text}".'
            raise NotFound("There is no run yet." if text == "latest" else wrong)
        return found[0]

    def get(self, run_id: str) -> tuple[FullRun, Plan]:
        """Return all of a run, with its address, and its plan."""
        run, plan = self.do(lambda store: store.get(run_id))
        return self.with_url(run), plan

    def with_url(self, run: Any) -> Any:
        """Return a run with its address."""
        return msgspec.structs.replace(run, url=self.settings.run_url(run.id))


def plain(text: str, keep: str = "") -> str:
    """Return a text that a terminal shows and does not obey: strangers choose some of what is printed."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def print_result(json_: bool, value: Any, lines: Iterable[str] = ()) -> None:
    """Print a value as JSON, for programs, or lines for people."""
    if json_:
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    else:
        for line in lines:
            click.echo(plain(line, keep="\n\t"))


def table(head: Sequence[str], rows: Sequence[Iterable[str | None]]) -> list[str]:
    """Return lines of aligned columns; `-` where nothing is."""
    cells = [head, *(["-" if cell is None else plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def watch(
    context: Context, run_id: str, *, json_: bool, draw: bool, tend: Callable[[], None] = lambda: None
) -> int:
    """Wait for a run's end, calling `tend` meanwhile; return the exit status."""

    def look() -> tuple[FullRun, Plan]:
        tend()
        return context.get(run_id)

    first, _ = look()
    waits = not context.settings.embedded and first.status not in ENDED
    if waits and not context.do(lambda store: store.state([])).workers:
        click.echo("No worker has been seen for 30 s; the run waits for one.", err=True)
    definition = context.definitions().project.workflows.get(first.workflow)
    run = render.follow(look, definition, draw=draw and not json_)
    if json_:
        print_result(json_, run)
    elif not draw:
        click.echo(f"{run.workflow} {run.status}", err=True)
        if run.error:
            click.echo(f"{run.error.task}: {run.error.type}: {run.error.message}", err=True)
    return 0 if run.status == SUCCEEDED else 1

"""The `director` command. Results on stdout, everything else on stderr; exit 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from director import __version__
from director.errors import DirectorError, NotFound, SettingsError
from director.settings import Settings
from director.states import ENDED, RUN_STATES, SUCCEEDED

if TYPE_CHECKING:
    from director.definitions import Definitions
    from director.engine import Relaunched
    from director.models import Run
    from director.store.base import Store

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON for programs.")


class Context:
    """Settings and store of one command, opened when they are first needed."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._store: Store | None = None

    @property
    def settings(self) -> Settings:
        """The settings; read once."""
        if self._settings is None:
            from director import log

            self._settings = Settings.from_env()
            log.configure(self._settings.log_level)
        return self._settings

    @property
    def store(self) -> Store:
        """The store that the settings name."""
        if self._store is None:
            from director.store import open_store

            self._store = open_store(self.settings)
        return self._store

    def definitions(self, tasks: Mapping[str, str] | None = None) -> Definitions:
        """Read the project's files; with registered tasks, unknown ones are problems."""
        from director.definitions import Definitions

        return Definitions(self.settings.home, self.settings.environ, tasks)

    def run_id(self, text: str) -> str:
        """Return the id that `latest`, an id or the start of one means."""
        from director.store.base import Filter

        if len(text) == 36:
            return text
        runs, _ = self.store.do(self.store.list(Filter(limit=1 if text == "latest" else 200)))
        if text == "latest":
            if not runs:
                raise NotFound("There is no run yet.")
            return runs[0].id
        found = [run.id for run in runs if run.id.startswith(text)]
        if len(found) != 1:
            raise NotFound(f'{len(found) or "No"} recent runs have an id that starts with "{text}".')
        return found[0]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="director")
@click.pass_context
def cli(context: click.Context) -> None:
    """YAML workflows from signed webhooks, curl and schedules, on Celery."""
    context.obj = Context()


@cli.command()
@click.option("--no-worker", is_flag=True, help="Leave the worker to another process.")
@click.option("--no-scheduler", is_flag=True, help="Leave the scheduler to another process.")
@click.pass_obj
def up(context: Context, no_worker: bool, no_scheduler: bool) -> int:
    """Run everything: web, scheduler and worker."""
    from director import supervisor

    return supervisor.up(context.settings, worker=not no_worker, scheduler=not no_scheduler)


@cli.command()
@click.pass_obj
def web(context: Context) -> int:
    """Run the web process alone."""
    from director import supervisor

    return supervisor.web(context.settings)


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def worker(context: Context, options: tuple[str, ...]) -> int:
    """Run a worker; takes the options of `celery worker`."""
    from director import supervisor
    from director.worker import run_worker

    if context.settings.embedded:
        raise SettingsError(
            "Without DIRECTOR_REDIS_URL the worker is part of `director up`. "
            "Set DIRECTOR_REDIS_URL to run workers of their own."
        )
    supervisor.die_with_parent()
    return run_worker(context.settings, list(options))


@cli.command()
@click.pass_obj
def scheduler(context: Context) -> int:
    """Run the scheduler alone."""
    from director import supervisor

    if context.settings.embedded:
        raise SettingsError("Without DIRECTOR_REDIS_URL the scheduler is part of `director up`.")
    return supervisor.scheduler(context.settings)


@cli.command()
@as_json
@click.pass_obj
def check(context: Context, json_: bool) -> int:
    """Check files, tasks, settings and secrets; exit 1 with file:line:column for each problem."""
    from director.registry import discover

    settings = context.settings
    # Modules print what they like at import.
    with contextlib.redirect_stdout(sys.stderr):
        found = discover(settings.home)
    importable = not any("cannot be imported" in problem.text for problem in found.problems)
    definitions = context.definitions(
        {name: entry.file for name, entry in found.tasks.items()} if importable else None
    )
    project = definitions.project
    lines = [str(problem) for problem in (*found.problems, *project.problems)]
    for name in definitions.closed_sources():
        variables = " or ".join(project.sources[name].secrets)
        place = definitions.source_place(name)
        lines.append(f'{place}: source "{name}" is closed: set {variables} in the environment or .env')
    lines += [_placed(warning, settings.home) for warning in settings.warnings]
    if json_:
        _print_json({"problems": lines, "workflows": list(project.workflows), "tasks": list(found.tasks)})
    else:
        for line in lines:
            click.echo(line)
    counts = (
        _count(len(project.workflows), "workflow"),
        _count(len(found.tasks), "task"),
        _count(len(project.sources), "source"),
    )
    click.echo(f"{', '.join(counts)}: {_count(len(lines), 'problem')}", err=True)
    return 1 if lines else 0


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'s' * (number != 1)}"


def _placed(warning: str, home: Path) -> str:
    """Put the line of .env that sets a variable before what is said about it; else say where it comes from."""
    name = warning.partition(" ")[0]
    try:
        lines = (home / ".env").read_text().splitlines()
    except OSError:
        lines = []
    for number, line in enumerate(lines, 1):
        words = line.partition("=")[0].split()
        if words and words[-1] == name and name not in os.environ:
            return f".env:{number}:{line.index(name) + 1}: {warning}"
    return f"environment: {warning}"


# Workflows ---------------------------------------------------------------------------------------


@cli.group()
def workflow() -> None:
    """List, show and run workflows."""


@workflow.command("list")
@as_json
@click.pass_obj
def workflow_list(context: Context, json_: bool) -> None:
    """List workflows with their last run."""
    from director.definitions import describe
    from director.web.shapes import time_text

    workflows = context.definitions().project.workflows
    state = context.store.do(context.store.state(list(workflows)))
    if json_:
        _print_json(
            [{**describe(entry), "status": state.workflows[name].status} for name, entry in workflows.items()]
        )
        return
    rows = [
        (name, line.status or "-", line.last_run or "-", time_text(line.last_success_at) or "-")
        for name in workflows
        for line in [state.workflows[name]]
    ]
    _print_table(("WORKFLOW", "STATUS", "LAST RUN", "LAST SUCCESS"), rows)


@workflow.command("show")
@click.argument("name")
@as_json
@click.pass_obj
def workflow_show(context: Context, name: str, json_: bool) -> None:
    """Show a workflow's tasks and triggers."""
    from director.definitions import describe
    from director.render import definition_lines

    shape = describe(context.definitions().workflow(name))
    if json_:
        _print_json(shape)
    else:
        click.echo("\n".join(definition_lines(shape)))


@workflow.command("run")
@click.argument("name")
@click.argument("payload", default="{}")
@click.option("--comment", default="", help="Kept with the run.")
@click.option("--follow", is_flag=True, help="Watch the run to its end.")
@as_json
@click.pass_obj
def workflow_run(context: Context, name: str, payload: str, comment: str, follow: bool, json_: bool) -> int:
    """Start a run. PAYLOAD is JSON, @FILE, or - for standard input."""
    from director.definitions import check_payload
    from director.engine import Engine
    from director.host import Host

    # What is wrong here is said before anything is set up.
    given = _payload(payload)
    check_payload(context.definitions().workflow(name), given)
    with Host(context.settings, context.store) as host:
        definition = context.definitions(host.tasks).workflow(name)
        started = context.store.run(
            Engine(context.store).start(definition, given, trigger={"kind": "cli"}, comment=comment)
        )
        if not json_:
            click.echo(started.run_id)
            sys.stdout.flush()
        if follow or host.sees_through:
            return _watch(context, started.run_id, json_=json_, draw=follow, tend=host.tend)
    if json_:
        _print_json({"id": started.run_id, "workflow": name, "status": "queued"})
    return 0


def _payload(text: str) -> dict[str, Any]:
    import msgspec

    where = "PAYLOAD"
    if text == "-":
        text, where = sys.stdin.read(), "standard input"
    elif text.startswith("@"):
        path = Path(text[1:])
        try:
            text, where = path.read_text(), str(path)
        except (OSError, UnicodeDecodeError) as exc:
            raise click.UsageError(f"{path} cannot be read: {exc}") from None
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError) as exc:
        raise click.UsageError(f"{where} is not valid JSON: {exc}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f'{where} must be a JSON object such as {{"key": "value"}}')
    return value


def _watch(
    context: Context, run_id: str, *, json_: bool, draw: bool, tend: Callable[[], None] | None = None
) -> int:
    """Wait for a run's end; return the exit status."""
    from director.render import follow

    first = context.store.do(context.store.get(run_id))
    if not context.settings.embedded and first.status not in ENDED:
        state = context.store.do(context.store.state([]))
        if not state.workers:
            click.echo("No worker has been seen for 30 s; the run waits for one.", err=True)
    workflow = context.definitions().project.workflows.get(first.workflow)
    run = follow(context.store, run_id, workflow, draw=draw and not json_, tend=tend)
    if json_:
        _print_run(context, run)
    elif not draw:
        click.echo(f"{run.workflow} {run.status}", err=True)
        if run.error:
            click.echo(f"{run.error_task}: {run.error.type}: {run.error.message}", err=True)
    return 0 if run.status == SUCCEEDED else 1


# Runs --------------------------------------------------------------------------------------------


@cli.group()
def runs() -> None:
    """List, show, watch, relaunch and cancel runs. RUN is an id, the start of one, or `latest`."""


@runs.command("list")
@click.option("--workflow", "name", help="Only this workflow's.")
@click.option("--status", type=click.Choice(RUN_STATES))
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 200))
@as_json
@click.pass_obj
def runs_list(context: Context, name: str | None, status: str | None, limit: int, json_: bool) -> None:
    """List runs, newest first."""
    from director.store.base import Filter
    from director.web.shapes import run_shape

    found, following = context.store.do(context.store.list(Filter(workflow=name, status=status, limit=limit)))
    shapes = [run_shape(run, context.settings) for run in found]
    if json_:
        _print_json({"runs": shapes, "next": following})
        return
    rows = [
        (
            shape.id,
            shape.workflow,
            shape.status,
            shape.created_at or "-",
            "-" if shape.duration_s is None else f"{shape.duration_s:.1f}s",
            f"{shape.error.task}: {shape.error.type}" if shape.error else "",
        )
        for shape in shapes
    ]
    _print_table(("RUN", "WORKFLOW", "STATUS", "CREATED", "TOOK", "ERROR"), rows)


@runs.command("show")
@click.argument("run")
@as_json
@click.pass_obj
def runs_show(context: Context, run: str, json_: bool) -> None:
    """Show a run with its task runs, results and errors."""
    from director.render import run_lines

    found = context.store.do(context.store.get(context.run_id(run)))
    if json_:
        _print_run(context, found)
    else:
        workflow = context.definitions().project.workflows.get(found.workflow)
        click.echo("\n".join(run_lines(found, workflow)))


@runs.command("watch")
@click.argument("run")
@as_json
@click.pass_obj
def runs_watch(context: Context, run: str, json_: bool) -> int:
    """Watch a run to its end."""
    return _watch(context, context.run_id(run), json_=json_, draw=True)


@click.command()
@click.argument("run")
@click.option("--from", "origin", default="failed", help="failed (default), start, or a task's key.")
@click.option("--plan", is_flag=True, help="Only say what would run.")
@click.option("--follow", is_flag=True, help="Watch the run to its end.")
@as_json
@click.pass_obj
def relaunch(context: Context, run: str, origin: str, plan: bool, follow: bool, json_: bool) -> int:
    """Run again what failed and what follows."""
    from director.engine import Engine
    from director.host import Host

    run_id, definitions = context.run_id(run), context.definitions()
    steps = Engine(context.store).relaunch

    def relaunched(*, plan_only: bool) -> Relaunched:
        return context.store.run(
            steps(run_id, definitions.workflow, origin=origin, trigger={"kind": "cli"}, plan_only=plan_only)
        )

    # Planned first: what cannot be relaunched is said before anything is set up.
    done = relaunched(plan_only=True)
    with contextlib.nullcontext() if plan else Host(context.settings, context.store) as host:
        if not plan:
            done = relaunched(plan_only=False)
        watches = follow or (host is not None and host.sees_through)
        if json_ and (plan or not watches):
            _print_json(done)
        elif not json_:
            click.echo(done.id)
            click.echo(f"runs   {', '.join(done.rerun) or '-'}", err=True)
            click.echo(f"keeps  {', '.join(done.keep) or '-'}", err=True)
            if done.note:
                click.echo(done.note, err=True)
        sys.stdout.flush()
        if watches and host is not None:
            return _watch(context, done.id, json_=json_, draw=follow, tend=host.tend)
    return 0


@click.command()
@click.argument("run")
@as_json
@click.pass_obj
def cancel(context: Context, run: str, json_: bool) -> None:
    """End a run at once."""
    from director.engine import Engine

    run_id = context.run_id(run)
    context.store.run(Engine(context.store).cancel(run_id))
    if json_:
        _print_json({"id": run_id, "status": "canceled"})
    else:
        click.echo(run_id)


for group in (runs, workflow):
    group.add_command(relaunch)
    group.add_command(cancel)


# Sources -----------------------------------------------------------------------------------------


@cli.group()
def sources() -> None:
    """List sources; sign and test deliveries."""


@sources.command("list")
@as_json
@click.pass_obj
def sources_list(context: Context, json_: bool) -> None:
    """List sources, and whether each is open."""
    definitions = context.definitions()
    closed = definitions.closed_sources()
    rows = [
        (
            name,
            source.scheme if isinstance(source.scheme, str) else source.scheme.get("scheme", "hmac"),
            "closed" if name in closed else "open",
            f"{_base_url(context.settings)}/hooks/{name}",
            ", ".join(source.secrets),
        )
        for name, source in definitions.project.sources.items()
    ]
    if json_:
        _print_json([dict(zip(("name", "scheme", "state", "url", "secrets"), row, strict=True)) for row in rows])
    else:
        _print_table(("SOURCE", "SCHEME", "STATE", "URL", "SECRETS"), rows)


@sources.command("sign")
@click.argument("name", metavar="SOURCE")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--event", default="push", show_default=True, help="Where the scheme has an event header.")
@click.option("--send", is_flag=True, help="Send it instead of printing a curl line.")
@click.pass_obj
def sources_sign(context: Context, name: str, file: Path, event: str, send: bool) -> int:
    """Sign a body: print a curl line that is ready to paste, or send it."""
    from director import deliver

    request = deliver.signed(
        context.settings, context.definitions(), name, file, event, _base_url(context.settings)
    )
    if not send:
        click.echo(deliver.curl_line(request, file))
        return 0
    status, body = deliver.send(request)
    click.echo(body)
    click.echo(f"HTTP {status}", err=True)
    return 0 if status < 300 else 1


@sources.command("test")
@click.argument("name", metavar="SOURCE")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--event", default=None, help="The event; default: what the body says, else push.")
@as_json
@click.pass_obj
def sources_test(context: Context, name: str, file: Path, event: str | None, json_: bool) -> None:
    """Say what a body would start, and why the rest would not; nothing is started."""
    from director import deliver

    answer = deliver.dry_run(context.definitions(), name, file, event)
    if json_:
        _print_json(answer)
        return
    for start in answer["starts"]:
        click.echo(f"{start['workflow']} starts with {_json_text(start['payload'])}")
    for other in answer["others"]:
        click.echo(f"{other['workflow']} does not start: {other['reason']}")
    if not answer["starts"] and not answer["others"]:
        click.echo(f'no workflow has a trigger for source "{name}"')


def _base_url(settings: Settings) -> str:
    """Return how this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return settings.public_url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


# Printing ----------------------------------------------------------------------------------------


def _json_text(value: Any) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()


def _print_json(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_run(context: Context, run: Run) -> None:
    from director.web.shapes import full_run

    _print_json(full_run(run, context.settings))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status. No error of ours ends in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A name or a mark that the terminal's encoding lacks is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    status = _guarded(list(sys.argv[1:] if argv is None else argv))
    if any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()):
        # Python would wait for the pool's threads; a task that still runs there has been handed back.
        from director import log

        log.flush()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    return status


def _guarded(args: list[str]) -> int:
    try:
        with cli.make_context("director", args) as context:
            status = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except SettingsError as exc:
        click.echo(str(exc), err=True)
        return 2
    except DirectorError as exc:
        click.echo(str(exc), err=True)
        for line in (*getattr(exc, "problems", ()), *getattr(exc, "paths", ())):
            click.echo(f"  {line}", err=True)
        return 1
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return status if isinstance(status, int) else 0

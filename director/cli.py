"""The `director` command. Results on stdout, everything else on stderr; exit 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from director import __version__, cli_tokens, cli_webhooks, log, render, supervisor
from director.command import Context, as_json, print_result, table, watch
from director.definitions import check_payload
from director.doctor import Finding, examine, fix, of_files, of_settings
from director.engine import Relaunched, new_token
from director.errors import DirectorError, SettingsError
from director.host import Host
from director.settings import Settings
from director.states import RUN_STATES
from director.store.shapes import Filter


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
    return supervisor.up(context.settings, worker=not no_worker, scheduler=not no_scheduler)


@cli.command()
@click.pass_obj
def web(context: Context) -> int:
    """Run the web process alone."""
    return supervisor.up(context.settings, worker=False, scheduler=False)


@cli.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def worker(context: Context, options: tuple[str, ...]) -> int:
    """Run a worker; takes the options of `celery worker`."""
    from director.worker import run_worker

    if not {"-h", "--help"} & set(options):
        _need_redis(context.settings, "worker")
    supervisor.die_with_parent()
    return run_worker(context.settings, list(options))


@cli.command()
@click.pass_obj
def scheduler(context: Context) -> int:
    """Run the scheduler alone."""
    _need_redis(context.settings, "scheduler")
    return supervisor.scheduler(context.settings)


def _need_redis(settings: Settings, what: str) -> None:
    if settings.embedded:
        raise SettingsError(
            f"Without DIRECTOR_REDIS_URL the {what} is part of `director up`. "
            f"Set DIRECTOR_REDIS_URL to run a {what} of its own."
        )


@cli.command()
@as_json
def check(context: Context, json_: bool) -> int:
    """Check files, tasks, settings and secrets; exit 1 with file:line:column for each problem."""
    settings, found = context.settings, context.discover()
    definitions = context.definitions(found.files)
    project = definitions.project
    lines = [str(problem) for problem in (*found.problems, *project.problems, *definitions.source_problems())]
    lines += [_placed(warning, settings.home) for warning in settings.warnings]
    shown = {"problems": lines, "workflows": list(project.workflows), "tasks": list(found.tasks)}
    print_result(json_, shown, lines)
    counts = {"workflow": project.workflows, "task": found.tasks, "source": project.sources, "problem": lines}
    texts = [f"{len(things) or 'no'} {word}{'s' * (len(things) != 1)}" for word, things in counts.items()]
    click.echo(f"{settings.home}: {', '.join(texts[:-1])}: {texts[-1]}", err=True)
    return 1 if lines else 0


@cli.command()
@as_json
def doctor(context: Context, json_: bool) -> int:
    """Check the deployment: store, workers, queues, secrets; exit 1 when something must be fixed."""
    findings = list(_diagnose(context))
    print_result(json_, {"findings": findings}, map(str, findings))
    return 1 if any(finding.level == "fix" for finding in findings) else 0


def _diagnose(context: Context) -> Iterator[Finding]:
    try:
        settings = context.settings
    except SettingsError as exc:
        yield from (fix("settings", line) for line in str(exc).splitlines())
        return
    yield from of_settings(settings)
    try:
        found = context.discover()
        definitions = context.definitions(found.files)
    except OSError as exc:
        yield fix("files", f"The project's files cannot be read: {exc}.")
        return
    options = {name: entry.published() for name, entry in found.tasks.items()}
    yield from examine(settings, definitions.project, options)
    problems = [*found.problems, *definitions.project.problems]
    yield from of_files(definitions.project, problems, definitions.source_problems())


def _placed(warning: str, home: Path) -> str:
    """Put the line of .env that sets a variable before what is said about it; else say where it comes from."""
    if warning.startswith(".env:"):
        return warning
    name, file = warning.partition(" ")[0], home / ".env"
    for number, line in enumerate(file.read_text().splitlines() if file.is_file() else (), 1):
        if line.partition("=")[0].split()[-1:] == [name]:
            return f".env:{number}:{line.index(name) + 1}: {warning}"
    return f"environment: {warning}"


# Workflows ---------------------------------------------------------------------------------------


@cli.group()
def workflow() -> None:
    """List, show and run workflows."""


@workflow.command("list")
@as_json
def workflow_list(context: Context, json_: bool) -> None:
    """List workflows with their last run."""
    workflows = context.definitions().project.workflows
    known = context.do(lambda store: store.state(list(workflows))).workflows
    rows = [(name, known[name].status, known[name].last_run, known[name].last_success_at) for name in workflows]
    plain = msgspec.to_builtins
    shown = [{**plain(workflow), **plain(known[name])} for name, workflow in workflows.items()]
    print_result(json_, {"workflows": shown}, table(("WORKFLOW", "STATUS", "LAST RUN", "LAST SUCCESS"), rows))


@workflow.command("show")
@click.argument("name")
@as_json
def workflow_show(context: Context, name: str, json_: bool) -> None:
    """Show a workflow's tasks and triggers."""
    found = context.definitions().workflow(name)
    print_result(json_, found, render.definition_lines(found))


@workflow.command("run")
@click.argument("name")
@click.argument("payload", default="{}")
@click.option("--comment", default="", help="Kept with the run.")
@click.option("--follow", is_flag=True, help="Watch the run to its end.")
@as_json
def workflow_run(context: Context, name: str, payload: str, comment: str, follow: bool, json_: bool) -> int:
    """Start a run. PAYLOAD is JSON, @FILE, or - for standard input."""
    # What is wrong here is said before anything is set up.
    given = _payload(payload)
    check_payload(context.definitions().workflow(name), given)
    with Host(context.settings, context.store) as host:
        definition = context.definitions(host.tasks).workflow(name)
        new = context.engine.start(definition, given, trigger={"kind": "cli"}, comment=comment)
        run_id = context.do(lambda store: store.start(new)).run_id
        watches = follow or host.sees_through
        if not (json_ and watches):
            print_result(json_, {"id": run_id, "workflow": name, "status": "queued"}, [run_id])
        return watch(context, run_id, json_=json_, draw=follow, tend=host.tend) if watches else 0


def _payload(text: str) -> dict[str, Any]:
    where = "PAYLOAD"
    try:
        if text == "-":
            text, where = sys.stdin.read(), "standard input"
        elif text.startswith("@"):
            text, where = Path(text[1:]).read_text(), text[1:]
        value = msgspec.json.decode(text)
    except (OSError, UnicodeDecodeError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise click.UsageError(f"{text.removeprefix('@')} cannot be read: {why}") from None
    except (ValueError, RecursionError) as exc:
        raise click.UsageError(f"{where} is not valid JSON: {exc}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f'{where} must be a JSON object such as {{"key": "value"}}')
    return value


# Runs --------------------------------------------------------------------------------------------


@cli.group()
def runs() -> None:
    """List, show, watch, relaunch and cancel runs. RUN is an id, the start of one, or `latest`."""


@runs.command("list")
@click.option("--workflow", "name", help="Only this workflow's.")
@click.option("--status", type=click.Choice(RUN_STATES))
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 200))
@as_json
def runs_list(context: Context, name: str | None, status: str | None, limit: int, json_: bool) -> None:
    """List runs, newest first."""
    found, following = context.do(lambda store: store.list(Filter(workflow=name, status=status, limit=limit)))
    rows = []
    for run in found:
        took = None if run.duration_s is None else f"{run.duration_s:.1f}s"
        error = f"{run.error.task}: {run.error.type}" if run.error else ""
        rows.append((run.id, run.workflow, run.status, run.created_at, took, error))
    shown = {"runs": [context.with_url(run) for run in found], "next": following}
    print_result(json_, shown, table(("RUN", "WORKFLOW", "STATUS", "CREATED", "TOOK", "ERROR"), rows))


@runs.command("show")
@click.argument("run")
@as_json
def runs_show(context: Context, run: str, json_: bool) -> None:
    """Show a run with its task runs, results and errors."""
    found, plan = context.get(context.run_id(run))
    print_result(
        json_, found, render.run_lines(found, plan, context.definitions().project.workflows.get(found.workflow))
    )


@runs.command("watch")
@click.argument("run")
@as_json
def runswatch(context: Context, run: str, json_: bool) -> int:
    """Watch a run to its end."""
    return watch(context, context.run_id(run), json_=json_, draw=True)


@click.command()
@click.argument("run")
@click.option("--from", "origin", default="failed", help="failed (default), start, or a task's key.")
@click.option("--plan", is_flag=True, help="Only say what would run.")
@click.option("--follow", is_flag=True, help="Watch the run to its end.")
@as_json
def relaunch(context: Context, run: str, origin: str, plan: bool, follow: bool, json_: bool) -> int:
    """Run again what failed and what follows."""
    run_id, find = context.run_id(run), context.definitions().workflow

    def relaunched() -> Relaunched:
        return context.engine.relaunch(*context.get(run_id), find, origin=origin, trigger={"kind": "cli"})

    # Planned first: what cannot be relaunched is said before anything is set up.
    done = relaunched()
    if plan:
        _print_relaunch(done, json_)
        return 0
    with Host(context.settings, context.store) as host:
        done, watches = relaunched(), follow or host.sees_through
        context.do(lambda store: store.carry_out(done.order))
        if not (json_ and watches):
            _print_relaunch(done, json_)
        return watch(context, done.id, json_=json_, draw=follow, tend=host.tend) if watches else 0


def _print_relaunch(done: Relaunched, json_: bool) -> None:
    print_result(json_, {"id": done.id, "rerun": done.rerun, "keep": done.keep, "note": done.note}, [done.id])
    if not json_:
        click.echo(f"runs   {', '.join(done.rerun) or '-'}\nkeeps  {', '.join(done.keep) or '-'}", err=True)
        click.echo(done.note, err=True, nl=bool(done.note))


@click.command()
@click.argument("run")
@as_json
def cancel(context: Context, run: str, json_: bool) -> None:
    """End a run at once."""
    run_id = context.run_id(run)
    context.do(lambda store: store.cancel(run_id, new_token()))
    print_result(json_, {"id": run_id, "status": "canceled"}, [run_id])


for group in (runs, workflow):
    group.add_command(relaunch)
    group.add_command(cancel)
for group in (cli_webhooks.sources, cli_webhooks.inbox, cli_tokens.group):
    cli.add_command(group)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status. No error of ours ends in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # A name or a mark that the terminal's encoding lacks is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    status = _guarded(list(sys.argv[1:] if argv is None else argv))
    if any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate()):
        # Python would wait for the pool's threads; a task that still runs there has been handed back.
        log.exit_at_once(status)
    return status


def _guarded(args: list[str]) -> int:
    try:
        with cli.make_context("director", args) as context:
            return cli.invoke(context) or 0
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except DirectorError as exc:
        click.echo("\n  ".join((str(exc), *getattr(exc, "problems", ()), *getattr(exc, "paths", ()))), err=True)
        return 2 if isinstance(exc, SettingsError) else 1
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0

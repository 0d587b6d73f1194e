"""`director sources` and `director deliveries`: who sends, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from director import deliver, deliveries
from director.command import Context, as_json, plain, print_result, table, watch
from director.errors import NotFound
from director.host import Host
from director.models import Delivery, FullDelivery
from director.store.shapes import DeliveryFilter

body_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
VERDICTS = deliveries.VERDICTS


@click.group("sources")
def sources() -> None:
    """List sources; sign and test deliveries."""


@sources.command("list")
@as_json
def sources_list(context: Context, json_: bool) -> None:
    """List sources, and whether each is open."""
    definitions = context.definitions()
    rows: list[dict[str, Any]] = [
        {
            "name": source.name,
            "scheme": source.preset,
            "url": f"{context.settings.local_url}/hooks/{source.name}",
            "open": definitions.is_open(source),
            "secrets": [
                {"name": variable, "set": bool(secret)}
                for variable, secret in zip(source.secrets, definitions.secrets(source), strict=True)
            ],
        }
        for source in definitions.known_sources()
    ]
    lines = []
    for row in rows:
        secrets = (it["name"] + ("" if it["set"] else " (not set)") for it in row["secrets"])
        state = "open" if row["open"] else "closed"
        lines.append((row["name"], row["scheme"], state, row["url"], ", ".join(secrets)))
    print_result(json_, {"sources": rows}, table(("SOURCE", "SCHEME", "STATE", "URL", "SECRETS"), lines))


@sources.command("sign")
@click.argument("name", metavar="SOURCE")
@body_file
@click.option("--event", default="push", show_default=True, help="Where the scheme has an event header.")
@click.option("--key", metavar="VARIABLE", help="Sign with what this variable holds: the private key of Ed25519.")
@click.option("--send", is_flag=True, help="Send it instead of printing a curl line.")
@click.pass_obj
def sources_sign(context: Context, name: str, file: Path, event: str, key: str | None, send: bool) -> int:
    """Sign a body: print a curl line that is ready to paste, or send it."""
    request = deliver.signed(context.settings, context.definitions(), name, file, event, key)
    if not send:
        click.echo(deliver.curl_line(request, file))
        return 0
    status, body = deliver.send(request)
    click.echo(body)
    click.echo(
        f"HTTP {status}" + ("; `director deliveries list` has the reason" if status == 401 else ""), err=True
    )
    return 0 if status < 300 else 1


@sources.command("test")
@click.argument("name", metavar="SOURCE")
@body_file
@click.option("--event", help="The event; default: the body's, else push where a header has it.")
@as_json
def sources_test(context: Context, name: str, file: Path, event: str | None, json_: bool) -> None:
    """Say what a body would start or relaunch, and why the rest would not; nothing is started."""
    answer = deliver.dry_run(context.definitions(), name, file, event)
    lines = [
        f"{it['workflow']} starts with {msgspec.json.encode(it['payload']).decode()}" for it in answer["starts"]
    ]
    for it in answer["relaunches"]:
        origin = "" if it["from"] == "failed" else f" from {it['from']}"
        lines.append(f"{it['workflow'] or 'it'} relaunches run {it['run']}{origin}")
    lines += [f"{it['workflow']} does not start: {_line(it['reason'])}" for it in answer["others"]]
    if answer["handshake"]:
        lines = [f"nothing starts: this is a handshake, {answer['handshake']}"]
    print_result(json_, answer, lines or [f'no workflow has a trigger for source "{name}"'])


@click.group("deliveries")
def inbox() -> None:
    """List, show and replay what came in. ID is the inbox's, the sender's, or `latest`."""


@inbox.command("list")
@click.option("--source", help="Only this source's.")
@click.option("--verdict", type=click.Choice(VERDICTS))
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 200))
@as_json
def inbox_list(context: Context, json_: bool, source: str | None, verdict: str | None, limit: int) -> None:
    """List deliveries, newest first, with what became of each and why."""
    which = DeliveryFilter(source=source, verdict=verdict, limit=limit)
    found, following = context.do(lambda store: store.deliveries(which))
    rows = [
        (it.id, it.at, it.source, it.event or None, it.verdict, str(it.status), _runs(it), _line(it.reason))
        for it in found
    ]
    head = ("DELIVERY", "AT", "SOURCE", "EVENT", "VERDICT", "HTTP", "RUN", "REASON")
    print_result(json_, {"deliveries": found, "next": following}, table(head, rows))


def _runs(entry: Delivery) -> str | None:
    more = f" and {len(entry.runs) - 1} more" if len(entry.runs) > 1 else ""
    return entry.runs[0].id + more if entry.runs else None


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _delivery(context: Context, id_: str) -> tuple[Delivery, bytes | None]:
    if id_ == "latest":
        found, _ = context.do(lambda store: store.deliveries(DeliveryFilter(limit=1)))
        if not found:
            raise NotFound("Nothing has come in yet.")
        id_ = found[0].id
    answer: tuple[Delivery, bytes | None] = context.do(lambda store: store.delivery(id_))
    return answer


@inbox.command("show")
@click.argument("delivery", metavar="ID")
@as_json
def inbox_show(context: Context, delivery: str, json_: bool) -> None:
    """Show a delivery with its reason and its body."""
    entry, body = _delivery(context, delivery)
    found = deliveries.shown(entry, body)
    print_result(json_, found, _lines(found))


def _lines(found: FullDelivery) -> list[str]:
    head: dict[str, str | None] = {
        "inbox id": found.id,
        "delivery": found.delivery,
        "at": found.at,
        "source": found.source,
        "event": found.event,
        "verdict": f"{found.verdict} (HTTP {found.status})",
        "reason": found.reason,
        "secret": found.secret,
        "body": f"{found.size} bytes, {found.content_type}" if found.content_type else f"{found.size} bytes",
    }
    lines = [f"{name:<9} {plain(value)}" for name, value in head.items() if value]
    lines += [f"run       {run.id} {run.workflow}" for run in found.runs]
    return [*lines, "", found.body] if found.body else lines


@inbox.command("replay")
@click.argument("delivery", metavar="ID")
@as_json
def inbox_replay(context: Context, delivery: str, json_: bool) -> int:
    """Start fresh runs from a delivery that was verified, by the workflows as they are now."""
    entry, body = _delivery(context, delivery)
    deliveries.replayed(entry, body)  # what cannot be played is said before anything is set up
    with Host(context.settings, context.store) as host:
        definitions = context.definitions(host.tasks)
        done, others = deliver.replay(context.store, context.engine, definitions, entry, body)
        shown = {
            "runs": [{"id": run_id, "workflow": workflow} for workflow, run_id in done],
            "others": [{"workflow": workflow, "reason": reason} for workflow, reason in others],
        }
        print_result(json_, shown, [f"{run_id} {workflow}" for workflow, run_id in done])
        for workflow, reason in [] if json_ else others:
            click.echo(plain(f"{workflow} does not start: {_line(reason)}"), err=True)
        if not done and not others and not json_:
            click.echo(f'no workflow has a trigger for source "{entry.source}"', err=True)
        if host.sees_through and done:
            return max(watch(context, run_id, json_=False, draw=False, tend=host.tend) for _, run_id in done)
    return 0 if done else 1

"""`director tokens`: who may call the API."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from director import tokens
from director.access import SCOPES
from director.command import Context, as_json, print_result, table


@click.group("tokens")
def group() -> None:
    """Create, list and revoke access tokens."""


@group.command("create")
@click.option("--scope", required=True, type=click.Choice(SCOPES), help="Each includes those before it.")
@click.option("--workflow", "workflows", multiple=True, metavar="NAME", help="Only this one; repeat it for more.")
@click.option("--expires", "expires_in", metavar="TIME", help="Such as 90d, 12h or 30m; default: never.")
@click.option("--name", metavar="TEXT", help="Who has it, for the list.")
@as_json
def create(context: Context, json_: bool, workflows: tuple[str, ...], **asked: Any) -> None:
    """Create a token and print it; it is kept as a hash, so nobody can print it again."""
    order = {**asked, "workflows": list(workflows) or None}
    project = context.definitions().project
    if wrong := tokens.slips(order, project):
        options = {"expires_in": "--expires", "name": "--name"}
        raise click.UsageError("\n".join(f"{options.get(at, '--workflow')}: {text}" for at, text in wrong.items()))
    new, token = tokens.make(order, project)
    made = context.do(lambda store: store.add_token(new))
    print_result(json_, {**msgspec.to_builtins(made), "token": token}, [token])
    click.echo(f"id {made.id}", err=True)


@group.command("list")
@as_json
def show(context: Context, json_: bool) -> None:
    """List tokens with their last use, oldest first; expired ones too."""
    found = context.do(lambda store: store.tokens())
    rows = []
    for one in found:
        workflows = ",".join(one.workflows) or "all"
        rows.append(
            (one.id, one.scope, workflows, one.created_at, one.expires_at, one.last_used_at, one.name or None)
        )
    head = ("TOKEN", "SCOPE", "WORKFLOWS", "CREATED", "EXPIRES", "LAST USED", "NAME")
    print_result(json_, {"tokens": found}, table(head, rows))


@group.command("revoke")
@click.argument("token_id", metavar="ID")
@as_json
def revoke(context: Context, token_id: str, json_: bool) -> None:
    """Revoke a token: the next request with it is refused."""
    context.do(lambda store: store.revoke(token_id))
    print_result(json_, {"id": token_id, "revoked": True}, [token_id])

"""What a delivery does: which workflows it starts, which runs it relaunches, each once.

A step that needs the store is a generator of described calls, so that the web process and commands take it
alike (`Store.play`, `Service.play`).
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from director import documents, states
from director.definitions import BUILT_IN, Definitions
from director.engine import Engine, FindWorkflow
from director.errors import Conflict, DirectorError, InvalidPayload, NotFound
from director.models import Delivery, FullDelivery
from director.store.base import Store
from director.store.shapes import Dedupe, Described, Filter, Started
from director.triggers import LATEST, Match, Router, Routing

T = TypeVar("T")
SEEN_S = 7 * 86400
"""How long a delivery is known when it comes again."""
VERDICTS: tuple[str, ...] = get_args(get_type_hints(Delivery)["verdict"])
Steps = Generator[Described[Any], Any, T]
_EXPECTED = 'The body must be {"workflow": …, "payload": an object} or {"relaunch": a run\'s id, "from": a task}.'


def route(definitions: Definitions, router: Router, source: str, event: str, document: Any) -> Routing:
    """Return what a delivery wants.

    Raises:
        NotFound, DefinitionError, InvalidPayload: a body of the built-in source asks for what is not there.
    """
    asked = document if source == BUILT_IN.name and isinstance(document, Mapping) else {}
    names_it = not asked.keys().isdisjoint(("workflow", "relaunch"))
    if source != BUILT_IN.name or (router.listens(source) and not names_it):
        routing = router.route(source, event, document)
        if not routing.matches:
            project, why = definitions.project, "it has problems, so that its triggers are not known"
            routing.reasons.extend((name, why) for name in project.broken if name not in project.workflows)
        return routing
    shapes: dict[str, type] = {"workflow": str, "payload": dict, "relaunch": str, "from": str}
    wrong = [f"$.{key}: unknown" for key in asked if key not in shapes]
    wrong += [
        f"$.{key}: expected a {shapes[key].__name__}"
        for key in shapes
        if not isinstance(asked.get(key, shapes[key]()), shapes[key])
    ]
    allowed = {"workflow", "payload"} if "workflow" in asked else {"relaunch", "from"}
    if wrong or not names_it or not asked.keys() <= allowed:
        raise InvalidPayload(_EXPECTED, wrong)
    if "workflow" in asked:
        return Routing([Match(definitions.workflow(asked["workflow"]), asked.get("payload", {}))], [])
    return Routing([Match(None, relaunch=asked["relaunch"], origin=asked.get("from", "failed"))], [])


def shown(entry: Delivery, body: bytes | None) -> FullDelivery:
    """Return a delivery with its body as a text."""
    text = None if body is None else body.decode("utf-8", "replace")
    return FullDelivery(**msgspec.structs.asdict(entry), body=text)


def replayed(entry: Delivery, body: bytes | None) -> Any:
    """Return what the body of a delivery says that is to be played again. Raises Conflict when it cannot be."""
    if entry.secret is None:
        raise Conflict(f"Delivery {entry.id} was {entry.verdict}: nobody vouches for it. Nothing was started.")
    if entry.verdict == "handshake":
        raise Conflict(f"Delivery {entry.id} was a handshake, which starts nothing. Nothing was started.")
    if body is None:
        raise Conflict(
            f"Delivery {entry.id} has {entry.size} bytes, more than the inbox keeps. Nothing was started."
        )
    try:
        return documents.decode(entry.content_type, body)
    except ValueError as exc:
        raise Conflict(f"Delivery {entry.id} cannot be read: {exc} Nothing was started.") from None


def act(
    engine: Engine,
    store: Store,
    find: FindWorkflow,
    match: Match,
    trigger: Mapping[str, Any],
    *,
    dedupe: Dedupe | None = None,
    relaunches: bool = False,
    comment: str = "",
) -> Steps[tuple[Started, str]]:
    """Start or relaunch what a match names, once for a delivery; return the run and its workflow.

    Args:
        dedupe: of the delivery; None when nothing identifies it, or when it is played again.
        relaunches: when an earlier copy has started the run and it has failed, relaunch it.

    Raises:
        DirectorError: nothing was started or relaunched.
    """
    if match.relaunch is not None or match.workflow is None:
        started, name = yield from relaunch(engine, store, find, match, trigger, dedupe)
    else:
        name = match.workflow.name
        new = engine.start(match.workflow, match.payload, trigger=trigger, comment=comment, dedupe=dedupe)
        started = yield store.start(new)
    if started.duplicate and relaunches:
        started = yield from redeliver(engine, store, find, started, trigger)
    return started, name


def relaunch(
    engine: Engine,
    store: Store,
    find: FindWorkflow,
    match: Match,
    trigger: Mapping[str, Any],
    dedupe: Dedupe | None,
) -> Steps[tuple[Started, str]]:
    """Relaunch the run that a match names, once for a delivery; return the run and its workflow.

    Raises:
        NotFound, Conflict: there is no such run of the match's workflow, or it cannot be relaunched.
    """
    workflow = match.workflow.name if match.workflow else ""
    try:
        run, pinned = yield store.get((yield from _wanted_run(store, match)))
        if workflow and run.workflow != workflow:
            raise NotFound(f"Run {run.id} is one of {run.workflow}, not of {workflow}.")
        workflow = run.workflow
        done = engine.relaunch(run, pinned, find, origin=match.origin, trigger=trigger, dedupe=dedupe)
        answer = yield store.carry_out(done.order)
        if isinstance(answer, Started):
            return answer, workflow
        if answer:
            return Started(done.id), workflow
        error: DirectorError = NotFound(f"Run {run.id} is not there.")
    except (NotFound, Conflict) as exc:
        error = exc
    # A copy of the delivery may have done it already: then the run is underway, or has failed anew.
    first = (yield store.seen(dedupe, workflow)) if dedupe and workflow else None
    if first is None:
        raise error
    return Started(first, duplicate=True), workflow


def _wanted_run(store: Store, match: Match) -> Steps[str]:
    assert match.relaunch is not None
    if match.relaunch != LATEST or match.workflow is None:
        try:
            return str(uuid.UUID(match.relaunch))
        except ValueError:
            # Not what it is: the log has the reason too.
            raise NotFound("What it names is no run's id.") from None
    after: str | None = None
    while True:  # a page may be empty while there is a next one
        which = Filter(workflow=match.workflow.name, status=states.FAILED, after=after, limit=1)
        runs, after = yield store.list(which)
        if runs:
            return str(runs[0].id)
        if after is None:
            raise NotFound(f"No run of {match.workflow.name} has failed.")


def redeliver(
    engine: Engine, store: Store, find: FindWorkflow, first: Started, trigger: Mapping[str, Any]
) -> Steps[Started]:
    """Relaunch the run that an earlier copy of a delivery has started, if it has failed."""
    try:
        run, pinned = yield store.get(first.run_id)
        if run.status != states.FAILED:
            return first
        done = engine.relaunch(run, pinned, find, trigger=trigger)
        yield store.carry_out(done.order)
    except (NotFound, Conflict):  # it is not kept any more, or another copy was faster
        return first
    return msgspec.structs.replace(first, duplicate=False)

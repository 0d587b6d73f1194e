"""The grammar of workflow files: values → workflows and sources, and what is wrong with them.

A reading goes over all files: names first, then sources and defaults, then workflows. Each workflow and
each source has a scope, which collects its problems; one with problems is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from director import clauses, schedules, schemas, signing, yamltree
from director.models import (
    Call,
    Chain,
    Element,
    Group,
    Hooks,
    Problem,
    Project,
    Retention,
    Schedule,
    Source,
    Trigger,
    Workflow,
)
from director.scope import Scope, is_null
from director.settings import MAX_TASKS
from director.yamltree import List, Map, Place, Text, Value, quote

BUILT_IN_SOURCE = "director"

_WORKFLOW = (
    *("tasks", "description", "queue", "schema", "payload", "hooks"),
    *("enabled", "periodic", "retention", "triggers"),
)
_OPTIONS = ("queue", "retries", "backoff", "timeout")
_WORKFLOW_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SOURCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SCHEMA_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


class File(msgspec.Struct, frozen=True):
    """One file, parsed."""

    path: str
    tree: Map | None
    """None when it is empty, or does not parse and never did."""
    problem: Problem | None = None


class Reading:
    """All files, read once: names first, then sources and defaults, then workflows."""

    def __init__(self, home: Path, tasks: Mapping[str, str] | None, files: list[File]) -> None:
        self.home, self.tasks, self.files = home, tasks, files
        self.workflows: dict[str, Workflow] = {}
        self.sources: dict[str, Source] = {}
        self.defaults: dict[str, Any] = {}
        self.workflow_scopes: dict[str, Scope] = {}
        self.source_scopes: dict[str, Scope] = {}
        self.default_scopes: dict[str, Scope] = {}
        self.other_scopes: list[Scope] = []
        self.schemas: dict[str, tuple[dict[str, Any] | None, str | None]] = {}
        found = [
            entry for file in files if file.tree is not None for entry in self.top_level(file.path, file.tree)
        ]
        for name, scope in self.source_scopes.items():
            if scope.problems:
                self.sources.pop(name, None)
        for scope, value in found:
            self.workflow(scope, value)

    # A name's scope is made where the name first stands; a second place is a problem of that scope.

    def top_level(self, file: str, tree: Map) -> list[tuple[Scope, Value]]:
        """Read sources and defaults of a file; return its workflows, which need those of all files."""
        outer = Scope(file)
        self.other_scopes.append(outer)
        workflows = Map((key, value) for key, value in tree.items() if not key.startswith("x-"))
        workflows.slips = tree.slips
        sources, defaults = workflows.pop("sources", None), workflows.pop("defaults", None)
        if sources is not None and not is_null(sources):
            for scope, value in self.named(self.source_scopes, outer, outer.map(sources, "sources"), "source {}"):
                self.source(scope, value)
        if defaults is not None and not is_null(defaults):
            scope = Scope(file, None, "defaults")
            self.other_scopes.append(scope)
            readers: dict[str, Callable[[Scope, Value], Any]] = {"hooks": self.hooks, "queue": clauses.queue}
            readers |= {"payload": Scope.payload, "retention": clauses.retention}
            fields = scope.map(defaults, "defaults", readers)
            for own, value in self.named(self.default_scopes, scope, fields, "defaults"):
                if not is_null(value):
                    assert own.key is not None
                    self.defaults[own.key] = readers[own.key](own, value)
        return self.named(self.workflow_scopes, outer, workflows)

    @staticmethod
    def named(scopes: dict[str, Scope], outer: Scope, tree: Map, label: str = "") -> list[tuple[Scope, Value]]:
        """Return a scope for each key; what is wrong with a key is a problem of its first scope."""
        made = []
        for key, value in tree.items():
            scope = Scope(outer.file, key, label.format(quote(key)) or quote(key)[1:-1])
            first = scopes.setdefault(str(key), scope)
            if first is scope:
                made.append((scope, value))
            elif first.key is not None:
                scope.report(key, f"also defined at {first.file}:{first.key.line}:{first.key.column}")
                first.problems |= scope.problems
        for place, text in tree.slips:
            owner = scopes.get(place) if isinstance(place, Text) else None
            (owner or outer).report(place, text)
        return made

    def keep_last_good(self, last: Reading) -> None:
        """Put the last good version in the place of what has problems now."""
        for name, scope in self.workflow_scopes.items():
            old = last.workflows.get(name)
            if scope.problems and old is not None and self.knows(old):
                self.workflows[name] = old
        for name, scope in self.source_scopes.items():
            if scope.problems and name in last.sources:
                self.sources[name] = last.sources[name]

    def knows(self, workflow: Workflow) -> bool:
        wanted = [*_names(workflow.tasks), workflow.hooks.success, workflow.hooks.failure]
        return self.tasks is None or all(name is None or name in self.tasks for name in wanted)

    def project(self) -> Project:
        broken = {name: scope.sorted() for name, scope in self.workflow_scopes.items() if scope.problems}
        groups = (self.workflow_scopes, self.source_scopes, self.default_scopes)
        scopes = [*self.other_scopes, *(scope for group in groups for scope in group.values())]
        problems = {problem for scope in scopes for problem in scope.problems}
        for file in self.files:
            if file.problem is not None:
                broken[file.path] = (file.problem,)
                problems.add(file.problem)
        return Project(
            workflows={name: self.workflows[name] for name in self.workflow_scopes if name in self.workflows},
            sources={name: self.sources[name] for name in self.source_scopes if name in self.sources},
            problems=tuple(sorted(problems)),
            broken=broken,
        )

    # --- sources

    def source(self, scope: Scope, value: Value) -> None:
        key = scope.key
        assert key is not None
        if not _SOURCE_NAME.fullmatch(key):
            scope.report(key, "a source's name has letters, digits, _ and -, at most 100")
        if key == BUILT_IN_SOURCE:
            scope.report(key, "this one is built in; give another a different name")
            return
        if not isinstance(value, Map):
            # What stands here may be the secret itself, so that it is never shown.
            scope.report(value, "expected a mapping such as {secret: $NAME}")
            return
        fields = scope.map(value, "a source")
        secrets: tuple[str, ...] = ()
        if "secret" in fields:
            secrets = self.secrets(scope, fields.pop("secret"))
        else:
            scope.report(key, "has no secret; write secret: $NAME, the name of an environment variable")
        own: dict[str, Any] = {}
        if "verify_token" in fields:
            own["verify_tokens"] = self.secrets(scope, fields.pop("verify_token"))
        if "redelivery" in fields:
            at = fields.pop("redelivery")
            own["redelivery"] = scope.text(at, "redelivery")
            if own["redelivery"] not in (None, "ignore", "relaunch"):
                scope.report(at, "redelivery must be ignore or relaunch")

        def unusable(at: Place, _: str) -> None:  # never the value: it may be of a misspelt "secret"
            scope.report(at, "this value cannot be used; quote it")

        given = {"scheme": str(key)} | {
            str(name): yamltree.plain(inner, unusable) for name, inner in fields.items()
        }
        try:
            signing.scheme(given)
        except signing.SchemeError as exc:
            for field, text in exc.problems:
                if field == "scheme" and field not in fields:
                    named = [name for name in signing.presets() if name.startswith(str(key))]
                    what = " or ".join(named) or "and the name of a preset, or hmac"
                    scope.report(key, f"needs a scheme; write scheme: {what}")
                else:
                    scope.report(fields.key(field) if field in fields else key, text)
        wanted = given if len(given) > 1 else given["scheme"]
        self.sources[str(key)] = Source(
            name=str(key), scheme=wanted, secrets=secrets, file=scope.file, line=key.line, column=key.column, **own
        )

    @staticmethod
    def secrets(scope: Scope, value: Value) -> tuple[str, ...]:
        names = []
        for item in value if isinstance(value, List) and value else [value]:
            match = _VARIABLE.fullmatch(item) if isinstance(item, Text) else None
            if match is None:
                scope.report(item, "secrets come from the environment; write $NAME, not the secret itself")
            else:
                names.append(match[1] or match[2])
        return tuple(names)

    # --- workflows

    def default(self, scope: Scope, name: str) -> Any:
        """Return a default's value; where it has problems, they are those of the workflow that wants it."""
        if name in self.default_scopes:
            scope.problems |= self.default_scopes[name].problems
        return self.defaults.get(name)

    def workflow(self, scope: Scope, value: Value) -> None:
        key = scope.key
        assert key is not None
        if not _WORKFLOW_NAME.fullmatch(key):
            scope.report(key, "a workflow's name has letters, digits, _ - and ., at most 100")
        if not isinstance(value, Map):
            scope.report(key if is_null(value) else value, 'expected a mapping with "tasks"')
            return
        given = scope.given(value, "a workflow", _WORKFLOW)
        members: tuple[Element, ...] = ()
        if "tasks" in given:
            members = self.elements(scope, given["tasks"], "tasks")
        else:
            scope.report(key, "has no tasks")
        names = _names(members)
        if len(names) > MAX_TASKS:
            scope.report(given["tasks"], f"has {len(names)} tasks; the limit is {MAX_TASKS}")

        own = self.hooks(scope, given["hooks"]) if "hooks" in given else {}
        hooks = Hooks(**(own if len(own) == 2 else {**(self.default(scope, "hooks") or {}), **own}))
        if "queue" in given:
            queue, queues = clauses.queue(
                scope, given["queue"], {*names, *filter(None, (hooks.success, hooks.failure))}
            )
        else:
            queue, queues = self.default(scope, "queue") or (None, {})
        payload = dict(self.default(scope, "payload") or {})
        if "payload" in given:
            payload |= scope.payload(given["payload"])
        kept = clauses.retention(scope, given["retention"]) if "retention" in given else {}
        found = (
            [self.trigger(scope, item) for item in scope.items(given["triggers"], "triggers")]
            if "triggers" in given
            else []
        )
        workflow = Workflow(
            name=str(key),
            description=(scope.text(given["description"], "description") or "") if "description" in given else "",
            tasks=members,
            queue=queue,
            queues=queues,
            schema=self.schema(scope, given["schema"]) if "schema" in given else None,
            payload=payload,
            hooks=hooks,
            enabled=scope.flag(given["enabled"], "enabled") if "enabled" in given else True,
            triggers=tuple(trigger for trigger in found if trigger is not None),
            retention=Retention(**{**(self.default(scope, "retention") or {}), **kept}),
            file=scope.file,
            line=key.line,
        )
        if "periodic" in given:
            workflow = msgspec.structs.replace(
                workflow, periodic=self.periodic(scope, workflow, given["periodic"])
            )
        if not scope.problems:
            self.workflows[str(key)] = workflow

    def elements(self, scope: Scope, value: Value, what: str) -> tuple[Element, ...]:
        if not isinstance(value, List):
            scope.report(value, f"{what} must be a list")
            return ()
        if not value and scope.clean(value):
            scope.report(value, f"{what} must name at least one task")
        return tuple(element for item in value if (element := self.element(scope, item)) is not None)

    def element(self, scope: Scope, value: Value) -> Element | None:
        if isinstance(value, Text):
            return self.call(scope, value, Map())
        if isinstance(value, List):
            scope.report(value, "a list in a list; write NAME: {type: group, tasks: [...]}, or type: chain")
            return None
        found = scope.map(value, "a task")
        if len(found) != 1:
            first = next(iter(found), "NAME")
            if found.keys() & {"type", "tasks", *_OPTIONS}:
                scope.report(value, f"indent what belongs to {quote(first)} further than its name")
            else:
                scope.report(value, f"expected one name, found {len(found)}; start each with a dash")
            return None
        key, body = next(iter(found.items()))
        if is_null(body):
            return self.call(scope, key, Map())
        if not isinstance(body, Map):
            scope.report(body, f"what follows {quote(key)} must be a mapping")
            return None
        return (self.branch if body.keys() & {"type", "tasks"} else self.call)(scope, key, body)

    def branch(self, scope: Scope, key: Text, body: Map) -> Element | None:
        fields = scope.map(body, "a group or chain", ("type", "tasks"))
        name, kind = scope.name(key, "a group's name") or "", "group"
        if "type" not in fields:
            scope.report(key, f"{quote(name)} has tasks but no type; add type: group or type: chain")
        else:
            kind = scope.text(fields["type"], "type") or kind
            if kind not in ("group", "chain"):
                hint = scope.hint(kind, ("group", "chain")) or "; expected group or chain"
                scope.report(fields["type"], f"no type is named {quote(kind)}{hint}")
        if "tasks" not in fields:
            scope.report(key, f"{kind} {quote(name)} has no tasks")
            return None
        members = self.elements(scope, fields["tasks"], f"tasks of {quote(name)}")
        return Chain(name=name, members=members) if kind == "chain" else Group(name=name, members=members)

    def call(self, scope: Scope, key: Text, body: Map) -> Call | None:
        name = self.task(scope, key, "a task's name")
        readers = {"queue": scope.name, "retries": scope.count, "backoff": scope.seconds, "timeout": scope.seconds}
        options: dict[str, Any] = {}
        for option, value in body.items():
            if option not in readers:
                scope.report(option, f"{quote(key)} has no option {quote(option)}{scope.hint(option, readers)}")
            elif not is_null(value):
                options[option] = readers[option](value, option)
        scope.clean(body)
        return None if name is None else Call(name=name, **options)

    def task(self, scope: Scope, value: Value, what: str) -> str | None:
        """Return the name of a task, checked against the registered ones where these are known."""
        name = scope.name(value, what)
        if name is not None and self.tasks is not None and name not in self.tasks:
            scope.report(value, f"no task is named {quote(name)}{scope.hint(name, self.tasks)}")
        return name

    def hooks(self, scope: Scope, value: Value) -> dict[str, str | None]:
        """Return success and failure where they are given; an empty one is given too: no hook."""
        fields = scope.map(value, "hooks", ("success", "failure"))
        return {str(k): None if is_null(v) else self.task(scope, v, f"the {k} hook") for k, v in fields.items()}

    def periodic(self, scope: Scope, workflow: Workflow, value: Value) -> tuple[Schedule, ...]:
        """Return a workflow's schedules; one that its own schema would refuse each time is a problem."""
        found: dict[str, Schedule] = {}
        for item in scope.items(value, "periodic"):
            schedule = clauses.schedule(scope, item)
            if schedule is None:
                continue
            schedule = msgspec.structs.replace(schedule, id=schedules.identity(workflow.name, schedule))
            if schedule.id in found:
                scope.report(item, "periodic: the same schedule is given twice")
            found[schedule.id] = schedule
            merged = {**workflow.payload, **schedule.payload}
            if workflow.schema is not None and not scope.problems:
                for path in schemas.refusals(workflow.schema, merged)[:1]:
                    at = item["payload"] if isinstance(item, Map) and "payload" in item else item
                    scope.report(at, f"periodic: the workflow's schema refuses the payload: {path}")
        return tuple(found.values())

    def trigger(self, scope: Scope, value: Value) -> Trigger | None:
        """Return a trigger of a source that some file has; None when it names none."""
        found = clauses.trigger(scope, value)
        # A file that does not parse may hold the source: then the workflow is not to blame.
        blind = any(file.problem is not None and file.tree is None for file in self.files)
        if found is None or not isinstance(value, Map):
            return None
        if not blind and found.source not in (*self.source_scopes, BUILT_IN_SOURCE):
            hint = scope.hint(found.source, [*self.source_scopes, BUILT_IN_SOURCE]) or "; add it under sources:"
            scope.report(value["source"], f"no source is named {quote(found.source)}{hint}")
        return found

    def schema(self, scope: Scope, value: Value) -> dict[str, Any] | None:
        if isinstance(value, Map):
            before = len(scope.problems)
            inline: dict[str, Any] = yamltree.plain(value, scope.report)
            wrong = schemas.problem(inline) if len(scope.problems) == before else None
            if wrong is not None:
                scope.report(value, f"schema: {wrong}")
            return inline
        name = (scope.text(value, "schema") or "").removesuffix(".json")
        if not _SCHEMA_NAME.fullmatch(name):
            if name:
                scope.report(value, f"{quote(name)} does not name a file in schemas/")
            return None
        if name not in self.schemas:
            self.schemas[name] = schemas.read(self.home, f"schemas/{name}.json")
        found, wrong = self.schemas[name]
        if wrong is not None:
            scope.report(value, wrong)
        return found


def _names(members: Iterable[Element]) -> list[str]:
    """Return the tasks of some elements, in the order of the YAML."""
    return [name for one in members for name in ([one.name] if isinstance(one, Call) else _names(one.members))]

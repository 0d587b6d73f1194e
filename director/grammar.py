"""The grammar of workflow files: trees → workflows and sources, and what is wrong with them.

A reading goes over all files: names first, then sources and defaults, then workflows. Each
workflow and each source has a scope, which collects its problems; one with problems is left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from director import schemas, signing, yamltree
from director.models import Call, Chain, Element, Group, Problem, Project, Source, Trigger, Workflow
from director.settings import MAX_TASKS
from director.yamltree import Entries, List, Map, Node, Scalar, quote

MAX_NAME = 200
MAX_RETRIES = 1_000_000
MAX_SECONDS = 10 * 365 * 86400
BUILT_IN_SOURCE = "director"
TASK_OPTIONS = ("queue", "retries", "backoff", "timeout")

_WORKFLOW_KEYS = (
    "tasks", "description", "queue", "schema", "payload", "hooks", "enabled", "periodic", "retention",
    "triggers",
)  # fmt: skip
_TRIGGER_KEYS = ("source", "event", "when", "payload", "relaunch", "enabled")
_DEFAULT_KEYS = ("hooks", "queue", "payload")
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


class _Scope:
    """Collects what is wrong in one workflow or source; its label opens each text."""

    def __init__(self, file: str, key: Scalar | None = None, label: str = "") -> None:
        self.file, self.key, self.label = file, key, label
        self.problems: dict[Problem, None] = {}  # an alias is read once for each place it stands in

    def report(self, node: Node, text: str) -> None:
        text = f"{self.label}: {text}" if self.label else text
        self.problems[Problem(file=self.file, line=node.line, column=node.column, text=text)] = None

    def hint(self, name: str, known: Iterable[str]) -> str:
        """Return `; did you mean "…"?`, or nothing. Only for the first problems: looking is slow."""
        near = near_name(name, known) if len(self.problems) < 50 else None
        return f"; did you mean {quote(near)}?" if near else ""

    def fields(self, node: Node, allowed: Iterable[str], what: str) -> dict[str, Node]:
        """Return the values of a mapping by key, reporting unknown keys; empty when it is none."""
        return {name: value for name, (_, value) in self.entries(node, tuple(allowed), what).items()}

    def entries(self, node: Node, allowed: tuple[str, ...] | None, what: str) -> Entries:
        if not isinstance(node, Map) or yamltree.foreign_tag(node):
            self.report(node, yamltree.foreign_tag(node) or f"{what} must be a mapping")
            return {}
        found = yamltree.entries(node, self.report)
        if allowed is None:
            return found
        for name, (key, _) in found.items():
            if name not in allowed:
                self.report(key, f"{what} has no key {quote(name)}{self.hint(name, allowed)}")
        return {name: entry for name, entry in found.items() if name in allowed}

    def items(self, node: Node, what: str) -> list[Node]:
        """Return the items of a list; one thing alone is a list of one."""
        if (tag := yamltree.foreign_tag(node)) is not None:
            self.report(node, tag)
            return []
        if isinstance(node, List) and not node.items:
            self.report(node, f"{what} is empty")
        return node.items if isinstance(node, List) else [node]

    def text(self, node: Node, what: str) -> str | None:
        """Return a scalar's literal text, so that `NO` and `123` are names; None with a report otherwise."""
        if (tag := yamltree.foreign_tag(node)) is not None:
            self.report(node, tag)
        elif not isinstance(node, Scalar):
            self.report(node, f"{what} must be a text")
        elif not node.text.strip():
            self.report(node, f"{what} is empty")
        else:
            return node.text
        return None

    def name(self, node: Node, what: str) -> str | None:
        """Return the name of a task, group or queue."""
        text = self.text(node, what)
        if text is None:
            return None
        if len(text) > MAX_NAME:
            self.report(node, f"{what} has {len(text)} characters; the limit is {MAX_NAME}")
        elif any(c.isspace() or not c.isprintable() for c in text):
            self.report(node, f"{what} {quote(text)} holds a space or a control character")
        else:
            return text
        return None

    def flag(self, node: Node | None, what: str) -> bool:
        if node is None or is_null(node):
            return True
        value = yamltree.to_python(node, self.report)
        if not isinstance(value, bool):
            self.report(node, f"{what} must be true or false")
        return value is not False

    def count(self, node: Node, what: str) -> int | None:
        value = yamltree.to_python(node, self.report)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_RETRIES:
            return value
        self.report(node, f"{what} must be a whole number from 0 to {MAX_RETRIES}")
        return None

    def seconds(self, node: Node, what: str) -> float | None:
        value = yamltree.to_python(node, self.report)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MAX_SECONDS:
            return float(value)
        self.report(node, f"{what} must be a number of seconds over 0")
        return None


class _Defaults:
    """What `defaults` says, and the problems of each of its keys."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.scopes: dict[str, _Scope] = {}


class Reading:
    """All files, read once: names first, then sources and defaults, then workflows."""

    def __init__(self, home: Path, tasks: Mapping[str, str] | None, files: list[File]) -> None:
        self.home, self.tasks, self.files = home, tasks, files
        self.workflows: dict[str, Workflow] = {}
        self.sources: dict[str, Source] = {}
        self.workflow_scopes: dict[str, _Scope] = {}
        self.source_scopes: dict[str, _Scope] = {}
        self.defaults = _Defaults()
        self.others: list[_Scope] = []
        self.schemas: dict[str, tuple[dict[str, Any] | None, str | None]] = {}
        found: list[tuple[_Scope, Node]] = []
        for file in files:
            if file.tree is not None:
                found.extend(self.top_level(file.path, file.tree))
        for name, scope in self.source_scopes.items():
            if scope.problems:
                self.sources.pop(name, None)
        for scope, node in found:
            self.workflow(scope, node)

    # A name's scope is made where the name first stands; a second place is a problem of that scope.

    def top_level(self, file: str, tree: Map) -> Iterator[tuple[_Scope, Node]]:
        """Read sources and defaults of a file; yield its workflows, which need those of all files."""
        scope = _Scope(file)
        self.others.append(scope)
        for key, node in yamltree.pairs(tree, scope.report):
            name = key.text
            if name.startswith("x-"):
                continue
            if name in ("sources", "defaults"):
                if not is_null(node):
                    (self.read_sources if name == "sources" else self.read_defaults)(file, node)
            elif own := self.claim(self.workflow_scopes, name, _Scope(file, key, quote(name)[1:-1])):
                yield own, node

    @staticmethod
    def claim(scopes: dict[str, _Scope], name: str, scope: _Scope) -> _Scope | None:
        first = scopes.get(name)
        if first is None:
            scopes[name] = scope
            return scope
        assert first.key is not None
        assert scope.key is not None
        scope.report(scope.key, f"also defined at {first.file}:{first.key.line}:{first.key.column}")
        first.problems |= scope.problems
        return None

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
        wanted = [*_names(workflow.tasks), workflow.success_hook, workflow.failure_hook]
        return self.tasks is None or all(name is None or name in self.tasks for name in wanted)

    def project(self) -> Project:
        broken = {
            name: tuple(sorted(scope.problems)) for name, scope in self.workflow_scopes.items() if scope.problems
        }
        scopes = [*self.workflow_scopes.values(), *self.source_scopes.values(), *self.others]
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

    # --- sources and defaults

    def read_sources(self, file: str, node: Node) -> None:
        outer = _Scope(file)
        self.others.append(outer)
        if not isinstance(node, Map):
            outer.report(node, "sources must be a mapping of names")
            return
        for key, value in yamltree.pairs(node, outer.report):
            scope = self.claim(self.source_scopes, key.text, _Scope(file, key, f"source {quote(key.text)}"))
            if scope is not None:
                source = self.source(scope, key, value)
                if source is not None:
                    self.sources[source.name] = source

    def source(self, scope: _Scope, key: Scalar, node: Node) -> Source | None:
        name = key.text
        if not _SOURCE_NAME.fullmatch(name):
            scope.report(key, "a source's name has letters, digits, _ and -, at most 100")
        if name == BUILT_IN_SOURCE:
            scope.report(key, "this one is built in; give another a different name")
        if not isinstance(node, Map):
            # What stands here may be the secret itself, so that it is never shown.
            scope.report(node, "expected a mapping such as {secret: $NAME}")
            return None
        fields = yamltree.entries(node, scope.report)
        secrets: tuple[str, ...] = ()
        if "secret" in fields:
            secrets = self.secrets(scope, fields["secret"][1])
        else:
            scope.report(key, "has no secret; write secret: $NAME, the name of an environment variable")

        def report(at: Node, _: str) -> None:  # never the value: it may be of a misspelt "secret"
            scope.report(at, "this value cannot be used; quote it")

        given = {
            field: yamltree.to_python(value, report) for field, (_, value) in fields.items() if field != "secret"
        }
        if not isinstance(given.setdefault("scheme", name), str):
            scope.report(fields["scheme"][1], "scheme must be the name of a preset, or hmac")
            return None
        wanted: str | dict[str, Any] = given if len(given) > 1 else given["scheme"]
        try:
            signing.scheme(wanted)
        except signing.SchemeError as exc:
            for field, text in exc.problems:
                if field == "scheme" and field not in fields:
                    scope.report(key, "needs a scheme; write scheme: and the name of a preset, or hmac")
                else:
                    scope.report(fields[field][0] if field in fields else key, text)
        return Source(name=name, scheme=wanted, secrets=secrets)

    @staticmethod
    def secrets(scope: _Scope, node: Node) -> tuple[str, ...]:
        names = []
        for item in node.items if isinstance(node, List) and node.items else [node]:
            match = _VARIABLE.fullmatch(item.text) if isinstance(item, Scalar) else None
            if match is None:
                scope.report(item, "secrets come from the environment; write $NAME, not the secret itself")
            else:
                names.append(match[1] or match[2])
        return tuple(names)

    def read_defaults(self, file: str, node: Node) -> None:
        outer = _Scope(file, label="defaults")
        self.others.append(outer)
        for name, (key, value) in outer.entries(node, _DEFAULT_KEYS, "defaults").items():
            scope = _Scope(file, key, "defaults")
            self.others.append(scope)
            if self.claim(self.defaults.scopes, name, scope) is None or is_null(value):
                continue
            readers: dict[str, Callable[[_Scope, Node], Any]]
            readers = {"hooks": self.hooks, "queue": self.queue, "payload": self.payload}
            self.defaults.found[name] = readers[name](scope, value)

    def default(self, scope: _Scope, name: str) -> Any:
        """Return a default's value; where it has problems, they are those of the workflow that wants it."""
        given = self.defaults.scopes.get(name)
        if given is not None:
            scope.problems |= given.problems
        return self.defaults.found.get(name)

    # --- workflows

    def workflow(self, scope: _Scope, node: Node) -> None:
        key = scope.key
        assert key is not None
        if not _WORKFLOW_NAME.fullmatch(key.text):
            scope.report(key, "a workflow's name has letters, digits, _ - and ., at most 100")
        if not isinstance(node, Map):
            scope.report(node if not is_null(node) else key, 'expected a mapping with "tasks"')
            return
        fields = scope.fields(node, _WORKFLOW_KEYS, "a workflow")
        given = {name: value for name, value in fields.items() if not is_null(value)}
        members: tuple[Element, ...] = ()
        if "tasks" in given:
            members = self.elements(scope, given["tasks"], "tasks")
        else:
            scope.report(key, "has no tasks")
        names = _names(Chain(name=key.text, members=members))
        if len(names) > MAX_TASKS:
            scope.report(given["tasks"], f"has {len(names)} tasks; the limit is {MAX_TASKS}")

        own = self.hooks(scope, given["hooks"]) if "hooks" in given else {}
        hooks = own if len(own) == 2 else {**(self.default(scope, "hooks") or {}), **own}
        if "queue" in given:
            queue, queues = self.queue(scope, given["queue"], {*names, *filter(None, hooks.values())})
        else:
            queue, queues = self.default(scope, "queue") or (None, {})
        payload = self.default(scope, "payload") or {}
        if "payload" in given:
            payload = payload | self.payload(scope, given["payload"])
        self.ignored(scope, given)
        triggers = []
        for item in scope.items(given["triggers"], "triggers") if "triggers" in given else []:
            triggers.append(self.trigger(scope, item))
        workflow = Workflow(
            name=key.text,
            tasks=Chain(name=key.text, members=members),
            description=(scope.text(given["description"], "description") or "") if "description" in given else "",
            queue=queue,
            queues=queues,
            schema=self.schema(scope, given["schema"]) if "schema" in given else None,
            payload=payload,
            success_hook=hooks.get("success"),
            failure_hook=hooks.get("failure"),
            enabled=scope.flag(given.get("enabled"), "enabled"),
            triggers=tuple(trigger for trigger in triggers if trigger is not None),
            file=scope.file,
            line=key.line,
        )
        if not scope.problems:
            self.workflows[key.text] = workflow

    def elements(self, scope: _Scope, node: Node, what: str) -> tuple[Element, ...]:
        if not isinstance(node, List):
            scope.report(node, f"{what} must be a list")
            return ()
        if not node.items:
            scope.report(node, f"{what} must name at least one task")
        found = [self.element(scope, item) for item in node.items]
        return tuple(element for element in found if element is not None)

    def element(self, scope: _Scope, node: Node) -> Element | None:
        if isinstance(node, Scalar):
            return self.call(scope, node, {})
        if isinstance(node, List):
            scope.report(node, "a list in a list; write NAME: {type: group, tasks: [...]}, or type: chain")
            return None
        found = scope.entries(node, None, "a task")
        if len(found) != 1:
            first = next(iter(found), "NAME")
            if {"type", "tasks", *TASK_OPTIONS} & found.keys():
                scope.report(node, f"indent what belongs to {quote(first)} further than its name")
            else:
                scope.report(node, f"expected one name, found {len(found)}; start each with a dash")
            return None
        key, body = next(iter(found.values()))
        fields: Entries = {}
        if not is_null(body):
            if not isinstance(body, Map):
                scope.report(body, f"what follows {quote(key.text)} must be a mapping")
                return None
            fields = yamltree.entries(body, scope.report)
        if "type" in fields or "tasks" in fields:
            return self.branch(scope, key, body)
        return self.call(scope, key, fields)

    def branch(self, scope: _Scope, key: Scalar, body: Node) -> Element | None:
        fields = scope.fields(body, ("type", "tasks"), "a group or chain")
        name = scope.name(key, "a group's name") or ""
        kind = "group"
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

    def call(self, scope: _Scope, key: Scalar, fields: Entries) -> Call | None:
        name = self.task(scope, key, "a task's name")
        options: dict[str, Any] = {}
        for option, (option_key, node) in fields.items():
            if option not in TASK_OPTIONS:
                hint = scope.hint(option, TASK_OPTIONS)
                scope.report(option_key, f"{quote(key.text)} has no option {quote(option)}{hint}")
            elif is_null(node):
                continue
            elif option == "queue":
                options[option] = scope.name(node, "queue")
            elif option == "retries":
                options[option] = scope.count(node, option)
            else:
                options[option] = scope.seconds(node, option)
        return None if name is None else Call(name=name, line=key.line, column=key.column, **options)

    def task(self, scope: _Scope, node: Node, what: str) -> str | None:
        """Return the name of a task, checked against the registered ones where these are known."""
        name = scope.name(node, what)
        if name is not None and self.tasks is not None and name not in self.tasks:
            scope.report(node, f"no task is named {quote(name)}{scope.hint(name, self.tasks)}")
        return name

    def hooks(self, scope: _Scope, node: Node) -> dict[str, str | None]:
        """Return success and failure where they are given; an empty one is given too: no hook."""
        fields = scope.fields(node, ("success", "failure"), "hooks")
        return {
            kind: None if is_null(value) else self.task(scope, value, f"the {kind} hook")
            for kind, value in fields.items()
        }

    @staticmethod
    def queue(scope: _Scope, node: Node, names: set[str] | None = None) -> tuple[str | None, dict[str, str]]:
        """Return the default queue and queues by task; `names` are the tasks that may be named."""
        if isinstance(node, Scalar):
            return scope.name(node, "queue"), {}
        fields = scope.fields(node, ("default", "customs"), "queue")
        default, customs = fields.get("default"), fields.get("customs")
        queues = {}
        if customs is not None and not is_null(customs):
            for name, (key, value) in scope.entries(customs, None, "customs").items():
                if names is not None and name not in names:
                    scope.report(key, f"customs: {quote(name)} is no task of it{scope.hint(name, names)}")
                queues[name] = scope.name(value, "queue") or ""
        return None if default is None or is_null(default) else scope.name(default, "queue"), queues

    @staticmethod
    def payload(scope: _Scope, node: Node) -> dict[str, Any]:
        value = yamltree.to_python(node, scope.report)
        if isinstance(value, dict):
            return value
        scope.report(node, "payload must be a mapping")
        return {}

    @staticmethod
    def ignored(scope: _Scope, given: Mapping[str, Node]) -> None:
        """Look at `periodic` and `retention` only so far as to find slips; they mean nothing yet."""
        for item in scope.items(given["periodic"], "periodic") if "periodic" in given else []:
            scope.entries(item, None, "periodic")
        if "retention" in given:
            scope.entries(given["retention"], None, "retention")

    def trigger(self, scope: _Scope, node: Node) -> Trigger | None:
        """Return a trigger; None when it has problems, is off, or relaunches (which means nothing yet)."""
        fields = scope.fields(node, _TRIGGER_KEYS, "a trigger")
        fields = {name: value for name, value in fields.items() if not is_null(value)}
        source = None
        if "source" in fields:
            source = scope.text(fields["source"], "source")
            self.known_source(scope, fields["source"], source)
        elif isinstance(node, Map):
            scope.report(node, "a trigger needs a source")
        events = []
        for item in scope.items(fields["event"], "event") if "event" in fields else []:
            events.append(scope.text(item, "event") or "")
        when = self.expression(scope, fields["when"], "when") if "when" in fields else None
        payload: str | dict[str, str] | None = None
        chosen = fields.get("payload")
        if isinstance(chosen, Map):
            payload = {
                name: self.expression(scope, value, f"payload {quote(name)}") or ""
                for name, (_, value) in scope.entries(chosen, None, "payload").items()
            }
        elif chosen is not None:
            payload = self.expression(scope, chosen, "payload")
        if "relaunch" in fields and scope.text(fields["relaunch"], "relaunch") not in (None, "latest"):
            self.expression(scope, fields["relaunch"], "relaunch")
        enabled = scope.flag(fields.get("enabled"), "enabled")
        if source is None or not enabled or "relaunch" in fields:
            return None
        return Trigger(source=source, events=tuple(events), when=when, payload=payload)

    def known_source(self, scope: _Scope, node: Node, name: str | None) -> None:
        # A file that does not parse may hold the source: then the workflow is not to blame.
        blind = any(file.problem is not None and file.tree is None for file in self.files)
        if name is None or blind or name == BUILT_IN_SOURCE or name in self.source_scopes:
            return
        hint = scope.hint(name, [*self.source_scopes, BUILT_IN_SOURCE])
        scope.report(node, f"no source is named {quote(name)}{hint or '; add it under sources:'}")

    @staticmethod
    def expression(scope: _Scope, node: Node, what: str) -> str | None:
        text = scope.text(node, what)
        if text is None:
            return None
        from director import triggers

        wrong = triggers.check_expression(text)
        if wrong is not None:
            scope.report(node, f"{what}: {wrong}")
        return text

    def schema(self, scope: _Scope, node: Node) -> dict[str, Any] | None:
        if isinstance(node, Map):
            before = len(scope.problems)
            schema: dict[str, Any] = yamltree.to_python(node, scope.report)
            wrong = schemas.problem(schema) if len(scope.problems) == before else None
            if wrong is not None:
                scope.report(node, f"schema: {wrong}")
            return schema
        name = scope.text(node, "schema")
        if name is None:
            return None
        name = name.removesuffix(".json")
        if not _SCHEMA_NAME.fullmatch(name):
            scope.report(node, f"{quote(name)} does not name a file in schemas/")
            return None
        if name not in self.schemas:
            self.schemas[name] = schemas.read(self.home, f"schemas/{name}.json")
        found, wrong = self.schemas[name]
        if wrong is not None:
            scope.report(node, wrong)
        return found


def _names(element: Element) -> list[str]:
    if isinstance(element, Call):
        return [element.name]
    return [name for member in element.members for name in _names(member)]


def is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant."""
    known = list(known)
    for other in known:
        if other.lower() == name.lower():
            return other
    near = difflib.get_close_matches(name[:MAX_NAME], known, n=1)
    return near[0] if near else None

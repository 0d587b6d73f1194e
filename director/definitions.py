"""Workflow files: YAML → workflows and sources, and every problem as `file:line:column: text`.

    files ─ yamltree.parse ─ trees ─ grammar.Reading ─ Project            load: once
                                                          └ Definitions   again when a file has changed

`load` never raises for what a file holds. A problem takes out of service only what it is in: a
workflow, a source, or all of a file that does not parse. What breaks in a change keeps its last
good version: of a file its tree, of a workflow or a source itself.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from director import schemas, yamltree
from director.errors import DefinitionError, InvalidPayload, NotFound
from director.grammar import TASK_OPTIONS, File, Reading, is_null, near_name
from director.models import Call, Element, Group, Problem, Project, Workflow
from director.yamltree import Map, quote

MAX_FILE_BYTES = 1 << 20

Stamp = tuple[tuple[str, int, int], ...]


def load(home: Path, *, tasks: Mapping[str, str] | None = None) -> Project:
    """Read every workflow file of a project: `workflows/**/*.yml`, `*.yaml` and `workflows.yml`.

    Args:
        home: the project's folder.
        tasks: registered task → module file; None when `tasks/` was not imported, so that task
            names are not checked.

    Returns:
        All that has no problem, and all problems of all files, sorted.
    """
    return Reading(home, tasks, _read(home, {})).project()


class Definitions:
    """The project in service: one refresher, many readers.

    Args:
        home: the project's folder.
        environ: where sources find their secrets.
        tasks: as in `load`; may be set later, the next `refresh` reads the files again.
    """

    def __init__(
        self, home: Path, environ: Mapping[str, str] = {}, tasks: Mapping[str, str] | None = None
    ) -> None:
        self.home = home
        self.environ = environ
        self.tasks = tasks
        self._lock = threading.Lock()
        self._seen: tuple[Stamp, Mapping[str, str] | None] | None = None
        self._trees: dict[str, Map] = {}
        self._reading: Reading | None = None
        self.project = Project(workflows={}, sources={}, problems=(), broken={})
        """Swapped as a whole, never changed; readers need no lock."""
        self.refresh()

    def refresh(self) -> bool:
        """Read the files again if one has changed; return whether one had.

        Costs one `stat` a file otherwise.
        """
        with self._lock:
            # Taken before reading: a change meanwhile shows as a difference the next time.
            seen = _stamp(self.home), self.tasks
            if seen == self._seen:
                return False
            files = _read(self.home, self._trees)
            reading = Reading(self.home, self.tasks, files)
            if self._reading is not None:
                reading.keep_last_good(self._reading)
            self.project = reading.project()
            self._trees = {file.path: file.tree for file in files if file.tree is not None}
            self._reading, self._seen = reading, seen
            return True

    def workflow(self, name: str) -> Workflow:
        """Return a workflow in service, disabled ones too.

        Raises:
            NotFound: no file has it.
            DefinitionError: it has problems and never had a good version here.
        """
        project = self.project
        found = project.workflows.get(name)
        if found is not None:
            return found
        problems = [str(problem) for problem in project.broken.get(name, ())]
        if problems:
            raise DefinitionError(f"Workflow {name} has problems and cannot be started.", problems)
        near = near_name(name, project.workflows)
        raise NotFound(f"No workflow is named {quote(name)}." + (f" Did you mean {quote(near)}?" if near else ""))

    def source_place(self, name: str) -> str:
        """Return where a source stands, as `file:line:column`."""
        scope = self._reading.source_scopes.get(name) if self._reading else None
        if scope is None or scope.key is None:
            return "workflows"
        return f"{scope.file}:{scope.key.line}:{scope.key.column}"

    def closed_sources(self) -> tuple[str, ...]:
        """Return the sources of which no secret is set: they refuse everything."""
        return tuple(
            name
            for name, source in self.project.sources.items()
            if not any(self.environ.get(variable) for variable in source.secrets)
        )


def check_payload(workflow: Workflow, payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload with the workflow's defaults under it (top-level keys), checked by its schema.

    Raises:
        InvalidPayload: the schema refuses it; at most 20 paths.
    """
    merged = {**workflow.payload, **payload}
    if workflow.schema is not None:
        paths = schemas.refusals(workflow.schema, merged)
        if paths:
            more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
            raise InvalidPayload(f"The schema of {workflow.name} refuses the payload: {paths[0]}{more}", paths)
    return merged


def describe(workflow: Workflow) -> dict[str, Any]:
    """Return a definition as JSON-able values, for the HTTP API and the command line."""
    queue: Any = workflow.queue
    if workflow.queues:
        queue = {"default": workflow.queue, "customs": dict(workflow.queues)}
    return {
        "name": workflow.name,
        "description": workflow.description,
        "enabled": workflow.enabled,
        "tasks": [_describe_element(member) for member in workflow.tasks.members],
        "queue": queue,
        "hooks": {"success": workflow.success_hook, "failure": workflow.failure_hook},
        "schema": workflow.schema,
        "payload": dict(workflow.payload),
        "triggers": [
            {
                "source": trigger.source,
                "events": list(trigger.events),
                "when": trigger.when,
                "payload": dict(trigger.payload) if isinstance(trigger.payload, Mapping) else trigger.payload,
            }
            for trigger in workflow.triggers
        ],
        "file": workflow.file,
    }


def _describe_element(element: Element) -> dict[str, Any]:
    if isinstance(element, Call):
        options = {key: getattr(element, key) for key in TASK_OPTIONS}
        return {"task": element.name} | {key: value for key, value in options.items() if value is not None}
    kind = "group" if isinstance(element, Group) else "chain"
    return {kind: element.name, "tasks": [_describe_element(member) for member in element.members]}


# --- files ----------------------------------------------------------------------------------------


def _workflow_files(home: Path) -> list[tuple[str, os.stat_result]]:
    named = [name for name in ("workflows.yaml", "workflows.yml") if (home / name).exists()]
    return _stat(home, [*named, *_walk(home, "workflows", (".yml", ".yaml"))])


def _walk(home: Path, folder: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Yield files, subfolders too, but no hidden ones: editors and ConfigMaps keep copies there."""
    for path, folders, names in os.walk(home / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(path).relative_to(home).as_posix()
        yield from (f"{inside}/{name}" for name in names if name.endswith(endings) and name[0] != ".")


def _stat(home: Path, paths: Iterable[str]) -> list[tuple[str, os.stat_result]]:
    """Return the regular files, sorted; a pipe would never end, and what is gone is gone."""
    found = []
    for path in sorted(paths):
        try:
            status = (home / path).stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((path, status))
    return found


def _stamp(home: Path) -> Stamp:
    """Return what changes when a file does; schemas count, because workflows hold them."""
    files = _workflow_files(home) + _stat(home, _walk(home, "schemas", (".json",)))
    return tuple((path, status.st_mtime_ns, status.st_size) for path, status in files)


def _read(home: Path, trees: Mapping[str, Map]) -> list[File]:
    """Parse every file; one that does not parse any more stands as in `trees`."""
    files = []
    for path, status in _workflow_files(home):
        shown = path.encode("utf-8", "replace").decode()
        try:
            files.append(File(shown, _tree(home / path, status.st_size)))
        except OSError as exc:
            problem = Problem(file=shown, line=1, column=1, text=f"cannot be read: {exc.strerror}")
            files.append(File(shown, trees.get(shown), problem))
        except yamltree.Malformed as exc:
            problem = Problem(file=shown, line=exc.line, column=exc.column, text=exc.text)
            files.append(File(shown, trees.get(shown), problem))
    return files


def _tree(path: Path, size: int) -> Map | None:
    if size > MAX_FILE_BYTES:
        raise yamltree.Malformed(f"the file has {size} bytes; the limit is {MAX_FILE_BYTES}")
    root = yamltree.parse(path.read_bytes())
    if root is None or is_null(root):
        return None
    if not isinstance(root, Map):
        raise yamltree.Malformed("expected workflows, each a name and a mapping", root.line, root.column)
    return root

"""Workflow files: YAML → workflows and sources, and every problem as `file:line:column: text`.

    files ─ yamltree.parse ─ values ─ grammar.Reading ─ Project            load: once
                                                          └ Definitions   again when a file has changed

`load` never raises for what a file holds. A problem takes out of service only what it is in: a workflow,
a source, or all of a file that does not parse. What breaks in a change keeps its last good version: of a
file what it held, of a workflow or a source itself.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from director import schemas, signing, yamltree
from director.errors import DefinitionError, InvalidPayload, NotFound
from director.grammar import BUILT_IN_SOURCE, File, Reading
from director.models import Problem, Project, Source, Workflow
from director.scope import is_null
from director.yamltree import Map, did_you_mean, quote

MAX_FILE_BYTES = 1 << 20
BUILT_IN = Source(name=BUILT_IN_SOURCE, scheme="standard", secrets=("DIRECTOR_WEBHOOK_SECRET",))
"""The source of one's own programs: its bodies name the workflow to start, or the run to relaunch."""
Stamp = tuple[tuple[str, int, int], ...]
Tasks = Mapping[str, str] | None
"""Registered task → module file; None when `tasks/` was not imported: names are not checked."""


def load(home: Path, *, tasks: Tasks = None) -> Project:
    """Return what `workflows/**/*.yml`, `*.yaml` and `workflows.yml` say, and all that is wrong in them."""
    return Definitions(home, {}, tasks).project


class Definitions:
    """The project in service: one refresher, many readers.

    `environ` is where sources find their secrets. `tasks` may be set later: the next `refresh` reads the files
    again.
    """

    def __init__(self, home: Path, environ: Mapping[str, str] = {}, tasks: Tasks = None) -> None:
        self.home, self.environ, self.tasks = home, environ, tasks
        self._lock = threading.Lock()
        self._seen: tuple[Stamp, Tasks] | None = None
        self._trees: dict[str, Map] = {}
        self._reading: Reading | None = None
        self.project = Project(workflows={}, sources={}, problems=(), broken={})
        """Swapped as a whole, never changed; readers need no lock."""
        self.refresh()

    def refresh(self) -> bool:
        """Read the files again if one has changed; return whether one had. Costs one `stat` a file otherwise."""
        with self._lock:
            # Taken before reading: a change meanwhile shows as a difference the next time.
            seen = _stamp(self.home), self.tasks
            if seen == self._seen:
                return False
            files = [_read(self.home, path, size, self._trees) for path, _, size in _files(self.home)]
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
        if name in project.workflows:
            return project.workflows[name]
        if problems := project.broken.get(name):
            raise DefinitionError(f"Workflow {name} has problems and cannot be started.", [*map(str, problems)])
        hint = did_you_mean(name, project.workflows)
        raise NotFound(f"No workflow is named {quote(name)}." + (f" {hint[0].upper()}{hint[1:]}" if hint else ""))

    def source(self, name: str) -> Source:
        """Return a source, the built-in one too. Raises NotFound."""
        if name == BUILT_IN.name or name in self.project.sources:
            return self.project.sources.get(name, BUILT_IN)
        hint = (
            did_you_mean(name, self.project.sources) or f"there are: {', '.join(self.project.sources) or 'none'}."
        )
        raise NotFound(f"No source is named {quote(name)}; {hint}")

    def known_sources(self) -> list[Source]:
        """Return the sources of the files, and the built-in one once its secret is set."""
        return [*self.project.sources.values(), *([BUILT_IN] if self.is_open(BUILT_IN) else [])]

    def values(self, variables: Sequence[str]) -> list[str]:
        """Return what variables hold, "" for each that is not set."""
        return [self.environ.get(variable, "").strip() for variable in variables]

    def secrets(self, source: Source) -> list[str]:
        """Return a source's secrets, "" for each that is not set."""
        return self.values(source.secrets)

    def is_open(self, source: Source) -> bool:
        """Return whether one of a source's secrets is set; else it refuses everything."""
        return any(self.secrets(source))

    def source_problems(self) -> list[Problem]:
        """Return what is wrong with the secrets of sources: none is set, or one can never match."""
        found = []
        for source in self.known_sources():
            scheme = signing.scheme(source.scheme)
            texts = [
                f"{variable} {wrong}"
                for variable, secret in zip(source.secrets, self.secrets(source), strict=True)
                if secret and (wrong := signing.secret_problem(scheme, secret))
            ]
            if not self.is_open(source):
                texts.append(f"is closed: set {' or '.join(source.secrets)} in the environment or .env")
            if source.verify_tokens and not any(self.values(source.verify_tokens)):
                wanted = " or ".join(source.verify_tokens)
                texts.append(f"answers no hub.challenge: set {wanted} in the environment or .env")
            for said in texts:
                text = f"source {quote(source.name)} {said}"
                file = source.file or "environment"
                found.append(Problem(file=file, line=source.line, column=source.column, text=text))
        return found


def check_payload(workflow: Workflow, payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload with the workflow's defaults under it (top-level keys), checked by its schema.

    Raises:
        InvalidPayload: the schema refuses it; at most 20 paths.
    """
    merged = {**workflow.payload, **payload}
    paths = [] if workflow.schema is None else schemas.refusals(workflow.schema, merged)
    if paths:
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        raise InvalidPayload(f"The schema of {workflow.name} refuses the payload: {paths[0]}{more}", paths)
    return merged


def _stamp(home: Path) -> Stamp:
    """Return what changes when a file does; schemas count, because workflows hold them."""
    return (*_files(home), *_stat(home, _walk(home, "schemas", (".json",))))


def _files(home: Path) -> Stamp:
    return _stat(home, ["workflows.yaml", "workflows.yml", *_walk(home, "workflows", (".yml", ".yaml"))])


def _walk(home: Path, folder: str, endings: tuple[str, ...]) -> Iterator[str]:
    """Yield files, subfolders too, but no hidden ones: editors and ConfigMaps keep copies there."""
    for path, folders, names in os.walk(home / folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(path).relative_to(home).as_posix()
        yield from (f"{inside}/{name}" for name in names if name.endswith(endings) and name[0] != ".")


def _unreadable(exc: OSError) -> None:
    """Let a folder that cannot be read be no empty one: what was in it stays in service."""
    if not isinstance(exc, FileNotFoundError | NotADirectoryError):
        raise exc


def _stat(home: Path, paths: list[str] | Iterator[str]) -> Stamp:
    """Return path, time and size of regular files; a pipe would never end, and what is gone is gone."""
    found = []
    for path in sorted(paths):
        try:
            status = (home / path).stat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((path, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _read(home: Path, path: str, size: int, trees: Mapping[str, Map]) -> File:
    """Parse a file; one that does not parse any more stands as in `trees`."""
    shown = path.encode("utf-8", "replace").decode()
    try:
        if size > MAX_FILE_BYTES:
            raise yamltree.Malformed(f"the file has {size} bytes; the limit is {MAX_FILE_BYTES}")
        root = yamltree.parse((home / path).read_bytes())
        if root is None or is_null(root):
            return File(shown, None)
        if not isinstance(root, Map):
            raise yamltree.Malformed("expected workflows, each a name and a mapping", root.line, root.column)
        return File(shown, root)
    except OSError as exc:
        problem = Problem(file=shown, line=1, column=1, text=f"cannot be read: {exc.strerror}")
    except yamltree.Malformed as exc:
        problem = Problem(file=shown, line=exc.line, column=exc.column, text=exc.text)
    return File(shown, trees.get(shown), problem)

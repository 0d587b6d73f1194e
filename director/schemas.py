"""JSON Schemas of payloads: jsonschema's one home, imported when the first schema is met (80 ms).

References are looked up inside the schema and among the published drafts, never on the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
MAX_PATHS = 20
MAX_PATH_LENGTH = 300
_KEPT = 256

# By identity, because a dict has no hash; the schema is kept too, so that its id stays its own.
_validators: dict[int, tuple[Mapping[str, Any], Any]] = {}


def read(home: Path, path: str) -> tuple[dict[str, Any] | None, str | None]:
    """Return a schema, or what is wrong with its file; `path` is relative to `home`."""
    file = home / path
    try:
        if file.exists() and (not file.is_file() or file.stat().st_size > MAX_BYTES):
            return None, f"{path} is no file of at most {MAX_BYTES} bytes"
        schema = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None, f"{path} does not exist"
    except OSError as exc:
        return None, f"{path} cannot be read: {exc.strerror}"
    except json.JSONDecodeError as exc:
        return None, f"{path}:{exc.lineno}:{exc.colno}: not JSON: {exc.msg}"
    except (ValueError, RecursionError):
        return None, f"{path} is not JSON"
    if not isinstance(schema, dict):
        return None, f"{path} must hold an object"
    return (None, f"{path}: {wrong}") if (wrong := problem(schema)) else (schema, None)


def problem(schema: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a schema, None when it can be used."""
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema.get("$schema", ""), str):
        return '"$schema" must be a text'
    try:
        _validator(schema).check_schema(schema)
        return next(_dangling(schema), None)
    except SchemaError as exc:
        return _line(exc)
    except Exception as exc:  # noqa: BLE001 - whatever third-party code makes of any JSON, it is the schema's fault
        return f"cannot be used ({type(exc).__name__})"


def refusals(schema: Mapping[str, Any], payload: Any) -> list[str]:
    """Return why a payload is refused, one line a place as `$.order.id: 'x' is not of type 'integer'`.

    At most 20 lines, by place; none means that the payload is valid.
    """
    try:
        return sorted(_line(error) for error in islice(_validator(schema).iter_errors(payload), MAX_PATHS))
    except RecursionError:
        return ["$: nested too deep for the schema, or the schema refers to itself without end"]
    except Exception as exc:  # noqa: BLE001 - as above: an unresolvable reference, a pattern that is none, …
        return [f"$: the schema cannot be applied ({exc or type(exc).__name__})"[:MAX_PATH_LENGTH]]


def _validator(schema: Mapping[str, Any]) -> Any:
    kept = _validators.get(id(schema))
    if kept is not None and kept[0] is schema:
        return kept[1]
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    # An explicit registry, because the default one fetches what it does not know.
    validator = validator_for(schema, default=Draft202012Validator)(schema, registry=REGISTRY)
    if len(_validators) >= _KEPT:
        _validators.clear()
    _validators[id(schema)] = schema, validator
    return validator


def _dangling(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield a text for each reference that leads nowhere."""
    from jsonschema_specifications import REGISTRY
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    root: Any = Resource.from_contents(schema, default_specification=DRAFT202012)
    base = root.id() or ""
    waiting = [(root, REGISTRY.with_resource(base, root).resolver(base))]
    while waiting:
        resource, resolver = waiting.pop()
        contents = resource.contents if isinstance(resource.contents, Mapping) else {}
        for reference in filter(None, (contents.get("$ref"), contents.get("$dynamicRef"))):
            try:
                resolver.lookup(reference)
            except (Unresolvable, ValueError):
                yield f'$ref {reference[:200]!r} is not in it; nothing is fetched, put it under "$defs"'
        waiting.extend((sub, resolver.in_subresource(sub)) for sub in resource.subresources())


def _line(error: Any) -> str:
    text = f"{error.json_path}: {error.message}"
    return text if len(text) <= MAX_PATH_LENGTH else text[: MAX_PATH_LENGTH - 1] + "…"

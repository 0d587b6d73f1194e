"""What a body says: JSON, or a form. Pure; of bounded depth: it is also searched, checked and encoded again."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import msgspec

MAX_DEPTH = 128
MAX_FIELDS = 1000
FORM = "application/x-www-form-urlencoded"
_decode = msgspec.json.Decoder().decode


def decode(content_type: str, body: bytes) -> Any:
    """Return a delivery's value: JSON, or a form with JSON in `payload` or else plain fields.

    Raises:
        ValueError: the body is not what its type says, or nested deeper than MAX_DEPTH; a sentence.
    """
    if content_type.partition(";")[0].strip().lower() == FORM:
        try:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
        except ValueError as exc:
            raise ValueError(f"The body is not a form of at most {MAX_FIELDS} fields: {exc}.") from None
        if body.lstrip()[:1] in (b"{", b"["):
            raise ValueError("The body looks like JSON; send it with Content-Type: application/json.")
        fields = dict(pairs)
        if "payload" not in fields:
            return fields
        body = fields["payload"].encode()
    return decode_json(body)


def decode_json(body: bytes) -> Any:
    """Return a JSON value; raise ValueError as `decode` does."""
    try:
        value = _decode(body)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as exc:
        raise ValueError(f"The body is not valid JSON: {exc}.") from None
    # A body with few brackets is not deep; counting them costs next to nothing.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        level = [value] if isinstance(value, dict | list) else []
        for _ in range(MAX_DEPTH):
            members = (one.values() if isinstance(one, dict) else one for one in level)
            level = [inner for several in members for inner in several if isinstance(inner, dict | list)]
        if level:
            raise _too_deep()
    return value


def _too_deep() -> ValueError:
    return ValueError(f"The body is nested deeper than {MAX_DEPTH} levels.")

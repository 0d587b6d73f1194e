"""Request bodies: read within bounds of size and time, decoded within bounds of depth.

The server below has no deadline for a body, and a decoder's own depth is the interpreter's: what is
decoded here must also survive being encoded again, searched and checked by a schema.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from director.settings import MAX_PAYLOAD_BYTES
from director.web.problems import Refusal

DEADLINE_S = 30.0
MAX_DEPTH = 128
MAX_FIELDS = 1000

Headers = Iterable[tuple[bytes, bytes]]
_decode = msgspec.json.Decoder().decode
_CLOSE = {"Connection": "close"}
"""Without it the server would go on reading, to throw away, whatever the sender still sends."""


async def read(headers: Headers, receive: Any) -> bytes:
    """Return the body as it was sent.

    Raises:
        Refusal: 413 over MAX_PAYLOAD_BYTES (nothing more is read), 408 after DEADLINE_S, 415 when it is
            encoded, 400 when the sender goes away.
    """
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > MAX_PAYLOAD_BYTES:
            raise _too_large()
        if name == b"content-encoding" and value.lower() != b"identity":
            raise Refusal(415, "Send the body without Content-Encoding.", headers=_CLOSE)
    parts, size, more = [], 0, True
    loop = asyncio.get_running_loop()
    task: asyncio.Task[Any] = asyncio.current_task(loop)  # type: ignore[assignment]  # never outside of one
    # By hand: asyncio.timeout costs 15 µs of a webhook's 200.
    late: list[bool] = []
    timer = loop.call_later(DEADLINE_S, lambda: late.append(task.cancel()))
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "The body ended early.")
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > MAX_PAYLOAD_BYTES:
                raise _too_large()
    except asyncio.CancelledError:
        if not late:
            raise  # somebody else's
        task.uncancel()
        raise Refusal(408, f"The body did not arrive within {DEADLINE_S:g} s.", headers=_CLOSE) from None
    finally:
        timer.cancel()
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large() -> Refusal:
    return Refusal(413, f"The body is over the limit of {MAX_PAYLOAD_BYTES} bytes.", headers=_CLOSE)


def decode(headers: Headers, body: bytes) -> Any:
    """Return a delivery's value: JSON, or a form with JSON in `payload` or else plain fields.

    Raises:
        Refusal: 400 when the body is not what its type says, or nested deeper than MAX_DEPTH.
    """
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    if kind.partition(b";")[0].strip().lower() == b"application/x-www-form-urlencoded":
        try:
            limits = {"max_num_fields": MAX_FIELDS, "errors": "strict"}
            fields = dict(parse_qsl(body.decode(), keep_blank_values=True, **limits))  # type: ignore[arg-type]
        except ValueError as exc:
            raise Refusal(400, f"The body is not a form of at most {MAX_FIELDS} fields: {exc}.") from None
        if body.lstrip()[:1] in (b"{", b"["):
            raise Refusal(400, "The body looks like JSON; send it with Content-Type: application/json.")
        if "payload" not in fields:
            return fields
        body = fields["payload"].encode()
    return decode_json(body)


def decode_json(body: bytes) -> Any:
    """Return a JSON value of bounded depth; raise a Refusal of status 400 otherwise."""
    try:
        value = _decode(body)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as exc:
        raise Refusal(400, f"The body is not valid JSON: {exc}.") from None
    # A body with few brackets is not deep; counting them costs next to nothing.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        level = [value] if isinstance(value, dict | list) else []
        for _ in range(MAX_DEPTH):
            members = (one.values() if isinstance(one, dict) else one for one in level)
            level = [inner for several in members for inner in several if isinstance(inner, dict | list)]
        if level:
            raise _too_deep()
    return value


def _too_deep() -> Refusal:
    return Refusal(400, f"The body is nested deeper than {MAX_DEPTH} levels.")

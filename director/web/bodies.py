"""Request bodies: read within bounds of size and time, for which the server below has no deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from director import documents
from director.settings import MAX_PAYLOAD_BYTES
from director.web.problems import Refusal

DEADLINE_S = 30.0
MAX_HELD_BYTES = 64 << 20
"""Of all bodies that have not arrived whole: a thousand slow senders must not fill the memory."""

Headers = Iterable[tuple[bytes, bytes]]
_CLOSE = {"Connection": "close"}
"""Without it the server would go on reading, to throw away, whatever the sender still sends."""


class _Held:
    """Bytes of bodies that are underway."""

    size = 0


async def read(headers: Headers, receive: Any) -> bytes:
    """Return the body as it was sent.

    Raises:
        Refusal: 413 over MAX_PAYLOAD_BYTES (nothing more is read), 408 after DEADLINE_S, 415 when it is
            encoded, 400 when the sender goes away, 503 when too much of others is underway.
    """
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > MAX_PAYLOAD_BYTES:
            raise _too_large()
        if name == b"content-encoding" and value.lower() != b"identity":
            raise Refusal(415, "Send the body without Content-Encoding.", headers=_CLOSE)
    parts, size, held, more = [], 0, 0, True
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
            if more:
                _Held.size, held = _Held.size - held + size, size
                if _Held.size > MAX_HELD_BYTES:
                    busy = {"Retry-After": "1", **_CLOSE}
                    raise Refusal(503, "Too many bodies are underway; send it again.", headers=busy)
    except asyncio.CancelledError:
        if not late:
            raise  # somebody else's
        task.uncancel()
        raise Refusal(408, f"The body did not arrive within {DEADLINE_S:g} s.", headers=_CLOSE) from None
    finally:
        timer.cancel()
        _Held.size -= held
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large() -> Refusal:
    return Refusal(413, f"The body is over the limit of {MAX_PAYLOAD_BYTES} bytes.", headers=_CLOSE)


def decode(headers: Headers, body: bytes) -> Any:
    """Return a delivery's value, as `documents.decode`; raise a Refusal of status 400 otherwise."""
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    try:
        return documents.decode(kind.decode("latin-1"), body)
    except ValueError as exc:
        raise Refusal(400, str(exc)) from None


def decode_json(body: bytes) -> Any:
    """Return a JSON value, as `documents.decode_json`; raise a Refusal of status 400 otherwise."""
    try:
        return documents.decode_json(body)
    except ValueError as exc:
        raise Refusal(400, str(exc)) from None

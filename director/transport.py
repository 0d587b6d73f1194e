"""kombu's Redis transport, but bytes in a queue that are no message end nothing."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis, virtual

from director import log

logger = log.get("director.worker")


class Message(virtual.Message):
    """Kombu's. Raises ValueError for whatever it cannot be made of."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)  # type: ignore[no-untyped-call]  # kombu has no types
            delivery = self.delivery_info["exchange"], self.delivery_info["routing_key"], self.delivery_tag
        except Exception as exc:
            raise ValueError(f"{type(exc).__name__}: {exc}") from exc
        if not all(isinstance(part, str) for part in delivery):
            raise ValueError("exchange, routing_key and delivery_tag have to be texts")


class Channel(redis.Channel):
    """Reads messages; what cannot be read has left its list by then, so that dropping it is enough."""

    Message = Message

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]  # kombu has no types
        except (ValueError, RecursionError) as exc:
            logger.warning("message.dropped", reason=f"it is no message: {exc}"[:200])
            return True


class Transport(redis.Transport):
    """Stands where kombu's own does."""

    Channel = Channel

"""What remembers runs: one contract (`base`), two stores (`redis`, `tiny`)."""

from __future__ import annotations

from collections.abc import Callable

from director.settings import Settings
from director.store.base import Store


def open_store(settings: Settings, *, clock: Callable[[], int] | None = None, timeout_s: float = 5.0) -> Store:
    """Return the store that the settings name. Redis is first spoken to by the first call.

    Args:
        settings: `redis_url` decides.
        clock: milliseconds since 1970, for tests.
        timeout_s: how long one call to Redis may take.

    Raises:
        SettingsError: TinyDB's folder cannot be created or written.
    """
    if settings.redis_url is None:
        from director.store.tiny import TinyStore

        return TinyStore(settings.data_dir, max_lost=settings.max_lost, clock=clock)
    from director.store.redis import RedisStore

    return RedisStore(
        settings.redis_url,
        settings.prefix,
        max_lost=settings.max_lost,
        broker_is_store=settings.broker_is_store,
        timeout_s=timeout_s,
        clock=clock,
    )

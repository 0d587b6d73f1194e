"""What handlers share: one object per web process, kept in the application's state."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from director.definitions import Definitions
from director.engine import Engine
from director.settings import Settings
from director.store.base import Store
from director.web.calls import Calls


class Service:
    """Settings, definitions, engine and the store thread of a web process."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.definitions = Definitions(settings.home, settings.environ)
        self.calls = Calls(store, link=store.link())
        self.engine = Engine(store)
        self.on_death: Callable[[BaseException], None] = _end_process
        """What a dead scheduler thread calls."""


def _end_process(_: BaseException) -> None:
    """Let the server end as it does when it is told to; the platform starts a new one."""
    os.kill(os.getpid(), signal.SIGTERM)

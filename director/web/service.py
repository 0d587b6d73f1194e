"""What handlers share: one object per web process, kept in the application's state."""

from __future__ import annotations

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
        self.calls = Calls(store)
        self.engine = Engine(store)

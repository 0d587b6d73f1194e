"""The loop: one pass a second over what may be stuck. Any number of processes may run it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from director import log
from director.engine import report
from director.errors import DirectorError
from director.settings import Settings
from director.store.base import SWEEP_LIMIT, Store

PASS_S = 1.0

logger = log.get("director.scheduler")


class Loop:
    """Sweeps the store, in a thread or in the foreground.

    Args:
        settings: nothing of them yet but the log.
        store: a client of its own, or one that many threads may use.
        on_death: called when the thread ends by an error.
    """

    def __init__(
        self, settings: Settings, store: Store, on_death: Callable[[BaseException], None] | None = None
    ) -> None:
        self.settings = settings
        self.store = store
        self.failed: BaseException | None = None
        self._on_death = on_death
        self._stop = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._guarded, name="scheduler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End after the pass that is underway."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(PASS_S * 5)

    def run_forever(self) -> None:
        """Make passes until `stop`; a store that is away is waited for."""
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            # A full pass may have left more of the same.
            wait_s = 0.0 if self.step() else PASS_S

    def step(self) -> bool:
        """Make one pass; return whether another should follow at once."""
        try:
            swept = report(self.store.do(self.store.sweep()), "its lease ended")
        except DirectorError as exc:
            if not self._away:
                logger.warning("scheduler.store_away", reason=str(exc))
            self._away = True
            return False
        if self._away:
            logger.info("scheduler.store_back")
            self._away = False
        return any(len(part) >= SWEEP_LIMIT for part in (swept.lost, swept.failed, swept.released, swept.resent))

    def _guarded(self) -> None:
        try:
            self.run_forever()
        except BaseException as exc:
            self.failed = exc
            logger.exception("scheduler.died")
            if self._on_death:
                self._on_death(exc)

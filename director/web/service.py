"""What handlers share: one object per web process, injected as `service`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from director.definitions import Definitions
from director.engine import Engine
from director.errors import DirectorError, StoreUnavailable
from director.loop import Loop, Pass
from director.models import Problem, Workflow
from director.settings import Settings
from director.store import open_store
from director.store.base import Store
from director.store.shapes import Described, Started

T = TypeVar("T")
BACKLOG = 4000
LONG_CHECK_BYTES = 16_384


class Service:
    """Settings, definitions and engine, and the way to the store: its own asyncio link, else a few threads."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.definitions = Definitions(settings.home, settings.environ)
        self.engine = Engine()
        self.task_problems: tuple[Problem, ...] = ()
        """What is wrong in `tasks/`, once this process has imported it: only the embedded one does."""
        self.on_death: Callable[[BaseException], None] = _end_process
        """What a dead scheduler thread calls."""
        self._link = store.link()
        self._threads = ThreadPoolExecutor(1 if settings.embedded else 8, "store")
        self._waiting = 0
        self._ticker: Loop | None = None
        self._ticking = asyncio.Lock()

    async def do(self, call: Described[T]) -> T:
        """Make one call; return its answer or raise its error: StoreUnavailable when too many wait, too."""
        if self._link is not None:
            answer: T = await self._link.submit(call)
            if isinstance(answer, DirectorError):
                raise answer
            return answer
        if self._waiting >= BACKLOG:
            raise StoreUnavailable(f"{self._waiting} calls wait for the store already; ask again later.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self.store.do, call)
        finally:
            self._waiting -= 1

    async def play(self, steps: Generator[Described[Any], Any, T], *, in_thread: bool = False) -> T:
        """As `Store.play`, not waiting in the loop's thread; `in_thread`: to make the first call up takes long."""
        try:
            call = await asyncio.to_thread(next, steps) if in_thread else next(steps)
            while True:
                try:
                    answer = await self.do(call)
                except DirectorError as exc:
                    call = steps.throw(exc)
                else:
                    call = steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def informed(self) -> Engine:
        """Return the engine, with what workers have published lately."""
        if self.engine.is_stale:
            self.engine.learn(await self.do(self.store.task_options()))
        return self.engine

    async def start(self, workflow: Workflow, payload: Mapping[str, Any], size: int, **more: Any) -> Started:
        """Start a run; see `Engine.start`. `size`: of the body that the payload came in."""
        engine = await self.informed()
        if workflow.schema is not None and size > LONG_CHECK_BYTES:
            # A schema can take a second over a large payload, and others wait.
            new = await asyncio.to_thread(engine.start, workflow, payload, **more)
        else:
            new = engine.start(workflow, payload, **more)
        return await self.do(self.store.start(new))

    async def tick(self) -> Pass:
        """Make one pass of the scheduler's loop in a thread; one at a time."""
        async with self._ticking:
            if self._ticker is None:
                store = self.store if self.settings.embedded else open_store(self.settings)
                self._ticker = Loop(self.settings, store, self.definitions)
            return await asyncio.to_thread(self._ticker.make_pass)

    def close(self) -> None:
        """Answer what waits; later calls get StoreUnavailable."""
        if self._link is not None:
            self._link.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.store.close()


def _end_process(_: BaseException) -> None:
    """Let the server end as it does when it is told to; the platform starts a new one."""
    os.kill(os.getpid(), signal.SIGTERM)

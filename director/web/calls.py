"""The web process's one store thread.

Handlers hand it descriptions of store calls and await the answers. It takes all that wait, makes them as
one exchange and answers each: under load many requests share one round trip, and there is one sync client.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any, TypeVar

from director.errors import DirectorError, StoreUnavailable
from director.store.base import Described, Steps, Store

T = TypeVar("T")
BATCH = 256
BACKLOG = 10_000

_Waiting = tuple[Described[Any], "asyncio.Future[Any]"]


class Calls:
    """Makes store calls for coroutines of one event loop."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; the loop that runs now gets the answers."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then end the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(5)

    async def do(self, call: Described[T]) -> T:
        """Make one call; return its answer or raise its error."""
        answer: T = await self._submit(call)
        if isinstance(answer, DirectorError):
            raise answer
        return answer

    async def run(self, steps: Steps[T]) -> T:
        """Make the calls of a flow one after the other; return the flow's result."""
        try:
            call = next(steps)
            while True:
                answer = await self._submit(call)
                call = steps.throw(answer) if isinstance(answer, DirectorError) else steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _submit(self, call: Described[Any]) -> asyncio.Future[Any]:
        if self._queue.qsize() > BACKLOG:
            raise StoreUnavailable(f"More than {BACKLOG} calls wait for the store; ask again.")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put((call, future))
        return future

    def _run(self) -> None:
        more = True
        while more:
            batch: list[_Waiting] = []
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                if len(batch) == BATCH:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            more = item is not None
            if batch:
                self._loop.call_soon_threadsafe(_answer, batch, self._execute([call for call, _ in batch]))

    def _execute(self, calls: list[Described[Any]]) -> list[Any]:
        try:
            return self.store.execute(calls)
        except DirectorError as exc:
            return [exc] * len(calls)
        except Exception as exc:  # noqa: BLE001 - a bug in one description must not end the thread
            return [_Broken(exc)] * len(calls)


class _Broken:
    """An error of ours, raised where the answer is awaited."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _answer(batch: list[_Waiting], answers: list[Any]) -> None:
    for (_, future), answer in zip(batch, answers, strict=True):
        if future.cancelled():
            continue
        if isinstance(answer, _Broken):
            future.set_exception(answer.error)
        else:
            future.set_result(answer)

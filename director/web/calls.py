"""How handlers call the store: on the store's own asyncio link, else through one thread.

The thread is for stores that block. Handlers hand it descriptions of calls and await the answers. It takes
all that wait, makes them as one exchange and answers each: many requests share one round trip.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any, TypeVar

from director.errors import DirectorError, StoreUnavailable
from director.store.base import Described, Link, Steps, Store

T = TypeVar("T")
BATCH = 256
BACKLOG = 10_000

_Waiting = tuple[Described[Any], "asyncio.Future[Any]"]


class Calls:
    """Makes store calls for the coroutines of one event loop.

    Args:
        store: used by this object's thread; other threads may use it too where the store allows that.
        link: makes the calls on the loop itself, where the store has one; then there is no thread.
        backlog: calls that may wait; one more is refused with StoreUnavailable.
    """

    def __init__(self, store: Store, *, link: Link | None = None, backlog: int = BACKLOG) -> None:
        self.store = store
        self._backlog = backlog
        self._waiting: deque[_Waiting] = deque()
        # Held: nothing waits. The loop's thread lets it go, the store's thread takes it; a plain lock
        # is the cheapest way for one thread to wake another.
        self._idle = threading.Lock()
        self._idle.acquire()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._link = link

    def start(self) -> None:
        """Start the thread; the loop that runs now gets the answers."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Answer what waits, then end the thread; later calls get StoreUnavailable."""
        self._stopped = True
        if self._link is not None:
            self._link.close()
        if self._thread is not None:
            self._wake()
            await asyncio.to_thread(self._thread.join, 5)

    async def do(self, call: Described[T]) -> T:
        """Make one call; return its answer or raise its error.

        Raises:
            StoreUnavailable: the store did not answer, or too many calls wait for it.
        """
        answer: T = await self._submit(call)
        if isinstance(answer, DirectorError):
            raise answer
        return answer

    async def run(self, steps: Steps[T]) -> T:
        """Make the calls of a flow one after the other; return the flow's result.

        Raises:
            StoreUnavailable: as in `do`.
        """
        try:
            call = next(steps)
            while True:
                answer = await self._submit(call)
                call = steps.throw(answer) if isinstance(answer, DirectorError) else steps.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _submit(self, call: Described[Any]) -> asyncio.Future[Any]:
        if self._stopped:
            raise StoreUnavailable("The service is stopping; ask again.")
        if self._link is not None:
            return self._link.submit(call)
        if len(self._waiting) >= self._backlog:
            raise StoreUnavailable(f"{self._backlog} calls wait for the store already; ask again later.")
        if self._thread is None:
            self.start()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((call, future))
        self._wake()
        return future

    def _wake(self) -> None:
        # Only the loop's thread lets the lock go, so nobody does between these two.
        if self._idle.locked():
            self._idle.release()

    def _run(self) -> None:
        waiting = self._waiting
        while not self._stopped or waiting:
            if not waiting:
                self._idle.acquire()
            batch = [waiting.popleft() for _ in range(min(len(waiting), BATCH))]
            if batch and not self._tell(batch, self._execute([call for call, _ in batch])):
                return

    def _execute(self, calls: list[Described[Any]]) -> list[Any]:
        try:
            return self.store.execute(calls)
        except StoreUnavailable as exc:
            # Whatever came in meanwhile would wait for the same timeout, one batch after the other.
            late = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if late:
                self._tell(late, [exc] * len(late))
            return [exc] * len(calls)
        except DirectorError as exc:
            return [exc] * len(calls)
        except Exception as exc:  # noqa: BLE001 - a bug in one description must neither end the thread
            if len(calls) == 1:
                return [_Broken(exc)]
            # … nor fail its neighbours: every call may be made twice.
            return [answer for call in calls for answer in self._execute([call])]

    def _tell(self, batch: list[_Waiting], answers: list[Any]) -> bool:
        try:
            self._loop.call_soon_threadsafe(_answer, batch, answers)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return False
        return True


class _Broken:
    """An error of ours, raised where the answer is awaited."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _answer(batch: list[_Waiting], answers: list[Any]) -> None:
    for (_, future), answer in zip(batch, answers, strict=True):
        if future.done():  # its request was canceled
            continue
        if isinstance(answer, _Broken):
            future.set_exception(answer.error)
        else:
            future.set_result(answer)

"""The store thread of the web process."""

from __future__ import annotations

import asyncio
import threading

import pytest

from director.errors import NotFound, StoreUnavailable
from director.store.base import Described
from director.web.calls import Calls


class Call(Described):
    """Answers with its number; negative ones fail."""

    def __init__(self, number):
        self.number = number


class Slow:
    """A store that is held up until it is let go, and remembers its exchanges."""

    def __init__(self):
        self.go = threading.Event()
        self.away = False
        self.exchanges = []

    def execute(self, calls):
        self.exchanges.append([call.number for call in calls])
        self.go.wait(5)
        if self.away:
            raise StoreUnavailable("away")
        if any(call.number < -1 for call in calls):
            raise ZeroDivisionError
        return [NotFound("no") if call.number == -1 else call.number for call in calls]


def run(scenario):
    """Run a scenario with a slow store and its calls."""

    async def main():
        store = Slow()
        calls = Calls(store, backlog=20)
        calls.start()
        try:
            await asyncio.wait_for(scenario(store, calls), 10)
        finally:
            store.go.set()
            await calls.stop()

    asyncio.run(main())


async def waiting(store, calls, count, first=0):
    """Return tasks of which the first is being executed and all others wait."""
    tasks = [asyncio.ensure_future(calls.do(Call(first + n))) for n in range(count)]
    while not store.exchanges:
        await asyncio.sleep(0.001)
    return tasks


def test_all_that_waits_goes_in_one_exchange():
    async def scenario(store, calls):
        tasks = await waiting(store, calls, 10)
        store.go.set()
        assert await asyncio.gather(*tasks) == list(range(10))
        assert [n for exchange in store.exchanges for n in exchange] == list(range(10))
        assert len(store.exchanges) <= 3

    run(scenario)


def test_an_error_of_one_call_is_its_own():
    async def scenario(store, calls):
        store.go.set()
        good, bad = await asyncio.gather(calls.do(Call(1)), calls.do(Call(-1)), return_exceptions=True)
        assert good == 1
        assert isinstance(bad, NotFound)

    run(scenario)


def test_a_bug_in_one_call_neither_fails_its_neighbours_nor_ends_the_thread():
    async def scenario(store, calls):
        first = await waiting(store, calls, 1)
        more = [asyncio.ensure_future(calls.do(Call(n))) for n in (1, -2, 3)]
        await asyncio.sleep(0)
        store.go.set()
        found = await asyncio.gather(*first, *more, return_exceptions=True)
        assert [found[0], found[1], found[3]] == [0, 1, 3]
        assert isinstance(found[2], ZeroDivisionError)
        assert await calls.do(Call(4)) == 4

    run(scenario)


def test_a_store_that_is_away_is_told_to_all_that_wait_at_once():
    async def scenario(store, calls):
        tasks = await waiting(store, calls, 10)
        store.away = True
        store.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(exc, StoreUnavailable) for exc in found)
        assert len(store.exchanges) <= 2
        store.away = False
        assert await calls.do(Call(7)) == 7

    run(scenario)


def test_the_backlog_is_bounded():
    async def scenario(store, calls):
        tasks = await waiting(store, calls, 1)
        tasks += [asyncio.ensure_future(calls.do(Call(n))) for n in range(20)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable):
            await calls.do(Call(99))
        store.go.set()
        await asyncio.gather(*tasks)

    run(scenario)


def test_a_canceled_request_does_not_disturb_the_others():
    async def scenario(store, calls):
        tasks = await waiting(store, calls, 3)
        tasks[0].cancel()
        tasks[2].cancel()
        store.go.set()
        assert await tasks[1] == 1

    run(scenario)


def test_a_flow_gets_answers_and_errors():
    def steps():
        first = yield Call(1)
        try:
            yield Call(-1)
        except NotFound:
            return first + (yield Call(2))

    async def scenario(store, calls):
        store.go.set()
        assert await calls.run(steps()) == 3

    run(scenario)


def test_after_the_end_calls_are_refused():
    async def scenario(store, calls):
        store.go.set()
        assert await calls.do(Call(1)) == 1
        await calls.stop()
        with pytest.raises(StoreUnavailable):
            await calls.do(Call(2))

    run(scenario)


def test_many_at_once_are_all_answered():
    """Given eight thousand calls from many tasks, then none is lost between sleeping and waking."""

    async def scenario(store, calls):
        store.go.set()
        calls._backlog = 10_000

        async def worker(base):
            for n in range(200):
                assert await calls.do(Call(base + n)) == base + n

        await asyncio.gather(*(worker(1000 * n) for n in range(40)))

    run(scenario)

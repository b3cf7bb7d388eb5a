"""Every order of a ``map`` over pumps: a consumer on its loop, and threads of a pool that take items and bring results.

The code is the real one; only the pool is replaced by two threads and a queue of jobs, since the threads of a scenario
are declared by it. Proved: every item gives its result, once; a consumer that waits is woken; a failure and a
cancellation end the pumps, and whoever waits for that is told; nothing is called after the end.
"""

import asyncio
import contextvars
import itertools
import queue
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
from tests.helpers import equal, explore_for_longer
from tests.tasks.maps import Log

from polyloop._core._pool import Job, ThreadPool
from polyloop._core._port import Port
from polyloop.tasks import MapResults, _map_stream
from polyloop.tasks._map_board import Board
from polyloop.tasks._map_pumps import PumpLane
from polyloop.tasks._map_stream import Stream
from polyloop.testing import Interleaving, explore

#: Schedules in a test that is run all the time; the stress test runs on.
SCHEDULES = 200

CONTEXT = contextvars.Context()


@pytest.fixture(autouse=True)
def little_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless source whose consumer is slow to look is taken from a few times, not hundreds: orders have an end."""
    monkeypatch.setattr(_map_stream, "MAX_AHEAD", 4)


class Pool:
    """Two threads that run jobs until they are told to end."""

    def __init__(self, it: Interleaving, threads: int = 2, *, crowded: bool = False) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._backlog = (None,) if crowded else ()  # whether somebody else waits for a thread, all the time
        self._threads = threads
        for number in range(threads):
            it.thread(self._serve, name=f"pool {number}")

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.execute()
            job.announce()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    submit_last = submit

    def withdraw(self, job: Job) -> bool:
        return False

    def end(self) -> None:
        for _ in range(self._threads):
            self._jobs.put(None)


def make(
    pool: Pool, fn: Callable[[int], Any], items: Iterable[int], *, limit: int = 2, ordered: bool = True
) -> tuple[MapResults[Any], PumpLane]:
    lane = PumpLane(fn, CONTEXT, limit, None, cast("ThreadPool", pool))
    return MapResults(Stream(iter(items), lane, limit, CONTEXT, ordered, False, None)), lane


def double(item: int) -> int:
    return 2 * item


def all_results(it: Interleaving, *, ordered: bool, crowded: bool = False) -> None:
    pool = Pool(it, crowded=crowded)
    results, lane = make(pool, double, range(3), ordered=ordered)

    async def consume() -> None:
        seen = [result async for result in results]
        assert (seen if ordered else sorted(seen)) == [0, 2, 4]
        assert lane.idle()
        pool.end()

    it.coroutine(consume)


def one_pump(it: Interleaving) -> None:
    """The pump rests and is given out again for each item that comes late."""
    pool = Pool(it, 1)
    results, _ = make(pool, double, range(4), limit=1)

    async def consume() -> None:
        assert [result async for result in results] == [0, 2, 4, 6]
        pool.end()

    it.coroutine(consume)


def a_failure(it: Interleaving) -> None:
    pool = Pool(it)
    log = Log()

    def fail(item: int) -> int:
        log.begin(item)
        try:
            if item == 1:
                raise ValueError(item)
            return item
        finally:
            log.end(item)

    results, lane = make(pool, fail, itertools.count())

    async def consume() -> None:
        seen: list[int] = []
        try:
            async for result in results:
                seen.append(result)  # noqa: PERF401 - up to the failure
        except ValueError:
            assert seen == [0]
        assert lane.idle()
        assert len(log.begun) == len(log.ended)
        begun.append(len(log.begun))
        pool.end()

    begun: list[int] = []
    it.coroutine(consume)
    it.check(lambda: equal(begun, [len(log.begun)]))


def a_cancellation(it: Interleaving) -> None:
    """Of the consumer, by another thread, at any moment."""
    pool = Pool(it)
    log = Log()

    def call(item: int) -> int:
        log.begin(item)
        log.end(item)
        return item

    results, lane = make(pool, call, range(2))
    started: queue.SimpleQueue[None] = queue.SimpleQueue()
    begun: list[int] = []

    async def consume() -> None:
        started.put(None)
        try:
            async for _ in results:
                pass
        finally:
            assert lane.idle()
            assert len(log.begun) == len(log.ended)
            begun.append(len(log.begun))
            pool.end()

    consumer = it.coroutine(consume)

    def cancel() -> None:
        started.get()
        consumer.cancel()

    it.thread(cancel)
    it.check(lambda: equal(begun, [len(log.begun)]))


def dropped(it: Interleaving) -> None:
    """The iterator is dropped after the first result, while calls run; a task of its loop waits for them."""
    pool = Pool(it)
    log = Log()
    begun: list[int] = []

    def call(item: int) -> int:
        log.begin(item)
        log.end(item)
        return item

    async def consume() -> None:
        results, lane = make(pool, call, itertools.count(), limit=2)
        assert await anext(results) == 0
        del results
        while len(asyncio.all_tasks()) == 1:  # until the message to this loop has been read
            await asyncio.sleep(0)
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
        assert lane.idle()
        assert len(log.begun) == len(log.ended)
        begun.append(len(log.begun))
        pool.end()

    it.coroutine(consume)
    it.check(lambda: equal(begun, [len(log.begun)]))


class Nobody:
    """A lane that runs nothing and rests never, so that nothing but a result wakes the consumer."""

    ahead = 1
    board: Board

    def start(self, home: Port, board: Board) -> None:
        self.board = board

    def feed(self) -> None: ...

    def starved(self) -> bool:
        return False

    crowded = starved

    def idle(self) -> bool:
        return True

    def cancel(self, *, abandoned: bool) -> None: ...

    def cancel_soon(self) -> None: ...

    def forget(self) -> None: ...


def two_results(it: Interleaving) -> None:
    """Brought by two threads, in either order, to a consumer that wants one after the other."""
    lane = Nobody()
    begun: queue.SimpleQueue[None] = queue.SimpleQueue()
    results: MapResults[int] = MapResults(Stream(iter(range(2)), lane, 2, CONTEXT, True, False, None))

    async def consume() -> None:
        first = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0)
        begun.put(None)
        begun.put(None)
        assert [await first, await anext(results)] == [0, 1]

    def bring(number: int) -> None:
        begun.get()
        lane.board.bring((number, number, None))

    it.coroutine(consume)
    it.thread(bring, 0)
    it.thread(bring, 1)


SCENARIOS: dict[str, Callable[[Interleaving], None]] = {
    "ordered": lambda it: all_results(it, ordered=True),
    "unordered": lambda it: all_results(it, ordered=False),
    "one pump": one_pump,
    "on a full pool": lambda it: all_results(it, ordered=True, crowded=True),
    "a failure": a_failure,
    "a cancellation": a_cancellation,
    "dropped": dropped,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_order_ends_well(name: str) -> None:
    """Few preemptions in all orders, more of them in many."""
    assert explore(SCENARIOS[name], preemptions=1, schedules=SCHEDULES).schedules > 1
    assert explore(SCENARIOS[name], preemptions=3, seed=1, schedules=SCHEDULES).schedules == SCHEDULES


@pytest.mark.slow
def test_a_result_that_is_wanted_wakes_the_consumer_in_every_order() -> None:
    """All of them with one preemption: nothing else would wake it."""
    assert explore(two_results, preemptions=1).exhaustive


@pytest.mark.stress
def test_every_order_ends_well_for_longer(seed: int, seconds: float) -> None:
    """Two preemptions in all orders as far as time allows, and many at random."""
    explore_for_longer(SCENARIOS, seed, seconds)

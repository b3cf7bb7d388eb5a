"""Deadlines across loops: ``asyncio.timeout`` around a block ends what the block has started, wherever it runs."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.tasks.maps import Calls, as_async, as_sync
from tests.tasks.worlds import RUNS, Event

import polyloop
from polyloop.testing import FakeClock, TestLoop

type Run = Callable[[Any], Any]

NEVER = ("never",)


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a main coroutine: with tasks on another loop, on this one, and without a runtime."""
    return RUNS[request.param]


async def in_group(calls: Calls) -> None:
    async with polyloop.TaskGroup() as tg:
        tg.create_task(as_async(calls)("a"))
        tg.create_task(as_async(calls)("b"))


async def in_group_on_threads(calls: Calls) -> None:
    async with polyloop.TaskGroup() as tg:
        tg.start_thread(as_sync(calls), "a")
        tg.start_thread(as_sync(calls), "b")


async def in_limited_group(calls: Calls) -> None:
    async with polyloop.TaskGroup(limit=2) as tg:
        for item in ("a", "b", "never begun"):
            tg.create_task(as_async(calls)(item))


async def in_gather(calls: Calls) -> None:
    await polyloop.gather(as_async(calls)("a"), as_async(calls)("b"))


async def in_gather_of_threads(calls: Calls) -> None:
    await polyloop.gather(*(polyloop.to_thread(as_sync(calls), item) for item in ("a", "b")))


async def in_map(calls: Calls) -> None:
    async for _ in polyloop.map(as_async(calls), ["a", "b"]):
        pass


async def in_map_on_threads(calls: Calls) -> None:
    async for _ in polyloop.map(as_sync(calls), ["a", "b"], limit=2):
        pass


async def in_race(calls: Calls) -> None:
    await polyloop.race(as_async(calls)("a"), as_async(calls)("b"))


async def in_thread_in_task(calls: Calls) -> None:
    """A sync function that waits for async ones: the deadline goes through all of it."""

    def sync() -> None:
        polyloop.from_thread.run(in_group, calls)

    await polyloop.to_thread(sync)


BLOCKS: list[Callable[[Calls], Coroutine[Any, Any, None]]] = [
    in_group,
    in_group_on_threads,
    in_limited_group,
    in_gather,
    in_gather_of_threads,
    in_map,
    in_map_on_threads,
    in_race,
    in_thread_in_task,
]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_a_timeout_around_a_block_ends_its_children(run: Run, block: Callable[[Calls], Any]) -> None:
    """On other loops and in threads; when ``TimeoutError`` is raised they have ended (``gather``: have been told)."""
    calls = Calls("a", "b")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                arm = asyncio.create_task(at_the_start(deadline))
                await block(calls)
        await arm
        while len(calls.ended) < 2:  # gather does not wait for its children, as on asyncio
            assert "gather" in block.__name__
            await asyncio.sleep(0)

    async def at_the_start(deadline: asyncio.Timeout) -> None:
        await calls.all_started()
        deadline.reschedule(asyncio.get_running_loop().time())

    run(main())
    assert sorted(calls.cancelled) == [("a", "CancelledError"), ("b", "CancelledError")]
    assert sorted(calls.begun) == ["a", "b"]


def test_time_spent_on_another_loop_counts() -> None:
    """The deadline passes while everything that is under way is elsewhere: here nothing happens at all."""
    clock = FakeClock()
    with TestLoop("here", clock=clock) as here, TestLoop("there", clock=clock) as there:
        ended: list[str] = []

        async def sleep_there() -> None:
            try:
                await asyncio.sleep(100)
            finally:
                ended.append("there")

        async def block() -> None:
            async with asyncio.timeout(10):
                await there.spawn(sleep_there)

        handle = here.spawn(block)
        polyloop.testing.wait_all_blocked(here, there)
        clock.advance(9.9)
        assert not handle.done()
        clock.advance(0.2)
        with pytest.raises(TimeoutError):
            handle.result(30)
        assert ended == ["there"]


def test_a_deadline_means_the_same_on_every_loop() -> None:
    """``loop.time()`` is one clock: a deadline taken on one loop can be handed to a task on another."""

    async def until(when: float) -> str:
        try:
            async with asyncio.timeout_at(when):
                await asyncio.sleep(3600)
        except TimeoutError:
            return "in time"
        return "never"

    async def now() -> float:
        return asyncio.get_running_loop().time()

    async def main() -> None:
        here, there = polyloop.current_runtime().workers
        before = await polyloop.spawn(now, on=here)
        between = await polyloop.spawn(now, on=there)
        after = await polyloop.spawn(now, on=here)
        assert before <= between <= after
        assert await polyloop.spawn(until, after, on=there) == "in time"

    polyloop.run(main(), loops=2)


def test_an_inner_deadline_does_not_end_the_outer_block(run: Run) -> None:
    """A child whose own time is over is one that has raised ``TimeoutError``."""
    never = Event()

    async def child() -> str:
        try:
            async with asyncio.timeout(0):
                await never.wait()
        except TimeoutError:
            return "late"
        return "in time"

    async def main() -> None:
        async with asyncio.timeout(30):
            assert await polyloop.gather(child(), child()) == ["late", "late"]
            assert [result async for result in polyloop.map(lambda _: child(), [])] == []

    run(main())

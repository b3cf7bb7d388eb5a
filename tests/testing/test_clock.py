"""``FakeClock``: time goes on when the test says so, and timers see the time they asked for."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from polyloop.testing import FakeClock, TestLoop


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def loop(clock: FakeClock) -> Iterator[TestLoop]:
    with TestLoop(clock=clock) as made:
        yield made


async def tick(seen: list[tuple[str, float]], name: str, every: float, times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(every)
        seen.append((name, asyncio.get_running_loop().time()))


def test_time_stands_still(clock: FakeClock, loop: TestLoop) -> None:
    """Until it is moved; real time does not matter."""
    handle = loop.spawn(asyncio.sleep, 0.0001)
    loop.wait_all_blocked()
    assert not handle.done()
    assert loop.run(loop.loop.time) == clock.now == 0.0
    clock.advance(0.0001)
    assert handle.done()


def test_an_hour_takes_no_time(clock: FakeClock, loop: TestLoop) -> None:
    """Nothing sleeps for real."""
    handle = loop.spawn(asyncio.sleep, 3600, "done")
    began = time.monotonic()
    clock.advance(3599.9)
    assert not handle.done()
    clock.advance(0.1)
    assert handle.result() == "done"
    assert time.monotonic() - began < 60


def test_timers_run_in_their_order_over_all_loops(clock: FakeClock) -> None:
    """Each sees its own time, and what it starts counts from there."""
    seen: list[tuple[str, float]] = []
    with TestLoop("a", clock=clock) as a, TestLoop("b", clock=clock) as b:
        a.spawn(tick, seen, "a", 1.0, 4)
        b.spawn(tick, seen, "b", 1.5, 2)
        clock.advance(10)
    assert sorted(seen, key=lambda item: item[1]) == seen
    assert seen == [("a", 1.0), ("b", 1.5), ("a", 2.0), *sorted([("a", 3.0), ("b", 3.0)], key=seen.index), ("a", 4.0)]
    assert clock.now == 10


def test_timeouts_follow_the_clock(clock: FakeClock, loop: TestLoop) -> None:
    """``asyncio.timeout`` and ``wait_for``."""

    async def limited(seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return "timeout"
        raise AssertionError

    async def waiting(seconds: float) -> str:
        try:
            await asyncio.wait_for(asyncio.get_running_loop().create_future(), seconds)
        except TimeoutError:
            return "timeout"
        raise AssertionError

    handles = [loop.spawn(limited, 5.0), loop.spawn(waiting, 7.0)]
    clock.advance(5)
    assert [handle.done() for handle in handles] == [True, False]
    clock.advance(2)
    assert [handle.result() for handle in handles] == ["timeout", "timeout"]


def test_a_cancelled_timer_does_not_run(clock: FakeClock, loop: TestLoop) -> None:
    """As with real time."""
    seen: list[int] = []

    def schedule() -> asyncio.TimerHandle:
        return loop.loop.call_later(5, seen.append, 1)

    timer = loop.run(schedule)
    loop.run(timer.cancel)
    clock.advance(10)
    assert seen == []


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_time_goes_forward_only(clock: FakeClock, seconds: float) -> None:
    """And by a finite step."""
    with pytest.raises(ValueError, match="time goes forward only"):
        clock.advance(seconds)


def test_a_clock_may_begin_anywhere() -> None:
    """For code that reads a date out of it."""
    clock = FakeClock(1000.0)
    with TestLoop(clock=clock) as loop:
        assert loop.run(loop.loop.time) == 1000.0
        clock.advance(1)
        assert repr(clock) == "<FakeClock now=1001.0>"


def test_closing_a_loop_on_a_clock_cancels_its_sleepers(clock: FakeClock) -> None:
    """They do not wake up because time is real again."""
    with TestLoop(clock=clock) as loop:
        handle = loop.spawn(asyncio.sleep, 1.0)
        loop.wait_all_blocked()
    assert handle.cancelled()
    clock.advance(5)  # without a loop, only the number moves
    assert clock.now == 5

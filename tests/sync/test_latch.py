"""``Latch``: counted down from anywhere, open for good."""

import asyncio
from typing import Any

import pytest
import trio
from tests.helpers import in_trio, park_on_a_dead_loop, until

from polyloop import BlockingCallError
from polyloop.sync import Latch
from polyloop.testing import Interleaving, TestLoop, TestThread, explore


def waiting(latch: Latch) -> int:
    return len(latch._open._line)


def test_it_opens_at_zero_for_all_and_for_good(left: TestLoop, right: TestLoop) -> None:
    """Tasks of two loops and of trio, and threads."""
    latch = Latch(3)
    pending: list[Any] = [
        left.spawn(latch.wait),
        in_trio(latch.wait),
        TestThread(latch.sync.wait),
    ]
    until(lambda: waiting(latch) == 3)
    assert repr(latch).endswith("[closed, count:3, waiters:3]>")
    left.run(latch.count_down)
    latch.sync.count_down()
    assert (latch.count, latch.sync.count) == (1, 1)
    pending.append(right.spawn(latch.arrive_and_wait))
    assert [one.result() for one in pending] == [True] * 4
    assert latch.sync.wait(0)
    assert latch.sync.arrive_and_wait()
    latch.count_down(5)
    assert latch.count == 0
    assert repr(latch).endswith("[open]>")
    assert repr(latch.sync) == f"<sync face of {latch!r}>"


def test_a_count_of_nothing_is_open() -> None:
    """And a negative one is refused, as is counting down by nothing."""
    assert Latch(0).sync.wait()
    with pytest.raises(ValueError, match="count must be at least 0"):
        Latch(-1)
    latch = Latch(2)
    with pytest.raises(ValueError, match="n must be one or more"):
        latch.count_down(0)
    latch.count_down(3)
    assert latch.sync.wait(0)


def test_who_gives_up_has_counted_down_all_the_same(left: TestLoop) -> None:
    """Out of time, or cancelled by asyncio or trio."""
    latch = Latch(4)

    async def on_trio() -> None:
        with trio.move_on_after(0.001):
            await latch.arrive_and_wait()

    assert not latch.sync.arrive_and_wait(0.001)
    in_trio(on_trio).result()
    doomed = left.spawn(latch.arrive_and_wait)
    left.wait_all_blocked()
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        doomed.result()
    assert not latch.sync.wait(0)
    assert (latch.count, waiting(latch)) == (1, 0)
    latch.count_down()
    assert latch.sync.wait()


def test_a_waiter_of_a_dead_loop_holds_nobody_up() -> None:
    """The others go on."""
    latch = Latch(1)
    parked = park_on_a_dead_loop(latch.wait)
    thread = TestThread(latch.sync.wait)
    until(lambda: waiting(latch) == 2)
    latch.count_down()
    assert thread.result()
    parked.close()


def test_a_loop_is_not_blocked(left: TestLoop) -> None:
    """Unless nobody is missing; a refusal has not counted down."""
    latch = Latch(2)

    async def on_a_loop() -> None:
        with pytest.raises(BlockingCallError, match=r"'left'; use 'await latch.wait\(\)'"):
            latch.sync.wait()
        with pytest.raises(BlockingCallError, match=r"use 'await latch.arrive_and_wait\(\)'"):
            latch.sync.arrive_and_wait()
        assert latch.count == 2
        latch.sync.count_down()
        assert latch.sync.arrive_and_wait()
        assert latch.sync.wait()

    left.run(on_a_loop)


def test_it_opens_in_any_order() -> None:
    """Two count down while two wait."""

    def scenario(it: Interleaving) -> None:
        latch = Latch(2)

        def thread() -> None:
            assert latch.sync.arrive_and_wait()

        it.coroutine(latch.wait)
        it.thread(thread)
        it.thread(latch.count_down)
        it.check(lambda: None)

    explore(scenario, preemptions=1, schedules=500)

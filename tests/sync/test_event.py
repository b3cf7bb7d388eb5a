"""``Event`` between loops, trio and threads."""

import asyncio
import math
import time
from typing import Any

import pytest
import trio
from tests.helpers import cancel_amid, in_trio, park_on_a_dead_loop, until

from polyloop import BlockingCallError, Event
from polyloop.testing import Interleaving, TestLoop, TestThread, explore


def waiting(event: Event) -> int:
    return len(event._line)


def test_set_wakes_all_wherever_they_wait(left: TestLoop, right: TestLoop) -> None:
    """Tasks of two loops and of trio, and threads; also if it is cleared at once."""
    event = Event()
    for clear in (False, True):
        pending: list[Any] = [
            left.spawn(event.wait),
            right.spawn(event.wait),
            in_trio(event.wait),
            TestThread(event.sync.wait),
            TestThread(event.sync.wait, 30),
        ]
        until(lambda: waiting(event) == 5)
        assert repr(event).endswith("[unset, waiters:5]>")
        event.set()
        if clear:
            event.clear()
        assert [one.result() for one in pending] == [True] * 5
        assert event.is_set() != clear
        event.clear()
        assert waiting(event) == 0


def test_a_set_event_is_not_waited_for(left: TestLoop) -> None:
    """On a loop, the face for threads does not refuse then."""
    event = Event()
    event.sync.set()
    assert (event.is_set(), event.sync.is_set()) == (True, True)
    assert repr(event).endswith("[set]>")
    assert repr(event.sync) == f"<sync face of {event!r}>"

    async def on_a_loop() -> bool:
        return event.sync.wait() and await event.wait()

    assert left.run(on_a_loop)
    event.set()
    event.sync.clear()
    assert not event.is_set()


def test_a_loop_is_not_blocked(left: TestLoop) -> None:
    """An unset event is refused, and the message names the awaitable twin."""
    event = Event()

    async def on_a_loop() -> bool:
        return event.sync.wait(1)

    with pytest.raises(BlockingCallError, match=r"'left'; use 'await event.wait\(\)'"):
        left.run(on_a_loop)
    with pytest.raises(BlockingCallError):
        in_trio(on_a_loop).result()
    assert waiting(event) == 0


def test_a_wait_of_a_thread_can_be_limited() -> None:
    """As ``threading``'s: below 0 and 0 do not wait at all."""
    event = Event()
    began = time.monotonic()
    assert not event.sync.wait(0.02)
    assert time.monotonic() - began >= 0.02
    assert not event.sync.wait(0)
    assert not event.sync.wait(-1)
    with pytest.raises(OverflowError):
        event.sync.wait(1e30)
    with pytest.raises(ValueError, match="nan"):
        event.sync.wait(math.nan)
    assert waiting(event) == 0


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_a_cancelled_waiter_holds_nobody_up(left: TestLoop, right: TestLoop, cancelled_first: bool) -> None:
    """Whether it was woken before that or not."""
    event = Event()
    doomed = left.spawn(event.wait)
    left.wait_all_blocked()
    other = right.spawn(event.wait)
    right.wait_all_blocked()
    cancel_amid(left, doomed, event.set, cancelled_first)
    assert other.result()
    assert waiting(event) == 0


def test_who_gives_up_is_forgotten() -> None:
    """Cancelled by asyncio or by trio, or closed."""
    event = Event()

    async def on_trio() -> None:
        with trio.move_on_after(0.001):
            await event.wait()

    async def on_asyncio() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await event.wait()
        parked = event.wait()
        parked.send(None)
        assert waiting(event) == 1
        parked.close()

    in_trio(on_trio).result()
    asyncio.run(on_asyncio())
    assert waiting(event) == 0


def test_a_waiter_of_a_dead_loop_is_skipped() -> None:
    """All others are woken."""
    event = Event()
    parked = park_on_a_dead_loop(event.wait)
    thread = TestThread(event.sync.wait)
    until(lambda: waiting(event) == 2)
    event.set()
    assert thread.result()
    parked.close()
    assert waiting(event) == 0


def test_no_set_is_missed_in_any_order() -> None:
    """A task and a thread begin to wait while the event is set, and cleared after that by one who has seen it."""

    def scenario(it: Interleaving) -> None:
        event = Event()

        def thread() -> None:
            assert event.sync.wait()

        it.coroutine(event.wait)
        it.thread(thread)
        it.thread(event.set)

        def check() -> None:
            assert waiting(event) == 0

        it.check(check)

    assert explore(scenario, preemptions=1).exhaustive
    explore(scenario, seed=7, schedules=100)


def test_set_and_clear_wake_those_who_wait_in_any_order() -> None:
    """Whoever waited before ``set`` goes on, though ``clear`` follows before it has run."""

    def scenario(it: Interleaving) -> None:
        event, late = Event(), Event()

        def pulse() -> None:
            while not waiting(event):
                late.sync.wait(1)
            event.set()
            event.clear()

        it.coroutine(event.wait)
        it.thread(pulse)

    explore(scenario, preemptions=1, schedules=400)

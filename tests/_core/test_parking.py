"""One-shot waiters: a wake reaches a coroutine or a thread from anywhere."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from polyloop import BlockingCallError
from polyloop._core._parking import LoopWaiter, ThreadWaiter, refuse_on_loop_thread
from polyloop._core._waiting import Permits
from polyloop.testing import TestLoop, TestThread


def test_a_parked_thread_is_woken_by_another() -> None:
    """``park`` returns true when it was woken, at once if that was before."""
    waiter = ThreadWaiter()
    thread = TestThread(waiter.park)
    waiter.wake()
    assert thread.result() is True
    early = ThreadWaiter()
    early.wake()
    assert early.park(0) is True


def test_a_park_that_nobody_ends_times_out() -> None:
    """It returns false; on the main thread too, which parks in slices to hear signals."""
    waiter = ThreadWaiter()
    assert waiter.park(0.01) is False
    assert TestThread(lambda: waiter.park(0.01)).result() is False


async def park(waiters: list[LoopWaiter]) -> str:
    waiter = LoopWaiter()
    waiters.append(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        return "cancelled"
    return "woken"


def wake_here(left: TestLoop, right: TestLoop, waiter: LoopWaiter) -> None:
    left.run(waiter.wake)


def wake_on_another_loop(left: TestLoop, right: TestLoop, waiter: LoopWaiter) -> None:
    right.run(waiter.wake)


def wake_on_a_thread(left: TestLoop, right: TestLoop, waiter: LoopWaiter) -> None:
    waiter.wake()


@pytest.mark.parametrize("wake", [wake_here, wake_on_another_loop, wake_on_a_thread])
def test_a_parked_coroutine_is_woken_from_anywhere(
    left: TestLoop, right: TestLoop, wake: Callable[[TestLoop, TestLoop, LoopWaiter], None]
) -> None:
    """By its own loop, by another, and by a plain thread."""
    waiters: list[LoopWaiter] = []
    handle = left.spawn(park, waiters)
    left.wait_all_blocked()
    wake(left, right, waiters[0])
    assert handle.result() == "woken"


def test_a_park_cancelled_after_its_wake_raises_all_the_same(left: TestLoop) -> None:
    """The canceller cannot take the wake back, nor the waker the cancellation: the caller sees both."""
    waiters: list[LoopWaiter] = []
    handle = left.spawn(park, waiters)
    left.wait_all_blocked()
    with left.paused():  # both happen before the coroutine can run
        handle.cancel()
        assert waiters[0].wake() is True
    assert handle.result() == "cancelled"


@pytest.mark.parametrize("first", ["wake", "close"])
def test_what_is_handed_to_a_coroutine_of_a_dead_loop_is_passed_on_once(first: str) -> None:
    """The loop was closed under it: its waker goes on to the next, or it does so itself when it is closed, not both."""
    waiters: list[LoopWaiter] = []

    def abandon() -> None:
        loop = asyncio.new_event_loop()

        async def begin() -> None:
            coro = park(waiters)
            coro.send(None)  # parked for good
            abandoned.append(coro)

        loop.run_until_complete(begin())
        loop.close()

    abandoned: list[object] = []
    TestThread(abandon).result()
    (waiter,) = waiters
    if first == "wake":
        assert waiter.wake() is False  # so its waker goes on to the next
        assert waiter.forsaken() is True
    else:
        assert waiter.forsaken() is False  # so it passes on what it was woken for
        assert waiter.wake() is True


def closed_under(fn: Callable[[], Coroutine[Any, Any, object]], *, as_a_task: bool) -> Coroutine[Any, Any, object]:
    """Begin ``fn()`` on a worker that then ends; return the coroutine, parked for good.

    The calling thread gets the identity that the worker's had, as any thread may.
    """
    with TestLoop("closed") as loop:

        async def begin() -> Coroutine[Any, Any, object]:
            coro = fn()
            future: asyncio.Future[None] = coro.send(None)
            if as_a_task:
                future.add_done_callback(str)  # whoever resolves the future asks its loop to call this
            return coro

        coro = loop.run(begin)
    loop.worker.ident = threading.get_ident()
    return coro


@pytest.mark.parametrize("as_a_task", [True, False])
def test_a_permit_is_given_once_though_the_identity_of_a_dead_thread_is_used_again(
    left: TestLoop, as_a_task: bool
) -> None:
    """Whoever waited on the thread's loop is passed over, and passes nothing on."""
    permits = Permits(0)
    parked = closed_under(permits.wait, as_a_task=as_a_task)
    other = left.spawn(permits.wait)
    left.wait_all_blocked()
    permits.give()
    left.wait_all_blocked()
    assert other.done()
    parked.close()
    assert (permits.count, len(permits.line)) == (0, 0)


def test_a_wake_up_that_failed_halfway_is_not_passed_on_twice() -> None:
    """The future was resolved, and then its loop found closed: the waker goes on to the next."""
    waiters: list[LoopWaiter] = []
    parked = closed_under(partial(park, waiters), as_a_task=True)
    (waiter,) = waiters
    assert waiter() is False
    assert waiter.wake() is False
    assert waiter.forsaken() is True
    parked.close()


def test_a_waiter_that_was_woken_is_not_forsaken(left: TestLoop) -> None:
    """Its loop lives: a coroutine that is cancelled at that moment passes on what it was woken for."""

    async def main() -> None:
        waiter = LoopWaiter()
        assert waiter.wake() is True
        assert waiter.forsaken() is False
        assert not waiter._port.fates

    left.run(main)


def test_blocking_on_a_loop_is_refused_with_the_awaitable_twin(left: TestLoop) -> None:
    """The message names the call, the thread and what to write instead."""
    with pytest.raises(BlockingCallError, match=r"^lock\.acquire\(\) would block the event loop of thread 'left'; use"):
        left.run(refuse_on_loop_thread, "lock.acquire()", "await lock.acquire()")
    refuse_on_loop_thread("lock.acquire()", "await lock.acquire()")  # a plain thread may

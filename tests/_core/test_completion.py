"""A completion and those who wait for it, on real loops and threads."""

import asyncio
import threading
import traceback
from collections.abc import Callable

import pytest

from polyloop import BlockingCallError
from polyloop._core._completion import Completion, all_done
from polyloop.testing import Gate, TestLoop, TestThread, wait_all_blocked


async def wait_for[T](completion: Completion[T]) -> T:
    return await completion


def block_on[T](completion: Completion[T]) -> T:
    completion._block(30, "")
    return completion._outcome()


def test_loops_and_threads_wait_for_one_completion(loops: Callable[[int], list[TestLoop]]) -> None:
    """Ten waiters on two loops and two on threads all get the one result."""
    several = loops(2)
    completion = Completion[str]()
    handles = [loop.spawn(wait_for, completion) for loop in several for _ in range(5)]
    wait_all_blocked(*several)
    threads = [TestThread(block_on, completion) for _ in range(2)]
    completion._complete("it")
    assert [handle.result() for handle in handles] == ["it"] * 10
    assert [thread.result() for thread in threads] == ["it"] * 2
    assert completion.done()
    assert not completion.cancelled()


def test_a_result_that_is_there_is_returned_at_once(left: TestLoop) -> None:
    """Without a look at the loop, also on a thread that runs one."""
    completion = Completion[int]()
    completion._complete(3)
    assert left.run(wait_for, completion) == 3
    assert left.run(block_on, completion) == 3


def test_a_wait_that_times_out_leaves_nothing_behind() -> None:
    """The completion ends later as if nobody had waited, and can be waited for again."""
    completion = Completion[int]()
    with pytest.raises(TimeoutError, match=r"was not done after 0\.01 s"):
        completion._block(0.01, "")
    assert not completion._waiters
    completion._complete(1)
    assert block_on(completion) == 1


def test_a_completion_that_races_a_timeout_wakes_nobody_else(left: TestLoop) -> None:
    """A thread gives up at the moment of the end; a coroutine beside it still gets the result."""
    completion = Completion[int]()
    handle = left.spawn(wait_for, completion)
    left.wait_all_blocked()
    gate = Gate()

    def give_up() -> None:
        with pytest.raises(TimeoutError):
            completion._block(0, "")
        gate.pause()

    thread = TestThread(give_up)
    gate.reached()
    completion._complete(5)
    gate.open()
    thread.result()
    assert handle.result() == 5


def test_a_cancelled_wait_leaves_nothing_behind(left: TestLoop) -> None:
    """The coroutine is gone; the completion ends later, for others."""
    completion = Completion[int]()
    handle = left.spawn(wait_for, completion)
    left.wait_all_blocked()
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result()
    assert not completion._waiters
    completion._complete(1)
    assert left.run(wait_for, completion) == 1


def test_a_cancellation_at_the_moment_of_the_end_wins(left: TestLoop) -> None:
    """Both happen while the loop is held; the result stays with the completion."""
    completion = Completion[int]()
    handle = left.spawn(wait_for, completion)
    left.wait_all_blocked()
    with left.paused():
        handle.cancel()
        completion._complete(1)
    with pytest.raises(asyncio.CancelledError):
        handle.result()
    assert block_on(completion) == 1


def test_blocking_is_refused_on_a_loop(left: TestLoop) -> None:
    """At once, and without a waiter left behind."""
    completion = Completion[int]()
    with pytest.raises(BlockingCallError):
        left.run(block_on, completion)
    assert not completion._waiters


def failing() -> ValueError:
    try:
        raise ValueError("once")
    except ValueError as exc:
        return exc


def test_each_thread_raises_an_exception_object_of_its_own() -> None:
    """All look the same, with the traceback of the one failure; none is raised on two threads."""
    completion = Completion[int]()
    original = failing()
    completion._complete(None, original)
    barrier = threading.Barrier(8)

    def catch() -> ValueError:
        barrier.wait(30)
        try:
            block_on(completion)
        except ValueError as exc:
            return exc
        raise AssertionError("nothing was raised")

    threads = [TestThread(catch) for _ in range(8)]
    caught = [thread.result() for thread in threads]
    assert len({id(exc) for exc in caught}) == 8
    assert sum(exc is original for exc in caught) == 1
    for exc in caught:
        assert exc.args == ("once",)
        frames = [frame.name for frame in traceback.extract_tb(exc.__traceback__)]
        assert frames.count("failing") == 1
        assert frames.count("catch") == 1


def test_one_thread_sees_one_exception_object() -> None:
    """As with asyncio, asking twice gives the same object."""
    completion = Completion[int]()
    completion._complete(None, failing())
    assert completion._exception_for_me() is completion._exception_for_me() is completion._exception


def test_a_cancellation_is_an_outcome(left: TestLoop) -> None:
    """``CancelledError`` with its message, on a loop and on a thread."""
    completion = Completion[int]()
    completion._complete(None, asyncio.CancelledError("why"))
    assert completion.cancelled()
    with pytest.raises(asyncio.CancelledError, match="why"):
        block_on(completion)
    with pytest.raises(asyncio.CancelledError, match="why"):
        left.run(wait_for, completion)


def test_all_done_waits_for_all_however_they_end(left: TestLoop) -> None:
    """A result, an error and a cancellation; and none at all."""
    parts = [Completion[int]() for _ in range(3)]
    every = all_done(parts)
    handle = left.spawn(wait_for, every)
    parts[0]._complete(1)
    parts[1]._complete(None, ValueError())
    left.wait_all_blocked()
    assert not every.done()
    parts[2]._complete(None, asyncio.CancelledError())
    assert handle.result() is None
    assert all_done([]).done()


def test_waiters_are_woken_in_the_order_they_came(left: TestLoop) -> None:
    """First come, first woken."""
    completion = Completion[int]()
    order: list[int] = []

    async def wait(number: int) -> None:
        await completion
        order.append(number)

    handles = [left.spawn(wait, number) for number in range(10)]
    left.wait_all_blocked()
    completion._complete(1)
    for handle in handles:
        handle.result()
    assert order == list(range(10))

"""What the tests share: waits for another thread, other worlds than asyncio's, and all orders of something."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import pytest
import trio

from polyloop import TaskHandle
from polyloop.testing import Interleaving, TestLoop, TestThread, explore


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does next; it has nothing else to do."""
    turn = threading.Event()
    for _ in range(3000):
        if condition():
            return
        turn.wait(0.01)
    raise AssertionError("it never came to be")


def in_trio[*Ts, T](fn: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts) -> TestThread[T]:
    """Run ``fn(*args)`` by trio in a thread of its own."""
    return TestThread(trio.run, fn, *args, name="trio")


def in_all_worlds(
    left: TestLoop,
    right: TestLoop,
    calls: Sequence[Callable[[], Coroutine[Any, Any, object]]],
    by_thread: Callable[[], object],
) -> list[Any]:
    """Start one of three ``calls`` on each of two loops and in trio, and one in a plain thread; the handles."""
    on_left, on_right, by_trio = calls
    return [left.spawn(on_left), right.spawn(on_right), in_trio(by_trio), TestThread(by_thread)]


def queue_up(
    left: TestLoop,
    right: TestLoop,
    task: Callable[[int], Coroutine[Any, Any, object]],
    thread: Callable[[int], object],
    waiting: Callable[[], int],
    count: int = 8,
) -> list[Any]:
    """Start those who wait, one after the other: ``task(number)`` on two loops and in trio, ``thread(number)`` between.

    Args:
        waiting: How many wait; each begins when all before it do.
    Returns:
        Their handles, in that order.
    """
    starts: list[Callable[[int], Any]] = [
        lambda number: left.spawn(task, number),
        lambda number: TestThread(thread, number),
        lambda number: right.spawn(task, number),
        lambda number: in_trio(task, number),
    ]
    pending: list[Any] = []
    for number in range(count):
        pending.append(starts[number % 4](number))
        until(lambda: waiting() == len(pending))
    return pending


def cancel_amid(loop: TestLoop, doomed: TaskHandle[Any], act: Callable[[], object], cancelled_first: bool) -> None:
    """Do ``act``, which ends the wait of ``doomed``, and cancel it, both before it can run; it ends cancelled."""
    with loop.paused():
        if cancelled_first:
            doomed.cancel()
            act()
        else:
            act()
            doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        doomed.result(30)


def park_on_a_dead_loop(fn: Callable[[], Coroutine[Any, Any, object]]) -> Coroutine[Any, Any, object]:
    """Begin ``fn()`` on a loop that is then closed under it, in a thread that has ended.

    Returns:
        The coroutine, parked for good: keep it, since dropping it would end the wait.
    """

    def abandon() -> Coroutine[Any, Any, object]:
        loop = asyncio.new_event_loop()

        async def begin() -> Coroutine[Any, Any, object]:
            coro = fn()
            coro.send(None)
            return coro

        try:
            return loop.run_until_complete(begin())
        finally:
            loop.close()

    return TestThread(abandon).result()


def equal(left: object, right: object) -> None:
    """Assert that both are equal: for a lambda."""
    assert left == right


def one_of_three_is_cancelled[P](
    make: Callable[[], P],
    faces: Callable[[P], tuple[AbstractAsyncContextManager[object], AbstractContextManager[object]]],
    idle: Callable[[P], bool],
) -> Callable[[Interleaving], None]:
    """A scenario: two threads enter and leave, and so does a task, which is cancelled at any moment.

    Args:
        make: Makes what they enter.
        faces: Its faces for tasks and for threads.
        idle: Whether nobody is in and nobody waits, as it must be in the end.
    """

    def scenario(it: Interleaving) -> None:
        entered = make()
        for_tasks, for_threads = faces(entered)

        async def task() -> None:
            async with for_tasks:
                pass

        def thread() -> None:
            with for_threads:
                pass

        def check() -> None:
            assert idle(entered)

        it.thread(thread)
        doomed = it.coroutine(task)
        it.thread(doomed.cancel)
        it.thread(thread)
        it.check(check)

    return scenario


def explore_for_longer(scenarios: Mapping[str, Callable[[Interleaving], None]], seed: int, seconds: float) -> None:
    """Each with two preemptions, in all orders as far as the time allows, and then many at random."""
    time_limit = seconds / len(scenarios) / 2
    for name, scenario in scenarios.items():
        print(name, explore(scenario, preemptions=2, time_limit=time_limit))
        print(name, explore(scenario, seed=seed, schedules=1_000_000, time_limit=time_limit))

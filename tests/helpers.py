"""What the tests share: waits for another thread, other worlds than asyncio's, and all orders of something."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import trio

from polyloop.testing import Interleaving, TestThread, explore


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


def explore_for_longer(scenarios: Mapping[str, Callable[[Interleaving], None]], seed: int, seconds: float) -> None:
    """Each with two preemptions, in all orders as far as the time allows, and then many at random."""
    time_limit = seconds / len(scenarios) / 2
    for name, scenario in scenarios.items():
        print(name, explore(scenario, preemptions=2, time_limit=time_limit))
        print(name, explore(scenario, seed=seed, schedules=1_000_000, time_limit=time_limit))

"""Random races for what tasks and threads enter and leave."""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

import polyloop
from polyloop.testing import TestThread

#: For a test of a random race: a second of it, and, marked ``stress``, as much as POLYLOOP_STRESS_SECONDS says.
short_and_long = pytest.mark.parametrize(
    "seconds",
    [1.0, pytest.param(float(os.environ.get("POLYLOOP_STRESS_SECONDS", "60")), marks=pytest.mark.stress)],
    ids=["short", "long"],
)


def tiny(rng: random.Random) -> float | None:
    """A time to wait at most: none at all, too short to be sure of anything, or without end."""
    return rng.choice([0, 0.0002, 0.001, None])


class Room:
    """Counts who is inside, how many at most, and how many have come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the fields below
        self.inside = self.most = self.visits = 0

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.visits += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self.inside -= 1


def race(
    rng: random.Random,
    seconds: float,
    task: Callable[[random.Random], Coroutine[Any, Any, None]],
    threads: Sequence[Callable[[random.Random], None]],
    loops: int = 2,
) -> None:
    """Call ``task`` on some loops, and each of ``threads`` in a thread, again and again until the time is over.

    Args:
        task: Called by six tasks of each loop, each with random numbers of its own; may run out of time at any moment.
        threads: Called with random numbers of their own.
    """
    end = time.monotonic() + seconds

    async def again_on_loop(own: random.Random) -> None:
        while time.monotonic() < end:
            try:
                async with asyncio.timeout(tiny(own)):
                    await task(own)
            except TimeoutError:
                await asyncio.sleep(0)

    def again(thread: Callable[[random.Random], None], own: random.Random) -> None:
        while time.monotonic() < end:
            thread(own)

    def fork() -> random.Random:
        return random.Random(rng.getrandbits(32))

    with polyloop.Runtime(loops=loops, steal=False) as runtime:
        pending: list[Any] = [
            runtime.spawn(again_on_loop, fork(), on=worker) for worker in runtime.workers for _ in range(6)
        ]
        pending += [TestThread(again, thread, fork(), timeout=seconds + 600) for thread in threads]
        for one in pending:
            one.result()

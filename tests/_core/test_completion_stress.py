"""Random races of a completion with waiters on loops and threads, that wait, time out or are cancelled.

What it relies on and cannot prove by steps: that the operations of a list are atomic and ordered on this build and this
machine. A lost wake-up shows as a waiter that is never done.
"""

import asyncio
import random
import threading
import time
from collections import Counter

import pytest

from polyloop import TaskHandle
from polyloop._core._completion import Completion, all_done
from polyloop.testing import TestLoop, TestThread

PATIENCE = 20.0


async def wait_for(completion: Completion[int], delay: float | None) -> str:
    try:
        async with asyncio.timeout(delay):
            return "result" if await completion == 7 else "wrong"
    except TimeoutError:
        return "timeout"


def block_on(completion: Completion[int], start: threading.Barrier, limit: float) -> str:
    start.wait(PATIENCE)
    try:
        completion._block(limit, "")
    except TimeoutError:
        return "timeout"
    return "result" if completion._outcome() == 7 else "wrong"


def race(loops: list[TestLoop], rng: random.Random, seconds: float) -> Counter[str]:
    """One completion after the other, each with a handful of waiters that come and go while it ends."""
    outcomes: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        completion = Completion[int]()
        limits = [rng.choice((PATIENCE, PATIENCE, rng.random() * 0.0005)) for _ in range(3)]
        start = threading.Barrier(len(limits) + 1)
        threads = [TestThread(block_on, completion, start, limit) for limit in limits]
        delays = [rng.choice((None, None, rng.random() * 0.0005)) for _ in range(6)]
        handles = [rng.choice(loops).spawn(wait_for, completion, delay) for delay in delays]
        called: list[int] = []
        completion._add_waiter(lambda called=called: called.append(1))  # type: ignore[misc]
        every = all_done([completion, completion])
        start.wait(PATIENCE)
        doomed: TaskHandle[str] | None = rng.choice([None, *handles])
        if doomed is not None:
            doomed.cancel()
        for _ in range(rng.randrange(300)):
            pass
        completion._complete(7)
        outcomes.update(thread.result() for thread in threads)
        outcomes.update(outcome_of(handle) for handle in handles)
        assert called == [1], "a waiter was woken twice, or never"
        assert every.done()
        outcomes["rounds"] += 1
    return outcomes


def outcome_of(handle: TaskHandle[str]) -> str:
    try:
        return handle.result(PATIENCE)
    except asyncio.CancelledError:
        return "cancelled"


def check(outcomes: Counter[str]) -> None:
    rounds = outcomes.pop("rounds")
    assert rounds > 0
    assert outcomes["wrong"] == 0
    assert outcomes.total() == 9 * rounds
    assert outcomes["cancelled"] <= rounds


def test_every_waiter_is_woken_or_leaves(rng: random.Random, seconds: float) -> None:
    """A second of it, with waiters on two loops and three threads."""
    with TestLoop("left") as left, TestLoop("right", spin=True) as right:
        check(race([left, right], rng, seconds))


@pytest.mark.stress
def test_every_waiter_is_woken_or_leaves_for_long(rng: random.Random, seconds: float) -> None:
    """The same for as long as asked."""
    with TestLoop("left") as left, TestLoop("right", spin=True) as right:
        check(race([left, right], rng, seconds))


def raise_race(rng: random.Random, seconds: float) -> int:
    """One exception raised on many threads at once: each must have an object of its own, with the one traceback."""
    deadline = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < deadline:
        completion = Completion[int]()
        start = threading.Barrier(5)

        def catch(completion: Completion[int] = completion, start: threading.Barrier = start) -> list[int]:
            start.wait(PATIENCE)
            depths: list[int] = []
            for _ in range(20):
                try:
                    completion._block(PATIENCE, "")
                    completion._outcome()
                except ValueError as exc:
                    trace, depth = exc.__traceback__, 0
                    while trace is not None:
                        trace, depth = trace.tb_next, depth + 1
                    depths.append(depth)
            return depths

        threads = [TestThread(catch) for _ in range(4)]
        start.wait(PATIENCE)
        for _ in range(rng.randrange(300)):
            pass
        completion._complete(None, ValueError("one"))
        for thread in threads:
            assert len(thread.result()) == 20
        rounds += 1
    return rounds


def test_one_exception_is_raised_on_many_threads(rng: random.Random, seconds: float) -> None:
    """A second of it."""
    assert raise_race(rng, seconds) > 0


@pytest.mark.stress
def test_one_exception_is_raised_on_many_threads_for_long(rng: random.Random, seconds: float) -> None:
    """The same for as long as asked."""
    assert raise_race(rng, seconds) > 0

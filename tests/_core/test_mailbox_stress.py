"""Random races of posters with a loop that sleeps, spins and closes, on real threads; every item is counted.

What it relies on and cannot prove by steps: that the operations of a deque are atomic and ordered on this build and
this machine. A lost wake-up shows as a loop that sleeps on with items in its mailbox.
"""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from tests.conftest import FREE_THREADED, Flavour

from polyloop.testing import TestLoop, TestThread

POSTERS = 4


def race(loop: TestLoop, rng: random.Random, seconds: float) -> int:
    """Rounds of bursts from several threads, each followed by a moment in which the loop may fall asleep."""
    post = loop.worker.post
    deadline = time.monotonic() + seconds
    seen: Counter[int] = Counter()  # written by the loop only
    orders: list[list[int]] = [[] for _ in range(POSTERS)]  # likewise
    posted = 0
    while time.monotonic() < deadline:
        counts = [rng.choice((1, 1, 2, 3, 50)) for _ in range(POSTERS)]
        pauses = [rng.randrange(200) for _ in range(POSTERS)]
        arrived = threading.Semaphore(0)
        start = threading.Barrier(POSTERS)

        def take(poster: int, number: int, arrived: threading.Semaphore = arrived) -> None:
            seen[poster] += 1
            orders[poster].append(number)
            arrived.release()

        def work(
            poster: int,
            counts: list[int] = counts,
            pauses: list[int] = pauses,
            start: threading.Barrier = start,
            take: Callable[[int, int], None] = take,
        ) -> None:
            start.wait(30)
            for number in range(counts[poster]):
                for _ in range(pauses[poster]):
                    pass
                post(take, poster, number)

        threads = [TestThread(work, poster) for poster in range(POSTERS)]
        for count in range(sum(counts)):
            assert arrived.acquire(timeout=20), f"a wake-up was lost: {count} of {sum(counts)} arrived"
        for thread in threads:
            thread.result()
        posted += sum(counts)
        assert [orders[poster] for poster in range(POSTERS)] == [list(range(count)) for count in counts]
        for order in orders:
            order.clear()
    assert sum(seen.values()) == posted, "an item ran twice"
    return posted


@pytest.mark.parametrize("spin", [False, True], ids=["no spin", "spin"])
def test_every_item_arrives_once_and_in_order(rng: random.Random, seconds: float, spin: bool) -> None:
    """A second of it, on polyloop's own loop."""
    with TestLoop(spin=spin) as loop:
        assert race(loop, rng, seconds / 2) > 0


@pytest.mark.stress
@pytest.mark.parametrize("spin", [False, True], ids=["no spin", "spin"])
def test_every_item_arrives_once_and_in_order_for_long(rng: random.Random, seconds: float, spin: bool) -> None:
    """The same for as long as asked."""
    with TestLoop(spin=spin) as loop:
        assert race(loop, rng, seconds) > 0


@pytest.mark.stress
def test_every_item_arrives_on_foreign_loops(rng: random.Random, seconds: float, flavour: Flavour) -> None:
    """Through the fallback: one ``call_soon_threadsafe`` for a batch."""
    if flavour.name == "rloop" and FREE_THREADED:
        # Without polyloop too: of two threads that call it at once, one in some 100,000 does not wake it.
        pytest.skip("rloop 0.2 loses wake-ups without the GIL")
    with TestLoop(loop_factory=flavour.new) as loop:
        assert race(loop, rng, seconds) > 0


def ping_pong(left: TestLoop, right: TestLoop, seconds: float) -> int:
    """Two loops that wake each other: each hop races the other's falling asleep."""
    deadline = time.monotonic() + seconds
    hops = 0
    ended = threading.Event()

    def hop(here: TestLoop, there: TestLoop) -> None:
        nonlocal hops
        hops += 1
        if time.monotonic() > deadline:
            ended.set()
        else:
            there.worker.post(hop, there, here)

    left.worker.post(hop, left, right)
    before = -1
    while not ended.wait(5):
        assert hops != before, f"a wake-up was lost after {hops} hops"
        before = hops
    return hops


@pytest.mark.parametrize("spin", [False, True], ids=["no spin", "spin"])
def test_two_loops_wake_each_other(seconds: float, spin: bool) -> None:
    """Half a second of hops, each of which ends a sleep or a spin."""
    with TestLoop("left", spin=spin) as left, TestLoop("right", spin=spin) as right:
        assert ping_pong(left, right, seconds / 2) > 100


@pytest.mark.stress
@pytest.mark.parametrize("spin", [False, True], ids=["no spin", "spin"])
def test_two_loops_wake_each_other_for_long(seconds: float, spin: bool) -> None:
    """The same for as long as asked."""
    with TestLoop("left", spin=spin) as left, TestLoop("right", spin=spin) as right:
        assert ping_pong(left, right, seconds) > 100


def close_race(rng: random.Random, seconds: float) -> tuple[int, int]:
    """Tasks placed on a loop while it is being closed: each is run, cancelled or refused, and nobody waits for ever."""
    deadline = time.monotonic() + seconds
    ran = refused = 0

    async def work() -> None:
        await asyncio.sleep(0)

    while time.monotonic() < deadline:
        loop = TestLoop("closing")
        start = threading.Barrier(3)
        count = rng.randrange(1, 30)

        def place(
            loop: TestLoop = loop, start: threading.Barrier = start, count: int = count
        ) -> list[BaseException | None]:
            start.wait(30)
            handles = [loop.spawn(work) for _ in range(count)]
            outcomes: list[BaseException | None] = []
            for handle in handles:
                try:
                    outcomes.append(handle.exception(timeout=20))
                except asyncio.CancelledError as exc:
                    outcomes.append(exc)
            return outcomes

        threads = [TestThread(place) for _ in range(2)]
        start.wait(30)
        loop.close()
        for thread in threads:
            outcomes = thread.result()
            ran += outcomes.count(None)
            refused += len(outcomes) - outcomes.count(None)
    return ran, refused


def test_no_task_is_left_pending_by_a_close(rng: random.Random, seconds: float) -> None:
    """A second of loops that are closed while two threads place tasks on them."""
    assert sum(close_race(rng, seconds)) > 0


@pytest.mark.stress
def test_no_task_is_left_pending_by_a_close_for_long(rng: random.Random, seconds: float) -> None:
    """The same for as long as asked."""
    assert sum(close_race(rng, seconds)) > 0

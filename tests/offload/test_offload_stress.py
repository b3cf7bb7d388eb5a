"""Random offloaded calls, cancelled, abandoned and timed out at random: tokens and threads must add up."""

import asyncio
import random
import threading
import time

import pytest
from tests.helpers import until

import polyloop
from polyloop._core import _pool
from polyloop._core._pool import ThreadPool


class Race:
    """Tasks on three loops that make calls under one limiter, and give many of them up."""

    def __init__(self, rng: random.Random, seconds: float) -> None:
        self.limiter = polyloop.CapacityLimiter(3)
        self.rng = rng
        self.end = time.monotonic() + seconds
        self.lock = threading.Lock()
        self.inside = self.most = self.made = 0  # guarded by lock

    def work(self, seconds: float) -> float:
        with self.lock:
            self.inside += 1
            self.made += 1
            self.most = max(self.most, self.inside)
        if seconds:
            time.sleep(seconds)
        with self.lock:
            self.inside -= 1
        return seconds

    async def caller(self, seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self.end:
            seconds = rng.choice([0, 0, 0.0001, 0.001])
            try:
                async with asyncio.timeout(rng.choice([0, 0.0001, 0.0005, 0.002, None])):
                    result = await polyloop.to_thread(
                        self.work, seconds, limiter=self.limiter, on_cancel=rng.choice(("wait", "abandon"))
                    )
                    assert result == seconds
            except TimeoutError:
                await asyncio.sleep(0)

    def run(self) -> None:
        with polyloop.Runtime(loops=3, steal=False) as runtime:
            callers = [
                runtime.spawn(self.caller, self.rng.randrange(1 << 30), on=worker)
                for worker in runtime.workers
                for _ in range(8)
            ]
            for caller in callers:
                caller.result()


def check_race(rng: random.Random, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ThreadPool(max_threads=8, idle_timeout=0.002)  # threads retire all the time
    monkeypatch.setattr(_pool.shared, "pool", pool)
    race = Race(rng, seconds)
    race.run()
    until(lambda: not pool.threads)  # calls that were abandoned end on their own, and then their threads
    assert (pool.threads, pool.queued, race.limiter.borrowed_tokens, race.inside) == (0, 0, 0, 0)
    assert race.most <= 3
    assert race.made > 100


def test_tokens_and_threads_add_up_after_a_random_race(
    rng: random.Random, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One second of it."""
    check_race(rng, seconds, monkeypatch)


@pytest.mark.stress
def test_tokens_and_threads_add_up_after_a_long_random_race(
    rng: random.Random, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, for as long as POLYLOOP_STRESS_SECONDS says."""
    check_race(rng, seconds, monkeypatch)

"""Random sync code that is cancelled at random moments, by every policy: every item and every permit is counted."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable

import pytest
from tests.helpers import until

import polyloop
from polyloop import from_thread, queues, sync
from polyloop._core import _overdue, _pool
from polyloop._core._pool import ThreadPool
from polyloop._core._spin import spin_permits
from polyloop.offload._call import OnCancel

#: Where everything is counted. Interrupts have a race of their own, with functions that share nothing.
COUNTED: tuple[OnCancel, ...] = ("wait", "abandon")


RACES = pytest.mark.parametrize(
    "policies",
    [
        pytest.param(COUNTED, id="counted"),
        # An interrupt that arrives in a callback of a weak reference is reported by Python, and dropped.
        pytest.param(
            ("interrupt",),
            id="interrupted",
            marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
        ),
    ],
)


class Race:
    """Calls that move items and permits about, on two loops, and a canceller beside each."""

    def __init__(self, rng: random.Random, seconds: float, policies: tuple[OnCancel, ...]) -> None:
        self.rng = rng
        self.until = time.monotonic() + seconds
        self.policies = policies
        self.source, self.target = queues.Queue[int](), queues.Queue[int](8)
        self.permits = sync.Semaphore(2)
        self.lock = sync.Lock()
        self.condition = sync.Condition()
        self.numbers = itertools.count()  # next() is atomic
        self.ended = {"done": 0, "cancelled": 0}

    def move(self) -> None:
        """Take an item, and put it elsewhere, or back."""
        item = self.source.sync.get()
        try:
            self.target.sync.put(item)
        except asyncio.CancelledError:
            self.source.sync.put(item)  # unbounded: waits for nothing
            raise

    def hold(self) -> None:
        """Go through everything that is held."""
        with self.permits.sync, self.lock.sync:
            pass

    def wait(self) -> None:
        """Be notified, or not; the lock is held afterwards."""
        with self.condition.sync:
            self.condition.sync.wait(0.002)
            assert self.condition.locked()

    def compute(self) -> None:
        """Never wait, and ask only where interrupts do not do that."""
        for _ in range(200):
            if "interrupt" not in self.policies:
                from_thread.check_cancelled()
            sum(range(100))

    def ask(self) -> None:
        """A task on the loop, which offloads in its turn."""
        from_thread.run(self.back_on_the_loop)

    async def back_on_the_loop(self) -> None:
        with contextlib.suppress(queues.QueueEmpty):
            self.source.put_nowait(self.target.get_nowait())
        async with self.condition:
            self.condition.notify()
        await polyloop.to_thread(polyloop.sleep_sync, 0.0005)

    async def caller(self, seed: int) -> None:
        rng = random.Random(seed)
        calls: list[Callable[[], None]] = [self.compute, self.ask]
        if "interrupt" not in self.policies:  # which may hit in the middle of what these share
            calls += [self.move, self.hold, self.wait]
        while time.monotonic() < self.until:
            call = asyncio.ensure_future(polyloop.to_thread(rng.choice(calls), on_cancel=rng.choice(self.policies)))
            if rng.random() < 0.3:
                self.source.put_nowait(next(self.numbers))
            await asyncio.wait([call], timeout=rng.choice([0, 0, 0.0002, 0.001, 0.005]))
            call.cancel()
            await asyncio.wait([call])
            self.ended["cancelled" if call.cancelled() else "done"] += 1
            if not call.cancelled():
                call.result()

    async def run(self) -> None:
        async with polyloop.TaskGroup() as tg:
            for _ in range(8):
                tg.create_task(self.caller(self.rng.randrange(2**32)), on="round_robin")


def check_race(
    rng: random.Random, seconds: float, policies: tuple[OnCancel, ...], monkeypatch: pytest.MonkeyPatch
) -> dict[str, int]:
    pool = ThreadPool(max_threads=6)
    monkeypatch.setattr(_pool.shared, "pool", pool)
    permits = len(spin_permits)
    race = Race(rng, seconds, policies)
    polyloop.run(race.run(), loops=2)
    until(lambda: pool.idle == pool.threads and not _overdue._calls)  # abandoned calls are on their way out
    pool.end_idle(30)
    assert (pool.queued, pool.abandoned, pool._lent) == (0, 0, 0)
    left = sorted([*race.source._items, *race.target._items])
    assert left == list(range(next(race.numbers))), "an item was lost, or is there twice"
    assert len(spin_permits) == permits
    assert (race.permits.value, race.lock.locked(), race.condition.locked()) == (2, False, False)
    return race.ended


@RACES
def test_nothing_is_lost_in_a_random_race(
    rng: random.Random, seconds: float, policies: tuple[OnCancel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One second of it."""
    ended = check_race(rng, seconds, policies, monkeypatch)
    assert min(ended.values()) > 0


@pytest.mark.stress
@RACES
def test_nothing_is_lost_in_a_long_random_race(
    rng: random.Random, seconds: float, policies: tuple[OnCancel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, for as long as POLYLOOP_STRESS_SECONDS says."""
    print(check_race(rng, seconds, policies, monkeypatch))

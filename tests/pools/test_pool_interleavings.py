"""Every order of a few loans, cancellations and closes on two loops, over the real code."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

import pytest
from tests.helpers import explore_for_longer

from polyloop.pools import PoolClosedError, ResourcePool
from polyloop.testing import Interleaving, explore

#: Schedules in a test that is run all the time: all with one preemption where they are few. The stress test runs on.
SCHEDULES = 120


class Scene:
    """A pool of things, which are made and closed in one turn of the loop each, and never too many."""

    def __init__(self, max_size: int = 1, *, patience: float = 0.0, loop_bound: bool = True) -> None:
        self.most = max_size
        self.open = 0
        self.uses: deque[None] = deque()  # appended by any thread
        self._numbers = itertools.count()
        self.pool = ResourcePool(
            self.create, self.close, max_size=max_size, patience=patience, loop_bound=loop_bound,
            max_idle_time=None, max_lifetime=None,
        )  # fmt: skip

    async def create(self) -> list[int]:
        self.open += 1
        assert self.open <= self.most
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.open -= 1
            raise
        return [next(self._numbers)]

    async def close(self, thing: list[int]) -> None:
        thing.clear()
        try:
            await asyncio.sleep(0)
        finally:  # cancelled with the loop, which ends amid this
            self.open -= 1

    async def use(self) -> None:
        async with self.pool.acquire() as thing:
            assert thing
            self.uses.append(None)

    async def use_twice(self) -> None:
        await self.use()
        await self.use()

    async def use_or_find_closed(self) -> None:
        try:
            await self.use()
        except PoolClosedError:
            self.uses.append(None)

    def is_over(self, used: int) -> None:
        """All loops have ended: everything is closed, every permit is back, and nobody was forgotten."""
        assert len(self.uses) == used
        assert self.open == 0
        ledger = self.pool._shared._ledger
        assert (ledger.free, ledger.waiting, ledger.crowded) == (self.most, 0, False)
        assert self.pool.stats().lost == 0


def two_loops_share_one(it: Interleaving) -> None:
    """Each gets it in the end: it is given up by the other, or its permit comes back with that loop."""
    scene = Scene()
    it.coroutine(scene.use)
    it.coroutine(scene.use)
    it.check(lambda: scene.is_over(2))


def two_loops_share_one_and_come_back(it: Interleaving) -> None:
    """Also when each wants it again at once."""
    scene = Scene()
    it.coroutine(scene.use_twice)
    it.coroutine(scene.use_twice)
    it.check(lambda: scene.is_over(4))


def a_patient_loop_shares_too(it: Interleaving) -> None:
    """When the patience is over: by its timer."""
    scene = Scene(patience=0.1)
    it.coroutine(scene.use_twice)
    it.coroutine(scene.use)
    it.check(lambda: scene.is_over(3))


def one_that_moves(it: Interleaving) -> None:
    """The same for what belongs to no loop."""
    scene = Scene(loop_bound=False)
    it.coroutine(scene.use_twice)
    it.coroutine(scene.use)

    def check() -> None:
        assert len(scene.uses) == 3
        ledger = scene.pool._shared._ledger
        assert (ledger.free, ledger.waiting) == (1, 0)

    it.check(check)


def a_waiter_is_cancelled(it: Interleaving) -> None:
    """At any moment: what it was given goes on."""
    scene = Scene()
    it.coroutine(scene.use)
    doomed = it.coroutine(scene.use, name="doomed")
    it.thread(doomed.cancel)

    def check() -> None:
        scene.is_over(len(scene.uses))
        assert len(scene.uses) == 2 or (doomed.cancelled() and scene.uses)

    it.check(check)


def the_pool_is_closed(it: Interleaving) -> None:
    """Every waiter is served or told."""
    scene = Scene()
    it.coroutine(scene.use_or_find_closed)
    it.coroutine(scene.use_or_find_closed)
    it.coroutine(scene.pool.close)
    it.check(lambda: scene.is_over(2))


def the_pool_is_drained(it: Interleaving) -> None:
    """Who came before is served, and it ends."""
    scene = Scene()
    it.coroutine(scene.use_or_find_closed)
    it.coroutine(scene.use_or_find_closed)
    it.coroutine(scene.pool.drain)
    it.check(lambda: scene.is_over(2))


SCENARIOS: dict[str, Callable[[Interleaving], None]] = {
    each.__name__: each
    for each in (
        two_loops_share_one,
        two_loops_share_one_and_come_back,
        a_patient_loop_shares_too,
        one_that_moves,
        a_waiter_is_cancelled,
        the_pool_is_closed,
        the_pool_is_drained,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_pools_in_any_order(name: str) -> None:
    """No order loses a resource, a permit or a waiter."""
    explore(SCENARIOS[name], preemptions=1, schedules=SCHEDULES)


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_pools_in_many_orders(seed: int, seconds: float) -> None:
    """The same for as long as there is time."""
    explore_for_longer(SCENARIOS, seed, seconds)

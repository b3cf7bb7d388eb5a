"""``Semaphore`` and ``BoundedSemaphore`` between loops, trio and threads: permits, turns, cancellation and time."""

import asyncio
import random
import time
from typing import Any

import pytest
import trio
from tests.helpers import cancel_amid, in_trio, one_of_three_is_cancelled, park_on_a_dead_loop, queue_up, until
from tests.sync.races import Room, race, short_and_long, tiny

from polyloop import BlockingCallError, BoundedSemaphore, Semaphore
from polyloop.testing import TestLoop, TestThread, explore

KINDS = [Semaphore, BoundedSemaphore]


def waiting(semaphore: Semaphore) -> int:
    return len(semaphore._permits.line)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[Semaphore]:
    """Each kind of semaphore."""
    given: type[Semaphore] = request.param
    return given


def test_permits_are_counted_and_shown(kind: type[Semaphore]) -> None:
    """As asyncio shows them."""
    semaphore = kind(2)
    assert repr(semaphore).endswith("[unlocked, value:2]>")
    assert semaphore.acquire_nowait()
    assert (semaphore.value, semaphore.locked()) == (1, False)
    assert semaphore.sync.acquire(blocking=False)
    assert (semaphore.value, semaphore.locked()) == (0, True)
    assert not semaphore.acquire_nowait()
    assert not semaphore.sync.acquire(False)
    assert repr(semaphore).endswith("[locked]>")
    assert repr(semaphore.sync) == f"<sync face of {semaphore!r}>"
    semaphore.release(2)
    assert semaphore.value == 2


def test_a_million_permits_are_there(kind: type[Semaphore]) -> None:
    """They are made in blocks, when they are needed."""
    semaphore = kind(1_000_000)
    taken = sum(semaphore.acquire_nowait() for _ in range(3000))
    assert (taken, semaphore.value) == (3000, 997_000)
    semaphore.sync.release(3000)
    assert semaphore.value == 1_000_000


def test_what_makes_no_sense_is_refused(kind: type[Semaphore]) -> None:
    """As asyncio and threading refuse it; nothing has changed then."""
    with pytest.raises(ValueError, match="initial value must be >= 0"):
        kind(-1)
    semaphore = kind(1)
    for n in (0, -1):
        with pytest.raises(ValueError, match="n must be one or more"):
            semaphore.release(n)
    with pytest.raises(ValueError, match="timeout"):
        semaphore.sync.acquire(False, 1.0)
    assert semaphore.value == 1


def test_a_bounded_one_refuses_one_too_many(left: TestLoop) -> None:
    """From whoever and by whichever face; none of those permits has come to be."""
    semaphore = BoundedSemaphore(2)
    left.run(semaphore.acquire)
    with pytest.raises(ValueError, match="released too many times"):
        semaphore.sync.release(2)
    semaphore.release()
    for release in (semaphore.release, semaphore.sync.release):
        with pytest.raises(ValueError, match="released too many times"):
            release()
    assert semaphore.value == 2
    unbounded = Semaphore(0)
    unbounded.release(3)
    assert unbounded.value == 3


def test_tasks_of_all_loops_and_threads_take_turns(left: TestLoop, right: TestLoop, kind: type[Semaphore]) -> None:
    """In the order they came, trio's tasks too."""
    semaphore = kind(1)
    semaphore.acquire_nowait()
    order: list[int] = []

    async def task(number: int) -> None:
        async with semaphore:
            order.append(number)

    def thread(number: int) -> None:
        with semaphore.sync:
            order.append(number)

    pending = queue_up(left, right, task, thread, lambda: waiting(semaphore))
    assert repr(semaphore).endswith("[locked, waiters:8]>")
    semaphore.release()
    for one in pending:
        one.result()
    assert order == list(range(8))
    assert semaphore.value == 1


def test_several_permits_at_once_go_to_several(left: TestLoop, kind: type[Semaphore]) -> None:
    """Those who have waited longest; what is left over is free."""
    semaphore = kind(3)
    for _ in range(3):
        semaphore.acquire_nowait()
    waiters: list[Any] = [left.spawn(semaphore.acquire), TestThread(semaphore.sync.acquire)]
    until(lambda: waiting(semaphore) == 2)
    semaphore.release(3)
    for one in waiters:
        one.result()
    assert semaphore.value == 1


def test_a_newcomer_does_not_overtake(left: TestLoop, kind: type[Semaphore]) -> None:
    """A permit that was handed over is not free, though its new holder has not run yet."""
    semaphore = kind(1)
    semaphore.acquire_nowait()
    waiter = left.spawn(semaphore.acquire)
    left.wait_all_blocked()
    with left.paused():
        semaphore.release()
        assert semaphore.locked()
        assert not semaphore.acquire_nowait()
        assert not semaphore.sync.acquire(timeout=0.01)
    waiter.result()
    semaphore.release()
    assert semaphore.value == 1


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_a_cancelled_waiter_passes_its_permit_on(
    left: TestLoop, right: TestLoop, kind: type[Semaphore], cancelled_first: bool
) -> None:
    """Handed over and cancelled before it can run, in either order."""
    semaphore = kind(1)
    semaphore.acquire_nowait()
    doomed = left.spawn(semaphore.acquire)
    left.wait_all_blocked()
    following = right.spawn(semaphore.acquire)
    right.wait_all_blocked()
    cancel_amid(left, doomed, semaphore.release, cancelled_first)
    assert following.result()
    semaphore.release()
    assert (semaphore.value, waiting(semaphore)) == (1, 0)


def test_a_cancelled_trio_task_holds_no_permit(kind: type[Semaphore]) -> None:
    """Its own cancellation."""
    semaphore = kind(1)
    semaphore.acquire_nowait()

    async def main() -> None:
        with trio.move_on_after(0.01):
            await semaphore.acquire()

    in_trio(main).result()
    semaphore.release()
    assert (semaphore.value, waiting(semaphore)) == (1, 0)


def test_a_waiter_of_a_dead_loop_is_skipped(kind: type[Semaphore]) -> None:
    """The next has the permit."""
    semaphore = kind(1)
    semaphore.acquire_nowait()
    parked = park_on_a_dead_loop(semaphore.acquire)
    thread = TestThread(semaphore.sync.acquire)
    until(lambda: waiting(semaphore) == 2)
    semaphore.release()
    assert thread.result()
    parked.close()
    semaphore.release()
    assert semaphore.value == 1


def test_a_wait_of_a_thread_can_be_limited(kind: type[Semaphore]) -> None:
    """As ``threading``'s: below 0 and 0 do not wait at all."""
    semaphore = kind(1)
    semaphore.acquire_nowait()
    began = time.monotonic()
    assert not semaphore.sync.acquire(timeout=0.02)
    assert time.monotonic() - began >= 0.02
    assert not semaphore.sync.acquire(timeout=0)
    assert not semaphore.sync.acquire(timeout=-1)
    assert waiting(semaphore) == 0
    semaphore.release()
    assert semaphore.sync.acquire(timeout=30)


def test_a_loop_is_not_blocked(left: TestLoop, kind: type[Semaphore]) -> None:
    """A call that would have to wait is refused, and names the awaitable twin; others are not."""
    semaphore = kind(1)

    async def on_a_loop() -> None:
        with semaphore.sync:
            with pytest.raises(BlockingCallError, match=r"use 'await semaphore.acquire\(\)'"):
                semaphore.sync.acquire()
            assert not semaphore.sync.acquire(False)
            assert waiting(semaphore) == 0

    left.run(on_a_loop)
    assert semaphore.value == 1


def test_no_permit_is_lost_in_any_order(kind: type[Semaphore]) -> None:
    """Two that take and give, and one that is cancelled at any moment, over one permit."""

    def free(semaphore: Semaphore) -> bool:
        return (semaphore.value, waiting(semaphore)) == (1, 0)

    scenario = one_of_three_is_cancelled(lambda: kind(1), lambda semaphore: (semaphore, semaphore.sync), free)
    explore(scenario, preemptions=1, schedules=600)
    explore(scenario, seed=2, schedules=60)


@short_and_long
def test_no_permit_is_lost_in_a_random_race(kind: type[Semaphore], rng: random.Random, seconds: float) -> None:
    """Tasks and threads that take permits, or give up, at random."""
    semaphore, room = kind(2), Room()

    async def task(own: random.Random) -> None:
        async with semaphore:
            with room:
                pass
            await asyncio.sleep(0)

    def thread(own: random.Random) -> None:
        if semaphore.sync.acquire(timeout=tiny(own)):
            with room:
                pass
            semaphore.sync.release()

    race(rng, seconds, task, [thread] * 2)
    assert (room.inside, semaphore.value, waiting(semaphore)) == (0, 2, 0)
    assert room.most <= 2
    assert room.visits > 100

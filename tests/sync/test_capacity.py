"""``CapacityLimiter``: tokens, borrowers, order, both faces, and what cancellation and time do to them."""

import asyncio
import math
import random
import threading
import time
import weakref
from collections import deque
from typing import Any

import pytest
import trio
from tests.helpers import cancel_amid, park_on_a_dead_loop, queue_up, until
from tests.sync.races import Room, race, short_and_long, tiny

import polyloop
from polyloop.sync import CapacityLimiter, WouldBlock
from polyloop.testing import TestLoop, TestThread


def waiting(limiter: CapacityLimiter) -> int:
    return len(limiter._waiting)


# One borrower


def test_tokens_are_counted_and_told() -> None:
    """The properties and the repr say what is borrowed and who waits."""

    async def main() -> None:
        limiter = CapacityLimiter(2)
        assert repr(limiter) == "<CapacityLimiter 0/2 borrowed, 0 waiting>"
        async with limiter as entered:
            assert entered is limiter
            limiter.acquire_on_behalf_of_nowait("somebody")
            assert (limiter.borrowed_tokens, limiter.available_tokens, limiter.total_tokens) == (2, 0, 2)
            waiter = asyncio.create_task(limiter.acquire_on_behalf_of("another"))
            await asyncio.sleep(0)
            assert repr(limiter) == "<CapacityLimiter 2/2 borrowed, 1 waiting>"
            limiter.release_on_behalf_of("somebody")
            await waiter
        limiter.release_on_behalf_of("another")
        assert limiter.available_tokens == 2

    asyncio.run(main())


def test_a_borrower_holds_one_token_and_returns_one() -> None:
    """Twice is an error, as is returning what was not borrowed; the limiter is none the worse for either."""

    async def main() -> None:
        limiter = CapacityLimiter(2)
        with pytest.raises(RuntimeError, match="holds no token"):
            limiter.release()
        async with limiter:
            for again in (limiter.acquire_nowait, limiter.sync.acquire):
                with pytest.raises(RuntimeError, match="already holds a token"):
                    again()
            with pytest.raises(RuntimeError, match="already holds a token"):
                await limiter.acquire()
            assert limiter.borrowed_tokens == 1
        limiter.acquire_on_behalf_of_nowait("a")
        limiter.acquire_on_behalf_of_nowait("b")
        waiter = asyncio.create_task(limiter.acquire_on_behalf_of("c"))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waits for a token"):
            await limiter.acquire_on_behalf_of("c")
        limiter.release_on_behalf_of("a")
        await waiter
        for borrower in "bc":
            limiter.release_on_behalf_of(borrower)
        assert limiter.borrowed_tokens == 0

    asyncio.run(main())


def test_a_nowait_that_would_wait_says_so() -> None:
    """Also beside a free token, if somebody was there first."""
    limiter = CapacityLimiter(1)
    limiter.acquire_nowait()
    with pytest.raises(WouldBlock, match="all 1 tokens are borrowed; use 'await acquire"):
        limiter.acquire_on_behalf_of_nowait("late")
    assert isinstance(WouldBlock(""), polyloop.PolyloopError)
    limiter.release()
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize(
    ("total", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (math.nan, TypeError), ("2", TypeError)]
)
def test_a_total_is_a_whole_number_of_at_least_one(total: Any, error: type[Exception]) -> None:
    """Or infinite; the same when it is changed, which changes nothing then."""
    with pytest.raises(error, match="token"):
        CapacityLimiter(total)
    limiter = CapacityLimiter(math.inf)
    with pytest.raises(error, match="token"):
        limiter.total_tokens = total
    assert (limiter.total_tokens, limiter.available_tokens) == (math.inf, math.inf)


def test_a_callback_is_no_borrower() -> None:
    """A loop's callbacks have no task; all would be one borrower."""

    async def main() -> str:
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def callback() -> None:
            try:
                CapacityLimiter(1).acquire_nowait()
            except RuntimeError as exc:
                told.set_result(str(exc))

        asyncio.get_running_loop().call_soon(callback)
        return await told

    assert "on_behalf_of" in asyncio.run(main())


# Several


def test_first_come_first_served_over_loops_and_threads(left: TestLoop, right: TestLoop) -> None:
    """Tasks of two loops and of trio, and threads, wait in one queue."""
    limiter = CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("test")
    order: list[int] = []

    async def task(number: int) -> None:
        async with limiter:
            order.append(number)

    def thread(number: int) -> None:
        with limiter.sync:
            order.append(number)

    pending = queue_up(left, right, task, thread, lambda: waiting(limiter))
    limiter.release_on_behalf_of("test")
    for one in pending:
        one.result()
    assert order == list(range(8))
    assert limiter.borrowed_tokens == 0


def test_a_newcomer_does_not_overtake_those_who_wait(left: TestLoop) -> None:
    """A token that was handed over is not free, though its new holder has not run yet."""
    limiter = CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("test")
    waiter = left.spawn(limiter.acquire_on_behalf_of, "waiter")
    left.wait_all_blocked()
    with left.paused():
        limiter.release_on_behalf_of("test")
        with pytest.raises(WouldBlock):
            limiter.acquire_on_behalf_of_nowait("newcomer")
        assert not limiter.sync.acquire(blocking=False)
    waiter.result(30)
    limiter.release_on_behalf_of("waiter")
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_a_hand_over_that_meets_a_cancellation_goes_to_the_next(
    left: TestLoop, right: TestLoop, cancelled_first: bool
) -> None:
    """Both happen before the waiter can run, in either order: it ends cancelled and the next has the token."""
    limiter = CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("test")
    doomed = left.spawn(limiter.acquire_on_behalf_of, "doomed")
    left.wait_all_blocked()
    following = right.spawn(limiter.acquire_on_behalf_of, "following")
    right.wait_all_blocked()
    cancel_amid(left, doomed, lambda: limiter.release_on_behalf_of("test"), cancelled_first)
    following.result(30)
    assert list(limiter._entries) == ["following"]
    limiter.release_on_behalf_of("following")
    assert (limiter.borrowed_tokens, waiting(limiter)) == (0, 0)


def test_changing_the_total_serves_or_holds_back(left: TestLoop) -> None:
    """More tokens go to those who wait, in order; fewer take none away, and are missing until enough came back."""
    limiter = CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("test")
    waiters = [left.spawn(limiter.acquire_on_behalf_of, number) for number in range(4)]
    left.wait_all_blocked()
    limiter.total_tokens = 3
    waiters[0].result(30)
    waiters[1].result(30)
    left.wait_all_blocked()
    assert [waiter.done() for waiter in waiters] == [True, True, False, False]
    limiter.total_tokens = 1
    assert limiter.available_tokens == -2
    for borrower in ("test", 0):
        limiter.release_on_behalf_of(borrower)
        left.wait_all_blocked()
        assert not waiters[2].done()
    limiter.release_on_behalf_of(1)
    waiters[2].result(30)
    limiter.total_tokens = math.inf
    waiters[3].result(30)
    for borrower in (2, 3):
        limiter.release_on_behalf_of(borrower)
    assert limiter.available_tokens == math.inf


def test_a_waiter_that_is_closed_takes_no_token_with_it() -> None:
    """Its loop was closed under it, or its task destroyed: a ``GeneratorExit`` is no cancellation."""

    async def main() -> None:
        limiter = CapacityLimiter(1)
        limiter.acquire_on_behalf_of_nowait("first")
        waiter = limiter.acquire_on_behalf_of("second")
        waiter.send(None)
        waiter.close()
        assert (list(limiter._entries), waiting(limiter)) == (["first"], 0)
        limiter.release_on_behalf_of("first")
        assert limiter.borrowed_tokens == 0

    asyncio.run(main())


def test_a_waiter_of_a_dead_loop_is_skipped() -> None:
    """The token goes to the next, or back."""
    limiter = CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("first")
    parked = park_on_a_dead_loop(lambda: limiter.acquire_on_behalf_of("dead"))
    thread = TestThread(limiter.sync.acquire)
    until(lambda: waiting(limiter) == 2)
    limiter.release_on_behalf_of("first")
    assert thread.result()
    assert (len(limiter._entries), limiter.borrowed_tokens) == (1, 1)
    parked.close()
    assert limiter.borrowed_tokens == 1


def test_borrowers_are_hashed_compared_and_shown_without_the_lock() -> None:
    """They are the user's: they may use the limiter themselves, or wait for somebody who does."""
    limiter = CapacityLimiter(5)

    class Borrower:
        def __hash__(self) -> int:
            assert not limiter._lock.locked()
            return 1

        def __eq__(self, other: object) -> bool:
            assert not limiter._lock.locked()
            return isinstance(other, Borrower)

        def __repr__(self) -> str:
            assert not limiter._lock.locked()
            return "the one"

    limiter.acquire_on_behalf_of_nowait(Borrower())
    with pytest.raises(RuntimeError, match="the one already holds a token"):
        limiter.acquire_on_behalf_of_nowait(Borrower())
    limiter.release_on_behalf_of(Borrower())
    with pytest.raises(RuntimeError, match="the one holds no token"):
        limiter.release_on_behalf_of(Borrower())
    assert limiter.borrowed_tokens == 0


@pytest.mark.timeout(20)
def test_a_finaliser_returns_a_token_wherever_it_interrupts() -> None:
    """Also the thread that has the limiter's lock: what it returns is taken in when the lock is free."""
    limiter = CapacityLimiter(2)
    limiter.acquire_on_behalf_of_nowait("lease")
    seen: list[int] = []

    class Collecting(deque[Any]):
        """What the holder of the lock looks at; a finaliser runs in the middle of that."""

        def __bool__(self) -> bool:
            if limiter._lock.locked() and not seen:
                seen.append(1)
                limiter.release_on_behalf_of("lease")
            return len(self) > 0

    limiter._returned = Collecting()
    limiter.acquire_on_behalf_of_nowait("other")
    assert seen == [1]
    assert (list(limiter._entries), limiter.borrowed_tokens) == (["other"], 1)
    limiter.release_on_behalf_of("other")


def test_a_task_that_borrows_is_not_kept() -> None:
    """Nobody else may drop the last reference to it: that is for its own loop's thread."""

    async def main() -> None:
        limiter = CapacityLimiter(1)
        task = asyncio.create_task(limiter.acquire())
        await task
        assert all(isinstance(key, weakref.ref) for key in limiter._entries)
        limiter.release_on_behalf_of(task)
        assert limiter.borrowed_tokens == 0

    asyncio.run(main())


def test_each_task_of_trio_is_a_borrower() -> None:
    """Not the thread that runs them all."""
    limiter = CapacityLimiter(2)

    async def borrow(both: trio.Event) -> None:
        async with limiter:
            if limiter.borrowed_tokens == 2:
                both.set()
            await both.wait()

    async def main() -> None:
        both = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(borrow, both)
            nursery.start_soon(borrow, both)

    TestThread(trio.run, main).result()
    assert limiter.borrowed_tokens == 0


# The face for threads


def test_the_face_for_threads_refuses_to_block_a_loop(left: TestLoop) -> None:
    """Only if it would have to wait; it names the awaitable twin."""
    limiter = CapacityLimiter(1)

    async def on_a_loop() -> None:
        with limiter.sync:
            assert limiter.borrowed_tokens == 1
        limiter.acquire_on_behalf_of_nowait("test")
        with pytest.raises(polyloop.BlockingCallError, match=r"'left'; use 'await limiter.acquire\(\)'"):
            limiter.sync.acquire()
        assert not limiter.sync.acquire(blocking=False)

    left.run(on_a_loop)
    assert waiting(limiter) == 0
    limiter.release_on_behalf_of("test")


def test_a_wait_of_a_thread_can_be_limited() -> None:
    """Out of time it holds nothing and is out of the queue; with time it gets what comes."""
    limiter = CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("test")
    began = time.monotonic()
    assert not limiter.sync.acquire(timeout=0.02)
    assert time.monotonic() - began >= 0.02
    assert not limiter.sync.acquire(timeout=0)
    assert waiting(limiter) == 0
    patient = TestThread(limiter.sync.acquire, True, None)
    until(lambda: waiting(limiter) == 1)
    limiter.release_on_behalf_of("test")
    assert patient.result()
    assert limiter.borrowed_tokens == 1
    with pytest.raises(RuntimeError, match="holds no token"):
        limiter.sync.release()  # it was that thread's


@pytest.mark.parametrize(("blocking", "timeout"), [(False, 1.0), (True, -2.0)])
def test_a_timeout_that_makes_no_sense_is_refused(blocking: bool, timeout: float) -> None:
    """As ``threading`` refuses it."""
    limiter = CapacityLimiter(1)
    with pytest.raises(ValueError, match="timeout"):
        limiter.sync.acquire(blocking, timeout)
    assert limiter.borrowed_tokens == 0


# Random races


@short_and_long
def test_no_token_is_lost_in_a_random_race(rng: random.Random, seconds: float) -> None:
    """Tasks on loops and threads that borrow, give up, and change the total, at random."""
    limiter, room = CapacityLimiter(2), Room()
    turn = threading.Event()

    async def task(own: random.Random) -> None:
        async with limiter:
            with room:
                await asyncio.sleep(own.choice([0, 0, 0.0003]))

    def thread(own: random.Random) -> None:
        if limiter.sync.acquire(timeout=tiny(own)):
            with room:
                pass
            limiter.sync.release()

    def change(own: random.Random) -> None:
        limiter.total_tokens = own.randint(1, 3)
        turn.wait(0.001)

    race(rng, seconds, task, [thread, thread, thread, change], loops=3)
    assert (limiter.borrowed_tokens, waiting(limiter), room.inside) == (0, 0, 0)
    assert room.most <= 3
    assert room.visits > 100

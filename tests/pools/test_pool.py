"""``ResourcePool``: lending, waiting, sharing between loops, what breaks, what is old, and the end."""

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.conftest import Flavour
from tests.helpers import until
from tests.pools.things import Factory, Thing, use

import polyloop
from polyloop import Runtime, RuntimeClosedError
from polyloop.pools import ForeignLoopError, PoolBusyError, PoolClosedError, ResourcePool
from polyloop.testing import TestLoop, TestThread

PATIENT = {"patience": 1000.0}
STRICT = {"patience": 0.0}


async def hold(pool: ResourcePool[Thing], go_on: "asyncio.Event | polyloop.Event") -> int:
    """Borrow one until told to go on."""
    async with pool.acquire() as thing:
        number = thing.use()
        await go_on.wait()
        return number


class Paused:
    """What making or closing a thing waits for, until the test lets it go on."""

    def __init__(self) -> None:
        self.go = polyloop.Event()
        self.waiting = 0

    async def __call__(self) -> None:
        self.waiting += 1
        await self.go.wait()


# Lending on one loop


def test_what_was_returned_last_is_lent_next(left: TestLoop) -> None:
    """Last in, first out: what is not needed grows old by itself."""
    pool = Factory().pool(max_size=3)

    async def main() -> None:
        async with pool.acquire() as first, pool.acquire() as second:
            assert first.number != second.number
        assert await use(pool) == first.number
        assert await use(pool) == first.number
        await pool.close()

    left.run(main)


def test_it_is_made_when_needed_and_kept(left: TestLoop) -> None:
    """No more than were in use at once."""
    factory = Factory()
    pool = factory.pool(max_size=10)

    async def main() -> None:
        assert factory.open == 0
        for _ in range(5):
            await use(pool)
        assert factory.open == 1
        assert (pool.stats().created, pool.stats().loans, pool.stats().idle, pool.stats().in_use) == (1, 5, 1, 0)
        await pool.close()
        assert factory.open == 0

    left.run(main)


def test_waiters_of_one_loop_are_served_in_the_order_they_came(left: TestLoop) -> None:
    """First come, first served."""
    pool = Factory().pool(max_size=1)
    order: list[int] = []

    async def one(number: int) -> None:
        async with pool.acquire():
            order.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*map(one, range(20)))
        assert order == list(range(20))
        assert pool.stats().waits.count >= 19
        await pool.close()

    left.run(main)


def test_await_and_release(left: TestLoop) -> None:
    """Without a block: the resource itself is returned."""
    pool = Factory().pool(max_size=1)

    async def main() -> None:
        thing = await pool.acquire()
        assert pool.stats().in_use == 1
        await pool.release(thing)
        assert await use(pool) == thing.number
        await pool.close()

    left.run(main)


def test_returned_twice(left: TestLoop) -> None:
    """Is an error that names the resource, and harms nobody who has it now."""
    pool = Factory().pool(max_size=1)

    async def main() -> None:
        async with pool.acquire() as thing:
            await pool.release(thing)
            with pytest.raises(ValueError, match=r"<Thing 1> is not on loan from <ResourcePool"):
                await pool.release(thing)
            async with pool.acquire() as again:  # by somebody else
                assert again is thing
        async with pool.acquire():
            assert pool.stats().in_use == 1
        await pool.close()

    left.run(main)


def test_a_block_that_ends_late_does_not_end_the_loan_of_another(left: TestLoop) -> None:
    """The resource was returned inside of the block, and has been lent to somebody else since."""
    pool = Factory().pool(max_size=1)

    async def main() -> None:
        block = pool.acquire()
        thing = await block.__aenter__()
        await pool.release(thing)
        async with pool.acquire() as again:
            assert again is thing
            await block.__aexit__(None, None, None)
            assert pool.stats().in_use == 1
        await pool.close()

    left.run(main)


def test_a_loan_is_for_once(left: TestLoop) -> None:
    """Entering it again is an error."""
    pool = Factory().pool()

    async def main() -> None:
        loan = pool.acquire()
        async with loan:
            with pytest.raises(RuntimeError, match="call acquire"):
                await loan
        await pool.close()

    left.run(main)


def test_discarded_inside_of_its_block(left: TestLoop) -> None:
    """It is closed, and the next borrower gets another."""
    factory = Factory(1)
    pool = factory.pool()

    async def main() -> None:
        async with pool.acquire() as thing:
            pool.discard(thing)
        assert await use(pool) == thing.number + 1
        assert thing.closed
        assert pool.stats().broken == 1
        await pool.close()

    left.run(main)


def test_an_exception_in_the_block_returns_the_resource(left: TestLoop) -> None:
    """However it ends."""
    pool = Factory().pool(max_size=1)

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with pool.acquire() as thing:
                raise ZeroDivisionError
        assert await use(pool) == thing.number
        await pool.close()

    left.run(main)


# Cancellation, errors, limits


def test_a_cancelled_waiter_takes_nothing(left: TestLoop) -> None:
    """Nor does one whose time is up; those behind it are served."""
    pool = Factory().pool(max_size=1)

    async def main() -> None:
        async with pool.acquire():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await use(pool)
            waiting = [asyncio.create_task(use(pool)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            assert pool.stats().waiting == 3
        assert await asyncio.gather(*waiting[1:]) == [1, 1]
        assert pool.stats().waiting == 0
        await pool.close()

    left.run(main)


def test_cancelled_at_the_moment_it_is_served(left: TestLoop) -> None:
    """What it was given goes to the next."""
    pool = Factory().pool(max_size=1)

    async def main() -> None:
        first = await pool.acquire()
        doomed = asyncio.create_task(use(pool))
        other = asyncio.create_task(use(pool))
        await asyncio.sleep(0)
        await pool.release(first)
        doomed.cancel()
        assert await other == 1
        assert doomed.cancelled()
        await pool.close()

    left.run(main)


def test_a_cancelled_caller_does_not_cancel_the_making(left: TestLoop) -> None:
    """What was begun for it lies ready for the next: short timeouts do not keep a pool empty for ever."""
    wait = Paused()
    factory = Factory(wait=wait)
    pool = factory.pool(max_size=2)

    async def main() -> None:
        doomed = asyncio.create_task(use(pool))
        await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.wait([doomed])
        wait.go.set()
        assert await use(pool) == 1
        assert pool.stats().created == 1
        await pool.close()

    left.run(main)


def test_somebody_else_is_served_by_what_was_made_for_one_who_left(left: TestLoop) -> None:
    """Without a second one being made."""
    wait = Paused()
    factory = Factory(wait=wait)
    pool = factory.pool(max_size=2)

    async def main() -> None:
        doomed = asyncio.create_task(use(pool))
        await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.wait([doomed])
        other = asyncio.create_task(use(pool))
        await asyncio.sleep(0)
        wait.go.set()
        assert await other == 1
        assert factory.highest == 1
        await pool.close()

    left.run(main)


def test_an_error_of_create_goes_to_who_has_waited_longest(left: TestLoop) -> None:
    """And to nobody else; the permit is free again, so the next one tries."""
    factory = Factory(1)
    pool = factory.pool()
    factory.failing.append(ConnectionError("no server"))

    async def main() -> None:
        results = await asyncio.gather(*(use(pool) for _ in range(3)), return_exceptions=True)
        assert [repr(result) for result in results] == ["ConnectionError('no server')", "1", "1"]
        assert (pool.stats().failed, pool.stats().created) == (1, 1)
        await pool.close()

    left.run(main)


def test_an_error_that_nobody_waits_for_is_logged(left: TestLoop, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is dropped in silence."""
    wait = Paused()
    factory = Factory(wait=wait)
    pool = factory.pool(name="db")
    factory.failing.append(ConnectionError("no server"))

    async def main() -> None:
        doomed = asyncio.create_task(use(pool))
        await asyncio.sleep(0)
        doomed.cancel()
        await asyncio.wait([doomed])
        wait.go.set()
        await pool.close()

    with caplog.at_level(logging.WARNING, "polyloop"):
        left.run(main)
    assert "pool 'db' could not make a resource: ConnectionError('no server')" in caplog.text


def test_too_many_wait(left: TestLoop) -> None:
    """One more than may wait is refused at once, with the figures."""
    pool = Factory().pool(max_size=1, max_waiting=2, name="db")

    async def main() -> None:
        thing = await pool.acquire()
        waiting = [asyncio.create_task(use(pool)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(PoolBusyError, match=r"2 callers wait for pool 'db' already, max_waiting=2"):
            await use(pool)
        await pool.release(thing)
        assert await asyncio.gather(*waiting) == [1, 1]
        await pool.close()

    left.run(main)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 0}, "max_size must be a whole number, at least 1; got 0"),
        ({"max_size": 2.5}, "max_size must be a whole number, at least 1; got 2.5"),
        ({"max_size": True}, "max_size must be a whole number, at least 1; got True"),
        ({"max_size": 2, "min_idle": 3}, "min_idle must not exceed max_size=2, got 3"),
        ({"max_size": 2, "min_idle": -1}, "min_idle must be a whole number"),
        ({"max_size": 2, "max_waiting": -1}, "max_waiting must be a whole number"),
        ({"max_size": 2, "patience": -1}, "patience must be a number of seconds; got -1"),
        ({"max_size": 2, "patience": float("nan")}, "patience must be a number of seconds; got nan"),
        ({"max_size": 2, "max_idle_time": 0}, "max_idle_time must be a number of seconds above 0; got 0"),
        ({"max_size": 2, "upkeep_timeout": None}, "upkeep_timeout must be a number of seconds above 0; got None"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], message: str) -> None:
    """Are named, with the value."""
    factory = Factory()
    with pytest.raises(ValueError, match=message):
        ResourcePool(factory.create, factory.close, **options)


def test_what_cannot_be_called() -> None:
    """Is named."""
    bad: Any = "connect"
    with pytest.raises(TypeError, match="a pool needs a function for create, got 'connect'"):
        ResourcePool(bad, print, max_size=1)


def test_without_a_loop() -> None:
    """A plain thread gets asyncio's own error."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        Factory().pool().acquire()


# Several loops


def test_a_cap_for_all_loops(left: TestLoop, right: TestLoop) -> None:
    """What one loop has, another cannot make."""
    factory = Factory(1)
    pool = factory.pool()
    go_on = polyloop.Event()
    holder = left.spawn(hold, pool, go_on)
    until(lambda: pool.stats().in_use)
    waiter = right.spawn(use, pool)
    until(lambda: pool.stats().waiting)
    go_on.set()
    assert holder.result(30) == 1
    assert waiter.result(30) == 2
    assert pool.stats().reclaimed == 1
    right.run(pool.close)


def test_an_idle_one_is_given_up_for_another_loop(left: TestLoop, right: TestLoop) -> None:
    """At once, closed on its own loop; a loop that does nothing starves nobody."""
    factory = Factory(2)
    pool = factory.pool(**STRICT)

    async def two() -> None:
        async with pool.acquire(), pool.acquire():
            pass

    left.run(two)
    assert pool.stats().idle == 2
    right.run(two)
    stats = pool.stats()
    assert (stats.idle, stats.reclaimed, stats.created) == (2, 2, 4)
    left.run(pool.close)
    assert factory.open == 0


def test_a_young_idle_one_is_given_up_when_the_patience_is_over(left: TestLoop, right: TestLoop) -> None:
    """By a timer: nobody does anything at the other loop."""
    factory = Factory(1)
    pool = factory.pool(patience=0.05)
    assert left.run(use, pool) == 1
    assert right.run(use, pool) == 2
    assert pool.stats().waits.longest > 0.02
    left.run(pool.close)


def test_within_the_patience_a_loop_serves_its_own(left: TestLoop, right: TestLoop) -> None:
    """A waiter of another loop that came a little earlier does not make it close a connection that it needs itself."""
    factory = Factory(1)
    pool = factory.pool(**PATIENT)
    go_on = polyloop.Event()
    holder = left.spawn(hold, pool, go_on)
    until(lambda: pool.stats().in_use)
    rival = right.spawn(use, pool)
    until(lambda: pool.stats().waiting == 1)
    own = left.spawn(use, pool)
    until(lambda: pool.stats().waiting == 2)
    go_on.set()
    assert (holder.result(30), own.result(30)) == (1, 1)
    assert not rival.done()
    left.run(pool.close)
    with pytest.raises(PoolClosedError):
        rival.result(30)


def test_without_patience_the_order_is_strict(left: TestLoop, right: TestLoop) -> None:
    """Whoever came first is first, on whichever loop."""
    factory = Factory(1)
    pool = factory.pool(**STRICT)
    order: list[str] = []

    async def note(name: str) -> None:
        async with pool.acquire():
            order.append(name)

    go_on = polyloop.Event()
    left.spawn(hold, pool, go_on)
    until(lambda: pool.stats().in_use)
    handles = []
    for number, loop in enumerate((right, left, right, left, left, right)):
        handles.append(loop.spawn(note, str(number)))
        until(lambda: pool.stats().waiting == len(handles))
    go_on.set()
    for handle in handles:
        handle.result(30)
    assert order == ["0", "1", "2", "3", "4", "5"]
    left.run(pool.close)


def test_one_that_belongs_to_no_loop_moves(left: TestLoop, right: TestLoop) -> None:
    """It is handed over as it is, also from a free list."""
    made: list[object] = []

    async def create() -> object:
        made.append(object())
        return made[-1]

    pool = ResourcePool(create, lambda thing: None, max_size=1, loop_bound=False)

    async def borrow() -> object:
        async with pool.acquire() as thing:
            return thing

    things = [loop.run(borrow) for loop in (left, right, left, left)]
    assert things == [made[0]] * 4
    assert (pool.stats().moved, pool.stats().created, pool.stats().closed) == (2, 1, 0)
    left.run(pool.close)
    assert pool.stats().closed == 1


def test_one_that_belongs_to_no_loop_is_returned_anywhere(left: TestLoop, right: TestLoop) -> None:
    """It goes back to the loop that lent it, and from there to whoever wants it."""

    async def create() -> list[int]:
        return []

    pool = ResourcePool(create, list[int].clear, max_size=1, loop_bound=False)

    async def borrow() -> list[int]:
        return await pool.acquire()

    thing = left.run(borrow)
    right.run(pool.release, thing)
    assert right.run(borrow) is thing
    assert (pool.stats().moved, pool.stats().in_use) == (1, 1)
    left.run(pool.release, thing)
    left.run(pool.close)
    assert pool.stats().size == 0


def test_returned_on_another_loop(left: TestLoop, right: TestLoop) -> None:
    """Is an error that names both loops and where the resource was made; it stays with its borrower."""
    pool = Factory().pool(name="db")

    async def borrow() -> Thing:
        return await pool.acquire()

    thing = left.run(borrow)
    with pytest.raises(ForeignLoopError) as caught:
        right.run(pool.release, thing)
    error = caught.value
    assert (error.owner, error.user) == ("left", "right")
    assert "test_pool.py:" in error.made_at
    assert "<Thing 1> of pool 'db' belongs to 'left' (made at " in str(error)
    with pytest.raises(ForeignLoopError):
        right.run(pool.discard, thing)
    left.run(pool.release, thing)
    left.run(pool.close)


def test_a_block_that_ends_on_another_loop(left: TestLoop, right: TestLoop) -> None:
    """Is an error there, and the resource is dropped by its own loop, for nobody knows what was done with it."""
    factory = Factory(1)
    pool = factory.pool()

    async def enter() -> Any:
        loan = pool.acquire()
        await loan.__aenter__()
        return loan

    loan = left.run(enter)
    with pytest.raises(ForeignLoopError, match="borrow, use and return it on one loop"):
        right.run(loan.__aexit__, None, None, None)
    until(lambda: factory.open == 0)
    assert left.run(use, pool) == 2
    left.run(pool.close)


# What breaks and what is old


def test_one_that_has_ended_by_itself_is_not_lent(left: TestLoop) -> None:
    """It is looked at when it is returned, and again when it is lent."""
    factory = Factory(1)
    pool = factory.pool(is_closed=lambda thing: thing.dead)

    async def main() -> None:
        async with pool.acquire() as thing:
            thing.dead = True
        assert await use(pool) == 2
        factory.things[2].dead = True  # while it lies idle
        assert await use(pool) == 3
        assert pool.stats().broken == 2
        await pool.close()

    left.run(main)


@pytest.mark.parametrize("how", ["False", "raises", "hangs"])
def test_one_that_fails_its_check_is_dropped(left: TestLoop, how: str) -> None:
    """Whether the check says so, raises or takes too long; the borrower gets one that works."""
    factory = Factory(2)

    async def check(thing: Thing) -> bool:
        if thing.number == 1:
            if how == "raises":
                raise ConnectionError
            if how == "hangs":
                await asyncio.Event().wait()
            return False
        return True

    pool = factory.pool(check=check, check_after=0, upkeep_timeout=0.01)

    async def main() -> None:
        assert await use(pool) == 1  # new ones are not checked
        assert await use(pool) == 2
        assert await use(pool) == 2
        await pool.close()

    left.run(main)


def test_the_check_is_for_what_lay_idle(left: TestLoop) -> None:
    """Not for what was used a moment ago."""
    checked: list[Thing] = []

    async def check(thing: Thing) -> None:
        checked.append(thing)

    pool = Factory().pool(check=check, check_after=1000)

    async def main() -> None:
        await use(pool)
        await use(pool)
        assert checked == []
        await pool.close()

    left.run(main)


def test_a_cancelled_check_drops_the_resource(left: TestLoop) -> None:
    """Nobody knows what state it is in."""
    factory = Factory(1)
    checking = asyncio.Event()

    async def check(thing: Thing) -> None:
        if thing.number == 1:
            checking.set()
            await asyncio.Event().wait()

    pool = factory.pool(check=check, check_after=0)

    async def main() -> None:
        await use(pool)
        doomed = asyncio.create_task(use(pool))
        await checking.wait()
        doomed.cancel()
        await asyncio.wait([doomed])
        assert await use(pool) == 2
        assert pool.stats().in_use == 0
        await pool.close()

    left.run(main)


def test_reset_at_each_return(left: TestLoop) -> None:
    """Before anybody else gets it; one that cannot be reset is dropped, and the block ends as if nothing were."""
    factory = Factory(1)

    async def reset(thing: Thing) -> None:
        thing.resets += 1
        if thing.resets == 3:
            raise ConnectionError

    pool = factory.pool(reset=reset)

    async def main() -> None:
        assert [await use(pool) for _ in range(4)] == [1, 1, 1, 2]
        thing = await pool.acquire()
        await pool.release(thing)
        assert thing.resets == 2
        await pool.close()

    left.run(main)


def test_a_cancelled_reset_drops_the_resource(left: TestLoop) -> None:
    """The cancellation goes on."""
    factory = Factory(1)
    resetting = asyncio.Event()

    async def reset(thing: Thing) -> None:
        if thing.number == 1:
            resetting.set()
            await asyncio.Event().wait()

    pool = factory.pool(reset=reset)

    async def main() -> None:
        doomed = asyncio.create_task(use(pool))
        await resetting.wait()
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        assert await use(pool) == 2
        await pool.close()

    left.run(main)


def test_too_old_to_be_lent_again(left: TestLoop) -> None:
    """It is replaced when it comes back, or when it lies idle at that time."""
    factory = Factory(1)
    pool = factory.pool(max_lifetime=0.02)

    async def main() -> None:
        await use(pool)
        assert factory.open == 1
        while factory.open:
            await asyncio.sleep(0.001)
        async with pool.acquire() as thing:
            await asyncio.sleep(0.03)
        assert await use(pool) == thing.number + 1
        assert pool.stats().expired == 2
        await pool.close()

    left.run(main)


def test_idle_for_too_long(left: TestLoop) -> None:
    """It is closed, but for as many as are to lie ready."""
    factory = Factory(3)
    pool = factory.pool(max_size=3, max_idle_time=0.02, min_idle=1)

    async def main() -> None:
        async with pool.acquire(), pool.acquire(), pool.acquire():
            pass
        assert factory.open == 3
        while factory.open > 1:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert factory.open == 1
        await pool.close()

    left.run(main)


def test_a_close_that_fails_or_hangs_frees_its_permit(left: TestLoop, caplog: pytest.LogCaptureFixture) -> None:
    """It is given up after its time, and said in the log."""
    closing: list[int] = []

    async def create() -> int:
        return len(closing) + 1

    async def close(number: int) -> None:
        closing.append(number)
        if number == 1:
            raise ConnectionError("reset by peer")
        if number == 2:
            await asyncio.Event().wait()

    pool = ResourcePool(create, close, max_size=1, upkeep_timeout=0.01, name="db")

    async def main() -> None:
        for number in (1, 2, 3):
            async with pool.acquire() as resource:
                assert resource == number
                pool.discard(resource)
        await pool.close()

    left.run(main)
    assert "ConnectionError('reset by peer')" in caplog.text
    assert "TimeoutError" in caplog.text
    assert pool.stats().size == 0


# Ready for use


def test_open_makes_what_is_to_lie_ready_on_all_loops() -> None:
    """Spread over the runtime's loops."""
    factory = Factory(4)
    pool = factory.pool(min_idle=4)

    async def main() -> None:
        async with pool:
            assert factory.open == 4
            assert sorted(len(desk.idle) for desk in pool._desks.values()) == [2, 2]
        assert factory.open == 0

    polyloop.run(main(), loops=2)


def test_open_says_at_once_what_is_wrong(left: TestLoop) -> None:
    """A server that is down is noticed when the program starts."""
    factory = Factory()
    factory.failing.append(ConnectionError("no server"))
    pool = factory.pool(min_idle=1)
    with pytest.raises(ConnectionError, match="no server"):
        left.run(pool.open)
    left.run(pool.close)


def test_a_block_that_cannot_begin_leaves_nothing_behind() -> None:
    """What was made before the first failure is closed, and nothing is tried again."""
    made: list[int] = []
    closed: list[int] = []

    async def create() -> int:
        if len(made) == 2:
            raise ConnectionError("no server")
        made.append(len(made))
        return made[-1]

    async def main() -> None:
        pool = ResourcePool(create, closed.append, max_size=4, min_idle=4)
        with pytest.raises(ConnectionError, match="no server"):
            async with pool:
                raise AssertionError
        assert sorted(closed) == made
        assert pool.stats().size == 0

    polyloop.run(main(), loops=2)


def test_opened_twice(left: TestLoop) -> None:
    """Makes what is missing, and no more."""
    factory = Factory()
    pool = factory.pool(min_idle=2, max_size=4)

    async def main() -> None:
        await pool.open()
        async with pool:
            assert factory.open == 2

    left.run(main)


def test_what_is_to_lie_ready_is_made_anew(left: TestLoop) -> None:
    """When one has broken."""
    factory = Factory()
    pool = factory.pool(min_idle=2, max_size=3)

    async def main() -> None:
        async with pool:
            async with pool.acquire() as thing:
                pool.discard(thing)
            while pool.stats().idle < 2:
                await asyncio.sleep(0)
            assert pool.stats().created == 3

    left.run(main)


# The end


def test_closing_a_pool(left: TestLoop, right: TestLoop) -> None:
    """Waiters are told, loans are waited for, everything is closed on its own loop, and nothing is lent any more."""
    factory = Factory(2)
    pool = factory.pool(name="db")
    go_on = polyloop.Event()
    holders = [loop.spawn(hold, pool, go_on) for loop in (left, right)]
    until(lambda: pool.stats().in_use == 2)
    waiter = left.spawn(use, pool)
    until(lambda: pool.stats().waiting)
    closer = right.spawn(pool.close)
    with pytest.raises(PoolClosedError, match="pool 'db' was closed while this waited"):
        waiter.result(30)
    with pytest.raises(PoolClosedError, match=r"lends nothing|is closing"):
        left.run(use, pool)
    assert not closer.done()
    go_on.set()
    closer.result(30)
    assert sorted(holder.result(30) for holder in holders) == [1, 2]
    assert factory.open == 0
    left.run(pool.close)  # once more does no harm
    with pytest.raises(PoolClosedError):
        left.run(use, pool)


def test_closing_takes_no_longer_than_it_is_given(left: TestLoop) -> None:
    """What is still on loan is closed under its borrower, whose return later does nothing."""
    factory = Factory(1)
    pool = factory.pool()
    go_on = polyloop.Event()
    holder = left.spawn(hold, pool, go_on)
    until(lambda: pool.stats().in_use)
    left.run(pool.close, 0.0)
    assert factory.open == 0
    go_on.set()
    assert holder.result(30) == 1


def test_draining_serves_those_who_wait(left: TestLoop, right: TestLoop) -> None:
    """And nobody who comes later; it ends when everything is closed."""
    factory = Factory(1)
    pool = factory.pool()
    go_on = polyloop.Event()
    holder = left.spawn(hold, pool, go_on)
    until(lambda: pool.stats().in_use)
    waiter = right.spawn(use, pool)
    until(lambda: pool.stats().waiting)
    drain = left.spawn(pool.drain)
    until(lambda: pool._shared.state == "draining")
    with pytest.raises(PoolClosedError):
        left.run(use, pool)
    go_on.set()
    drain.result(30)
    assert (holder.result(30), waiter.result(30)) == (1, 2)
    assert factory.open == 0
    left.run(pool.close)


def test_a_loop_that_is_stuck_does_not_hold_up_the_close(
    left: TestLoop, right: TestLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named, and left with what it has."""
    factory = Factory()
    pool = factory.pool(upkeep_timeout=0.01)
    right.run(use, pool)
    with right.paused():
        left.run(pool.close, 0.0)
    assert "is closed, but not what it has on right" in caplog.text
    until(lambda: factory.open == 0)


def test_a_pool_that_nobody_closes_is_closed_with_its_loops(flavour: Flavour) -> None:
    """After the tasks of each loop, on that loop."""
    factory = Factory()
    pool = factory.pool()

    async def main() -> None:
        await asyncio.gather(*(use(pool) for _ in range(3)))
        assert factory.open == 3

    with asyncio.Runner(loop_factory=flavour.new) as runner:
        runner.run(main())
    assert factory.open == 0
    assert pool.stats().size == 0
    with Runtime(loops=2, loop_factory=flavour.new) as runtime:
        runtime.run(main())
    assert factory.open == 0


def test_a_loan_that_outlives_its_loop_is_closed_with_it() -> None:
    """A task that is cancelled at the end returns it; one that forgot to loses it."""
    factory = Factory()
    pool = factory.pool()

    async def main() -> None:
        await pool.acquire()

    asyncio.run(main())
    assert factory.open == 0
    assert pool.stats().in_use == 0


def test_a_loop_that_is_closed_without_a_word_gives_its_permits_back(left: TestLoop) -> None:
    """What it had is written off, and those who wait elsewhere are served."""
    factory = Factory()
    pool = factory.pool(max_size=1, name="db")

    async def borrow() -> None:
        await pool.acquire()

    def abandon() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(borrow())
        waiter.append(left.spawn(use, pool))
        until(lambda: pool.stats().waiting)
        loop.close()

    waiter: list[Any] = []
    TestThread(abandon).result()
    assert waiter[0].result(30) == 2
    assert pool.stats().lost == 1
    left.run(pool.close)


def test_nothing_is_lent_on_a_loop_that_is_ending() -> None:
    """The error says so."""
    pool = Factory().pool()
    errors: list[BaseException] = []

    async def main() -> None:
        await use(pool)

    async def late() -> Any:
        try:
            yield
        finally:
            try:
                for _ in range(10):
                    await asyncio.sleep(0)
                await use(pool)
            except RuntimeError as error:
                errors.append(error)

    async def both() -> None:
        await main()
        generators.append(late())
        await anext(generators[0])

    generators: list[Any] = []
    asyncio.run(both())
    assert "which is ending" in str(errors[0])


def test_two_runs_on_one_thread_have_resources_of_their_own() -> None:
    """A connection of the first run is of no use in the second."""
    factory = Factory(1)
    pool = factory.pool()
    assert [asyncio.run(use(pool)) for _ in range(3)] == [1, 2, 3]
    assert factory.open == 0


def test_made_with_no_variables_of_the_caller(left: TestLoop) -> None:
    """What a resource is made for may be anybody's request."""
    import contextvars

    request = contextvars.ContextVar("request", default="nobody's")
    seen: list[str] = []

    async def create() -> object:
        seen.append(request.get())
        return object()

    pool = ResourcePool(create, lambda thing: None, max_size=1)

    async def main() -> None:
        request.set("mine")
        async with pool.acquire():
            pass
        await pool.close()

    left.run(main)
    assert seen == ["nobody's"]


def test_stats_and_repr(left: TestLoop) -> None:
    """Figures from any thread."""
    pool = Factory().pool(max_size=2, name="db")
    left.run(use, pool)
    assert repr(pool) == "<ResourcePool 'db' open, 1/2 made, 0 waiting>"
    stats = pool.stats()
    assert (stats.max_size, stats.size, stats.waits.count) == (2, 1, 1)
    assert stats.waits.quantile(0.5) <= stats.waits.longest
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.waits.quantile(2)
    left.run(pool.close)
    assert pool.stats().loans == 1  # they outlive the loops


def test_threads_with_loops_of_their_own(seconds: float) -> None:
    """No runtime: plain asyncio.run in threads shares the cap all the same."""
    factory = Factory(2)
    pool = factory.pool()

    async def main() -> None:
        for _ in range(200):
            await use(pool)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.stats().loans == 800
    assert factory.open == 0
    with contextlib.suppress(PoolClosedError):
        asyncio.run(pool.close())


# What was found by reading


def test_a_coroutine_that_is_collected_gives_its_loan_back(left: TestLoop) -> None:
    """By a post: the collector may run amid anything, the ledger's own lock included."""
    factory = Factory(1)
    pool = factory.pool()
    parked: list[None] = []

    async def forgotten() -> None:
        async with pool.acquire():
            parked.append(None)
            await asyncio.get_running_loop().create_future()  # which nobody else has

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        task = asyncio.create_task(forgotten())
        while not parked:
            await asyncio.sleep(0)
        del task
        with pool._shared._lock:
            gc.collect()
        assert await use(pool) == 1
        await pool.close()

    logging.getLogger("asyncio").disabled = True  # that it was destroyed is what is wanted
    try:
        left.run(main)
    finally:
        logging.getLogger("asyncio").disabled = False


def test_what_is_closed_while_idle_is_replaced_only_once(left: TestLoop) -> None:
    """Closing what is idle ends, though ``min_idle`` has it made anew at once."""
    made: list[int] = []

    async def create() -> int:
        made.append(len(made))
        return made[-1]

    async def main() -> None:
        async with ResourcePool(create, lambda number: None, max_size=3, min_idle=2) as pool:
            await pool.close_idle()
            while pool.stats().idle < 2:
                await asyncio.sleep(0)
            assert len(made) == 4

    left.run(main)


def test_every_loop_with_something_idle_is_told(loops: Callable[[int], list[TestLoop]]) -> None:
    """One of them may be busy with something else."""
    busy, helpful, asking = loops(3)
    pool = Factory(2).pool(max_size=2, **STRICT)
    busy.run(use, pool)
    helpful.run(use, pool)
    with busy.paused():
        assert asking.run(use, pool) == 3
    asking.run(pool.close)


@pytest.mark.parametrize("when", ["lent", "returned"])
def test_an_is_closed_that_raises_drops_the_resource(
    left: TestLoop, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """And says so in the log; the permit is not lost."""
    factory = Factory(1)
    asked: list[int] = []

    def is_closed(thing: Thing) -> bool:
        asked.append(thing.number)
        if thing.number == 1 and len(asked) == {"lent": 1, "returned": 2}[when]:
            raise ZeroDivisionError
        return False

    pool = factory.pool(is_closed=is_closed)

    async def main() -> None:
        assert [await use(pool), await use(pool)] == {"lent": [2, 2], "returned": [1, 2]}[when]
        await pool.close()

    left.run(main)
    assert "is_closed raised" in caplog.text


def test_is_closed_that_is_true_of_all(left: TestLoop) -> None:
    """Is an error, not a storm of connects."""
    factory = Factory(1)
    pool = factory.pool(is_closed=lambda thing: True)

    async def main() -> None:
        with pytest.raises(ConnectionError, match=r"is_closed\(\) is true of what create\(\) has just made"):
            await use(pool)
        await pool.close()

    left.run(main)
    assert pool.stats().created < 10


def test_a_close_that_is_cancelled_from_within_frees_its_permit(left: TestLoop) -> None:
    """Whatever it raises."""

    async def create() -> int:
        return 1

    def close(number: int) -> None:
        raise asyncio.CancelledError

    pool = ResourcePool(create, close, max_size=1)

    async def main() -> None:
        async with pool.acquire() as number:
            with contextlib.suppress(asyncio.CancelledError):
                pool.discard(number)
        async with pool.acquire():
            pass

    left.run(main)
    assert pool.stats().created == 2


def test_a_close_that_the_loops_end_cancels_is_begun_anew() -> None:
    """The resource is closed before the loop is."""
    steps: list[str] = []

    async def create() -> int:
        return 1

    async def close(number: int) -> None:
        steps.append("begun")
        await asyncio.sleep(0.01)
        steps.append("closed")

    pool = ResourcePool(create, close, max_size=1)

    async def main() -> None:
        pool.discard(await pool.acquire())

    asyncio.run(main())
    assert steps == ["begun", "begun", "closed"]


def test_callers_for_whom_there_is_a_permit_do_not_count_as_waiting(left: TestLoop) -> None:
    """``max_waiting=0`` refuses nobody who can be served."""
    pool = Factory().pool(max_size=3, max_waiting=0)

    async def main() -> None:
        assert sorted(await asyncio.gather(*(hold_for(pool) for _ in range(3)))) == [1, 2, 3]
        await pool.close()

    async def hold_for(pool: ResourcePool[Thing]) -> int:
        async with pool.acquire() as thing:
            await asyncio.sleep(0.001)
            return thing.number

    left.run(main)


def test_create_may_return_the_same_object_twice(left: TestLoop) -> None:
    """Each is a resource of its own: what counts is how often it was made."""

    async def create() -> None:
        return None

    closed: list[None] = []
    pool = ResourcePool(create, closed.append, max_size=2)

    async def main() -> None:
        async with pool.acquire(), pool.acquire():
            assert pool.stats().in_use == 2
        assert (pool.stats().idle, pool.stats().in_use) == (2, 0)
        await pool.close()

    left.run(main)
    assert len(closed) == 2


def test_a_loan_that_was_asked_for_on_another_loop(left: TestLoop, right: TestLoop) -> None:
    """Is one of the loop that takes it."""
    factory = Factory()
    pool = factory.pool()

    async def ask() -> Any:
        return pool.acquire()

    loan = left.run(ask)

    async def take() -> None:
        async with loan as thing:
            thing.use()

    right.run(take)
    right.run(pool.close)


def test_after_an_outage_everything_is_made_ready_again(left: TestLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only as many as failed last."""
    monkeypatch.setattr("polyloop.pools._desk._RETRY", 0.01)
    factory = Factory()
    pool = factory.pool(max_size=4, min_idle=4, is_closed=lambda thing: thing.dead)

    async def main() -> None:
        async with pool:
            for thing in factory.things.values():
                thing.dead = True
            factory.failing.extend(ConnectionError() for _ in range(6))
            results = await asyncio.gather(*(use(pool) for _ in range(4)), return_exceptions=True)
            assert any(isinstance(result, ConnectionError) for result in results)
            while pool.stats().idle < 4:
                await asyncio.sleep(0.001)

    left.run(main)


def test_the_older_of_two_idle_ones_is_replaced_in_time(left: TestLoop) -> None:
    """Though the younger one has lain idle for longer."""
    factory = Factory(2)
    pool = factory.pool(max_size=2, max_lifetime=0.1)

    async def main() -> None:
        old = await pool.acquire()
        await asyncio.sleep(0.05)
        async with pool.acquire() as young:
            pass
        await pool.release(old)
        while not old.closed:
            await asyncio.sleep(0.001)
        assert not young.closed
        await pool.close()

    left.run(main)


def test_closing_at_once_cancels_what_is_being_made(left: TestLoop) -> None:
    """A connect that hangs holds nothing up."""
    factory = Factory(1, wait=asyncio.Event().wait)
    pool = factory.pool()

    async def main() -> None:
        waiter = asyncio.create_task(use(pool))
        await asyncio.sleep(0)
        await pool.close(0.0)
        with pytest.raises(PoolClosedError):
            await waiter

    left.run(main)
    assert factory.open == 0


def test_a_closed_pool_is_not_opened_again(left: TestLoop) -> None:
    """It says so, instead of failing at each loan."""
    pool = Factory().pool()
    left.run(pool.close)
    with pytest.raises(PoolClosedError, match="cannot be opened again"):
        left.run(pool.open)


def test_a_return_after_the_pool_was_closed_by_force(left: TestLoop) -> None:
    """Hides no exception of the borrower's."""
    pool = Factory().pool()

    async def main() -> None:
        thing = await pool.acquire()
        await pool.close(0.0)
        await pool.release(thing)

    left.run(main)


def test_a_return_elsewhere_while_the_pool_drains(left: TestLoop, right: TestLoop) -> None:
    """One that belongs to no loop finds its way back, and the drain ends."""

    async def create() -> list[int]:
        return []

    pool = ResourcePool(create, list[int].clear, max_size=1, loop_bound=False)

    async def enter() -> Any:
        loan = pool.acquire()
        await loan.__aenter__()
        return loan

    loan = left.run(enter)
    drain = left.spawn(pool.drain)
    until(lambda: pool._shared.state == "draining")
    right.run(loan.__aexit__, None, None, None)
    drain.result(30)
    assert pool.stats().size == 0


def test_a_pool_that_everybody_forgot_is_closed(left: TestLoop) -> None:
    """By the collector, on its loop; and the loop keeps nothing of it."""
    factory = Factory()

    async def main() -> int:
        await use(factory.pool(max_idle_time=1000.0, min_idle=1))
        gc.collect()
        while factory.open:
            await asyncio.sleep(0.001)
            gc.collect()
        return len(left.worker._mourners)

    assert left.run(main) == 0


def test_a_loop_that_another_thread_closes(left: TestLoop) -> None:
    """What it had is written off, though its own thread cannot say so: it waits for that other one."""
    pool = Factory().pool(max_size=1)
    loop = asyncio.new_event_loop()

    async def lend() -> object:
        return await pool.acquire()

    kept = loop.run_until_complete(lend())

    def close_it_and_borrow() -> None:
        loop.close()
        asyncio.run(asyncio.wait_for(use(pool), 20))

    thread = threading.Thread(target=close_it_and_borrow)
    thread.start()
    thread.join()
    assert kept is not None
    assert (pool.stats().loans, pool.stats().lost) == (2, 1)
    left.run(pool.close)


def test_a_loop_that_was_given_up_gets_nothing(left: TestLoop, right: TestLoop) -> None:
    """Should its thread come back, it is told; a permit of its own would never be seen again."""
    pool = Factory().pool(max_size=1)
    left.run(use, pool)
    desk = next(iter(pool._desks.values()))
    pool._shared.lost(desk)
    desk.idle.clear()

    async def come_back() -> None:
        with pytest.raises(RuntimeClosedError, match="was given up"):
            await desk.borrow(None)

    left.run(come_back)
    right.run(use, pool)
    assert pool.stats().size == 1
    right.run(pool.close)

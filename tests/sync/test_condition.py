"""``Condition`` between loops, trio and threads: order, cancellation, time, and the lock that is held again."""

import asyncio
import time
from collections import deque
from typing import Any

import pytest
import trio
from tests.helpers import cancel_amid, in_trio, park_on_a_dead_loop, queue_up, until

from polyloop import BlockingCallError, Condition, Lock, RLock
from polyloop.testing import Interleaving, TestLoop, TestThread, explore


def waiting(condition: Condition) -> int:
    return len(condition._line)


async def wait(condition: Condition) -> bool:
    async with condition:
        return await condition.wait()


def block(condition: Condition, timeout: float | None = None) -> bool:
    with condition.sync:
        return condition.sync.wait(timeout)


def notify(condition: Condition, n: int = 1) -> None:
    with condition.sync:
        condition.sync.notify(n)


@pytest.fixture(params=[Lock, RLock])
def condition(request: pytest.FixtureRequest) -> Condition:
    """A condition with a lock of each kind."""
    return Condition(request.param())


def test_who_waits_is_notified_in_the_order_of_coming(left: TestLoop, right: TestLoop, condition: Condition) -> None:
    """Tasks of two loops and of trio, and threads; so many at a time as are notified."""
    order: list[int] = []

    async def task(number: int) -> None:
        async with condition:
            await condition.wait()
            order.append(number)

    def thread(number: int) -> None:
        with condition.sync:
            condition.sync.wait()
            order.append(number)

    pending = queue_up(left, right, task, thread, lambda: waiting(condition))
    assert repr(condition).endswith("[unlocked, waiters:8]>")
    for number in range(3):
        notify(condition)
        pending[number].result()
        assert order == list(range(number + 1))
    notify(condition, 2)
    pending[3].result()
    pending[4].result()
    assert waiting(condition) == 3
    left.run(notify_all, condition)
    for one in pending:
        one.result()
    assert sorted(order) == list(range(8))
    assert not condition.locked()


async def notify_all(condition: Condition) -> None:
    async with condition:
        assert condition.locked()
        condition.notify_all()
        condition.sync.notify_all()


def test_waiting_for_a_predicate(left: TestLoop) -> None:
    """It is looked at with the lock held, at first and after each notification; its value is returned."""
    condition = Condition()
    items: deque[str] = deque()

    def take() -> str | None:
        assert condition._lock._is_mine()
        return items.popleft() if items else None

    async def task() -> str | None:
        async with condition:
            return await condition.wait_for(take)

    def thread() -> str | None:
        with condition.sync:
            return condition.sync.wait_for(take)

    pending: list[Any] = [left.spawn(task), TestThread(thread)]
    until(lambda: waiting(condition) == 2)
    notify(condition, 2)  # for nothing
    until(lambda: waiting(condition) == 2)
    with condition.sync:
        items.extend("ab")
        condition.sync.notify_all()
    assert sorted(one.result() for one in pending) == ["a", "b"]
    with condition.sync:
        assert condition.sync.wait_for(take, 0.01) is None
        assert condition.sync.wait_for(lambda: "there", 0) == "there"


def test_the_lock_must_be_held(left: TestLoop, condition: Condition) -> None:
    """To wait and to notify, on both faces."""

    async def task() -> None:
        with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
            await condition.wait()

    left.run(task)
    for call in (condition.notify, condition.notify_all, condition.sync.notify, condition.sync.notify_all):
        with pytest.raises(RuntimeError, match="cannot notify on un-acquired lock"):
            call()
    with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
        condition.sync.wait()
    assert waiting(condition) == 0


def test_only_locks_of_polyloop_will_do() -> None:
    """Those of asyncio belong to one loop."""
    with pytest.raises(TypeError, match="needs a polyloop Lock or RLock"):
        Condition(asyncio.Lock())  # type: ignore[arg-type]
    lock = Lock()
    assert Condition(lock)._lock is lock
    assert isinstance(Condition()._lock, RLock)


class ReleasedMeanwhile(Lock):
    """A lock that somebody else releases just before a condition does."""

    def _release_all(self) -> int:
        self.release()
        return super()._release_all()


def test_who_cannot_release_the_lock_does_not_wait() -> None:
    """So nobody is notified in vain."""
    condition = Condition(ReleasedMeanwhile())

    async def on_a_loop() -> None:
        await condition.acquire()
        with pytest.raises(RuntimeError, match="not acquired"):
            await condition.wait()

    asyncio.run(on_a_loop())
    assert condition.sync.acquire()
    with pytest.raises(RuntimeError, match="not acquired"):
        condition.sync.wait()
    assert waiting(condition) == 0


def test_an_rlock_is_released_to_the_last_and_taken_as_often_again(left: TestLoop) -> None:
    """Whoever waits releases all of it."""
    condition = Condition()

    async def task() -> None:
        async with condition, condition:
            await condition.wait()
            condition.release()
            condition.notify()
            assert condition.acquire_nowait()

    def thread() -> None:
        with condition.sync, condition.sync:
            condition.sync.wait()
            condition.sync.release()
            condition.sync.notify()
            assert condition.sync.acquire()

    pending: list[Any] = [left.spawn(task), TestThread(thread)]
    until(lambda: waiting(condition) == 2)
    with condition.sync:
        condition.sync.notify_all()
    for one in pending:
        one.result()
    assert not condition.locked()


# Who gives up


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_a_cancelled_waiter_passes_its_notification_on(
    left: TestLoop, right: TestLoop, condition: Condition, cancelled_first: bool
) -> None:
    """Notified and cancelled before it can run, in either order: the next is notified."""
    doomed = left.spawn(wait, condition)
    left.wait_all_blocked()
    following = right.spawn(wait, condition)
    right.wait_all_blocked()
    cancel_amid(left, doomed, lambda: notify(condition), cancelled_first)
    assert following.result()
    assert (condition.locked(), waiting(condition)) == (False, 0)


def test_a_cancelled_waiter_holds_the_lock_when_it_is_told(left: TestLoop, condition: Condition) -> None:
    """However often it is cancelled while somebody else has the lock."""
    mine: list[bool] = []

    async def task() -> None:
        async with condition:
            try:
                await condition.wait()
            finally:
                mine.append(condition._lock._is_mine())

    doomed = left.spawn(task)
    left.wait_all_blocked()
    with condition.sync:
        for _ in range(3):
            doomed.cancel()
            left.wait_all_blocked()
        assert not doomed.done()
    with pytest.raises(asyncio.CancelledError):
        doomed.result()
    assert mine == [True]
    assert not condition.locked()


def test_a_cancelled_trio_task_holds_the_lock_when_it_is_told(condition: Condition) -> None:
    """Though trio goes on cancelling until its scope is left."""
    mine: list[bool] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            async with condition:
                try:
                    await condition.wait()
                finally:
                    mine.append(condition._lock._is_mine())

    scopes: list[trio.CancelScope] = []
    tokens: list[Any] = []

    async def begin() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        await main()

    thread = in_trio(begin)
    until(lambda: waiting(condition) == 1)
    with condition.sync:
        tokens[0].run_sync_soon(scopes[0].cancel)
        until(lambda: len(condition._lock._permits.line) == 1)  # it wants the lock again
        assert waiting(condition) == 0 or not mine
    thread.result()
    assert mine == [True]
    assert (condition.locked(), waiting(condition)) == (False, 0)


def test_a_waiter_of_a_dead_loop_is_skipped(condition: Condition) -> None:
    """The next is notified."""
    parked = park_on_a_dead_loop(lambda: wait(condition))
    thread = TestThread(block, condition)
    until(lambda: waiting(condition) == 2)
    notify(condition)
    assert thread.result()
    parked.close()
    assert (condition.locked(), waiting(condition)) == (False, 0)


def test_a_wait_of_a_thread_can_be_limited(condition: Condition) -> None:
    """Out of time it holds the lock again, and takes no notification away."""
    began = time.monotonic()
    assert not block(condition, 0.02)
    assert time.monotonic() - began >= 0.02
    assert not block(condition, 0)
    assert (condition.locked(), waiting(condition)) == (False, 0)
    thread = TestThread(block, condition, 30.0)
    until(lambda: waiting(condition) == 1)
    notify(condition)
    assert thread.result()


def test_a_loop_is_not_blocked(left: TestLoop, condition: Condition) -> None:
    """To wait is refused, and the message names the awaitable twin; the lock is still held."""

    async def on_a_loop() -> None:
        with condition.sync:
            with pytest.raises(BlockingCallError, match=r"'left'; use 'await condition.wait\(\)'"):
                condition.sync.wait()
            condition.sync.notify()
            assert condition.locked()

    left.run(on_a_loop)
    assert (condition.locked(), waiting(condition)) == (False, 0)
    assert repr(condition.sync) == f"<sync face of {condition!r}>"


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_no_notification_is_lost_in_any_order(kind: type[Lock | RLock]) -> None:
    """One of two that wait is cancelled at any moment; one notification is for the other then."""

    def scenario(it: Interleaving) -> None:
        condition = Condition(kind())
        items: list[int] = []

        async def task() -> None:
            async with condition:
                await condition.wait_for(lambda: items)
                items.pop()
                condition.notify()

        def thread() -> None:
            with condition.sync:
                condition.sync.wait_for(lambda: items)
                items.pop()
                condition.sync.notify()

        def put() -> None:
            doomed.cancel()
            for _ in range(2):
                with condition.sync:
                    items.append(1)
                    condition.sync.notify()

        doomed = it.coroutine(task)
        it.thread(thread)
        it.thread(put)

        def check() -> None:
            assert (condition.locked(), waiting(condition)) == (False, 0)
            assert len(items) == (1 if doomed.cancelled() else 0)

        it.check(check)

    explore(scenario, preemptions=1, schedules=600)
    explore(scenario, seed=2, schedules=60)

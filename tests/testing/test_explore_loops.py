"""``explore`` with coroutines: lost wake-ups of a small queue, cancellation, timers."""

import asyncio
from collections import deque
from typing import Literal

import pytest

from polyloop import Lock
from polyloop._core._parking import AsyncWaiter, ThreadWaiter, Waiter, async_waiter
from polyloop.testing import ExplorationError, Interleaving, explore

type Bug = Literal["", "looks first", "looks once", "keeps the wake-up"]


class SmallQueue:
    """A queue without locks, with a choice of mistakes."""

    def __init__(self, bug: Bug = "") -> None:
        self._bug = bug
        self._items: deque[int] = deque()
        self._line: deque[Waiter] = deque()

    def put(self, item: int) -> None:
        anybody = bool(self._line)
        self._items.append(item)
        if self._bug != "looks first":
            anybody = bool(self._line)  # after the append
        if anybody:
            self._wake_next()

    def _wake_next(self) -> None:
        try:
            self._line.popleft().wake()
        except IndexError:
            pass

    def _enter(self, waiter: ThreadWaiter | AsyncWaiter) -> int | None:
        """Stand in line, and look whether there is something now."""
        if self._bug == "looks once":
            item = self._take()
            if item is None:
                self._line.append(waiter)
            return item
        self._line.append(waiter)
        item = self._take()
        if item is not None:
            self._leave(waiter)
        return item

    def _take(self) -> int | None:
        try:
            return self._items.popleft()
        except IndexError:
            return None

    def _leave(self, waiter: ThreadWaiter | AsyncWaiter) -> None:
        try:
            self._line.remove(waiter)
        except ValueError:
            if self._bug != "keeps the wake-up":
                self._wake_next()

    def get_blocking(self) -> int:
        while True:
            waiter = ThreadWaiter()
            item = self._enter(waiter)
            if item is not None:
                return item
            waiter.park()

    async def get(self) -> int:
        while True:
            waiter = async_waiter()
            item = self._enter(waiter)
            if item is not None:
                return item
            try:
                await waiter
            except asyncio.CancelledError:
                self._leave(waiter)
                raise


def equal(left: object, right: object) -> None:
    assert left == right


def put_and_get(it: Interleaving, bug: Bug, *, blocking: bool) -> None:
    queue = SmallQueue(bug)
    it.thread(queue.put, 1)
    getter = it.thread(queue.get_blocking) if blocking else it.coroutine(queue.get)
    it.check(lambda: equal(getter.result(), 1))


def put_and_cancel(it: Interleaving, bug: Bug) -> None:
    """One item, two getters, of which one is cancelled: if it is not the one that gets the item, the other is."""
    queue = SmallQueue(bug)

    async def get_or_be_cancelled() -> None:
        await queue.get()
        other.cancel()  # there is no second item

    def put_and_cancel() -> None:
        queue.put(1)
        doomed.cancel()

    doomed = it.coroutine(get_or_be_cancelled, name="doomed")
    other = it.coroutine(queue.get, name="other")
    it.thread(put_and_cancel)
    it.check(lambda: equal(other.cancelled(), not doomed.cancelled()))


@pytest.mark.parametrize("blocking", [True, False], ids=["thread", "coroutine"])
@pytest.mark.parametrize("bug", ["looks first", "looks once"])
def test_a_lost_wake_up_is_found(bug: Bug, blocking: bool) -> None:
    """Whether the getter is a thread or a coroutine on a loop."""
    with pytest.raises(ExplorationError, match="all threads wait for ever") as caught:
        explore(lambda it: put_and_get(it, bug, blocking=blocking))
    with pytest.raises(ExplorationError, match="found by a replay"):
        explore(lambda it: put_and_get(it, bug, blocking=blocking), replay=caught.value.schedule)


@pytest.mark.parametrize("blocking", [True, False], ids=["thread", "coroutine"])
def test_the_queue_without_mistakes_passes(blocking: bool) -> None:
    """All schedules within the bound."""
    assert explore(lambda it: put_and_get(it, "", blocking=blocking)).exhaustive


def test_a_wake_up_that_a_cancelled_getter_keeps_is_found() -> None:
    """It was woken for the item, left, and the other sleeps beside it."""
    with pytest.raises(ExplorationError, match="all threads wait for ever") as caught:
        explore(lambda it: put_and_cancel(it, "keeps the wake-up"), preemptions=1)
    assert "other waits: the loop sleeps" in str(caught.value)


def test_a_cancelled_getter_that_passes_its_wake_up_on_is_right() -> None:
    """All schedules with one preemption."""
    assert explore(lambda it: put_and_cancel(it, ""), preemptions=1).exhaustive


def test_a_lock_of_polyloop_between_a_loop_and_a_thread() -> None:
    """The real thing: one is inside at a time, cancelled or not, and the lock is free at the end."""

    def scenario(it: Interleaving) -> None:
        lock = Lock()
        inside: list[int] = []

        async def hold() -> None:
            async with lock:
                visit()

        def hold_on_a_thread() -> None:
            with lock.sync:
                visit()

        def visit() -> None:
            inside.append(1)
            assert len(inside) == 1
            inside.pop()

        doomed = it.coroutine(hold)
        it.thread(hold_on_a_thread)
        it.thread(doomed.cancel)
        it.check(lambda: equal(lock.locked(), False))

    assert explore(scenario, preemptions=1).exhaustive


def test_a_task_cancelled_before_its_thread_runs_never_begins() -> None:
    """In some schedules it is, in some it was done before; its result says which."""
    ends: set[str] = set()

    def scenario(it: Interleaving) -> None:
        async def work() -> str:
            await asyncio.sleep(0)
            return "done"

        task = it.coroutine(work)
        it.thread(task.cancel)
        it.check(lambda: ends.add("cancelled" if task.cancelled() else task.result()))

    assert explore(scenario).exhaustive
    assert ends == {"cancelled", "done"}


def test_timers_follow_virtual_time() -> None:
    """An hour passes when nobody can run, and ``asyncio.timeout`` may come early."""
    ends: set[bool] = set()

    def scenario(it: Interleaving) -> None:
        async def wait() -> None:
            event = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.call_later(3600, event.set)
            await event.wait()
            try:
                async with asyncio.timeout(10):
                    await queue.get()
            except TimeoutError:
                ends.add(False)
            else:
                ends.add(True)

        queue = SmallQueue()
        it.coroutine(wait)
        it.thread(queue.put, 1)

    assert explore(scenario, preemptions=1).exhaustive
    assert ends == {True}  # the item is there before the hour has passed


def test_what_a_coroutine_raises_or_reports_is_a_failure() -> None:
    """So is an exception in a callback of its loop."""

    async def fail() -> None:
        raise LookupError("not there")

    async def fail_in_a_callback() -> None:
        asyncio.get_running_loop().call_soon(int, "x")
        await asyncio.sleep(0)

    with pytest.raises(ExplorationError, match="thread 'fail' raised LookupError: not there"):
        explore(lambda it: it.coroutine(fail))
    with pytest.raises(ExplorationError, match="reported to the loop"):
        explore(lambda it: it.coroutine(fail_in_a_callback))


def test_tasks_that_a_coroutine_leaves_behind_are_cancelled() -> None:
    """As by ``asyncio.run``."""
    ended: list[str] = []

    async def leave_one() -> None:
        async def linger() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")

        task = asyncio.create_task(linger())
        await asyncio.sleep(0)
        assert not task.done()

    done = explore(lambda it: it.coroutine(leave_one))
    assert done.exhaustive
    assert len(ended) >= done.schedules

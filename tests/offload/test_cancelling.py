"""Cancelling sync code: a call that runs, wherever it waits, and what its caller does meanwhile."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from tests.helpers import until
from tests.offload.calls import Offloaded

import polyloop
from polyloop import from_thread, queues, sync
from polyloop._core import _overdue
from polyloop._core._context import here
from polyloop._core._pool import ThreadPool
from polyloop._core._scope import Scope
from polyloop.offload._call import OnCancel
from polyloop.testing import Gate, TestLoop, TestThread

# Every wait

type Waits = tuple[Callable[[], object], Callable[[], bool]]


def lock() -> Waits:
    it = sync.Lock()
    assert it.sync.acquire()
    return it.sync.acquire, lambda: it.locked() and "waiters" not in repr(it)


def rlock() -> Waits:
    it = sync.RLock()
    assert it.sync.acquire()
    return it.sync.acquire, lambda: it.locked() and "waiters" not in repr(it)


def event() -> Waits:
    it = sync.Event()
    return it.sync.wait, lambda: "waiters" not in repr(it)


def condition() -> Waits:
    it = sync.Condition()

    def wait() -> None:
        with it.sync:
            try:
                it.sync.wait()
            except asyncio.CancelledError:
                it.sync.notify()  # raises if the lock is not held
                raise

    return wait, lambda: not it.locked() and "waiters" not in repr(it)


def semaphore() -> Waits:
    it = sync.Semaphore(0)
    return it.sync.acquire, lambda: it.value == 0 and "waiters" not in repr(it)


def barrier() -> Waits:
    it = sync.Barrier(2)
    return it.sync.wait, lambda: it.n_waiting == 0


def writer() -> Waits:
    it = sync.RWLock()
    assert it.sync.read.acquire()
    return it.sync.write.acquire, lambda: it.read.acquire_nowait()


def capacity() -> Waits:
    it = polyloop.CapacityLimiter(1)
    it.acquire_on_behalf_of_nowait(it)
    return it.sync.acquire, lambda: it.borrowed_tokens == 1 and len(it._entries) == 1


def latch() -> Waits:
    it = sync.Latch(1)
    return it.sync.wait, lambda: "waiters" not in repr(it)


def getter() -> Waits:
    it = queues.Queue[int]()
    return it.sync.get, lambda: not it._getters


def putter() -> Waits:
    it = queues.Queue[int](1)
    it.put_nowait(1)
    return lambda: it.sync.put(2), lambda: (it.qsize(), len(it._putters)) == (1, 0)


def joiner() -> Waits:
    it = queues.Queue[int]()
    it.put_nowait(1)
    return it.sync.join, lambda: not it._joiners


def priority() -> Waits:
    it = queues.PriorityQueue[int]()
    return it.sync.get, lambda: not it._getters


def receiver() -> Waits:
    sender, it = queues.channel[int](1)

    def receive() -> None:
        with it, sender:
            it.sync.receive()

    return receive, lambda: True


def handle_result() -> Waits:
    def wait() -> None:
        runtime = polyloop.current_runtime()
        runtime.spawn(asyncio.sleep, 3600).result()

    return wait, lambda: True


def nap() -> Waits:
    return lambda: polyloop.sleep_sync(3600), lambda: True


def async_nap() -> Waits:
    return lambda: from_thread.run(asyncio.sleep, 3600), lambda: True


@pytest.mark.parametrize(
    "make",
    [
        lock, rlock, event, condition, semaphore, barrier, writer, capacity, latch,
        getter, putter, joiner, priority, receiver, nap, async_nap,
    ],
)  # fmt: skip
def test_a_wait_of_sync_code_ends_when_its_task_is_cancelled(
    loop: TestLoop, pool: ThreadPool, make: Callable[[], Waits]
) -> None:
    """It raises at once, takes nothing with it, and leaves nobody in a line."""
    wait, is_clean = make()
    call = Offloaded(loop, wait)
    until(call.asleep)
    call.cancel()
    assert isinstance(call.raised, asyncio.CancelledError)
    assert is_clean()


def test_the_result_of_a_task_is_a_wait_too(pool: ThreadPool) -> None:
    """``handle.result()`` in sync code; the task goes on, as it belongs to nobody's call."""
    started = Gate()

    async def other() -> str:
        await asyncio.to_thread(started.pause)
        return "done"

    async def main() -> str:
        handle = polyloop.spawn(other)
        call = asyncio.ensure_future(polyloop.to_thread(handle.result))
        await asyncio.to_thread(started.reached)
        await polyloop.to_thread(until, lambda: pool._lent == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        started.open()
        return await handle

    assert polyloop.run(main(), loops=2) == "done"


def test_every_wait_after_the_cancellation_raises_but_a_shielded_one(loop: TestLoop, pool: ThreadPool) -> None:
    """The cancellation stays: code that cleans up and has to wait for that says so."""
    items = queues.Queue[str]()
    seen: list[str] = []

    def work() -> None:
        try:
            polyloop.sleep_sync(3600)
        finally:
            for wait in (items.sync.get, from_thread.check_cancelled, lambda: polyloop.sleep_sync(0)):
                with pytest.raises(asyncio.CancelledError):
                    cast("Callable[[], object]", wait)()
            with from_thread.shield():
                from_thread.check_cancelled()
                seen.append(items.sync.get())

    call = Offloaded(loop, work)
    until(call.asleep)
    call.handle.cancel("enough")
    until(lambda: bool(items._getters))
    items.put_nowait("cleaned up")
    call.cancel()
    assert seen == ["cleaned up"]


def test_what_need_not_wait_goes_through(loop: TestLoop, pool: ThreadPool) -> None:
    """A cancelled function may put, take and release where there is nothing to wait for."""
    gate = Gate()
    items = queues.Queue[int]()

    def work() -> int:
        gate.pause()
        items.sync.put(1)
        with sync.Lock().sync:
            return items.sync.get()

    call = Offloaded(loop, work)
    gate.reached()
    call.handle.cancel("enough")
    loop.wait_all_blocked()
    gate.open()
    call.cancel()
    assert (call.returned, call.raised) == (1, None)


def test_code_that_computes_asks(loop: TestLoop, pool: ThreadPool) -> None:
    """``check_cancelled`` raises in the function that calls it, and nowhere else."""
    rounds = 0

    def compute() -> None:
        nonlocal rounds
        while True:
            from_thread.check_cancelled()
            rounds += 1

    call = Offloaded(loop, compute)
    until(lambda: rounds > 100)
    call.cancel()
    assert isinstance(call.raised, asyncio.CancelledError)
    from_thread.check_cancelled()  # here nothing was cancelled


def test_the_next_call_of_the_same_thread_is_not_cancelled(loop: TestLoop, pool: ThreadPool) -> None:
    """A scope is its call's."""
    call = Offloaded(loop, lambda: polyloop.sleep_sync(3600))
    until(call.asleep)
    call.cancel()

    def later() -> str:
        polyloop.sleep_sync(0.001)
        from_thread.check_cancelled()
        return "done"

    assert Offloaded(loop, later).handle.result(30) == "done"
    assert pool.peak == 1


def test_a_thread_of_an_executor_hears_of_it_too(loop: TestLoop) -> None:
    """``async_wrap(executor=…)`` on threads: the same scope."""
    from concurrent.futures import ThreadPoolExecutor

    scopes: list[Scope | None] = []

    def nap() -> None:
        scopes.append(here.scope)
        polyloop.sleep_sync(3600)

    with ThreadPoolExecutor(1) as executor:
        handle = loop.spawn(polyloop.async_wrap(executor=executor)(nap))
        until(lambda: scopes and scopes[0] is not None and scopes[0]._parked)
        handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            handle.result(30)


# When: before it begins, and around its end


def test_a_call_that_is_cancelled_between_queue_and_thread_is_not_made(
    loop: TestLoop, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread has taken it, and has not begun: the function never runs."""
    calls: list[Any] = []
    monkeypatch.setattr(pool, "submit", calls.append)  # a thread that has taken it, and is slow
    ran: list[int] = []
    call = Offloaded(loop, lambda: ran.append(1))
    loop.wait_all_blocked()
    call.handle.cancel("enough")
    loop.wait_all_blocked()
    assert not call.handle.done()
    TestThread(lambda: (calls[0].execute(), calls[0].announce())).result()
    call.cancel()
    assert not ran


@pytest.mark.parametrize("on_cancel", ["wait", "abandon", "interrupt"])
def test_a_call_that_has_just_ended_is_cancelled_all_the_same(
    loop: TestLoop, pool: ThreadPool, on_cancel: OnCancel
) -> None:
    """Its caller is cancelled before it hears of the end; nobody is counted as left behind."""
    gate = Gate()
    call = Offloaded(loop, gate.pause, on_cancel=on_cancel)
    gate.reached()
    with loop.paused():
        gate.open()
        until(lambda: pool.idle == 1 and call.scope is not None)
        call.handle.cancel("enough")
    call.cancel()
    assert (call.raised, pool.abandoned) == (None, 0)


def test_cancelling_a_runtime_that_closes_ends_its_calls(pool: ThreadPool) -> None:
    """Leaving the block cancels the task, and that the call: nothing is left behind."""
    scopes: list[Scope | None] = []

    def nap() -> None:
        scopes.append(here.scope)
        polyloop.sleep_sync(3600)

    with polyloop.Runtime(loops=2) as runtime:
        handle = runtime.spawn(polyloop.async_wrap(nap))
        until(lambda: scopes and scopes[0] is not None and scopes[0]._parked)
    assert handle.cancelled()
    assert runtime.close().clean


# Policies


def test_an_abandoned_thread_is_counted_and_named_when_its_runtime_ends(
    pool: ThreadPool, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it ends; the caller does not wait for it."""
    gate = Gate()

    def stubborn() -> None:
        gate.pause()

    async def call() -> None:
        await polyloop.to_thread(stubborn, on_cancel="abandon")

    runtime = polyloop.Runtime(loops=1, name="service").start()
    handle = runtime.spawn(call)
    gate.reached()
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)
    assert pool.abandoned == 1
    with caplog.at_level(logging.CRITICAL, "polyloop"):
        report = runtime.close()
    (stuck,) = report.stuck
    assert (stuck.kind, stuck.where) == ("thread", "service-0")
    assert stuck.name.startswith("polyloop-thread-")
    assert "abandoned in test_an_abandoned_thread" in stuck.name
    assert any(frame.endswith("in stubborn") for frame in stuck.stack)
    gate.open()
    until(lambda: pool.idle == 1)
    assert pool.abandoned == 0


def test_an_interrupt_ends_code_that_never_asks(loop: TestLoop, pool: ThreadPool) -> None:
    """``CancelledError`` is raised between two of its bytecodes."""
    rounds = 0

    def spin() -> None:
        nonlocal rounds
        while True:
            rounds += 1

    call = Offloaded(loop, spin, on_cancel="interrupt")
    until(lambda: rounds > 1000)
    call.cancel()
    assert isinstance(call.raised, asyncio.CancelledError)


def test_an_interrupt_never_reaches_the_next_call(loop: TestLoop, pool: ThreadPool) -> None:
    """Calls that end at the moment of their interrupt: it hits them, or nobody."""
    hits = 0
    begun = threading.Event()

    def short() -> None:
        begun.set()
        for _ in range(300):
            pass

    for _ in range(300):
        begun.clear()
        call = Offloaded(loop, short, on_cancel="interrupt")
        assert begun.wait(30)
        call.handle.cancel("enough")
        with contextlib.suppress(asyncio.CancelledError):  # unless it was done
            call.handle.result(30)
        hits += call.raised is not None
        following = Offloaded(loop, lambda: sum(range(2000)))
        assert following.handle.result(30) == 1999000
    assert pool.peak == 1
    assert hits <= 300


@pytest.mark.parametrize("name", ["drop", "", None])
def test_what_is_no_policy_is_refused(name: Any) -> None:
    """With the names of those there are."""

    async def main() -> None:
        await polyloop.to_thread(int, on_cancel=name)

    with pytest.raises(ValueError, match=f"on_cancel must be 'wait', 'abandon' or 'interrupt', got {name!r}"):
        asyncio.run(main())


def test_ten_thousand_running_calls_that_are_cancelled_leave_the_threads_as_they_were(pool: ThreadPool) -> None:
    """Each runs, and waits for what never comes, when its caller is cancelled; a hundred at a time."""
    pool.max_threads = 100
    never = queues.Queue[int]()
    begun, ended = sync.Semaphore(0), sync.Semaphore(0)

    def wait() -> None:
        begun.release()
        try:
            never.sync.get()
        finally:
            ended.release()

    async def main() -> None:
        policies: list[OnCancel] = ["wait", "abandon"]
        for index in range(100):
            policy = policies[index % 2]
            calls = [asyncio.create_task(polyloop.to_thread(wait, on_cancel=policy)) for _ in calls_at_once]
            for _ in calls:
                await begun.acquire()
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert all(call.cancelled() for call in calls)
            for _ in calls:
                await ended.acquire()

    calls_at_once = range(100)
    threads = threading.active_count()
    asyncio.run(main())
    until(lambda: pool.idle == pool.threads and not _overdue._calls)
    assert pool.peak <= 100
    assert threading.active_count() == threads + pool.threads
    assert (pool.abandoned, len(never._getters)) == (0, 0)

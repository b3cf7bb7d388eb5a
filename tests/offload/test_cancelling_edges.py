"""Where cancelling sync code meets something else: runtimes, coroutines that are closed, interrupts at the border."""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from tests.helpers import until
from tests.offload.calls import Offloaded, freed_without_the_collector

import polyloop
from polyloop import from_thread, queues, sync
from polyloop._core import _parking
from polyloop._core._context import here
from polyloop._core._pool import ThreadPool
from polyloop._core._spin import SpinPolicy
from polyloop.offload._interrupt import InterruptibleScope
from polyloop.testing import Gate, TestLoop

# Runtimes that a call uses


def test_a_cancelled_call_closes_its_runtime_properly(loop: TestLoop, pool: ThreadPool) -> None:
    """The tasks there are waited for, and nothing is said to be stuck."""
    runtimes: list[polyloop.Runtime] = []
    order: list[str] = []

    async def task() -> None:
        order.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)  # cleaning up takes longer than coming to the wait for it
            order.append("cleaned up")

    def work() -> None:
        with polyloop.Runtime(loops=2, name="inner") as runtime:
            runtimes.append(runtime)
            runtime.spawn(task).result()

    call = Offloaded(loop, work)
    until(lambda: order and call.asleep())
    call.cancel()
    assert order == ["begun", "cleaned up"]
    assert runtimes[0].close().clean


def test_a_cancelled_call_cancels_the_main_of_its_run_and_waits_for_it(loop: TestLoop, pool: ThreadPool) -> None:
    """``Runtime.run`` does with the end of the call as with Ctrl-C."""
    order: list[str] = []

    async def main() -> None:
        order.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            order.append("main")

    def work() -> None:
        try:
            runtime.run(main())
        finally:
            order.append("thread")

    with polyloop.Runtime(loops=1) as runtime:
        call = Offloaded(loop, work)
        until(lambda: order and call.asleep())
        call.cancel()
        assert order == ["begun", "main", "thread"]


# Coroutines that are closed


def test_a_closed_coroutine_takes_its_queued_call_back(pool: ThreadPool) -> None:
    """The function never runs, and the token is free."""
    pool.max_threads = 1
    limiter = polyloop.CapacityLimiter(2)
    gate = Gate()
    ran: list[int] = []

    async def main() -> None:
        running = asyncio.create_task(polyloop.to_thread(gate.pause, limiter=limiter))
        await asyncio.to_thread(gate.reached)
        queued = polyloop.to_thread(ran.append, 1, limiter=limiter)
        queued.send(None)
        assert (pool.queued, limiter.borrowed_tokens) == (1, 2)
        queued.close()
        assert (pool.queued, limiter.borrowed_tokens) == (0, 1)
        gate.open()
        await running

    asyncio.run(main())
    assert not ran


def test_a_closed_coroutine_tells_its_running_call_and_abandons_it(pool: ThreadPool) -> None:
    """Its thread is counted until it ends."""
    gate = Gate()
    told: list[str] = []

    def work() -> None:
        gate.pause()
        try:
            from_thread.check_cancelled()
        except asyncio.CancelledError:
            told.append("told")
            raise

    async def main() -> None:
        coro = polyloop.to_thread(work)
        coro.send(None)
        await asyncio.to_thread(gate.reached)
        coro.close()

    asyncio.run(main())
    assert pool.abandoned == 1
    gate.open()
    until(lambda: pool.abandoned == 0)
    assert told == ["told"]


def test_the_failure_of_an_abandoned_call_leaves_no_cycle_behind(pool: ThreadPool) -> None:
    """Nobody takes its exception, and what its frames hold is free all the same."""
    pool.max_threads = 1  # its thread runs again: see freed_without_the_collector
    gate = Gate()
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Thing:
        pass

    def fail(thing: Thing) -> None:
        alive.add(thing)
        gate.pause()
        raise ValueError

    async def main() -> None:
        call = asyncio.create_task(polyloop.to_thread(fail, Thing(), on_cancel="abandon"))
        await asyncio.to_thread(gate.reached)
        call.cancel()
        await asyncio.wait([call])

    with freed_without_the_collector(alive):
        asyncio.run(main())
        gate.open()


# What is no wait, and whose token it is


def try_lock() -> bool:
    it = sync.Lock()
    it.acquire_nowait()
    return it.sync.acquire(timeout=0)


def try_semaphore() -> bool:
    return sync.Semaphore(0).sync.acquire(timeout=0)


def try_event() -> bool:
    return sync.Event().sync.wait(0)


def try_queue() -> bool:
    with pytest.raises(queues.QueueEmpty):
        queues.Queue[int]().sync.get(timeout=0)
    return False


@pytest.mark.parametrize("attempt", [try_lock, try_semaphore, try_event, try_queue])
def test_what_waits_for_no_time_is_not_cancelled(loop: TestLoop, pool: ThreadPool, attempt: Callable[[], bool]) -> None:
    """``timeout=0`` looks, as ``blocking=False`` does, and a cancelled call may look."""
    gate = Gate()

    def work() -> bool:
        gate.pause()
        return attempt()

    call = Offloaded(loop, work)
    gate.reached()
    call.handle.cancel("enough")
    loop.wait_all_blocked()
    gate.open()
    call.cancel()
    assert (call.returned, call.raised) == (False, None)


def test_a_call_that_is_cancelled_in_line_leaves_the_token_of_none_alone(loop: TestLoop, pool: ThreadPool) -> None:
    """``None`` is a borrower like any other, and not who waits without a name."""
    limiter = polyloop.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait(None)
    call = Offloaded(loop, int, limiter=limiter)
    loop.wait_all_blocked()
    call.cancel()
    assert limiter.borrowed_tokens == 1
    limiter.release_on_behalf_of(None)
    assert limiter.borrowed_tokens == 0


# Interrupts


def test_an_error_that_meets_the_interrupt_is_its_context(
    loop: TestLoop, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function has raised, and is on its way out, when the interrupt arrives: neither is lost."""
    gate = Gate()
    protect = InterruptibleScope.protect

    def protect_late(scope: InterruptibleScope) -> None:
        gate.pause()
        protect(scope)

    def fail() -> None:
        raise ValueError("of the function")

    monkeypatch.setattr(InterruptibleScope, "protect", protect_late)
    call = Offloaded(loop, fail, on_cancel="interrupt")
    gate.reached()
    call.handle.cancel("enough")
    loop.wait_all_blocked()
    gate.open()
    context = call.cancel().__context__
    assert isinstance(context, ValueError)
    assert context.args == ("of the function",)


def test_an_interrupt_costs_no_spin_permit(loop: TestLoop, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives when the thread that spins has given its permit back: else nobody would spin any more, one day."""
    gate = Gate()

    class Permits(deque[None]):
        def append(self, permit: None, /) -> None:
            gate.pause()
            super().append(permit)

    def spin() -> None:
        here.spin = SpinPolicy(spin_ns=1_000_000)
        _parking.spin_until(lambda: True, None)

    permits = Permits([None])
    monkeypatch.setattr(_parking, "spin_permits", permits)
    call = Offloaded(loop, spin, on_cancel="interrupt")
    gate.reached()
    call.handle.cancel("enough")
    loop.wait_all_blocked()
    gate.open()
    call.cancel()
    assert len(permits) == 1
    assert isinstance(call.raised, asyncio.CancelledError)


def test_an_interrupt_of_a_function_that_wakes_a_task_of_asyncios_loop_arrives() -> None:
    """The wake leaves nothing with a finaliser behind, in which Python would drop it."""

    async def interrupted_at_the_wake() -> None:
        event = polyloop.Event()

        def wake_and_go_on() -> None:
            event.set()
            while True:
                pass

        async with asyncio.timeout(20), polyloop.TaskGroup() as group:
            group.start_thread(wake_and_go_on, on_cancel="interrupt")
            await event.wait()
            group.cancel()

    for _ in range(50):  # one of ten was lost
        asyncio.run(interrupted_at_the_wake())

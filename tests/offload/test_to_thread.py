"""``to_thread``: what it runs, where, and what a cancellation does at each moment of a call."""

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.helpers import until
from tests.offload.calls import freed_without_the_collector

import polyloop
from polyloop._core import _pool, _prims
from polyloop._core._pool import ThreadPool
from polyloop.testing import Gate, TestLoop


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPool]:
    """A fresh pool in place of the process-wide one."""
    fresh = ThreadPool(idle_timeout=3600)  # no thread retires because the machine stalls
    monkeypatch.setattr(_pool.shared, "pool", fresh)
    yield fresh
    fresh.end_idle(30)
    assert fresh.queued == 0


@pytest.fixture
def loop() -> Iterator[TestLoop]:
    """A loop of polyloop's own."""
    with TestLoop("caller") as loop:
        yield loop


# What a call is


def test_arguments_result_and_thread() -> None:
    """Positional and keyword arguments go to the function, which runs on a thread of the pool."""

    def fn(a: int, b: int, *, c: int) -> tuple[int, str]:
        return a + b + c, threading.current_thread().name

    async def main() -> tuple[int, str]:
        return await polyloop.to_thread(fn, 1, b=2, c=3)

    result, name = polyloop.run(main(), loops=1)
    assert result == 6
    assert name.startswith("polyloop-thread-")


def test_the_function_runs_in_a_copy_of_the_callers_context() -> None:
    """It sees the caller's variables, and what it sets stays with it; the next call starts anew."""
    variable = contextvars.ContextVar("variable", default="unset")

    def swap(value: str) -> str:
        seen = variable.get()
        variable.set(value)
        return seen

    async def main() -> list[str]:
        variable.set("caller")
        return [await polyloop.to_thread(swap, "one"), await polyloop.to_thread(swap, "two"), variable.get()]

    assert asyncio.run(main()) == ["caller", "caller", "caller"]


def test_an_exception_arrives_with_its_traceback() -> None:
    """The awaiter sees where in the function it was raised."""

    def failing() -> None:
        raise ValueError("in the thread")

    async def main() -> str:
        with pytest.raises(ValueError, match="in the thread") as caught:
            await polyloop.to_thread(failing)
        return "".join(traceback.format_exception(caught.value))

    assert 'raise ValueError("in the thread")' in asyncio.run(main())


def test_a_failure_leaves_no_cycle_behind(pool: ThreadPool) -> None:
    """What the frames of a failed call hold is free when its exception is dropped, without the garbage collector."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Thing:
        pass

    def fail(argument: Thing) -> None:
        local = Thing()
        alive.update((argument, local))
        raise ValueError

    async def main() -> None:
        with contextlib.suppress(ValueError):
            await polyloop.to_thread(fail, Thing())

    with freed_without_the_collector(alive):
        asyncio.run(main())


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, StopAsyncIteration])
def test_odd_exceptions_belong_to_the_awaiter(pool: ThreadPool, kind: type[BaseException]) -> None:
    """They end neither the thread nor the loop by themselves."""

    def failing() -> None:
        raise kind("odd")

    async def main() -> int:
        with pytest.raises(kind, match="odd"):
            await polyloop.to_thread(failing)
        return await polyloop.to_thread(threading.get_ident)

    polyloop.run(main(), loops=1)
    assert pool.peak == 1


def test_a_stop_iteration_is_no_end_of_a_coroutine() -> None:
    """As on asyncio, it arrives as a RuntimeError."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await polyloop.to_thread(next, iter(()))

    asyncio.run(main())


def test_calls_run_in_parallel_and_one_pool_serves_all_loops(pool: ThreadPool) -> None:
    """Calls of tasks on several loops, and of a foreign loop without a runtime, meet on the threads of one pool."""
    meeting = threading.Barrier(4)

    async def one() -> int:
        return await polyloop.to_thread(meeting.wait, 30)

    with polyloop.Runtime(loops=2, steal=False) as runtime:
        handles = [runtime.spawn(one, on=worker) for worker in runtime.workers]

        async def foreign() -> list[int]:
            return list(await asyncio.gather(one(), one()))

        met = asyncio.run(foreign()) + [handle.result(30) for handle in handles]
    assert sorted(met) == [0, 1, 2, 3]
    assert pool.threads == pool.peak == 4


def test_a_call_knows_the_runtime_of_its_caller() -> None:
    """``current_runtime`` on the thread is that of the task that made the call, however many are open."""

    async def ask() -> polyloop.Runtime:
        return await polyloop.to_thread(polyloop.current_runtime)

    with polyloop.Runtime(loops=1) as first, polyloop.Runtime(loops=1) as second:
        assert first.run(ask()) is first
        assert second.run(ask()) is second


def test_no_loop_no_call() -> None:
    """Without a running loop there is nobody to await it."""
    coro = polyloop.to_thread(int)
    with pytest.raises(RuntimeError, match="no running event loop"):
        coro.send(None)


# Threads


@pytest.mark.parametrize(("limit", "threads"), [(2, 2), (None, 17)])
def test_seventeen_calls_use_as_many_threads_as_they_may(pool: ThreadPool, limit: int | None, threads: int) -> None:
    """A limit of two under 17 concurrent calls uses exactly two threads; without one there are as many as calls."""
    limiter = polyloop.CapacityLimiter(limit) if limit else None
    meeting = threading.Barrier(threads)
    idents: set[int] = set()

    def work(number: int) -> None:
        idents.add(threading.get_ident())
        if number < threads:
            meeting.wait(30)

    async def main() -> None:
        await asyncio.gather(*(polyloop.to_thread(work, number, limiter=limiter) for number in range(17)))

    for _ in range(20):
        asyncio.run(main())
        meeting.reset()
    assert len(idents) == threads
    assert pool.peak == pool.threads == threads


def test_the_thread_used_last_is_used_next(pool: ThreadPool) -> None:
    """So the others stay idle long enough to retire."""
    gates = [Gate(f"{n}") for n in range(3)]

    async def main() -> None:
        calls = []
        for gate in gates:
            calls.append(asyncio.create_task(polyloop.to_thread(gate.pause)))
            await asyncio.to_thread(gate.reached)
        for gate, call in zip(gates, calls, strict=True):
            gate.open()
            await call
        last = await polyloop.to_thread(threading.get_ident)
        for _ in range(20):
            assert await polyloop.to_thread(threading.get_ident) == last

    asyncio.run(main())
    assert pool.threads == 3


def test_a_full_pool_queues_and_serves_in_order(pool: ThreadPool) -> None:
    """``max_threads`` is a bound; the backlog is served first come, first served."""
    pool.max_threads = 1
    gate = Gate()
    order: list[int] = []

    async def main() -> None:
        first = asyncio.create_task(polyloop.to_thread(gate.pause))
        await asyncio.to_thread(gate.reached)
        queued = [asyncio.create_task(polyloop.to_thread(order.append, n)) for n in range(5)]
        await asyncio.sleep(0)
        assert (pool.threads, pool.queued, pool.idle) == (1, 5, 0)
        gate.open()
        await asyncio.gather(first, *queued)

    asyncio.run(main())
    assert order == [0, 1, 2, 3, 4]
    assert pool.peak == 1


def test_idle_threads_retire_and_the_next_call_starts_anew() -> None:
    """After ``idle_timeout`` nothing is left of a pool; it is none the worse for it."""

    class Job:
        def __init__(self) -> None:
            self.done = threading.Event()

        def execute(self) -> None:
            pass

        def announce(self) -> None:
            self.done.set()

    own = ThreadPool(max_threads=4, idle_timeout=0.01)
    for _ in range(3):
        jobs = [Job() for _ in range(8)]
        for job in jobs:
            own.submit(job)
        assert all(job.done.wait(30) for job in jobs)
        until(lambda: own.threads == 0)
        assert (own.idle, own.queued) == (0, 0)
    assert 1 <= own.peak <= 4


def test_a_thread_that_cannot_be_started_fails_the_call_and_nothing_else(
    pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token goes back, the count is right, and the next call works."""
    limiter = polyloop.CapacityLimiter(1)

    def cannot(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> int:
        with monkeypatch.context() as patch:
            patch.setattr(_prims, "start_thread", cannot)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await polyloop.to_thread(int, limiter=limiter)
        assert (pool.threads, limiter.borrowed_tokens) == (0, 0)
        return await polyloop.to_thread(int, "7", limiter=limiter)

    assert asyncio.run(main()) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    """The threads stay in the parent, and the child's calls do not wait for them."""
    program = """
import asyncio, os, polyloop
async def call():
    return await asyncio.wait_for(polyloop.to_thread(os.getpid), 30)
assert asyncio.run(call()) == os.getpid()
before = polyloop.thread_pool()
pid = os.fork()
if not pid:
    ok = polyloop.thread_pool() is not before and asyncio.run(call()) == os.getpid()
    os._exit(0 if ok else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), polyloop.thread_pool() is before)
"""
    import subprocess

    options = ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("0 True\n", "")


# Cancellation


class Caller:
    """A call on a loop that stops at a gate in its function."""

    def __init__(self, loop: TestLoop, limiter: polyloop.CapacityLimiter | None, **options: Any) -> None:
        self.gate = Gate("function")
        self.ran = False
        self.limiter = limiter

        def fn() -> str:
            self.ran = True
            self.gate.pause()
            return "done"

        self.handle = loop.spawn(self.call, fn, options)

    async def call(self, fn: Callable[[], str], options: dict[str, Any]) -> str:
        return await polyloop.to_thread(fn, limiter=self.limiter, **options)


def cancelled(handle: polyloop.TaskHandle[Any]) -> asyncio.CancelledError:
    with pytest.raises(asyncio.CancelledError) as caught:
        handle.result(30)
    return caught.value


def test_a_call_that_waits_for_a_token_is_cancelled_at_once(loop: TestLoop, pool: ThreadPool) -> None:
    """It is never made, holds no token, and the one after it gets the next."""
    limiter = polyloop.CapacityLimiter(1)
    first, second, third = (Caller(loop, limiter) for _ in range(3))
    first.gate.reached()
    loop.wait_all_blocked()
    second.handle.cancel("not needed")
    assert cancelled(second.handle).args == ("not needed",)
    first.gate.open()
    third.gate.open()
    assert (first.handle.result(30), third.handle.result(30)) == ("done", "done")
    assert not second.ran
    assert limiter.borrowed_tokens == 0


def test_a_queued_call_is_withdrawn_and_its_token_returned(loop: TestLoop, pool: ThreadPool) -> None:
    """No thread has taken it, so it is never made."""
    pool.max_threads = 1
    limiter = polyloop.CapacityLimiter(5)
    first, second = Caller(loop, limiter), Caller(loop, limiter)
    first.gate.reached()
    loop.wait_all_blocked()
    assert (pool.queued, limiter.borrowed_tokens) == (1, 2)
    second.handle.cancel()
    cancelled(second.handle)
    assert (pool.queued, limiter.borrowed_tokens) == (0, 1)
    first.gate.open()
    assert first.handle.result(30) == "done"
    assert (second.ran, limiter.borrowed_tokens) == (False, 0)


def test_a_running_call_is_waited_for_and_its_result_dropped(loop: TestLoop, pool: ThreadPool) -> None:
    """The token stays borrowed until the thread is done, however often the caller is cancelled."""
    limiter = polyloop.CapacityLimiter(1)
    call = Caller(loop, limiter)
    call.gate.reached()
    for message in ("first", "second"):
        call.handle.cancel(message)
        loop.wait_all_blocked()
        assert (call.handle.done(), limiter.borrowed_tokens) == (False, 1)
    call.gate.open()
    assert cancelled(call.handle).args == ("first",)
    assert limiter.borrowed_tokens == 0


def test_an_error_of_a_cancelled_call_is_the_context_of_the_cancellation(loop: TestLoop, pool: ThreadPool) -> None:
    """It is not lost: a timeout around the call shows it."""
    gate = Gate()

    def failing() -> None:
        gate.pause()
        raise OSError("while closing")

    async def call() -> None:
        await polyloop.to_thread(failing)

    handle = loop.spawn(call)
    gate.reached()
    handle.cancel()
    loop.wait_all_blocked()
    gate.open()
    context = cancelled(handle).__context__
    assert isinstance(context, OSError)
    assert context.args == ("while closing",)


def test_an_abandoned_call_ends_the_wait_and_keeps_the_token_until_the_thread_is_done(
    loop: TestLoop, pool: ThreadPool
) -> None:
    """``on_cancel="abandon"`` leaves the thread to itself, and with it the token."""
    limiter = polyloop.CapacityLimiter(1)
    call = Caller(loop, limiter, on_cancel="abandon")
    call.gate.reached()
    call.handle.cancel()
    cancelled(call.handle)
    assert limiter.borrowed_tokens == 1
    waiting = Caller(loop, limiter)
    loop.wait_all_blocked()
    assert not waiting.ran
    call.gate.open()
    waiting.gate.open()
    assert waiting.handle.result(30) == "done"
    assert limiter.borrowed_tokens == 0


def test_a_cancellation_that_meets_the_end_of_the_call_cancels(loop: TestLoop, pool: ThreadPool) -> None:
    """The thread is done, and its caller is cancelled before it can hear of that: asyncio cancels too."""
    limiter = polyloop.CapacityLimiter(1)
    call = Caller(loop, limiter)
    call.gate.reached()
    with loop.paused():
        call.gate.open()
        until(lambda: pool.idle == 1 and limiter.borrowed_tokens == 0)
        call.handle.cancel()
    cancelled(call.handle)
    assert limiter.borrowed_tokens == 0


def test_a_token_handed_over_to_a_cancelled_call_goes_to_the_next(loop: TestLoop, pool: ThreadPool) -> None:
    """The call gets its token and is cancelled before it can use it."""
    limiter = polyloop.CapacityLimiter(1)
    first, second, third = (Caller(loop, limiter) for _ in range(3))
    first.gate.reached()
    loop.wait_all_blocked()
    with loop.paused():
        first.gate.open()
        until(lambda: limiter.borrowed_tokens == 1 and pool.idle == 1)  # the thread has handed it on
        second.handle.cancel()
    cancelled(second.handle)
    third.gate.open()
    assert third.handle.result(30) == "done"
    assert not second.ran
    assert limiter.borrowed_tokens == 0


def test_ten_thousand_cancelled_calls_leave_the_threads_as_they_were(pool: ThreadPool) -> None:
    """Queued calls that are withdrawn need no thread, and nothing of them stays."""
    pool.max_threads = 2
    gate = Gate()
    limiter = polyloop.CapacityLimiter(20_000)
    ran: list[int] = []

    async def main() -> None:
        busy = [asyncio.create_task(polyloop.to_thread(gate.pause)) for _ in range(2)]
        await asyncio.to_thread(gate.reached, 2)
        calls = [asyncio.create_task(polyloop.to_thread(ran.append, n, limiter=limiter)) for n in range(10_000)]
        await asyncio.sleep(0)
        assert (pool.threads, pool.queued, limiter.borrowed_tokens) == (2, 10_000, 10_000)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in calls)
        assert (pool.threads, pool.queued, limiter.borrowed_tokens) == (2, 0, 0)
        gate.open()
        await asyncio.gather(*busy)

    asyncio.run(main())
    assert not ran
    assert pool.peak == 2

"""From sync code back to a loop: where it runs there, what it sees, and what a cancellation does to it."""

import asyncio
import contextlib
import contextvars
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.helpers import until
from tests.offload.calls import Offloaded, freed_without_the_collector

import polyloop
from polyloop import from_thread
from polyloop._core import _pool
from polyloop._core._pool import ThreadPool
from polyloop.testing import Gate, TestLoop, TestThread

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPool]:
    """A fresh pool in place of the process-wide one."""
    fresh = ThreadPool()
    monkeypatch.setattr(_pool.shared, "pool", fresh)
    yield fresh
    fresh.end_idle(30)
    assert (fresh.queued, fresh._lent) == (0, 0)


async def thread_and_loop() -> tuple[int, asyncio.AbstractEventLoop]:
    return threading.get_ident(), asyncio.get_running_loop()


def on_asyncio[T](main: Callable[[], Any]) -> Any:
    return asyncio.run(main())


def on_workers[T](main: Callable[[], Any]) -> Any:
    return polyloop.run(main(), loops=3)


EVERYWHERE = pytest.mark.parametrize("run", [on_asyncio, on_workers])


# Where and what


@EVERYWHERE
def test_the_task_runs_on_the_loop_that_made_the_call(run: Callable[[Callable[[], Any]], Any]) -> None:
    """There the caller's objects live: transports, and asyncio's own primitives."""

    async def main() -> None:
        here = await thread_and_loop()
        assert await polyloop.to_thread(from_thread.run, thread_and_loop) == here
        assert await polyloop.to_thread(from_thread.run_sync, threading.get_ident) == here[0]

    run(main)


@EVERYWHERE
def test_it_sees_the_context_of_the_thread_and_leaves_it_alone(run: Callable[[Callable[[], Any]], Any]) -> None:
    """In: what the caller and the function have set. Out: nothing."""

    async def swap() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("task")
        return seen

    def work() -> list[str]:
        seen = [from_thread.run(swap)]
        VARIABLE.set("thread")
        return [*seen, from_thread.run(swap), VARIABLE.get()]

    async def main() -> None:
        VARIABLE.set("caller")
        assert await polyloop.to_thread(work) == ["caller", "thread", "thread"]
        assert VARIABLE.get() == "caller"

    run(main)


@EVERYWHERE
def test_what_it_raises_is_raised_in_the_thread(run: Callable[[Callable[[], Any]], Any]) -> None:
    """With the frames of the task in its traceback."""

    async def fail() -> None:
        raise LookupError("there")

    def work() -> list[str]:
        with pytest.raises(LookupError, match="there") as caught:
            from_thread.run(fail)
        return [entry.name for entry in caught.traceback]

    async def main() -> None:
        assert (await polyloop.to_thread(work))[-1] == "fail"

    run(main)


@pytest.mark.parametrize("catches", [True, False])
def test_a_failure_leaves_no_cycle_behind(pool: ThreadPool, catches: bool) -> None:
    """What the function got is free when the exception is dropped, in it or by its caller, without the collector."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Thing:
        pass

    async def fail() -> None:
        raise LookupError

    def work(thing: Thing) -> None:
        alive.add(thing)
        try:
            from_thread.run(fail)
        except LookupError:
            if not catches:
                raise

    async def main() -> None:
        with contextlib.suppress(LookupError):
            await polyloop.to_thread(work, Thing())

    with freed_without_the_collector(alive):
        asyncio.run(main())


@dataclass(frozen=True)
class FrozenError(Exception):
    """Refuses every attribute, its traceback included."""


@EVERYWHERE
def test_an_exception_that_refuses_attributes_arrives_as_it_is(run: Callable[[Callable[[], Any]], Any]) -> None:
    """Nothing on its way touches it."""

    async def fail() -> None:
        raise FrozenError

    def work() -> str:
        with pytest.raises(FrozenError), from_thread.shield():
            from_thread.run(fail)
        return "it did"

    async def main() -> str:
        return await polyloop.to_thread(work)

    assert run(main) == "it did"


def test_a_plain_thread_names_its_runtime() -> None:
    """Or means the only one there is; the task runs on one of its loops."""
    with polyloop.Runtime(loops=1) as one, polyloop.Runtime(loops=1) as other:
        thread = TestThread(lambda: from_thread.run(thread_and_loop, runtime=other)[1])
        assert thread.result() is other.workers[0].loop
        with pytest.raises(polyloop.NoRuntimeError, match="2 runtimes are running"):
            from_thread.run(thread_and_loop)
        other.close()
        assert from_thread.run(thread_and_loop)[1] is one.workers[0].loop


def test_a_call_of_one_runtime_may_run_a_task_on_another() -> None:
    """``runtime=`` is stronger than where the call came from."""
    with polyloop.Runtime(loops=1, name="other") as other:

        async def main() -> str:
            return await polyloop.to_thread(lambda: from_thread.run(name_of_thread, runtime=other))

        async def name_of_thread() -> str:
            return threading.current_thread().name

        assert polyloop.run(main(), loops=1) == "other-0"


def test_a_loop_does_not_wait_for_itself(left: TestLoop) -> None:
    """On a thread that runs a loop there is ``await``."""

    async def call() -> None:
        from_thread.run(thread_and_loop)

    with pytest.raises(polyloop.BlockingCallError, match=r"use 'await fn\(\)' there"):
        left.run(call)


def test_what_is_no_async_function_is_refused() -> None:
    """Its result is not thrown away silently."""

    async def main() -> None:
        await polyloop.to_thread(from_thread.run, lambda: 1)

    for run in (on_asyncio, on_workers):
        with pytest.raises(TypeError, match=r"from_thread\.run\(\) needs an async function, and .* returned 1"):
            run(main)


def test_without_a_call_and_a_runtime_there_is_no_loop() -> None:
    """A plain thread, and nothing that runs."""
    with pytest.raises(polyloop.NoRuntimeError, match="no runtime is running"):
        from_thread.run(thread_and_loop)


# There and back again


@EVERYWHERE
@pytest.mark.parametrize("places", [1, 3])
def test_a_full_pool_does_not_wait_for_itself(
    run: Callable[[Callable[[], Any]], Any], pool: ThreadPool, places: int
) -> None:
    """Async, sync, async, sync … thirty deep, five times at once, on a pool of one thread, and of three."""
    pool.max_threads = places

    async def deep(left: int) -> int:
        return 1 + await polyloop.to_thread(from_thread.run, deep, left - 1) if left else 0

    async def main() -> list[int]:
        return await asyncio.gather(*[deep(30) for _ in range(5)])

    assert run(main) == [30] * 5
    assert pool.peak <= 5 * 30


def test_the_pool_is_as_small_as_before_when_all_is_over(pool: ThreadPool) -> None:
    """The threads that stood in for others end, as there are more than may be."""
    pool.max_threads = 2

    async def deep(left: int) -> int:
        return 1 + await polyloop.to_thread(from_thread.run, deep, left - 1) if left else 0

    assert polyloop.run(deep(20), loops=2) == 20
    until(lambda: pool.threads <= 2)
    assert pool.peak == 20


def test_a_thread_that_waits_for_a_handle_lends_its_place_too(pool: ThreadPool) -> None:
    """``handle.result()`` in a call, of a task that needs the only thread there is."""
    pool.max_threads = 1

    async def needs_a_thread() -> str:
        return await polyloop.to_thread(lambda: "done")

    def work() -> str:
        return polyloop.spawn(needs_a_thread).result()

    async def main() -> str:
        return await polyloop.to_thread(work)

    assert polyloop.run(main(), loops=2) == "done"


# Cancellation


def test_cancelling_the_call_cancels_the_task_and_waits_for_its_end(left: TestLoop, pool: ThreadPool) -> None:
    """The structure holds: the task has ended when the thread goes on, and the thread when its caller does."""
    order: list[str] = []
    entered = Gate()

    async def task() -> None:
        try:
            await asyncio.to_thread(entered.pause)
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            order.append("task")

    def work() -> None:
        try:
            from_thread.run(task)
        finally:
            order.append("thread")

    async def call() -> None:
        try:
            await polyloop.to_thread(work)
        finally:
            order.append("caller")

    handle = left.spawn(call)
    entered.reached()
    entered.open()
    left.wait_all_blocked()
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)
    assert order == ["task", "thread", "caller"]


def test_what_the_task_raises_when_it_is_cancelled_is_the_context(left: TestLoop, pool: ThreadPool) -> None:
    """Of the ``CancelledError`` in the thread, and of that of the thread's caller: it is not lost."""
    begun: list[str] = []
    contexts: list[BaseException | None] = []

    async def task() -> None:
        begun.append("task")
        try:
            await asyncio.sleep(3600)
        finally:
            raise OSError("while cleaning up")

    def work() -> None:
        try:
            from_thread.run(task)
        except asyncio.CancelledError as exc:
            contexts.append(exc.__context__)
            raise

    handle = left.spawn(polyloop.async_wrap(work))
    until(lambda: begun)
    handle.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        handle.result(30)
    for context in (*contexts, caught.value.__context__):
        assert isinstance(context, OSError)
        assert context.args == ("while cleaning up",)
    assert len(contexts) == 1


def test_a_cancelled_call_starts_no_task(left: TestLoop, pool: ThreadPool) -> None:
    """It is told at the door; in a shield it may."""
    gate = Gate()
    ran: list[str] = []

    async def task(name: str) -> None:
        ran.append(name)

    def work() -> None:
        gate.pause()
        try:
            from_thread.run(task, "not shielded")
        finally:
            with from_thread.shield():
                from_thread.run(task, "shielded")

    handle = left.spawn(polyloop.async_wrap(work))
    gate.reached()
    handle.cancel()
    left.wait_all_blocked()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)
    assert ran == ["shielded"]


def test_a_task_that_is_cancelled_by_somebody_else_ends_the_wait(left: TestLoop) -> None:
    """The thread gets the ``CancelledError``, as whoever awaits the task would."""

    async def cancel_myself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("by myself")
        await asyncio.sleep(0)

    def work() -> str:
        with pytest.raises(asyncio.CancelledError, match="by myself"):
            from_thread.run(cancel_myself)
        return "went on"

    assert left.run(polyloop.async_wrap(work)) == "went on"


def test_a_loop_that_has_gone_fails_the_call_instead_of_keeping_the_thread(pool: ThreadPool) -> None:
    """The call was abandoned, its loop is closed, and then it asks for a task there."""
    gate = Gate()
    outcome: list[BaseException] = []

    def work() -> None:
        gate.pause()
        try:
            with from_thread.shield():
                from_thread.run(thread_and_loop)
        except BaseException as exc:
            outcome.append(exc)

    async def main() -> None:
        call = asyncio.ensure_future(polyloop.to_thread(work, on_cancel="abandon"))
        await asyncio.to_thread(gate.reached)
        call.cancel()

    asyncio.run(main())
    gate.open()
    until(lambda: outcome)
    assert isinstance(outcome[0], RuntimeError)


@pytest.mark.parametrize("seconds", [0, -1])
def test_sleeping_for_no_time_sleeps_not(left: TestLoop, seconds: float) -> None:
    """On a loop's thread neither."""

    async def nap() -> None:
        polyloop.sleep_sync(seconds)

    left.run(nap)


@pytest.mark.parametrize("seconds", [float("inf"), 1e12])
def test_sleeping_for_longer_than_a_lock_can_wait_ends_with_the_call(
    left: TestLoop, pool: ThreadPool, seconds: float
) -> None:
    """It is a sleep like any other, until it is cancelled."""
    call = Offloaded(left, lambda: polyloop.sleep_sync(seconds))
    until(call.asleep)
    call.cancel()
    assert isinstance(call.raised, asyncio.CancelledError)


def test_a_loop_does_not_sleep(left: TestLoop) -> None:
    """Nor does anybody for a time that is no number."""

    async def nap() -> None:
        polyloop.sleep_sync(1)

    with pytest.raises(polyloop.BlockingCallError, match=r"use 'await asyncio\.sleep\(1\)' there"):
        left.run(nap)
    with pytest.raises(ValueError, match="seconds must be a number, got nan"):
        polyloop.sleep_sync(float("nan"))

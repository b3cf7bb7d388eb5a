"""``Runtime.as_executor()``: where it runs what, and how each of its futures ends."""

import asyncio
import contextvars
import gc
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from functools import partial
from typing import Any

import pytest
from tests.helpers import until
from tests.runtime.helpers import PATIENCE, forever, held, in_thread, run_program, stop_own_loop, where

import polyloop
from polyloop import BlockingCallError, Runtime, RuntimeClosedError, WorkerDiedError, from_thread
from polyloop._core import _pool
from polyloop._core._pool import ThreadPool
from polyloop.testing import Gate

variable = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPool]:
    """A fresh pool in place of the process-wide one."""
    fresh = ThreadPool()
    monkeypatch.setattr(_pool.shared, "pool", fresh)
    yield fresh
    fresh.end_idle(30)
    assert (fresh.queued, fresh.abandoned) == (0, 0)


@pytest.fixture
def runtime(pool: ThreadPool) -> Iterator[Runtime]:
    with Runtime(loops=2) as runtime:
        yield runtime
    assert runtime._executors == {}


def pause(gate: Gate) -> str:
    gate.pause()
    return "done"


def pause_and_sleep(gate: Gate) -> None:
    gate.pause()
    polyloop.sleep_sync(PATIENCE)


# Where


def test_functions_run_on_the_pool_and_async_ones_on_the_loops(runtime: Runtime) -> None:
    """Both with their arguments, and as futures of ``concurrent.futures``."""

    def plain(a: int, *, b: int) -> tuple[int, str]:
        return a + b, threading.current_thread().name

    async def task(a: int, *, b: int) -> tuple[int, str]:
        return a + b, await where()

    executor = runtime.as_executor()
    first, second = executor.submit(plain, 1, b=2), executor.submit(task, 3, b=4)
    assert isinstance(first, futures.Future)
    assert futures.wait([first, second], PATIENCE).not_done == set()
    assert first.result()[0] == 3
    assert first.result()[1].startswith("polyloop-thread-")
    assert second.result()[0] == 7
    assert second.result()[1] in {worker.name for worker in runtime.workers}
    several: list[Any] = list(executor.map(partial(task, b=0), range(3)))
    assert [total for total, _ in several] == [0, 1, 2]


def test_what_counts_as_async(runtime: Runtime) -> None:
    """Partials, methods and objects whose call is a coroutine; not what merely returns one."""

    class Callable_:
        async def __call__(self) -> str:
            return await where()

        async def method(self) -> str:
            return await where()

    executor = runtime.as_executor()
    names = {worker.name for worker in runtime.workers}
    for fn in (where, partial(where), Callable_(), Callable_().method):
        assert executor.submit(fn).result(PATIENCE) in names
    plain: Callable[[], object] = lambda: where()  # noqa: E731
    coro: Any = executor.submit(plain).result(PATIENCE)
    coro.close()


def test_inside_of_both_the_runtime_is_at_hand(runtime: Runtime, pool: ThreadPool) -> None:
    """Another runtime runs too, so nothing could be guessed; ``from_thread.run`` runs on a loop of the right one."""

    async def here() -> Runtime:
        return polyloop.current_runtime()

    def plain() -> list[object]:
        return [polyloop.current_runtime(), from_thread.run(here), from_thread.run(where)]

    with Runtime(loops=1, name="other") as other:
        executor = runtime.as_executor()
        first, second, name = executor.submit(plain).result(PATIENCE)
        assert (first, second) == (runtime, runtime)
        assert str(name).startswith("polyloop-")
        assert executor.submit(here).result(PATIENCE) is runtime
        assert other.as_executor().submit(plain).result(PATIENCE)[2] == "other-0"


def test_from_a_task_the_way_back_leads_to_its_own_loop(runtime: Runtime) -> None:
    """And so from a function that was submitted by another one."""

    async def main() -> list[str]:
        executor = runtime.as_executor()

        def inner() -> futures.Future[str]:
            return executor.submit(from_thread.run, where)

        return [
            await where(),
            await asyncio.wrap_future(inner()),
            await asyncio.wrap_future(executor.submit(lambda: inner().result(PATIENCE))),
        ]

    for worker in runtime.workers:
        assert runtime.spawn(main, on=worker).result(PATIENCE) == [worker.name] * 3


def test_the_submitters_context_is_copied_and_nothing_leaks(runtime: Runtime, pool: ThreadPool) -> None:
    """What is set inside stays there, on a thread that is used again as on a loop."""

    def swap(value: str) -> str:
        seen = variable.get()
        variable.set(value)
        return seen

    async def swap_there(value: str) -> str:
        return swap(value)

    pool.max_threads = 1
    executor = runtime.as_executor()
    variable.set("submitter")
    try:
        for fn in (swap, swap_there):
            assert [executor.submit(fn, value).result(PATIENCE) for value in ("one", "two")] == ["submitter"] * 2
        assert variable.get() == "submitter"
        fresh = contextvars.Context()
        assert fresh.run(executor.submit, variable.get).result(PATIENCE) == "unset"
    finally:
        variable.set("unset")


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_exceptions_belong_to_the_future(runtime: Runtime, pool: ThreadPool, kind: type[BaseException]) -> None:
    """They end neither a thread nor a loop; the traceback begins in the function."""

    def plain() -> None:
        raise kind("odd")

    async def task() -> None:
        raise kind("odd")

    executor = runtime.as_executor()
    for fn in (plain, task):
        with pytest.raises(kind, match="odd"):
            executor.submit(fn).result(PATIENCE)
        raised = executor.submit(fn).exception(PATIENCE)
        assert raised is not None
        assert raised.__traceback__ is not None
        assert raised.__traceback__.tb_frame.f_code is fn.__code__
    assert pool.peak == 1
    assert len(asyncio.run(all_names(runtime))) == 2


async def all_names(runtime: Runtime) -> set[str]:
    return {await runtime.spawn(where, on=worker) for worker in runtime.workers}


# How many


def test_no_more_functions_at_once_than_it_has_workers(runtime: Runtime) -> None:
    """The others begin in the order in which they came; tasks do not count."""
    order: list[int] = []
    gate = Gate()

    def work(number: int) -> None:
        order.append(number)
        if number < 2:
            gate.pause()

    executor = runtime.as_executor(2)
    calls = [executor.submit(work, number) for number in range(2)]
    gate.reached(2)
    calls += [executor.submit(work, number) for number in range(2, 20)]
    assert executor.submit(where).result(PATIENCE)
    assert [call.running() for call in calls] == [True] * 2 + [False] * 18
    gate.open()
    executor.shutdown()
    assert sorted(order[:2]) == [0, 1]
    assert sorted(order[2:]) == list(range(2, 20))


def test_one_worker_runs_them_in_order(runtime: Runtime) -> None:
    """Each begins when the one before it has ended."""
    order: list[int] = []
    with runtime.as_executor(1) as executor:
        for number in range(50):
            executor.submit(order.append, number)
    assert order == list(range(50))


@pytest.mark.parametrize("count", [0, -1])
def test_a_limit_below_one_is_refused(runtime: Runtime, count: int) -> None:
    """As by the executors of the standard library."""
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        runtime.as_executor(count)


# Cancellation


def test_what_has_not_begun_can_be_cancelled(runtime: Runtime) -> None:
    """And is never run; what runs cannot be."""
    gate = Gate()
    ran: list[str] = []

    async def task() -> None:
        ran.append("task")

    executor = runtime.as_executor(1)
    running = executor.submit(gate.pause)
    gate.reached()
    queued = executor.submit(ran.append, "job")
    with held(runtime, *runtime.workers):
        unstarted = executor.submit(task)
        assert not running.cancel()
        assert queued.cancel()
        assert unstarted.cancel()
        assert unstarted.cancel()
    assert futures.wait([unstarted], PATIENCE).done  # it hears of it, too
    gate.open()
    executor.shutdown()
    assert ran == []
    assert [call.cancelled() for call in (running, queued, unstarted)] == [False, True, True]
    with pytest.raises(futures.CancelledError):
        unstarted.result()


def test_a_task_that_ends_by_a_cancellation_of_its_own(runtime: Runtime) -> None:
    """The future has begun, so it is not cancelled: the cancellation is what the function raised."""

    async def task() -> None:
        raise asyncio.CancelledError("mine")

    future = runtime.as_executor().submit(task)
    assert isinstance(future.exception(PATIENCE), asyncio.CancelledError)
    assert not future.cancelled()


# Waiting


def test_a_loop_is_not_blocked_by_a_future(runtime: Runtime) -> None:
    """Waiting for one there is refused; it can be awaited instead."""
    gate = Gate()

    async def main() -> str:
        future = runtime.as_executor().submit(pause, gate)
        with pytest.raises(BlockingCallError, match=r"wrap_future"):
            future.result()
        with pytest.raises(BlockingCallError, match=r"wrap_future"):
            future.exception(1)
        with pytest.raises(TimeoutError):
            future.result(0)
        gate.open()
        return await asyncio.wrap_future(future)

    assert runtime.run(main()) == "done"


def test_a_full_pool_does_not_wait_for_itself(runtime: Runtime, pool: ThreadPool) -> None:
    """A thread that waits for a future lends its place to what that needs."""
    pool.max_threads = 1
    executor = runtime.as_executor()

    def nested(depth: int) -> int:
        return 1 + executor.submit(nested, depth - 1).result(PATIENCE) if depth else 0

    assert executor.submit(nested, 5).result(PATIENCE) == 5


def test_a_call_that_waits_for_a_future_hears_of_its_own_cancellation(runtime: Runtime, pool: ThreadPool) -> None:
    """The wait ends; what it waited for goes on."""
    gate = Gate()
    future = runtime.as_executor().submit(pause, gate)
    gate.reached()

    async def main() -> None:
        call = asyncio.ensure_future(polyloop.to_thread(future.result))
        await polyloop.to_thread(until, lambda: future._done_callbacks)  # type: ignore[attr-defined]
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    runtime.run(main())
    assert future.running()
    gate.open()
    assert future.result(PATIENCE) == "done"


def test_a_timeout_on_a_thread_of_the_pool(runtime: Runtime) -> None:
    """As elsewhere."""
    gate = Gate()
    executor = runtime.as_executor()
    future = executor.submit(pause, gate)
    with pytest.raises(TimeoutError):
        executor.submit(future.result, 0.001).result(PATIENCE)
    gate.open()


# Shutdown


def test_shutdown_refuses_what_comes_and_waits_for_what_runs(runtime: Runtime) -> None:
    """Of jobs and of tasks; another executor over the same runtime goes on."""
    gate = Gate()
    executor = runtime.as_executor(1)
    calls = [executor.submit(pause, gate), executor.submit(pause, gate), executor.submit(asyncio.sleep, 0, "slept")]
    gate.reached()
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(where)
    assert not calls[0].done()
    gate.open()
    executor.shutdown()
    assert [call.result(0) for call in calls] == ["done", "done", "slept"]
    assert runtime.as_executor().submit(where).result(PATIENCE)
    assert "shut down pending=0" in repr(executor)


def test_shutdown_may_cancel_what_has_not_begun(runtime: Runtime) -> None:
    """What runs goes on."""
    gate = Gate()
    executor = runtime.as_executor(1)
    running = executor.submit(pause, gate)
    gate.reached()
    with held(runtime, *runtime.workers):
        waiting = [executor.submit(pause, gate), executor.submit(where)]
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(call.cancelled() for call in waiting)
        assert futures.wait(waiting, 0).not_done == set()
    gate.open()
    executor.shutdown()
    assert running.result(0) == "done"


def test_async_code_closes_it_without_blocking_its_loop(runtime: Runtime) -> None:
    """``with`` would block the loop if something runs, and is refused; ``async with`` waits."""
    gate = Gate()

    async def main() -> str:
        with runtime.as_executor() as idle:
            pass
        idle.shutdown()  # nothing to wait for: nothing refused
        busy = runtime.as_executor()
        future = busy.submit(pause, gate)
        with pytest.raises(BlockingCallError, match="aclose"):
            busy.shutdown()
        gate.open()
        await busy.aclose()
        assert future.done()
        async with runtime.as_executor() as executor:
            last = executor.submit(pause, gate)
        return last.result()

    assert runtime.run(main()) == "done"


# The end of the runtime


def test_nothing_waits_for_a_runtime_that_closes(pool: ThreadPool) -> None:
    """What has not begun fails, tasks are cancelled, functions are told to stop, and waited for."""
    gate = Gate()
    with Runtime(loops=2) as runtime:
        executor = runtime.as_executor(1)
        task = executor.submit(forever)
        job = executor.submit(pause_and_sleep, gate)
        queued = executor.submit(pause, gate)
        gate.open()
        gate.reached()
        until(task.running)
    for call in (task, job, queued):
        assert call.done()
        with pytest.raises(RuntimeClosedError, match="did not come to its end"):
            call.result()
    assert isinstance(job.exception().__cause__, asyncio.CancelledError)  # type: ignore[union-attr]
    assert queued.exception() is not job.exception()
    with pytest.raises(RuntimeClosedError):
        executor.submit(where)
    executor.shutdown()


def test_a_task_that_was_not_started_fails_too(pool: ThreadPool) -> None:
    """Its runtime closes while all loops are busy."""
    runtime = Runtime(loops=1).start()
    executor = runtime.as_executor()
    gate = Gate()
    runtime.spawn(make_async(gate.pause))
    gate.reached()
    future = executor.submit(where)
    closing = threading.Thread(target=runtime.close)
    closing.start()
    until(lambda: runtime._state == "closing")
    gate.open()
    closing.join()
    with pytest.raises(RuntimeClosedError):
        future.result(PATIENCE)


def make_async(fn: Callable[[], object]) -> Callable[[], Coroutine[Any, Any, None]]:
    async def call() -> None:
        fn()

    return call


def test_a_function_that_does_not_stop_is_named(pool: ThreadPool, caplog: pytest.LogCaptureFixture) -> None:
    """Closing does not wait for it beyond the deadline; its future still gets the outcome."""
    gate = Gate()
    runtime = Runtime(loops=1).start()
    future = runtime.as_executor().submit(pause, gate)
    gate.reached()
    with caplog.at_level(logging.CRITICAL, "polyloop"):
        report = runtime.close(timeout=0)
    (stuck,) = report.stuck
    assert stuck.name.endswith("cancelled in pause")
    assert "pause" in "".join(stuck.stack)
    assert future.running()
    gate.open()
    assert future.result(PATIENCE) == "done"


@pytest.mark.parametrize("how", ["run", "aclose"])
def test_every_way_to_close_waits_for_functions(pool: ThreadPool, how: str) -> None:
    """``polyloop.run`` and ``async with`` as ``with``."""
    gate = Gate()
    ended: list[str] = []

    def work() -> None:
        gate.pause()
        try:
            polyloop.sleep_sync(PATIENCE)
        finally:
            ended.append("stopped")

    async def main() -> None:
        runtime = polyloop.current_runtime()
        runtime.as_executor().submit(work)
        gate.open()
        await polyloop.to_thread(gate.reached)

    async def around() -> None:
        async with Runtime(loops=1) as runtime:
            await runtime.submit(main())

    if how == "run":
        polyloop.run(main(), loops=1)
    else:
        asyncio.run(around())
    assert ended == ["stopped"]


def test_a_runtime_that_does_not_run_refuses() -> None:
    """Before its start, and after its end; an executor made before the start is of use after it."""
    runtime = Runtime(loops=1)
    executor = runtime.as_executor()
    for fn in (print, where):
        with pytest.raises(RuntimeClosedError, match="spawn inside its 'with' block"):
            executor.submit(fn)
    with runtime:
        assert executor.submit(where).result(PATIENCE) == "polyloop-0"
    for fn in (print, where):
        with pytest.raises(RuntimeClosedError, match="start a new Runtime"):
            executor.submit(fn)
    assert runtime._executors == {}


def test_a_task_whose_worker_dies_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Others go on, functions find another loop for what they run there."""
    caplog.set_level(logging.CRITICAL)
    with Runtime(loops=2) as runtime:
        executor = runtime.as_executor()
        future = executor.submit(stop_own_loop)
        with pytest.raises(WorkerDiedError):
            future.result(PATIENCE)
        dead = next(worker for worker in runtime.workers if not worker.alive)
        names = {executor.submit(from_thread.run, where).result(PATIENCE) for _ in range(4)}
        assert names == {worker.name for worker in runtime.workers if worker is not dead}


def test_a_thread_that_cannot_be_started(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the submitter's, or that of the future which waited for its turn; nothing is left pending."""
    gate = Gate()
    executor = runtime.as_executor(1)
    running = executor.submit(pause, gate)
    gate.reached()
    queued = executor.submit(pause, gate)

    def refuse(job: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_pool.shared.pool, "submit", refuse)
    gate.open()
    assert running.result(PATIENCE) == "done"
    with pytest.raises(RuntimeError, match="can't start"):
        queued.result(PATIENCE)
    with pytest.raises(RuntimeError, match="can't start"):
        runtime.as_executor().submit(print)
    with pytest.raises(RuntimeError, match="can't start"):
        runtime.as_executor(1).submit(print)
    monkeypatch.undo()
    executor.shutdown()


# What is kept


class Thing:
    """Something that can be watched."""


def test_an_idle_thread_and_a_loop_keep_nothing(runtime: Runtime) -> None:
    """Neither arguments nor results, nor what was raised."""
    seen: list[weakref.ref[object]] = []

    def plain(thing: Thing) -> Thing:
        made = Thing()
        seen.extend([weakref.ref(thing), weakref.ref(made)])
        return made

    async def task(thing: Thing) -> Thing:
        return plain(thing)

    def failing(thing: Thing) -> None:
        local = plain(thing)
        raise ValueError(local)

    executor = runtime.as_executor()
    for fn in (plain, task, failing):
        future = executor.submit(fn, Thing())
        futures.wait([future], PATIENCE)
        del future
    until(lambda: gc.collect() >= 0 and not any(ref() for ref in seen))
    assert len(seen) == 6


# Processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_is_told() -> None:
    """Its copies of futures fail, and new calls are refused; the parent's go on."""
    ended = run_program(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        with polyloop.Runtime(loops=1) as rt:
            executor = rt.as_executor(1)
            go = threading.Event()
            calls = [executor.submit(go.wait), executor.submit(str), executor.submit(asyncio.sleep, 0.5)]
            waiting = threading.Thread(target=calls[0].result)
            waiting.start()
            while not calls[0].running():
                time.sleep(0.01)
            pid = os.fork()
            if pid == 0:
                print([type(call.exception(5)).__name__ for call in calls], flush=True)
                try:
                    executor.submit(str)
                except RuntimeError as exc:
                    print(type(exc).__name__, flush=True)
                executor.shutdown()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            go.set()
            print([call.result(5) for call in calls])
            waiting.join()
        """
    )
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [str(["RuntimeClosedError"] * 3), "RuntimeClosedError", "[True, '', None]"]


def test_the_end_of_the_program_does_not_wait_for_a_stuck_function() -> None:
    """What has not begun fails, and after the deadline the rest is left behind."""
    ended = run_program(
        """
        import atexit
        from polyloop.runtime import _hooks
        _hooks.EXIT_TIMEOUT = 0.0
        executor = polyloop.Runtime(loops=1).start().as_executor(1)
        stuck = executor.submit(time.sleep, 1000)
        while not stuck.running():
            time.sleep(0.01)
        queued = executor.submit(print, "never")
        queued.add_done_callback(lambda call: print(type(call.exception()).__name__))
        """,
    )
    assert (ended.code, ended.out) == (0, "RuntimeClosedError\n")
    assert "cancelled in sleep" in ended.err


def test_many_threads_submit_while_the_runtime_closes() -> None:
    """Every future ends, and every other call is refused: by chance, in many orders."""
    for _ in range(20):
        runtime = Runtime(loops=1).start()
        executors = [runtime.as_executor(), runtime.as_executor(1)]
        taken: list[futures.Future[Any]] = []
        start = threading.Barrier(3)

        def submit(executors: Any = executors, taken: Any = taken, start: Any = start) -> None:
            start.wait()
            for number in range(200):
                try:
                    taken.append(executors[number % 2].submit(where if number % 3 else str))
                except RuntimeClosedError:
                    return

        threads = [threading.Thread(target=submit) for _ in range(2)]
        for thread in threads:
            thread.start()
        start.wait()
        in_thread(runtime.close)
        for thread in threads:
            thread.join()
        for executor in executors:
            executor.shutdown()
        assert all(call.done() for call in taken)
        assert runtime._executors == {}


@pytest.mark.skipif(sys.version_info < (3, 14), reason="map has no buffersize before 3.14")
def test_map_takes_items_as_it_goes(runtime: Runtime) -> None:
    """The inherited ``map`` has it."""
    taken: list[int] = []
    options: Any = {"buffersize": 2}

    def numbers() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    results = runtime.as_executor().map(abs, numbers(), **options)
    assert next(results) == 0
    assert len(taken) == 3
    results.close()  # type: ignore[attr-defined]

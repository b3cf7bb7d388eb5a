"""Closing a runtime: by whom, in which order, and what becomes of its tasks."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from tests.runtime.helpers import PATIENCE, Gate, forever, held, in_thread, where, worker_threads

import polyloop
from polyloop import BlockingCallError, Runtime, RuntimeClosedError, ShutdownReport, TaskHandle

CLOSED = "the task was not run to its end: <Runtime 'polyloop' closing loops=2> was closed"


def test_close_cancels_what_runs_and_refuses_what_waits() -> None:
    """A running task is cancelled, one that never started says that the runtime was closed, and why."""
    runtime = Runtime(loops=2).start()
    running = runtime.spawn(forever, on=runtime.workers[0])
    with held(runtime, *runtime.workers) as steps:
        waiting = [runtime.spawn(where) for _ in range(4)]
        pinned = runtime.spawn(where, on=runtime.workers[0])
        closer = threading.Thread(target=runtime.close)
        closer.start()
        while runtime._state == "running":
            threading.Event().wait(0.001)
        for handle in (*waiting, pinned):
            assert not handle.done()
    closer.join(PATIENCE)
    assert running.cancelled()
    assert all(step.done() for step in steps)
    for handle in (*waiting, pinned):
        # Served by its loop before the close reached it, or refused with the reason.
        exc = handle.exception(PATIENCE)
        assert exc is None or (type(exc), str(exc)) == (RuntimeClosedError, CLOSED)


def test_task_queued_behind_the_close_is_refused() -> None:
    """A pinned task posted after the wind-down began never starts."""
    runtime = Runtime(loops=2).start()
    worker = runtime.workers[0]
    handle = TaskHandle(where())
    gate = Gate()
    runtime.spawn(gate.step, on=worker)
    gate.wait_entered()
    closer = threading.Thread(target=runtime.close)
    closer.start()
    runtime.workers[1].ended._block(PATIENCE, "")  # so the other's wind-down is posted as well
    worker.admit(handle, False)
    gate.open()
    closer.join(PATIENCE)
    with pytest.raises(RuntimeClosedError) as caught:
        handle.result(PATIENCE)
    assert str(caught.value) == CLOSED


def test_phases_of_a_shutdown_in_order() -> None:
    """Tasks are cancelled first, then generators closed, then the loop's executor is shut down."""
    order: list[str] = []

    async def numbers() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            order.append("generator")

    kept: list[AsyncGenerator[int]] = []

    async def work() -> None:
        kept.append(numbers())
        await anext(kept[0])
        await asyncio.to_thread(lambda: None)
        executor = asyncio.get_running_loop()._default_executor  # type: ignore[attr-defined]
        shutdown = executor.shutdown

        def noted(wait: bool = True) -> None:
            order.append("executor")
            shutdown(wait)

        executor.shutdown = noted
        started.set()
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            order.append("task")

    started = threading.Event()
    with Runtime(loops=1) as runtime:
        runtime.spawn(work)
        assert started.wait(PATIENCE)
    assert order[:3] == ["task", "generator", "executor"]
    assert worker_threads() == []


def test_closing_twice_gives_the_first_report() -> None:
    """The second close does nothing and says the same."""
    runtime = Runtime(loops=2).start()
    report = runtime.close()
    assert report == ShutdownReport(())
    assert runtime.close() is report
    assert str(report) == "everything stopped in time"


def test_closing_from_two_threads_at_once() -> None:
    """The second closer waits for the first and gets its report."""
    runtime = Runtime(loops=2).start()
    reports: list[ShutdownReport] = []
    barrier = threading.Barrier(4)

    def close() -> None:
        barrier.wait()
        reports.append(runtime.close())

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(reports) == 4
    assert {id(report) for report in reports} == {id(runtime.close())}


def test_closing_from_a_task_of_its_own() -> None:
    """It would wait for itself: refused at once, in both spellings."""

    async def close() -> None:
        runtime.close()

    async def aclose() -> None:
        await runtime.aclose()

    with Runtime(loops=2) as runtime:
        with pytest.raises(BlockingCallError) as blocking:
            runtime.run(close())
        assert str(blocking.value).startswith("Runtime.close() would block the event loop of thread 'polyloop-")
        assert str(blocking.value).endswith("use 'await runtime.aclose()' there")
        with pytest.raises(RuntimeError) as own:
            runtime.run(aclose())
        assert str(own.value) == (
            "a task of <Runtime 'polyloop' running loops=2> cannot wait for its own end;"
            " return from it, or cancel it, instead"
        )
        assert runtime.spawn(where).result(PATIENCE)


def test_closing_from_a_loop_thread_of_somebody_else() -> None:
    """The sync close names its awaitable twin, which works."""

    async def main() -> ShutdownReport:
        runtime = Runtime(loops=2)
        async with runtime:
            with pytest.raises(BlockingCallError) as caught:
                runtime.close()
            assert str(caught.value) == (
                "Runtime.close() would block the event loop of thread 'MainThread'; use 'await runtime.aclose()' there"
            )
        return await runtime.aclose()

    assert asyncio.run(main()).clean


def test_run_is_ended_by_a_close_from_another_thread() -> None:
    """``close`` on a runtime of ``polyloop.run`` cancels the main task; both callers come back soon."""
    seen: list[str] = []
    reports: list[ShutdownReport] = []

    async def main() -> None:
        runtime = polyloop.current_runtime()
        closer = threading.Thread(target=lambda: reports.append(runtime.close(PATIENCE)))
        threads.append(closer)
        closer.start()
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    threads: list[threading.Thread] = []
    with pytest.raises(asyncio.CancelledError):
        polyloop.run(main(), loops=2)
    threads[0].join(PATIENCE)
    assert seen == ["cleaned up"]
    assert [report.clean for report in reports] == [True]


def test_close_before_start_and_start_after_close() -> None:
    """A runtime that never ran closes at once, and cannot be started any more."""
    runtime = Runtime(loops=2)
    assert runtime.close().clean
    with pytest.raises(RuntimeError) as caught:
        runtime.start()
    assert str(caught.value) == ("<Runtime 'polyloop' closed loops=2> was started or closed before; make a new Runtime")


def test_starting_twice() -> None:
    """The second start is refused, the runtime goes on."""
    with Runtime(loops=1) as runtime:
        with pytest.raises(RuntimeError) as caught:
            runtime.start()
        assert str(caught.value) == (
            "<Runtime 'polyloop' running loops=1> was started or closed before; make a new Runtime"
        )
        assert runtime.spawn(where).result(PATIENCE) == "polyloop-0"


def test_thread_that_comes_back_after_it_was_left_behind_ends() -> None:
    """A worker that was stuck at the deadline winds down when it is free again, and its late result goes nowhere."""
    gate = Gate()
    runtime = Runtime(loops=2).start()
    stuck = runtime.spawn(gate.step, on=runtime.workers[1])
    beside = runtime.spawn(forever, on=runtime.workers[1])
    gate.wait_entered()
    report = runtime.close(0.01)
    [item] = report.stuck
    assert (item.kind, item.name, item.where) == ("thread", "polyloop-1", "polyloop-1")
    assert any(frame.endswith("in hold") for frame in item.stack)
    for handle in (stuck, beside):
        with pytest.raises(RuntimeClosedError) as caught:
            handle.result(PATIENCE)
        assert str(caught.value) == (
            "<Runtime 'polyloop' closing loops=2> was closed while <Worker 'polyloop-1'> was stuck"
        )
    gate.open()
    thread = runtime.workers[1].thread
    assert thread is not None
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert runtime.workers[1].loop.is_closed()


def test_task_cancelled_by_close_may_await_other_loops() -> None:
    """Clean-up that needs another loop's help gets it: all loops wind down together."""
    order: list[str] = []

    async def helper() -> str:
        await asyncio.sleep(0.01)
        return "helped"

    async def needs_help(handle: TaskHandle[str]) -> None:
        try:
            await forever()
        finally:
            try:
                order.append(await handle)
            except asyncio.CancelledError:
                order.append("cancelled too")

    with Runtime(loops=2) as runtime:
        handle = runtime.spawn(helper, on=runtime.workers[1])
        task = runtime.spawn(needs_help, handle, on=runtime.workers[0])
        runtime.spawn(where, on=runtime.workers[0]).result(PATIENCE)
    assert task.cancelled()
    assert order in (["helped"], ["cancelled too"])


def test_user_code_that_cancels_every_task_does_not_stop_the_wind_down() -> None:
    """``for task in all_tasks(): task.cancel()`` in a finally block hits the runtime's own task, which goes on."""

    async def cancels_all() -> None:
        try:
            await forever()
        finally:
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            await asyncio.sleep(0)

    runtime = Runtime(loops=2).start()
    handles = [runtime.spawn(cancels_all, on=worker) for worker in runtime.workers]
    for worker in runtime.workers:
        runtime.spawn(where, on=worker).result(PATIENCE)
    assert runtime.close(PATIENCE).clean
    assert [handle.cancelled() for handle in handles] == [True, True]


def test_failing_with_block_still_closes() -> None:
    """The error of the block is the one that surfaces; no thread is left."""
    with pytest.raises(LookupError, match="mine"), Runtime(loops=3):
        raise LookupError("mine")
    assert worker_threads() == []


def test_spawn_from_a_task_being_cancelled_by_close_says_closed() -> None:
    """Clean-up cannot start new tasks: the error names the state."""
    seen: list[str] = []

    async def spawns_late() -> None:
        try:
            await forever()
        finally:
            try:
                runtime.spawn(where)
            except RuntimeClosedError as exc:
                seen.append(str(exc))

    with Runtime(loops=2) as runtime:
        runtime.spawn(spawns_late, on=runtime.workers[0])
        runtime.spawn(where, on=runtime.workers[0]).result(PATIENCE)
    assert seen == ["cannot start where: <Runtime 'polyloop' closing loops=2> is not running; start a new Runtime"]


def test_close_in_a_thread_while_a_plain_thread_waits_for_a_result() -> None:
    """A thread blocked in ``result()`` is released by the close."""
    runtime = Runtime(loops=2).start()
    started = threading.Event()

    async def stay() -> None:
        started.set()
        await forever()

    handle = runtime.spawn(stay)
    assert started.wait(PATIENCE)  # one that had not started would be refused instead
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            handle.result(PATIENCE)
        except asyncio.CancelledError as exc:
            outcome.append(exc)

    waiter = threading.Thread(target=wait)
    waiter.start()
    in_thread(runtime.close)
    waiter.join(PATIENCE)
    assert len(outcome) == 1


def test_spawn_while_its_runtime_closes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers refuse tasks by then; they have not died, though."""
    runtime = Runtime(loops=1).start()
    route = runtime._router.route

    def route_late(on: Any, key: Any) -> Any:
        in_thread(runtime.close)
        return route(on, key)

    monkeypatch.setattr(runtime._router, "route", route_late)
    with pytest.raises(RuntimeClosedError, match=r"cannot start where: .* is not running"):
        runtime.spawn(where)

"""The end of migratable tasks: of a runtime that is closed, and of a worker that dies. Nobody waits for ever."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.helpers import until
from tests.runtime.helpers import PATIENCE, Gate, forever, is_closed, where

import polyloop
from polyloop import Runtime, RuntimeClosedError, TaskHandle, Worker, WorkerDiedError
from polyloop._core._migrant import MigratableTask


def migrant[T](handle: TaskHandle[T]) -> MigratableTask[T]:
    """The same handle, as what it is."""
    assert isinstance(handle, MigratableTask)
    return handle


def parked(handle: TaskHandle[Any]) -> None:
    """Wait until the task is suspended."""
    until(lambda: migrant(handle)._token() is not None)


def begun(handle: TaskHandle[Any], fn: Callable[[], Coroutine[Any, Any, None]]) -> bool:
    """Whether the task is where it waits for ever, as far as it does."""
    return fn in TURNING or migrant(handle)._token() is not None


def spawn[T](runtime: Runtime, fn: Callable[[], Coroutine[Any, Any, T]], worker: int = 0) -> TaskHandle[T]:
    """Start a task that may move on that worker."""

    async def begin() -> TaskHandle[T]:
        return runtime.spawn(fn, migratable=True)

    return runtime.spawn(begin, on=runtime.workers[worker]).result(PATIENCE)


def kill(worker: Worker) -> None:
    """Stop its loop, and wait until it is gone."""
    worker.loop.call_soon_threadsafe(worker.loop.stop)
    worker.ended._block(PATIENCE, "")


async def park() -> None:
    """Wait for ever on a primitive."""
    await polyloop.Event().wait()


async def nap() -> None:
    """Sleep for ever."""
    await polyloop.sleep(3600)


async def pinned() -> None:
    """Wait for ever where it is."""
    async with polyloop.pinned():
        await park()


async def timed() -> None:
    """Wait for ever in a timeout that never comes."""
    async with asyncio.timeout(3600):
        await park()


async def with_child() -> None:
    """Wait for a child that waits for ever."""
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())


async def with_children() -> None:
    """Wait for children of both kinds, which wait for ever."""
    async with polyloop.TaskGroup() as group:
        group.create_task(forever())
        group.create_task(park(), migratable=True)


async def turn() -> None:
    """Go on for ever."""
    while True:
        await polyloop.checkpoint()


async def turn_on_the_loop() -> None:
    """Go on for ever, a step a tick."""
    while True:
        await asyncio.sleep(0)


ENDLESS = [park, nap, forever, pinned, timed, with_child, with_children, turn, turn_on_the_loop]
TURNING = [turn, turn_on_the_loop]
ATTACHED = [forever, pinned, timed, with_child, with_children]


# Closing


@pytest.mark.parametrize("loops", [1, 2])
@pytest.mark.parametrize("fn", ENDLESS, ids=lambda fn: fn.__name__)
def test_a_close_cancels(fn: Callable[[], Coroutine[Any, Any, None]], loops: int) -> None:
    """Whatever it waits for: its finally blocks run, and nothing is left behind."""
    started, cleaned = threading.Event(), threading.Event()

    async def task() -> None:
        started.set()
        try:
            await fn()
        finally:
            await polyloop.checkpoint()
            await asyncio.sleep(0)
            await polyloop.sleep(0.0001)
            cleaned.set()

    with Runtime(loops=loops) as runtime:
        handle = runtime.spawn(task, migratable=True)
        assert started.wait(PATIENCE)
        until(lambda: begun(handle, fn))
    assert handle.cancelled()
    assert cleaned.is_set()
    assert is_closed(handle.get_coro())
    assert runtime.close().clean


@pytest.mark.parametrize("loops", [1, 2])
def test_a_close_cancels_what_is_queued(loops: int) -> None:
    """It never starts, and is over when the runtime is."""
    gates = [Gate() for _ in range(loops)]
    runtime = Runtime(loops=loops).start()
    for gate, worker in zip(gates, runtime.workers, strict=True):
        runtime.spawn(gate.step, on=worker)
        gate.wait_entered()
    handles = [runtime.spawn(where, migratable=True) for _ in range(10)]
    handles += [runtime.spawn(where, migratable=True, on=runtime.workers[0]) for _ in range(10)]
    closer = threading.Thread(target=runtime.close)
    closer.start()
    until(lambda: runtime._state == "closing")
    until(lambda: all(worker.mailbox.items for worker in runtime.workers))
    for gate in gates:
        gate.open()
    closer.join(PATIENCE)
    for handle in handles:
        assert handle.done()
        assert is_closed(handle.get_coro())
        assert handle.cancelled() or handle._exception is None
    assert runtime.close().clean


def test_a_close_waits_for_a_cleanup_on_another_worker() -> None:
    """The tasks that end each other's waits are all served until the last is over."""
    event = polyloop.Event()

    async def first() -> None:
        try:
            await park()
        finally:
            await event.wait()

    async def second() -> None:
        try:
            await nap()
        finally:
            await polyloop.sleep(0.001)
            event.set()

    with Runtime(loops=2) as runtime:
        handles = [spawn(runtime, first, 0), spawn(runtime, second, 1)]
        for handle in handles:
            parked(handle)
    assert all(handle.cancelled() for handle in handles)
    assert runtime.close().clean


def test_a_close_leaves_behind_what_swallows_its_cancellation(caplog: pytest.LogCaptureFixture) -> None:
    """It is named in the report, with its stack; its handle fails, and its coroutine is closed."""
    closed = threading.Event()

    async def stubborn() -> None:
        try:
            while True:
                try:
                    await park()
                except asyncio.CancelledError:
                    continue
        finally:
            closed.set()

    with Runtime(loops=2, shutdown_timeout=0.1) as runtime:
        handle = runtime.spawn(stubborn, migratable=True)
        parked(handle)
    report = runtime.close()
    assert [(stuck.kind, stuck.name) for stuck in report.stuck] == [("task", handle.name)]
    assert any("in stubborn" in line for line in report.stuck[0].stack)
    with pytest.raises(RuntimeClosedError):
        handle.result(0)
    assert closed.is_set()
    assert is_closed(handle.get_coro())
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_close_leaves_behind_what_turns_for_ever() -> None:
    """A task that swallows its cancellation and never waits ends with its loop."""
    started, stop = threading.Event(), threading.Event()

    async def stubborn() -> None:
        while not stop.is_set():
            started.set()
            try:
                await polyloop.checkpoint()
            except asyncio.CancelledError:
                continue

    with Runtime(loops=2, shutdown_timeout=0.1) as runtime:
        handle = runtime.spawn(stubborn, migratable=True)
        assert started.wait(PATIENCE)
    assert handle.done()
    stop.set()
    with pytest.raises(RuntimeClosedError):
        handle.result(0)
    assert is_closed(handle.get_coro())


def test_a_close_leaves_behind_a_step_that_does_not_end() -> None:
    """Its handle fails, and so do those that wait behind it; the thread ends when it comes back."""
    gate = Gate()
    runtime = Runtime(loops=1, shutdown_timeout=0.0).start()
    handle = runtime.spawn(gate.step, migratable=True)
    gate.wait_entered()
    waits = runtime.spawn(where, migratable=True)
    bound = runtime.spawn(where, migratable=True, on=runtime.workers[0])
    report = runtime.close()
    assert [stuck.kind for stuck in report.stuck] == ["thread"]
    for each in (handle, waits, bound):
        assert each.done()
        assert isinstance(each.exception(0), RuntimeClosedError)
    assert is_closed(waits.get_coro())
    assert is_closed(bound.get_coro())
    gate.open()
    runtime.workers[0].ended._block(PATIENCE, "")
    until(lambda: is_closed(handle.get_coro()))


def test_a_spawn_of_a_runtime_that_is_closed_is_refused() -> None:
    """The coroutine is closed; so before it was started."""
    runtime = Runtime(loops=1)
    coro = where()
    with pytest.raises(RuntimeClosedError):
        runtime.submit(coro, migratable=True)
    assert is_closed(coro)
    with runtime:
        pass
    coro = where()
    with pytest.raises(RuntimeClosedError):
        runtime.submit(coro, migratable=True)
    assert is_closed(coro)


def test_spawning_while_a_runtime_closes() -> None:
    """Threads and tasks that go on spawning: each call is refused or its handle completes, and nothing is unclosed."""
    handles: list[TaskHandle[Any]] = []
    coros: list[Coroutine[Any, Any, Any]] = []
    begun = threading.Barrier(4)

    def spawn_some() -> None:
        begun.wait(PATIENCE)
        while True:
            coro = turn() if len(coros) % 2 else where()
            coros.append(coro)
            try:
                handles.append(runtime.submit(coro, migratable=True))
            except RuntimeClosedError:
                return

    for _ in range(10):
        with Runtime(loops=2) as runtime:
            threads = [threading.Thread(target=spawn_some) for _ in range(3)]
            for thread in threads:
                thread.start()
            begun.wait(PATIENCE)
            until(lambda: len(handles) > 20)
        for thread in threads:
            thread.join(PATIENCE)
        assert all(handle.done() for handle in handles)
        assert all(map(is_closed, coros))
        handles.clear()
        coros.clear()


def test_a_task_that_spawns_in_its_cleanup_is_refused() -> None:
    """As with ordinary tasks."""
    refused: list[BaseException] = []

    async def task() -> None:
        try:
            await park()
        finally:
            try:
                polyloop.spawn(where, migratable=True)
            except RuntimeClosedError as exc:
                refused.append(exc)

    with Runtime(loops=2) as runtime:
        handle = runtime.spawn(task, migratable=True)
        parked(handle)
    assert handle.cancelled()
    assert len(refused) == 1


def test_run_ends_what_is_left() -> None:
    """``polyloop.run`` cancels what its main task leaves behind, as ``asyncio.run`` does."""
    handles: list[TaskHandle[None]] = []

    async def main() -> str:
        handles.extend(polyloop.spawn(fn) for fn in ENDLESS * 3)
        while not all(map(begun, handles, ENDLESS * 3)):
            await polyloop.checkpoint()
        return "done"

    assert polyloop.run(main(), loops=2, migratable=True) == "done"
    assert len(handles) == 3 * len(ENDLESS)
    assert all(handle.cancelled() for handle in handles)


# A worker that dies


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What a death says to the log."""
    caplog.set_level(logging.CRITICAL)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("fn", ATTACHED, ids=lambda fn: fn.__name__)
def test_what_is_attached_to_a_worker_that_dies_fails(fn: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """With the reason; its finally blocks have run."""
    closed = threading.Event()

    async def task() -> None:
        try:
            await fn()
        finally:
            closed.set()

    with Runtime(loops=2) as runtime:
        handle = spawn(runtime, task)
        parked(handle)
        kill(runtime.workers[0])
        with pytest.raises(WorkerDiedError, match="stopped from inside"):
            handle.result(PATIENCE)
        assert closed.is_set()
        assert is_closed(handle.get_coro())
        assert spawn(runtime, where, 1).result(PATIENCE) == "polyloop-1"
    assert runtime.close().clean


@pytest.mark.usefixtures("quiet")
def test_what_belongs_to_a_worker_that_dies_fails() -> None:
    """Spawned on it by name: parked there, or queued."""
    with Runtime(loops=2) as runtime:
        handles = [runtime.spawn(fn, migratable=True, on=runtime.workers[0]) for fn in (park, nap, turn)]
        runtime.spawn(where, on=runtime.workers[0]).result(PATIENCE)
        kill(runtime.workers[0])
        for handle in handles:
            with pytest.raises(WorkerDiedError, match="stopped from inside"):
                handle.result(PATIENCE)
            assert is_closed(handle.get_coro())


@pytest.mark.usefixtures("quiet")
def test_what_is_parked_goes_on_elsewhere() -> None:
    """It is of no worker: woken after the death it runs on another."""
    event = polyloop.Event()

    async def task() -> str:
        await event.wait()
        return threading.current_thread().name

    with Runtime(loops=2) as runtime:
        handles = [spawn(runtime, task) for _ in range(3)]
        for handle in handles:
            parked(handle)
        kill(runtime.workers[0])
        event.set()
        assert [handle.result(PATIENCE) for handle in handles] == ["polyloop-1"] * 3


@pytest.mark.usefixtures("quiet")
def test_what_sleeps_on_a_worker_that_dies_sleeps_on_elsewhere() -> None:
    """For as long as it was to, and not less."""

    async def short() -> tuple[str, bool]:
        loop = asyncio.get_running_loop()
        before = loop.time()
        started.set()
        await polyloop.sleep(0.2)
        return threading.current_thread().name, asyncio.get_running_loop().time() - before >= 0.2

    started = threading.Event()
    with Runtime(loops=2) as runtime:
        handle, endless = spawn(runtime, short), spawn(runtime, nap)
        assert started.wait(PATIENCE)
        parked(handle)
        parked(endless)
        kill(runtime.workers[0])
        assert handle.result(PATIENCE) == ("polyloop-1", True)
        assert not endless.done()
        assert len(runtime.workers[1].crew_member.sleepers) == 1
    assert endless.cancelled()


@pytest.mark.usefixtures("quiet")
def test_what_is_queued_goes_on_elsewhere() -> None:
    """Whether it has started or not; what was bound to the worker fails."""
    gate = Gate()

    async def stop() -> None:
        asyncio.get_running_loop().stop()
        gate.hold()

    with Runtime(loops=2, steal=False) as runtime:
        worker = runtime.workers[0]
        event = polyloop.Event()
        started = [spawn(runtime, event.wait) for _ in range(2)]
        for handle in started:
            parked(handle)
        stopper = runtime.spawn(stop, on=worker, migratable=False)
        gate.wait_entered()

        new = [MigratableTask(where()) for _ in range(3)]
        for task in new:
            runtime._crew.start(task, worker)
        bound = runtime.spawn(where, on=worker, migratable=True)
        event.set()
        gate.open()
        worker.ended._block(PATIENCE, "")
        # What was queued may have been stepped in the loop's last iteration, or goes on elsewhere.
        assert {task.result(PATIENCE) for task in new} <= {"polyloop-0", "polyloop-1"}
        assert [handle.result(PATIENCE) for handle in started] == [True, True]
        assert stopper.done()
        assert bound.done()
        assert is_closed(bound.get_coro())


@pytest.mark.usefixtures("quiet")
def test_a_migratable_task_stops_its_loop() -> None:
    """It goes on elsewhere itself."""

    async def stop() -> str:
        asyncio.get_running_loop().stop()
        for _ in range(3):
            await polyloop.sleep(0.001)
        return threading.current_thread().name

    with Runtime(loops=2) as runtime:
        assert spawn(runtime, stop).result(PATIENCE) == "polyloop-1"


@pytest.mark.usefixtures("quiet")
def test_every_worker_dies() -> None:
    """What is left fails when the runtime is closed, or before; what comes is refused."""
    with Runtime(loops=2) as runtime:
        handles = [spawn(runtime, fn, number % 2) for number, fn in enumerate(ENDLESS * 2)]
        until(lambda: all(map(begun, handles, ENDLESS * 2)))
        for worker in runtime.workers:
            kill(worker)
        with pytest.raises((WorkerDiedError, RuntimeClosedError)):
            runtime.spawn(where, migratable=True)
    for handle in handles:
        assert handle.done()
        # That of a group's parent is a group.
        exc, *_ = getattr(handle.exception(0), "exceptions", [handle.exception(0)])
        assert isinstance(exc, (WorkerDiedError, RuntimeClosedError))
        assert is_closed(handle.get_coro())


@pytest.mark.usefixtures("quiet")
def test_a_task_that_is_closed_gives_back_its_rlock() -> None:
    """Its finally blocks run as the task: what it holds it may release."""
    lock = polyloop.RLock()

    async def task() -> None:
        async with polyloop.pinned(), lock:
            await park()

    with Runtime(loops=2) as runtime:
        handle = spawn(runtime, task)
        parked(handle)
        kill(runtime.workers[0])
        with pytest.raises(WorkerDiedError):
            handle.result(PATIENCE)
        until(lambda: is_closed(handle.get_coro()))
        assert not lock.locked()


@pytest.mark.usefixtures("quiet")
def test_a_task_that_is_closed_is_in_its_context() -> None:
    """Its finally blocks see its variables, and may reset them."""
    variable = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def task() -> None:
        token = variable.set("inside")
        try:
            await pinned()
        finally:
            seen.append(variable.get())
            variable.reset(token)

    with Runtime(loops=2) as runtime:
        handle = spawn(runtime, task)
        parked(handle)
        kill(runtime.workers[0])
        with pytest.raises(WorkerDiedError):
            handle.result(PATIENCE)
        until(lambda: is_closed(handle.get_coro()))
        assert seen == ["inside"]


@pytest.mark.usefixtures("quiet")
def test_a_lock_goes_on_when_its_holder_was_closed() -> None:
    """A ``Lock`` may be released by anybody: the next in line has it."""
    lock = polyloop.Lock()

    async def hold() -> None:
        async with polyloop.pinned(), lock:
            await park()

    async def enter() -> str:
        async with lock:
            return threading.current_thread().name

    with Runtime(loops=2) as runtime:
        holder = spawn(runtime, hold)
        parked(holder)
        waits = spawn(runtime, enter)
        parked(waits)
        kill(runtime.workers[0])
        assert waits.result(PATIENCE) == "polyloop-1"
        assert isinstance(holder.exception(PATIENCE), WorkerDiedError)
        assert not lock.locked()

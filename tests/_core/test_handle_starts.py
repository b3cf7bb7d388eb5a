"""How a task starts, on real loops: interrupted by signal handlers, cancelled by itself, in a context of the user's."""

import asyncio
import contextlib
import contextvars
import gc
import inspect
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest

from polyloop import Runtime, TaskHandle, to_thread
from polyloop._core import _context_owner, _task
from polyloop._core._completion import Completion, set_once
from polyloop._core._context_owner import claim_context, context_owner
from polyloop.testing import TestLoop, wait_all_blocked


async def value(result: int = 7) -> int:
    return result


# Interrupted by a signal handler


class Interrupt(Exception):
    """What a signal handler raises, of a kind that leaves the loop of a test alone."""


class InterruptedTask(asyncio.Task[Any]):
    """A signal handler raises when the task of ``victim`` has just been made."""

    def __init__(self, coro: Any, **options: Any) -> None:
        super().__init__(coro, **options)
        if coro.__name__ == "victim":
            raise Interrupt


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("ends", ["at once", "later"])
def test_a_signal_handler_that_raises_beside_a_start_leaves_the_task_alone(
    left: TestLoop, monkeypatch: pytest.MonkeyPatch, ends: str, eager: bool, plain: bool
) -> None:
    """The exception goes on, and the task, which lives, is waited for to its end."""
    release = left.run(asyncio.Event)

    async def victim() -> str:
        if ends == "later":
            await release.wait()
        return "its own end"

    async def start() -> None:
        port = left.worker
        monkeypatch.setattr(_task, "_Task", InterruptedTask)
        monkeypatch.setattr(asyncio, "Task", InterruptedTask)
        monkeypatch.setattr(port, "plain_tasks", plain)
        monkeypatch.setattr(port, "new_task", lambda coro, name, context: InterruptedTask(coro, loop=port.loop))
        try:
            with pytest.raises(Interrupt):
                (handle._start if eager else handle._start_here)(port)
        finally:
            monkeypatch.undo()

    handle = TaskHandle(victim())
    left.run(start)
    left.run(release.set)
    assert handle.result(timeout=30) == "its own end"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_first_step_is_seen_by_the_awaiter_and_not_reported_again(
    kind: type[BaseException], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the loop, as asyncio's does, and asyncio does not say that nobody retrieved it."""

    async def leave() -> None:
        raise kind(3)

    with Runtime(loops=1) as runtime:
        handle = runtime.spawn(leave)
        with pytest.raises(kind):
            handle.result(timeout=30)
        del handle
        gc.collect()
    gc.collect()
    assert "never retrieved" not in caplog.text + capfd.readouterr().err


# Cancelled by itself


@pytest.mark.parametrize("plain", [True, False])
def test_a_task_that_cancels_itself_in_its_first_step_ends_cancelled(
    left: TestLoop, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """Though it then returns: the request reaches it, as with asyncio."""
    monkeypatch.setattr(left.worker, "plain_tasks", plain)
    own: list[TaskHandle[str]] = []

    async def cancel_myself() -> str:
        assert own[0].cancel("me")
        return "finished"

    own.append(TaskHandle(cancel_myself()))
    left.worker.admit(own[0], False)
    with pytest.raises(asyncio.CancelledError, match="me"):
        own[0].result(timeout=30)


@pytest.mark.parametrize("plain", [True, False])
def test_a_task_that_awaits_itself_in_its_first_step_is_told(
    left: TestLoop, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """It would wait for ever."""
    monkeypatch.setattr(left.worker, "plain_tasks", plain)
    own: list[TaskHandle[None]] = []

    async def await_myself() -> None:
        await own[0]

    own.append(TaskHandle(await_myself()))
    left.worker.admit(own[0], False)
    with pytest.raises(RuntimeError, match="cannot await on itself"):
        own[0].result(timeout=30)


def test_a_request_is_noted_while_another_is_being_noted(left: TestLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a signal handler of the same thread: no lock is held, and both are delivered."""

    async def count() -> int:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            return task.cancelling()
        raise AssertionError

    def interrupted(owner: Any, name: str, request: Any) -> Any:
        monkeypatch.undo()
        handle.cancel("of the handler")
        return set_once(owner, name, request)

    handle = left.spawn(count)
    left.wait_all_blocked()
    with left.paused():
        monkeypatch.setattr(_task, "set_once", interrupted)
        assert handle.cancel("of the program")
    assert handle.result(timeout=30) == 2


# In a context of the user's


async def steps(count: int) -> int:
    for _ in range(count):
        await asyncio.sleep(0)
    return count


def test_tasks_that_share_a_context_share_a_loop(left: TestLoop, right: TestLoop) -> None:
    """One that is queued elsewhere is passed on to the loop of the first: on two, both would hang."""
    context = contextvars.copy_context()
    handles = [TaskHandle(steps(200), context=context) for _ in range(20)]
    for number, handle in enumerate(handles):
        (left, right)[number % 2].worker.admit(handle, False)
    assert [handle.result(timeout=30) for handle in handles] == [200] * 20
    assert len({handle.worker for handle in handles}) == 1


def test_a_context_of_another_loop_is_refused_at_the_call(left: TestLoop, right: TestLoop) -> None:
    """With the names of both, and the coroutine closed."""
    context = contextvars.copy_context()
    first = TaskHandle(value(), context=context)
    left.run(first._start_here, left.worker)
    assert first.result(timeout=30) == 7
    coro = value()
    second = TaskHandle(coro, context=context)
    with pytest.raises(
        RuntimeError, match=r"cannot start 'value' on right: its context is that of tasks on left.*copy"
    ):
        right.run(second._start_here, right.worker)
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
    assert context_owner(context) is left.worker


def test_a_context_is_free_again_when_its_loop_has_ended(right: TestLoop) -> None:
    """Another loop may have it then, and the next after that."""
    context = contextvars.copy_context()
    for _ in range(3):
        with TestLoop() as loop:
            assert claim_context(context, loop.worker) is loop.worker
            assert claim_context(context, right.worker) is loop.worker
        assert context_owner(context) is None
    assert claim_context(context, right.worker) is right.worker


def test_a_context_that_is_dropped_is_forgotten(left: TestLoop) -> None:
    """The next that has its place in memory is not taken for it."""
    context = contextvars.copy_context()
    assert context_owner(context) is None
    claim_context(context, left.worker)
    key = id(context)
    assert key in _context_owner._contexts
    del context
    gc.collect()
    assert key not in _context_owner._contexts


def test_one_of_many_threads_gets_a_context(left: TestLoop, right: TestLoop) -> None:
    """All agree on it."""
    start = threading.Barrier(8)
    owners: list[object] = []

    def claim(context: contextvars.Context, number: int) -> None:
        start.wait(30)
        owners.append(claim_context(context, (left, right)[number % 2].worker))

    for _ in range(20):
        context = contextvars.copy_context()
        threads = [threading.Thread(target=claim, args=(context, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(owners)) == 1
        owners.clear()


# Nothing is left for the garbage collector


class Failed(Exception):
    """Raised by the tasks below."""


async def fail(yields: bool) -> None:
    if yields:
        await asyncio.sleep(0)
    raise Failed


async def catch(handle: TaskHandle[None]) -> None:
    try:
        await handle
    except Failed:
        pass
    finally:
        del handle


def read(left: TestLoop, yields: bool) -> None:
    handle = TaskHandle(fail(yields))
    left.worker.admit(handle, False)
    try:
        handle.result(timeout=30)
    except Failed:
        pass
    finally:
        del handle


def await_it(left: TestLoop, right: TestLoop, yields: bool) -> None:
    handle = TaskHandle(fail(yields))
    left.worker.admit(handle, False)
    right.run(catch, handle)


def call(left: TestLoop, right: TestLoop) -> None:
    def fail_in_thread() -> None:
        raise Failed

    async def catch_call() -> None:
        with contextlib.suppress(Failed):
            await to_thread(fail_in_thread)

    right.run(catch_call)


@pytest.fixture
def garbage() -> Generator[Callable[[], list[Any]]]:
    """The failures that only the garbage collector could free since the start of the test."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)

    def collect() -> list[Any]:
        gc.collect()
        return [thing for thing in gc.garbage if isinstance(thing, (Failed, Completion))]

    yield collect
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.skipif(sys.version_info < (3, 13, 10), reason="an early 3.13 keeps cycles here that 3.13.15 does not")
@pytest.mark.parametrize("yields", [False, True])
@pytest.mark.parametrize("look", ["read", "await", "to_thread"])
def test_a_failure_that_was_looked_at_leaves_no_cycle(
    left: TestLoop, right: TestLoop, garbage: Callable[[], list[Any]], look: str, yields: bool
) -> None:
    """Neither through the frames of the one who waits nor through those of the one who started it."""
    for _ in range(10):
        if look == "read":
            read(left, yields)
        elif look == "to_thread":
            call(left, right)
        else:
            await_it(left, right, yields)
    wait_all_blocked(left, right)
    # A cycle shows each time. A few may be on their way still: what another thread than their own has dropped.
    assert len(garbage()) < 10

"""The handle of a task, on real loops: awaited, read, cancelled and dropped from other threads."""

import asyncio
import contextvars
import gc
import logging
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from polyloop import BlockingCallError, TaskHandle
from polyloop.testing import TestLoop, TestThread, wait_all_blocked

NUMBER: contextvars.ContextVar[int] = contextvars.ContextVar("NUMBER", default=0)


async def add(a: int, b: int) -> int:
    return a + b


async def fail() -> None:
    raise ValueError("failed")


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def wait_for[T](handle: TaskHandle[T]) -> T:
    return await handle


# Results


def test_a_handle_is_read_on_threads_and_awaited_on_loops(left: TestLoop, right: TestLoop) -> None:
    """The same result everywhere, as often as asked."""
    handle = left.spawn(add, 1, 2)
    assert handle.result(timeout=30) == 3
    assert handle.result() == 3
    assert handle.exception() is None
    assert left.run(wait_for, handle) == right.run(wait_for, handle) == 3
    assert handle.done()
    assert not handle.cancelled()


def test_a_failure_is_raised_by_every_reader(left: TestLoop, right: TestLoop) -> None:
    """By ``result`` and by ``await``; ``exception`` returns it."""
    handle = left.spawn(fail)
    with pytest.raises(ValueError, match="failed"):
        handle.result()
    assert isinstance(handle.exception(), ValueError)
    for loop in (left, right):
        with pytest.raises(ValueError, match="failed"):
            loop.run(wait_for, handle)


def test_waiting_for_the_result_has_a_limit(left: TestLoop) -> None:
    """The task runs on after it."""
    handle = left.spawn(forever, name="slow")
    with pytest.raises(TimeoutError, match=r"'slow' pending on left> was not done after 0\.01 s"):
        handle.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        handle.exception(timeout=0)
    with pytest.raises(ValueError, match="'timeout' must be a number, got nan"):
        handle.result(timeout=math.nan)
    assert not handle.done()


@pytest.mark.parametrize("call", [TaskHandle.result, TaskHandle.exception])
def test_a_loop_never_blocks_on_a_handle(
    left: TestLoop, right: TestLoop, call: Callable[[TaskHandle[None]], object]
) -> None:
    """Neither on its own task nor on another loop's."""
    handle = left.spawn(forever)
    for loop in (left, right):
        with pytest.raises(BlockingCallError, match=f"would block the event loop of thread '{loop.worker.name}'"):
            loop.run(call, handle)


def test_a_failure_awaited_on_two_loops_is_two_objects(left: TestLoop, right: TestLoop) -> None:
    """One awaits the task on its own loop, one from outside, at the same time: each raises its own."""
    gate = left.run(asyncio.get_running_loop).create_future
    release = left.run(gate)

    async def fail_later() -> None:
        await release
        raise ValueError("failed")

    handle = left.spawn(fail_later)

    async def catch() -> BaseException:
        try:
            await handle
        except ValueError as exc:
            return exc
        raise AssertionError

    here, away = left.spawn(catch), right.spawn(catch)
    wait_all_blocked(left, right)
    left.run(release.set_result, None)
    first, second = here.result(), away.result()
    assert first is not second
    assert first.args == second.args == ("failed",)


# Cancellation


def test_a_task_cancelled_before_its_start_never_begins(left: TestLoop) -> None:
    """It ends cancelled, with the message, and its coroutine is closed."""
    began: list[None] = []

    async def begin() -> None:
        began.append(None)

    with left.paused():
        handle = left.spawn(begin)
        assert handle.cancel("too late")
        assert not handle.done()
    with pytest.raises(asyncio.CancelledError, match="too late"):
        handle.result()
    assert handle.cancelled()
    assert began == []


def test_requests_are_delivered_once_each(left: TestLoop, right: TestLoop) -> None:
    """``Task.cancelling`` counts as many as were made, from loops and threads, as with asyncio."""

    async def count() -> int:
        task = asyncio.current_task()
        assert task is not None
        try:
            await forever()
        except asyncio.CancelledError:
            return task.cancelling()
        raise AssertionError

    handle = left.spawn(count)
    left.wait_all_blocked()
    with left.paused():
        assert handle.cancel()
        assert right.run(handle.cancel)
        assert TestThread(handle.cancel).result()
    assert handle.result() == 3
    assert handle.cancel() is False


def test_a_task_may_refuse_to_be_cancelled(left: TestLoop) -> None:
    """It swallows the request and returns; the handle is not cancelled then."""

    async def refuse() -> str:
        try:
            await forever()
        except asyncio.CancelledError as exc:
            return f"no: {exc}"
        raise AssertionError

    handle = left.spawn(refuse)
    left.wait_all_blocked()
    handle.cancel("please")
    assert handle.result() == "no: please"
    assert not handle.cancelled()


@pytest.mark.parametrize("where", ["left", "right"])
def test_a_cancelled_awaiter_cancels_the_task_and_waits_for_its_end(
    left: TestLoop, right: TestLoop, where: str
) -> None:
    """The same from the task's own loop and from another: the clean-up is over when the awaiter goes on."""
    order: list[str] = []
    clean_up = left.run(asyncio.Event)

    async def task() -> None:
        try:
            await forever()
        finally:
            await clean_up.wait()
            order.append("task")

    handle = left.spawn(task)

    async def awaiter() -> None:
        try:
            await handle
        finally:
            order.append("awaiter")

    waiting = (left if where == "left" else right).spawn(awaiter)
    wait_all_blocked(left, right)
    waiting.cancel()
    wait_all_blocked(left, right)
    assert order == []
    left.run(clean_up.set)
    with pytest.raises(asyncio.CancelledError):
        waiting.result()
    assert order == ["task", "awaiter"]
    assert handle.cancelled()


def test_a_shielded_awaiter_leaves_the_task_alone(left: TestLoop, right: TestLoop) -> None:
    """``asyncio.shield`` takes the handle as it takes a future."""
    release = left.run(asyncio.Event)
    handle = left.spawn(release.wait)

    async def shielded() -> None:
        await asyncio.shield(handle)

    waiting = right.spawn(shielded)
    wait_all_blocked(left, right)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result()
    left.run(release.set)
    assert handle.result() is True


def test_a_timeout_around_a_handle_cancels_its_task(left: TestLoop, right: TestLoop) -> None:
    """``asyncio.timeout`` on one loop, the task on another."""
    handle = left.spawn(forever)

    async def limited() -> None:
        async with asyncio.timeout(0.01):
            await handle

    with pytest.raises(TimeoutError):
        right.run(limited)
    assert handle.cancelled()


def test_an_awaiter_cancelled_as_the_task_ends_does_not_lose_its_cancellation(left: TestLoop, right: TestLoop) -> None:
    """The request finds the task done: the awaiter is cancelled all the same."""
    release = left.run(asyncio.Event)
    handle = left.spawn(release.wait)
    waiting = right.spawn(wait_for, handle)
    wait_all_blocked(left, right)
    with right.paused():
        left.run(release.set)
        assert handle.result() is True
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result()


# Callbacks


def test_a_callback_runs_on_the_loop_it_was_added_from(left: TestLoop, right: TestLoop) -> None:
    """In the context of that moment; one added on a plain thread runs where the task ends."""
    release = left.run(asyncio.Event)
    handle = left.spawn(release.wait)
    seen: dict[str, tuple[int, int]] = {}

    def note(name: str, done: object) -> None:
        assert done is handle
        seen[name] = (threading.get_ident(), NUMBER.get())

    def add_on_loop(name: str, number: int) -> None:
        NUMBER.set(number)
        handle.add_done_callback(lambda done: note(name, done))

    left.run(add_on_loop, "left", 1)
    right.run(add_on_loop, "right", 2)
    context = contextvars.copy_context()
    context.run(NUMBER.set, 3)
    handle.add_done_callback(lambda done: note("thread", done), context=context)
    left.run(release.set)
    handle.result()
    wait_all_blocked(left, right)
    here, there = left.worker.ident, right.worker.ident
    assert seen == {"left": (here, 1), "right": (there, 2), "thread": (here, 3)}


def test_a_callback_on_a_handle_that_is_done_runs_at_once(left: TestLoop) -> None:
    """On a plain thread before the call returns, on a loop soon after."""
    handle = left.spawn(add, 1, 2)
    handle.result()
    seen: list[TaskHandle[int]] = []
    handle.add_done_callback(seen.append)
    assert seen == [handle]
    left.run(handle.add_done_callback, seen.append)
    left.wait_all_blocked()
    assert seen == [handle, handle]


def test_a_removed_callback_is_not_called(left: TestLoop) -> None:
    """All that are equal go, and their number is told."""
    handle = left.spawn(forever)
    seen: list[TaskHandle[None]] = []
    for _ in range(2):
        handle.add_done_callback(seen.append)
    assert handle.remove_done_callback(seen.append) == 2
    assert handle.remove_done_callback(seen.append) == 0
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result()
    assert seen == []


def test_a_callback_that_raises_stops_nobody(left: TestLoop, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the others are called."""
    handle = left.spawn(forever)
    seen: list[TaskHandle[None]] = []

    def bad(_: TaskHandle[None]) -> None:
        raise ValueError("bad callback")

    handle.add_done_callback(bad)
    handle.add_done_callback(seen.append)
    with caplog.at_level(logging.ERROR, "polyloop"):
        handle.cancel()
        left.wait_all_blocked()
    assert seen == [handle]
    assert "a done callback of" in caplog.text


class Told:
    """A group that counts its children's ends."""

    def __init__(self) -> None:
        self.ended: list[TaskHandle[None]] = []

    def _child_ended(self, handle: TaskHandle[None], /) -> None:
        self.ended.append(handle)


def test_a_callback_that_raises_a_cancellation_stops_nobody(left: TestLoop, caplog: pytest.LogCaptureFixture) -> None:
    """``lambda handle: handle.result()`` does, for a cancelled task: waiters and group are told all the same."""
    group = Told()
    handle = TaskHandle(forever())
    handle._group = group
    left.worker.admit(handle, False)
    handle.add_done_callback(lambda done: done.result())
    waiter = TestThread(handle.exception, 30)
    with caplog.at_level(logging.ERROR, "polyloop"):
        handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            waiter.result()
        left.wait_all_blocked()
    assert group.ended == [handle]
    assert "a done callback of" in caplog.text


def test_an_exit_in_a_callback_leaves_the_loop_and_stops_nobody(left: TestLoop) -> None:
    """As asyncio's, once the others were called."""
    handle = left.spawn(forever)
    seen: list[TaskHandle[None]] = []
    exits: list[BaseException] = []
    left.worker.on_fatal = exits.append

    def leave(_: TaskHandle[None]) -> None:
        raise SystemExit(3)

    handle.add_done_callback(leave)
    handle.add_done_callback(seen.append)
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result()
    left.wait_all_blocked()
    assert seen == [handle]
    assert [exc.args for exc in exits] == [(3,)]


def test_a_wake_that_is_interrupted_leaves_nobody_waiting(left: TestLoop) -> None:
    """A signal handler raises between two waiters: the rest are woken, and the group is told."""
    group = Told()
    handle = TaskHandle(forever())
    handle._group = group
    woken: list[int] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    handle._add_waiter(lambda: woken.append(1))
    handle._add_waiter(interrupted)
    handle._add_waiter(lambda: woken.append(2))
    with pytest.raises(KeyboardInterrupt):
        handle._refuse(asyncio.CancelledError())
    assert woken == [1, 2]
    assert group.ended == [handle]


def test_callbacks_come_and_go_in_constant_time(left: TestLoop) -> None:
    """None looks at the others, whose functions say when they are compared."""
    compared: list[int] = []

    class Function:
        def __init__(self, number: int) -> None:
            self.number = number

        def __hash__(self) -> int:
            return hash(self.number)

        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return self is other

        def __call__(self, _: TaskHandle[None]) -> None:
            raise AssertionError

    handle = left.spawn(forever)
    functions = [Function(number) for number in range(2000)]
    for function in functions:
        handle.add_done_callback(function)
    for function in reversed(functions):
        assert handle.remove_done_callback(function) == 1
    assert len(compared) <= 20 * len(functions)


def test_a_callback_without_a_hash_can_be_removed(left: TestLoop) -> None:
    """It is found by comparison."""

    class Unhashable(list[object]):
        def __call__(self, done: object) -> None:
            self.append(done)

    handle = left.spawn(forever)
    kept, removed = Unhashable(), Unhashable([1])
    for function in (kept, removed, removed):
        handle.add_done_callback(function)
    assert handle.remove_done_callback(Unhashable([1])) == 2
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result()
    left.wait_all_blocked()
    assert kept == [handle]


# What asyncio's own functions look at


def test_a_shielded_failure_that_comes_late_is_reported_as_asyncio_does(left: TestLoop, right: TestLoop) -> None:
    """From 3.14 on ``asyncio.shield`` reports it itself, and reads two private attributes for that."""
    release = left.run(asyncio.Event)

    async def fail_late() -> None:
        await release.wait()
        raise ValueError("late")

    handle = left.spawn(fail_late)

    async def shielded(handle: TaskHandle[None]) -> None:
        await asyncio.shield(handle)

    waiting = right.spawn(shielded, handle)
    wait_all_blocked(left, right)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result()
    left.run(release.set)
    wait_all_blocked(left, right)
    del handle, waiting
    gc.collect()
    wait_all_blocked(left, right)
    errors = [*left.take_errors(), *right.take_errors()]
    assert [str(error["exception"]) for error in errors] == ["late"]


def test_a_handle_has_what_asyncio_reads_of_a_future(left: TestLoop) -> None:
    """``_log_on_exception`` of ``asyncio.shield`` reads these, on the loop it was called from."""
    handle: Any = left.spawn(add, 1, 2)
    assert handle._source_traceback is None
    assert left.run(lambda: handle._loop) is left.worker.loop


# What nobody looks at


def test_an_exception_that_nobody_sees_is_reported_once(left: TestLoop) -> None:
    """To the handler of its loop, when the handle is dropped."""
    handle = left.spawn(fail, name="unseen")
    left.wait_all_blocked()
    assert left.take_errors() == []
    del handle
    gc.collect()
    left.wait_all_blocked()
    errors = left.take_errors()
    assert [error["message"] for error in errors] == ["polyloop: the exception of task 'unseen' was never retrieved"]
    assert isinstance(errors[0]["exception"], ValueError)


@pytest.mark.parametrize("look", ["result", "exception", "here", "away"])
def test_an_exception_that_somebody_sees_is_not_reported(left: TestLoop, right: TestLoop, look: str) -> None:
    """By ``result``, by ``exception``, or by an ``await`` on either loop."""
    handle = left.spawn(fail)
    if look == "exception":
        assert isinstance(handle.exception(), ValueError)
    else:
        with pytest.raises(ValueError, match="failed"):
            handle.result() if look == "result" else {"here": left, "away": right}[look].run(wait_for, handle)
    del handle
    gc.collect()
    left.wait_all_blocked()
    assert left.take_errors() == []


def test_a_cancellation_is_no_unseen_exception(left: TestLoop) -> None:
    """As with asyncio, nobody needs to look."""
    handle = left.spawn(forever)
    handle.cancel()
    left.wait_all_blocked()
    del handle
    gc.collect()
    left.wait_all_blocked()
    assert left.take_errors() == []


def test_an_exception_unseen_when_its_loop_has_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The loop's handler is gone, so it goes to the log."""
    with TestLoop() as loop:
        handle = loop.spawn(fail, name="unseen")
        loop.wait_all_blocked()
    with caplog.at_level(logging.ERROR, "polyloop"):
        del handle
        gc.collect()
    assert "the exception of task 'unseen' was never retrieved" in caplog.text


# Names


def test_the_repr_tells_name_state_and_place(left: TestLoop) -> None:
    """In every state."""
    pending = left.spawn(forever, name="p")
    assert repr(pending) == "<TaskHandle 'p' pending on left>"
    pending.cancel()
    left.wait_all_blocked()
    assert repr(pending) == "<TaskHandle 'p' cancelled on left>"
    assert repr(left.spawn(add, 1, 2).result) is not None
    finished, failed = left.spawn(add, 1, 2), left.spawn(fail)
    left.wait_all_blocked()
    assert repr(finished) == "<TaskHandle 'add' finished on left>"
    assert repr(failed) == "<TaskHandle 'fail' failed exception=ValueError('failed') on left>"
    assert failed.exception() is not None


def test_a_handle_knows_its_name_and_worker(left: TestLoop) -> None:
    """The name given, else the function's; also after the end."""
    named, unnamed = left.spawn(add, 1, 2, name="mine"), left.spawn(add, 1, 2)
    for handle, name in ((named, "mine"), (unnamed, "add")):
        assert handle.name == handle.get_name() == name
        assert handle.worker is left.worker
        handle.result()
        assert handle.name == name


def test_the_task_runs_in_the_context_of_the_caller(left: TestLoop) -> None:
    """A copy: what the task sets stays in it."""

    async def read_and_set() -> int:
        number = NUMBER.get()
        NUMBER.set(9)
        return number

    def spawn() -> tuple[int, int]:
        NUMBER.set(4)
        return left.spawn(read_and_set).result(), NUMBER.get()

    assert contextvars.copy_context().run(spawn) == (4, 4)


def test_a_task_is_renamed_from_any_thread(left: TestLoop) -> None:
    """The handle says so at once, and asyncio's task when its loop comes to it; also before the start."""

    async def own_name() -> str:
        await release.wait()
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    release = left.run(asyncio.Event)
    with left.paused():
        waits = left.spawn(own_name, name="old")
        waits.set_name("new")
        assert waits.get_name() == "new"
    runs = left.spawn(own_name)
    left.wait_all_blocked()
    runs.set_name(7)
    assert runs.name == "7"
    left.run(release.set)
    assert (waits.result(), runs.result()) == ("new", "7")


def test_a_handle_shows_coroutine_and_context(left: TestLoop) -> None:
    """The context is the one given; one that the task's own loop made is known there only."""
    context = contextvars.copy_context()
    coro = forever()
    handle = TaskHandle(coro, context=context)
    assert handle.get_coro() is coro
    assert handle.get_context() is context
    coro.close()

    async def look() -> tuple[object, object]:
        own = TaskHandle(forever())
        own._start_here(left.worker)
        there = await asyncio.to_thread(own.get_context)
        here = own.get_context()
        own.cancel()
        return there, here

    there, here = left.run(look)
    assert there is None
    assert isinstance(here, contextvars.Context)

"""A handle, awaited and waited for by several loops and threads at once."""

import asyncio
import functools
import threading
from collections.abc import Iterator

import pytest
from tests.tasks.worlds import Event

import polyloop
from polyloop.testing import Gate, TestLoop, TestThread


def test_gather_without_a_loop_starts_nothing() -> None:
    """There is no loop that the future could belong to: the coroutines are closed."""
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    with polyloop.Runtime(loops=1) as runtime:
        with pytest.raises(RuntimeError, match="no running event loop"):
            polyloop.gather(work(), work())
        runtime.run(asyncio.sleep(0))
    assert not ran


@pytest.fixture
def home() -> Iterator[TestLoop]:
    """The loop on which the task runs."""
    with TestLoop("home") as loop:
        yield loop


class Task:
    """A task that waits for ``finish`` or its cancellation."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.finish = Event()
        self.error = error

    async def __call__(self) -> str:
        await self.finish.wait()
        if self.error is not None:
            raise self.error
        return "result"


async def awaiting[T](handle: polyloop.TaskHandle[T]) -> T:
    return await handle


def test_waiters_on_several_loops_and_threads_all_get_the_result(
    home: TestLoop, left: TestLoop, right: TestLoop
) -> None:
    """Two on each loop, its own included, and two threads."""
    task = Task()
    handle = home.spawn(task)
    waiters = [loop.spawn(awaiting, handle) for loop in (home, left, right) for _ in range(2)]
    threads = [TestThread(functools.partial(handle.result, timeout=30)) for _ in range(2)]
    for loop in (home, left, right):
        loop.wait_all_blocked()
    assert not any(waiter.done() for waiter in waiters)
    home.worker.post(task.finish.set)
    assert [waiter.result(30) for waiter in waiters] == ["result"] * 6
    assert [thread.result() for thread in threads] == ["result"] * 2


def test_each_thread_raises_an_exception_object_of_its_own(home: TestLoop, left: TestLoop, right: TestLoop) -> None:
    """Raising one object on two threads at once would mix their tracebacks, and can crash 3.13t."""
    cause = KeyError("cause")
    error = ValueError("shared", 1)
    error.__cause__ = cause
    error.add_note("a note")
    task = Task(error)
    handle = home.spawn(task)
    seen: dict[str, BaseException] = {}

    async def catching(name: str) -> None:
        try:
            await handle
        except ValueError as exc:
            seen[name] = exc

    waiters = [loop.spawn(catching, name) for name, loop in (("home", home), ("left", left), ("right", right))]
    for loop in (home, left, right):
        loop.wait_all_blocked()
    home.worker.post(task.finish.set)
    for waiter in waiters:
        waiter.result(30)
    with pytest.raises(ValueError, match="shared") as caught:
        handle.result(30)
    seen["thread"] = caught.value
    assert len({id(exc) for exc in seen.values()}) == 4
    assert seen["home"] is error
    for exc in seen.values():
        assert exc.args == ("shared", 1)
        assert exc.__cause__ is cause
        assert exc.__notes__ == ["a note"]
        frames = []
        trace = exc.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert frames.count("__call__") == 1


def test_a_cancelled_awaiter_on_one_loop_cancels_the_task_for_all(
    home: TestLoop, left: TestLoop, right: TestLoop
) -> None:
    """As on one loop: whoever else awaits the task hears that it was cancelled, and with which message."""
    handle = home.spawn(Task())
    mine, other = left.spawn(awaiting, handle), right.spawn(awaiting, handle)
    for loop in (home, left, right):
        loop.wait_all_blocked()
    assert mine.cancel("enough")
    for waiter in (mine, other, handle):
        with pytest.raises(asyncio.CancelledError) as caught:
            waiter.result(30)
        assert caught.value.args == ("enough",)
        assert waiter.cancelled()


def test_the_cancellation_of_an_awaiter_that_comes_too_late_reaches_the_awaiter(home: TestLoop, left: TestLoop) -> None:
    """The request is passed on while the task takes its last step: the task has ended, so the awaiter is cancelled."""
    last_step = Gate("last step")

    async def ending() -> str:
        last_step.pause()
        return "result"

    with home.paused():
        handle = home.spawn(ending)
        waiter = left.spawn(awaiting, handle)
        left.wait_all_blocked()
    last_step.reached()
    waiter.cancel("late")
    left.wait_all_blocked()  # the request is on its way
    assert not waiter.done()
    last_step.open()
    assert handle.result(30) == "result"
    with pytest.raises(asyncio.CancelledError) as caught:
        waiter.result(30)
    assert caught.value.args == ("late",)


def test_a_cancellation_that_meets_a_finished_task_reaches_the_awaiter(home: TestLoop, left: TestLoop) -> None:
    """The task has ended; its awaiter is cancelled before it can hear of that."""
    task = Task()
    handle = home.spawn(task)
    waiter = left.spawn(awaiting, handle)
    left.wait_all_blocked()
    with left.paused():
        home.worker.post(task.finish.set)
        assert handle.result(30) == "result"
        waiter.cancel("late")
    with pytest.raises(asyncio.CancelledError) as caught:
        waiter.result(30)
    assert caught.value.args == ("late",)


def test_a_task_cancelled_before_it_starts_never_runs(home: TestLoop) -> None:
    """The last message counts, as on asyncio; the coroutine is closed, not forgotten."""
    ran: list[str] = []

    async def never() -> None:
        ran.append("ran")

    with home.paused():
        handle = home.spawn(never)
        assert handle.cancel("first")
        assert handle.cancel("second")
        assert not handle.done()
    with pytest.raises(asyncio.CancelledError) as caught:
        handle.result(30)
    assert caught.value.args == ("second",)
    assert not ran
    assert not handle.cancel()


def test_a_wait_for_no_time_cancels_a_task_on_another_loop(home: TestLoop, left: TestLoop) -> None:
    """``asyncio.wait_for(handle, 0)`` takes the handle itself and not a task around it, which would shield it."""
    handle = home.spawn(Task())
    home.wait_all_blocked()

    async def waiting() -> None:
        await asyncio.wait_for(handle, 0)

    with pytest.raises(TimeoutError):
        left.run(waiting)
    assert handle.cancelled()


def test_asyncio_takes_handles_for_futures(home: TestLoop, left: TestLoop) -> None:
    """``isfuture``, ``ensure_future`` and ``as_completed`` give back the handle they were given."""
    task = Task()
    handle = home.spawn(task)

    async def looking() -> None:
        assert asyncio.isfuture(handle)
        assert asyncio.ensure_future(handle) is handle
        assert handle.get_loop() is asyncio.get_running_loop()
        home.worker.post(task.finish.set)
        async for done in asyncio.as_completed([handle]):
            assert done is handle
            assert await done == "result"

    left.run(looking)
    with pytest.raises(RuntimeError, match="no running event loop"):
        handle.get_loop()


def test_result_refuses_to_block_a_loop_and_names_the_awaitable_twin(home: TestLoop, left: TestLoop) -> None:
    """On a thread that runs a loop, of whatever kind; a handle that is done answers there too."""
    task = Task()
    handle = home.spawn(task, name="slow")

    async def blocking() -> None:
        for call in (handle.result, handle.exception):
            with pytest.raises(polyloop.BlockingCallError, match=r"'slow'.*use 'await handle'"):
                call()

    left.run(blocking)
    home.run(blocking)
    with pytest.raises(TimeoutError, match=r"was not done after 0\.01 s"):
        handle.result(timeout=0.01)
    home.worker.post(task.finish.set)
    assert handle.result(30) == "result"
    assert left.run(handle.result) == home.run(handle.result) == "result"
    assert handle.exception() is None


def test_an_exception_that_nobody_looks_at_is_reported_once(home: TestLoop) -> None:
    """When the handle goes, its loop's exception handler hears of it; a look at it is enough to keep it quiet."""
    error = ValueError("unseen")

    async def failing() -> None:
        raise error

    for look in (True, False):
        handle = home.spawn(failing, name="forgotten")
        home.wait_all_blocked()
        if look:
            assert handle.exception() is error
        del handle
        home.wait_all_blocked()
        told = home.take_errors()
        assert [context["exception"] for context in told] == ([] if look else [error])
        assert all("'forgotten' was never retrieved" in context["message"] for context in told)


def test_a_done_callback_added_by_a_thread_runs_on_the_thread_that_completes(home: TestLoop) -> None:
    """One added on a loop runs on that loop; one added elsewhere must not block, as it runs on the task's."""
    task = Task()
    handle = home.spawn(task)
    ran: list[int] = []
    done = threading.Event()

    def on_done(finished: polyloop.TaskHandle[str]) -> None:
        assert finished is handle
        ran.append(threading.get_ident())
        done.set()

    handle.add_done_callback(on_done)
    home.worker.post(task.finish.set)
    assert done.wait(30)
    assert ran == [home.worker.ident]
    handle.add_done_callback(on_done)
    assert ran == [home.worker.ident, threading.get_ident()]

"""``async_wrap``: a sync function or method as an async one, on the pool, an executor, or a loop's executor."""

import asyncio
import contextvars
import inspect
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
from tests.offload import wrapped

import polyloop
from polyloop.offload import _errand
from polyloop.testing import Gate, TestLoop, TestThread

variable = contextvars.ContextVar("variable", default="unset")


@polyloop.async_wrap
def add(a: int, b: int = 1, *, c: int = 0) -> int:
    """Add numbers."""
    return a + b + c


class Counter:
    """An object with wrapped methods."""

    def __init__(self, start: int) -> None:
        self.value = start

    @polyloop.async_wrap
    def plus(self, number: int) -> int:
        return self.value + number

    @polyloop.async_wrap(limit=1)
    def limited(self) -> int:
        return self.value

    @staticmethod
    @polyloop.async_wrap
    def static(number: int) -> int:
        return number

    @classmethod
    @polyloop.async_wrap
    def made(cls, start: int) -> "Counter":
        return cls(start)


class ThreadEach(Executor):
    """An executor of somebody's own: a thread for each call, and no cancellation."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as exc:
                future.set_exception(exc)

        thread = threading.Thread(target=work)
        self.threads.append(thread)
        thread.start()
        return future


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """An executor with one thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
        yield executor


def call[T](fn: Callable[[], Any]) -> Any:
    async def main() -> Any:
        return await fn()

    return asyncio.run(main())


def test_a_wrapped_function_is_an_async_one_with_the_same_face() -> None:
    """Name, docstring, signature, and what ``inspect`` says of it."""
    assert inspect.iscoroutinefunction(add)
    assert (add.__name__, add.__doc__) == ("add", "Add numbers.")
    assert str(inspect.signature(add)) == "(a: int, b: int = 1, *, c: int = 0) -> int"
    assert call(lambda: add(1)) == 2
    assert call(lambda: add(1, 2, c=3)) == 6


def test_methods_are_wrapped_like_functions() -> None:
    """Bare and with options; under staticmethod and classmethod, which stand above."""
    counter = Counter(10)
    assert call(lambda: counter.plus(1)) == 11
    assert call(counter.limited) == 10
    assert call(lambda: Counter.static(3)) == 3
    assert call(lambda: Counter.made(4)).value == 4


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_descriptor_cannot_be_wrapped(kind: type) -> None:
    """``@async_wrap`` above ``@staticmethod`` would hand ``self`` to the function."""
    with pytest.raises(TypeError, match=f"write '@{kind.__name__}' above '@async_wrap'"):
        polyloop.async_wrap(kind(lambda: None))


def test_async_functions_and_bad_limits_are_refused_at_once() -> None:
    """At the decoration, not at the first call."""

    async def coroutine_function() -> None: ...

    async def generator() -> Any:
        yield 1

    for fn in (coroutine_function, generator):
        with pytest.raises(TypeError, match="is async already"):
            polyloop.async_wrap(fn)
    with pytest.raises(ValueError, match="at least one token"):
        polyloop.async_wrap(limit=0)
    with pytest.raises(TypeError, match="counted by an int"):
        polyloop.async_wrap(limit=1.5)  # type: ignore[call-overload]


def test_a_limit_holds_over_all_loops_and_a_shared_limiter_over_all_functions() -> None:
    """The function is never in more calls at once than it may."""
    lock = threading.Lock()
    pair = threading.Barrier(2)  # two calls at a time get on
    inside, most = 0, 0

    def enter_and_leave() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        pair.wait(30)
        with lock:
            inside -= 1

    shared = polyloop.CapacityLimiter(2)
    alone = polyloop.async_wrap(limit=2)(enter_and_leave)
    together = [polyloop.async_wrap(limit=shared)(enter_and_leave) for _ in range(3)]

    async def many(fns: list[Callable[[], Any]]) -> None:
        await asyncio.gather(*(fn() for fn in fns * 20))

    with polyloop.Runtime(loops=3, steal=False) as runtime:
        for fns in ([alone], together):
            for handle in [runtime.spawn(many, fns, on=worker) for worker in runtime.workers]:
                handle.result(30)
            assert most == 2
            most = 0
    assert shared.borrowed_tokens == 0


@pytest.mark.parametrize("where", ["pool", "threads", "own", "loop"])
def test_results_errors_and_context_by_every_way(where: str, threads: ThreadPoolExecutor, left: TestLoop) -> None:
    """The pool, a ThreadPoolExecutor, an executor of somebody's own, and the executor of another loop."""
    executor: Executor | None = {"threads": threads, "own": ThreadEach()}.get(where)
    wrap = polyloop.async_wrap(executor=executor, loop=left.loop if where == "loop" else None)

    def look(*args: int, **kwargs: int) -> tuple[Any, ...]:
        return args, kwargs, variable.get(), threading.current_thread() is threading.main_thread()

    def failing() -> None:
        raise ValueError(where)

    async def main() -> None:
        variable.set("caller")
        seen = await wrap(look)(1, two=2)
        assert seen == ((1,), {"two": 2}, "unset" if where == "own" else "caller", False)
        with pytest.raises(ValueError, match=where):
            await wrap(failing)()

    asyncio.run(main())


def test_a_loop_may_be_the_callers_own() -> None:
    """Then the calls go to its default executor, as ``run_in_executor(None, …)`` would send them."""

    async def main() -> str:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="default"))
        return await polyloop.async_wrap(loop=loop)(lambda: threading.current_thread().name)()

    assert asyncio.run(main()).startswith("default")


def test_with_an_executor_the_loop_does_not_matter(threads: ThreadPoolExecutor) -> None:
    """As in ``loop.run_in_executor(executor, …)``: the executor given is the one used."""
    loop = asyncio.new_event_loop()
    loop.close()
    name = call(polyloop.async_wrap(loop=loop, executor=threads)(lambda: threading.current_thread().name))
    assert name.startswith("mine")


def test_a_loop_that_does_not_run_is_refused_and_the_token_returned() -> None:
    """Nobody would ever make the call."""
    limiter = polyloop.CapacityLimiter(1)
    stopped, closed = asyncio.new_event_loop(), asyncio.new_event_loop()
    closed.close()
    try:
        for loop in (stopped, closed):
            with pytest.raises(RuntimeError, match="does not run"):
                call(polyloop.async_wrap(loop=loop, limit=limiter)(int))
            assert limiter.borrowed_tokens == 0
    finally:
        stopped.close()


def test_an_executor_that_was_shut_down_refuses(left: TestLoop) -> None:
    """Its error reaches the caller, and the token goes back; also by way of another loop."""
    limiter = polyloop.CapacityLimiter(1)
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    left.run(lambda: left.loop.set_default_executor(executor))
    for wrap in (
        polyloop.async_wrap(executor=executor, limit=limiter),
        polyloop.async_wrap(loop=left.loop, limit=limiter),
    ):
        with pytest.raises(RuntimeError, match="shutdown"):
            call(wrap(int))
        assert limiter.borrowed_tokens == 0


# Cancellation


@pytest.mark.parametrize("where", ["executor", "own loop", "other loop"])
def test_a_call_that_has_not_begun_is_never_made(
    where: str, threads: ThreadPoolExecutor, left: TestLoop, right: TestLoop
) -> None:
    """It waits behind another in the executor; cancelled there, it gives its token back at once."""
    limiter = polyloop.CapacityLimiter(2)
    gate = Gate()
    ran: list[str] = []
    home = {"executor": None, "own loop": left.loop, "other loop": right.loop}[where]
    if home is not None:
        (left if where == "own loop" else right).run(home.set_default_executor, threads)
    wrap = polyloop.async_wrap(executor=threads if home is None else None, loop=home, limit=limiter)
    first = left.spawn(wrap(gate.pause))
    gate.reached()
    second = left.spawn(wrap(lambda: ran.append("ran")))
    left.wait_all_blocked()
    right.wait_all_blocked()
    assert limiter.borrowed_tokens == 2
    second.cancel("no longer")
    with pytest.raises(asyncio.CancelledError) as caught:
        second.result(30)
    assert caught.value.args == ("no longer",)
    assert limiter.borrowed_tokens == 1
    gate.open()
    first.result(30)
    assert (limiter.borrowed_tokens, ran) == (0, [])


@pytest.mark.parametrize("where", ["executor", "own", "other loop"])
def test_a_call_that_runs_is_waited_for(
    where: str, threads: ThreadPoolExecutor, left: TestLoop, right: TestLoop
) -> None:
    """Its token comes back when the thread is done, not when the caller gives up."""
    limiter = polyloop.CapacityLimiter(1)
    gate = Gate()
    executor: Executor | None = {"executor": threads, "own": ThreadEach()}.get(where)
    wrap = polyloop.async_wrap(executor=executor, loop=right.loop if where == "other loop" else None, limit=limiter)
    handle = left.spawn(wrap(gate.pause))
    gate.reached()
    handle.cancel()
    left.wait_all_blocked()
    assert (handle.done(), limiter.borrowed_tokens) == (False, 1)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize("by", ["executor", "loop"])
def test_an_executor_that_drops_its_calls_cancels_them(
    by: str, threads: ThreadPoolExecutor, left: TestLoop, right: TestLoop
) -> None:
    """``shutdown(cancel_futures=True)``: the caller hears of it, and the token comes back."""
    limiter = polyloop.CapacityLimiter(2)
    gate = Gate()
    if by == "loop":
        right.run(right.loop.set_default_executor, threads)
    wrap = polyloop.async_wrap(
        executor=threads if by == "executor" else None, loop=right.loop if by == "loop" else None, limit=limiter
    )
    first, second = left.spawn(wrap(gate.pause)), left.spawn(wrap(int))
    gate.reached()
    left.wait_all_blocked()
    right.wait_all_blocked()
    threads.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(asyncio.CancelledError):
        second.result(30)
    gate.open()
    first.result(30)
    assert limiter.borrowed_tokens == 0


def test_a_call_to_a_loop_that_was_stopped_meanwhile_can_be_cancelled(left: TestLoop, right: TestLoop) -> None:
    """It is taken back although nobody will ever look at it there."""
    limiter = polyloop.CapacityLimiter(1)
    ran: list[str] = []
    with right.paused():
        handle = left.spawn(polyloop.async_wrap(loop=right.loop, limit=limiter)(lambda: ran.append("ran")))
        left.wait_all_blocked()
        handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            handle.result(30)
        assert limiter.borrowed_tokens == 0
    right.wait_all_blocked()
    right.run(right.loop.shutdown_default_executor)
    assert not ran


def test_a_loop_that_is_closed_before_the_call_begins_ends_it(left: TestLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call was handed over and never looked at: its caller is told, though nothing else happens on its loop."""
    monkeypatch.setattr(_errand, "_WATCH", 0.01)
    limiter = polyloop.CapacityLimiter(1)
    gate = Gate()
    other = asyncio.new_event_loop()

    def stop() -> None:
        gate.pause()
        other.stop()

    thread = TestThread(other.run_forever)
    other.call_soon_threadsafe(stop)
    gate.reached()
    handle = left.spawn(polyloop.async_wrap(loop=other, limit=limiter)(int))
    left.wait_all_blocked()
    gate.open()
    thread.result()
    other.close()
    with pytest.raises(RuntimeError, match="was closed before the call began"):
        handle.result(30)
    assert limiter.borrowed_tokens == 0


def test_a_call_that_is_abandoned_elsewhere_is_no_abandoned_thread(left: TestLoop) -> None:
    """An executor that is not known to have threads of ours runs it, in another process perhaps."""
    gate = Gate()
    handle = left.spawn(polyloop.async_wrap(executor=ThreadEach(), on_cancel="abandon")(gate.pause))
    gate.reached()
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)
    assert polyloop.thread_pool().abandoned == 0
    gate.open()


# Processes


def test_functions_and_methods_run_in_other_processes() -> None:
    """Decorated ones too, although their name leads to the async function; errors come back."""
    import os

    limiter = polyloop.CapacityLimiter(2)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        wrapped.decorate(pool)
        wrap = polyloop.async_wrap(executor=pool, limit=limiter)

        async def main() -> None:
            pid, total = await wrap(wrapped.plain)(1, plus=2)
            assert (pid != os.getpid(), total) == (True, 3)
            decorated: Any = wrapped.decorated
            assert inspect.iscoroutinefunction(decorated)
            pid, total = await decorated(3, plus=4)
            assert (pid != os.getpid(), total) == (True, 7)
            multiplier: Any = wrapped.Multiplier(5)
            assert await multiplier.times(3) == 15
            with pytest.raises(ValueError, match="in the other process"):
                await wrap(wrapped.failing)()
            with pytest.raises(Exception, match=r"pickle|local object"):
                await wrap(lambda: None)()

        asyncio.run(main())
    assert limiter.borrowed_tokens == 0

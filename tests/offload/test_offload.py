"""``offload`` at each of its places: results, errors, contexts, limits and cancellation."""

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from typing import Any

import pytest
from tests.helpers import until
from tests.offload import elsewhere

import polyloop
from polyloop import Runtime, RuntimeClosedError, from_thread
from polyloop._core import _prims
from polyloop._core._pool import ThreadPool
from polyloop.offload import _targets
from polyloop.offload._processes import SharedProcesses
from polyloop.testing import Gate, TestLoop, TestThread

INTERPRETERS = pytest.param(
    "interpreters",
    marks=pytest.mark.skipif(sys.version_info < (3, 14), reason="there are no interpreters before 3.14"),
)
#: Places where functions share the memory of their caller, and those where they do not.
NEAR = ("threads", "cpu", "thread pool", "runtime")
FAR = ("processes", INTERPRETERS)


@pytest.fixture(autouse=True)
def fresh(processes: SharedProcesses, own: _targets._Own, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pools end with the test; what computes goes to threads on each build."""
    monkeypatch.delenv("POLYLOOP_OFFLOAD", raising=False)
    monkeypatch.setattr(_prims, "gil_enabled", lambda: False)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[str | Executor]:
    """A word, or the executor that a name stands for."""
    if request.param == "thread pool":
        with ThreadPoolExecutor(2) as executor:
            yield executor
    elif request.param == "runtime":
        with Runtime(loops=1, name="place") as runtime:
            yield runtime.as_executor()
    else:
        yield request.param


def everywhere(test: Callable[..., None]) -> Any:
    return pytest.mark.parametrize("place", [*NEAR, *FAR], indirect=True)(test)


def nearby(test: Callable[..., None]) -> Any:
    return pytest.mark.parametrize("place", NEAR, indirect=True)(test)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    async def call() -> Any:
        return await main()

    return polyloop.run(call(), loops=1)


# What a call is


@everywhere
def test_arguments_and_results(place: Any) -> None:
    """Positional and by name, as many as there are."""

    async def main() -> None:
        results = [polyloop.offload(elsewhere.add, number, b=1, on=place) for number in range(8)]
        assert await polyloop.gather(*results) == list(range(1, 9))
        assert await polyloop.offload(elsewhere.add, 1, on=place, limiter=polyloop.CapacityLimiter(1)) == 1

    run(main)


def test_the_processes_are_others() -> None:
    """And they stay, for the next call."""

    async def main() -> set[int]:
        return {await polyloop.offload(elsewhere.pid, on="processes") for _ in range(4)}

    found = run(main)
    assert os.getpid() not in found
    assert len(found) <= _prims.usable_cores()


@nearby
def test_exceptions_nearby_have_their_traceback(place: Any) -> None:
    """It leads into the function."""

    async def main() -> None:
        with pytest.raises(LookupError, match="not here") as caught:
            await polyloop.offload(elsewhere.deep, 3, on=place)
        assert [entry.name for entry in caught.traceback][-4:] == ["deep"] * 4

    run(main)


def test_exceptions_from_processes_keep_type_and_traceback() -> None:
    """Arguments too; what happened there is shown as the cause."""

    async def main() -> None:
        with pytest.raises(LookupError) as caught:
            await polyloop.offload(elsewhere.deep, 3, on="processes")
        assert caught.value.args == ("not here", 0)
        there = str(caught.value.__cause__)
        assert there.count("in deep") == 4
        assert 'raise LookupError("not here", number)' in there

    run(main)


def test_a_process_that_dies_is_told_as_it_is() -> None:
    """The next call goes to a new pool."""

    async def main() -> None:
        with pytest.raises(BrokenProcessPool):
            await polyloop.offload(elsewhere.die, on="processes")
        assert await polyloop.offload(elsewhere.add, 1, on="processes") == 1

    run(main)


def test_a_pool_of_threads_that_breaks_is_told_as_it_is() -> None:
    """Its calls do not begin, and nobody waits for them."""

    def fail() -> None:
        raise RuntimeError("no threads today")

    async def main(executor: Executor) -> None:
        limiter = polyloop.CapacityLimiter(1)
        for _ in range(2):
            with pytest.raises(BrokenThreadPool):
                await polyloop.offload(str, on=executor, limiter=limiter)
        assert limiter.borrowed_tokens == 0

    with ThreadPoolExecutor(1, initializer=fail) as executor:
        run(partial(main, executor))


# Async functions


async def where(context: str = "") -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name + context


@pytest.mark.parametrize("place", ["threads", "cpu", "processes", "thread pool"], indirect=True)
def test_async_functions_are_for_loops(place: Any) -> None:
    """Elsewhere the error says what to do with one, and nothing is called."""

    async def main() -> None:
        for fn in (where, partial(where, context="")):
            with pytest.raises(TypeError, match=r"is an async function, which is for a loop: await it, or spawn it"):
                await polyloop.offload(fn, on=place)

    run(main)


@pytest.mark.parametrize("place", ["runtime"], indirect=True)
def test_async_functions_run_on_a_runtime(place: Any) -> None:
    """On its loops, with errors as they are."""

    async def failing() -> None:
        await polyloop.offload(elsewhere.deep, 0)

    async def main() -> None:
        assert await polyloop.offload(where, context="!", on=place) == "place-0!"
        with pytest.raises(LookupError):
            await polyloop.offload(failing, on=place)

    run(main)


# The environment


def test_the_environment_says_where_if_nobody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """``to_thread`` means threads all the same, and so does ``async_wrap`` by itself."""
    monkeypatch.setenv("POLYLOOP_OFFLOAD", "processes")
    wrapped = polyloop.async_wrap(elsewhere.pid)

    async def main() -> None:
        assert await polyloop.offload(elsewhere.pid) != os.getpid()
        assert await polyloop.offload(elsewhere.pid, on="threads") == os.getpid()
        assert await polyloop.to_thread(elsewhere.pid) == os.getpid()
        assert await wrapped() == os.getpid()

    run(main)


# async_wrap


def test_async_wrap_takes_the_words() -> None:
    """At each call anew."""
    by_word = {word: polyloop.async_wrap(executor=word)(elsewhere.pid) for word in ("threads", "cpu", "processes")}

    async def main() -> list[bool]:
        return [await fn() == os.getpid() for fn in by_word.values()]

    assert run(main) == [True, True, False]


def test_async_wrap_refuses_words_and_functions_when_it_decorates() -> None:
    """A word that is not known, and an async function where none can be run."""
    with pytest.raises(ValueError, match="on must be one of"):
        polyloop.async_wrap(executor="nowhere")(elsewhere.pid)
    with pytest.raises(TypeError, match="async already"):
        polyloop.async_wrap(executor="processes")(where)


def test_async_wrap_of_an_async_function_for_a_runtime() -> None:
    """Where such can be run, it may be wrapped."""
    with Runtime(loops=1, name="place") as runtime:
        wrapped = polyloop.async_wrap(executor=runtime.as_executor())(where)
        assert asyncio.run(wrapped("?")) == "place-0?"


# Contexts

variable = contextvars.ContextVar("variable", default="unset")


def swap(value: str) -> str:
    seen = variable.get()
    variable.set(value)
    return seen


async def swap_there(value: str) -> str:
    return swap(value)


@pytest.mark.parametrize("fn", [swap, swap_there])
@nearby
def test_nearby_the_context_is_a_copy_of_the_callers(place: Any, pool: ThreadPool, fn: Any) -> None:
    """What is set in it stays there: the caller does not see it, nor the next call on the same thread."""
    pool.max_threads = 1
    if fn is swap_there and isinstance(place, (str, ThreadPoolExecutor)):
        pytest.skip("runs no async functions")

    async def main() -> None:
        variable.set("caller")
        assert [await polyloop.offload(fn, value, on=place) for value in ("one", "two")] == ["caller"] * 2
        assert variable.get() == "caller"
        empty = asyncio.get_running_loop().create_task(
            polyloop.offload(fn, "three", on=place), context=contextvars.Context()
        )
        assert await empty == "unset"

    run(main)


@pytest.mark.parametrize("place", ["threads", "cpu", "thread pool"], indirect=True)
def test_from_a_thread_the_context_comes_along(place: Any) -> None:
    """A coroutine that ``from_thread.run`` runs sees the function's variables, and leaves them alone."""

    def fn() -> list[str]:
        variable.set("function")
        return [from_thread.run(swap_there, "one"), from_thread.run(swap_there, "two"), variable.get()]

    async def main() -> None:
        variable.set("caller")
        assert await polyloop.offload(fn, on=place) == ["function"] * 3
        assert variable.get() == "caller"

    run(main)


@pytest.mark.parametrize("place", [*FAR], indirect=True)
def test_elsewhere_there_is_no_context(place: Any) -> None:
    """The callers' variables stay at home."""

    async def main() -> str:
        elsewhere.variable.set("caller")
        return await polyloop.offload(elsewhere.swap, "one", on=place)

    assert run(main) == "unset"


# Limits


def test_what_computes_takes_turns_on_the_cores(own: _targets._Own) -> None:
    """No more calls at once than there are cores; a limiter of the caller's counts as well."""
    own._limiter = polyloop.CapacityLimiter(1)
    limiter = polyloop.CapacityLimiter(5)
    gate = Gate()

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            for _ in range(3):
                tg.create_task(polyloop.offload(gate.pause, on="cpu", limiter=limiter))
            await polyloop.to_thread(until, lambda: limiter.borrowed_tokens == 3)
            await polyloop.to_thread(gate.reached)
            assert gate._arrived == 1
            assert own.limiter.borrowed_tokens == 1
            gate.open()
        assert (own.limiter.borrowed_tokens, limiter.borrowed_tokens) == (0, 0)

    run(main)


def test_what_computes_does_not_wait_for_itself(own: _targets._Own) -> None:
    """A call that is made for one which has a token needs none; one that outlives that does."""
    own._limiter = polyloop.CapacityLimiter(1)
    later: list[asyncio.Task[Any]] = []
    gate, go = Gate(), asyncio.Event()

    async def inner(depth: int) -> int:
        if not later:
            later.append(asyncio.ensure_future(outlives()))
        return await polyloop.offload(nested, depth - 1, on="cpu")

    async def outlives() -> None:
        await go.wait()
        await polyloop.offload(str, on="cpu")

    def nested(depth: int) -> int:
        return 1 + from_thread.run(inner, depth) if depth else 0

    async def main() -> None:
        assert await polyloop.offload(nested, 4, on="cpu") == 4
        async with polyloop.TaskGroup() as tg:
            tg.create_task(polyloop.offload(gate.pause, on="cpu"))
            await polyloop.to_thread(gate.reached)
            go.set()
            await polyloop.to_thread(until, lambda: own.limiter._waiting)
            gate.open()
        await later[0]

    run(main)


# Cancellation


@pytest.fixture
def loop() -> Iterator[TestLoop]:
    with TestLoop("caller") as loop:
        yield loop


@pytest.mark.parametrize("borrowed", ["cores", "theirs"])
def test_a_call_that_waits_for_a_token_is_never_made(own: _targets._Own, loop: TestLoop, borrowed: str) -> None:
    """And leaves none behind, of either limiter."""
    own._limiter = cores = polyloop.CapacityLimiter(1)
    theirs = polyloop.CapacityLimiter(1)
    ran: list[int] = []
    busy = cores if borrowed == "cores" else theirs
    busy.acquire_on_behalf_of_nowait("test")
    handle = loop.spawn(partial(polyloop.offload, ran.append, 1, on="cpu", limiter=theirs))
    until(lambda: busy._waiting)
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)
    busy.release_on_behalf_of("test")
    assert (cores.borrowed_tokens, theirs.borrowed_tokens, ran) == (0, 0, [])


@nearby
def test_nearby_a_function_is_told_that_its_call_was_cancelled(place: Any, loop: TestLoop) -> None:
    """And waited for, by default."""
    told: list[BaseException] = []
    begun = threading.Event()

    def fn() -> None:
        begun.set()
        try:
            polyloop.sleep_sync(30)
        except asyncio.CancelledError as exc:
            told.append(exc)
            raise

    handle = loop.spawn(partial(polyloop.offload, fn, on=place))
    assert begun.wait(30)
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)
    assert len(told) == 1


@pytest.mark.parametrize("place", ["runtime"], indirect=True)
@pytest.mark.parametrize("on_cancel", ["wait", "abandon"])
def test_the_task_of_an_async_function_is_cancelled(place: Any, loop: TestLoop, on_cancel: Any) -> None:
    """And waited for, or not."""
    gate, begun, ended = Gate(), threading.Event(), threading.Event()

    async def fn() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            gate.pause()
            ended.set()

    handle = loop.spawn(partial(polyloop.offload, fn, on=place, on_cancel=on_cancel))
    assert begun.wait(30)
    handle.cancel()
    gate.reached()
    if on_cancel == "wait":
        assert not handle.done()
        gate.open()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)
    gate.open()
    assert ended.wait(30)


def test_a_call_in_a_process_is_waited_for_or_abandoned(loop: TestLoop, processes: SharedProcesses) -> None:
    """It cannot be told. One that waits for a process is never made, also if it came before there were any."""
    count = 10 * processes.max_workers
    calls = [loop.spawn(partial(polyloop.offload, elsewhere.sleep, 0.2, on="processes")) for _ in range(count)]
    until(lambda: processes._pool is not None)
    calls[0].cancel()
    calls[-1].cancel()
    for call in (calls[0], calls[-1]):
        with pytest.raises(asyncio.CancelledError):
            call.result(30)
    assert not calls[-2].done()
    processes.end(0)
    for call in calls:
        with contextlib.suppress(asyncio.CancelledError, BrokenProcessPool):
            assert call.result(30) != os.getpid()  # it was just done
    stuck = loop.spawn(partial(polyloop.offload, elsewhere.sleep, 1000, on="processes", on_cancel="abandon"))
    until(lambda: processes._pool is not None)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        stuck.result(30)
    processes.end(0)


@pytest.mark.parametrize("place", [*FAR], indirect=True)
def test_only_threads_can_be_interrupted(place: Any) -> None:
    """The policy is refused for what runs elsewhere."""

    async def main() -> None:
        with pytest.raises(ValueError, match="is for threads of this process"):
            await polyloop.offload(elsewhere.pid, on=place, on_cancel="interrupt")

    run(main)


@nearby
def test_threads_can_be_interrupted(place: Any, loop: TestLoop) -> None:
    """Of a runtime's executor as well."""
    begun = threading.Event()

    def fn() -> None:
        begun.set()
        while True:
            pass

    handle = loop.spawn(partial(polyloop.offload, fn, on=place, on_cancel="interrupt"))
    assert begun.wait(30)
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result(30)


def test_a_runtime_that_closes_ends_what_has_not_begun(loop: TestLoop) -> None:
    """Its caller, on another loop, hears why."""
    gate = Gate()
    runtime = Runtime(loops=1).start()
    executor = runtime.as_executor(1)
    executor.submit(gate.pause)
    gate.reached()
    limiter = polyloop.CapacityLimiter(1)
    handle = loop.spawn(partial(polyloop.offload, str, on=executor, limiter=limiter))
    until(lambda: len(executor._pending) == 2)

    def let_go() -> None:
        with pytest.raises(RuntimeClosedError):
            handle.result(30)
        gate.open()

    waiting = TestThread(let_go)
    runtime.close()
    waiting.result()
    assert limiter.borrowed_tokens == 0

"""Which runtime, which context: what a task, a thread and a loop of somebody else see."""

import asyncio
import contextvars
import sys
import threading
from typing import Any

import pytest
from tests.runtime.helpers import PATIENCE, forever, held, in_thread, where, worker_threads

import polyloop
from polyloop import NoRuntimeError, Runtime
from polyloop.runtime import RoundRobin

variable = contextvars.ContextVar("variable", default="unset")


async def current() -> Runtime:
    """The runtime that a task sees."""
    return polyloop.current_runtime()


# current_runtime()


def test_task_sees_its_own_runtime() -> None:
    """On every worker, also beside a second runtime; and in calls that it offloads."""

    async def offloaded() -> Runtime:
        return await polyloop.to_thread(polyloop.current_runtime)

    with Runtime(loops=2, name="first") as first, Runtime(loops=2, name="second") as second:
        for runtime in (first, second):
            for worker in runtime.workers:
                assert runtime.spawn(current, on=worker).result(PATIENCE) is runtime
                assert runtime.spawn(offloaded, on=worker).result(PATIENCE) is runtime


def test_plain_thread_sees_the_only_runtime() -> None:
    """And none when it is closed."""
    with Runtime(loops=1) as runtime:
        assert polyloop.current_runtime() is runtime
        assert in_thread(polyloop.current_runtime) is runtime
        assert polyloop.spawn(where).result(PATIENCE) == "polyloop-0"
    with pytest.raises(NoRuntimeError):
        polyloop.current_runtime()


def test_runtime_of_run_is_gone_after_it() -> None:
    """The calling thread was worker 0; afterwards it is a plain thread again."""
    first = polyloop.run(current(), loops=2)
    with pytest.raises(NoRuntimeError):
        polyloop.current_runtime()
    with Runtime(loops=1) as second:
        assert polyloop.current_runtime() is second
    assert first is not second


def test_foreign_loop_sees_the_only_runtime() -> None:
    """``async with Runtime()`` inside ``asyncio.run``."""

    async def main() -> bool:
        async with Runtime(loops=2) as runtime:
            return polyloop.current_runtime() is runtime

    assert asyncio.run(main())


# Inside loops of somebody else


def test_async_with_inside_asyncio_run() -> None:
    """Handles are awaited, cancelled and timed out from a loop that polyloop does not run."""

    async def main() -> None:
        async with Runtime(loops=2) as runtime:
            assert {await runtime.spawn(where, on=worker) for worker in runtime.workers} == {
                "polyloop-0",
                "polyloop-1",
            }
            results = await asyncio.gather(*(runtime.spawn(where) for _ in range(20)))
            assert set(results) <= {"polyloop-0", "polyloop-1"}
            handle = runtime.spawn(forever)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await handle
            assert handle.cancelled()
            async with polyloop.TaskGroup() as group:
                children = [group.create_task(where()) for _ in range(6)]
            assert {child.result() for child in children} <= {"polyloop-0", "polyloop-1"}
        assert worker_threads() == []

    asyncio.run(main())


def test_here_from_a_foreign_loop_is_that_loop() -> None:
    """``on="here"`` means the caller's loop, whoever runs it."""

    async def main() -> str:
        async with Runtime(loops=2) as runtime:
            return await runtime.spawn(where, on="here")

    assert asyncio.run(main()) == "MainThread"


def test_several_foreign_loops_share_one_runtime() -> None:
    """As a notebook, a web server's loop and a plain thread would."""
    with Runtime(loops=2) as runtime:

        async def use() -> set[str]:
            return {await runtime.spawn(where) for _ in range(20)}

        names = in_thread(lambda: asyncio.run(use())) | asyncio.run(use()) | {runtime.run(where())}
        assert names <= {"polyloop-0", "polyloop-1"}


def test_one_handle_awaited_by_three_loops_and_two_threads() -> None:
    """All of them get its result."""
    with Runtime(loops=2) as runtime, held(runtime, *runtime.workers) as steps:
        step = steps[0]
        results: list[str] = []

        async def wait() -> None:
            results.append(await step)

        async def all_waiting() -> None:
            await asyncio.gather(wait(), wait())

        threads = [
            threading.Thread(target=lambda: asyncio.run(all_waiting())),
            threading.Thread(target=lambda: asyncio.run(wait())),
            threading.Thread(target=lambda: results.append(step.result(PATIENCE))),
            threading.Thread(target=lambda: results.append(step.result(PATIENCE))),
        ]
        for thread in threads:
            thread.start()
        while len(step._waiters) < 5:
            threading.Event().wait(0.001)
        runtime.workers[0].post(lambda: None)
    for thread in threads:
        thread.join(PATIENCE)
    assert results == ["polyloop-0"] * 5


# Context


def test_submitters_context_is_copied() -> None:
    """What the submitter had set at the spawn is what the task sees; what the task sets stays with it."""

    async def read_and_set() -> str:
        seen = variable.get()
        variable.set("the task's")
        return seen

    with Runtime(loops=2) as runtime:
        for worker in runtime.workers:
            token = variable.set("submitter's")
            handle = runtime.spawn(read_and_set, on=worker)
            variable.reset(token)
            assert handle.result(PATIENCE) == "submitter's"
            assert variable.get() == "unset"


def test_worker_threads_start_with_an_empty_context() -> None:
    """Whoever started the runtime does not leave its variables in there, not even where threads inherit them."""
    token = variable.set("starter's")
    seen: list[str] = []
    try:
        runtime = Runtime(loops=2).start()
    finally:
        variable.reset(token)
    done = threading.Event()

    def look() -> None:
        seen.append(variable.get())
        done.set()

    runtime.workers[1].post(look)
    assert done.wait(PATIENCE)
    runtime.close()
    assert seen == ["unset"]


def test_context_given_to_spawn_is_entered() -> None:
    """The task runs in it, not in a copy."""

    async def set_it() -> None:
        variable.set("set by the task")

    with Runtime(loops=2) as runtime:
        context = contextvars.copy_context()
        runtime.spawn(set_it, context=context).result(PATIENCE)
        assert context[variable] == "set by the task"


def test_context_that_another_thread_is_in_fails_that_task_alone() -> None:
    """A context can be entered once at a time: the handle says so, its loop goes on."""
    context = contextvars.copy_context()
    with Runtime(loops=2) as runtime:

        def inside() -> BaseException | None:
            return runtime.spawn(where, on=runtime.workers[1], context=context).exception(PATIENCE)

        exc = context.run(inside)
        assert isinstance(exc, RuntimeError)
        assert "cannot enter context" in str(exc)
        assert runtime.spawn(where, on=runtime.workers[1]).result(PATIENCE) == "polyloop-1"


# Modes


def test_debug_mode_reaches_every_loop() -> None:
    """``debug=True`` is asyncio's, on all of them."""

    async def debugs() -> list[bool]:
        async def here_() -> bool:
            return asyncio.get_running_loop().get_debug()

        return [await polyloop.spawn(here_, on=worker) for worker in polyloop.current_runtime().workers]

    assert polyloop.run(debugs(), loops=3, debug=True) == [True] * 3
    assert polyloop.run(debugs(), loops=3, debug=False) == [False] * 3
    with Runtime(loops=2, debug=True) as runtime:
        assert runtime.run(debugs()) == [True] * 2

        async def crowd() -> int:
            async with polyloop.TaskGroup() as group:
                handles = [group.create_task(asyncio.sleep(0, 1)) for _ in range(50)]
            return sum(handle.result() for handle in handles)

        assert runtime.run(crowd()) == 50


@pytest.mark.parametrize("loops", [1, 2])
def test_task_factory_of_the_user_is_respected(loops: int) -> None:
    """Tasks are made by the loop's factory, an eager one included."""
    made: list[str] = []

    async def main() -> str:
        loop = asyncio.get_running_loop()

        def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> "asyncio.Task[Any]":
            made.append("task")
            return asyncio.Task(coro, loop=loop, **kwargs)

        loop.set_task_factory(factory)
        first = await polyloop.spawn(where, on="here")
        loop.set_task_factory(asyncio.eager_task_factory)
        assert await polyloop.spawn(where, on="here") == first
        loop.set_task_factory(None)
        return await polyloop.spawn(where, on="here")

    assert polyloop.run(main(), loops=loops) == "MainThread"
    assert made == ["task"]


def test_one_loop_behaves_like_the_rest() -> None:
    """``loops=1``: spawn, groups, keys, by worker, from other threads."""

    async def main() -> list[str]:
        runtime = polyloop.current_runtime()
        names = [await runtime.spawn(where, key=1), await runtime.spawn(where, on=runtime.workers[0])]
        names.append(await runtime.spawn(where, on=RoundRobin()))
        names.append(await polyloop.to_thread(lambda: runtime.spawn(where).result(PATIENCE)))
        async with polyloop.TaskGroup() as group:
            names.append(await group.create_task(where()))
        return names

    assert polyloop.run(main(), loops=1) == ["MainThread"] * 5
    with Runtime(loops=1) as runtime:
        assert runtime.run(main()) == ["polyloop-0"] * 5


@pytest.mark.compat
def test_default_number_of_loops_follows_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """One per usable core without the GIL, one with it."""
    from polyloop._core import _prims

    monkeypatch.setattr(_prims, "usable_cores", lambda: 3)
    monkeypatch.setattr(_prims, "gil_enabled", lambda: False)
    assert len(Runtime().workers) == 3
    monkeypatch.setattr(_prims, "gil_enabled", lambda: True)
    assert len(Runtime().workers) == 1
    assert len(Runtime(loops=2).workers) == 2


def test_run_returns_what_main_returns_and_raises_what_it_raises() -> None:
    """The object itself, in both cases."""
    value, error = object(), LookupError("mine")

    async def returns() -> object:
        return value

    async def raises() -> None:
        raise error

    for loops in (1, 2):
        assert polyloop.run(returns(), loops=loops) is value
        with pytest.raises(LookupError) as caught:
            polyloop.run(raises(), loops=loops)
        assert caught.value is error
    assert sys.exception() is None


def test_run_off_the_main_thread() -> None:
    """A thread of its own may run a runtime, several at once."""
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(polyloop.run(where(), loops=2)), name=f"runner-{index}")
        for index in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(results) == ["runner-0", "runner-1", "runner-2"]

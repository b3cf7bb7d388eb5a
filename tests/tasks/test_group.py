"""``TaskGroup`` over several loops and threads: what asyncio's own cannot be asked."""

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.tasks.worlds import Elsewhere, Event

import polyloop
from polyloop.testing import TestThread


@pytest.fixture
def runtime() -> Iterator[polyloop.Runtime]:
    """Three loops; tasks go elsewhere unless told otherwise."""
    with polyloop.Runtime(loops=3, placement=Elsewhere(), steal=False, name="test") as runtime:
        yield runtime


async def thread_of_mine() -> int:
    return threading.get_ident()


async def sleep_for_ever(started: Event | None = None) -> None:
    if started is not None:
        started.set()
    await asyncio.sleep(3600)


# Children from everywhere


def test_children_on_any_loop_add_children_and_the_group_waits_for_all(runtime: polyloop.Runtime) -> None:
    """A tree of children, each level on another loop than the one before."""
    seen: list[tuple[int, int]] = []

    async def grow(tg: polyloop.TaskGroup, depth: int) -> None:
        seen.append((depth, threading.get_ident()))
        if depth:
            for _ in range(2):
                tg.create_task(grow(tg, depth - 1))

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            tg.create_task(grow(tg, 5))

    runtime.run(main())
    assert [sum(depth == level for depth, _ in seen) for level in range(6)] == [32, 16, 8, 4, 2, 1]
    assert len({ident for _, ident in seen}) == 3


def test_plain_threads_add_children_while_the_group_is_open(runtime: polyloop.Runtime) -> None:
    """``create_task`` and ``start_soon`` from threads without a loop; the group waits for what they added."""
    ran: list[str] = []

    async def child(name: str) -> str:
        ran.append(name)
        return name

    async def main() -> list[str]:
        async with polyloop.TaskGroup() as tg:

            def add(number: int) -> polyloop.TaskHandle[str]:
                tg.start_soon(child, f"soon {number}", name="quiet")
                return tg.create_task(child(f"task {number}"))

            threads = [TestThread(add, number) for number in range(3)]
            handles = [await polyloop.to_thread(thread.result) for thread in threads]
        return [handle.result() for handle in handles]

    assert runtime.run(main()) == ["task 0", "task 1", "task 2"]
    assert sorted(ran) == [f"{kind} {n}" for kind in ("soon", "task") for n in range(3)]


def test_a_thread_adds_to_a_group_of_a_plain_asyncio_loop() -> None:
    """Without a runtime, a child that a thread adds runs on the group's own loop, in a copy of the thread's context."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def child() -> tuple[int, str]:
        return threading.get_ident(), variable.get()

    async def main() -> tuple[int, str]:
        async with polyloop.TaskGroup() as tg:

            def add() -> polyloop.TaskHandle[tuple[int, str]]:
                variable.set("of the thread")
                return tg.create_task(child(), name="added")

            handle = await asyncio.to_thread(add)
            assert handle.get_name() == "added"
        return handle.result()

    assert asyncio.run(main()) == (threading.get_ident(), "of the thread")


def test_placement_is_the_callers_choice(runtime: polyloop.Runtime) -> None:
    """``on`` and ``key`` of ``create_task`` and ``start_soon`` mean what they mean for ``spawn``."""

    async def main() -> None:
        mine = threading.get_ident()
        target = runtime.workers[2]
        async with polyloop.TaskGroup() as tg:
            here = tg.create_task(thread_of_mine(), on="here")
            there = tg.create_task(thread_of_mine(), on=target)
            keyed = [tg.create_task(thread_of_mine(), key="k") for _ in range(4)]
            away = tg.create_task(thread_of_mine())
            refused = thread_of_mine()
            with pytest.raises(ValueError, match="give one"):
                tg.create_task(refused, on="here", key="k")
            tg.start_soon(thread_of_mine, on=target)
        assert here.result() == mine
        assert there.result() == target.ident
        assert there.worker is target
        assert len({handle.result() for handle in keyed}) == 1
        assert away.result() != mine

    runtime.run(main())


def test_children_that_are_given_a_context_stay_on_the_callers_loop(runtime: polyloop.Runtime) -> None:
    """One thread at a time can be in a context; two loops in the same one would keep each other out for ever."""
    variable = contextvars.ContextVar[int]("variable")
    context = contextvars.copy_context()

    async def child(value: int) -> int:
        variable.set(value)
        for _ in range(50):
            await asyncio.sleep(0)
        return threading.get_ident()

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            handles = [tg.create_task(child(value), context=context) for value in range(4)]
        assert {handle.result() for handle in handles} == {threading.get_ident()}

    runtime.run(main())
    assert context[variable] == 3
    from_thread = [runtime.spawn(child, value, context=context) for value in range(4)]
    assert len({handle.result(timeout=30) for handle in from_thread}) == 1


def test_what_is_no_coroutine_is_refused_at_the_call(runtime: polyloop.Runtime) -> None:
    """As by asyncio, and not on another loop, where nobody would hear of it."""

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            for wrong in (None, thread_of_mine):
                with pytest.raises(TypeError, match="a coroutine was expected"):
                    tg.create_task(wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="a coroutine was expected"):
                tg.start_soon(lambda: 3)  # type: ignore[arg-type, return-value]

    runtime.run(main())


def test_start_soon_does_not_call_for_a_group_that_is_not_open() -> None:
    """A refused ``start_soon`` makes no coroutine that nobody awaits."""
    called: list[str] = []

    async def child() -> None:
        called.append("called")

    async def main() -> None:
        tg = polyloop.TaskGroup()
        with pytest.raises(RuntimeError, match="has not been entered"):
            tg.start_soon(child)
        async with tg:
            tg.start_soon(child)
        with pytest.raises(RuntimeError, match="is finished"):
            tg.start_soon(child)

    polyloop.run(main(), loops=2)
    assert called == ["called"]


@pytest.mark.parametrize("loops", [0, 1, 2])
def test_a_choice_that_makes_no_sense_is_refused_with_and_without_a_runtime(loops: int) -> None:
    """Else a program would find out on the day it gets one; the coroutine is closed."""
    with polyloop.Runtime(loops=1, name="other") as other:
        stranger = other.workers[0]

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            choices: list[dict[str, Any]] = [{"on": "nonsense"}, {"on": "here", "key": 1}, {"on": stranger}]
            for wrong in choices:
                with pytest.raises(ValueError, match=r"nonsense|give one|worker|runtime"):
                    tg.create_task(thread_of_mine(), **wrong)
            with pytest.raises(TypeError, match="leave out eager_start"):
                tg.create_task(thread_of_mine(), eager_start=True)
            tg.create_task(thread_of_mine(), eager_start=False)

    if loops:
        polyloop.run(main(), loops=loops)
    else:
        asyncio.run(main())


def test_start_soon_takes_a_context(runtime: polyloop.Runtime) -> None:
    """As ``create_task`` does."""
    variable = contextvars.ContextVar[int]("variable")
    context = contextvars.copy_context()

    async def child() -> None:
        variable.set(1)

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            tg.start_soon(child, context=context)

    runtime.run(main())
    assert context[variable] == 1


# cancel()


def cancel_from_thread(tg: polyloop.TaskGroup) -> None:
    TestThread(tg.cancel).result()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("who", ["block", "child elsewhere", "thread"])
def test_cancel_ends_the_block_and_the_children_without_an_error(
    runtime: polyloop.Runtime, who: str, times: int
) -> None:
    """The ``TaskGroup.cancel`` of Python 3.15, from any loop and thread; twice is once."""

    async def main() -> tuple[bool, int]:
        started = Event()

        async def canceller(tg: polyloop.TaskGroup) -> None:
            await started.wait()
            for _ in range(times):
                tg.cancel()

        async with polyloop.TaskGroup() as tg:
            child = tg.create_task(sleep_for_ever(started))
            await started.wait()
            if who == "block":
                for _ in range(times):
                    tg.cancel()
            elif who == "thread":
                for _ in range(times):
                    await asyncio.to_thread(tg.cancel)
            else:
                tg.create_task(canceller(tg))
            await asyncio.sleep(3600)
        task = asyncio.current_task()
        assert task is not None
        return child.cancelled(), task.cancelling()

    assert runtime.run(main()) == (True, 0)


def test_cancel_before_entry_and_after_the_end(runtime: polyloop.Runtime) -> None:
    """Before: the block ends at its first wait. After: nothing happens, on no thread."""

    async def main() -> list[str]:
        reached: list[str] = []
        tg = polyloop.TaskGroup()
        await asyncio.to_thread(tg.cancel)
        async with tg:
            reached.append("entered")
            await asyncio.sleep(0)
            reached.append("went on")
        tg.cancel()
        await asyncio.to_thread(tg.cancel)
        await asyncio.sleep(0)
        reached.append("left")
        return reached

    assert runtime.run(main()) == ["entered", "left"]


def test_cancel_and_a_failure_raise_the_failure(runtime: polyloop.Runtime) -> None:
    """A child that fails while the group is being cancelled is not forgotten."""

    async def stubborn(started: Event) -> None:
        try:
            await sleep_for_ever(started)
        finally:
            raise ValueError("during the cancellation")

    async def main() -> None:
        started = Event()
        async with polyloop.TaskGroup() as tg:
            tg.create_task(stubborn(started))
            await started.wait()
            tg.cancel()

    with pytest.raises(ExceptionGroup) as caught:
        runtime.run(main())
    assert [str(exc) for exc in caught.value.exceptions] == ["during the cancellation"]


def test_a_cancellation_from_outside_survives_the_groups_own(runtime: polyloop.Runtime) -> None:
    """While the group waits for its cancelled children, its parent is cancelled too: that one goes on outside."""

    async def child(started: Event, cancelling: Event, release: Event) -> None:
        try:
            await sleep_for_ever(started)
        finally:
            cancelling.set()
            await release.wait()

    async def main() -> tuple[Any, ...]:
        started, cancelling, release = Event(), Event(), Event()

        async def body() -> None:
            async with polyloop.TaskGroup() as tg:
                tg.create_task(child(started, cancelling, release))
                await started.wait()
                tg.cancel()

        task = asyncio.create_task(body())
        await cancelling.wait()
        task.cancel("from outside")
        release.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return caught.value.args

    assert runtime.run(main()) == ("from outside",)


def test_a_child_counts_one_cancellation_from_an_aborted_group(runtime: polyloop.Runtime) -> None:
    """However many reasons there are to abort, a child is asked to stop once."""
    counts: list[int] = []

    async def counting(started: Event) -> None:
        try:
            await sleep_for_ever(started)
        finally:
            task = asyncio.current_task()
            assert task is not None
            counts.append(task.cancelling())

    async def main() -> None:
        starts = [Event() for _ in range(3)]
        async with polyloop.TaskGroup() as tg:
            for started in starts:
                tg.create_task(counting(started))
            for started in starts:
                await started.wait()
            tg.cancel()
            raise KeyError("and the block raises")

    with pytest.raises(ExceptionGroup):
        runtime.run(main())
    assert counts == [1, 1, 1]


# What ends a program


@pytest.mark.parametrize(
    ("kind", "loops"), [(SystemExit, 1), (SystemExit, 2), (KeyboardInterrupt, 1), (KeyboardInterrupt, 2)]
)
def test_an_exit_in_a_child_leaves_run_and_cancels_the_rest(kind: type[BaseException], loops: int) -> None:
    """As under ``asyncio.run``, whichever loop the child is on."""
    cancelled: list[str] = []

    async def sibling(started: Event) -> None:
        try:
            await sleep_for_ever(started)
        except asyncio.CancelledError:
            cancelled.append("sibling")
            raise

    async def leaver() -> None:
        raise kind("the end")

    async def main() -> None:
        started = Event()
        async with polyloop.TaskGroup() as tg:
            tg.create_task(sibling(started))
            await started.wait()
            tg.create_task(leaver())
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.append("block")
                raise

    with pytest.raises(kind, match="the end"):
        polyloop.run(main(), loops=loops, placement=Elsewhere() if loops > 1 else "here")
    assert sorted(cancelled) == ["block", "sibling"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_child_of_a_runtime_reaches_whoever_waits(
    runtime: polyloop.Runtime, kind: type[BaseException]
) -> None:
    """A runtime in threads goes on; the group raises the exit bare, and tells of the error that gives way to it."""

    async def leaver() -> None:
        await asyncio.sleep(0)
        raise kind("the end")

    async def also_failing(started: Event) -> None:
        try:
            await sleep_for_ever(started)
        finally:
            raise ValueError("gave way")

    told: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        started = Event()
        with pytest.raises(kind, match="the end"):
            async with polyloop.TaskGroup() as tg:
                tg.create_task(also_failing(started))
                await started.wait()
                tg.create_task(leaver())

    runtime.spawn(main).result(timeout=30)
    assert [str(context["exception"]) for context in told] == ["gave way"]
    assert runtime.run(thread_of_mine()) in {worker.ident for worker in runtime.workers}


# Runtimes that end


def test_a_group_in_the_cleanup_of_a_cancelled_task_still_works() -> None:
    """While its runtime is closing, a task may use groups and gather to clean up: they stay on its own loop."""
    cleaned: list[Any] = []
    started = threading.Event()

    async def part(name: str) -> str:
        await asyncio.sleep(0)
        return name

    async def worker() -> None:
        try:
            started.set()
            await asyncio.sleep(3600)
        finally:
            async with polyloop.TaskGroup() as tg:
                in_group = tg.create_task(part("group"))
            cleaned.append(in_group.result())
            cleaned.append(await polyloop.gather(part("gather")))
            cleaned.append(await polyloop.to_thread(str, "thread"))

    runtime = polyloop.Runtime(loops=2).start()
    handle = runtime.spawn(worker)
    assert started.wait(30)
    assert runtime.close().clean
    assert handle.cancelled()
    assert cleaned == ["group", ["gather"], "thread"]


def test_a_group_whose_runtime_has_closed_refuses_and_can_be_left() -> None:
    """The group of a guest loop outlives the runtime: children are refused with its error, what ran has ended."""

    async def main() -> list[Any]:
        runtime = polyloop.Runtime(loops=2)
        await runtime.__aenter__()
        started = Event()
        async with polyloop.TaskGroup() as tg:
            child = tg.create_task(sleep_for_ever(started))
            await started.wait()
            await runtime.aclose()
            refused = sleep_for_ever()
            with pytest.raises(polyloop.RuntimeClosedError):
                tg.create_task(refused)
        return [child.cancelled(), repr(tg)]

    assert asyncio.run(main()) == [True, "<TaskGroup entered>"]


def test_a_run_that_has_ended_does_not_hide_an_open_runtime() -> None:
    """``polyloop.run`` makes the calling thread a worker, for as long as it runs and no longer."""
    polyloop.run(thread_of_mine(), loops=2)
    with pytest.raises(polyloop.NoRuntimeError):
        polyloop.current_runtime()
    with polyloop.Runtime(loops=1) as runtime:
        assert polyloop.current_runtime() is runtime
        assert polyloop.spawn(thread_of_mine).result(timeout=30) == runtime.workers[0].ident

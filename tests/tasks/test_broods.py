"""Children that migrate, of groups and of ``gather``: what is left of them, and of those whose parent is closed."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.helpers import until
from tests.runtime.helpers import PATIENCE, Gate

import polyloop
from polyloop import Event, Runtime, RuntimeClosedError, TaskHandle, WorkerDiedError
from polyloop._core._driver import ENDED, new_driver
from polyloop._core._migrant import MigratableTask, swap_task_by_turns
from polyloop.tasks._gathering import Gathering


class Thing:
    """What a task returns: may be watched."""


async def nothing() -> None:
    pass


# Drivers


def test_a_driver_steps_one_after_the_other() -> None:
    """It says how each has ended; one that waits keeps it, and goes on by itself."""

    class Waits:
        def __await__(self) -> Any:
            yield "waits"

    async def value() -> Any:
        return [1]

    async def waits() -> int:
        await Waits()
        return 2

    async def fails() -> None:
        raise LookupError("of the test")

    drive = new_driver()
    assert drive(nothing()) is ENDED
    ended = drive(value())
    assert ended is not ENDED
    assert ended.take() == [1]
    assert ended.value is None
    coro = waits()
    assert drive(coro) == "waits"
    with pytest.raises(StopIteration) as stop:
        coro.send(None)
    assert stop.value.value == 2
    with pytest.raises(LookupError, match="of the test"):
        new_driver()(fails())


def test_a_driver_keeps_nothing_of_the_tasks_that_it_has_stepped() -> None:
    """Neither the worker's own, nor one that a task which waits has kept."""
    seen: list[weakref.ref[Thing]] = []

    async def make() -> Thing:
        thing = Thing()
        seen.append(weakref.ref(thing))
        return thing

    async def batch(event: Event) -> None:
        async with polyloop.TaskGroup(migratable=True) as group:
            for _ in range(10):
                group.create_task(make())
        async with polyloop.TaskGroup(migratable=True) as group:
            for _ in range(10):
                group.create_task(make())
            group.create_task(event.wait())

    async def main() -> None:
        event = Event()
        waiting = polyloop.spawn(batch, event)
        while len(seen) < 20:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
        assert [ref() for ref in seen if ref() is not None] == []
        event.set()
        await waiting

    polyloop.run(main(), loops=1)


@pytest.mark.parametrize("before", [0, 8], ids=["stepped", "driven"])
def test_a_child_that_is_cancelled_in_its_last_step_ends_cancelled(before: int) -> None:
    """As with asyncio, whatever it returns; and the group goes on."""

    async def child() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("late")
        return 1

    async def main() -> None:
        async with polyloop.TaskGroup(migratable=True) as group:
            for _ in range(before):
                group.create_task(nothing())
            handle = group.create_task(child())
        assert handle.cancelled()

    polyloop.run(main(), loops=1)


def test_tasks_are_made_current_by_turns_where_asyncio_has_no_swap() -> None:
    """The same as in one call: a task instead of another, or of none, and none again."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        me = asyncio.current_task()
        other: Any = object()
        swap_task_by_turns(loop, None)
        assert asyncio.current_task() is None
        swap_task_by_turns(loop, other)
        assert asyncio.current_task() is other
        swap_task_by_turns(loop, me)
        assert asyncio.current_task() is me

    asyncio.run(main())


# gather


def test_gather_of_coroutines_is_one_future_and_leaves_nothing() -> None:
    """For coroutines that are given once each; what else there is goes the long way, with the same result."""

    async def child(number: int) -> int:
        if number % 2:
            await polyloop.checkpoint()
        return number

    async def main() -> None:
        crew = polyloop.current_runtime()._crew
        gathering = polyloop.gather(*(child(number) for number in range(50)))
        assert isinstance(gathering, Gathering)
        assert crew.broods == {gathering}
        assert await gathering == list(range(50))
        assert not crew.broods
        assert not gathering._children
        same = child(7)
        loop = asyncio.get_running_loop()
        for mixed in ([same, same], [child(1), polyloop.spawn(child, 2)], [child(1), loop.create_task(child(2))], []):
            gathering = polyloop.gather(*mixed)
            assert not isinstance(gathering, Gathering)
            await gathering
        assert not crew.broods

    polyloop.run(main(), loops=2, migratable=True)


def test_the_cancellation_of_a_gathered_child_keeps_its_history() -> None:
    """As with asyncio: the exception is the one that the child has ended with."""

    async def child() -> None:
        try:
            raise ValueError("inside")
        except ValueError:
            raise asyncio.CancelledError("why") from None

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError, match="why") as caught:
            await polyloop.gather(nothing(), child())
        assert repr(caught.value.__context__) == "ValueError('inside')"

    asyncio.run(as_plain(main))
    polyloop.run(main(), loops=1, migratable=True)


async def as_plain(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The same with asyncio's ``gather``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polyloop, "gather", asyncio.gather)
        await main()


def test_gathered_children_are_cancelled_by_a_close() -> None:
    """The awaiter hears of that, as of any cancellation, and the crew has nobody left."""
    gate = Gate()

    async def child() -> None:
        await Event().wait()

    async def main() -> None:
        gathering = polyloop.gather(child(), child())
        gate.entered.set()
        await gathering

    with Runtime(loops=2, migratable=True) as runtime:
        handle = runtime.spawn(main)
        gate.wait_entered()
        assert runtime.close().clean
        assert handle.cancelled()
        assert not runtime._crew.broods
        assert not runtime._crew._left


# Parents that are closed


def parked(handle: TaskHandle[Any]) -> bool:
    assert isinstance(handle, MigratableTask)
    return handle._token() is not None


def test_children_of_a_parent_whose_worker_has_died_are_cancelled_at_the_end() -> None:
    """They live on, elsewhere, and a close finds them: their cleanup runs."""
    log: list[str] = []
    go_on = Event()
    handles: list[TaskHandle[None]] = []

    async def child() -> None:
        try:
            await Event().wait()
        finally:
            log.append("cleans up")
            await go_on.wait()

    async def main() -> None:
        async with polyloop.TaskGroup(migratable=True) as group:
            handles.append(group.create_task(child(), on=polyloop.current_runtime().workers[1], migratable=True))
            await Event().wait()

    with Runtime(loops=2, migratable=True) as runtime:
        parent = runtime.spawn(main, on=runtime.workers[0], migratable=True)
        until(lambda: bool(handles) and parked(handles[0]) and parked(parent))
        runtime.workers[0].loop.call_soon_threadsafe(runtime.workers[0].loop.stop)
        with pytest.raises(WorkerDiedError):
            parent.result(PATIENCE)
        until(lambda: len(runtime._crew.broods) == 1)
        go_on.set()
        runtime.close()
        (handle,) = handles
        until(handle.done)
        assert log == ["cleans up"]
        assert not runtime._crew.broods


def test_children_whose_thread_is_stuck_are_completed_with_the_others() -> None:
    """The parent is closed with its worker; the crew still knows its children."""
    entered, leave = Gate(), Gate()
    handles: list[TaskHandle[Any]] = []

    async def stubborn() -> None:
        while True:
            try:
                await Event().wait()
            except asyncio.CancelledError:
                continue

    async def blocks() -> None:
        entered.entered.set()
        leave.hold()

    async def main() -> None:
        async with polyloop.TaskGroup(migratable=True) as group:
            handles.append(group.create_task(stubborn()))
            handles.append(group.create_task(blocks()))

    runtime = Runtime(loops=2, migratable=True).start()
    try:
        runtime.spawn(main)
        entered.wait_entered()
        assert not runtime.close(timeout=0.1).clean
        for handle in handles:
            assert isinstance(handle.exception(PATIENCE), RuntimeClosedError) or handle.cancelled()
    finally:
        leave.open()

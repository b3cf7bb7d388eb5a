"""What the runtime keeps alive, and for how long."""

import asyncio
import gc
import threading
import weakref
from typing import Any

from tests.runtime.helpers import PATIENCE, forever, held, where

import polyloop
from polyloop import Runtime, TaskHandle


class Thing:
    """Something to hold a weak reference to."""


async def give(thing: Thing) -> Thing:
    """Return the argument."""
    await asyncio.sleep(0)
    return thing


def settled(runtime: Runtime) -> None:
    """Wait until each loop has gone on to its next step, so that nothing of the last is on its stack."""
    for _ in range(2):
        for worker in runtime.workers:
            runtime.spawn(where, on=worker).result(PATIENCE)


def test_finished_task_and_its_result_die_with_the_handle() -> None:
    """No collection is needed: nothing forms a cycle, and no worker keeps its last task."""
    with Runtime(loops=2) as runtime:
        gc.disable()
        try:
            for worker in runtime.workers:
                thing = Thing()
                gone = weakref.ref(thing)
                handle = runtime.spawn(give, thing, on=worker)
                assert handle.result(PATIENCE) is thing
                handle_gone = weakref.ref(handle)
                del thing, handle
                settled(runtime)
                assert handle_gone() is None
                assert gone() is None
        finally:
            gc.enable()


def test_failed_cancelled_refused_and_stolen_handles_die() -> None:
    """However a task ended."""

    async def fail(thing: Thing) -> None:
        raise LookupError

    gone: list[weakref.ref[Any]] = []
    runtime = Runtime(loops=2).start()
    thing = Thing()
    failed = runtime.spawn(fail, thing, on=runtime.workers[0])
    assert isinstance(failed.exception(PATIENCE), LookupError)
    cancelled = runtime.spawn(forever, on=runtime.workers[0])
    cancelled.cancel()
    cancelled._block(PATIENCE, "")
    with held(runtime, runtime.workers[0]):
        stolen = TaskHandle(give(thing))
        runtime.workers[0].admit(stolen, True)
        assert stolen.result(PATIENCE) is thing
    settled(runtime)
    refused = runtime.spawn(forever, on=runtime.workers[0])
    runtime.close()
    refused._block(PATIENCE, "")
    gone += [weakref.ref(each) for each in (thing, failed, cancelled, stolen, refused)]
    del thing, failed, cancelled, stolen, refused
    gc.collect()
    assert [each() for each in gone] == [None] * 5


def test_task_object_dies_on_its_own_thread() -> None:
    """The last reference to an asyncio.Task is dropped by its loop's thread, whoever holds the handle."""
    died: list[str] = []

    class NotedTask(asyncio.Task[Any]):
        def __del__(self) -> None:
            died.append(threading.current_thread().name)

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> "asyncio.Task[Any]":
        return NotedTask(coro, loop=loop, **kwargs)

    with Runtime(loops=2) as runtime:
        worker = runtime.workers[1]
        worker.post(worker.loop.set_task_factory, factory)
        runtime.spawn(where, on=worker).result(PATIENCE)
        died.clear()
        for _ in range(50):
            handle = runtime.spawn(give, Thing(), on=worker)
            handle.result(PATIENCE)
            del handle
        settled(runtime)
    assert len(died) >= 50
    assert set(died) == {"polyloop-1"}


def test_closed_runtime_is_collected() -> None:
    """With its workers and loops; after ``with``, ``run`` and ``async with``."""

    async def current() -> "weakref.ref[Runtime]":
        await polyloop.spawn(where, key=1)
        return weakref.ref(polyloop.current_runtime())

    async def inside() -> "weakref.ref[Runtime]":
        async with Runtime(loops=2) as runtime:
            await runtime.spawn(where)
            return weakref.ref(runtime)

    def outside() -> "weakref.ref[Runtime]":
        with Runtime(loops=2) as runtime:
            runtime.run(where())
            return weakref.ref(runtime)

    for gone in (outside(), polyloop.run(current(), loops=2), asyncio.run(inside())):
        gc.collect()
        assert gone() is None


def test_a_thousand_tasks_leave_no_objects() -> None:
    """The number of objects is the same after the second thousand as after the first."""

    async def crowd() -> None:
        async with polyloop.TaskGroup() as group:
            for _ in range(1000):
                group.create_task(give(Thing()))

    with Runtime(loops=2) as runtime:
        counts = []
        for _ in range(4):
            runtime.run(crowd())
            settled(runtime)
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[-1] - counts[1] < 100


def test_forgotten_handle_of_a_running_task_keeps_it_running() -> None:
    """Unlike ``asyncio.create_task``, whose task may be collected while it waits."""
    finished = threading.Event()

    async def work(go: asyncio.Event) -> None:
        await go.wait()
        finished.set()

    async def main() -> None:
        go = asyncio.Event()
        polyloop.spawn(work, go, on="here")
        await asyncio.sleep(0)
        gc.collect()
        go.set()
        await polyloop.spawn(where, on="here")

    polyloop.run(main(), loops=1)
    assert finished.is_set()

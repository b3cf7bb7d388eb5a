"""Migratable tasks: where they move and where they stay, and that all else is as of any other task."""

import asyncio
import contextlib
import contextvars
import gc
import io
import re
import threading
import time
import traceback
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import Any

import pytest
from tests.helpers import until
from tests.runtime.helpers import PATIENCE, Gate, forever, held, in_thread, is_closed, where

import polyloop
from polyloop import ForeignLoopError, Runtime, TaskHandle, Worker
from polyloop._core._migrant import MigratableTask


@contextmanager
def two_loops(*, migratable: bool = False, shutdown_timeout: float = 5.0) -> Generator[Runtime]:
    """Nobody steals: a task goes on where it is woken, and nowhere else."""
    with Runtime(loops=2, steal=False, migratable=migratable, shutdown_timeout=shutdown_timeout) as runtime:
        yield runtime


def migrant[T](handle: TaskHandle[T]) -> MigratableTask[T]:
    """The same handle, as what it is."""
    assert isinstance(handle, MigratableTask)
    return handle


def parked(handle: TaskHandle[Any]) -> None:
    """Wait until the task is suspended."""
    until(lambda: migrant(handle)._token() is not None)


def movable(handle: TaskHandle[Any]) -> None:
    """Wait until the task is suspended and no loop keeps it: a block that may cancel it does, for two ticks."""
    until(lambda: migrant(handle)._token() is not None and migrant(handle)._home is None)


def worker_of(handle: TaskHandle[Any]) -> Worker:
    """Where the task is."""
    assert isinstance(handle.worker, Worker)
    return handle.worker


def other(runtime: Runtime, handle: TaskHandle[Any]) -> Worker:
    """A worker on which the task is not."""
    return next(each for each in runtime.workers if each is not handle.worker)


async def call(fn: Callable[[], object]) -> str:
    """Call it, in a task; where."""
    fn()
    return threading.current_thread().name


def from_elsewhere(runtime: Runtime, handle: TaskHandle[Any], fn: Callable[[], object]) -> str:
    """When the task is suspended, call ``fn`` in an ordinary task on a worker where it is not; which."""
    parked(handle)
    return runtime.spawn(call, fn, on=other(runtime, handle)).result(PATIENCE)


def here() -> str:
    """The name of this thread."""
    return threading.current_thread().name


# Where they move


def _event() -> tuple[Callable[[], Awaitable[object]], Callable[[], object]]:
    event = polyloop.Event()
    return event.wait, event.set


def _lock() -> tuple[Callable[[], Awaitable[object]], Callable[[], object]]:
    lock = polyloop.Lock()
    assert lock.acquire_nowait()
    return lock.acquire, lock.release


def _semaphore() -> tuple[Callable[[], Awaitable[object]], Callable[[], object]]:
    semaphore = polyloop.Semaphore(0)
    return semaphore.acquire, semaphore.release


def _queue_get() -> tuple[Callable[[], Awaitable[object]], Callable[[], object]]:
    queue = polyloop.Queue[int]()
    return queue.get, lambda: queue.put_nowait(1)


def _queue_put() -> tuple[Callable[[], Awaitable[object]], Callable[[], object]]:
    queue = polyloop.Queue[int](1)
    queue.put_nowait(1)
    return lambda: queue.put(2), queue.get_nowait


def _queue_join() -> tuple[Callable[[], Awaitable[object]], Callable[[], object]]:
    queue = polyloop.Queue[int]()
    queue.put_nowait(1)
    return queue.join, queue.task_done


WAITS = [_event, _lock, _semaphore, _queue_get, _queue_put, _queue_join]


@pytest.mark.parametrize("make", WAITS, ids=lambda make: make.__name__.strip("_"))
def test_a_task_goes_on_where_it_is_woken(
    make: Callable[[], tuple[Callable[[], Awaitable[object]], Callable[[], object]]],
) -> None:
    """A park on a primitive ends on the worker whose task has ended it."""
    wait, wake = make()

    async def task() -> tuple[str, str]:
        before = here()
        await wait()
        return before, here()

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        woke = from_elsewhere(runtime, handle, wake)
        before, after = handle.result(PATIENCE)
        assert before != after == woke
        assert handle.worker.name == woke


def test_a_task_goes_on_where_the_task_that_it_awaits_ends() -> None:
    """A handle is a primitive too."""
    gate = Gate()

    async def task(awaited: TaskHandle[str]) -> tuple[str, str]:
        return await awaited, here()

    with two_loops() as runtime:
        awaited = runtime.spawn(gate.step, on=runtime.workers[1])
        gate.wait_entered()
        handle = runtime.spawn(task, awaited, migratable=True)
        parked(handle)
        gate.open()
        assert handle.result(PATIENCE) == ("polyloop-1", "polyloop-1")


def test_a_condition_moves_its_waiter_with_the_lock() -> None:
    """Notified elsewhere, it holds the lock there."""
    condition = polyloop.Condition()

    async def task() -> tuple[str, str, bool]:
        before = here()
        async with condition:
            await condition.wait()
            return before, here(), condition.locked()

    async def notify() -> str:
        async with condition:
            condition.notify()
        return here()

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        parked(handle)
        woke = runtime.spawn(notify, on=other(runtime, handle)).result(PATIENCE)
        before, after, locked = handle.result(PATIENCE)
        assert (before != after, after, locked) == (True, woke, True)
        assert not condition.locked()


async def _nap() -> None:
    await polyloop.sleep(0.0005)


@pytest.mark.parametrize("pause", [polyloop.checkpoint, _nap], ids=["checkpoint", "sleep"])
def test_long_steps_spread_over_the_workers(pause: Callable[[], Awaitable[object]]) -> None:
    """Tasks that compete for one worker are taken over by the other, between two of their steps."""
    over = time.monotonic() + PATIENCE
    seen: set[str] = set()

    async def busy() -> None:
        while len(seen) < 2 and time.monotonic() < over:
            seen.add(here())
            sum(range(20_000))
            await pause()

    async def begin() -> list[TaskHandle[None]]:
        return [polyloop.spawn(busy, migratable=True) for _ in range(8)]

    with Runtime(loops=2) as runtime:
        handles = runtime.spawn(begin, on=runtime.workers[0]).result(PATIENCE)
        for handle in handles:
            handle.result(2 * PATIENCE)
        assert seen == {"polyloop-0", "polyloop-1"}
        assert sum(worker.crew_member.stolen for worker in runtime.workers)


def test_a_task_that_waits_behind_a_blocked_slice_is_taken() -> None:
    """An idle worker that looks finds what waits behind a step that does not end."""
    gate, started = Gate(), threading.Event()

    async def task() -> str:
        started.set()
        return here()

    async def begin() -> None:
        polyloop.spawn(gate.step, migratable=True)
        polyloop.spawn(task, migratable=True)

    def look_again() -> bool:
        runtime.workers[1].post(int)  # a worker that is woken looks before it sleeps again
        return started.is_set()

    with Runtime(loops=2) as runtime:
        runtime.spawn(begin, on=runtime.workers[0]).result(PATIENCE)
        gate.wait_entered()
        try:
            until(look_again)
        finally:
            gate.open()
        assert started.is_set()


@pytest.mark.parametrize(
    "migratable",
    [True, False],
)
def test_a_task_that_is_woken_behind_a_blocked_step_runs_elsewhere(migratable: bool) -> None:
    """An idle worker takes what is woken where a step of whatever task does not end."""
    event, seen, entered = polyloop.Event(), threading.Event(), threading.Event()

    async def task() -> str:
        await event.wait()
        seen.set()
        return here()

    async def block() -> bool:
        entered.set()
        return seen.wait(1.0)

    with Runtime(loops=2) as runtime:
        handle = runtime.spawn(task, migratable=True)
        parked(handle)
        blocked = runtime.spawn(block, migratable=migratable, on=worker_of(handle))
        assert entered.wait(PATIENCE)
        event.set()
        assert blocked.result(PATIENCE)


# Where they stay


class TimerPending:
    """A timer that the task has set is pending inside."""

    async def __aenter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(3600, int)

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()


class TaskPending:
    """A task of asyncio that the task has made is pending inside."""

    async def __aenter__(self) -> None:
        self._task = asyncio.get_running_loop().create_task(forever())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class ChildPending:
    """So is a child of asyncio's group."""

    async def __aenter__(self) -> None:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._child = self._group.create_task(forever())

    async def __aexit__(self, *_: object) -> None:
        self._child.cancel()
        await self._group.__aexit__(None, None, None)


class PinnedTwice:
    """A nested block was left."""

    async def __aenter__(self) -> None:
        self._outer = polyloop.pinned()
        await self._outer.__aenter__()
        async with polyloop.pinned(), polyloop.pinned():
            pass

    async def __aexit__(self, *_: object) -> None:
        await self._outer.__aexit__(None, None, None)


STAYS: dict[str, Callable[[], AbstractAsyncContextManager[object]]] = {
    "pinned": polyloop.pinned,
    "pinned twice": PinnedTwice,
    "timeout": lambda: asyncio.timeout(3600),
    "group": polyloop.TaskGroup,
    "timer": TimerPending,
    "task": TaskPending,
    "child": ChildPending,
}


@pytest.mark.parametrize("block", STAYS.values(), ids=STAYS)
def test_a_task_stays_inside(block: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Woken elsewhere it goes on where it was, and moves again when it has left the block."""
    inside, outside = polyloop.Event(), polyloop.Event()

    async def task() -> list[str]:
        names = [here()]
        async with block():
            await inside.wait()
            names.append(here())
        names.append(here())
        await outside.wait()
        return [*names, here()]

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        at_home = handle.worker.name
        from_elsewhere(runtime, handle, inside.set)
        until(lambda: outside._line)
        movable(handle)
        away = from_elsewhere(runtime, handle, outside.set)
        assert handle.result(PATIENCE) == [at_home, at_home, at_home, away]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_group_of_asyncio_without_children_does_not_keep_its_parent(pinned: bool) -> None:
    """It cannot be seen, so the first child that is made elsewhere is refused, and says what helps."""
    event = polyloop.Event()
    child_ran: list[str] = []

    async def child() -> None:
        child_ran.append(here())

    async def task() -> list[str]:
        names = [here()]
        async with polyloop.pinned() if pinned else contextlib.nullcontext(), asyncio.TaskGroup() as group:
            await event.wait()
            names.append(here())
            group.create_task(child())
        return names

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        at_home = handle.worker.name
        from_elsewhere(runtime, handle, event.set)
        if pinned:
            assert handle.result(PATIENCE) == [at_home] * 2
            assert child_ran == [at_home]
        else:
            with pytest.raises(ExceptionGroup) as caught:
                handle.result(PATIENCE)
            (error,) = caught.value.exceptions
            assert isinstance(error, polyloop.ForeignLoopError)
            assert re.search(r"create_task\(\) of .* has moved to .*pinned", str(error))
            assert not child_ran


def test_a_task_stays_inside_a_timeout_that_is_over_at_once() -> None:
    """Until the loop has called it: it is to be cancelled inside, and on that thread."""
    event, gate = polyloop.Event(), Gate()

    async def task() -> list[str]:
        names = [here()]
        asyncio.get_running_loop().call_soon(gate.hold)
        try:
            async with asyncio.timeout(0):
                await event.wait()
                names.append(here())
        except TimeoutError:
            names.append("timeout")
        return names

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        gate.wait_entered()
        at_home = handle.worker.name
        from_elsewhere(runtime, handle, event.set)
        runtime.spawn(where, on=next(each for each in runtime.workers if each.name != at_home)).result(PATIENCE)
        gate.open()
        assert handle.result(PATIENCE) == [at_home, "timeout"]


def test_a_task_stays_while_it_awaits_a_future() -> None:
    """A future of asyncio belongs to a loop, and so does who awaits it."""
    futures: list[asyncio.Future[int]] = []

    async def task() -> tuple[str, int, str]:
        before = here()
        future = asyncio.get_running_loop().create_future()
        futures.append(future)
        return before, await future, here()

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        loop = handle.worker.loop
        from_elsewhere(runtime, handle, lambda: loop.call_soon_threadsafe(futures[0].set_result, 1))
        before, value, after = handle.result(PATIENCE)
        assert (before, value) == (after, 1)


def test_two_equal_timers_keep_their_task_until_both_have_run() -> None:
    """And not for ever."""

    async def task() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        first = loop.call_later(3600, int)
        second = loop.call_later(3600, str)
        both = migrant(me())._attached
        first.cancel()
        second.cancel()
        first.cancel()
        return both, migrant(me())._attached

    with two_loops() as runtime:
        assert runtime.spawn(task, migratable=True).result(PATIENCE) == (2, 0)


def test_timers_of_the_same_moment_and_function_keep_their_task_until_both_have_run() -> None:
    """Two timers may be equal, as asyncio compares them, and are two."""

    async def task() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        when = loop.time() + 3600
        timers = [loop.call_at(when, int) for _ in range(2)]
        both = migrant(me())._attached
        for timer in timers:
            timer.cancel()
        return both, migrant(me())._attached

    with two_loops() as runtime:
        assert runtime.spawn(task, migratable=True).result(PATIENCE) == (2, 0)


def me() -> Any:
    """The running task."""
    return asyncio.current_task()


def test_a_timer_that_has_run_lets_its_task_move() -> None:
    """When what it calls has been called."""
    event = polyloop.Event()

    async def task() -> tuple[str, str]:
        asyncio.get_running_loop().call_later(0, int)
        await asyncio.sleep(0.001)
        await event.wait()
        return handle.worker.name, here()

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        until(lambda: event._line)
        assert from_elsewhere(runtime, handle, event.set) == handle.result(PATIENCE)[1]


@pytest.mark.parametrize("how", ["worker", "key", "here", "context"])
def test_a_task_whose_place_was_asked_for_stays_there(how: str) -> None:
    """It is of that kind, and goes nowhere."""
    event = polyloop.Event()

    async def task() -> tuple[str, str]:
        before = here()
        await event.wait()
        return before, here()

    async def begin() -> TaskHandle[tuple[str, str]]:
        spawn = polyloop.current_runtime().spawn
        if how == "worker":
            return spawn(task, migratable=True, on=runtime.workers[1])
        if how == "key":
            return spawn(task, migratable=True, key="a key")
        if how == "here":
            return spawn(task, migratable=True, on="here")
        return spawn(task, migratable=True, context=contextvars.copy_context())

    with two_loops() as runtime:
        handle = runtime.spawn(begin, on=runtime.workers[0]).result(PATIENCE)
        assert isinstance(handle, MigratableTask)
        from_elsewhere(runtime, handle, event.set)
        before, after = handle.result(PATIENCE)
        assert before == after
        if how in {"here", "context"}:
            assert after == "polyloop-0"


def test_tasks_that_say_where_are_ordinary_in_a_migratable_runtime() -> None:
    """The default of the runtime is for those that say nothing."""
    with two_loops(migratable=True) as runtime:
        assert isinstance(runtime.spawn(where), MigratableTask)
        for handle in (
            runtime.spawn(where, on="here"),
            runtime.spawn(where, key=1),
            runtime.spawn(where, context=contextvars.copy_context()),
            runtime.spawn(where, migratable=False),
        ):
            assert not isinstance(handle, MigratableTask)
            assert handle.result(PATIENCE).startswith("polyloop-")


def test_loops_of_others_have_no_migratable_tasks() -> None:
    """Said at once: by the runtime, by spawn, by submit, and by a group, which closes the coroutine."""
    with pytest.raises(ValueError, match="own loops only"):
        Runtime(loops=1, loop_factory=asyncio.SelectorEventLoop, migratable=True)

    async def refused(coro: Coroutine[Any, Any, str]) -> None:
        async with polyloop.TaskGroup() as group:
            group.create_task(coro, migratable=True)

    async def refused_group() -> None:
        async with polyloop.TaskGroup(migratable=True):
            pass

    with Runtime(loops=1, loop_factory=asyncio.SelectorEventLoop) as runtime:
        with pytest.raises(ValueError, match="own loops only"):
            runtime.spawn(where, migratable=True)
        coro = where()
        with pytest.raises(ValueError, match="own loops only"):
            runtime.submit(coro, migratable=True)
        assert is_closed(coro)
        coro = where()
        with pytest.raises(ExceptionGroup) as caught:
            runtime.spawn(refused, coro).result(PATIENCE)
        assert caught.group_contains(ValueError)
        assert is_closed(coro)
        with pytest.raises(ValueError, match="own loops only"):
            runtime.spawn(refused_group).result(PATIENCE)


def test_one_loop_runs_migratable_tasks() -> None:
    """They take turns there, in the order in which they came."""
    order: list[int] = []

    async def task(number: int) -> str:
        order.append(number)
        await polyloop.checkpoint()
        order.append(number)
        await polyloop.sleep(0.001)
        return here()

    async def begin() -> list[str]:
        handles = [polyloop.spawn(task, number, migratable=True) for number in range(3)]
        return [await handle for handle in handles]

    with Runtime(loops=1) as runtime:
        assert runtime.spawn(begin).result(PATIENCE) == ["polyloop-0"] * 3
        assert order == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("pause", [lambda: asyncio.sleep(0), polyloop.checkpoint], ids=["asyncio", "polyloop"])
def test_a_task_that_never_waits_starves_nobody(pause: Callable[[], Awaitable[object]]) -> None:
    """On one loop: neither the tasks of its kind, nor those of asyncio, nor timers."""
    done: list[str] = []

    async def spin() -> int:
        steps = 0
        while len(done) < 3:
            sum(range(30_000))
            steps += 1
            await pause()
        return steps

    async def note(name: str) -> None:
        await polyloop.checkpoint()
        done.append(name)

    async def begin() -> TaskHandle[int]:
        spinner = polyloop.spawn(spin, migratable=True)
        polyloop.spawn(note, "migratable", migratable=True)
        polyloop.spawn(note, "ordinary", migratable=False)
        asyncio.get_running_loop().call_later(0.001, done.append, "timer")
        return spinner

    with Runtime(loops=1) as runtime:
        assert runtime.spawn(begin).result(PATIENCE).result(PATIENCE) > 0
        assert sorted(done) == ["migratable", "ordinary", "timer"]


# What they are


def test_the_current_task_is_the_handle() -> None:
    """Before and after a move; and nobody's in a callback of the loop."""
    event = polyloop.Event()
    in_callback: list[object] = []

    async def task() -> tuple[object, object]:
        before = asyncio.current_task()
        asyncio.get_running_loop().call_soon(lambda: in_callback.append(asyncio.current_task()))
        await event.wait()
        return before, asyncio.current_task()

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        from_elsewhere(runtime, handle, event.set)
        assert handle.result(PATIENCE) == (handle, handle)
        assert in_callback == [None]


def test_names_and_repr() -> None:
    """As of any handle."""

    async def named() -> tuple[str, str]:
        task = me()
        before = task.get_name()
        task.set_name("renamed")
        return before, task.get_name()

    with two_loops() as runtime:
        handle = runtime.spawn(named, migratable=True, name="label")
        assert handle.result(PATIENCE) == ("label", "renamed")
        assert handle.name == "renamed"
        assert repr(handle) == f"<TaskHandle 'renamed' finished on {handle.worker.name}>"
        waiting = runtime.spawn(forever, migratable=True)
        assert waiting.name == "forever"
        assert repr(waiting) == f"<TaskHandle 'forever' pending on {waiting.worker.name}>"
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            waiting.result(PATIENCE)
        assert repr(waiting) == f"<TaskHandle 'forever' cancelled on {waiting.worker.name}>"


def test_the_coroutine_and_the_context_can_be_had() -> None:
    """From any thread, at any time; submit takes a coroutine as it is."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def change() -> str:
        before = variable.get()
        variable.set("changed")
        await polyloop.checkpoint()
        return before + " " + variable.get()

    with two_loops() as runtime:
        variable.set("mine")
        coro = change()
        handle = runtime.submit(coro, migratable=True)
        assert handle.get_coro() is coro
        assert handle.result(PATIENCE) == "mine changed"
        context = handle.get_context()
        assert context is not None
        assert (context[variable], variable.get()) == ("changed", "mine")


def test_the_context_moves_with_the_task() -> None:
    """Variables, and tokens that reset them."""
    variable = contextvars.ContextVar("variable", default="unset")
    event = polyloop.Event()

    async def task() -> list[str]:
        token = variable.set("inside")
        await event.wait()
        seen = [variable.get()]
        variable.reset(token)
        return [*seen, variable.get()]

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        from_elsewhere(runtime, handle, event.set)
        assert handle.result(PATIENCE) == ["inside", "unset"]


def test_the_stack_of_a_suspended_task() -> None:
    """The frame in which its coroutine waits; printed as asyncio prints it."""
    event = polyloop.Event()

    async def waits_here() -> None:
        await event.wait()

    with two_loops() as runtime:
        task = migrant(runtime.spawn(waits_here, migratable=True))
        parked(task)
        assert [frame.f_code.co_name for frame in task.get_stack()] == ["waits_here"]
        assert task.get_stack(limit=0) == []
        out = io.StringIO()
        task.print_stack(file=out)
        assert out.getvalue().startswith(f"Stack for {task!r} (most recent call last):\n")
        assert "in waits_here\n    await event.wait()\n" in out.getvalue()
        event.set()
        task.result(PATIENCE)
        assert task.get_stack() == []
        out = io.StringIO()
        task.print_stack(file=out)
        assert out.getvalue() == f"No stack for {task!r}\n"


def test_the_stack_of_a_failed_task() -> None:
    """The frames of its exception."""

    async def inner() -> None:
        raise ValueError("it")

    async def outer() -> None:
        await inner()

    with two_loops() as runtime:
        task = migrant(runtime.spawn(outer, migratable=True))
        assert isinstance(task.exception(PATIENCE), ValueError)
        assert [frame.f_code.co_name for frame in task.get_stack()] == ["outer", "inner"]
        assert [frame.f_code.co_name for frame in task.get_stack(limit=1)] == ["outer"]


def test_the_stack_of_a_failed_task_is_printed_with_its_exception() -> None:
    """As asyncio does."""

    async def fail() -> None:
        raise ValueError("the reason")

    with two_loops() as runtime:
        task = migrant(runtime.spawn(fail, migratable=True))
        assert isinstance(task.exception(PATIENCE), ValueError)
        out = io.StringIO()
        task.print_stack(file=out)
        assert out.getvalue().startswith(f"Traceback for {task!r} (most recent call last):\n")
        assert out.getvalue().endswith("ValueError: the reason\n")


# Cancellation: the same as asyncio's on one loop

type Start = Callable[[Coroutine[Any, Any, Any]], Any]
type Scenario = Callable[[Start, list[Any]], Coroutine[Any, Any, None]]

SCENARIOS: list[Any] = []


def scenario(fn: Scenario) -> Scenario:
    SCENARIOS.append(pytest.param(fn, id=fn.__name__))
    return fn


async def settle() -> None:
    """Let everything on this loop happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def outcome(task: Any) -> tuple[Any, ...]:
    """How it ends."""
    try:
        return ("returned", await task)
    except BaseException as exc:
        return ("raised", type(exc).__name__, exc.args, task.cancelled(), task.cancelling())


@scenario
async def cancelled_before_its_start(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        log.append("never")

    task = start(body())
    log.append(task.cancel("why"))
    log.append(await outcome(task))
    log.append(task.cancel())


@scenario
async def cancelled_while_it_awaits_a_future(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as exc:
            log.append((exc.args, me().cancelling()))
            raise

    task = start(body())
    await settle()
    log.append((task.cancel("why"), task.cancelling(), task.done()))
    log.append(await outcome(task))


@scenario
async def cancelled_while_it_lets_others_go_first(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        while True:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as exc:
                log.append(exc.args)
                return

    task = start(body())
    await settle()
    task.cancel("why")
    log.append(await outcome(task))


@scenario
async def a_swallowed_cancellation(start: Start, log: list[Any]) -> None:
    async def body() -> str:
        for _ in range(2):
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError as exc:
                log.append((exc.args, me().cancelling()))
        return "after all"

    task = start(body())
    for number in range(2):
        await settle()
        log.append(task.cancel(number))
    log.append(await outcome(task))
    log.append((task.cancelled(), task.cancelling()))


@scenario
async def uncancelled(start: Start, log: list[Any]) -> None:
    async def body() -> str:
        log.append(me().uncancel())
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            log.append([me().cancelling(), me().uncancel(), me().uncancel(), me().cancelling()])
        await asyncio.sleep(0)
        return "went on"

    task = start(body())
    await settle()
    task.cancel()
    log.append(await outcome(task))


@scenario
async def it_cancels_itself(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        log.append(me().cancel("me"))
        log.append(me().cancelling())
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as exc:
            log.append(exc.args)
            raise

    log.append(await outcome(start(body())))


@scenario
async def it_cancels_itself_and_awaits_a_future(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        me().cancel("me")
        future = asyncio.get_running_loop().create_future()
        try:
            await future
        finally:
            log.append(future.cancelled())

    log.append(await outcome(start(body())))


@scenario
async def it_cancels_itself_and_returns(start: Start, log: list[Any]) -> None:
    async def body() -> str:
        me().cancel()
        return "value"

    task = start(body())
    log.append(await outcome(task))
    log.append((task.cancelled(), task.cancelling()))


@scenario
async def it_cancels_itself_and_takes_it_back(start: Start, log: list[Any]) -> None:
    async def body() -> str:
        me().cancel()
        me().cancel()
        log.append([me().uncancel(), me().uncancel()])
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return "went on"

    log.append(await outcome(start(body())))


@scenario
async def it_raises_something_else_instead(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ValueError("instead") from None

    task = start(body())
    await settle()
    task.cancel()
    log.append(await outcome(task))


@scenario
async def it_raises_a_cancellation_of_its_own(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        raise asyncio.CancelledError("mine")

    log.append(await outcome(start(body())))


@scenario
async def what_it_awaits_is_cancelled(start: Start, log: list[Any]) -> None:
    futures: list[asyncio.Future[None]] = []

    async def body() -> None:
        futures.append(asyncio.get_running_loop().create_future())
        await futures[0]

    task = start(body())
    await settle()
    futures[0].cancel("the future")
    log.append(await outcome(task))


@scenario
async def what_it_awaits_fails(start: Start, log: list[Any]) -> None:
    async def fail() -> None:
        raise ValueError("inner")

    async def body() -> None:
        await asyncio.create_task(fail())

    log.append(await outcome(start(body())))


@scenario
async def cancelled_twice_at_once(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            log.append(me().cancelling())
        await asyncio.sleep(0)
        log.append("went on")

    task = start(body())
    await settle()
    task.cancel()
    task.cancel()
    log.append(await outcome(task))


@scenario
async def what_it_awaits_swallows_the_cancellation(start: Start, log: list[Any]) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as exc:
            log.append(exc.args)
        return "stubborn"

    async def body() -> tuple[str, int]:
        return await asyncio.create_task(stubborn()), me().cancelling()

    task = start(body())
    await settle()
    task.cancel("why")
    log.append(await outcome(task))


@scenario
async def what_it_awaits_hears_of_every_cancellation(start: Start, log: list[Any]) -> None:
    async def stubborn() -> str:
        for _ in range(2):
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError as exc:
                log.append(exc.args)
        return "stubborn"

    async def body() -> tuple[str, int]:
        return await asyncio.create_task(stubborn()), me().cancelling()

    task = start(body())
    for number in range(2):
        await settle()
        task.cancel(number)
    log.append(await outcome(task))


@scenario
async def a_timeout_ends_a_wait(start: Start, log: list[Any]) -> None:
    async def body() -> int:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            log.append("timeout")
        await asyncio.sleep(0)
        return int(me().cancelling())

    log.append(await outcome(start(body())))


@scenario
async def a_timeout_that_is_over_at_once(start: Start, log: list[Any]) -> None:
    async def body() -> int:
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(0)
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            log.append("timeout")
        return int(me().cancelling())

    log.append(await outcome(start(body())))


@scenario
async def a_timeout_and_a_cancellation(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        async with asyncio.timeout(0.001) as timeout:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                me().cancel("from outside")
                log.append(timeout.expired())

    log.append(await outcome(start(body())))


@scenario
async def a_timeout_in_a_task_that_was_cancelled_before(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            async with asyncio.timeout(0.001):
                await asyncio.get_running_loop().create_future()

    task = start(body())
    await settle()
    task.cancel()
    log.append(await outcome(task))


@scenario
async def a_wait_for_ends(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        log.append(await asyncio.wait_for(asyncio.sleep(0, "value"), 10))
        try:
            await asyncio.wait_for(forever(), 0.001)
        except TimeoutError:
            log.append("timeout")
        await asyncio.wait_for(forever(), 10)

    task = start(body())
    while len(log) < 2:
        await asyncio.sleep(0)
    await settle()
    task.cancel("why")
    log.append(await outcome(task))


@scenario
async def a_shield_keeps_what_it_awaits(start: Start, log: list[Any]) -> None:
    release = asyncio.Event()

    async def body() -> None:
        inner = asyncio.create_task(release.wait())
        try:
            await asyncio.shield(inner)
        except asyncio.CancelledError:
            release.set()
            log.append(await inner)
            raise

    task = start(body())
    await settle()
    task.cancel("why")
    log.append(await outcome(task))


@scenario
async def a_gather_passes_the_cancellation_on(start: Start, log: list[Any]) -> None:
    async def child(number: int) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            log.append(number)

    async def body() -> None:
        await asyncio.gather(child(0), child(1))

    task = start(body())
    await settle()
    task.cancel("why")
    log.append(await outcome(task))


async def _a_group_fails(start: Start, log: list[Any], new_group: Callable[[], Any]) -> None:
    async def fail() -> None:
        raise ValueError("child")

    async def body() -> None:
        try:
            async with new_group() as group:
                group.create_task(fail())
                await asyncio.get_running_loop().create_future()
        except* ValueError as caught:
            log.append([str(exc) for exc in caught.exceptions])
        log.append(me().cancelling())
        await asyncio.sleep(0)

    log.append(await outcome(start(body())))


@scenario
async def a_group_of_asyncio_fails(start: Start, log: list[Any]) -> None:
    await _a_group_fails(start, log, asyncio.TaskGroup)


@scenario
async def a_group_of_polyloop_fails(start: Start, log: list[Any]) -> None:
    await _a_group_fails(start, log, polyloop.TaskGroup)


@scenario
async def a_group_is_cancelled_from_outside(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        try:
            async with polyloop.TaskGroup() as group:
                group.create_task(forever())
        finally:
            log.append(me().cancelling())

    task = start(body())
    await settle()
    task.cancel("why")
    log.append((await outcome(task))[:2])


@scenario
async def it_waits_on_a_primitive_and_is_cancelled(start: Start, log: list[Any]) -> None:
    lock = polyloop.Lock()
    assert lock.acquire_nowait()

    async def body() -> None:
        try:
            async with lock:
                log.append("never")
        finally:
            log.append(me().cancelling())

    task = start(body())
    await settle()
    task.cancel("why")
    log.append(await outcome(task))
    lock.release()
    log.append(lock.locked())


@scenario
async def it_is_woken_and_cancelled(start: Start, log: list[Any]) -> None:
    event = polyloop.Event()

    async def body() -> None:
        await event.wait()
        log.append("never")

    for order in ("wake first", "cancel first"):
        event.clear()
        task = start(body())
        await settle()
        if order == "wake first":
            event.set()
        task.cancel(order)
        event.set()
        log.append(await outcome(task))


@scenario
async def it_sleeps_and_is_cancelled(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        await polyloop.sleep(3600)

    task = start(body())
    await settle()
    task.cancel("why")
    log.append(await outcome(task))


@scenario
async def it_raises_stop_iteration(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        raise StopIteration("it")

    log.append((await outcome(start(body())))[:2])


class _Yields:
    def __init__(self, value: object) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        yield self._value


@scenario
async def it_yields_what_is_no_future(start: Start, log: list[Any]) -> None:
    async def body() -> str:
        for bad in (1, object(), asyncio.get_running_loop().create_future()):
            try:
                await _Yields(bad)
            except RuntimeError:
                log.append("RuntimeError")
        await asyncio.sleep(0)
        return "went on"

    log.append(await outcome(start(body())))


@scenario
async def it_returns_a_coroutine(start: Start, log: list[Any]) -> None:
    async def body() -> Any:
        return asyncio.sleep(0, "inner")

    kind, inner = await outcome(start(body()))
    log.append((kind, await inner))


@scenario
async def it_awaits_itself(start: Start, log: list[Any]) -> None:
    async def body() -> None:
        try:
            await me()
        except RuntimeError:
            log.append("RuntimeError")

    log.append(await outcome(start(body())))


@pytest.mark.parametrize("fn", SCENARIOS)
def test_a_scenario_is_the_same_as_with_a_task_of_asyncio(fn: Scenario) -> None:
    """Results, errors, messages and counts, where a migratable task takes the place of one of asyncio's."""
    expected: list[Any] = []
    asyncio.run(fn(asyncio.create_task, expected))
    log: list[Any] = []
    with Runtime(loops=1, shutdown_timeout=0.2) as runtime:

        def start(coro: Coroutine[Any, Any, Any]) -> TaskHandle[Any]:
            return runtime.submit(coro, migratable=True)

        main = runtime.spawn(fn, start, log)
        try:
            main.result(2.0)
        finally:
            gc.collect()  # what has failed is not for the tests that follow
        assert log == expected
        assert expected


# Cancellation from elsewhere


@pytest.mark.parametrize("wait", ["event", "sleep", "future", "checkpoint", "handle"])
def test_a_thread_cancels_a_task_wherever_it_waits(wait: str) -> None:
    """With its message, once; the handle says so."""
    event = polyloop.Event()
    seen: list[tuple[tuple[Any, ...], int]] = []
    started = threading.Event()

    async def task() -> None:
        started.set()
        try:
            if wait == "event":
                await event.wait()
            elif wait == "sleep":
                await polyloop.sleep(3600)
            elif wait == "future":
                await forever()
            elif wait == "handle":
                await awaited
            while True:
                await polyloop.checkpoint()
        except asyncio.CancelledError as exc:
            seen.append((exc.args, me().cancelling()))
            raise

    with two_loops() as runtime:
        awaited = runtime.spawn(forever, on=runtime.workers[1])
        handle = runtime.spawn(task, migratable=True)
        assert started.wait(PATIENCE)
        if wait != "checkpoint":
            parked(handle)
        assert handle.cancel("why")
        with pytest.raises(asyncio.CancelledError) as caught:
            handle.result(PATIENCE)
        assert caught.value.args == ("why",)
        assert seen == [(("why",), 1)]
        assert handle.cancelled()
        assert not handle.cancel()
        assert not event._line


def test_cancelled_while_it_is_queued() -> None:
    """Behind a step that blocks its worker: it never starts."""
    with two_loops() as runtime, ExitStack() as gates:
        gates.enter_context(held(runtime, *runtime.workers))
        coro = where()
        handle = runtime.submit(coro, migratable=True)
        assert handle.cancel("early")
        assert not handle.done()
        gates.close()
        with pytest.raises(asyncio.CancelledError) as caught:
            handle.result(PATIENCE)
        assert caught.value.args == ("early",)
        assert is_closed(coro)


def test_cancelled_while_it_runs() -> None:
    """It hears of it where it waits next; what it does until then it does."""
    gate = Gate()

    async def task() -> None:
        gate.hold()
        me().set_name("went on")
        await polyloop.checkpoint()

    with two_loops() as runtime:
        handle = migrant(runtime.spawn(task, migratable=True))
        gate.wait_entered()
        assert handle.cancel("why")
        assert handle.cancelling() == 1
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            handle.result(PATIENCE)
        assert handle.name == "went on"


def test_cancelled_in_its_last_step() -> None:
    """It has ended, in either way."""
    gate = Gate()
    with two_loops() as runtime:
        handle = runtime.spawn(gate.step, migratable=True)
        gate.wait_entered()
        assert handle.cancel()
        gate.open()
        until(handle.done)
        assert handle.cancelled() or handle.result(0).startswith("polyloop-")


def test_a_lock_that_was_handed_over_goes_on_when_the_task_is_cancelled() -> None:
    """Handed over and cancelled before the task could step: the next one has it."""
    lock = polyloop.Lock()
    gate = Gate()

    async def enter() -> str:
        async with lock:
            return here()

    with two_loops() as runtime:
        assert lock.acquire_nowait()
        doomed = runtime.spawn(enter, migratable=True)
        until(lambda: len(lock._permits.line) == 1)
        later = runtime.spawn(enter, migratable=True)
        until(lambda: len(lock._permits.line) == 2)
        blocks = [runtime.spawn(gate.step, on=worker) for worker in runtime.workers]
        gate.wait_entered()
        lock.release()
        doomed.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            doomed.result(PATIENCE)
        assert later.result(PATIENCE)
        assert all(block.result(PATIENCE) for block in blocks)
        assert not lock.locked()


def test_cancelled_by_many_threads() -> None:
    """Each request is counted; the task hears of one for each time that it waits."""
    event = polyloop.Event()

    async def task() -> int:
        while True:
            try:
                await event.wait()
            except asyncio.CancelledError:
                continue
            return int(me().cancelling())

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        parked(handle)
        threads = [threading.Thread(target=lambda: [handle.cancel() for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        parked(handle)  # it has heard of the last one; one that comes at its end would end it
        event.set()
        assert handle.result(PATIENCE) == 200


@pytest.mark.parametrize(
    "migratable",
    [False, True],
)
def test_an_awaiter_that_is_cancelled_in_the_last_step_of_what_it_awaits_ends_cancelled(migratable: bool) -> None:
    """Its request could not reach the task any more, and so it is its own."""
    gate = Gate()

    async def wait(handle: TaskHandle[str]) -> str:
        return await handle

    with two_loops() as runtime:
        awaited = runtime.spawn(gate.step, migratable=migratable, on=runtime.workers[0])
        gate.wait_entered()
        waiter = runtime.spawn(wait, awaited, on=runtime.workers[1])
        until(lambda: awaited._waiters)
        waiter.cancel()
        runtime.spawn(where, on=runtime.workers[1]).result(PATIENCE)
        runtime.spawn(where, on=runtime.workers[1]).result(PATIENCE)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            waiter.result(PATIENCE)


class Watched(asyncio.Future[None]):
    """Notes which thread cancels it."""

    def __init__(self) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.cancelled_by: list[str] = []

    def cancel(self, msg: Any | None = None) -> bool:
        self.cancelled_by.append(here())
        return super().cancel(msg)


def test_a_future_is_cancelled_by_its_own_thread_only() -> None:
    """Also when the task was cancelled before, awaiting a future elsewhere that was done at that moment."""
    event, gates = polyloop.Event(), (Gate(), Gate())
    elsewhere: list[Watched] = []

    async def task() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def finish() -> None:  # what the future calls comes between the two gates, with no look at the mailbox
            loop.call_soon(gates[0].hold)
            future.set_result(None)
            loop.call_soon(gates[1].hold)

        loop.call_soon(finish)
        with pytest.raises(asyncio.CancelledError):
            await future
        await event.wait()
        elsewhere.append(Watched())
        await elsewhere[0]

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        gates[0].wait_entered()
        home, away = worker_of(handle), other(runtime, handle)
        handle.cancel()
        gates[0].open()
        gates[1].wait_entered()
        from_elsewhere(runtime, handle, event.set)
        until(lambda: elsewhere)
        parked(handle)
        with held(runtime, away):
            handle.cancel()
            gates[1].open()
            runtime.spawn(where, on=home).result(PATIENCE)
        with pytest.raises(asyncio.CancelledError):
            handle.result(PATIENCE)
        assert elsewhere[0].cancelled_by == [away.name]


# How they end


async def fail(exc: BaseException) -> None:
    """Raise it, after a wait."""
    await polyloop.checkpoint()
    raise exc


@pytest.mark.parametrize(
    "exc", [ValueError("it"), ExceptionGroup("several", [KeyError(1), OSError(2)]), GeneratorExit()]
)
def test_an_exception_is_the_outcome(exc: BaseException) -> None:
    """The object itself, and no frame of ours in front of the task's own."""
    with two_loops() as runtime:
        handle = runtime.spawn(fail, exc, migratable=True)
        found = handle.exception(PATIENCE)
        assert found is exc
        assert found is not None
        assert [frame.name for frame in traceback.extract_tb(found.__traceback__)] == ["fail"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_is_the_outcome_and_ends_run(kind: type[BaseException]) -> None:
    """``run`` raises it, as for any task."""
    handles: list[TaskHandle[None]] = []

    async def main() -> None:
        handles.append(polyloop.spawn(fail, kind(3), migratable=True))
        await forever()

    with pytest.raises(kind) as caught:
        polyloop.run(main(), loops=2)
    assert caught.value.args == (3,)
    assert isinstance(handles[0].exception(0), kind)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_runtime_lives_on_after_an_exit(kind: type[BaseException]) -> None:
    """The worker goes on with what was queued behind it."""
    with Runtime(loops=1) as runtime:

        async def begin() -> tuple[TaskHandle[None], TaskHandle[str]]:
            return polyloop.spawn(fail, kind(3), migratable=True), polyloop.spawn(where, migratable=True)

        failed, went_on = runtime.spawn(begin).result(PATIENCE)
        assert isinstance(failed.exception(PATIENCE), kind)
        assert went_on.result(PATIENCE) == "polyloop-0"
        assert runtime.spawn(where, migratable=True).result(PATIENCE) == "polyloop-0"


def test_everybody_may_wait_for_a_handle() -> None:
    """Ordinary tasks, tasks of asyncio, other migratable ones, threads, and a loop of others."""
    event = polyloop.Event()

    async def value() -> str:
        await event.wait()
        return "value"

    async def wait(handle: TaskHandle[str]) -> str:
        return await handle

    async def through_asyncio(handle: TaskHandle[str]) -> str:
        return await asyncio.create_task(wait(handle))

    with two_loops() as runtime:
        handle = runtime.spawn(value, migratable=True)
        parked(handle)
        with pytest.raises(TimeoutError):
            handle.result(0)
        waiting = [
            *(runtime.spawn(wait, handle, on=worker) for worker in runtime.workers),
            *(runtime.spawn(wait, handle, migratable=True) for _ in range(3)),
            runtime.spawn(through_asyncio, handle),
            runtime.spawn(through_asyncio, handle, migratable=True),
        ]
        results: list[str] = []
        threads = [
            threading.Thread(target=lambda: results.append(handle.result(PATIENCE))),
            threading.Thread(target=lambda: results.append(asyncio.run(wait(handle)))),
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(handle._waiters) >= 8)
        event.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [each.result(PATIENCE) for each in waiting] + results == ["value"] * 9
        assert runtime.spawn(wait, handle).result(PATIENCE) == "value"  # done


def test_done_callbacks() -> None:
    """On the loop where one was added; where none was, on the thread that completes the task."""
    event = polyloop.Event()
    called: list[tuple[str, str]] = []
    added = threading.Event()

    async def value() -> str:
        await event.wait()
        return "value"

    async def add(handle: TaskHandle[str]) -> None:
        handle.add_done_callback(lambda done: called.append((here(), done.result())))
        added.set()

    with two_loops() as runtime:
        handle = runtime.spawn(value, migratable=True)
        handle.add_done_callback(print)
        assert handle.remove_done_callback(print) == 1
        runtime.spawn(add, handle, on=runtime.workers[0]).result(PATIENCE)
        runtime.spawn(add, handle, migratable=True, on=runtime.workers[1]).result(PATIENCE)
        parked(handle)
        event.set()
        assert handle.result(PATIENCE) == "value"
        until(lambda: len(called) == 2)
        assert sorted(called) == [("polyloop-0", "value"), ("polyloop-1", "value")]


def test_a_task_that_is_over_is_not_kept() -> None:
    """Neither by its worker nor by a cycle: what it returned goes when its handle does."""

    class Value:
        pass

    async def value() -> Value:
        await polyloop.checkpoint()
        return Value()

    gc.collect()
    gc.disable()
    try:
        with two_loops() as runtime:
            handle = runtime.spawn(value, migratable=True)
            gone = weakref.ref(handle.result(PATIENCE))
            worker = handle.worker
            del handle
            assert isinstance(worker, Worker)
            for _ in range(20):
                runtime.spawn(where, on=worker).result(PATIENCE)
            assert gone() is None
    finally:
        gc.enable()


# What is made of them


def test_gather_race_and_as_completed_in_a_migratable_runtime() -> None:
    """Coroutines become tasks that migrate; results and order are as ever; so with a limit."""

    async def double(number: int) -> int:
        task = asyncio.current_task()
        assert isinstance(task, MigratableTask)
        await polyloop.checkpoint()
        await polyloop.sleep(0.0001 * (5 - number % 5))
        return 2 * number

    async def main(limit: int | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        found["gather"] = await polyloop.gather(*(double(n) for n in range(10)), limit=limit)
        found["as_completed"] = sorted(
            [await each async for each in polyloop.as_completed([double(n) for n in range(10)], limit=limit)]
        )
        found["race"] = await polyloop.race(double(1), forever())
        async with polyloop.TaskGroup(limit=limit) as group:
            handles = [group.create_task(double(n)) for n in range(10)]
        found["group"] = [handle.result() for handle in handles]
        return found

    for loops in (1, 2):
        with Runtime(loops=loops, migratable=True, shutdown_timeout=1.0) as runtime:
            for limit in (None, 2):
                for on in (None, runtime.workers[0]):
                    found = runtime.spawn(main, limit, on=on).result(PATIENCE)
                    doubles = [2 * n for n in range(10)]
                    assert found == {
                        "gather": doubles,
                        "as_completed": doubles,
                        "race": 2,
                        "group": doubles,
                    }


async def square(number: int) -> int:
    """The square, after a wait."""
    await polyloop.checkpoint()
    return number * number


def test_map_in_a_migratable_runtime() -> None:
    """Asked by an ordinary task: results and order are as ever."""

    async def main(limit: int) -> list[int]:
        return [each async for each in polyloop.map(square, range(20), limit=limit)]

    for loops in (1, 2):
        with Runtime(loops=loops, migratable=True) as runtime:
            for limit in (1, 2, 10):
                found = runtime.spawn(main, limit, migratable=False).result(PATIENCE)
                assert found == [n * n for n in range(20)]


def test_a_task_moves_between_results_of_map() -> None:
    """And gets the rest of them."""
    event = polyloop.Event()

    async def main() -> list[int]:
        found: list[int] = []
        async for each in polyloop.map(square, range(5), limit=2):
            found.append(each)
            if each == 1:
                reached.set()
                await event.wait()
        return found

    reached = threading.Event()
    with two_loops(migratable=True) as runtime:
        handle = runtime.spawn(main)
        until(lambda: reached.is_set() or handle.done())
        until(lambda: event._line or handle.done())
        event_worker = other(runtime, handle)
        runtime.spawn(call, event.set, on=event_worker).result(PATIENCE)
        assert handle.result(PATIENCE) == [0, 1, 4, 9, 16]


def test_a_checkpoint_lets_the_callbacks_of_the_loop_go_on() -> None:
    """Not at each, but after a slice: they are not starved by tasks that do nothing else."""

    async def task() -> int:
        called: list[int] = []
        for number in range(50):
            asyncio.get_running_loop().call_soon(called.append, number)
            while len(called) <= number:
                await polyloop.checkpoint()
        return len(called)

    with Runtime(loops=1) as runtime:
        assert runtime.spawn(task, migratable=True).result(PATIENCE) == 50


def test_children_of_a_group_migrate_and_end() -> None:
    """By the group's word or their own; their parent stays at home."""
    event = polyloop.Event()

    async def child() -> tuple[str, str]:
        before = here()
        await event.wait()
        return before, here()

    async def main() -> list[TaskHandle[tuple[str, str]]]:
        async with polyloop.TaskGroup(migratable=True) as group:
            handles = [group.create_task(child()) for _ in range(3)]
            handles.append(group.create_task(child(), migratable=False))
            begun.set()
        return handles

    begun = threading.Event()
    with two_loops() as runtime:
        parent = runtime.spawn(main, on=runtime.workers[0])
        assert begun.wait(PATIENCE)
        until(lambda: len(event._line) == 4)
        runtime.spawn(call, event.set, on=runtime.workers[1]).result(PATIENCE)
        *migrated, ordinary = parent.result(PATIENCE)
        assert {handle.result()[1] for handle in migrated} == {"polyloop-1"}
        before, after = ordinary.result()
        assert before == after


def test_a_failing_child_cancels_its_siblings() -> None:
    """On whatever worker they are."""

    async def main() -> list[str]:
        seen: list[str] = []
        siblings: list[TaskHandle[Any]] = []
        try:
            async with polyloop.TaskGroup(migratable=True) as group:
                siblings += [group.create_task(forever()), group.create_task(polyloop.sleep(3600))]
                group.create_task(fail(ValueError("child")))
        except* ValueError as caught:
            seen = [str(exc) for exc in caught.exceptions]
        assert all(sibling.cancelled() for sibling in siblings)
        return seen

    with two_loops() as runtime:
        assert runtime.spawn(main).result(PATIENCE) == ["child"]
        assert runtime.spawn(main, migratable=True).result(PATIENCE) == ["child"]


def test_a_child_that_waits_for_its_turn_is_cancelled() -> None:
    """It never begins, and the group does not wait for it."""
    event = polyloop.Event()

    async def main() -> bool:
        async with polyloop.TaskGroup(limit=1, migratable=True) as group:
            group.create_task(event.wait())
            waits = group.create_task(event.wait())
            waits.cancel()
            event.set()
        return waits.cancelled()

    with two_loops(shutdown_timeout=0.2) as runtime:
        assert runtime.spawn(main).result(2.0)


def test_a_limited_group_is_aborted() -> None:
    """Those that wait for their turn never begin, and nobody waits for them."""

    async def main() -> list[str]:
        seen: list[str] = []
        waiting: list[TaskHandle[None]] = []
        try:
            async with polyloop.TaskGroup(limit=1, migratable=True) as group:
                group.create_task(fail(ValueError("child")))
                waiting += [group.create_task(forever()) for _ in range(3)]
        except* ValueError as caught:
            seen = [str(exc) for exc in caught.exceptions]
        assert all(handle.cancelled() for handle in waiting)
        return seen

    with two_loops(shutdown_timeout=0.2) as runtime:
        assert runtime.spawn(main).result(2.0) == ["child"]


@pytest.mark.parametrize("where_from", ["thread", "ordinary", "migratable", "callback"])
def test_spawned_from_anywhere(where_from: str) -> None:
    """A task begins; of a worker's own, on that worker."""

    async def begin() -> str:
        return await polyloop.spawn(where, migratable=True)

    with two_loops() as runtime:
        if where_from == "thread":
            found = in_thread(lambda: runtime.spawn(where, migratable=True).result(PATIENCE))
            assert found in {"polyloop-0", "polyloop-1"}
        elif where_from == "callback":
            handles: list[TaskHandle[str]] = []
            loop = runtime.workers[1].loop
            loop.call_soon_threadsafe(lambda: handles.append(runtime.spawn(where, migratable=True)))
            until(lambda: handles)
            assert handles[0].result(PATIENCE) == "polyloop-1"
        else:
            migratable = where_from == "migratable"
            begun = runtime.spawn(begin, migratable=migratable, on=runtime.workers[1])
            assert begun.result(PATIENCE) == "polyloop-1"


def test_a_future_of_another_loop_is_refused() -> None:
    """The task made it, moved, and awaits it then: it is told so, and lives on."""
    event = polyloop.Event()

    async def task() -> str:
        future = asyncio.get_running_loop().create_future()
        await event.wait()
        with pytest.raises(ForeignLoopError, match=r"polyloop\.pinned"):
            await future
        await polyloop.checkpoint()
        return here()

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        assert from_elsewhere(runtime, handle, event.set) == handle.result(PATIENCE)


def test_a_context_that_another_thread_is_in() -> None:
    """The task fails, and its coroutine is closed at once."""
    context = contextvars.copy_context()
    gate = Gate()
    thread = threading.Thread(target=context.run, args=(gate.hold,))
    thread.start()
    try:
        gate.wait_entered()
        with two_loops() as runtime:
            handle = runtime.spawn(forever, migratable=True, context=context, on=runtime.workers[0])
            with pytest.raises(RuntimeError, match="is already entered"):
                handle.result(PATIENCE)
            assert is_closed(handle.get_coro())
    finally:
        gate.open()
        thread.join()


# Ownership across moves


@pytest.mark.parametrize("make", [polyloop.Lock, polyloop.RLock, lambda: polyloop.RLock(debug=True)])
def test_a_lock_is_held_across_a_move(make: Callable[[], Any]) -> None:
    """It belongs to the task, not to the thread where the task took it."""
    lock, event = make(), polyloop.Event()

    async def task() -> tuple[str, str]:
        before = here()
        async with lock:
            await event.wait()
            assert lock.locked()
            if isinstance(lock, polyloop.RLock):
                async with lock:
                    await polyloop.checkpoint()
            after = here()
        return before, after

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        parked(handle)
        assert not lock.sync.acquire(timeout=0)
        woke = from_elsewhere(runtime, handle, event.set)
        before, after = handle.result(PATIENCE)
        assert before != after == woke
        assert not lock.locked()


def test_a_lock_that_is_taken_twice_is_refused_after_a_move() -> None:
    """The deadlock is seen though it was taken on another thread."""
    lock, event = polyloop.Lock(), polyloop.Event()

    async def task() -> str:
        async with lock:
            await event.wait()
            with pytest.raises(polyloop.DeadlockError):
                await lock.acquire()
        return here()

    with two_loops() as runtime:
        handle = runtime.spawn(task, migratable=True)
        assert from_elsewhere(runtime, handle, event.set) == handle.result(PATIENCE)
        assert not lock.locked()


def test_many_tasks_share_locks_semaphores_and_queues() -> None:
    """Nothing is lost, and nobody is in twice, while they move."""
    lock, semaphore, queue = polyloop.Lock(), polyloop.Semaphore(2), polyloop.Queue[int](3)
    inside = [0]
    total: list[int] = []

    async def produce(count: int) -> None:
        for number in range(count):
            await queue.put(number)
            async with lock:
                inside[0] += 1
                assert inside[0] == 1
                await polyloop.checkpoint()
                inside[0] -= 1

    async def consume(count: int) -> None:
        for _ in range(count):
            async with semaphore:
                total.append(await queue.get())
                await polyloop.checkpoint()

    async def main() -> None:
        async with polyloop.TaskGroup(migratable=True) as group:
            for _ in range(4):
                group.create_task(produce(50))
                group.create_task(consume(50))

    with Runtime(loops=3) as runtime:
        runtime.spawn(main).result(PATIENCE)
        assert sorted(total) == sorted([*range(50)] * 4)
        assert not lock.locked()


# With anyio

anyio = pytest.importorskip("anyio")


def test_anyio_runs_inside() -> None:
    """Task groups, cancel scopes, timeouts, events and threads."""

    async def child(send: Any) -> None:
        async with send:
            for number in range(3):
                await send.send(number)

    async def task() -> dict[str, Any]:
        found: dict[str, Any] = {}
        send, receive = anyio.create_memory_object_stream(0)
        async with anyio.create_task_group() as group:
            group.start_soon(child, send)
            async with receive:
                found["received"] = [each async for each in receive]
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep_forever()
        found["moved on"] = scope.cancelled_caught
        with anyio.move_on_after(0.001) as scope:
            await polyloop.Event().wait()
        found["moved on from ours"] = scope.cancelled_caught
        with anyio.CancelScope() as scope:
            scope.cancel()
            while True:
                await polyloop.checkpoint()
        found["cancelled"] = scope.cancelled_caught
        try:
            with anyio.fail_after(0.001):
                await polyloop.sleep(3600)
        except TimeoutError:
            found["failed"] = True
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            await polyloop.sleep(0.001)
            group.cancel_scope.cancel()
        found["thread"] = await anyio.to_thread.run_sync(lambda: 1)
        found["cancelling"] = me().cancelling()
        return found

    with two_loops() as runtime:
        assert runtime.spawn(task, migratable=True).result(PATIENCE) == {
            "received": [0, 1, 2],
            "moved on": True,
            "moved on from ours": True,
            "cancelled": True,
            "failed": True,
            "thread": 1,
            "cancelling": 0,
        }


@pytest.mark.parametrize("at_once", [False, True])
def test_a_scope_of_anyio_is_cancelled_after_a_move(at_once: bool) -> None:
    """It knows its task by the task, not by the loop. Just after it was entered, its task does not move."""
    event, gate = polyloop.Event(), Gate()

    async def task() -> tuple[bool, str]:
        with anyio.CancelScope() as scope:
            if at_once:
                asyncio.get_running_loop().call_soon(gate.hold)  # before what lets the task go
            await event.wait()
            scope.cancel()
            await polyloop.Event().wait()
        return scope.cancelled_caught, here()

    with two_loops(shutdown_timeout=0.5) as runtime:
        handle = runtime.spawn(task, migratable=True)
        home = handle.worker.name
        if at_once:
            gate.wait_entered()
        else:
            movable(handle)
        woke = from_elsewhere(runtime, handle, event.set)
        gate.open()
        assert handle.result(5) == (True, home if at_once else woke)
        assert woke != home

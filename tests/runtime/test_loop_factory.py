"""Loops that polyloop did not make: plain asyncio ones, uvloop, rloop, and ones that do not work."""

import asyncio
import contextvars
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.runtime.helpers import PATIENCE, forever, held, is_closed, run_program, where, worker_threads

import polyloop
from polyloop import Runtime, UnreliableLoopError
from polyloop._core import _selftest

type Factory = Callable[[], asyncio.AbstractEventLoop]


def _foreign(name: str) -> Factory:
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    module = pytest.importorskip(name)
    return module.new_event_loop  # type: ignore[no-any-return]


@pytest.fixture(params=["asyncio", "uvloop"])
def factory(request: pytest.FixtureRequest) -> Factory:
    """Each kind of foreign loop that can be imported here, and closes what it opens."""
    return _foreign(request.param)


async def crowd(count: int) -> int:
    """Spawn over all loops, nested, and sum up."""

    async def leaf(value: int) -> int:
        await asyncio.sleep(0)
        return value

    async def branch(values: range) -> int:
        async with polyloop.TaskGroup() as group:
            handles = [group.create_task(leaf(value)) for value in values]
        return sum(handle.result() for handle in handles)

    async with polyloop.TaskGroup() as group:
        handles = [group.create_task(branch(range(count))) for _ in range(8)]
    return sum([await handle for handle in handles])


def test_run_on_foreign_loops(factory: Factory) -> None:
    """``run`` with a loop factory: on every loop, nested groups, and threads."""
    assert polyloop.run(crowd(50), loops=3, loop_factory=factory) == 8 * sum(range(50))
    assert polyloop.run(crowd(50), loops=1, loop_factory=factory) == 8 * sum(range(50))


def test_runtime_on_foreign_loops(factory: Factory) -> None:
    """Placement, cancellation, stealing and close work through the fallback."""
    with Runtime(loops=2, loop_factory=factory) as runtime:
        assert runtime.run(crowd(20)) == 8 * sum(range(20))
        names = [runtime.spawn(where, on=worker).result(PATIENCE) for worker in runtime.workers]
        assert names == ["polyloop-0", "polyloop-1"]
        handle = runtime.spawn(forever, on=runtime.workers[1])
        assert handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            handle.result(PATIENCE)
        with held(runtime, runtime.workers[0]):
            assert {runtime.spawn(where).result(PATIENCE) for _ in range(6)} == {"polyloop-1"}
        left = runtime.spawn(forever, on=runtime.workers[0])
        runtime.spawn(where, on=runtime.workers[0]).result(PATIENCE)
    assert left.cancelled()
    assert worker_threads() == []


def test_sys_exit_on_a_foreign_loop(factory: Factory) -> None:
    """SystemExit crosses to the main thread on every kind of loop."""

    async def quit_() -> None:
        raise SystemExit(7)

    async def main() -> None:
        polyloop.spawn(quit_, on=polyloop.current_runtime().workers[1])
        await forever()

    with pytest.raises(SystemExit) as caught:
        polyloop.run(main(), loops=2, loop_factory=factory)
    assert caught.value.code == 7


def test_rloop() -> None:
    """In a process of its own: rloop 0.2 leaves its sockets and its epoll object open when it is closed.

    A SystemExit is not tried: rloop stops at one and forgets it, under ``asyncio.run`` as well.
    """
    pytest.importorskip("rloop")
    ended = run_program(
        """
import rloop

async def where():
    await asyncio.sleep(0)
    return threading.current_thread().name

async def crowd():
    async with polyloop.TaskGroup() as group:
        workers = polyloop.current_runtime().workers
        handles = [group.create_task(where(), on=workers[number % 2]) for number in range(300)]
    return sorted({await handle for handle in handles})

print(polyloop.run(crowd(), loops=2, loop_factory=rloop.new_event_loop))
with polyloop.Runtime(loops=2, loop_factory=rloop.new_event_loop) as rt:
    print(rt.run(crowd()))
    left = rt.spawn(asyncio.sleep, 60, on=rt.workers[1])
    rt.spawn(where, on=rt.workers[1]).result()
print(left.cancelled())
"""
    )
    assert ended.out == "['MainThread', 'polyloop-1']\n['polyloop-0', 'polyloop-1']\nTrue\n"
    assert ended.code == 0


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_factory_that_raises_for_one_worker(failing: int) -> None:
    """The error surfaces as it is, the other workers are stopped, no loop and no thread is left."""
    calls = itertools.count()
    made: list[asyncio.AbstractEventLoop] = []

    def broken() -> asyncio.AbstractEventLoop:
        if next(calls) == failing:
            raise LookupError("no loop today")
        loop = asyncio.SelectorEventLoop()
        made.append(loop)
        return loop

    with pytest.raises(LookupError, match="no loop today"):
        Runtime(loops=3, loop_factory=broken).start()
    assert all(loop.is_closed() for loop in made)
    assert worker_threads() == []

    calls = itertools.count()
    main = forever()
    with pytest.raises(LookupError, match="no loop today"):
        polyloop.run(main, loops=3, loop_factory=broken)
    assert is_closed(main)  # closed
    assert all(loop.is_closed() for loop in made)
    assert worker_threads() == []
    with pytest.raises(polyloop.NoRuntimeError):
        polyloop.current_runtime()


def test_factory_that_raises_under_async_with() -> None:
    """The same on a foreign loop."""

    def broken() -> asyncio.AbstractEventLoop:
        raise LookupError("no loop today")

    async def main() -> None:
        async with Runtime(loops=2, loop_factory=broken):
            raise AssertionError("started")

    with pytest.raises(LookupError, match="no loop today"):
        asyncio.run(main())
    assert worker_threads() == []


def test_factory_that_returns_something_else() -> None:
    """The value and the factory are named."""

    def broken() -> Any:
        return 5

    expected = f"loop_factory must return a new event loop, got 5 from {broken!r}"
    for start in (
        lambda: Runtime(loops=2, loop_factory=broken).start(),
        lambda: polyloop.run(forever(), loops=2, loop_factory=broken),
    ):
        with pytest.raises(TypeError) as caught:
            start()
        assert str(caught.value) == expected
    assert worker_threads() == []


def test_factory_that_returns_one_loop_twice() -> None:
    """The second worker is refused it; nothing hangs."""
    shared = asyncio.SelectorEventLoop()

    def factory() -> asyncio.AbstractEventLoop:
        return shared

    with pytest.raises(TypeError) as caught:
        Runtime(loops=2, loop_factory=factory).start()
    assert re.sub("running=.*debug=", "debug=", str(caught.value)) == (
        f"loop_factory must return a new event loop, got <_UnixSelectorEventLoop debug=False> twice from {factory!r}"
    )
    assert worker_threads() == []
    assert shared.is_closed()


class Sleepy(asyncio.SelectorEventLoop):
    """Loses a wake-up now and then, as uvloop did on free-threaded builds: the callable waits for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = itertools.count()
        self._lost: list[Callable[[], object]] = []

    def call_soon_threadsafe[*Ts](
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if next(self._calls) == 10:
            self._lost.append(lambda: super(Sleepy, self).call_soon_threadsafe(callback, *args, context=context))
            return asyncio.Handle(callback, args, self, context)
        while self._lost:
            self._lost.pop()()
        return super().call_soon_threadsafe(callback, *args, context=context)


def test_loop_that_loses_wakeups_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of the user's runs on it, with the count and the way out."""
    monkeypatch.setattr(_selftest.check_wakeups, "__kwdefaults__", {"timeout": 0.2})
    with pytest.raises(UnreliableLoopError) as caught:
        Runtime(loops=2, loop_factory=Sleepy).start()
    name = f"{Sleepy.__module__}.Sleepy"
    assert str(caught.value) == (
        f"the event loop {name} loses cross-thread wake-ups: of 11 calls of call_soon_threadsafe one was not run"
        " within 0.2 s; use another loop_factory, or none for polyloop's own"
    )

"""``TaskGroup.start_thread``: a sync function as a child like any other."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.helpers import until
from tests.tasks.worlds import RUNS

import polyloop
from polyloop.testing import TestThread

type Run = Callable[[Any], Any]


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a main coroutine: with tasks on another loop, on this one, and without a runtime."""
    return RUNS[request.param]


class Blocked:
    """A sync function that waits, and says when it has begun and how it ended."""

    def __init__(self) -> None:
        self.started = polyloop.Event()
        self.gate = polyloop.Event()
        self.ended: str | None = None

    def __call__(self) -> str:
        self.started.set()
        try:
            self.gate.sync.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "finished"
        return "result"


def test_it_runs_on_a_thread_and_has_a_handle(run: Run) -> None:
    """With the context of its creator, and the name of its function unless it is given one."""
    variable = contextvars.ContextVar("variable", default="unset")

    def work(number: int) -> tuple[int, int, str]:
        return number, threading.get_ident(), variable.get()

    async def main() -> None:
        variable.set("of the creator")
        async with polyloop.TaskGroup() as tg:
            handle = tg.start_thread(work, 3)
            named = tg.start_thread(work, 4, name="four")
            assert handle.get_name().endswith("work")
            assert named.get_name() == "four"
        number, ident, found = handle.result()
        assert (number, found) == (3, "of the creator")
        assert ident != threading.get_ident()
        assert await named == named.result()

    run(main())


def test_its_failure_cancels_the_siblings(run: Run) -> None:
    """On threads, too; and comes out of the group."""
    blocked = Blocked()

    def fail() -> None:
        blocked.started.sync.wait()
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with polyloop.TaskGroup() as tg:
                tg.start_thread(blocked)
                tg.create_task(asyncio.sleep(3600))
                tg.start_thread(fail)
        assert [type(exc) for exc in caught.value.exceptions] == [ZeroDivisionError]
        assert blocked.ended == "cancelled"

    run(main())


@pytest.mark.parametrize("how", ["sibling", "cancel", "handle"])
def test_its_cancellation_reaches_the_function(run: Run, how: str) -> None:
    """Whatever the reason; the group has waited for it."""
    blocked = Blocked()

    async def fail() -> None:
        await blocked.started.wait()
        raise ZeroDivisionError

    handles: list[polyloop.TaskHandle[str]] = []

    async def main() -> None:
        try:
            async with polyloop.TaskGroup() as tg:
                handle = tg.start_thread(blocked)
                handles.append(handle)
                await blocked.started.wait()
                if how == "sibling":
                    tg.create_task(fail())
                elif how == "cancel":
                    tg.cancel()
                else:
                    handle.cancel()
        except ExceptionGroup:
            assert how == "sibling"
        assert blocked.ended == "cancelled"
        assert handles[0].cancelled()

    run(main())


def test_a_function_whose_thread_has_not_begun_is_never_called(run: Run) -> None:
    """It waits for a limiter's token."""
    limiter = polyloop.CapacityLimiter(1)
    first, second = Blocked(), Blocked()

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            tg.start_thread(first, limiter=limiter)
            await first.started.wait()
            handle = tg.start_thread(second, limiter=limiter)
            await asyncio.sleep(0)
            handle.cancel()
            with pytest.raises(asyncio.CancelledError):
                await handle
            first.gate.set()
        assert second.ended is None
        assert limiter.borrowed_tokens == 0

    run(main())


def test_an_abandoned_thread_does_not_hold_the_group_up(run: Run) -> None:
    """``on_cancel`` as with ``to_thread``."""
    started, release = polyloop.Event(), threading.Event()

    def deaf() -> None:
        started.set()
        release.wait(30)

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            tg.start_thread(deaf, on_cancel="abandon")
            await started.wait()
            tg.cancel()
        assert polyloop.thread_pool().abandoned == 1
        release.set()
        until(lambda: polyloop.thread_pool().abandoned == 0)

    run(main())


def test_an_interrupted_thread_ends_with_the_group(run: Run) -> None:
    """A function that never asks and never waits on polyloop."""
    started = threading.Event()

    def busy() -> None:
        started.set()
        while True:
            time.sleep(0)

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            tg.start_thread(busy, on_cancel="interrupt")
            while not started.is_set():
                await asyncio.sleep(0)
            tg.cancel()

    run(main())


def test_it_counts_for_the_limit_of_its_group(run: Run) -> None:
    """One turn as every child."""
    first, second = Blocked(), Blocked()

    async def main() -> None:
        async with polyloop.TaskGroup(limit=1) as tg:
            tg.start_thread(first)
            tg.start_thread(second)
            await first.started.wait()
            assert second.ended is None
            second.gate.set()
            first.gate.set()
        assert [first.ended, second.ended] == ["finished"] * 2

    run(main())


def test_plain_threads_start_threads_in_a_group(run: Run) -> None:
    """Any thread may, while the group is open."""

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            handle = await polyloop.to_thread(TestThread(lambda: tg.start_thread(int, "7")).result)
        assert handle.result() == 7

    run(main())


def test_what_makes_no_sense_is_refused_at_the_call(run: Run) -> None:
    """And nothing is called."""
    called: list[int] = []

    async def main() -> None:
        tg = polyloop.TaskGroup()
        with pytest.raises(RuntimeError, match="has not been entered"):
            tg.start_thread(called.append, 1)
        async with tg:
            with pytest.raises(TypeError, match="sync function"):
                tg.start_thread(asyncio.sleep, 1)
            with pytest.raises(ValueError, match="on_cancel"):
                tg.start_thread(called.append, 1, on_cancel="ignore")  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="is finished"):
            tg.start_thread(called.append, 1)

    run(main())
    assert called == []

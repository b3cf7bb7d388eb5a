"""``race`` and ``first_success``: who decides, and what becomes of the others."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.helpers import until
from tests.tasks.worlds import RUNS, Event

import polyloop
from polyloop.testing import TestLoop

type Run = Callable[[Any], Any]


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a main coroutine: with tasks on another loop, on this one, and without a runtime."""
    return RUNS[request.param]


@pytest.fixture
def home() -> Iterator[TestLoop]:
    """A loop whose errors a test may take."""
    with TestLoop("home") as loop:
        yield loop


class Runner:
    """A coroutine that waits for its gate, then returns or raises; it says when it has begun and how it ended."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.started, self.gate = Event(), Event()
        self.ended: str | None = None

    async def __call__(self) -> Any:
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.ended = "cancelled"
            raise
        self.ended = "finished"
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


VERBS = {"race": polyloop.race, "first_success": polyloop.first_success}


@pytest.mark.parametrize("verb", VERBS)
def test_the_first_one_decides_and_the_others_are_cancelled(run: Run, verb: str) -> None:
    """They have ended when the result is there."""
    runners = [Runner(number) for number in range(3)]

    async def main() -> Any:
        racing = asyncio.ensure_future(VERBS[verb](*(runner() for runner in runners)))
        for runner in runners:
            await runner.started.wait()
        runners[1].gate.set()
        return await racing

    assert run(main()) == 1
    assert [runner.ended for runner in runners] == ["cancelled", "finished", "cancelled"]


def test_a_failure_decides_a_race(run: Run) -> None:
    """It is raised, when the others have ended."""
    runners = [Runner(0), Runner(ValueError("first"))]

    async def main() -> None:
        racing = asyncio.ensure_future(polyloop.race(*(runner() for runner in runners)))
        for runner in runners:
            await runner.started.wait()
        runners[1].gate.set()
        with pytest.raises(ValueError, match="first"):
            await racing

    run(main())
    assert runners[0].ended == "cancelled"


def test_failures_do_not_decide_who_is_first_to_succeed(run: Run) -> None:
    """They are told to the loop, in case that somebody wants to know."""
    runners = [Runner(ValueError("too bad")), Runner(1), Runner(2)]

    async def main() -> Any:
        racing = asyncio.ensure_future(polyloop.first_success(*(runner() for runner in runners)))
        for runner in runners:
            await runner.started.wait()
        runners[0].gate.set()
        while runners[0].ended is None:
            await asyncio.sleep(0)
        runners[2].gate.set()
        return await racing

    assert run(main()) == 2
    assert [runner.ended for runner in runners] == ["finished", "cancelled", "finished"]


def test_when_all_have_failed_their_exceptions_come_together(run: Run) -> None:
    """In the order of the arguments; a cancelled one is among them."""
    runners = [Runner(ValueError(0)), Runner(asyncio.CancelledError()), Runner(KeyError(2))]

    async def main() -> None:
        for runner in reversed(runners):
            runner.gate.set()
        with pytest.raises(BaseExceptionGroup, match="all have failed") as caught:
            await polyloop.first_success(*(runner() for runner in runners))
        kinds = [type(exc).__name__ for exc in caught.value.exceptions]
        assert kinds == ["ValueError", "CancelledError", "KeyError"]
        with pytest.raises(ExceptionGroup):
            await polyloop.first_success(runners[0](), runners[2]())

    run(main())


@pytest.mark.parametrize("verb", VERBS)
def test_nobody_cannot_be_first(run: Run, verb: str) -> None:
    """An error that says so, instead of a wait for ever."""

    async def main() -> None:
        with pytest.raises(ValueError, match=rf"{verb}\(\) needs at least one"):
            await VERBS[verb]()

    run(main())


@pytest.mark.parametrize("verb", VERBS)
def test_handles_tasks_and_futures_run_in_a_race_too(run: Run, verb: str) -> None:
    """Also one that has ended before; the same one twice is one."""
    runners = [Runner(number) for number in range(3)]

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            handle, task = tg.create_task(runners[0]()), asyncio.ensure_future(runners[1]())
            future = asyncio.get_running_loop().create_future()
            future.set_result("there already")
            assert await VERBS[verb](handle, task, future, future) == "there already"
            assert handle.cancelled()
            assert task.cancelled()

    run(main())


@pytest.mark.parametrize("verb", VERBS)
def test_a_cancelled_race_cancels_all_and_waits(run: Run, verb: str) -> None:
    """Further cancellations do not end the wait; the first one is raised."""
    runners = [Runner(number) for number in range(2)]
    cleaning, release = Event(), Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaning.set()
            await release.wait()

    async def main() -> None:
        racing = asyncio.ensure_future(VERBS[verb](*(runner() for runner in runners), stubborn()))
        for runner in runners:
            await runner.started.wait()
        await asyncio.sleep(0)
        racing.cancel("first")
        if not await begun(cleaning, racing):
            return
        racing.cancel("second")
        await asyncio.sleep(0)
        assert not racing.done()
        release.set()
        with pytest.raises(asyncio.CancelledError, match="first"):
            await racing

    async def begun(event: Event, racing: Any) -> bool:
        """Whether the stubborn one had begun, and so has to be waited for."""
        waiting = asyncio.ensure_future(event.wait())
        await asyncio.wait([waiting, racing], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return True
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError, match="first"):
            await racing
        return False

    run(main())
    assert [runner.ended for runner in runners] == ["cancelled", "cancelled"]


def test_a_race_cancelled_while_the_losers_end_is_cancelled(run: Run) -> None:
    """A result that nobody may have any more."""
    cleaning, release, started = Event(), Event(), Event()

    async def winner() -> int:
        await started.wait()
        return 1

    async def stubborn() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaning.set()
            await release.wait()

    async def main() -> None:
        racing = asyncio.ensure_future(polyloop.race(winner(), stubborn()))
        await cleaning.wait()
        racing.cancel("late")
        await asyncio.sleep(0)
        assert not racing.done()
        release.set()
        with pytest.raises(asyncio.CancelledError, match="late"):
            await racing

    run(main())


def test_failures_of_losers_are_reported_once(home: TestLoop) -> None:
    """They gave way to a result."""

    async def winner() -> int:
        await asyncio.sleep(0)
        return 1

    async def loser(number: int) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError(number)

    assert home.run(polyloop.race, winner(), loser(1), loser(2)) == 1
    [context] = home.take_errors()
    assert [str(exc) for exc in context["exception"].exceptions] == ["1", "2"]


def test_a_race_leaves_no_cycle_behind() -> None:
    """What the frames of a failed one hold is free when its exception is dropped, without the garbage collector."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Thing:
        pass

    async def fail() -> None:
        thing = Thing()
        alive.add(thing)
        raise ValueError

    async def main() -> None:
        with contextlib.suppress(ValueError):
            await polyloop.race(fail())
        with contextlib.suppress(ExceptionGroup):
            await polyloop.first_success(fail(), fail())

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        until(lambda: not alive)
    finally:
        gc.enable()

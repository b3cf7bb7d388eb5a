"""``as_completed``: as asyncio's, with coroutines on all loops."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from tests.tasks.worlds import RUNS, Event

import polyloop
from polyloop.tasks import Progress

type Run = Callable[[Any], Any]


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a main coroutine: with tasks on another loop, on this one, and without a runtime."""
    return RUNS[request.param]


@pytest.fixture(params=[None, 2])
def limit(request: pytest.FixtureRequest) -> int | None:
    """Without a limit, and with one."""
    found: int | None = request.param
    return found


class Chain:
    """Coroutines that end one after the other: number n when n - 1 was told that it has."""

    def __init__(self, count: int) -> None:
        self.gates = [Event() for _ in range(count)]

    async def __call__(self, number: int) -> int:
        await self.gates[number].wait()
        return number


def test_handles_come_as_they_end(run: Run, limit: int | None) -> None:
    """``async for`` yields the handles of coroutines, and tasks and handles as they were given."""
    chain = Chain(4)

    async def main() -> None:
        task = asyncio.create_task(chain(1))
        handle = polyloop.TaskGroup()
        async with handle as tg:
            given = tg.create_task(chain(0))
            aws: list[Any] = [chain(3), chain(2), task, given]
            seen: list[Any] = []
            chain.gates[0].set()
            async for ended in polyloop.as_completed(aws, limit=limit):
                assert ended.done()
                seen.append(ended)
                number = await ended
                assert number == len(seen) - 1
                if number < 3:
                    chain.gates[number + 1].set()
        assert seen[:2] == [given, task]

    run(main())


def test_coroutines_come_as_well(run: Run, limit: int | None) -> None:
    """The plain ``for``: each gives the next result."""
    chain = Chain(3)

    async def main() -> list[int]:
        seen = []
        chain.gates[2].set()
        for waiting in polyloop.as_completed([chain(1), chain(2), chain(0)], limit=limit and 3):
            assert inspect.iscoroutine(waiting)
            number = await waiting
            seen.append(number)
            if number:
                chain.gates[number - 1].set()
        return seen

    assert run(main()) == [2, 1, 0]


def test_a_limit_lets_so_many_run(run: Run) -> None:
    """Without which the first one would wait for ever for the third."""
    running: list[int] = []

    async def child(number: int) -> int:
        running.append(number)
        assert len(running) == 1
        await asyncio.sleep(0)
        running.remove(number)
        return number

    async def main() -> list[int]:
        return [await ended async for ended in polyloop.as_completed(map(child, range(20)), limit=1)]

    # The next one may begin, and end, before the news of the last one has come from its loop.
    assert sorted(run(main())) == list(range(20))


def test_failures_belong_to_whoever_awaits_them(run: Run, limit: int | None) -> None:
    """The iteration goes on."""

    async def fail(number: int) -> int:
        if number:
            raise ValueError(number)
        return number

    async def main() -> None:
        results = [
            await asyncio.gather(ended, return_exceptions=True)
            async for ended in polyloop.as_completed([fail(0), fail(1)], limit=limit)
        ]
        assert sorted(map(repr, results)) == ["[0]", "[ValueError(1)]"]

    run(main())


def test_time_runs_out_for_all_of_them(run: Run, limit: int | None) -> None:
    """``TimeoutError`` from both kinds of iteration; what runs goes on."""
    chain = Chain(4)

    async def main() -> None:
        first = polyloop.as_completed([chain(0), chain(1)], timeout=0.01, limit=limit)
        with pytest.raises(TimeoutError):
            await anext(first)
        second = polyloop.as_completed([chain(2), chain(3)], timeout=0.01, limit=limit)
        for waiting in second:
            with pytest.raises(TimeoutError):
                await waiting
        for gate in chain.gates:
            gate.set()

    run(main())


def test_what_makes_no_sense_is_refused(run: Run) -> None:
    """And nothing is left unawaited."""
    chain = Chain(1)

    async def main() -> None:
        wrong: Any
        for wrong in (chain(0), None):
            with pytest.raises(TypeError):
                polyloop.as_completed(wrong)
        with pytest.raises(TypeError):
            polyloop.as_completed([None, chain(0)])  # type: ignore[list-item]
        assert [ended async for ended in polyloop.as_completed([])] == []  # type: ignore[var-annotated]

    run(main())
    coro = chain(0)
    with pytest.raises(RuntimeError, match="no running event loop"):
        polyloop.as_completed([coro])
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


@pytest.mark.parametrize("verb", ["gather", "as_completed"])
def test_progress_is_told_of_each_end(run: Run, limit: int | None, verb: str) -> None:
    """Once for each, with the total, before the last result is handed out."""
    told: list[Progress] = []

    async def child(number: int) -> int:
        await asyncio.sleep(0)
        if number == 3:
            raise ValueError(number)
        return number

    async def main() -> None:
        aws = [child(number) for number in range(5)]
        if verb == "gather":
            await polyloop.gather(*aws, return_exceptions=True, limit=limit, progress=told.append)
        else:
            async for ended in polyloop.as_completed(aws, limit=limit, progress=told.append):
                await asyncio.gather(ended, return_exceptions=True)

    run(main())
    assert [progress.done for progress in told] == [1, 2, 3, 4, 5]
    assert told[-1] == Progress(5, 1, 5)
    assert {progress.total for progress in told} == {5}

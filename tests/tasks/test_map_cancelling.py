"""``map`` that does not come to its end: failures, cancellations at every moment, leaving early, closing runtimes."""

import asyncio
import contextlib
import gc
import itertools
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.helpers import cancel_amid, until
from tests.tasks.maps import LANES, Calls, Lane, make_lane
from tests.tasks.worlds import RUNS

import polyloop
from polyloop.offload import ThreadPool
from polyloop.testing import Gate, TestLoop

type Run = Callable[[Any], Any]

CANCELLED = [(0, "CancelledError"), (1, "CancelledError")]


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a main coroutine: with tasks on another loop, on this one, and without a runtime."""
    return RUNS[request.param]


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> Iterator[Lane]:
    """Calls as tasks, on threads, and on an executor."""
    with make_lane(request.param) as made:
        yield made


@pytest.fixture
def home() -> Iterator[TestLoop]:
    """A loop that can be held still."""
    with TestLoop("home") as loop:
        yield loop


async def collect(results: polyloop.tasks.MapResults[Any], into: list[Any]) -> None:
    async for result in results:
        into.append(result)  # noqa: PERF401 - one by one, up to the failure


def roused(pool: ThreadPool) -> bool:
    """Let the idle threads of the pool run: what they made and others dropped is freed by themselves."""
    count = pool.idle
    all_there = threading.Barrier(count + 1)

    class Job:
        def execute(self) -> None:
            all_there.wait(30)

        def announce(self) -> None: ...

    for _ in range(count):
        pool.submit(Job())
    all_there.wait(30)
    return True


# Failures


def failing_at(*items: int) -> Callable[[int], Generator[polyloop.Event, None, int]]:
    def steps(item: int) -> Generator[polyloop.Event, None, int]:
        yield from ()
        if item in items:
            raise ValueError(item)
        return item * 10

    return steps


@pytest.mark.parametrize("ordered", [True, False])
def test_a_failure_is_raised_at_its_place(run: Run, lane: Lane, ordered: bool) -> None:
    """What came before was yielded; the map has ended."""
    seen: list[int] = []

    async def main() -> None:
        results = lane.map(failing_at(5), range(10), limit=1, ordered=ordered)
        with pytest.raises(ValueError, match="5") as caught:
            await collect(results, seen)
        assert "steps" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert [result async for result in results] == []

    run(main())
    assert seen == [0, 10, 20, 30, 40]


def test_a_failure_cancels_what_runs_and_waits_for_it(run: Run, lane: Lane) -> None:
    """Nothing new begins either."""
    calls = Calls(0, 1)

    def steps(item: int) -> Generator[polyloop.Event, None, int]:
        if item == 2:
            yield calls.started[0]
            yield calls.started[1]
            raise ValueError(item)
        result: int = yield from calls(item)
        return result

    async def main() -> None:
        with pytest.raises(ValueError, match="2"):
            async for _ in lane.map(steps, itertools.count(), limit=3, ordered=False):
                pass
        assert sorted(calls.cancelled) == CANCELLED
        assert sorted(calls.ended) == [0, 1]

    run(main())
    assert sorted(calls.begun) == [0, 1]


def test_an_early_failure_of_a_late_item_lets_the_earlier_ones_end(run: Run, lane: Lane) -> None:
    """Their results come first; but nothing new begins."""
    calls = Calls(0)
    seen: list[int] = []

    def steps(item: int) -> Generator[polyloop.Event, None, int]:
        if item == 1:
            yield calls.started[0]
            raise ValueError(item)
        result: int = yield from calls(item)
        return result

    async def main() -> None:
        results = lane.map(steps, itertools.count(), limit=2)
        consumer = asyncio.create_task(collect(results, seen))
        await calls.all_started()
        while results._stream is not None and not results._stream._board.stopped:
            await asyncio.sleep(0)
        calls.gates[0].set()
        with pytest.raises(ValueError, match="1"):
            await consumer

    run(main())
    assert seen == [0]
    assert calls.begun == [0]


def test_exceptions_are_yielded_if_asked_for(run: Run, lane: Lane) -> None:
    """In their places, cancellations too; the map goes on."""

    def steps(item: int) -> Generator[polyloop.Event, None, int]:
        yield from ()
        if item % 2:
            raise ValueError(item) if item == 1 else asyncio.CancelledError
        return item

    async def main() -> list[Any]:
        return [result async for result in lane.map(steps, range(5), return_exceptions=True)]

    results = run(main())
    assert [type(result).__name__ for result in results] == ["int", "ValueError", "int", "CancelledError", "int"]


def test_a_call_that_wants_to_exit_is_raised_all_the_same() -> None:
    """``SystemExit`` of a thread belongs to the consumer, and is no result."""

    def leave(item: int) -> None:
        raise SystemExit(3)

    async def main() -> None:
        with pytest.raises(SystemExit):
            async for _ in polyloop.map(leave, [1], return_exceptions=True):
                pass

    asyncio.run(main())


def test_further_failures_are_reported_once(home: TestLoop) -> None:
    """Of two that fail at once the consumer gets one; nothing is lost, and nothing is said twice."""
    both = threading.Barrier(2)

    def fail(item: int) -> None:
        both.wait(30)
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        home.run(collect, polyloop.map(fail, range(2), limit=2), [])
    [context] = home.take_errors()
    assert [str(exc) for exc in context["exception"].exceptions] == ["1"]


def test_a_failure_leaves_no_cycle_behind(run: Run, lane: Lane) -> None:
    """What the frames of a failed call hold is free when its exception is dropped, without the garbage collector."""
    if lane.name == "tasks" and sys.version_info < (3, 13, 15):
        pytest.skip("a task of CPython 3.13.0 on another loop keeps its frames until a collection; 3.13.15's does not")
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Thing:
        pass

    def steps(item: int) -> Generator[polyloop.Event]:
        thing = Thing()
        alive.add(thing)
        yield from ()
        raise ValueError(item)

    async def main() -> None:
        with contextlib.suppress(ValueError):
            async for _ in lane.map(steps, [0], limit=1):
                pass

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            run(main())
        for executor in lane.options.values():
            executor.shutdown()
        until(lambda: roused(polyloop.thread_pool()) and not alive)
    finally:
        gc.enable()


def test_a_thread_that_cannot_be_started_fails_the_map(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer hears of it, instead of waiting for ever."""
    pool = polyloop.thread_pool()

    def refuse(job: object) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        monkeypatch.setattr(pool, "submit", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            async for _ in polyloop.map(abs, range(10)):
                pass

    run(main())


# Sources that fail


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_failing_source_is_raised_after_the_results_of_what_it_gave(
    run: Run, lane: Lane, asynchronous: bool, ordered: bool
) -> None:
    """Also if they take long."""
    calls = Calls(0)
    seen: list[int] = []

    def source() -> Iterator[int]:
        yield from range(3)
        raise ZeroDivisionError("of the source")

    async def slow_source() -> AsyncIterator[int]:
        for item in range(3):
            await asyncio.sleep(0)
            yield item
        raise ZeroDivisionError("of the source")

    async def main() -> None:
        results = lane.map(calls, slow_source() if asynchronous else source(), ordered=ordered)
        consumer = asyncio.create_task(collect(results, seen))
        await calls.all_started()
        calls.gates[0].set()
        with pytest.raises(ZeroDivisionError, match="of the source") as caught:
            await consumer
        assert "source" in traceback.extract_tb(caught.value.__traceback__)[-1].name

    run(main())
    assert sorted(seen) == [0, 10, 20]


def test_a_source_that_is_left_hears_of_it(run: Run, lane: Lane) -> None:
    """An asynchronous source that waits is cancelled, and waited for."""
    left: list[str] = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            left.append("cancelled")
            raise

    async def main() -> None:
        async with lane.map(failing_at(), source()) as results:
            assert await anext(results) == 10
        assert left == ["cancelled"]

    run(main())


def test_a_source_that_is_left_before_its_first_step(run: Run, lane: Lane) -> None:
    """Its reader was made and cancelled in one step: nobody waits for it for ever."""

    async def source() -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        results = lane.map(failing_at(), source())
        consumer = asyncio.create_task(collect(results, []))
        await asyncio.sleep(0)  # it has begun, the reader has not
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer

    run(main())


# Cancellations of the consumer


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_cancelled_consumer_cancels_all_and_waits(run: Run, lane: Lane, asynchronous: bool) -> None:
    """Calls that run are cancelled; those that wait their turn never begin."""
    calls = Calls(0, 1)

    async def slowly() -> AsyncIterator[int]:
        for item in itertools.count():
            await asyncio.sleep(0)
            yield item

    async def main() -> None:
        items: Any = slowly() if asynchronous else itertools.count()
        consumer = asyncio.create_task(collect(lane.map(calls, items, limit=2), []))
        await calls.all_started()
        consumer.cancel("why")
        with pytest.raises(asyncio.CancelledError, match="why"):
            await consumer
        assert sorted(calls.cancelled) == CANCELLED
        assert sorted(calls.ended) == [0, 1]

    run(main())
    assert sorted(calls.begun) == [0, 1]


def test_a_consumer_cancelled_before_any_call_has_begun_calls_nothing(run: Run) -> None:
    """They wait for a thread: they are withdrawn, and nobody waits for them."""
    pool = polyloop.thread_pool()
    calls = Calls(0)
    lane = Lane("threads")
    busy, free = threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        free.wait(30)

    async def main() -> None:
        until(lambda: pool.threads == pool.idle)
        before, pool.max_threads = pool.max_threads, 1
        pool.end_idle(30)
        pool._ending = False
        blocker = asyncio.create_task(polyloop.to_thread(occupy))
        try:
            while not busy.is_set():
                await asyncio.sleep(0)
            consumer = asyncio.create_task(collect(lane.map(calls, range(5)), []))
            while not pool.queued:
                await asyncio.sleep(0)
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            assert pool.queued == 0
        finally:
            pool.max_threads = before
            free.set()
            await blocker

    run(main())
    assert calls.begun == []


def test_an_executor_that_has_begun_nothing_is_left_at_once(run: Run) -> None:
    """Its futures are cancelled."""
    calls = Calls(0)
    free = threading.Event()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            executor.submit(free.wait, 30)
            results = polyloop.map(Lane("executor").fn(calls), range(5), on=executor)
            consumer = asyncio.create_task(collect(results, []))
            while not executor._work_queue.qsize():
                await asyncio.sleep(0)
            consumer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await consumer
            free.set()

    run(main())
    assert calls.begun == []


def test_tasks_that_have_not_begun_never_do() -> None:
    """Their loop was busy when they were cancelled."""
    calls = Calls(0)
    gate = Gate("worker 1")

    async def main() -> None:
        worker = polyloop.current_runtime().workers[1]
        worker.post(gate.pause)
        results = polyloop.map(Lane("tasks").fn(calls), range(5), on=worker)
        consumer = asyncio.create_task(collect(results, []))
        while not worker.pinned:
            await asyncio.sleep(0)
        consumer.cancel()
        await asyncio.sleep(0)
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await consumer

    polyloop.run(main(), loops=2)
    assert calls.begun == []


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_a_consumer_cancelled_as_a_call_ends(home: TestLoop, lane: Lane, cancelled_first: bool) -> None:
    """In either order it ends cancelled, and everything has ended."""
    calls = Calls(0, 1)
    doomed = home.spawn(collect, lane.map(calls, itertools.count(), limit=2), [])
    for event in calls.started.values():
        assert event.sync.wait(30)

    def end_first_call() -> None:
        calls.gates[0].set()
        if lane.name != "tasks":
            until(lambda: 0 in calls.ended)

    cancel_amid(home, doomed, end_first_call, cancelled_first)
    assert set(calls.begun) == set(calls.ended)
    assert (1, "CancelledError") in calls.cancelled


def test_a_second_cancellation_does_not_end_the_wait(run: Run) -> None:
    """The first one is raised, when all has ended."""
    started, cleaning, release = polyloop.Event(), polyloop.Event(), polyloop.Event()
    ended: list[int] = []

    async def stubborn(item: int) -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaning.set()
            await release.wait()
            ended.append(item)

    async def main() -> None:
        consumer = asyncio.create_task(collect(polyloop.map(stubborn, [1]), []))
        await started.wait()
        consumer.cancel("first")
        await cleaning.wait()
        for _ in range(3):
            consumer.cancel("second")
            await asyncio.sleep(0)
        assert not consumer.done()
        release.set()
        with pytest.raises(asyncio.CancelledError, match="first"):
            await consumer
        assert ended == [1]

    run(main())


def test_closing_goes_on_when_it_is_cancelled(run: Run) -> None:
    """And then the cancellation is raised."""
    started, cleaning, release = polyloop.Event(), polyloop.Event(), polyloop.Event()
    ended: list[int] = []

    async def stubborn(item: int) -> int:
        if item:
            started.set()
            try:
                await asyncio.sleep(3600)
            finally:
                cleaning.set()
                await release.wait()
                ended.append(item)
        return item

    async def close_it() -> None:
        async with polyloop.map(stubborn, [0, 1]) as results:
            assert await anext(results) == 0
            await started.wait()

    async def main() -> None:
        closer = asyncio.create_task(close_it())
        await cleaning.wait()
        closer.cancel("while closing")
        await asyncio.sleep(0)
        assert not closer.done()
        release.set()
        with pytest.raises(asyncio.CancelledError, match="while closing"):
            await closer
        assert ended == [1]

    run(main())


def test_a_call_that_ignores_its_cancellation_changes_nothing(run: Run, lane: Lane) -> None:
    """Its result is dropped; the consumer is cancelled."""
    started = polyloop.Event()
    never = polyloop.Event()

    def steps(item: int) -> Generator[polyloop.Event, None, int]:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            yield never
        return item

    async def main() -> None:
        consumer = asyncio.create_task(collect(lane.map(steps, [1, 2, 3], limit=1), []))
        await started.wait()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer

    run(main())


# Leaving early


@pytest.mark.parametrize("how", ["break", "raise", "with"])
def test_leaving_the_loop_cancels_what_runs(run: Run, lane: Lane, how: str) -> None:
    """With ``async with`` it is waited for, too."""
    calls = Calls(1, 2)
    waited: list[bool] = []

    async def main() -> None:
        if how == "with":
            async with lane.map(calls, range(3), limit=3) as results:
                async for result in results:
                    assert result == 0
                    await calls.all_started()
                    break
            waited.append(sorted(calls.ended) == [0, 1, 2])
        else:
            with contextlib.suppress(ZeroDivisionError):
                async for result in lane.map(calls, range(3), limit=3):
                    assert result == 0
                    await calls.all_started()
                    if how == "break":
                        break
                    raise ZeroDivisionError
        while sorted(calls.ended) != [0, 1, 2]:
            await asyncio.sleep(0)

    run(main())
    assert waited == [True] * (how == "with")
    assert sorted(calls.cancelled) == [(1, "CancelledError"), (2, "CancelledError")]


def test_an_iterator_dropped_on_another_thread(home: TestLoop, lane: Lane) -> None:
    """Its end is a message to its own loop."""
    calls = Calls(1)
    results = [lane.map(calls, itertools.count(), limit=2)]

    async def first() -> None:
        assert await anext(results[0]) == 0
        await calls.all_started()

    home.run(first)
    results.clear()
    gc.collect()
    until(lambda: set(calls.begun) == set(calls.ended))
    assert calls.cancelled == [(1, "CancelledError")]
    home.wait_all_blocked()


def test_failures_after_the_loop_was_left_are_reported(home: TestLoop, lane: Lane) -> None:
    """To the loop's exception handler: nobody else is there."""
    started, never = polyloop.Event(), polyloop.Event()

    def steps(item: int) -> Generator[polyloop.Event, None, int]:
        if item:
            started.set()
            try:
                yield never
            except asyncio.CancelledError:
                raise ValueError(item) from None
        return item

    async def leave() -> None:
        async for _ in lane.map(steps, range(2)):
            await started.wait()
            break

    home.run(leave)
    errors: list[Any] = []

    def reported() -> bool:
        home.wait_all_blocked()
        errors.extend(home.take_errors())
        return bool(errors)

    until(reported)
    assert [str(exc) for exc in errors[0]["exception"].exceptions] == ["1"]


def test_a_thread_left_behind_by_an_iterator_is_counted(run: Run) -> None:
    """Nobody waits for it: it is abandoned until it ends."""
    pool = polyloop.thread_pool()
    started, release = threading.Event(), threading.Event()

    def deaf(item: int) -> int:
        if item:
            started.set()
            release.wait(30)
        return item

    async def main() -> None:
        async for _ in polyloop.map(deaf, range(2), limit=2):
            while not started.is_set():
                await asyncio.sleep(0)
            break
        while pool.abandoned != 1:
            await asyncio.sleep(0)
        release.set()
        while pool.abandoned:
            await asyncio.sleep(0)

    run(main())


def test_a_runtime_that_closes_ends_the_maps_on_it(lane: Lane) -> None:
    """The consumer is cancelled, and so are the calls; nothing is stuck."""
    calls = Calls(0, 1)
    with polyloop.Runtime(loops=2) as runtime:
        handle = runtime.spawn(collect, lane.map(calls, itertools.count(), limit=2), [])
        for event in calls.started.values():
            assert event.sync.wait(30)
        report = runtime.close()
    assert report.stuck == ()
    assert handle.cancelled()
    assert sorted(calls.cancelled) == CANCELLED


def test_a_runtime_that_has_closed_refuses_the_calls() -> None:
    """A consumer on a loop of its own hears of it as the failure of the next call."""
    first_done = polyloop.Event()

    async def call(item: int) -> int:
        return item

    async def main() -> None:
        runtime = polyloop.Runtime(loops=1)
        async with runtime, polyloop.map(call, itertools.count(), limit=1) as results:
            assert await anext(results) == 0
            first_done.set()
            await asyncio.to_thread(runtime.close)
            with pytest.raises((polyloop.RuntimeClosedError, asyncio.CancelledError)):
                async for _ in results:
                    pass

    asyncio.run(main())

"""``map``: what it yields, what runs at once, how much it takes from its source, and what it refuses."""

import asyncio
import contextvars
import functools
import gc
import itertools
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from tests.helpers import until
from tests.tasks.maps import LANES, Calls, Lane, Log, make_lane
from tests.tasks.worlds import RUNS

import polyloop
from polyloop._core import _prims
from polyloop.tasks import Progress, _map
from polyloop.tasks._map_stream import MAX_AHEAD

type Run = Callable[[Any], Any]


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a main coroutine: with tasks on another loop, on this one, and without a runtime."""
    return RUNS[request.param]


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> Iterator[Lane]:
    """Calls as tasks, on threads, and on an executor."""
    with make_lane(request.param) as made:
        yield made


def at_once(item: Any) -> Generator[polyloop.Event, None, Any]:
    yield from ()
    return item * 10


async def slowly(items: Any) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


class Sequence:
    """The old protocol of iteration."""

    def __getitem__(self, index: int) -> int:
        if index == 40:
            raise IndexError
        return index


SOURCES: dict[str, Callable[[], Any]] = {
    "range": lambda: range(40),
    "generator": lambda: (item for item in range(40)),
    "async generator": lambda: slowly(range(40)),
    "sequence": Sequence,
    "set": lambda: set(range(40)),
}


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("limit", [None, 1, 2, 100])
def test_every_item_gives_its_result(run: Run, lane: Lane, source: str, ordered: bool, limit: int | None) -> None:
    """Once each, in the order of the items if asked for."""

    async def main() -> list[int]:
        results = lane.map(at_once, SOURCES[source](), ordered=ordered, limit=limit)
        return [result async for result in results]

    results = run(main())
    assert (results if ordered else sorted(results)) == [item * 10 for item in range(40)]


def test_no_items_give_no_results(run: Run, lane: Lane) -> None:
    """And an iterator that has ended says so again."""

    async def main() -> None:
        sources: list[Any] = [[], slowly([])]
        for source in sources:
            results = lane.map(at_once, source)
            assert [result async for result in results] == []
            with pytest.raises(StopAsyncIteration):
                await anext(results)
            await results.aclose()

    run(main())


def test_unordered_results_come_as_they_are_ready(run: Run, lane: Lane) -> None:
    """A slow call holds up nobody."""
    calls = Calls(0)

    async def main() -> list[int]:
        seen = []
        async for result in lane.map(calls, range(4), ordered=False, limit=2):
            seen.append(result)
            if len(seen) == 3:
                calls.gates[0].set()
        return seen

    assert run(main()) == [10, 20, 30, 0]


def test_ordered_results_wait_for_the_first(run: Run, lane: Lane) -> None:
    """The others go on meanwhile, and are kept."""
    calls = Calls(0, 3)

    async def main() -> list[int]:
        results = lane.map(calls, range(4), limit=2)
        first = asyncio.ensure_future(anext(results))
        await calls.started[3].wait()  # 1 and 2 have come and gone
        assert not first.done()
        calls.gates[0].set()
        calls.gates[3].set()
        return [await first, *[result async for result in results]]

    assert run(main()) == [0, 10, 20, 30]


@pytest.mark.parametrize("limit", [1, 3])
def test_as_many_calls_run_as_the_limit_says(run: Run, lane: Lane, limit: int) -> None:
    """Not one more, and not one less when there is enough to do."""
    gate = polyloop.Event()
    log = Log()

    def steps(item: int) -> Generator[polyloop.Event, None, int]:
        log.begin(item)
        if len(log.begun) >= limit:
            gate.set()
        yield gate
        log.end(item)
        return item

    async def main() -> None:
        assert [result async for result in lane.map(steps, range(50), limit=limit)] == list(range(50))

    run(main())
    assert log.peak == limit


def test_few_items_are_taken_while_calls_are_slow(run: Run, lane: Lane) -> None:
    """As many as run, and as many that are at hand when one of those ends."""
    calls = Calls(0, 1)
    taken = itertools.count()

    async def main() -> None:
        async with lane.map(calls, taken, limit=2) as results:
            first = asyncio.ensure_future(anext(results))
            await calls.all_started()
            assert next(taken) == 4
            calls.gates[0].set()
            assert await first == 0

    run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_endless_source_is_taken_no_faster_than_its_results(run: Run, lane: Lane, asynchronous: bool) -> None:
    """What was taken and not yielded is bounded, and so is what is alive; at the end nothing is."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    limit, count, most = 2, 3000, 0

    class Item:
        def __init__(self, number: int) -> None:
            self.number = number
            alive.add(self)

        def __mul__(self, factor: int) -> int:
            return self.number * factor

    async def main() -> None:
        nonlocal most
        number = 0
        items = map(Item, itertools.count())
        source = slowly(items) if asynchronous else items
        async with lane.map(at_once, source, limit=limit) as results:
            async for result in results:
                assert result == number * 10
                number += 1
                most = max(most, len(alive))
                if number == count:
                    break

    run(main())
    assert most <= limit + MAX_AHEAD + 2  # one is in the source's hand, one in the consumer's
    gc.collect()
    until(lambda: not alive)  # the threads let go of theirs


def test_nothing_happens_before_the_first_result_is_asked_for(run: Run, lane: Lane) -> None:
    """An iterator that nobody uses takes nothing, and may be dropped or closed."""
    taken = itertools.count()

    async def main() -> None:
        results = lane.map(at_once, taken)
        await asyncio.sleep(0)
        await results.aclose()
        assert [result async for result in results] == []
        async with lane.map(at_once, taken):
            pass
        lane.map(at_once, taken)

    run(main())
    assert next(taken) == 0


# Functions


class AsyncCallable:
    async def __call__(self, item: int) -> int:
        return item + 1


class SyncCallable:
    def __call__(self, item: int) -> int:
        return item + 1


async def add_async(number: int, item: int) -> int:
    await asyncio.sleep(0)
    return number + item


def add(number: int, item: int) -> int:
    return number + item


FUNCTIONS: dict[str, tuple[Any, bool]] = {
    "object with async __call__": (AsyncCallable(), True),
    "object with __call__": (SyncCallable(), False),
    "partial of async": (functools.partial(add_async, 1), True),
    "partial of partial of async": (functools.partial(functools.partial(add_async), 1), True),
    "partial": (functools.partial(add, 1), False),
    "partial of object with async __call__": (functools.partial(AsyncCallable()), True),
    "bound method": (AsyncCallable().__call__, True),
    "builtin": ((1).__add__, False),
    "async_wrap": (polyloop.async_wrap(functools.partial(add, 1)), True),
    "lambda": (lambda item: item + 1, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_async_function_is_known_in_every_form(run: Run, name: str) -> None:
    """It runs on a loop; everything else on a thread without one."""
    fn, is_async = FUNCTIONS[name]

    async def main() -> list[int]:
        return [result async for result in polyloop.map(fn, range(5))]

    assert run(main()) == [1, 2, 3, 4, 5]
    assert _map.is_async(fn) is is_async


def test_a_sync_function_that_returns_a_coroutine_is_refused(run: Run) -> None:
    """With advice, and the coroutine is closed: nothing warns that it was never awaited."""

    def sneaky(item: int) -> Any:
        return add_async(1, item)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            for on in (None, executor):
                with pytest.raises(TypeError, match="took the function for a sync one"):
                    async for _ in polyloop.map(sneaky, range(3), on=on):
                        pass

    run(main())
    gc.collect()


def test_a_call_that_does_not_fit_fails_at_its_place(run: Run) -> None:
    """The wrong number of arguments, for an async function too."""

    async def nothing() -> None: ...

    async def main() -> None:
        for fn in (nothing, lambda: None):
            with pytest.raises(TypeError, match="argument"):
                async for _ in polyloop.map(fn, range(3)):  # type: ignore[arg-type]
                    pass

    run(main())


async def async_generator(item: int) -> AsyncIterator[int]:
    yield item


@pytest.mark.parametrize(
    ("fn", "items", "options", "error", "message"),
    [
        (add_async, [1], {"limit": 0}, ValueError, "limit must be"),
        (add, [1], {"limit": -1}, ValueError, "limit must be"),
        (add, [1], {"limit": 1.5}, ValueError, "limit must be"),
        (add, 1, {}, TypeError, "needs an iterable"),
        (None, [1], {}, TypeError, "needs a function"),
        (async_generator, [1], {}, TypeError, "needs a function"),
        (add_async, [1], {"on": "nowhere"}, ValueError, "nowhere"),
        (add, [1], {"on": "nowhere"}, ValueError, "nowhere"),
        (add, [1], {"on": "here"}, TypeError, "sync function"),
        (add_async, [1], {"on": "threads"}, TypeError, "does not run those"),
        (add, [1], {"on": 7}, TypeError, "Executor"),
    ],
)
def test_what_makes_no_sense_is_refused_at_the_call(
    fn: Any, items: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before anything begins, and off every loop."""
    with pytest.raises(error, match=message):
        polyloop.map(fn, items, **options)


def test_an_executor_without_coroutines_takes_no_async_function() -> None:
    """It would return a coroutine that nobody runs."""
    with ThreadPoolExecutor(1) as executor, pytest.raises(TypeError, match="does not run those"):
        polyloop.map(AsyncCallable().__call__, [1], on=executor)


# Where


def test_async_calls_go_where_on_says() -> None:
    """As with ``spawn``: here, elsewhere, to a worker."""

    async def where(_: int) -> int:
        return threading.get_ident()

    async def main() -> None:
        mine = threading.get_ident()
        workers = polyloop.current_runtime().workers
        assert {ident async for ident in polyloop.map(where, range(8), on="here")} == {mine}
        assert {ident async for ident in polyloop.map(where, range(8), on=workers[1])} == {workers[1].ident}
        assert len({ident async for ident in polyloop.map(where, range(8), on="round_robin")}) == 2

    polyloop.run(main(), loops=2)


def test_a_worker_of_no_runtime_is_refused() -> None:
    """On the first result, when it is known where the consumer runs."""
    with polyloop.Runtime(loops=1) as runtime:
        worker = runtime.workers[0]

    async def main() -> None:
        with pytest.raises(ValueError, match=r"no runtime|no worker"):
            await anext(polyloop.map(AsyncCallable().__call__, [1], on=worker))

    asyncio.run(main())
    polyloop.run(main(), loops=1)


def test_calls_in_other_processes() -> None:
    """The function goes alone; what it raises comes back."""

    async def main() -> None:
        assert [result async for result in polyloop.map(abs, range(-5, 0), on=executor)] == [5, 4, 3, 2, 1]
        mixed: list[Any] = [1, "a"]
        with pytest.raises(TypeError, match="bad operand"):
            async for _ in polyloop.map(abs, mixed, on=executor):
                pass

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        polyloop.run(main(), loops=1)


def test_a_runtime_as_an_executor_takes_both_kinds_of_functions() -> None:
    """Async functions run on its loops, sync ones on its threads; the failure of either is the map's."""

    async def fail(item: int) -> None:
        raise ValueError(item)

    async def main(executor: Any) -> None:
        assert [result async for result in polyloop.map(AsyncCallable().__call__, range(50), on=executor)] == [
            *range(1, 51)
        ]
        assert [result async for result in polyloop.map(abs, range(-50, 0), on=executor)] == [*range(50, 0, -1)]
        with pytest.raises(ValueError, match="0"):
            await anext(polyloop.map(fail, range(5), on=executor))

    with polyloop.Runtime(loops=2) as runtime:
        asyncio.run(main(runtime.as_executor()))


def test_an_executor_that_was_shut_down_says_so(run: Run) -> None:
    """As the failure of the first call."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="after shutdown"):
            await anext(polyloop.map(abs, [1, 2, 3], on=executor))

    run(main())


def test_the_environment_says_where_sync_functions_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """``on`` is the word; without it the variable."""
    monkeypatch.setenv("POLYLOOP_OFFLOAD", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        polyloop.map(abs, [1])
    monkeypatch.setenv("POLYLOOP_OFFLOAD", "cpu" if not _prims.gil_enabled() else "threads")

    async def main() -> list[int]:
        return [result async for result in polyloop.map(abs, [-1, 1])]

    assert asyncio.run(main()) == [1, 1]


def test_calls_that_compute_share_one_limit() -> None:
    """``on="cpu"`` on threads: over all maps, no more at once than there are cores."""
    if _prims.gil_enabled():
        pytest.skip("with the GIL these are processes")
    log = Log()

    def compute(item: int) -> None:
        log.begin(item)
        sum(range(1000))
        log.end(item)

    async def one() -> int:
        return len([result async for result in polyloop.map(compute, range(200), on="cpu", limit=8)])

    async def main() -> list[int]:
        return await polyloop.gather(one(), one())

    assert polyloop.run(main(), loops=2) == [200, 200]
    assert log.peak <= _prims.usable_cores()


# Context


def test_each_call_runs_in_a_copy_of_the_context_of_the_map(run: Run, lane: Lane) -> None:
    """As it was when ``map`` was called; what one call sets, no other sees, nor does the consumer."""
    variable = contextvars.ContextVar("variable", default="unset")

    def steps(item: int) -> Generator[polyloop.Event, None, str]:
        yield from ()
        found = variable.get()
        variable.set(f"set by {item}")
        return found

    async def main() -> None:
        variable.set("at the call")
        results = lane.map(steps, range(20), limit=2)
        variable.set("later")
        assert {result async for result in results} == {"at the call"}
        assert variable.get() == "later"

    run(main())


def test_an_asynchronous_source_sees_the_context_of_the_map(run: Run, lane: Lane) -> None:
    """It runs in a task of its own, between the consumer's steps."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def source() -> AsyncIterator[str]:
        yield variable.get()

    async def main() -> None:
        variable.set("at the call")
        assert [result async for result in lane.map(at_once, source())] == ["at the call" * 10]

    run(main())


# Progress


@pytest.mark.parametrize("known", [True, False])
def test_progress_is_told_on_the_consumers_loop(run: Run, lane: Lane, known: bool) -> None:
    """Each end once, in the order of the count; the total as soon as it is known."""
    told: list[Progress] = []
    idents = set()

    def hook(progress: Progress) -> None:
        told.append(progress)
        idents.add(threading.get_ident())

    def steps(item: int) -> Generator[polyloop.Event]:
        yield from ()
        if item % 2:
            raise ValueError(item)

    async def main() -> None:
        items = range(10) if known else iter(range(10))
        async for _ in lane.map(steps, items, return_exceptions=True, progress=hook):
            pass
        assert idents == {threading.get_ident()}

    run(main())
    counts = [progress.done for progress in told]
    assert counts == sorted(counts)
    assert set(counts) == set(range(1, 11))
    assert told[-1] == Progress(10, 5, 10)
    assert not known or all(progress.total == 10 for progress in told)


def test_a_progress_hook_that_raises_ends_the_map(run: Run, lane: Lane) -> None:
    """All is cancelled and waited for, as for any failure."""
    log = Log()

    def steps(item: int) -> Generator[polyloop.Event, None, int]:
        log.begin(item)
        yield from ()
        log.end(item)
        return item

    def hook(progress: Progress) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async for _ in lane.map(steps, itertools.count(), progress=hook):
                pass
        assert len(log.begun) == len(log.ended)

    run(main())


# One consumer, one loop


def test_a_second_consumer_is_refused(run: Run, lane: Lane) -> None:
    """While the first one waits; the first one gets its result."""
    calls = Calls(0)

    async def main() -> None:
        results = lane.map(calls, range(2))
        first = asyncio.ensure_future(anext(results))
        await calls.all_started()
        with pytest.raises(RuntimeError, match="one consumer"):
            await anext(results)
        with pytest.raises(RuntimeError, match="one consumer"):
            await results.aclose()
        calls.gates[0].set()
        assert await first == 0
        assert [result async for result in results] == [10]

    run(main())


def test_another_loop_is_refused() -> None:
    """Its loop was chosen by the first result."""

    async def main() -> None:
        results = polyloop.map(abs, [1, 2, 3])
        assert await anext(results) == 1
        with pytest.raises(RuntimeError, match="one loop"):
            await asyncio.to_thread(asyncio.run, results.aclose())
        await results.aclose()

    asyncio.run(main())


def test_a_consumer_that_never_waits_leaves_its_loop_time(run: Run, lane: Lane) -> None:
    """Also where results come faster than they are consumed."""

    async def main() -> None:
        turns = 0

        async def ticker() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(ticker())
        assert len([result async for result in lane.map(at_once, range(2000))]) == 2000
        task.cancel()
        assert turns > 2000 // 64 - 1

    run(main())


def test_maps_inside_of_maps_end(run: Run) -> None:
    """Async, sync, async, sync: each level waits for the next, on a pool that is smaller than they need."""

    async def inner(item: int) -> int:
        return sum([result async for result in polyloop.map(abs, [item, -item])])

    def outer(item: int) -> int:
        return polyloop.from_thread.run(inner, item)

    async def main() -> list[int]:
        return [result async for result in polyloop.map(outer, range(20), limit=4)]

    pool = polyloop.thread_pool()
    before, pool.max_threads = pool.max_threads, 2
    try:
        assert run(main()) == [2 * item for item in range(20)]
    finally:
        pool.max_threads = before


def test_an_endless_map_leaves_threads_to_others(run: Run) -> None:
    """On a full pool a call that waits for a thread gets one after the next item."""
    pool = polyloop.thread_pool()

    called = 0
    answered = False

    def count(item: int) -> None:
        nonlocal called
        called += 1
        # The first call is still running when the other one comes; an idle thread of before may take that at once.
        until(lambda: called > 1 or pool.queued or answered)

    async def endless() -> None:
        async for _ in polyloop.map(count, itertools.count(), limit=1):
            pass

    async def main() -> None:
        nonlocal answered
        mapping = asyncio.create_task(endless())
        while not called:
            await asyncio.sleep(0)
        assert await polyloop.to_thread(lambda: called) == 1
        answered = True
        mapping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mapping

    before, pool.max_threads = pool.max_threads, 1
    try:
        run(main())
    finally:
        pool.max_threads = before

"""Items through a queue: producers here, consumers there, and the time between the first put and the last get."""

import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Literal

from benchmarks._contenders import Contender
from benchmarks._places import LoopJob, ThreadJob, together

type Side = Literal["thread", "loop"]


def stream(
    contender: Contender,
    source: Side,
    sink: Side,
    count: int,
    *,
    bound: int = 0,
    ends: int = 1,
    one_loop: bool = False,
    runtime: bool = False,
) -> float:
    """Send ``count`` items through a new queue; microseconds an item.

    Args:
        source, sink: Whether producers and consumers are threads, or the tasks of one loop.
        ends: How many producers there are, and as many consumers.
        one_loop: All are tasks of the same loop.
        runtime: The loops are those of a ``polyloop.Runtime``.
    """
    queue = contender.make(bound)
    share = count // ends
    threads: list[ThreadJob] = []
    loops: list[list[LoopJob]] = []
    if sink == "thread":
        threads += [partial(_get_all, contender, queue, share)] * ends
    else:
        loops.append([partial(_getting, contender, queue, share)] * ends)
    if source == "thread":
        threads += [partial(_put_all, contender, queue, share)] * ends
    elif one_loop:
        loops[0] += [partial(_putting, contender, queue, share)] * ends
    else:
        loops.append([partial(_putting, contender, queue, share)] * ends)
    close = None if contender.close is None else partial(contender.close, queue)
    return together(threads, loops, runtime=runtime, close=close) / (share * ends) * 1e6


def serves(contender: Contender, source: Side, sink: Side, *, bound: int = 0, one_loop: bool = False) -> bool:
    """Whether the queue can be used like that."""
    if bound and not contender.bounded:
        return False
    if source == sink == "loop" and contender.one_loop and not one_loop:
        return False
    putters = (contender.put,) if source == "thread" else (contender.loop_put, contender.loop_put_now)
    return any(putters) and (contender.get if sink == "thread" else contender.loop_get) is not None


# One end each. The functions are looked up first: what is timed is a loop around a call.


def _put_all(contender: Contender, queue: Any, count: int) -> None:
    assert contender.put is not None
    put = contender.put(queue)
    for item in range(count):
        put(item)


def _get_all(contender: Contender, queue: Any, count: int) -> None:
    assert contender.get is not None
    get = contender.get(queue)
    for _ in range(count):
        get()


async def _putting(contender: Contender, queue: Any, count: int) -> None:
    if contender.loop_put_now is not None:
        put_now = contender.loop_put_now(queue)
        for item in range(count):
            put_now(item)
        return
    assert contender.loop_put is not None
    put = contender.loop_put(queue)
    for item in range(count):
        await put(item)


def _getting(contender: Contender, queue: Any, count: int) -> Coroutine[Any, Any, None]:
    assert contender.loop_get is not None
    get = contender.loop_get(queue)  # before the start: putters have to know the loop of some queues

    async def get_all() -> None:
        for _ in range(count):
            await get()

    return get_all()


# Back and forth


def ping_pong(contender: Contender, laps: int, *, one_loop: bool = False, runtime: bool = False) -> list[float]:
    """One item to and fro between two tasks over two queues, on two loops or one; microseconds of each lap."""
    there, back = contender.make(0), contender.make(0)
    took: list[float] = []
    ping, pong = partial(_pinging, contender, there, back, laps, took), partial(_ponging, contender, there, back, laps)

    async def close() -> None:
        if contender.close is not None:
            await contender.close(there)
            await contender.close(back)

    together((), [[pong, ping]] if one_loop else [[ping], [pong]], runtime=runtime, close=close)
    return took


def _pinging(contender: Contender, there: Any, back: Any, laps: int, took: list[float]) -> Coroutine[Any, Any, None]:
    assert contender.loop_get is not None
    get = contender.loop_get(back)
    clock = time.perf_counter

    async def waiting() -> None:
        assert contender.loop_put is not None
        put = contender.loop_put(there)
        for lap in range(laps):
            began = clock()
            await put(lap)
            await get()
            took.append((clock() - began) * 1e6)

    async def not_waiting() -> None:
        assert contender.loop_put_now is not None
        put_now = contender.loop_put_now(there)
        for lap in range(laps):
            began = clock()
            put_now(lap)
            await get()
            took.append((clock() - began) * 1e6)

    return not_waiting() if contender.loop_put is None else waiting()


def _ponging(contender: Contender, there: Any, back: Any, laps: int) -> Coroutine[Any, Any, None]:
    assert contender.loop_get is not None
    get = contender.loop_get(there)

    async def waiting() -> None:
        assert contender.loop_put is not None
        put = contender.loop_put(back)
        for _ in range(laps):
            await put(await get())

    async def not_waiting() -> None:
        assert contender.loop_put_now is not None
        put_now = contender.loop_put_now(back)
        for _ in range(laps):
            put_now(await get())

    return not_waiting() if contender.loop_put is None else waiting()


# Arrival


def arrivals(contender: Contender, count: int, gap: float, *, runtime: bool = False) -> list[float]:
    """A thread puts an item every ``gap`` seconds, a loop gets it; microseconds from each put to the end of its get."""
    queue = contender.make(0)
    ages: list[float] = []
    close = None if contender.close is None else partial(contender.close, queue)
    put = partial(_put_times, contender.put, queue, count, gap)
    together([put], [[partial(_getting_times, contender, queue, count, ages)]], runtime=runtime, close=close)
    return ages


def _put_times(end: Callable[[Any], Callable[[Any], object]] | None, queue: Any, count: int, gap: float) -> None:
    assert end is not None
    put = end(queue)
    for _ in range(count):
        time.sleep(gap)
        put(time.perf_counter())


def _getting_times(contender: Contender, queue: Any, count: int, ages: list[float]) -> Coroutine[Any, Any, None]:
    assert contender.loop_get is not None
    get = contender.loop_get(queue)

    async def get_all() -> None:
        for _ in range(count):
            sent = await get()
            ages.append((time.perf_counter() - sent) * 1e6)

    return get_all()

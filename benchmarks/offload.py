"""``to_thread``: the round trip of a call that does nothing, against asyncio's and anyio's. ``offload``, by place."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import anyio.to_thread

import polyloop
from benchmarks._measure import Report, medians

COUNT = 2000

OURS, ASYNCIO, ANYIO = "polyloop.to_thread", "asyncio.to_thread", "anyio.to_thread.run_sync"
GUARDED = "asyncio.to_thread in an asyncio.Semaphore"


async def _round_trips(call: Callable[[], Awaitable[Any]]) -> float:
    loop = asyncio.get_running_loop()
    for _ in range(50):
        await call()
    began = loop.time()
    for _ in range(COUNT):
        await call()
    return (loop.time() - began) / COUNT * 1e6


def _nothing() -> None:
    return None


def run(rounds: int) -> Report:
    """One call at a time, microseconds a round trip."""
    report = Report("round trip of to_thread", "µs each")
    report.figures = medians(
        {
            OURS: lambda: polyloop.run(_round_trips(lambda: polyloop.to_thread(_nothing)), loops=1),
            ASYNCIO: lambda: asyncio.run(_round_trips(lambda: asyncio.to_thread(_nothing))),
            ANYIO: lambda: asyncio.run(_round_trips(lambda: anyio.to_thread.run_sync(_nothing))),
        },
        rounds,
    )
    _against_others(report, OURS, 0.25)
    return report


def _against_others(report: Report, ours: str, bound: float) -> None:
    for name in (ASYNCIO, ANYIO):
        report.at_most(f"time against {name}", report.figures[ours] / report.figures[name], bound)


def limited(rounds: int) -> Report:
    """The same with a limiter, inside of a timeout that may cancel it; asyncio's own has neither limit nor scope."""
    report = Report("round trip of to_thread with a limiter, in a timeout", "µs each")
    ours, theirs = f"{OURS}, limiter", f"{ANYIO}, limiter"

    async def in_time(call: Callable[[], Awaitable[Any]]) -> float:
        async with asyncio.timeout(600):
            return await _round_trips(call)

    async def guarded() -> None:
        async with semaphore:
            await asyncio.to_thread(_nothing)

    semaphore = asyncio.Semaphore(4)
    limiter, limit = polyloop.CapacityLimiter(4), anyio.CapacityLimiter(4)
    report.figures = medians(
        {
            ours: lambda: polyloop.run(in_time(partial(polyloop.to_thread, _nothing, limiter=limiter)), loops=1),
            theirs: lambda: asyncio.run(in_time(partial(anyio.to_thread.run_sync, _nothing, limiter=limit))),
            GUARDED: lambda: asyncio.run(in_time(guarded)),
            ASYNCIO: lambda: asyncio.run(in_time(partial(asyncio.to_thread, _nothing))),
        },
        rounds,
    )
    for name in (theirs, GUARDED, ASYNCIO):
        report.at_most(f"time against {name}", report.figures[ours] / report.figures[name], 0.3)
    return report


# Places

#: Tasks of each kind. A wait lasts ``WAIT`` seconds.
LONG, SHORT, WAITS = 400, 4000, 100
WAIT = 0.01

LONG_CASE, SHORT_CASE, WAIT_CASE = "computes for 1 ms", "computes for 10 µs", "waits for 10 ms"
ONE_LOOP, LOOPS = "one loop", "a loop per core"
PLACES = ("threads", "cpu", "processes", *(("interpreters",) if sys.version_info >= (3, 14) else ()))


def compute(steps: int) -> int:
    total = 0
    for number in range(steps):
        total += number * number
    return total


def wait(seconds: float) -> None:
    time.sleep(seconds)


async def compute_here(steps: int) -> int:
    return compute(steps)


def steps_for(seconds: float) -> int:
    """How many steps take as long as that, alone on a core."""
    steps = 20_000
    took: list[float] = []
    for _ in range(15):
        began = time.perf_counter()
        compute(steps)
        took.append(time.perf_counter() - began)
    return max(1, round(steps * seconds / min(took)))


def _all_at_once(make: Callable[[], Coroutine[Any, Any, Any]], count: int, loops: int | None) -> float:
    return polyloop.run(_timed(make, count), loops=loops)


async def _timed(make: Callable[[], Coroutine[Any, Any, Any]], count: int) -> float:
    """Microseconds a task, of so many at once."""
    await make()  # a pool is made, or a thread started
    began = time.perf_counter()
    await polyloop.gather(*(make() for _ in range(count)))
    return (time.perf_counter() - began) / count * 1e6


def places(rounds: int) -> Report:
    """The same tasks, all at once, on loops and wherever ``offload`` takes them; microseconds a task, all in all."""
    report = Report("many tasks at once, by place", "µs a task")
    long, short = steps_for(0.001), steps_for(0.00001)
    cases: dict[str, tuple[int, Callable[..., Any], Callable[..., Coroutine[Any, Any, Any]], Any]] = {
        LONG_CASE: (LONG, compute, compute_here, long),
        SHORT_CASE: (SHORT, compute, compute_here, short),
        WAIT_CASE: (WAITS, wait, asyncio.sleep, WAIT),
    }
    for case, (count, plain, task, size) in cases.items():
        rivals = {
            ONE_LOOP: partial(_all_at_once, partial(task, size), count, 1),
            LOOPS: partial(_all_at_once, partial(task, size), count, None),
        }
        for place in PLACES:
            rivals[place] = partial(_all_at_once, partial(polyloop.offload, plain, size, on=place), count, 1)
        report.figures |= {f"{case}: {name}": value for name, value in medians(rivals, rounds).items()}
    rate = report.figures[f"{LONG_CASE}: {ONE_LOOP}"] / report.figures[f"{LONG_CASE}: cpu"]
    report.at_least(f"{LONG_CASE}: rate of cpu against one loop", rate, 1.5)
    report.notes.append(f"{LONG}, {SHORT} and {WAITS} tasks; on loops they are async functions, and the wait a sleep")
    return report

"""``map``: CPU tasks on two cores against two bare threads and others, what a call costs, and memory without end."""

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import polyloop
from benchmarks._measure import Report, medians
from benchmarks.offload import compute, steps_for

#: Threads of every rival.
WORKERS = 2

#: CPU tasks of a round, in so many slices, between which the rivals take turns: the load of a machine changes within
#: seconds. And the seconds that a task takes alone on a core.
COUNT, SLICES = 10_000, 10
TASK = 0.001

#: Calls that do nothing; two at once on threads, and so many as tasks.
EMPTY, MANY = 20_000, 100

BARE, ORDERED, UNORDERED = "two bare threads", "polyloop.map", "polyloop.map, ordered=False"
ON_ASYNCIO, EXECUTOR, ASYNCIO = "polyloop.map in asyncio.run", "ThreadPoolExecutor.map", "asyncio.to_thread, Semaphore"
TASKS, GATHER = "polyloop.map of an async function", "asyncio.gather, Semaphore"


type Timed = Callable[[], float]


def _bare(fn: Callable[[int], object], item: int, count: int) -> float:
    """Two threads that share a counter, and nothing else."""
    left = deque(range(count))  # one iterator for both is not safe without the GIL

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                left.popleft()
                fn(item)

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def _map(
    fn: Callable[[int], Any], item: int, count: int, run: Callable[..., float], limit: int = WORKERS, **options: Any
) -> float:
    async def main() -> float:
        began = time.perf_counter()
        async for _ in polyloop.map(fn, itertools.repeat(item, count), limit=limit, **options):
            pass
        return time.perf_counter() - began

    return run(main())


def _executor(fn: Callable[[int], object], item: int, count: int) -> float:
    with ThreadPoolExecutor(WORKERS) as executor:
        began = time.perf_counter()
        for _ in executor.map(fn, itertools.repeat(item, count)):
            pass
        return time.perf_counter() - began


def _guarded(call: Callable[[], Coroutine[Any, Any, Any]], count: int, limit: int = WORKERS) -> float:
    """The recipe for a limit that asyncio offers."""

    async def main() -> float:
        semaphore = asyncio.Semaphore(limit)

        async def one() -> None:
            async with semaphore:
                await call()

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        return time.perf_counter() - began

    return asyncio.run(main())


def _each(rival: Timed, count: int) -> float:
    """Microseconds for each of ``count``."""
    return rival() / count * 1e6


def _on_loops(main: Coroutine[Any, Any, float]) -> float:
    return polyloop.run(main, loops=WORKERS)


def cpu(rounds: int) -> Report:
    """CPU tasks of 1 ms on two threads; microseconds a task, all in all."""
    report = Report(f"{COUNT:,} CPU tasks of {TASK * 1000:g} ms on two threads", "µs a task")
    item, count = steps_for(TASK), COUNT // SLICES
    rivals: dict[str, Timed] = {
        BARE: partial(_bare, compute, item, count),
        ORDERED: partial(_map, compute, item, count, _on_loops),
        UNORDERED: partial(_map, compute, item, count, _on_loops, ordered=False),
        ON_ASYNCIO: partial(_map, compute, item, count, asyncio.run),
        EXECUTOR: partial(_executor, compute, item, count),
        ASYNCIO: partial(_guarded, partial(asyncio.to_thread, compute, item), count),
    }
    report.figures = medians({name: partial(_each, rival, count) for name, rival in rivals.items()}, rounds * SLICES)
    report.notes.append(f"in slices of {count:,}, between which the rivals take turns")
    for name in (ORDERED, UNORDERED, ON_ASYNCIO):
        report.at_least(f"rate of {name} against bare threads", report.figures[BARE] / report.figures[name], 0.95)
    return report


def _nothing(item: int) -> None:
    return None


async def _nothing_async(item: int) -> None:
    return None


def calls(rounds: int) -> Report:
    """Calls that do nothing, on two threads, or as tasks of which a hundred run at once: what each costs."""
    report = Report(f"{EMPTY:,} calls that do nothing, on two threads or as {MANY} tasks at once", "µs a call")
    rivals: dict[str, Timed] = {
        ORDERED: partial(_map, _nothing, 0, EMPTY, _on_loops),
        EXECUTOR: partial(_executor, _nothing, 0, EMPTY),
        ASYNCIO: partial(_guarded, partial(asyncio.to_thread, _nothing, 0), EMPTY),
        TASKS: partial(_map, _nothing_async, 0, EMPTY, _on_loops, MANY),
        GATHER: partial(_guarded, partial(_nothing_async, 0), EMPTY, MANY),
    }
    report.figures = medians({name: partial(_each, rival, EMPTY) for name, rival in rivals.items()}, rounds)
    against = report.figures[ORDERED] / report.figures[ASYNCIO]
    report.at_most(f"time of {ORDERED} against {ASYNCIO}", against, 0.3)
    return report


#: Items of an endless map after which its memory is looked at, first and last.
FIRST, LAST = 20_000, 300_000

#: Runs in a process of its own: memory that others have given back would be used again, and not be seen.
_MEMORY = """
import asyncio, itertools, polyloop
from benchmarks._measure import rss_bytes
from benchmarks.maps import _nothing, _nothing_async

async def main():
    before = 0
    results = polyloop.map(_nothing if WHAT == "threads" else _nothing_async, itertools.count())
    async with results:
        number = 0
        async for _ in results:
            number += 1
            if number == FIRST:
                before = rss_bytes()
            elif number == LAST:
                print((rss_bytes() - before) / 2**20)
                return

polyloop.run(main(), loops=2)
"""


def memory(rounds: int) -> Report:
    """MiB that an endless map grows by, from its first to its last look."""
    report = Report(f"growth of an endless map, from {FIRST:,} to {LAST:,} items", "MiB")

    def measure(what: str) -> float:
        program = f"WHAT, FIRST, LAST = {what!r}, {FIRST}, {LAST}\n{_MEMORY}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return float(done.stdout)

    report.figures = medians({what: partial(measure, what) for what in ("threads", "tasks")}, min(rounds, 3))
    for what, growth in report.figures.items():
        report.at_most(f"MiB, {what}", growth, 1)
    return report

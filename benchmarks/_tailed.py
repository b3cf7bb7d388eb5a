"""Tasks whose sizes have a heavy tail, each in several parts, on two cores, shared out in several ways.

Each measurement has a process of its own, as tonio's have: how fast a thread computes depends on what has run in its
process before, by as much as the ways of sharing differ. ``python -m benchmarks._tailed WHAT COUNT PER_MS`` prints
what ``WAYS[WHAT]`` returns, after a run with few tasks.

A task counts its parts with ``repeat``, not with ``range``. ``compute`` counts with ``range``, and on some machines it
is some 5 % slower while other ranges are suspended beside it, whoever steps them: bare generators in one thread are
enough (CPython 3.13.15t; loops with asyncio's own tasks lose 13 %). That says nothing about how the work is split.
"""

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import repeat

import polyloop
from benchmarks.offload import compute

#: Seconds of the smallest and the largest task; the share of tasks above x falls with the root of x.
LEAST, MOST, SHAPE = 0.0001, 0.2, 0.5

#: Of 400 seeds, the one that is next to the median of 200 tasks: in their sum, and in what one of two loops gets of it
#: if they are dealt out in turn, which is 59 %.
SEED = 87

#: Parts of each task, between which others may go first.
PARTS = 10


def sizes(count: int, per_ms: int) -> list[int]:
    """Steps of a part of each of ``count`` tasks, the same ones each time.

    Args:
        per_ms: How many steps take a millisecond.
    """
    rng = random.Random(SEED)
    took = [min(MOST, LEAST * rng.paretovariate(SHAPE)) for _ in range(count)]
    return [max(1, round(seconds * 1000 * per_ms / PARTS)) for seconds in took]


def dealt_blindly(all_sizes: list[int]) -> list[int]:
    """Which of two loops has each: in turn, whatever their size."""
    return [number % 2 for number in range(len(all_sizes))]


def dealt_by_size(all_sizes: list[int]) -> list[int]:
    """Which of two loops has each: the largest first, each to the loop that has less."""
    places, loads = [0] * len(all_sizes), [0, 0]
    for number in sorted(range(len(all_sizes)), key=all_sizes.__getitem__, reverse=True):
        places[number] = loads.index(min(loads))
        loads[places[number]] += all_sizes[number]
    return places


def on_bare_threads(count: int, per_ms: int) -> float:
    """Milliseconds of two threads that share a deque of all parts, and nothing else."""
    parts = deque(size for size in sizes(count, per_ms) for _ in range(PARTS))

    def work() -> None:
        while True:
            try:
                size = parts.popleft()
            except IndexError:
                return
            compute(size)

    workers = [threading.Thread(target=work) for _ in range(2)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - began) * 1e3


async def _work(size: int) -> None:
    for _ in repeat(None, PARTS):
        compute(size)
        await polyloop.checkpoint()


async def _noop() -> None:
    return None


def on_loops(count: int, per_ms: int, *, migratable: bool, deal: Callable[[list[int]], list[int]] | None) -> float:
    """Milliseconds of all tasks on two loops.

    Args:
        migratable: Whether they are migratable tasks; else they are asyncio's.
        deal: Which of the two loops has each, for good; without, all are made on one.
    """
    all_sizes = sizes(count, per_ms)
    places = deal(all_sizes) if deal is not None else None

    async def main() -> float:
        workers = polyloop.current_runtime().workers
        began = time.perf_counter()
        async with polyloop.TaskGroup() as group:
            for number, size in enumerate(all_sizes):
                on = None if places is None else workers[places[number]]
                group.create_task(_work(size), migratable=migratable, on=on)
        return (time.perf_counter() - began) * 1e3

    with polyloop.Runtime(loops=2) as runtime:
        for worker in runtime.workers:
            runtime.spawn(_noop, on=worker).result()
        return runtime.run(main())


#: Each takes a count of tasks and how many steps take a millisecond.
WAYS: dict[str, Callable[[int, int], float]] = {
    "ideal": partial(on_loops, migratable=True, deal=dealt_by_size),
    "migratable": partial(on_loops, migratable=True, deal=None),
    "blindly": partial(on_loops, migratable=False, deal=dealt_blindly),
    "bare": on_bare_threads,
}


if __name__ == "__main__":
    WAYS[sys.argv[1]](10, 1)
    print(WAYS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3])))

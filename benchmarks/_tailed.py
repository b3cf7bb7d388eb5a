"""Tasks whose sizes have a heavy tail, each in several parts; and their parts alone, on bare threads.

A task counts its parts with ``repeat``, not with ``range``. ``compute`` counts with ``range``, and on some machines it
is some 5 % slower while other ranges are suspended beside it, whoever steps them: bare generators in one thread are
enough (CPython 3.13.15t; loops with asyncio's own tasks lose 13 %). That says nothing about how the work is split.
"""

import random
import threading
import time
from collections import deque

from benchmarks.offload import compute

#: Seconds of the smallest and the largest task; the share of tasks above x falls with the root of x, and a tenth of
#: them is three quarters of the work.
LEAST, MOST, SHAPE = 0.0001, 0.05, 0.5
SEED = 20

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


def on_bare_threads(count: int, per_ms: int, threads: int) -> float:
    """Milliseconds of threads that share a deque of all parts, and nothing else."""
    parts = deque(size for size in sizes(count, per_ms) for _ in range(PARTS))

    def work() -> None:
        while True:
            try:
                size = parts.popleft()
            except IndexError:
                return
            compute(size)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - began) * 1e3

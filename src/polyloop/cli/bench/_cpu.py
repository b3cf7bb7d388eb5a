"""``bench cpu``: sums of squares on 1 to N threads, through ``TaskGroup`` and ``to_thread``."""

import math
import time
from dataclasses import dataclass
from functools import partial

import polyloop
from polyloop.cli.bench._measure import Size, Step, Timing, check, interleave, worker_counts

TASKS = 10
NUMBERS = 5_000_000


@dataclass(frozen=True, slots=True)
class CpuPoint:
    """One number of threads."""

    threads: int
    timing: Timing
    speedup: float
    """Over one thread, as the median of the rounds."""
    ideal: float
    """What perfect threads would give: 10 equal tasks on 4 threads take 3 turns, hence 3.33."""


@dataclass(frozen=True, slots=True)
class CpuResult:
    """All of ``bench cpu``."""

    tasks: int
    numbers: int
    """How many squares each task adds up."""
    points: tuple[CpuPoint, ...]


def steps(size: Size) -> int:
    """Return how often :func:`measure` will call ``step``."""
    return size.rounds * len(worker_counts(size.workers))


def measure(size: Size, step: Step) -> CpuResult:
    """Measure the same tasks on each number of threads, in turn."""
    numbers = size.scaled(NUMBERS, least=1000)
    counts = worker_counts(size.workers)
    runs = interleave({threads: partial(time_once, threads, numbers) for threads in counts}, size.rounds, step)
    timings = {threads: Timing.of(seconds) for threads, seconds in runs.items()}
    points = (CpuPoint(n, timing, timing.speedup_over(timings[1]), ideal(n)) for n, timing in timings.items())
    return CpuResult(TASKS, numbers, tuple(points))


def time_once(threads: int, numbers: int) -> float:
    """Return the seconds that all tasks take on ``threads`` threads."""
    return polyloop.run(_run_tasks(threads, numbers), loops=1)


def sum_of_squares(count: int) -> int:
    """The published CPU work: adds up ``count`` squares in a plain loop."""
    total = 0
    for number in range(count):
        total += number * number
    return total


def ideal(threads: int) -> float:
    """Return the speed-up of the tasks on ``threads`` perfect threads."""
    return TASKS / math.ceil(TASKS / threads)


async def _run_tasks(threads: int, numbers: int) -> float:
    limiter = polyloop.CapacityLimiter(threads)
    started = time.perf_counter()
    async with polyloop.TaskGroup() as group:
        handles = [
            group.create_task(polyloop.to_thread(sum_of_squares, numbers, limiter=limiter)) for _ in range(TASKS)
        ]
    seconds = time.perf_counter() - started
    expected = (numbers - 1) * numbers * (2 * numbers - 1) // 6
    check(all([await handle == expected for handle in handles]), f"a sum of {numbers} squares is not {expected}")
    return seconds

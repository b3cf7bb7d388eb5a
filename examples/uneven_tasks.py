"""Many tasks, a few of them a hundred times as long as the others: on the loops where they were placed, and migrating.

A task that has begun stays on its loop, so a loop that was given the long ones works on while the other has nothing to
do. Tasks that migrate go on wherever there is time for them.
"""

import random
import time

import polyloop

TASKS = 60


def compute(units: int) -> int:
    """Some 0.3 ms of work for each unit."""
    total = 0
    for number in range(units * 3000):
        total += number * number % 7
    return total


async def job(parts: list[int]) -> int:
    """A few parts of work, with a place to move between them."""
    total = 0
    for units in parts:
        total += compute(units)
        await polyloop.checkpoint()
    return total


def jobs() -> list[list[int]]:
    """Sizes with a heavy tail, sorted: as unlucky as it gets for who places each half on a loop."""
    rng = random.Random(7)
    sizes = sorted(min(int(4 * rng.paretovariate(1.1)), 200) for _ in range(TASKS))
    return [[1 + size // 4] * 4 for size in sizes]


async def run_all(migratable: bool) -> tuple[float, int]:
    """Seconds for all of them, and the sum of their results."""
    began = time.perf_counter()
    async with polyloop.TaskGroup(migratable=migratable) as tg:
        workers = polyloop.current_runtime().workers
        handles = [
            tg.create_task(job(parts)) if migratable else tg.create_task(job(parts), on=workers[place * 2 // TASKS])
            for place, parts in enumerate(jobs())
        ]
    return time.perf_counter() - began, sum(handle.result() for handle in handles)


def main() -> None:
    staying, expected = polyloop.run(run_all(migratable=False), loops=2)
    migrating, total = polyloop.run(run_all(migratable=True), loops=2)
    assert total == expected
    print(
        f"{TASKS} tasks on 2 loops: {staying * 1e3:.0f} ms where they were placed, {migrating * 1e3:.0f} ms migrating"
    )


if __name__ == "__main__":
    main()

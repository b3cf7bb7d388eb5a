"""Ten CPU tasks through a task group and threads: an asyncio program that moves over by its import.

Under either import the ten run on all cores of a free-threaded Python, as threads need no GIL there. With polyloop the
threads are one bounded pool for all loops, and coroutines run on every core too (see ``fetch_all.py``).
"""

import sys
import time

# import asyncio as rt  # the asyncio program: this line instead of the next, and nothing else
import polyloop as rt


def sum_of_squares(count: int) -> int:
    total = 0
    for number in range(count):
        total += number * number
    return total


async def main() -> None:
    started = time.perf_counter()
    async with rt.TaskGroup() as group:
        tasks = [group.create_task(rt.to_thread(sum_of_squares, 1_000_000)) for _ in range(10)]
    seconds = time.perf_counter() - started
    assert {task.result() for task in tasks} == {333_332_833_333_500_000}
    print(f"10 sums of 1,000,000 squares, all right, in {seconds:.2f} s")
    if sys._is_gil_enabled():
        print("no faster than one after the other: the GIL is on, so one thread at a time runs Python code")


rt.run(main())

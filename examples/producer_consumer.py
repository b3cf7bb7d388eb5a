"""Producer and consumer on different threads and loops, through one queue and without polling.

asyncio's guide to free-threaded Python shares a ``queue.Queue`` between loops and sleeps for 0.1 s when it is empty.
Here a plain thread puts, the tasks of two loops wait, and an item arrives as soon as somebody can be woken for it.
"""

import asyncio
import statistics
import threading
import time

import polyloop

ITEMS = 2000


def produce(queue: "polyloop.Queue[tuple[int, float]]") -> None:
    """A plain thread. The bound makes it wait for the consumers, not the other way round."""
    face = queue.sync
    for number in range(ITEMS):
        face.put((number, time.perf_counter()))
    queue.shutdown()


async def consume(queue: "polyloop.Queue[tuple[int, float]]") -> list[tuple[int, float]]:
    """Takes items until the queue is shut down and empty."""
    return [(number, time.perf_counter() - put_at) async for number, put_at in queue]


def consume_on_a_loop(queue: "polyloop.Queue[tuple[int, float]]", taken: list[tuple[int, float]]) -> None:
    """A loop of its own in a thread of its own, as in asyncio's guide."""
    taken.extend(asyncio.run(consume(queue)))


def main() -> None:
    queue = polyloop.Queue[tuple[int, float]](maxsize=1)
    taken: list[tuple[int, float]] = []
    threads = [threading.Thread(target=consume_on_a_loop, args=(queue, taken)) for _ in range(2)]
    threads.append(threading.Thread(target=produce, args=(queue,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in taken) == list(range(ITEMS))
    median = statistics.median(seconds for _, seconds in taken)
    print(f"{ITEMS} items, none lost, none twice; half of them arrived within {median * 1e6:.0f} µs")


main()

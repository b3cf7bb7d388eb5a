"""Random producers and consumers on loops and threads, and every item counted.

What it relies on and cannot prove by steps: that the operations of a deque are atomic and ordered on this build and
this machine. A lost item or wake-up shows as a round that does not end or does not add up.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from polyloop import LifoQueue, PriorityQueue, Queue, QueueEmpty, QueueFull, QueueShutDown, Runtime, TaskHandle
from polyloop.testing import TestThread

PATIENCE = 60.0
LOOPS = 4
THREADS = 4

#: A producer and the number of the item among its own.
type Item = tuple[int, int]

KINDS: dict[str, Callable[[int], Queue[Item]]] = {
    "fifo": Queue,
    "lifo": LifoQueue,
    "priority": PriorityQueue,
    "weighed": lambda maxsize: Queue(maxsize, sizer=lambda item: 1),
}


@dataclass
class Book:
    """What one producer or consumer did. Written by it alone, read when it has ended."""

    items: list[Item] = field(default_factory=list[Item])
    given_up: int = 0  # waits that were cancelled or timed out


def tiny(rng: random.Random) -> float | None:
    """A time to wait at most: usually none, else too short to be sure of anything."""
    return rng.choice((None, None, None, 0.0, rng.random() * 0.001))


async def produce(queue: Queue[Item], number: int, count: int, rng: random.Random, book: Book) -> None:
    n = 0
    while n < count:
        item = (number, n)
        try:
            how = rng.randrange(8)
            if how == 0:
                queue.put_nowait(item)
            elif how == 1:
                batch = [(number, n + i) for i in range(min(rng.randrange(1, 6), count - n))]
                n += put_batch(queue, batch, book)
                await asyncio.sleep(0)
                continue
            else:
                async with asyncio.timeout(tiny(rng)):
                    await queue.put(item)
        except (QueueFull, TimeoutError):
            book.given_up += 1
            await asyncio.sleep(0)
            continue
        except QueueShutDown:
            return
        book.items.append(item)
        n += 1


def put_batch(queue: Queue[Item], batch: list[Item], book: Book) -> int:
    try:
        put = queue.put_many_nowait(batch)
    except QueueShutDown as exc:
        book.items.extend(batch[: exc.items_put])
        raise
    book.items.extend(batch[:put])
    return put


def produce_on_thread(queue: Queue[Item], number: int, count: int, rng: random.Random, book: Book) -> None:
    face = queue.sync
    n = 0
    while n < count:
        try:
            face.put((number, n), rng.random() < 0.8, tiny(rng))
        except QueueFull:
            book.given_up += 1
            continue
        except QueueShutDown:
            return
        book.items.append((number, n))
        n += 1


async def consume(queue: Queue[Item], rng: random.Random, book: Book) -> None:
    while True:
        try:
            how = rng.randrange(8)
            if how == 0:
                taken = [queue.get_nowait()]
            elif how == 1:
                async with asyncio.timeout(tiny(rng)):
                    taken = await queue.get_many(rng.randrange(1, 6))
            else:
                async with asyncio.timeout(tiny(rng)):
                    taken = [await queue.get()]
        except (QueueEmpty, TimeoutError):
            book.given_up += 1
            await asyncio.sleep(0)
            continue
        except QueueShutDown:
            return
        except asyncio.CancelledError:
            book.given_up += 1
            raise
        book.items.extend(taken)
        for _ in taken:
            queue.task_done()
        if rng.random() < 0.01:
            await asyncio.sleep(0)


def consume_on_thread(queue: Queue[Item], rng: random.Random, book: Book) -> None:
    face = queue.sync
    while True:
        try:
            how = rng.randrange(8)
            taken = (
                face.get_many(rng.randrange(1, 6), tiny(rng)) if how == 0 else [face.get(rng.random() < 0.8, tiny(rng))]
            )
        except QueueEmpty:
            book.given_up += 1
            continue
        except QueueShutDown:
            return
        book.items.extend(taken)
        for _ in taken:
            face.task_done()


def race(runtime: Runtime, rng: random.Random, count: int) -> Counter[str]:
    """One queue, some producers and consumers of each sort; consumers are cancelled and replaced, then it ends."""
    kind = rng.choice((*KINDS, "fifo"))
    queue = KINDS[kind](rng.choice((0, 0, 1, 2, 16)))
    producers: list[TaskHandle[None] | TestThread[None]] = []
    consumers: list[TaskHandle[None] | TestThread[None]] = []
    put: list[Book] = []
    got: list[Book] = []

    def add(side: list[TaskHandle[None] | TestThread[None]], books: list[Book], on_loop: bool) -> None:
        book = Book()
        books.append(book)
        own = random.Random(rng.random())
        number = len(books) - 1
        worker = rng.choice(runtime.workers)
        if side is consumers and on_loop:
            side.append(runtime.spawn(consume, queue, own, book, on=worker))
        elif side is consumers:
            side.append(TestThread(consume_on_thread, queue, own, book, timeout=PATIENCE))
        elif on_loop:
            side.append(runtime.spawn(produce, queue, number, count, own, book, on=worker))
        else:
            side.append(TestThread(produce_on_thread, queue, number, count, own, book, timeout=PATIENCE))

    for side, books in ((consumers, got), (producers, put)):
        for _ in range(rng.randrange(1, LOOPS + 1)):
            add(side, books, on_loop=True)
        for _ in range(rng.randrange(THREADS // 2 + 1)):
            add(side, books, on_loop=False)
    for _ in range(rng.randrange(4)):
        doomed = rng.choice(consumers)
        add(consumers, got, on_loop=True)
        if isinstance(doomed, TaskHandle):
            doomed.cancel()
    early = rng.random() < 0.3
    if early:
        for _ in range(rng.randrange(20_000)):
            pass
        queue.shutdown()
    for producer in producers:
        result_of(producer)
    if not early:
        queue.shutdown()
    for consumer in consumers:
        result_of(consumer)
    check(kind, queue, put, got, early)
    return Counter(
        {
            kind: 1,
            "items": sum(len(book.items) for book in put),
            "given up": sum(book.given_up for book in (*put, *got)),
            "shut down early": int(early),
        }
    )


def result_of(worker: TaskHandle[None] | TestThread[None]) -> None:
    if isinstance(worker, TestThread):
        worker.result()
        return
    try:
        worker.result(PATIENCE)
    except asyncio.CancelledError:
        pass


def check(kind: str, queue: Queue[Item], put: list[Book], got: list[Book], early: bool) -> None:
    """Nothing lost, nothing twice, nothing overtaken."""
    every_put = Counter(item for book in put for item in book.items)
    every_got = Counter(item for book in got for item in book.items)
    assert every_got == every_put, f"{kind}: lost {every_put - every_got}, from nowhere {every_got - every_put}"
    assert queue.empty()
    assert queue.unfinished_tasks == 0
    assert not queue._getters
    assert not queue._putters
    if kind in {"fifo", "weighed"}:
        for book in got:
            latest: dict[int, int] = {}
            for producer, n in book.items:
                assert latest.get(producer, -1) < n, f"item {n} of producer {producer} was overtaken"
                latest[producer] = n


def run(rng: random.Random, seconds: float, items: int, count: int) -> Counter[str]:
    """Races for ``seconds``, and until ``items`` have gone through."""
    outcomes: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    with Runtime(loops=LOOPS) as runtime:
        while time.monotonic() < deadline or outcomes["items"] < items:
            outcomes += race(runtime, rng, count)
            outcomes["rounds"] += 1
    print(dict(outcomes))
    return outcomes


@pytest.mark.stress
def test_stress(rng: random.Random, seconds: float) -> None:
    """All kinds of queues, both faces, for as long as one likes."""
    outcomes = run(rng, seconds, int(os.environ.get("POLYLOOP_STRESS_ITEMS", "0")), 2000)
    assert outcomes["given up"] > 0


def test_stress_in_small(rng: random.Random) -> None:
    """The same for two seconds."""
    outcomes = run(rng, 2.0, 0, 100)
    assert outcomes["rounds"] > 5
    assert outcomes["given up"] > 0

"""Two asyncio loops, a trio thread and a plain thread share one queue, one lock and one event."""

import asyncio
from collections import Counter

import trio

from polyloop import Event, Lock, Queue
from polyloop.testing import TestThread

ITEMS = 300


class Shared:
    def __init__(self) -> None:
        self.queue = Queue[int](8)
        self.lock = Lock()
        self.go = Event()
        self.taken: list[int] = []
        self.by: Counter[str] = Counter()

    async def work(self, name: str) -> None:
        """On asyncio's loops and in trio alike."""
        await self.go.wait()
        async for item in self.queue:
            async with self.lock:
                self.note(name, item)

    def work_on_thread(self) -> None:
        self.go.sync.wait()
        for item in self.queue.sync:
            with self.lock.sync:
                self.note("thread", item)

    def note(self, name: str, item: int) -> None:
        self.taken.append(item)
        self.by[name] += 1


def test_two_loops_trio_and_a_thread_share_a_queue_a_lock_and_an_event() -> None:
    """Every item is taken once, under the lock, by whoever comes first."""
    shared = Shared()
    sides = [
        TestThread(lambda: asyncio.run(shared.work("left"))),
        TestThread(lambda: asyncio.run(shared.work("right"))),
        TestThread(lambda: trio.run(shared.work, "trio")),
        TestThread(shared.work_on_thread),
    ]
    shared.go.set()
    shared.queue.sync.put_many(range(ITEMS))
    shared.queue.shutdown()
    for side in sides:
        side.result()
    assert sorted(shared.taken) == list(range(ITEMS))
    assert sum(shared.by.values()) == ITEMS
    assert not shared.lock.locked()

"""What the benchmarks of locks do, once for each way to spell it: polyloop and asyncio, aiologic, threads.

The spellings differ where the libraries do: aiologic's events and conditions are awaited themselves, its objects are
context managers for threads too, and polyloop's have a ``sync`` face for that.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

#: Does it so many times with the object.
type AsyncMove = Callable[[Any, int], Coroutine[Any, Any, None]]
type SyncMove = Callable[[Any, int], None]


# Alone


async def enter(lock: Any, count: int) -> None:
    for _ in range(count):
        async with lock:
            pass


async def enter_and_notify(condition: Any, count: int) -> None:
    for _ in range(count):
        async with condition:
            condition.notify()


async def set_wait_clear(event: Any, count: int) -> None:
    for _ in range(count):
        event.set()
        await event.wait()
        event.clear()


async def set_await_clear(event: Any, count: int) -> None:
    for _ in range(count):
        event.set()
        await event
        event.clear()


def with_(lock: Any, count: int) -> None:
    for _ in range(count):
        with lock:
            pass


def with_face(lock: Any, count: int) -> None:
    for _ in range(count):
        with lock.sync:
            pass


def with_and_notify(condition: Any, count: int) -> None:
    for _ in range(count):
        with condition:
            condition.notify()


def with_face_and_notify(condition: Any, count: int) -> None:
    for _ in range(count):
        with condition.sync:
            condition.notify()


def set_block_clear(event: Any, count: int) -> None:
    for _ in range(count):
        event.set()
        event.wait()
        event.clear()


def set_block_clear_face(event: Any, count: int) -> None:
    for _ in range(count):
        event.set()
        event.sync.wait()
        event.clear()


def keep_face(lock: Any, count: int) -> None:
    with_(lock.sync, count)


def keep_face_and_notify(condition: Any, count: int) -> None:
    with_and_notify(condition.sync, count)


def keep_face_of_event(event: Any, count: int) -> None:
    set_block_clear(event.sync, count)


# Together: each has partners who do the same


class Section:
    """A section as short as they come, which only counts how often it changes sides.

    Where it hardly ever does, the two sides ran one after the other, and a figure tells little about contention.
    """

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.side = 0
        self.changes = 0

    async def enter(self, me: int, count: int) -> None:
        for _ in range(count):
            async with self.lock:
                if self.side != me:
                    self.side = me
                    self.changes += 1

    def enter_blocking(self, me: int, count: int) -> None:
        face = getattr(self.lock, "sync", self.lock)
        for _ in range(count):
            with face:
                if self.side != me:
                    self.side = me
                    self.changes += 1


async def enter_and_yield(lock: Any, count: int) -> None:
    """A section that is held over a step of the loop, so that all others queue up for it."""
    for _ in range(count):
        async with lock:
            await asyncio.sleep(0)


class EventPair:
    """Two events for two partners, of whom each waits for one and sets the other."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.events = (make(), make())

    async def lap(self, me: int, count: int) -> None:
        mine, other = self.events[me], self.events[1 - me]
        for _ in range(count):
            if me == 0:
                other.set()
            await mine.wait()
            mine.clear()
            if me == 1:
                other.set()

    async def lap_awaiting(self, me: int, count: int) -> None:
        mine, other = self.events[me], self.events[1 - me]
        for _ in range(count):
            if me == 0:
                other.set()
            await mine
            mine.clear()
            if me == 1:
                other.set()

    def lap_blocking(self, me: int, count: int) -> None:
        mine, other = self.events[me], self.events[1 - me]
        mine, other = getattr(mine, "sync", mine), getattr(other, "sync", other)
        for _ in range(count):
            if me == 0:
                other.set()
            mine.wait()
            mine.clear()
            if me == 1:
                other.set()


class Turns:
    """A condition and whose turn it is: the partners take turns, and tell each other."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.condition = make()
        self.turn = 0

    async def lap(self, me: int, count: int) -> None:
        condition = self.condition
        for _ in range(count):
            async with condition:
                while self.turn != me:
                    await condition.wait()
                self.turn = 1 - me
                condition.notify()

    async def lap_awaiting(self, me: int, count: int) -> None:
        condition = self.condition
        for _ in range(count):
            async with condition:
                while self.turn != me:
                    await condition
                self.turn = 1 - me
                condition.notify()

    def lap_blocking(self, me: int, count: int) -> None:
        condition = getattr(self.condition, "sync", self.condition)
        for _ in range(count):
            with condition:
                while self.turn != me:
                    condition.wait()
                self.turn = 1 - me
                condition.notify()

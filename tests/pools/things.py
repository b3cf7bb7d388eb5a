"""Resources for the tests of pools: each knows its loop, and all of them are counted."""

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from polyloop.pools import ResourcePool


class Thing:
    """Something that may be used on the loop only that made it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.loop = asyncio.get_running_loop()
        self.dead = False
        self.closed = False
        self.resets = 0
        self.users: deque[None] = deque()

    def __repr__(self) -> str:
        return f"<Thing {self.number}>"

    def use(self) -> int:
        """Must be on its loop, open, and in nobody else's hands."""
        assert asyncio.get_running_loop() is self.loop
        assert not self.closed
        self.users.append(None)
        assert len(self.users) == 1
        self.users.pop()
        return self.number


class Factory:
    """Makes and closes things, and never lets there be more than ``most``.

    Args:
        most: The cap, which is asserted.
        wait: What making and closing a thing waits for; by default for one turn of the loop.
    """

    def __init__(self, most: int = 1_000_000, wait: Callable[[], Awaitable[object]] | None = None) -> None:
        self.most = most
        self.wait = wait or (lambda: asyncio.sleep(0))
        self.things: dict[int, Thing] = {}  # those that are open
        self.highest = 0
        self.failing: deque[BaseException] = deque()  # what the next ones raise instead
        self.made_in: list[dict[Any, Any]] = []
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards _open
        self._open = 0

    @property
    def open(self) -> int:
        """How many there are, are being made or closed."""
        return self._open

    def _count(self, change: int) -> None:
        with self._lock:
            self._open += change
            self.highest = max(self.highest, self._open)
            assert self._open <= self.most

    async def create(self) -> Thing:
        self._count(1)
        try:
            await self.wait()
            if self.failing:
                raise self.failing.popleft()
        except BaseException:
            self._count(-1)
            raise
        thing = Thing(next(self._numbers))
        self.things[thing.number] = thing
        return thing

    async def close(self, thing: Thing) -> None:
        assert not thing.closed
        assert asyncio.get_running_loop() is thing.loop
        thing.closed = True
        try:
            await self.wait()
        finally:
            del self.things[thing.number]
            self._count(-1)

    def pool(self, **options: Any) -> ResourcePool[Thing]:
        """A pool of them; at most ``most`` of them, if that was given."""
        options.setdefault("max_size", min(self.most, 4))
        return ResourcePool(self.create, self.close, **options)


async def use(pool: ResourcePool[Thing]) -> int:
    """Borrow one, and use it; its number."""
    async with pool.acquire() as thing:
        return thing.use()


class Held:
    """A loan that goes on until the test says so."""

    def __init__(self, pool: ResourcePool[Thing]) -> None:
        self.pool = pool
        self.thing: Thing | None = None
        self._end = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._hold())

    async def _hold(self) -> None:
        async with self.pool.acquire() as thing:
            self.thing = thing
            await self._end.wait()

    def end(self) -> None:
        """On its loop."""
        self._end.set()

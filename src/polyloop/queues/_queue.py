"""``Queue``: first in, first out, between any loops and any threads.

Theory. ``_items`` holds the items, ``_room`` the free places of a bounded queue, and each has a line of those who wait
for one: ``_getters`` and ``_putters``. An item or a place is there or is taken by single operations of a deque, so
nothing is lost or given twice whatever runs at once, and no lock is held. Who waits is woken to try again (see
``_core._waiting``): who is running takes what it finds, and so a queue between busy loops wakes nobody.

Shutting down. ``_down`` is filled for good, and then all who wait are woken. A put appends its item and *then* looks at
``_down``; a get that finds no item looks at ``_down`` and *then* for an item again. So of an item that is appended
while the queue is shut down, either the put sees that, or every get that raises has seen the item. A put that sees it
takes its item back, if nobody has got it, and raises. Where items are taken back, and where a get decides to raise, is
ordered by ``_ending``: nobody takes a queue for empty whose items are in the hands of a put. A put that begins when
``shutdown`` has returned appends nothing: it finds no place, bound or not.
"""

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Self, cast

from polyloop._core import _prims
from polyloop._core._errors import QueueEmpty, QueueFull, QueueShutDown
from polyloop._core._waiting import NOTHING, Line, Nothing, Stock, block_until, until, wake_all, wake_next
from polyloop.queues._sync import SyncQueue, check_max
from polyloop.queues._tally import FOLD_ABOVE, Tally

#: Says how much an item weighs.
type Sizer[T] = Callable[[T], float]


class Queue[T]:
    """A first-in, first-out queue for tasks of any loops and for plain threads; ``asyncio.Queue`` across loops.

    The queue itself has asyncio's methods; ``queue.sync`` has those of ``queue.Queue``, for plain threads. Both may be
    used at once. The items of one producer are got in the order it put them. Who waits is woken in the order of
    coming, but a getter that is running may take an item before one that is still waking up.

    Args:
        maxsize: Most items at once, or most weight; 0 and below set no bound.
        sizer: Returns the weight of an item, at least 0. ``put`` then waits until the weight of all items is at most
            ``maxsize``, in turn; such a queue takes a lock for each step.
    Cancellation: a cancelled ``put`` has put nothing, a cancelled ``get`` has taken nothing.
    Thread safety: every method may be called from any loop and any thread; those that do not wait, also from signal
    handlers and finalisers.

    .. versionadded:: 0.2
    """

    _fifo = True  # whether the items are in _items, and nowhere else

    def __new__(cls, *args: Any, sizer: Sizer[T] | None = None, **options: Any) -> Self:
        if sizer is not None and cls is Queue:
            from polyloop.queues._ordered import WeighedQueue  # noqa: PLC0415 - it is made of this class

            return cast("Self", object.__new__(WeighedQueue))
        return object.__new__(cls)

    def __init__(self, maxsize: float = 0, *, sizer: Sizer[T] | None = None) -> None:
        if sizer is not None:
            raise TypeError(f"{type(self).__name__} cannot weigh its items; use Queue itself, or a LifoQueue")
        self._maxsize = maxsize
        self._items: deque[T] = deque()
        self._getters: Line = deque()
        self._putters: Line = deque()
        self._joiners: Line = deque()
        self._room = Stock(math.ceil(maxsize)) if 0 < maxsize < math.inf else None
        # None: as many as anybody wants.
        self._places: deque[None] | None = self._room.free if self._room is not None else None
        self._tally = Tally()
        self._units = self._tally.units
        self._down: deque[None] = deque(maxlen=1)  # filled once, for good
        self._ending = _prims.RLock()  # see the module's theory; a finaliser may put, get and take it again under it

    # What it is

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {id(self):#x} {self._format()}>"

    def __str__(self) -> str:
        return f"<{type(self).__name__} {self._format()}>"

    def _format(self) -> str:
        parts = [f"maxsize={self._maxsize!r}"]
        if items := self._snapshot():
            parts.append(f"_queue={items!r}")
        if self._getters:
            parts.append(f"_getters[{len(self._getters)}]")
        if self._putters:
            parts.append(f"_putters[{len(self._putters)}]")
        if unfinished := self._tally.count:
            parts.append(f"tasks={unfinished}")
        if self._down:
            parts.append("shutdown")
        return " ".join(parts)

    @property
    def maxsize(self) -> float:
        """Most items at once; 0 and below set no bound."""
        return self._maxsize

    def qsize(self) -> int:
        """How many items are in the queue now."""
        return len(self._items)

    def empty(self) -> bool:
        """Whether the queue has no item now."""
        return not self.qsize()

    def full(self) -> bool:
        """Whether the queue has no room now; never, if it has no bound."""
        return 0 < self._maxsize <= self.qsize()

    @property
    def unfinished_tasks(self) -> int:
        """How many items were put and not reported by ``task_done``."""
        return self._tally.count

    # Putting

    async def put(self, item: T) -> None:
        """Put an item, waiting for room if need be.

        Raises:
            QueueShutDown: the queue was shut down; nothing was put.
        """
        places = self._places
        if places is not None:
            try:
                places.pop()
            except IndexError:
                await until(self._putters, self._try_place)
        units = self._units
        units.append(None)  # before the item: whoever gets it may report it at once
        self._items.append(item)
        if self._getters or self._down or len(units) > FOLD_ABOVE:
            self._after_put(item)

    def put_nowait(self, item: T) -> None:
        """Put an item.

        Raises:
            QueueFull: there is no room.
            QueueShutDown: the queue was shut down; nothing was put.
        """
        places = self._places
        if places is not None:
            try:
                places.pop()
            except IndexError:
                if self._try_place() is NOTHING:
                    raise QueueFull(self._full_message()) from None
        units = self._units
        units.append(None)
        self._items.append(item)
        if self._getters or self._down or len(units) > FOLD_ABOVE:
            self._after_put(item)

    def _after_put(self, item: T) -> None:
        if self._down and self._take_back(item):
            raise self._ended()
        wake_next(self._getters)
        if len(self._units) > FOLD_ABOVE:  # here, and not where items are got: the units are the putters' own
            self._fold()

    def _block_put(self, item: T, timeout: float | None) -> bool:
        """Put an item on a plain thread; ``False`` when ``timeout`` seconds have passed first."""
        look = None if self._places is None else self._places.__len__
        if block_until(self._putters, self._try_place, timeout, look) is NOTHING:
            return False
        self._units.append(None)
        self._items.append(item)
        self._after_put(item)
        return True

    def _try_place(self) -> Nothing | None:
        """Take a place for an item, if there is one."""
        if self._down:
            raise self._ended()
        assert self._room is not None  # else nobody has looked for a place but after the end
        return None if self._room.take_nowait() else NOTHING

    def _take_back(self, item: T) -> bool:
        """Withdraw an item that was put at the time of the shutdown; ``False`` if it has been got."""
        others: list[T] = []
        with self._ending:
            try:
                while (last := self._items.pop()) is not item:
                    others.append(last)
            except IndexError:
                return False
            finally:
                self._items.extend(reversed(others))
        self._dropped(1)
        return True

    # Getting

    async def get(self) -> T:
        """Take the first item, waiting for one if need be.

        Raises:
            QueueShutDown: the queue was shut down and is empty.
        """
        try:
            item = self._items.popleft()
        except IndexError:
            return await until(self._getters, self._try_get)
        if self._places is not None:
            self._made_room(1)
        return item

    def get_nowait(self) -> T:
        """Take the first item.

        Raises:
            QueueEmpty: there is none.
            QueueShutDown: there is none, and the queue was shut down.
        """
        item = self._try_get()
        if item is NOTHING:
            raise QueueEmpty(f"{type(self).__name__} is empty; use 'await get()' to wait for an item")
        return cast("T", item)

    def _try_get(self) -> T | Nothing:
        try:
            item = self._items.popleft()
        except IndexError:
            if not self._down:
                return NOTHING
            item = self._last_look()
        if self._places is not None:
            self._made_room(1)
        return item

    def _last_look(self) -> T:
        """What a put that raced with the shutdown has left, or the end."""
        with self._ending:
            try:
                return self._items.popleft()
            except IndexError:
                raise self._ended() from None

    def peek_nowait(self) -> T:
        """Return the first item without taking it.

        Raises:
            QueueEmpty: there is none.
            QueueShutDown: there is none, and the queue was shut down.
        """
        try:
            return self._items[0]
        except IndexError:
            if self._down:
                with self._ending:
                    if self._items:  # a put that takes its item back had them in its hands
                        return self._items[0]
                raise self._ended() from None
            raise QueueEmpty(f"{type(self).__name__} is empty; there is nothing to peek at") from None

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate over the items until the queue is shut down and empty; several may."""
        return self

    async def __anext__(self) -> T:
        try:
            return await self.get()
        except QueueShutDown:
            raise StopAsyncIteration from None

    # Several at once

    async def put_many(self, items: Iterable[T]) -> None:
        """Put items in their order, waiting for room as need be; cheaper than one by one.

        Raises:
            QueueShutDown: the queue was shut down; its ``items_put`` says how many were put before, and stay.
        Cancellation: what was put stays; the rest was not put.
        """
        batch, put = self._put_at_once(items)
        try:
            while put < len(batch):
                await self.put(batch[put])
                put += 1
        except QueueShutDown as exc:
            exc.items_put = put
            raise

    def put_many_nowait(self, items: Iterable[T]) -> int:
        """Put as many of ``items`` as there is room for, in their order; return how many.

        Raises:
            QueueShutDown: the queue was shut down; its ``items_put`` says how many were put before, and stay.
        """
        batch, put = self._put_at_once(items)
        try:
            while put < len(batch):
                self.put_nowait(batch[put])
                put += 1
        except QueueFull:
            return put
        except QueueShutDown as exc:
            exc.items_put = put
            raise
        return len(batch)

    def _put_at_once(self, items: Iterable[T]) -> tuple[list[T], int]:
        """Put what needs no waiting; return all items, and how many of them were put."""
        batch = list(items)
        if self._places is not None or self._down:
            return batch, 0
        self._units.extend([None] * len(batch))
        self._items.extend(batch)
        if self._down:
            put = len(batch) - sum([self._take_back(item) for item in reversed(batch)])
            if put < len(batch):
                exc = self._ended()
                exc.items_put = put
                raise exc
        for _ in range(min(len(batch), len(self._getters))):
            wake_next(self._getters)
        while len(self._units) > FOLD_ABOVE:
            self._fold()
        return batch, len(batch)

    async def get_many(self, max_items: int) -> list[T]:
        """Take the first items, at least one and at most ``max_items``, waiting only for the first.

        Raises:
            QueueShutDown: the queue was shut down and is empty.
            ValueError: ``max_items`` is below 1.
        Cancellation: nothing was taken.
        """
        check_max(max_items)
        return self._with_more(await self.get(), max_items)

    def get_many_nowait(self, max_items: int) -> list[T]:
        """Take the first items, at most ``max_items``; an empty list if there is none.

        Raises:
            QueueShutDown: there is none, and the queue was shut down.
            ValueError: ``max_items`` is below 1.
        """
        check_max(max_items)
        first = self._try_get()
        return [] if first is NOTHING else self._with_more(cast("T", first), max_items)

    def _with_more(self, first: T, max_items: int) -> list[T]:
        taken = [first]
        popleft = self._items.popleft
        try:
            while len(taken) < max_items:
                taken.append(popleft())
        except IndexError:
            pass
        self._made_room(len(taken) - 1)  # get() has made that for the first
        return taken

    def clear(self) -> int:
        """Drop all items, as if they had been got and reported by ``task_done``; return how many."""
        dropped: list[T] = []
        with self._ending:  # nothing is in the hands of a put that takes its item back
            try:
                while True:
                    dropped.append(self._items.popleft())
            except IndexError:
                pass
        self._dropped(len(dropped))
        return len(dropped)

    def _made_room(self, places: int) -> None:
        """Make room for so many items, and wake as many who wait for it."""
        if self._places is None:
            return
        if places == 1:
            self._places.append(None)
            if self._putters:
                wake_next(self._putters)
            return
        self._places.extend([None] * places)
        for _ in range(min(places, len(self._putters))):
            wake_next(self._putters)

    def _dropped(self, items: int) -> None:
        """Account for items that nobody will report."""
        self._made_room(items)
        for _ in range(items):
            if self._tally.lower():
                self._look_whether_finished()

    # Joining

    def task_done(self) -> None:
        """Report that an item that was got has been dealt with.

        Raises:
            ValueError: called more often than items were put.
        """
        if not self._tally.lower():
            raise ValueError("task_done() called too many times")
        self._look_whether_finished()

    def _fold(self) -> None:
        self._tally.fold()
        self._look_whether_finished()

    def _look_whether_finished(self) -> None:
        if self._joiners and self._tally.is_zero():
            wake_all(self._joiners)

    async def join(self) -> None:
        """Wait until every item that was put has been reported by ``task_done``."""
        if self._try_join() is NOTHING:
            await until(self._joiners, self._try_join)

    def _try_join(self) -> Nothing | None:
        return None if self._tally.is_zero() else NOTHING

    # Ending

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue: from now on ``put`` raises, and ``get`` too once the queue is empty.

        Args:
            immediate: Drop the items that are still there, as ``clear``. One whose ``put`` has begun before may be
                seen, or got, until that has taken it back.
        """
        self._down.append(None)
        self._places = deque[None](maxlen=0)  # none left, and none to come
        if immediate:
            self.clear()
        wake_all(self._getters)
        wake_all(self._putters)

    @property
    def is_shutdown(self) -> bool:
        """Whether ``shutdown`` was called."""
        return len(self._down) > 0

    def _ended(self) -> QueueShutDown:
        return QueueShutDown(f"{type(self).__name__} was shut down")

    def _full_message(self) -> str:
        return f"{type(self).__name__} has {self._maxsize} items and no room; use 'await put()' to wait for room"

    def _snapshot(self) -> list[T]:
        return list(self._items.copy())

    # Faces

    @property
    def sync(self) -> SyncQueue[T]:
        """The same queue for plain threads, with the signatures of ``queue.Queue``."""
        return SyncQueue(self)

    @property
    def sync_q(self) -> SyncQueue[T]:
        """``sync``, by the name that janus and culsans have for it."""
        return SyncQueue(self)

    @property
    def async_q(self) -> Self:
        """The queue itself, by the name that janus and culsans have for its asyncio face."""
        return self

    @property
    def closed(self) -> bool:
        """``is_shutdown``, by janus' name."""
        return self.is_shutdown

    def close(self) -> None:
        """``shutdown(immediate=True)``, by janus' name."""
        self.shutdown(immediate=True)

    async def wait_closed(self) -> None:
        """Return at once if the queue is closed; for programs written for janus, which has something to wait for.

        Raises:
            RuntimeError: ``close`` was not called.
        """
        if not self.closed:
            raise RuntimeError("Waiting for non-closed queue")

    async def aclose(self) -> None:
        """``close``, by janus' name."""
        self.close()

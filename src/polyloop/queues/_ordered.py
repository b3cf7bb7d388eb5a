"""Queues that keep another order or weigh their items: ``LifoQueue``, ``PriorityQueue``, ``Queue(sizer=…)``.

What these do to their items is more than one operation of a container, so it is done under ``_lock``: a put and a get
are short critical sections, and who waits is woken outside of them. Waiting, joining and the faces are those of
``Queue``.

Code of a user may run under the lock: the comparison of two items of a heap, and a finaliser that the garbage collector
calls. It may put: the lock is one that its holder may take again, and what comes while an operation is under way is
stored when that one has ended. It may not get.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, cast

from polyloop._core import _prims
from polyloop._core._errors import QueueEmpty, QueueFull
from polyloop._core._waiting import NOTHING, Nothing, Permits, block_until, until, wake_next
from polyloop.queues._queue import Queue, Sizer
from polyloop.queues._tally import FOLD_ABOVE


class _Weighed[T]:
    """An item and what it weighed when it was put. Compares as the item."""

    __slots__ = ("item", "weight")

    def __init__(self, item: T, weight: float) -> None:
        self.item = item
        self.weight = weight

    def __lt__(self, other: "_Weighed[T]") -> bool:
        return bool(cast("Any", self.item) < other.item)


class LockedQueue[T](Queue[T]):
    """A queue over any container of entries: items, or ``_Weighed`` ones. Subclasses say how they go in and out."""

    _fifo = False

    def __init__(self, maxsize: float = 0, *, sizer: Sizer[T] | None = None) -> None:
        super().__init__(0)
        self._maxsize = maxsize
        self._sizer = sizer
        self._lock = self._ending  # guards the fields below
        self._store: Any = self._new_store()
        self._load: float = 0  # the weight of the items and of what is late
        self._busy = False  # an operation is under way
        self._late: deque[Any] = deque()  # entries that were put meanwhile, by this thread

    def _new_store(self) -> Any:
        return []

    def _add(self, entry: Any) -> None:
        """Add an entry, or raise and leave all as it was."""
        self._store.append(entry)

    def _take(self) -> Any:
        """Take the next entry, or raise and lose none; ``IndexError`` if there is none."""
        return self._store.pop()

    def _first(self) -> Any:
        """The next entry, or ``IndexError``."""
        return self._store[-1]

    # What it is

    @property
    def size(self) -> float:
        """The weight of all items; their number if there is no ``sizer``."""
        return self._load

    def qsize(self) -> int:
        """How many items are in the queue now."""
        return len(self._store) + len(self._late)

    def full(self) -> bool:
        """Whether the queue has no room now; never, if it has no bound."""
        return 0 < self._maxsize <= self._load

    def _snapshot(self) -> list[T]:
        with self._lock:
            return [self._unwrapped(entry) for entry in self._store]

    def _unwrapped(self, entry: Any) -> T:
        return cast("T", entry if self._sizer is None else entry.item)

    # Putting

    async def put(self, item: T) -> None:
        """Put an item, waiting for room if need be.

        Raises:
            QueueShutDown: the queue was shut down; nothing was put.
            ValueError: the item alone weighs more than ``maxsize``.
        """
        attempt = self._putting(item)
        if attempt() is NOTHING:
            try:
                await until(self._putters, attempt)
            except BaseException:
                wake_next(self._putters)  # a lighter one behind it may fit
                raise
        self._announce()

    def put_nowait(self, item: T) -> None:
        """Put an item.

        Raises:
            QueueFull: there is no room.
            QueueShutDown: the queue was shut down; nothing was put.
            ValueError: the item alone weighs more than ``maxsize``.
        """
        if self._putting(item)() is NOTHING:
            raise QueueFull(self._full_message())
        self._announce()

    def _block_put(self, item: T, timeout: float | None) -> bool:
        if block_until(self._putters, self._putting(item), timeout) is NOTHING:
            wake_next(self._putters)  # a lighter one behind it may fit
            return False
        self._announce()
        return True

    def _put_at_once(self, items: Iterable[T]) -> tuple[list[T], int]:
        return list(items), 0

    def _putting(self, item: T) -> Callable[[], Nothing | None]:
        """What tries to put ``item``."""
        if self._sizer is None:
            return partial(self._try_put, item, 1)
        weight = self._sizer(item)
        if not weight >= 0 or 0 < self._maxsize < weight:  # NaN is neither
            raise ValueError(f"an item of weight {weight!r} never fits into a queue of maxsize={self._maxsize!r}")
        return partial(self._try_put, _Weighed(item, weight), weight)

    def _try_put(self, entry: Any, weight: float) -> Nothing | None:
        with self._lock:
            if self._down:
                raise self._ended()
            if 0 < self._maxsize < self._load + weight:
                return NOTHING
            if self._busy:
                self._late.append(entry)
            else:
                self._operate(self._add, entry)
            self._load += weight
            self._units.append(None)
        return None

    def _operate(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Change the store, and add what comes in meanwhile. The caller has the lock."""
        self._busy = True
        try:
            return operation(*args)
        finally:
            try:
                while self._late:
                    self._add_late(self._late.popleft())
            finally:
                self._busy = False

    def _add_late(self, entry: Any) -> None:
        try:
            self._add(entry)
        except Exception:  # it does not compare: its order is lost, and not the item
            self._store.append(entry)

    def _announce(self) -> None:
        """An item was put: wake who waits for it, and who waits for the room that is left."""
        if self._getters:
            wake_next(self._getters)
        if self._putters and not self.full():
            wake_next(self._putters)
        if len(self._units) > FOLD_ABOVE:
            self._fold()

    # Getting

    async def get(self) -> T:
        """Take the next item, waiting for one if need be.

        Raises:
            QueueShutDown: the queue was shut down and is empty.
        """
        item = self._try_get()
        return cast("T", await until(self._getters, self._try_get) if item is NOTHING else item)

    def _try_get(self) -> T | Nothing:
        with self._lock:
            if self._busy:
                raise RuntimeError(f"{type(self).__name__}.get was called by an operation of the same queue")
            try:
                entry = self._operate(self._take)
            except IndexError:
                if self._down:
                    raise self._ended() from None
                return NOTHING
            self._load -= 1 if self._sizer is None else entry.weight
            if not self._store and not self._late:
                self._load = 0  # whatever is left of a sum of floats
        self._made_room(1)
        return self._unwrapped(entry)

    def peek_nowait(self) -> T:
        """Return the next item without taking it.

        Raises:
            QueueEmpty: there is none.
            QueueShutDown: there is none, and the queue was shut down.
        """
        with self._lock:
            try:
                return self._unwrapped(self._first())
            except IndexError:
                if self._down:
                    raise self._ended() from None
        raise QueueEmpty(f"{type(self).__name__} is empty; there is nothing to peek at")

    def _with_more(self, first: T, max_items: int) -> list[T]:
        taken = [first]
        while len(taken) < max_items and not self.empty():
            try:
                taken.append(self.get_nowait())
            except Exception:  # of a comparison, too: the next get raises it, and none of these is lost
                break
        return taken

    def clear(self) -> int:
        """Drop all items, as if they had been got and reported by ``task_done``; return how many."""
        with self._lock:
            if self._busy:
                raise RuntimeError(f"{type(self).__name__}.clear was called by an operation of the same queue")
            dropped, self._store, self._load = self._store, self._new_store(), 0  # freed when the lock is
        self._dropped(len(dropped))
        return len(dropped)

    def _made_room(self, places: int) -> None:
        if self._putters:
            wake_next(self._putters)  # who wakes the next one when there is room left


class WeighedQueue[T](LockedQueue[T]):
    """What ``Queue(sizer=…)`` makes: first in, first out."""

    def __init__(self, maxsize: float = 0, *, sizer: Sizer[T] | None = None) -> None:
        super().__init__(maxsize, sizer=sizer)
        # Who puts has the turn until there is room for the item, so that lighter ones do not overtake it for ever.
        self._turn = Permits(1)

    def _format(self) -> str:
        waiting = len(self._turn.line)
        return super()._format() + (f" _turn[{waiting}]" if waiting else "")

    def _new_store(self) -> Any:
        return deque[Any]()

    async def put(self, item: T) -> None:
        """Put an item in turn, waiting for room if need be.

        Raises:
            QueueShutDown: the queue was shut down; nothing was put.
            ValueError: the item alone weighs more than ``maxsize``.
        """
        if not self._turn.take_nowait():
            await self._turn.wait()
        try:
            await super().put(item)
        finally:
            self._turn.give()

    def put_nowait(self, item: T) -> None:
        """Put an item.

        Raises:
            QueueFull: there is no room, or somebody waits for room.
            QueueShutDown: the queue was shut down; nothing was put.
            ValueError: the item alone weighs more than ``maxsize``.
        """
        if (self._putters or self._turn.line) and not self._down:
            raise QueueFull(f"{type(self).__name__} has others waiting for room; use 'await put()' to wait in turn")
        super().put_nowait(item)

    def _block_put(self, item: T, timeout: float | None) -> bool:
        deadline = None if timeout is None else _prims.monotonic() + timeout
        if not self._turn.take_nowait() and not self._turn.block(timeout):
            return False
        try:
            return super()._block_put(item, None if deadline is None else max(0.0, deadline - _prims.monotonic()))
        finally:
            self._turn.give()

    def _take(self) -> Any:
        return self._store.popleft()

    def _first(self) -> Any:
        return self._store[0]


class LifoQueue[T](LockedQueue[T]):
    """A ``Queue`` that returns the item last put; ``asyncio.LifoQueue`` across loops. Takes a lock for each step.

    Args:
        maxsize: Most items at once, or most weight; 0 and below set no bound.
        sizer: Returns the weight of an item, at least 0.
    Cancellation and thread safety: as ``Queue``.

    .. versionadded:: 0.2
    """


class PriorityQueue[T](LockedQueue[T]):
    """A ``Queue`` that returns the smallest item; ``asyncio.PriorityQueue`` across loops. Takes a lock for each step.

    Items that cannot be compared raise ``TypeError``, in ``put`` or in ``get``. No item is lost then, but the order is.

    Args:
        maxsize: Most items at once, or most weight; 0 and below set no bound.
        sizer: Returns the weight of an item, at least 0.
    Cancellation and thread safety: as ``Queue``. Items are compared under an internal lock: a comparison may put into
    the same queue, and must not get from it.

    .. versionadded:: 0.2
    """

    def _add(self, entry: Any) -> None:
        store = self._store
        try:
            heapq.heappush(store, entry)
        except BaseException:
            # It has been swapped with its ancestors up to where the comparison failed: swap it back, and drop it.
            path = [len(store) - 1]
            while store[path[-1]] is not entry:
                path.append((path[-1] - 1) // 2)
            for upper, lower in pairwise(reversed(path)):
                store[upper] = store[lower]
            store.pop()
            raise

    def _take(self) -> Any:
        store = self._store
        first = store[0]
        try:
            return heapq.heappop(store)
        except BaseException:
            store.insert(0, first)  # heappop has dropped it
            raise

    def _first(self) -> Any:
        return self._store[0]

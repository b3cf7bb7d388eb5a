"""``SimpleQueue``: an unbounded queue with nothing but items and those who wait for them."""

from collections import deque
from typing import cast

from polyloop._core._errors import QueueEmpty
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._waiting import NOTHING, Line, Nothing, block_until, until, wake_next
from polyloop.queues._sync import check_timeout


class SimpleQueue[T]:
    """An unbounded first-in, first-out queue without ``join`` and ``shutdown``; ``queue.SimpleQueue`` across loops.

    ``put`` never waits. The fastest of the queues.

    Cancellation: a cancelled ``get`` has taken nothing.
    Thread safety: every method may be called from any loop and any thread; ``put`` and ``get_nowait`` also from signal
    handlers and finalisers.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_getters", "_items")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._getters: Line = deque()

    def __repr__(self) -> str:
        return f"<SimpleQueue at {id(self):#x} items={len(self._items)}>"

    def put(self, item: T) -> None:
        """Put an item."""
        self._items.append(item)
        if self._getters:
            wake_next(self._getters)

    def put_nowait(self, item: T) -> None:
        """``put``, by the name that the other queues have for it."""
        self.put(item)

    async def get(self) -> T:
        """Take the first item, waiting for one if need be."""
        try:
            return self._items.popleft()
        except IndexError:
            return await until(self._getters, self._try_get)

    def get_nowait(self) -> T:
        """Take the first item.

        Raises:
            QueueEmpty: there is none.
        """
        try:
            return self._items.popleft()
        except IndexError:
            raise QueueEmpty("SimpleQueue is empty; use 'await get()' to wait for an item") from None

    def _try_get(self) -> T | Nothing:
        try:
            return self._items.popleft()
        except IndexError:
            return NOTHING

    def qsize(self) -> int:
        """How many items are in the queue now."""
        return len(self._items)

    def empty(self) -> bool:
        """Whether the queue has no item now."""
        return not self._items

    @property
    def sync(self) -> "SyncSimpleQueue[T]":
        """The same queue for plain threads, with the signatures of ``queue.SimpleQueue``."""
        return SyncSimpleQueue(self)


class SyncSimpleQueue[T]:
    """The face of a ``SimpleQueue`` for plain threads, with the signatures of ``queue.SimpleQueue``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_append", "_popleft", "_queue", "_waiting")

    def __init__(self, queue: SimpleQueue[T]) -> None:
        self._queue = queue
        self._append = queue._items.append  # bound for this face: see SyncQueue
        self._popleft = queue._items.popleft
        self._waiting = queue._getters.__len__

    def __repr__(self) -> str:
        return f"<sync face of {self._queue!r}>"

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item; ``block`` and ``timeout`` are ignored, as by ``queue.SimpleQueue``."""
        self._append(item)
        if self._waiting():
            wake_next(self._queue._getters)

    def put_nowait(self, item: T) -> None:
        """Put an item."""
        self._queue.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the first item.

        Args:
            block: Whether to wait for one.
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            BlockingCallError: there is none, and this thread runs a loop.
            QueueEmpty: there was none, or none in time.
            ValueError: a ``timeout`` below 0.
        """
        if timeout is not None and block:
            check_timeout(timeout)
        try:
            return self._popleft()
        except IndexError:
            item: T | Nothing = NOTHING
        queue = self._queue
        if block:
            refuse_on_loop_thread("queue.sync.get()", "await queue.get()", timeout)
            item = block_until(queue._getters, queue._try_get, timeout, queue._items.__len__)
        if item is NOTHING:
            raise QueueEmpty("SimpleQueue is empty" + (f" after {timeout} s" if block else ""))
        return cast("T", item)

    def get_nowait(self) -> T:
        """Take the first item, or raise ``QueueEmpty``."""
        return self._queue.get_nowait()

    def qsize(self) -> int:
        """How many items are in the queue now."""
        return self._queue.qsize()

    def empty(self) -> bool:
        """Whether the queue has no item now."""
        return self._queue.empty()

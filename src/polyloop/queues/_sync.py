"""The face of the queues for plain threads."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

from polyloop._core._errors import BlockingCallError, QueueEmpty, QueueFull, QueueShutDown
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._waiting import NOTHING, block_until
from polyloop.queues._tally import FOLD_ABOVE

if TYPE_CHECKING:
    from polyloop.queues._queue import Queue


class SyncQueue[T]:
    """The face of a queue for plain threads, with the signatures of ``queue.Queue``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = (
        "__weakref__", "_append", "_count", "_counted", "_down", "_popleft", "_queue", "_waiting"
    )  # fmt: skip

    def __init__(self, queue: "Queue[T]") -> None:
        self._queue = queue
        # What a put and a get do to the containers of a plain queue, bound once for this face. Two threads that reach
        # the same objects through the queue write to the same reference counts at every step; with a face for each
        # thread they do not, which doubles what goes through.
        plain = queue._fifo and type(queue).__module__ == __name__.rpartition(".")[0] + "._queue"  # not a user's own
        self._append = queue._items.append if plain and queue._places is None else None
        self._popleft = queue._items.popleft if plain else None
        self._count = queue._units.append
        self._counted = queue._units.__len__
        self._waiting = queue._getters.__len__
        self._down = queue._down.__len__

    def __repr__(self) -> str:
        return f"<sync face of {self._queue!r}>"

    @property
    def maxsize(self) -> float:
        """Most items at once; 0 and below set no bound."""
        return self._queue.maxsize

    @property
    def unfinished_tasks(self) -> int:
        """How many items were put and not reported by ``task_done``."""
        return self._queue.unfinished_tasks

    @property
    def is_shutdown(self) -> bool:
        """Whether ``shutdown`` was called."""
        return self._queue.is_shutdown

    @property
    def closed(self) -> bool:
        """``is_shutdown``, by janus' name."""
        return self._queue.is_shutdown

    def qsize(self) -> int:
        """How many items are in the queue now."""
        return self._queue.qsize()

    def empty(self) -> bool:
        """Whether the queue has no item now."""
        return self._queue.empty()

    def full(self) -> bool:
        """Whether the queue has no room now."""
        return self._queue.full()

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item.

        Args:
            block: Whether to wait for room.
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            BlockingCallError: there is no room, and this thread runs a loop.
            QueueFull: there was no room, or none in time.
            QueueShutDown: the queue was shut down; nothing was put.
            ValueError: a ``timeout`` below 0.
        """
        append = self._append
        if append is not None and not self._down():
            self._count(None)  # as Queue.put
            append(item)
            if self._waiting() or self._down() or self._counted() > FOLD_ABOVE:
                self._queue._after_put(item)
            return
        queue = self._queue
        if timeout is not None and block:
            check_timeout(timeout)
        try:
            queue.put_nowait(item)
        except QueueFull:
            if not block:
                raise
        else:
            return
        refuse_on_loop_thread("queue.sync.put()", "await queue.put()", timeout)
        if not queue._block_put(item, timeout):
            raise QueueFull(f"{type(queue).__name__} had no room for {timeout} s")

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take an item.

        Args:
            block: Whether to wait for one.
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            BlockingCallError: there is none, and this thread runs a loop.
            QueueEmpty: there was none, or none in time.
            QueueShutDown: the queue was shut down and is empty.
            ValueError: a ``timeout`` below 0.
        """
        if timeout is not None and block:
            check_timeout(timeout)
        popleft = self._popleft
        if popleft is not None:
            try:
                found = popleft()
            except IndexError:
                pass
            else:
                if self._append is None:  # bounded
                    self._queue._made_room(1)
                return found
        queue = self._queue
        item = queue._try_get()
        if item is NOTHING and block:
            refuse_on_loop_thread("queue.sync.get()", "await queue.get()", timeout)
            look = queue._items.__len__ if queue._fifo else queue.qsize
            item = block_until(queue._getters, queue._try_get, timeout, look)
        if item is NOTHING:
            raise QueueEmpty(f"{type(queue).__name__} is empty" + (f" after {timeout} s" if block else ""))
        return cast("T", item)

    def put_nowait(self, item: T) -> None:
        """Put an item, or raise ``QueueFull``."""
        self._queue.put_nowait(item)

    def get_nowait(self) -> T:
        """Take an item, or raise ``QueueEmpty``."""
        return self._queue.get_nowait()

    def peek_nowait(self) -> T:
        """Return the next item without taking it, or raise ``QueueEmpty``."""
        return self._queue.peek_nowait()

    def put_many(self, items: Iterable[T], timeout: float | None = None) -> None:
        """Put items in their order, waiting for room as need be, for each at most ``timeout`` seconds.

        Raises:
            BlockingCallError, QueueFull, QueueShutDown: as ``put``; ``items_put`` says how many were put before.
            ValueError: a ``timeout`` below 0.
        """
        batch, put = self._queue._put_at_once(items)
        try:
            while put < len(batch):
                self.put(batch[put], timeout=timeout)
                put += 1
        except (BlockingCallError, QueueFull, QueueShutDown) as exc:
            exc.items_put = put
            raise

    def get_many(self, max_items: int, timeout: float | None = None) -> list[T]:
        """Take the next items, at least one and at most ``max_items``, waiting only for the first.

        Raises:
            BlockingCallError, QueueEmpty, QueueShutDown: as ``get``.
            ValueError: ``max_items`` is below 1, or ``timeout`` below 0.
        """
        check_max(max_items)
        return self._queue._with_more(self.get(timeout=timeout), max_items)

    def clear(self) -> int:
        """Drop all items; return how many."""
        return self._queue.clear()

    def task_done(self) -> None:
        """Report that an item that was got has been dealt with.

        Raises:
            ValueError: called more often than items were put.
        """
        self._queue.task_done()

    def join(self) -> None:
        """Wait until every item that was put has been reported by ``task_done``.

        Raises:
            BlockingCallError: it would have to wait, and this thread runs a loop.
        """
        queue = self._queue
        if queue._try_join() is NOTHING:
            refuse_on_loop_thread("queue.sync.join()", "await queue.join()")
            block_until(queue._joiners, queue._try_join, None)

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue: from now on ``put`` raises, and ``get`` too once the queue is empty."""
        self._queue.shutdown(immediate)

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items until the queue is shut down and empty; several threads may."""
        return self

    def __next__(self) -> T:
        try:
            return self.get()
        except QueueShutDown:
            raise StopIteration from None


def check_max(max_items: int) -> None:
    if max_items < 1:
        raise ValueError(f"max_items must be at least 1, got {max_items!r}")


def check_timeout(timeout: float | None) -> None:
    if timeout is not None and not timeout >= 0:  # NaN is refused, too
        raise ValueError(f"'timeout' must be a non-negative number, got {timeout!r}")

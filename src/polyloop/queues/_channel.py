"""``channel``: items from any number of senders to any number of receivers, each item to one of them.

The items, the room for them and the end are those of a ``Queue`` (see ``_queue`` for why nothing is lost). The last
sender that is closed shuts it down, the last receiver shuts it down and drops what is left. See ``_ends`` for who is
the last.
"""

import math

from polyloop._core._errors import QueueFull, QueueShutDown
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._waiting import NOTHING, Line, Nothing
from polyloop.queues._ends import ClonableEnd, ItemReceiver, Side
from polyloop.queues._queue import Queue
from polyloop.queues._several import Standing, block_until_any, until_any
from polyloop.queues._sync import check_timeout


class _Pipe[T]:
    """The queue between the ends, and who they are."""

    __slots__ = ("queue", "receivers", "senders")

    def __init__(self, maxsize: int) -> None:
        self.queue = Queue[T](maxsize)
        self.senders = Side(self.queue._ending)
        self.receivers = Side(self.queue._ending)

    def take_place(self) -> Nothing | None:
        """Take a place for an item, or ``NOTHING``; ``QueueShutDown`` if one side has gone."""
        queue = self.queue
        return None if queue._room is None else queue._try_place()

    def places(self) -> int:
        """How many places are free, for a thread that waits for one."""
        assert self.queue._room is not None
        return self.queue._room.count

    def store(self, item: T) -> None:
        """Put an item where a place was taken; ``QueueShutDown`` if one side has gone, and nothing was put."""
        queue = self.queue
        queue._items.append(item)
        if queue._getters or queue._down:
            queue._after_put(item)


class _PipeEnd[T](ClonableEnd):
    __slots__ = ()

    _pipe: _Pipe[T]

    def _counts(self) -> tuple[int, int]:
        return len(self._pipe.senders), len(self._pipe.receivers)

    @property
    def capacity(self) -> float:
        """Most items that were sent and not received; ``math.inf`` if there is no bound."""
        return self._pipe.queue.maxsize or math.inf

    @property
    def pending(self) -> int:
        """How many items were sent and not received."""
        return self._pipe.queue.qsize()


class Sender[T](_PipeEnd[T]):
    """An end of a ``channel`` that items are sent to. Made by ``channel`` and by ``clone``.

    ``with sender`` and ``async with sender`` close it at the end of the block. One that is dropped without having been
    closed is closed then, with a ``ResourceWarning``; when that is, nobody promises.

    Cancellation: a cancelled ``send`` has sent nothing.
    Thread safety: every method may be called from any loop and any thread; ``send_nowait`` and ``close`` also from
    signal handlers and finalisers. The items that one task or thread sends are received in their order.

    .. versionadded:: 0.2
    """

    __slots__ = ("_lines", "_pipe")

    def __init__(self, pipe: _Pipe[T], origin: "Sender[T] | None" = None) -> None:
        self._pipe = pipe
        super().__init__(pipe.senders, pipe.receivers, origin)
        self._lines: tuple[Line, ...] = (pipe.queue._putters, self._closing)

    def clone(self) -> "Sender[T]":
        """Make another sender of the same channel: each is closed by itself.

        Raises:
            ClosedEndError: this one was closed.
        """
        return Sender(self._pipe, self)

    async def send(self, item: T) -> None:
        """Send an item, waiting for room if need be.

        Raises:
            ChannelClosed: all receivers are closed; nothing was sent.
            ClosedEndError: this sender was closed, before or meanwhile; nothing was sent.
        """
        if self._try_place() is NOTHING:
            await until_any(Standing(self._lines), self._try_place)
        self._store(item)

    def send_nowait(self, item: T) -> None:
        """Send an item.

        Raises:
            QueueFull: there is no room.
            ChannelClosed, ClosedEndError: as ``send``.
        """
        if self._try_place() is NOTHING:
            raise QueueFull(f"the channel has {self.capacity} items and no room; use 'await send()' to wait for room")
        self._store(item)

    def _try_place(self) -> Nothing | None:
        if not self._open:
            raise self._refusal()
        try:
            return self._pipe.take_place()
        except QueueShutDown:
            raise self._refusal() from None

    def _store(self, item: T) -> None:
        try:
            self._pipe.store(item)
        except QueueShutDown:
            raise self._refusal() from None

    def _last_closed(self) -> None:
        self._pipe.queue.shutdown()

    def _why_closed(self) -> str:
        return "all receivers are closed; nobody will receive this item"

    @property
    def sync(self) -> "SyncSender[T]":
        """The same sender for plain threads."""
        return SyncSender(self)


class SyncSender[T]:
    """The face of a ``Sender`` for plain threads.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_sender")

    def __init__(self, sender: Sender[T]) -> None:
        self._sender = sender

    def __repr__(self) -> str:
        return f"<sync face of {self._sender!r}>"

    def send(self, item: T, timeout: float | None = None) -> None:
        """Send an item, waiting for room if need be.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            BlockingCallError: there is no room, and this thread runs a loop.
            QueueFull: there was no room in time.
            ChannelClosed, ClosedEndError: as ``send`` of the sender itself.
            ValueError: a ``timeout`` below 0.
        """
        sender = self._sender
        if sender._try_place() is NOTHING:
            check_timeout(timeout)
            refuse_on_loop_thread("sender.sync.send()", "await sender.send()", timeout)
            standing = Standing(sender._lines)
            if block_until_any(standing, sender._try_place, timeout, sender._pipe.places) is NOTHING:
                raise QueueFull(f"the channel had no room for {timeout} s")
        sender._store(item)

    def send_nowait(self, item: T) -> None:
        """Send an item, or raise ``QueueFull``."""
        self._sender.send_nowait(item)

    def close(self) -> None:
        """Close the sender."""
        self._sender.close()


class Receiver[T](ItemReceiver[T], _PipeEnd[T]):
    """An end of a ``channel`` that items are received from. Made by ``channel`` and by ``clone``.

    Each item goes to one receiver. ``async for item in receiver`` ends when all senders are closed and nothing is left.
    ``with receiver`` and ``async with receiver`` close it at the end of the block. One that is dropped without having
    been closed is closed then, with a ``ResourceWarning``; when that is, nobody promises.

    Cancellation: a cancelled ``receive`` has taken nothing.
    Thread safety: every method may be called from any loop and any thread; ``receive_nowait`` and ``close`` also from
    signal handlers and finalisers.

    .. versionadded:: 0.2
    """

    __slots__ = ("_pipe",)

    def __init__(self, pipe: _Pipe[T], origin: "Receiver[T] | None" = None) -> None:
        self._pipe = pipe
        super().__init__(pipe.receivers, pipe.senders, origin)

    @property
    def _lines(self) -> tuple[Line, ...]:
        return (self._pipe.queue._getters, self._closing)

    def clone(self) -> "Receiver[T]":
        """Make another receiver of the same channel: each is closed by itself.

        Raises:
            ClosedEndError: this one was closed.
        """
        return Receiver(self._pipe, self)

    def _try_get(self) -> T | Nothing:
        if not self._open:
            raise self._refusal()
        try:
            return self._pipe.queue._try_get()
        except QueueShutDown:
            raise self._refusal() from None

    def _look(self) -> object:
        return self._pipe.queue._items

    def _last_closed(self) -> None:
        self._pipe.queue.shutdown(immediate=True)

    def _why_closed(self) -> str:
        return "all senders are closed and nothing is left"


class channel[T](tuple[Sender[T], Receiver[T]]):  # noqa: N801 - a function that can be told the type of the items
    """Make a channel and return its first ``Sender`` and ``Receiver``: ``sender, receiver = channel[str](10)``.

    Any number of tasks and threads may send, and any number receive; each item goes to one of them. An end belongs to
    whoever closes it; ``clone`` makes another one for somebody else. When all senders are closed, the receivers get
    what is left and then the end; when all receivers are closed, what is left is dropped and ``send`` raises.

    Args:
        capacity: How many items may be sent and not received before ``send`` waits; at least 1, or ``math.inf``. A
            channel without any room (Go's, trio's 0) is not supported: whether its item was received could not be told
            of a ``send`` that is cancelled at that moment.
    Returns:
        A plain tuple of the sender and the receiver.
    Raises:
        TypeError: ``capacity`` is another kind of number.
        ValueError: ``capacity`` is below 1.
    Thread safety: any thread, with or without a loop.

    .. versionadded:: 0.2
    """

    __slots__ = ()

    def __new__(cls, capacity: float) -> tuple[Sender[T], Receiver[T]]:  # type: ignore[misc]
        pipe = _Pipe[T](0 if capacity == math.inf else checked_capacity(capacity, "an int or math.inf"))
        return Sender(pipe), Receiver(pipe)


def checked_capacity(capacity: float, kinds: str = "an int") -> int:
    """``capacity``, if it is one."""
    if not isinstance(capacity, int):
        raise TypeError(f"capacity must be {kinds}, got {capacity!r}")
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {capacity!r}; with 1, a sender waits for the one before")
    return capacity

"""``watch``: the latest value, and a wait for a newer one.

The value and its number stand in one tuple, which is replaced under the lock and read without it. A receiver has the
number of the value that it has seen last. If the current one has the same number it looks again under the lock; that
look comes after its entry into the line, and a sender looks at the line after it has had the lock: one of the two sees
the other, as ``_core._waiting`` needs it.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import cast

from polyloop._core import _prims
from polyloop._core._errors import ChannelClosed
from polyloop._core._waiting import NOTHING, Line, Nothing, wake_all
from polyloop.queues._ends import ClonableEnd, ReceivingEnd, Side
from polyloop.queues._several import Crowd
from polyloop.queues._sync import check_timeout


class _Cell[T]:
    """The value, and who sets and watches it."""

    __slots__ = ("line", "lock", "receivers", "senders", "state")

    def __init__(self, initial: T) -> None:
        self.lock = _prims.RLock()  # one that a finaliser may take again which the collector calls under it
        self.state: tuple[int, T] = (0, initial)  # written under the lock, read without it
        self.line = Crowd()
        self.senders = Side(self.lock)
        self.receivers = Side(self.lock)

    def set(self, value: T, sender: "WatchSender[T]") -> bool:
        """Replace the value; ``False`` if the sender is closed."""
        with self.lock:
            if not sender._open:
                return False
            # No call from here on: neither a finaliser nor a signal handler, which might send, comes in between.
            replaced = self.state  # keeps it alive: its finaliser must not run under the lock
            self.state = (replaced[0] + 1, value)
        if self.line:
            wake_all(self.line)
        return True

    def look(self) -> tuple[int, T, bool]:
        """The number, the value, and whether it is the last one."""
        with self.lock:
            return *self.state, not len(self.senders)


class _CellEnd[T](ClonableEnd):
    __slots__ = ()

    _cell: _Cell[T]

    def _counts(self) -> tuple[int, int]:
        return len(self._cell.senders), len(self._cell.receivers)

    @property
    def value(self) -> T:
        """The latest value, also after the end was closed."""
        return self._cell.state[1]


class WatchSender[T](_CellEnd[T]):
    """An end of a ``watch`` that the value is set by. Made by ``watch`` and by ``clone``.

    None of its methods waits. ``with sender`` and ``async with sender`` close it at the end of the block. One that is
    dropped without having been closed is closed then, with a ``ResourceWarning``; when that is, nobody promises.

    Thread safety: every method may be called from any loop and any thread, signal handlers and finalisers included. All
    receivers see the values of all senders in one order.

    .. versionadded:: 0.2
    """

    __slots__ = ("_cell",)

    def __init__(self, cell: _Cell[T], origin: "WatchSender[T] | None" = None) -> None:
        self._cell = cell
        super().__init__(cell.senders, cell.receivers, origin)

    def send(self, value: T) -> None:
        """Set the value, also to one that is equal, and wake who waits for a new one. Waits for nothing.

        Raises:
            ClosedEndError: this sender was closed.
        """
        if not self._cell.set(value, self):
            raise self._refusal()

    def subscribe(self) -> "WatchReceiver[T]":
        """Make a receiver that has seen the current value.

        Raises:
            ClosedEndError: this sender was closed.
        """
        return WatchReceiver(self._cell, self._cell.state[0], self)

    def clone(self) -> "WatchSender[T]":
        """Make another sender of the same value: each is closed by itself.

        Raises:
            ClosedEndError: this one was closed.
        """
        return WatchSender(self._cell, self)

    def _last_closed(self) -> None:
        wake_all(self._cell.line)


class WatchReceiver[T](ReceivingEnd[T], _CellEnd[T]):
    """An end of a ``watch`` that the value is read and waited for by. Made by ``watch``, ``subscribe`` and ``clone``.

    Who is slow misses values, but never the latest. A new receiver has seen the value that is there. Tasks that share a
    receiver share what it has seen: of one change, one of them is told; ``clone`` makes a receiver for another task.

    ``async for value in receiver`` begins with the latest value, goes on with newer ones, and ends when all senders are
    closed. ``with receiver`` and ``async with receiver`` close it at the end of the block; nobody waits for one that is
    dropped.

    Cancellation: who is cancelled has seen nothing new.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = ("_cell", "_seen", "_turn")

    _is_waited_for = False

    def __init__(self, cell: _Cell[T], seen: int, origin: ClonableEnd | None = None) -> None:
        self._cell = cell
        self._turn = _prims.RLock()
        self._seen = seen  # the number of the value seen last; written under _turn, only goes up
        super().__init__(cell.receivers, cell.senders, origin)

    @property
    def _lines(self) -> tuple[Line, ...]:
        return (self._cell.line, self._closing)

    def clone(self) -> "WatchReceiver[T]":
        """Make another receiver that has seen what this one has seen.

        Raises:
            ClosedEndError: this one was closed.
        """
        return WatchReceiver(self._cell, self._seen, self)

    @property
    def has_changed(self) -> bool:
        """Whether there is a newer value than the one seen last."""
        return self._cell.state[0] > self._seen

    async def changed(self) -> T:
        """Wait for a newer value than the one seen last, and return the latest.

        Raises:
            ChannelClosed: there is none, and all senders are closed.
            ClosedEndError: this receiver was closed, before or meanwhile.
        """
        return await self._wait()

    async def wait_for(self, predicate: Callable[[T], object]) -> T:
        """Wait until the latest value is one that ``predicate`` is true of, and return it.

        Args:
            predicate: Called in this task with the latest value, and with each newer one that is seen.
        Raises:
            ChannelClosed: it is not, and all senders are closed.
            ClosedEndError: this receiver was closed, before or meanwhile.
            BaseException: what ``predicate`` raises.
        """
        value = self._see()
        while not predicate(value):
            value = await self._wait()
        return value

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate over the latest value and newer ones until all senders are closed."""
        return _Values(self)

    def _try_get(self) -> T | Nothing:
        if not self._open:
            raise self._refusal()
        cell = self._cell
        while True:
            number, value = cell.state
            if number <= self._seen:
                number, value, last = cell.look()
                if number <= self._seen:
                    if last:
                        raise self._refusal()
                    return NOTHING
            if self._go_on(number):
                return value

    def _go_on(self, number: int) -> bool:
        """Take a value for seen; ``False`` if it was, or a newer one."""
        with self._turn:
            if number <= self._seen:
                return False
            self._seen = number
            return True

    def _see(self) -> T:
        """The latest value, which then is seen."""
        if not self._open:
            raise self._refusal()
        number, value = self._cell.state
        self._go_on(number)
        return value

    def _look(self) -> object:
        return self._cell.state[0] > self._seen

    def _last_closed(self) -> None:
        """The value is kept: for senders, and for receivers that come."""

    def _why_closed(self) -> str:
        return "all senders are closed; the value will not change any more"

    @property
    def sync(self) -> "SyncWatchReceiver[T]":
        """The same receiver for plain threads."""
        return SyncWatchReceiver(self)


class _Values[T]:
    """The latest value, then newer ones."""

    def __init__(self, receiver: WatchReceiver[T]) -> None:
        self._receiver = receiver
        self._began = False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        if not self._began:
            self._began = True
            return self._receiver._see()
        try:
            return await self._receiver._wait()
        except ChannelClosed:
            raise StopAsyncIteration from None


class SyncWatchReceiver[T]:
    """The face of a ``WatchReceiver`` for plain threads.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_receiver")

    def __init__(self, receiver: WatchReceiver[T]) -> None:
        self._receiver = receiver

    def __repr__(self) -> str:
        return f"<sync face of {self._receiver!r}>"

    @property
    def value(self) -> T:
        """The latest value."""
        return self._receiver.value

    def changed(self, timeout: float | None = None) -> T:
        """Wait for a newer value than the one seen last, and return the latest.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            BlockingCallError: there is none, and this thread runs a loop.
            TimeoutError: there was none in time.
            ChannelClosed, ClosedEndError: as ``changed`` of the receiver itself.
            ValueError: a ``timeout`` below 0.
        """
        value = self._receiver._block(timeout, "receiver.sync.changed()", "await receiver.changed()")
        if value is NOTHING:
            raise TimeoutError(f"the value did not change within {timeout} s")
        return cast("T", value)

    def wait_for(self, predicate: Callable[[T], object], timeout: float | None = None) -> T:
        """Wait until the latest value is one that ``predicate`` is true of, and return it.

        Args:
            predicate: Called on this thread with the latest value, and with each newer one that is seen.
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            BlockingCallError: it is not, and this thread runs a loop.
            TimeoutError: it was not in time.
            ChannelClosed, ClosedEndError: as ``wait_for`` of the receiver itself.
            ValueError: a ``timeout`` below 0.
        """
        check_timeout(timeout)
        receiver = self._receiver
        deadline = None if timeout is None else _prims.monotonic() + timeout
        value = receiver._see()
        while not predicate(value):
            left = None if deadline is None else max(0.0, deadline - _prims.monotonic())
            found = receiver._block(left, "receiver.sync.wait_for()", "await receiver.wait_for()")
            if found is NOTHING:
                raise TimeoutError(f"the value was none of those waited for within {timeout} s; it is {value!r}")
            value = cast("T", found)
        return value

    def close(self) -> None:
        """Close the receiver."""
        self._receiver.close()

    def __iter__(self) -> Iterator[T]:
        """Iterate over the latest value and newer ones until all senders are closed."""
        receiver = self._receiver
        yield receiver._see()
        try:
            while True:
                yield self.changed()
        except ChannelClosed:
            return


class watch[T](tuple[WatchSender[T], WatchReceiver[T]]):  # noqa: N801 - see channel
    """Make a value that is watched, and return its first sender and receiver: ``sender, receiver = watch("idle")``.

    Only the latest value is kept. Any number of receivers read it and wait for a newer one; more of them are made by
    ``sender.subscribe()``. When all senders are closed, each receiver still sees the last value.

    Args:
        initial: The value to begin with.
    Returns:
        A plain tuple of a ``WatchSender`` and a ``WatchReceiver``.
    Thread safety: any thread, with or without a loop.
    Source: ``tokio::sync::watch``.

    .. versionadded:: 0.2
    """

    __slots__ = ()

    def __new__(cls, initial: T) -> tuple[WatchSender[T], WatchReceiver[T]]:  # type: ignore[misc]
        cell = _Cell(initial)
        return WatchSender(cell), WatchReceiver(cell, 0)

"""``broadcast``: every receiver gets every value that is sent after it subscribed, unless it is too slow.

The last ``capacity`` values stand in the slots of a ring, each with its number. Who sends writes under the ring's lock.
Each receiver has the number of the value that it is to get next. It looks into the slot of that number without the
lock: a slot is replaced in one piece, and what stands there with the right number is the right value. If it is another,
the receiver asks under the lock for the first and the last number: the value has not been sent, or it is overwritten.
That look comes after its entry into the line, and a sender looks at the line after it has had the lock: one of the two
sees the other, as ``_core._waiting`` needs it.

The number of a receiver goes up under its own lock, ``_turn``: of several who share a receiver, each gets other values.
"""

from polyloop._core import _prims
from polyloop._core._errors import Lagged
from polyloop._core._waiting import NOTHING, Line, Nothing, wake_all
from polyloop.queues._channel import checked_capacity
from polyloop.queues._ends import ClonableEnd, ItemReceiver, Side
from polyloop.queues._several import Crowd

#: The number of a slot that holds no value.
_EMPTY = -1


class _Ring[T]:
    """The values, and who sends and receives them."""

    __slots__ = ("capacity", "line", "lock", "receivers", "senders", "sent", "slots")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # Written under the lock, read without it. A finaliser that is called under it may take it again.
        self.lock = _prims.RLock()
        self.slots: list[tuple[int, T | None]] = [(_EMPTY, None)] * capacity
        self.sent = 0  # how many; guarded by lock
        self.line = Crowd()
        self.senders = Side(self.lock)
        self.receivers = Side(self.lock)

    def send(self, value: T, sender: "BroadcastSender[T]") -> int | None:
        """Send a value and return how many will get it; ``None`` if the sender is closed."""
        overwritten: object = None
        with self.lock:
            if not sender._open:
                return None
            reached = len(self.receivers)
            if reached:
                # No call from here on: neither a finaliser nor a signal handler, which might send, comes in between.
                number = self.sent
                at = number % self.capacity
                overwritten = self.slots[at]  # is kept alive: its finaliser must not run under the lock
                self.slots[at] = (number, value)
                self.sent = number + 1
        del overwritten
        if self.line:
            wake_all(self.line)
        return reached

    def bounds(self) -> tuple[int, int, bool]:
        """The numbers of the oldest value that is kept and of the next that will be sent; whether none will be."""
        with self.lock:
            return max(0, self.sent - self.capacity), self.sent, not len(self.senders)

    def clear(self) -> None:
        """Drop the values: nobody is left to receive them."""
        empty: list[tuple[int, T | None]] = [(_EMPTY, None)] * self.capacity
        with self.lock:
            if not len(self.receivers):
                self.slots, empty = empty, self.slots


class _RingEnd[T](ClonableEnd):
    __slots__ = ()

    _ring: _Ring[T]

    def _counts(self) -> tuple[int, int]:
        return len(self._ring.senders), len(self._ring.receivers)

    @property
    def capacity(self) -> int:
        """How many values are kept for receivers that are slow."""
        return self._ring.capacity


class BroadcastSender[T](_RingEnd[T]):
    """An end of a ``broadcast`` that values are sent to. Made by ``broadcast`` and by ``clone``.

    None of its methods waits. ``with sender`` and ``async with sender`` close it at the end of the block. One that is
    dropped without having been closed is closed then, with a ``ResourceWarning``; when that is, nobody promises.

    Thread safety: every method may be called from any loop and any thread, signal handlers and finalisers included. All
    receivers get the values of all senders in one order.

    .. versionadded:: 0.2
    """

    __slots__ = ("_ring",)

    def __init__(self, ring: _Ring[T], origin: "BroadcastSender[T] | None" = None) -> None:
        self._ring = ring
        super().__init__(ring.senders, ring.receivers, origin)

    def send(self, value: T) -> int:
        """Send a value to all who receive now. Waits for nothing.

        Returns:
            The number of receivers that get it; with 0, it was dropped.
        Raises:
            ClosedEndError: this sender was closed.
        """
        reached = self._ring.send(value, self)
        if reached is None:
            raise self._refusal()
        return reached

    def subscribe(self) -> "BroadcastReceiver[T]":
        """Make a receiver that gets what is sent from now on.

        Raises:
            ClosedEndError: this sender was closed.
        """
        with self._ring.lock:
            return BroadcastReceiver(self._ring, self._ring.sent, self)

    def clone(self) -> "BroadcastSender[T]":
        """Make another sender of the same broadcast: each is closed by itself.

        Raises:
            ClosedEndError: this one was closed.
        """
        return BroadcastSender(self._ring, self)

    def _last_closed(self) -> None:
        wake_all(self._ring.line)


class BroadcastReceiver[T](ItemReceiver[T], _RingEnd[T]):
    """An end of a ``broadcast`` that gets every value. Made by ``broadcast``, ``subscribe`` and ``clone``.

    If more than ``capacity`` values come before it receives the first of them, the oldest are overwritten. The next
    ``receive`` then raises ``Lagged`` once, and the one after it goes on with the oldest value that is kept. ``async
    for`` raises ``Lagged`` too, and may be begun again. Tasks that share a receiver share its values: each goes to one
    of them.

    ``with receiver`` and ``async with receiver`` close it at the end of the block. One that is dropped is closed then;
    nobody waits for that.

    Cancellation: a cancelled ``receive`` has taken nothing.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = ("_next", "_ring", "_turn")

    _is_waited_for = False

    def __init__(self, ring: _Ring[T], first: int, origin: ClonableEnd | None = None) -> None:
        self._ring = ring
        self._turn = _prims.RLock()
        self._next = first  # the number of the value to get next; written under _turn
        super().__init__(ring.receivers, ring.senders, origin)

    @property
    def _lines(self) -> tuple[Line, ...]:
        return (self._ring.line, self._closing)

    def clone(self) -> "BroadcastReceiver[T]":
        """Make another receiver that gets what this one has not got yet.

        Raises:
            ClosedEndError: this one was closed.
        """
        return BroadcastReceiver(self._ring, self._next, self)

    @property
    def pending(self) -> int:
        """How many values were sent that this receiver has not got; more than ``capacity`` if it has missed some."""
        return max(0, self._ring.bounds()[1] - self._next)

    def _try_get(self) -> T | Nothing:
        ring = self._ring
        while True:
            if not self._open:  # the last one that is closed drops the values
                raise self._refusal()
            number = self._next
            found, value = ring.slots[number % ring.capacity]
            if found == number:
                if self._go_on(number, number + 1):
                    return value  # type: ignore[return-value]
                continue
            oldest, end, over = ring.bounds()
            if number >= end:
                if number != self._next:
                    continue
                if over:
                    raise self._refusal()
                return NOTHING
            if number < oldest and self._go_on(number, oldest):
                raise Lagged(oldest - number)

    def _go_on(self, number: int, to: int) -> bool:
        """Set the number of the next value; ``False`` if another caller was faster."""
        with self._turn:
            if self._next != number:
                return False
            self._next = to
            return True

    def _look(self) -> object:
        ring = self._ring
        return ring.slots[self._next % ring.capacity][0] >= self._next

    def _last_closed(self) -> None:
        self._ring.clear()

    def _why_closed(self) -> str:
        return "all senders are closed and nothing is left"


class broadcast[T](tuple[BroadcastSender[T], BroadcastReceiver[T]]):  # noqa: N801 - see channel
    """Make a broadcast and return its first sender and receiver: ``sender, receiver = broadcast[str](100)``.

    Every receiver gets every value that is sent after it was made. Senders never wait: for receivers that are slow the
    last ``capacity`` values are kept, and who misses some is told (``Lagged``). More receivers are made by
    ``sender.subscribe()``. When all senders are closed, each receiver gets what it has not got yet and then the end.

    Args:
        capacity: How many values are kept; at least 1.
    Returns:
        A plain tuple of a ``BroadcastSender`` and a ``BroadcastReceiver``.
    Raises:
        TypeError: ``capacity`` is not an int.
        ValueError: ``capacity`` is below 1.
    Thread safety: any thread, with or without a loop.
    Source: ``tokio::sync::broadcast``.

    .. versionadded:: 0.2
    """

    __slots__ = ()

    def __new__(cls, capacity: int) -> tuple[BroadcastSender[T], BroadcastReceiver[T]]:  # type: ignore[misc]
        ring = _Ring[T](checked_capacity(capacity))
        return BroadcastSender(ring), BroadcastReceiver(ring, 0)

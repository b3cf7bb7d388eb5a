"""``oneshot``: one value, from one sender to one receiver.

To send is to close the sender with a value: of a ``send``, a ``close`` and a finaliser that run at once, one has
emptied ``_open`` and decides. It puts the value into ``box`` and *then* fills ``over``; a receiver that finds the box
empty looks at ``over`` and *then* into the box again. A receiver that is closed empties the box; a sender that finds it
closed takes the value back, if it is still there.
"""

from collections import deque
from collections.abc import Generator
from typing import Any

from polyloop._core import _prims
from polyloop._core._errors import ChannelClosed
from polyloop._core._waiting import NOTHING, Nothing, wake_all
from polyloop.queues._ends import End, ItemReceiver, Side
from polyloop.queues._several import Crowd


class _Shot[T]:
    """The value, and the two ends."""

    __slots__ = ("box", "line", "over", "receivers", "senders", "sent")

    def __init__(self) -> None:
        lock = _prims.RLock()
        self.senders = Side(lock)
        self.receivers = Side(lock)
        self.box: deque[T] = deque()  # the value, until it is received
        self.over: deque[None] = deque()  # filled for good when nothing more will be put into the box
        self.sent = False  # for messages; set by whoever has closed the sender
        self.line = Crowd()

    def end(self) -> None:
        """The sender has done what it could."""
        self.over.append(None)
        wake_all(self.line)


class _ShotEnd[T](End):
    __slots__ = ()

    _shot: _Shot[T]

    def _counts(self) -> tuple[int, int]:
        return len(self._shot.senders), len(self._shot.receivers)


class OneshotSender[T](_ShotEnd[T]):
    """The end of a ``oneshot`` that the value is sent to.

    To send closes it. ``with sender`` and ``async with sender`` close it at the end of the block. One that is dropped
    without having been closed is closed then, with a ``ResourceWarning``; when that is, nobody promises.

    Thread safety: every method may be called from any loop and any thread, signal handlers and finalisers included.

    .. versionadded:: 0.2
    """

    __slots__ = ("_shot",)

    def __init__(self, shot: _Shot[T]) -> None:
        self._shot = shot
        super().__init__(shot.senders, shot.receivers)

    def send(self, value: T) -> None:
        """Send the value, and close this sender. Waits for nothing.

        Raises:
            ChannelClosed: the receiver is closed; nobody gets the value.
            ClosedEndError: a value was sent before, or this sender was closed.
        """
        was_open, _ = self._side.remove(self)
        if not was_open:
            raise self._refusal()
        shot = self._shot
        shot.sent = True
        try:
            shot.box.append(value)
            missed = not len(shot.receivers) and self._take_back()
        finally:
            shot.end()
        if missed:
            raise ChannelClosed(self._why_closed())

    def _take_back(self) -> bool:
        try:
            self._shot.box.pop()
        except IndexError:
            return False
        return True

    def _last_closed(self) -> None:
        self._shot.end()

    def _why_closed(self) -> str:
        return "the receiver is closed; nobody will receive this value"

    def _why_refused(self) -> str:
        return "a value was sent before; a oneshot takes one" if self._shot.sent else super()._why_refused()


class OneshotReceiver[T](ItemReceiver[T], _ShotEnd[T]):
    """The end of a ``oneshot`` that the value is received from: ``await receiver``, or ``receive`` and its kin.

    The value is received once; who asks again is told that nothing is left (``ChannelClosed``). ``with receiver`` and
    ``async with receiver`` close it at the end of the block, and the sender is told; so does dropping it.

    Cancellation: a cancelled wait has taken nothing.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = ("_shot",)

    _is_waited_for = False

    def __init__(self, shot: _Shot[T]) -> None:
        self._shot = shot
        super().__init__(shot.receivers, shot.senders)
        self._lines = (shot.line, self._closing)

    def __await__(self) -> Generator[Any, Any, T]:
        """``receive``."""
        return self._wait().__await__()

    def _try_get(self) -> T | Nothing:
        if not self._open:
            raise self._refusal()
        shot = self._shot
        try:
            return shot.box.pop()
        except IndexError:
            if not shot.over:
                return NOTHING
        try:
            return shot.box.pop()
        except IndexError:
            raise self._refusal() from None

    def _look(self) -> object:
        return self._shot.over

    def _last_closed(self) -> None:
        self._shot.box.clear()

    def _why_closed(self) -> str:
        return "the value was received before" if self._shot.sent else "the sender was closed without a value"


class oneshot[T](tuple[OneshotSender[T], OneshotReceiver[T]]):  # noqa: N801 - see channel
    """Make a channel for one value and return its two ends: ``sender, receiver = oneshot[int]()``.

    What a future is within one loop: one side computes a value, the other one waits for it.

    Returns:
        A plain tuple of a ``OneshotSender`` and a ``OneshotReceiver``.
    Thread safety: any thread, with or without a loop.
    Source: ``tokio::sync::oneshot``.

    .. versionadded:: 0.2
    """

    __slots__ = ()

    def __new__(cls) -> tuple[OneshotSender[T], OneshotReceiver[T]]:  # type: ignore[misc]
        shot = _Shot[T]()
        return OneshotSender(shot), OneshotReceiver(shot)

"""``oneshot``: one value, from one sender to one receiver.

All that happens to a shot is an entry of one dict, its *state*, made or popped. Of two who pop an entry at once one has
got it, and a writer sees what those wrote who came before, since the dict's own lock orders them all. An end is open
while its entry is there: of a ``send``, a ``close`` and a finaliser that run at once one pops the sender's entry, and
decides. The value is received by whoever pops it.

A sender enters the value, and finds the receiver's entry gone, or the receiver, which pops its entry and *then* the
value, finds the value: it does not stay behind. A sender enters the value, *then* that it is over, and *then* looks at
the line, as who closes the receiver does after popping its entry; who waits enters the line, *then* pops the value, and
*then* reads what else there is. (The pop, which takes the dict's lock, is what orders the read.) There is one line,
since all who wait do so by way of the one receiver: each wake-up is for all of them, and the last.
"""

import sys
from collections.abc import Callable, Generator
from typing import Any, ClassVar, Final, cast

from polyloop._core._errors import ChannelClosed
from polyloop._core._parking import async_waiter
from polyloop._core._waiting import NOTHING, Line, Nothing, leave, wake_next
from polyloop.queues._ends import End, ItemReceiver
from polyloop.queues._several import Crowd

_SENDER: Final = "sender"
_RECEIVER: Final = "receiver"
_VALUE: Final = "value"
_OVER: Final = "over"  # whether a value was sent; there when nothing more will be


class _ShotEnd(End):
    """One of the two ends; open while the entry ``_mine`` is there."""

    __slots__ = ("_line", "_state")

    _mine: ClassVar[str]

    def __init__(self, state: dict[str, Any], line: Crowd) -> None:
        self._state = state
        self._line = line

    @property
    def closed(self) -> bool:
        """Whether this end was closed; a sender is by a ``send``, too."""
        return self._mine not in self._state

    def _counts(self) -> tuple[int, int]:
        return int(_SENDER in self._state), int(_RECEIVER in self._state)

    def _wake_all(self) -> None:
        """Who waits has something to hear. Nobody comes back."""
        line = self._line
        while line:
            wake_next(line)

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        try:
            forgotten = self._mine in self._state and not _finalizing()
        except AttributeError:  # it could not be made
            return
        if forgotten:
            self._forgotten(missed=self._mine is _SENDER and _RECEIVER in self._state)


class OneshotSender[T](_ShotEnd):
    """The end of a ``oneshot`` that the value is sent to.

    To send closes it. ``with sender`` and ``async with sender`` close it at the end of the block. One that is dropped
    without having been closed is closed then, with a ``ResourceWarning``; when that is, nobody promises.

    Thread safety: every method may be called from any loop and any thread, signal handlers and finalisers included.

    .. versionadded:: 0.2
    """

    __slots__ = ()

    _mine = _SENDER

    def send(self, value: T) -> None:
        """Send the value, and close this sender. Waits for nothing.

        Raises:
            ChannelClosed: the receiver is closed; nobody gets the value.
            ClosedEndError: a value was sent before, or this sender was closed.
        """
        state = self._state
        if not state.pop(_SENDER, False):
            raise self._refusal()
        try:
            state[_VALUE] = value  # before the look for the receiver
            missed = _RECEIVER not in state and state.pop(_VALUE, NOTHING) is not NOTHING
        finally:
            state[_OVER] = True
            line = self._line
            while line:  # _wake_all, without the call
                wake_next(line)
        if missed:
            raise ChannelClosed(self._why_closed())

    def close(self) -> None:
        """Close this end without a value. Waits for nothing; closing again, or after a ``send``, does nothing."""
        if self._state.pop(_SENDER, False):
            self._state[_OVER] = False
            self._wake_all()

    def _why_closed(self) -> str:
        return "the receiver is closed; nobody will receive this value"

    def _why_refused(self) -> str:
        return "a value was sent before; a oneshot takes one" if self._state.get(_OVER) else super()._why_refused()


class OneshotReceiver[T](ItemReceiver[T], _ShotEnd):
    """The end of a ``oneshot`` that the value is received from: ``await receiver``, or ``receive`` and its kin.

    The value is received once; who asks again is told that nothing is left (``ChannelClosed``). ``with receiver`` and
    ``async with receiver`` close it at the end of the block, and the sender is told; so does dropping it.

    Cancellation: a cancelled wait has taken nothing.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = ()

    _mine = _RECEIVER

    @property
    def _lines(self) -> tuple[Line, ...]:
        return (self._line,)

    def close(self) -> None:
        """Close this end. Waits for nothing; closing again does nothing.

        Calls that wait raise ``ClosedEndError``; a value that was not received is dropped.
        """
        if self._state.pop(_RECEIVER, False):
            self._state.pop(_VALUE, None)
            self._wake_all()

    def __await__(self) -> Generator[Any, Any, T]:
        """``receive``."""
        state = self._state
        value = NOTHING if _SENDER in state and _RECEIVER in state else self._try_get()
        while value is NOTHING:
            waiter = async_waiter()
            self._line.append(waiter)
            try:
                value = self._try_get()  # after entering
                if value is NOTHING:
                    yield from waiter.__await__()
                    value = self._try_get()
                else:
                    leave(self._line, waiter)
            except BaseException:
                leave(self._line, waiter)  # whether it was woken or not: others have been, too
                raise
        return cast("T", value)

    async def _wait(self) -> T:
        return await self

    def _try_get(self) -> T | Nothing:
        state = self._state
        value: T | Nothing = state.pop(_VALUE, NOTHING) if _RECEIVER in state else NOTHING
        if value is NOTHING and (_OVER in state or _RECEIVER not in state):
            value = state.pop(_VALUE, NOTHING) if _RECEIVER in state else NOTHING
            if value is NOTHING:
                raise self._refusal()
        return value

    def _look(self) -> object:
        return _OVER in self._state

    def _why_closed(self) -> str:
        return "the value was received before" if self._state.get(_OVER) else "the sender was closed without a value"


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
        state: dict[str, Any] = {_SENDER: True, _RECEIVER: True}
        line = Crowd()
        return OneshotSender(state, line), OneshotReceiver(state, line)

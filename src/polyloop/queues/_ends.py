"""The ends of a channel: open, closed, cloned, forgotten.

Where ends may be cloned, each channel has two sides, and a ``Side`` counts its open ends. Such an end is open while its
``_open`` is filled; whoever empties it has closed it. That, and to clone an end, happens under the lock of the channel,
so that of two ends that are closed at once one is the last, and an end that is cloned while it is closed counts in time
or is refused.

Who waits by way of an end stands in the line of what it waits for and in the end's own, ``_closing``: a close wakes
those and nobody else. The lock is one that its holder may take again: a finaliser that the garbage collector calls
under it may close an end.
"""

import sys
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import ClassVar, NoReturn, Self, SupportsIndex, cast

from polyloop._core._errors import ChannelClosed, ClosedEndError, QueueEmpty
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._prims import RLock
from polyloop._core._waiting import NOTHING, Line, Nothing, wake_all
from polyloop.queues._several import Crowd, Standing, block_until_any, until_any
from polyloop.queues._sync import check_timeout


class Side:
    """The open ends of one side of a channel."""

    __slots__ = ("_ends", "_lock")

    def __init__(self, lock: RLock) -> None:
        self._lock = lock  # the channel's
        self._ends: deque[None] = deque()  # one for each; changed under the lock, read without it

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, end: "ClonableEnd", origin: "ClonableEnd | None") -> bool:
        """Count an end that is made; ``False`` if ``origin``, which it is made of, is closed."""
        with self._lock:
            if origin is not None and not origin._open:
                return False
            self._ends.append(None)
            end._open.append(None)
        return True

    def remove(self, end: "ClonableEnd") -> tuple[bool, bool]:
        """Close an end: whether it was open, and whether it was the last."""
        with self._lock:
            if not end._open:
                return False, False
            end._open.clear()
            self._ends.pop()
            return True, not self._ends


class End:
    """One end of a channel. Also a context manager, for ``with`` and ``async with``: leaving the block closes it."""

    __slots__ = ("__weakref__",)

    def __repr__(self) -> str:
        senders, receivers = self._counts()
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} at {id(self):#x} {state}, {senders} senders, {receivers} receivers>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"cannot copy or pickle {self!r}: an end of a channel belongs to its process and counts once; pass the end"
            " itself, or clone it where it has clone()"
        )

    def _counts(self) -> tuple[int, int]:
        """How many senders and receivers are open."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        raise NotImplementedError

    @property
    def senders(self) -> int:
        """How many senders are open."""
        return self._counts()[0]

    @property
    def receivers(self) -> int:
        """How many receivers are open."""
        return self._counts()[1]

    def close(self) -> None:
        """Close this end. Waits for nothing; closing again does nothing.

        Calls that wait by way of this end raise ``ClosedEndError``; other ends of the same side stay open.
        """
        raise NotImplementedError

    def _refusal(self) -> ChannelClosed | ClosedEndError:
        """Why a call by way of this end can do nothing any more."""
        if self.closed:
            return ClosedEndError(self._why_refused())
        return ChannelClosed(self._why_closed())

    def _why_refused(self) -> str:
        """What a closed end has to say."""
        return f"{self!r} was closed; clone an end that somebody else goes on to use"

    def _why_closed(self) -> str:
        """What an end that is open has to say when the other side has gone."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forgotten(self, missed: bool) -> None:
        """It is dropped while it is open: close it, with a warning if somebody may wait for it."""
        self.close()
        if missed:
            warnings.warn(f"{self!r} was dropped without having been closed", ResourceWarning, stacklevel=3)


class ClonableEnd(End):
    """One of several ends of a side."""

    __slots__ = ("_closing", "_open", "_peer", "_side")

    #: Whether others may wait for ever if it is forgotten.
    _is_waited_for: ClassVar[bool] = True

    def __init__(self, side: Side, peer: Side, origin: "ClonableEnd | None" = None) -> None:
        self._open: deque[None] = deque()  # filled while open; changed under the lock of the channel
        self._closing = Crowd()  # who waits by way of this end
        self._side = side
        self._peer = peer
        if not side.add(self, origin):
            assert origin is not None
            raise origin._refusal()

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return not self._open

    def close(self) -> None:
        """Close this end. Waits for nothing; closing again does nothing.

        Calls that wait by way of this end raise ``ClosedEndError``; other ends of the same side stay open.
        """
        was_open, last = self._side.remove(self)
        if last:
            self._last_closed()
        if was_open and self._closing:
            wake_all(self._closing)

    def _last_closed(self) -> None:
        """The last end of this side was closed: tell the other side."""
        raise NotImplementedError

    def __del__(self, _finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _finalizing() and getattr(self, "_open", None):
            self._forgotten(self._is_waited_for and len(self._peer) > 0)


class ReceivingEnd[T](End):
    """An end that something comes out of; what ``select`` waits for."""

    __slots__ = ()

    @property
    def _lines(self) -> tuple[Line, ...]:
        """Who waits for something stands in them; always the same."""
        raise NotImplementedError

    def _try_get(self) -> T | Nothing:
        """Take what is there, or ``NOTHING``.

        Raises:
            ChannelClosed: nothing will come.
            ClosedEndError: this end was closed.
        """
        raise NotImplementedError

    def _look(self) -> object:
        """Whether something seems to be there, for a thread that spins."""
        raise NotImplementedError

    async def _wait(self) -> T:
        item = self._try_get()
        if item is NOTHING:
            item = await until_any(Standing(self._lines), self._try_get)
        return cast("T", item)

    def _block(self, timeout: float | None, call: str, twin: str) -> T | Nothing:
        """Wait on a plain thread; ``NOTHING`` when the time was over first."""
        item = self._try_get()
        if item is NOTHING:
            check_timeout(timeout)
            refuse_on_loop_thread(call, twin)
            item = block_until_any(Standing(self._lines), self._try_get, timeout, self._look)
        return item


class ItemReceiver[T](ReceivingEnd[T]):
    """A receiving end that items are taken from. What the receivers of several channels have in common."""

    __slots__ = ()

    async def receive(self) -> T:
        """Take the next item, waiting for one if need be.

        Raises:
            ChannelClosed: nothing is left and all senders are closed.
            ClosedEndError: this receiver was closed, before or meanwhile.
            Lagged: of a ``broadcast`` only: values were missed; the next call goes on with the oldest that is kept.
        Cancellation: nothing was taken.
        """
        return await self._wait()

    def receive_nowait(self) -> T:
        """Take the next item.

        Raises:
            QueueEmpty: there is none.
            ChannelClosed, ClosedEndError, Lagged: as ``receive``.
        """
        item = self._try_get()
        if item is NOTHING:
            raise QueueEmpty("the channel is empty; use 'await receive()' to wait for an item")
        return cast("T", item)

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate over the items until nothing is left and all senders are closed; several tasks may."""
        return self

    async def __anext__(self) -> T:
        try:
            return await self._wait()
        except ChannelClosed:
            raise StopAsyncIteration from None

    @property
    def sync(self) -> "SyncReceiver[T]":
        """The same receiver for plain threads."""
        return SyncReceiver(self)


class SyncReceiver[T]:
    """The face of a receiver for plain threads: of a ``channel``, a ``broadcast`` or a ``oneshot``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_receiver")

    def __init__(self, receiver: ItemReceiver[T]) -> None:
        self._receiver = receiver

    def __repr__(self) -> str:
        return f"<sync face of {self._receiver!r}>"

    def receive(self, timeout: float | None = None) -> T:
        """Take the next item, waiting for one if need be.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            BlockingCallError: there is none, and this thread runs a loop.
            QueueEmpty: there was none in time.
            ChannelClosed, ClosedEndError, Lagged: as ``receive`` of the receiver itself.
            ValueError: a ``timeout`` below 0.
        """
        item = self._receiver._block(timeout, "receiver.sync.receive()", "await receiver.receive()")
        if item is NOTHING:
            raise QueueEmpty(f"nothing came within {timeout} s")
        return cast("T", item)

    def receive_nowait(self) -> T:
        """Take the next item, or raise ``QueueEmpty``."""
        return self._receiver.receive_nowait()

    def close(self) -> None:
        """Close the receiver."""
        self._receiver.close()

    def __iter__(self) -> Iterator[T]:
        """Iterate over the items until nothing is left and all senders are closed; several threads may."""
        return self

    def __next__(self) -> T:
        try:
            return self.receive()
        except ChannelClosed:
            raise StopIteration from None

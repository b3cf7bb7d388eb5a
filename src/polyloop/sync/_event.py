"""``Event``: a flag that tasks and threads wait for.

The flag is a deque that is filled while the event is set, so that setting it and looking for waiters, entering the line
and looking at the flag, are ordered as ``_core._waiting`` needs it; a plain attribute would not be.
"""

from collections import deque
from typing import Literal

from polyloop._core._parking import ThreadWaiter, async_waiter, refuse_on_loop_thread
from polyloop._core._waiting import Line, leave, wake_all
from polyloop.sync._face import Face, described, patience_of


class Event:
    """A flag that tasks of any loops and plain threads wait for; ``asyncio.Event`` across loops.

    ``set`` wakes all who wait, in the order they came, also if ``clear`` follows at once.

    Cancellation: a cancelled ``wait`` changes nothing.
    Thread safety: every method may be called from any loop and any thread, and ``set`` also from signal handlers and
    finalisers. What a thread did before ``set`` is seen by whoever ``wait`` returned to.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_flag", "_line")

    def __init__(self) -> None:
        self._flag: deque[None] = deque(maxlen=1)  # filled while set; by any thread
        self._line: Line = deque()

    def __repr__(self) -> str:
        return described(self, "set" if self._flag else "unset", self._line)

    def is_set(self) -> bool:
        """Whether the flag is set."""
        return len(self._flag) > 0

    def set(self) -> None:
        """Set the flag and wake all who wait. Waits for nothing."""
        self._flag.append(None)
        if self._line:
            wake_all(self._line)

    def clear(self) -> None:
        """Reset the flag: who waits from now on waits for the next ``set``."""
        self._flag.clear()

    async def wait(self) -> Literal[True]:
        """Wait until the flag is set; return at once if it is."""
        if not self._flag:
            waiter = async_waiter()
            self._line.append(waiter)
            try:
                if self._flag:
                    leave(self._line, waiter)
                else:
                    await waiter  # who is woken has been taken out of the line, where a search may take long
            except BaseException:
                leave(self._line, waiter)
                raise
        return True

    @property
    def sync(self) -> "SyncEvent":
        """The same event for plain threads, with the signatures of ``threading.Event``."""
        return SyncEvent(self)


class SyncEvent(Face[Event]):
    """The face of an ``Event`` for plain threads, with the signatures of ``threading.Event``.

    Thread safety: any thread; on one that runs a loop, ``wait`` raises ``BlockingCallError`` unless the flag is set.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

    def is_set(self) -> bool:
        """Whether the flag is set."""
        return self._primitive.is_set()

    def set(self) -> None:
        """Set the flag and wake all who wait."""
        self._primitive.set()

    def clear(self) -> None:
        """Reset the flag."""
        self._primitive.clear()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes, 0 and below not at all.
        Returns:
            ``False`` if the time was over first.
        Raises:
            BlockingCallError: the flag is not set, and this thread runs a loop.
        """
        event = self._primitive
        if event._flag:
            return True
        patience = patience_of(timeout)
        refuse_on_loop_thread("event.sync.wait()", "await event.wait()", timeout)
        waiter = ThreadWaiter()
        event._line.append(waiter)
        try:
            # Out of the line without having left it: somebody has set the flag, if only for a moment.
            return bool(event._flag) or waiter.park(patience) or not leave(event._line, waiter)
        finally:
            leave(event._line, waiter)

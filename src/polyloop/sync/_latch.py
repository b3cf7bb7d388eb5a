"""``Latch``: a number that is counted down once, and what is open from then on.

What is left to count is a deque of so many: to pop one counts down by one, and whoever finds it empty after that opens
the latch. Nothing is ever added, so it is open for good.
"""

from collections import deque
from typing import Literal

from polyloop._core._parking import refuse_on_loop_thread
from polyloop.sync._event import Event
from polyloop.sync._face import Face, described


class Latch:
    """A door that opens for good when ``count`` has been counted down to 0; Java's ``CountDownLatch``.

    For the start of several workers, or the end of several pieces of work, that others wait for. Who counts down does
    not wait; tasks of any loops and plain threads may do either, and both with ``arrive_and_wait``.

    Args:
        count: How often it must be counted down; at least 0, which is open.
    Raises:
        ValueError: ``count`` is below 0.
    Cancellation: a cancelled ``wait`` changes nothing; who has counted down has.
    Thread safety: every method may be called from any loop and any thread, and ``count_down`` also from signal handlers
    and finalisers. What was done before a ``count_down`` is seen by whoever waited for it.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_left", "_open")

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count!r}")
        self._left: deque[None] = deque([None] * count)  # popped by any thread
        self._open = Event()
        if not count:
            self._open.set()

    def __repr__(self) -> str:
        state = "open" if self._open.is_set() else f"closed, count:{self.count}"
        return described(self, state, self._open._line)

    @property
    def count(self) -> int:
        """How often it must still be counted down."""
        return len(self._left)

    def count_down(self, n: int = 1) -> None:
        """Count down by ``n``, at most to 0, and open the latch at 0. Waits for nothing.

        Raises:
            ValueError: ``n`` is below 1.
        """
        if n < 1:
            raise ValueError(f"n must be one or more, got {n!r}")
        try:
            for _ in range(n):
                self._left.pop()
        except IndexError:  # it was at 0 before
            pass
        if not self._left and not self._open.is_set():
            self._open.set()

    async def wait(self) -> Literal[True]:
        """Wait until the latch is open."""
        return await self._open.wait()

    async def arrive_and_wait(self) -> Literal[True]:
        """Count down by one, and wait until the latch is open.

        Cancellation: it has been counted down.
        """
        self.count_down()
        return await self._open.wait()

    @property
    def sync(self) -> "SyncLatch":
        """The same latch for plain threads."""
        return SyncLatch(self)


class SyncLatch(Face[Latch]):
    """The face of a ``Latch`` for plain threads.

    Thread safety: any thread; on one that runs a loop, a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

    @property
    def count(self) -> int:
        """How often it must still be counted down."""
        return self._primitive.count

    def count_down(self, n: int = 1) -> None:
        """Count down by ``n``, at most to 0, and open the latch at 0.

        Raises:
            ValueError: ``n`` is below 1.
        """
        self._primitive.count_down(n)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the latch is open.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes, 0 and below not at all.
        Returns:
            ``False`` if the time was over first.
        Raises:
            BlockingCallError: the latch is closed, and this thread runs a loop.
        """
        event = self._primitive._open
        if not event.is_set():
            refuse_on_loop_thread("latch.sync.wait()", "await latch.wait()")
        return event.sync.wait(timeout)

    def arrive_and_wait(self, timeout: float | None = None) -> bool:
        """Count down by one, and wait until the latch is open.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes, 0 and below not at all.
        Returns:
            ``False`` if the time was over first; it has been counted down all the same.
        Raises:
            BlockingCallError: others are missing, and this thread runs a loop; it has not been counted down.
        """
        latch = self._primitive
        if latch.count > 1:
            refuse_on_loop_thread("latch.sync.arrive_and_wait()", "await latch.arrive_and_wait()")
        latch.count_down()
        return latch._open.sync.wait(timeout)

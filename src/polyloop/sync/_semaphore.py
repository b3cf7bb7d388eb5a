"""``Semaphore`` and ``BoundedSemaphore``: at most so many holders at once, in the order they came.

All is in ``Permits`` (see ``_core._waiting``). A bounded one keeps its permits in a second deque while they are held:
to pop one there is the right to release, so one too many is refused exactly.
"""

from collections import deque
from types import TracebackType
from typing import Literal

from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._waiting import Permits
from polyloop.sync._face import Face, described, patience_of


class Semaphore:
    """A number of permits for tasks of any loops and for plain threads; ``asyncio.Semaphore`` across loops.

    Use it as ``async with semaphore`` in a task, and as ``with semaphore.sync`` in a plain thread. It is fair: waiters
    are served in the order they came.

    Args:
        value: How many permits there are at first; at least 0.
    Raises:
        ValueError: ``value`` is below 0.
    Cancellation: a cancelled ``acquire`` holds no permit; one that was handed over at that moment goes to the next.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_free", "_permits")

    def __init__(self, value: int = 1) -> None:
        if value < 0:
            raise ValueError(f"Semaphore initial value must be >= 0, got {value!r}")
        self._permits = Permits(value)
        self._free = self._permits.free

    def __repr__(self) -> str:
        value = self.value
        return described(self, "locked" if value == 0 else f"unlocked, value:{value}", self._permits.line)

    @property
    def value(self) -> int:
        """How many permits are free now."""
        return self._permits.count

    def locked(self) -> bool:
        """Whether ``acquire`` would have to wait."""
        return not self._permits.count

    async def acquire(self) -> Literal[True]:
        """Take a permit, in turn."""
        try:
            self._free.pop()
        except IndexError:
            if not self._permits.take_nowait():
                await self._permits.wait()
        return True

    def acquire_nowait(self) -> bool:
        """Take a permit if there is one; whether there was."""
        try:
            self._free.pop()
        except IndexError:
            return self._permits.take_nowait()
        return True

    def release(self, n: int = 1) -> None:
        """Add ``n`` permits, which go to those who have waited longest. Waits for nothing.

        Raises:
            ValueError: ``n`` is below 1.
        """
        permits = self._permits
        if n == 1 and not permits.line:
            self._free.append(None)
            if permits.line:  # somebody came before the append: see _core._waiting
                permits.match()
            return
        if n < 1:
            raise ValueError(f"n must be one or more, got {n!r}")
        for _ in range(n):
            permits.give()

    async def __aenter__(self) -> None:
        try:
            self._free.pop()
        except IndexError:
            if not self._permits.take_nowait():
                await self._permits.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def sync(self) -> "SyncSemaphore":
        """The same semaphore for plain threads, with the signatures of ``threading.Semaphore``."""
        return SyncSemaphore(self)

    def _block(self, timeout: float | None) -> bool:
        return self._permits.block(timeout)


class BoundedSemaphore(Semaphore):
    """A ``Semaphore`` that refuses to have more permits than at first; ``asyncio.BoundedSemaphore`` across loops.

    Cancellation and thread safety: as ``Semaphore``.

    .. versionadded:: 0.2
    """

    __slots__ = ("_held",)

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)
        self._held: deque[None] = deque()  # one for each permit that somebody holds

    async def acquire(self) -> Literal[True]:
        """Take a permit, in turn."""
        await super().acquire()
        self._held.append(None)
        return True

    def acquire_nowait(self) -> bool:
        """Take a permit if there is one; whether there was."""
        taken = super().acquire_nowait()
        if taken:
            self._held.append(None)
        return taken

    def release(self, n: int = 1) -> None:
        """Give ``n`` permits back, which go to those who have waited longest. Waits for nothing.

        Raises:
            ValueError: ``n`` is below 1, or more than are held; nothing was given back then.
        """
        if n < 1:
            raise ValueError(f"n must be one or more, got {n!r}")
        for taken in range(n):
            try:
                self._held.pop()
            except IndexError:
                self._held.extend([None] * taken)
                raise ValueError("BoundedSemaphore released too many times") from None
        super().release(n)

    async def __aenter__(self) -> None:
        await self.acquire()

    def _block(self, timeout: float | None) -> bool:
        taken = self._permits.block(timeout)
        if taken:
            self._held.append(None)
        return taken


class SyncSemaphore(Face[Semaphore]):
    """The face of a semaphore for plain threads, with the signatures of ``threading.Semaphore``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take a permit, in turn.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes, 0 and below not at all.
        Returns:
            Whether a permit was taken.
        Raises:
            BlockingCallError: the call would have to wait, and this thread runs a loop.
            ValueError: a ``timeout`` beside ``blocking=False``.
        """
        if not blocking and timeout is not None:
            raise ValueError("can't specify timeout for non-blocking acquire")
        if self._primitive.acquire_nowait():
            return True
        if not blocking:
            return False
        refuse_on_loop_thread("semaphore.sync.acquire()", "await semaphore.acquire()", timeout)
        return self._primitive._block(patience_of(timeout))

    def release(self, n: int = 1) -> None:
        """Add ``n`` permits.

        Raises:
            ValueError: ``n`` is below 1; for a ``BoundedSemaphore``, more than are held.
        """
        self._primitive.release(n)

    def __enter__(self) -> bool:
        return self._primitive.acquire_nowait() or self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._primitive.release()

"""``Condition``: a lock, and a line of those who released it to be notified.

The line is entered and notified by holders of the lock, so it needs no order of its own with anything else; only those
who give up leave it at any time, which one operation of the deque decides (see ``_core._waiting``).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, cast

from polyloop._core import _prims, _trio
from polyloop._core._context import here
from polyloop._core._parking import ThreadWaiter, async_waiter, refuse_on_loop_thread
from polyloop._core._scope import shield
from polyloop._core._waiting import Line, leave, wake_next, was_woken
from polyloop.sync._face import described, patience_of
from polyloop.sync._lock import Lock, RLock, SyncLock, SyncRLock


class Condition:
    """A lock on which one can wait to be notified; ``asyncio.Condition`` across loops, ``threading.Condition`` too.

    Use it as ``async with condition`` in a task, and as ``with condition.sync`` in a plain thread. Who waits is
    notified in the order of coming, tasks and threads alike.

    Args:
        lock: The ``Lock`` or ``RLock`` to use; a new ``RLock`` by default, as in ``threading``.
    Cancellation: a cancelled ``wait`` holds the lock again when it raises, as asyncio's, so that ``async with`` can
    release it; a notification that it got at that moment goes to the next waiter.
    Thread safety: every method may be called from any loop and any thread that holds the lock.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_line", "_lock", "acquire", "acquire_nowait", "locked", "release")

    def __init__(self, lock: Lock | RLock | None = None) -> None:
        if lock is None:
            lock = RLock()
        elif not isinstance(cast("object", lock), (Lock, RLock)):
            raise TypeError(f"a Condition needs a polyloop Lock or RLock, got {lock!r}; asyncio's belong to one loop")
        self._lock = lock
        self._line: Line = deque()
        self.acquire = lock.acquire
        self.acquire_nowait = lock.acquire_nowait
        self.release = lock.release
        self.locked = lock.locked

    def __repr__(self) -> str:
        return described(self, "locked" if self.locked() else "unlocked", self._line)

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def wait(self) -> Literal[True]:
        """Release the lock, wait to be notified, and take the lock again.

        Raises:
            RuntimeError: the caller does not hold the lock.
        """
        self._check_mine("cannot wait on un-acquired lock")
        waiter = async_waiter()
        self._line.append(waiter)
        try:
            depth = self._lock._release_all()
        except BaseException:
            leave(self._line, waiter)
            raise
        try:
            try:
                await waiter
            finally:
                await self._acquire_again(depth)
        except BaseException:
            if was_woken(self._line, waiter):
                wake_next(self._line)  # it was notified and will not use it
            raise
        return True

    async def _acquire_again(self, depth: int) -> None:
        """Take the lock, whatever happens, and raise the last cancellation once it is held."""
        if _trio.runs_this():
            with _trio.shield():
                await self._lock._acquire_again(depth)
            return
        cancelled: BaseException | None = None
        while True:
            try:
                await self._lock._acquire_again(depth)
                break
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                cancelled = None  # no cycle through this frame

    async def wait_for[T](self, predicate: Callable[[], T]) -> T:
        """Wait until ``predicate()`` is true, which is called with the lock held; return what it returned."""
        while not (result := predicate()):
            await self.wait()
        return result

    def notify(self, n: int = 1) -> None:
        """Wake up to ``n`` of those who wait, once the lock is released.

        Raises:
            RuntimeError: the caller does not hold the lock.
        """
        self._check_mine("cannot notify on un-acquired lock")
        for _ in range(n):
            if not wake_next(self._line):
                return

    def notify_all(self) -> None:
        """Wake all who wait.

        Raises:
            RuntimeError: the caller does not hold the lock.
        """
        self.notify(len(self._line))

    @property
    def sync(self) -> "SyncCondition":
        """The same condition for plain threads, with the signatures of ``threading.Condition``."""
        return SyncCondition(self)

    def _check_mine(self, message: str) -> None:
        if not self._lock._is_mine():
            raise RuntimeError(message)


class SyncCondition:
    """The face of a ``Condition`` for plain threads, with the signatures of ``threading.Condition``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_condition", "_face", "acquire", "release")

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        self._face: SyncLock | SyncRLock = condition._lock.sync
        self.acquire = self._face.acquire
        self.release = self._face.release

    def __repr__(self) -> str:
        return f"<sync face of {self._condition!r}>"

    def __enter__(self) -> bool:
        return self._face.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._face.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait to be notified, and take the lock again.

        Args:
            timeout: Seconds to wait for the notification at most; ``None`` waits as long as it takes.
        Returns:
            ``False`` if the time was over first.
        Raises:
            BlockingCallError: this thread runs a loop.
            RuntimeError: the caller does not hold the lock.
        """
        condition = self._condition
        condition._check_mine("cannot wait on un-acquired lock")
        refuse_on_loop_thread("condition.sync.wait()", "await condition.wait()")
        patience = patience_of(timeout)
        line, lock = condition._line, condition._lock
        waiter = ThreadWaiter()
        line.append(waiter)
        try:
            depth = lock._release_all()
        except BaseException:
            leave(line, waiter)
            raise
        try:
            notified = waiter.park(patience) or not leave(line, waiter)
        except BaseException:  # KeyboardInterrupt, or the end of the call that this thread runs
            try:
                _block_again(lock, depth)
            finally:
                if not leave(line, waiter):
                    wake_next(line)  # it was notified and will not use it
            raise
        _block_again(lock, depth)
        return notified

    def wait_for[T](self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until ``predicate()`` is true, which is called with the lock held; return what it returned last."""
        deadline = None if timeout is None else _prims.monotonic() + timeout
        while not (result := predicate()):
            left = None if deadline is None else deadline - _prims.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        """Wake up to ``n`` of those who wait, once the lock is released.

        Raises:
            RuntimeError: the caller does not hold the lock.
        """
        self._condition.notify(n)

    def notify_all(self) -> None:
        """Wake all who wait.

        Raises:
            RuntimeError: the caller does not hold the lock.
        """
        self._condition.notify_all()


def _block_again(lock: Lock | RLock, depth: int) -> None:
    """Take the lock again: whoever waits holds it when that ends, in whatever way."""
    if here.scope is None:
        lock._block_again(depth)
        return
    with shield():
        lock._block_again(depth)

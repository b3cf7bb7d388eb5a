"""``CapacityLimiter``: at most so many at once, over all loops and threads.

``_lock`` guards all fields; it is held for a few statements and never while anybody is woken. Waiters are served in the
order they came. A token that is handed to a waiter which is cancelled at the same moment goes on to the next: the
waiter's one-shot ticket decides who comes first, the giver or the canceller.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Hashable
from types import TracebackType
from typing import Self

from polyloop._core import _prims
from polyloop._core._context import runs_a_loop
from polyloop._core._errors import PolyloopError
from polyloop._core._parking import LoopWaiter, ThreadWaiter, refuse_on_loop_thread

type _Borrower = Hashable
type _Waiter = LoopWaiter | ThreadWaiter


class CapacityLimiter:
    """A number of tokens that tasks and threads borrow, each at most one; ``anyio.CapacityLimiter`` across loops.

    Use it as ``async with limiter`` in a task of any loop, and as ``with limiter.sync`` in a plain thread.

    Args:
        total_tokens: How many may be borrowed at once; an int, at least 1, or ``math.inf``.
    Raises:
        TypeError: ``total_tokens`` is another kind of number.
        ValueError: ``total_tokens`` is below 1.
    Thread safety: every method may be called from any loop and any thread. First come, first served.
    Cancellation: a cancelled ``acquire`` holds no token.

    .. versionadded:: 0.1
    """

    def __init__(self, total_tokens: float) -> None:
        self._lock = _prims.Lock()  # guards the fields below
        self._total = _checked(total_tokens)
        self._borrowers: set[_Borrower] = set()
        self._waiting: OrderedDict[_Borrower, _Waiter] = OrderedDict()  # in the order they came

    def __repr__(self) -> str:
        return f"<CapacityLimiter {self.borrowed_tokens}/{self._total} borrowed, {len(self._waiting)} waiting>"

    @property
    def total_tokens(self) -> float:
        """How many tokens there are; may be changed at any time. Fewer than borrowed: no new ones until they return."""
        return self._total

    @total_tokens.setter
    def total_tokens(self, value: float) -> None:
        total = _checked(value)
        with self._lock:
            self._total = total
            served = self._serve_locked()
        _wake(served)

    @property
    def borrowed_tokens(self) -> int:
        """How many tokens are borrowed now."""
        return len(self._borrowers)

    @property
    def available_tokens(self) -> float:
        """How many tokens may be borrowed now; negative after ``total_tokens`` was lowered below the borrowed ones."""
        return self._total - len(self._borrowers)

    async def acquire(self) -> None:
        """Borrow a token for the current task, waiting for one if need be.

        Raises:
            RuntimeError: the task already holds a token of this limiter, or waits for one.
        """
        await self.acquire_on_behalf_of(_me())

    async def acquire_on_behalf_of(self, borrower: Hashable) -> None:
        """Borrow a token for ``borrower``; any hashable object, which is also what returns it."""
        with self._lock:
            if self._take_locked(borrower):
                return
            waiter = LoopWaiter()
            self._waiting[borrower] = waiter
        try:
            await waiter
        except asyncio.CancelledError:
            self._give_up(waiter, borrower)
            raise

    def acquire_nowait(self) -> None:
        """Borrow a token for the current task or thread, or raise ``WouldBlock``."""
        self.acquire_on_behalf_of_nowait(_me())

    def acquire_on_behalf_of_nowait(self, borrower: Hashable) -> None:
        """Borrow a token for ``borrower``, or raise ``WouldBlock`` if that would have to wait."""
        with self._lock:
            if not self._take_locked(borrower):
                raise WouldBlock(f"all {self._total} tokens are borrowed; use 'await acquire()' to wait for one")

    def release(self) -> None:
        """Return the current task's or thread's token.

        Raises:
            RuntimeError: it holds none.
        """
        self.release_on_behalf_of(_me())

    def release_on_behalf_of(self, borrower: Hashable) -> None:
        """Return the token of ``borrower``; whoever has waited longest gets it."""
        with self._lock:
            if borrower not in self._borrowers:
                raise RuntimeError(f"{borrower!r} holds no token of {self!r}")
            self._borrowers.discard(borrower)
            served = self._serve_locked()
        _wake(served)

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def sync(self) -> "SyncCapacityLimiter":
        """The same limiter for plain threads, with ``threading``'s signatures."""
        return SyncCapacityLimiter(self)

    def _take_locked(self, borrower: _Borrower) -> bool:
        if borrower in self._borrowers:
            raise RuntimeError(f"{borrower!r} already holds a token of {self!r}; one borrower holds at most one")
        if borrower in self._waiting:
            raise RuntimeError(f"{borrower!r} already waits for a token of {self!r}; one borrower waits once")
        if self._waiting or len(self._borrowers) >= self._total:
            return False
        self._borrowers.add(borrower)
        return True

    def _serve_locked(self) -> list[_Waiter]:
        """Hand free tokens to those who wait; the caller wakes them after it has released the lock."""
        served: list[_Waiter] = []
        while self._waiting and len(self._borrowers) < self._total:
            borrower, waiter = self._waiting.popitem(last=False)
            if waiter.claim():  # else it has given up, and is leaving
                self._borrowers.add(borrower)
                served.append(waiter)
        return served

    def _give_up(self, waiter: _Waiter, borrower: _Borrower) -> None:
        """Leave the queue; if a token was handed over at this moment, pass it on."""
        if waiter.claim():
            self._forget(waiter, borrower)
        else:
            self.release_on_behalf_of(borrower)

    def _forget(self, waiter: _Waiter, borrower: _Borrower) -> None:
        """Take a waiter that has claimed itself out of the queue, unless a giver has, which then took the next."""
        with self._lock:
            if self._waiting.get(borrower) is waiter:
                del self._waiting[borrower]


class SyncCapacityLimiter:
    """The face of a ``CapacityLimiter`` for plain threads: ``acquire(blocking, timeout)``, ``release``, ``with``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.1
    """

    __slots__ = ("_limiter",)

    def __init__(self, limiter: CapacityLimiter) -> None:
        self._limiter = limiter

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """Borrow a token for the calling thread.

        Args:
            timeout: Seconds to wait at most; -1 and ``None`` wait as long as it takes.
        Returns:
            Whether a token was borrowed.
        Raises:
            BlockingCallError: the call would have to wait, and this thread runs a loop.
            RuntimeError: the thread already holds a token.
            ValueError: a ``timeout`` below 0 that is not -1, or one beside ``blocking=False``.
        """
        patience = _checked_timeout(blocking, timeout)
        limiter, me = self._limiter, _me()
        with limiter._lock:
            if limiter._take_locked(me):
                return True
            if not blocking:
                return False
            refuse_on_loop_thread("CapacityLimiter.sync.acquire()", "await limiter.acquire()")
            waiter = ThreadWaiter()
            limiter._waiting[me] = waiter
        try:
            woken = waiter.park(patience)
        except BaseException:  # KeyboardInterrupt on the main thread
            limiter._give_up(waiter, me)
            raise
        if woken or not waiter.claim():
            return True  # a token handed over at the very end of the wait is ours
        limiter._forget(waiter, me)
        return False

    def release(self) -> None:
        """Return the calling thread's token."""
        self._limiter.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class WouldBlock(PolyloopError):
    """A ``_nowait`` call could not be done without waiting. A signal, not a fault."""


def _checked(total: float) -> float:
    if not isinstance(total, int) and total != math.inf:
        raise TypeError(f"the tokens of a limiter are counted by an int or math.inf, got {total!r}")
    if total < 1:
        raise ValueError(f"a limiter needs at least one token, got {total!r}")
    return total


def _checked_timeout(blocking: bool, timeout: float | None) -> float | None:
    """``threading``'s ways to say how long, as seconds or ``None``."""
    if timeout is None or timeout == -1:
        return None
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout < 0:
        raise ValueError(f"timeout must be -1, None or at least 0, got {timeout!r}")
    return timeout


def _me() -> _Borrower:
    """The current task, or the current thread where no loop runs."""
    if not runs_a_loop():
        return _prims.current_thread()
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a callback of a loop is no borrower of its own; use the methods '..._on_behalf_of'")
    return task


def _wake(served: list[_Waiter]) -> None:
    for waiter in served:
        waiter.wake()

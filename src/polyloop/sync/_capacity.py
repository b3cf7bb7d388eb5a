"""``CapacityLimiter``: at most so many at once, over all loops and threads.

Each borrow or wait is an entry. Waiters are served in the order they came. A token that is handed to a waiter which is
cancelled at the same moment goes on to the next: whether an entry holds a token is decided under ``_lock``.

No code of a user runs under the lock: borrowers are looked up, compared and shown outside of it, by single operations
of the dictionary of entries. Only the garbage collector or a signal handler can still interrupt a thread that has the
lock, and may release a token or close a coroutine that waits. So whoever returns anything appends it to ``_returned``
and *then* tries the lock, without waiting; whoever had it releases it and *then* looks at ``_returned``. In every order
one of the two sees the entry under the lock.
"""

import asyncio
import math
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable
from types import TracebackType
from typing import Self, cast

from polyloop._core import _prims, _trio
from polyloop._core._context import runs_a_loop
from polyloop._core._errors import PolyloopError
from polyloop._core._parking import AsyncWaiter, ThreadWaiter, async_waiter, refuse_on_loop_thread
from polyloop.sync._face import Face, checked_timeout

type _Borrower = Hashable
type _Waiter = AsyncWaiter | ThreadWaiter


class _Entry:
    """One borrow, or the wait for it."""

    __slots__ = ("held", "key")

    def __init__(self, key: _Borrower) -> None:
        self.key = key
        self.held = False  # whether it has a token; written under the lock


_NOBODY = object()  # is no borrower, and has no entry


class CapacityLimiter:
    """A number of tokens that tasks and threads borrow, each at most one; ``anyio.CapacityLimiter`` across loops.

    Use it as ``async with limiter`` in a task of any loop, and as ``with limiter.sync`` in a plain thread.

    Args:
        total_tokens: How many may be borrowed at once; an int, at least 1, or ``math.inf``.
    Raises:
        TypeError: ``total_tokens`` is another kind of number.
        ValueError: ``total_tokens`` is below 1.
    Thread safety: every method may be called from any loop and any thread, first come, first served. Tokens may be
    returned from anywhere, finalisers and signal handlers included; borrowing is not for those.
    Cancellation: a cancelled ``acquire`` holds no token.

    .. versionadded:: 0.1
    """

    def __init__(self, total_tokens: float) -> None:
        self._entries: dict[_Borrower, _Entry] = {}  # single operations by any thread, never under the lock
        self._returned: deque[_Entry] = deque()  # appended by any thread, popped under the lock
        self._lock = _prims.Lock()  # guards the fields below
        self._total = _checked(total_tokens)
        self._held = 0  # entries that hold a token
        self._waiting: OrderedDict[_Entry, _Waiter] = OrderedDict()  # in the order they came

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
        self._wake(served)
        self._settle()

    @property
    def borrowed_tokens(self) -> int:
        """How many tokens are borrowed now."""
        return self._held

    @property
    def available_tokens(self) -> float:
        """How many tokens may be borrowed now; negative after ``total_tokens`` was lowered below the borrowed ones."""
        return self._total - self._held

    async def acquire(self) -> None:
        """Borrow a token for the current task, waiting for one if need be.

        Raises:
            RuntimeError: the task already holds a token of this limiter, or waits for one.
        """
        await self.acquire_on_behalf_of(_me())

    async def acquire_on_behalf_of(self, borrower: Hashable) -> None:
        """Borrow a token for ``borrower``; any hashable object, which is also what returns it."""
        await self._wait_for(self._enter(borrower))

    async def _borrow(self) -> "_Entry":
        """Borrow a token for nobody but who gets the entry, for ``_give_back``."""
        entry = _Entry(_NOBODY)
        await self._wait_for(entry)
        return entry

    def _give_back(self, entry: "_Entry") -> None:
        """Return what ``_borrow`` gave. Any thread, once."""
        self._returned.append(entry)
        self._settle()

    async def _wait_for(self, entry: "_Entry") -> None:
        try:
            if not self._take(entry):
                waiter = async_waiter()
                if not self._take(entry, waiter):
                    await waiter
        except BaseException:  # cancelled, or closed with its coroutine
            self._leave(entry)
            raise

    def acquire_nowait(self) -> None:
        """Borrow a token for the current task or thread, or raise ``WouldBlock``."""
        self.acquire_on_behalf_of_nowait(_me())

    def acquire_on_behalf_of_nowait(self, borrower: Hashable) -> None:
        """Borrow a token for ``borrower``, or raise ``WouldBlock`` if that would have to wait."""
        entry = self._enter(borrower)
        if not self._take(entry):
            self._leave(entry)
            raise WouldBlock(f"all {self._total} tokens are borrowed; use 'await acquire()' to wait for one")

    def release(self) -> None:
        """Return the current task's or thread's token.

        Raises:
            RuntimeError: it holds none.
        """
        self.release_on_behalf_of(_me())

    def release_on_behalf_of(self, borrower: Hashable) -> None:
        """Return the token of ``borrower``; whoever has waited longest gets it."""
        key = _key(borrower)
        entry = self._entries.get(key)
        if entry is None or not entry.held or self._entries.pop(key, None) is not entry:
            raise RuntimeError(f"{borrower!r} holds no token of {self!r}")
        self._returned.append(entry)
        self._settle()

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

    def _enter(self, borrower: _Borrower) -> _Entry:
        """Note that ``borrower`` wants a token."""
        entry = _Entry(_key(borrower))
        other = self._entries.setdefault(entry.key, entry)  # atomic: one borrower has one entry
        if other is entry:
            return entry
        if other.held:
            raise RuntimeError(f"{borrower!r} already holds a token of {self!r}; one borrower holds at most one")
        raise RuntimeError(f"{borrower!r} already waits for a token of {self!r}; one borrower waits once")

    def _take(self, entry: _Entry, waiter: _Waiter | None = None) -> bool:
        """Take a token, else queue the ``waiter`` if there is one; whether there was a token."""
        with self._lock:
            served = self._serve_locked() if self._returned or self._waiting else []
            if not self._waiting and self._held < self._total:
                self._held += 1
                entry.held = True
            elif waiter is not None:
                self._waiting[entry] = waiter
            taken = entry.held
        self._wake(served)
        self._settle()
        return taken

    def _leave(self, entry: _Entry) -> None:
        """Want no token any more; if one was handed over at this moment, it goes to the next. Waits for nothing."""
        self._entries.pop(entry.key, None)
        self._returned.append(entry)
        self._settle()

    def _settle(self) -> None:
        """Take in what was returned, unless somebody has the lock, who does so next. See the module's theory."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                served = self._serve_locked()
            finally:
                self._lock.release()
            self._wake(served)

    def _wake(self, served: list[tuple[_Entry, _Waiter]]) -> None:
        """Tell those who got a token. The caller settles afterwards."""
        for entry, waiter in served:
            if not waiter.wake():  # its loop has ended
                self._entries.pop(entry.key, None)
                self._returned.append(entry)

    def _serve_locked(self) -> list[tuple[_Entry, _Waiter]]:
        """Take in what was returned and hand free tokens on; the caller wakes who got one, without the lock."""
        while self._returned:
            entry = self._returned.popleft()
            if entry.held:
                entry.held = False
                self._held -= 1
            else:
                self._waiting.pop(entry, None)
        served: list[tuple[_Entry, _Waiter]] = []
        while self._waiting and self._held < self._total:
            entry, waiter = self._waiting.popitem(last=False)
            entry.held = True
            self._held += 1
            served.append((entry, waiter))
        return served


class SyncCapacityLimiter(Face[CapacityLimiter]):
    """The face of a ``CapacityLimiter`` for plain threads: ``acquire(blocking, timeout)``, ``release``, ``with``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.1
    """

    __slots__ = ("__weakref__", "_primitive")

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
        patience = checked_timeout(blocking, timeout)
        limiter = self._primitive
        entry = limiter._enter(_me())
        try:
            if limiter._take(entry) or (blocking and self._wait(entry, patience)):
                return True
        except BaseException:  # the refusal, or KeyboardInterrupt on the main thread
            limiter._leave(entry)
            raise
        limiter._leave(entry)
        return False

    def _wait(self, entry: _Entry, patience: float | None) -> bool:
        refuse_on_loop_thread("CapacityLimiter.sync.acquire()", "await limiter.acquire()", patience)
        waiter = ThreadWaiter()
        # A token handed over at the very end of the wait is ours.
        return self._primitive._take(entry, waiter) or waiter.park(patience) or entry.held

    def release(self) -> None:
        """Return the calling thread's token."""
        self._primitive.release()

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


def _me() -> _Borrower:
    """The current task, or the current thread where no loop runs."""
    trio_task: _Borrower = _trio.current_task()
    if trio_task is not None:
        return trio_task
    if not runs_a_loop():
        return _prims.current_thread()
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a callback of a loop is no borrower of its own; use the methods '..._on_behalf_of'")
    return task


def _key(borrower: _Borrower) -> _Borrower:
    """What stands for ``borrower`` in the limiter: a task is dropped by its own loop's thread, so it is not kept."""
    return weakref.ref(cast("object", borrower)) if isinstance(borrower, asyncio.Future) else borrower

"""Scopes of sync code: what a thread is told through that it is to stop.

A thread is in one scope at a time: that of the offloaded call it runs. Any thread may cancel the scope. From then on,
for good, whatever would have to wait in it raises ``CancelledError`` instead, and so does ``check_cancelled``. Nothing
else is touched: what need not wait goes through, so code that cleans up without waiting may do so.

Why no cancellation is missed: a thread that is about to sleep lists its waiter in ``_parked`` and *then* reads
``cancelled``; a canceller sets ``cancelled`` and *then* pops from ``_parked``, which is a critical section of that
deque whether it is empty or not. One of the two sees the other. Whoever pops a waiter there wakes it, and knows that
its thread raises: that takes the waiter out first and *then* reads ``cancelled`` again. Its own waker may wake it at
the same time; the thread then raises, and passes the wake-up on as whoever leaves a line does. In every order:
``tests/_core/test_scope_interleavings.py``.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from polyloop._core._context import here


class Sleeper(Protocol):
    """A thread that sleeps, or is about to."""

    def wake(self) -> bool: ...


class Scope:
    """What a thread is told through that it is to stop. Entered and left by one thread; cancelled by any, for good."""

    __slots__ = ("_parked", "cancelled")

    def __init__(self) -> None:
        self._parked: deque[Sleeper] = deque()
        self.cancelled = False

    def cancel(self) -> bool:
        """Cancel; ``True`` if the thread was asleep in this scope, and has been woken to raise."""
        self.cancelled = True
        woken = False
        while True:
            try:
                sleeper = self._parked.popleft()
            except IndexError:
                return woken
            sleeper.wake()
            woken = True

    def check(self) -> None:
        """Raise ``CancelledError`` if this scope was cancelled."""
        if self.cancelled:
            raise asyncio.CancelledError("the call was cancelled that this thread runs")

    def protect(self) -> None:
        """Let nothing tear apart what follows; see ``offload._interrupt``. May be nested. By the thread itself."""

    def unprotect(self) -> None:
        """The end of what ``protect`` began."""

    def sleep[T](self, sleeper: Sleeper, sleep: Callable[[T], bool], timeout: T) -> bool:
        """Return ``sleep(timeout)``, from which ``sleeper.wake()`` wakes this thread; or raise as ``check``."""
        parked = self._parked
        parked.append(sleeper)
        try:
            woken = not self.cancelled and sleep(timeout)
        finally:
            try:
                parked.remove(sleeper)
            except ValueError:  # the canceller has it, and wakes who no longer sleeps
                pass
        self.check()  # after it has left: whoever was found there raises
        return woken


class _Protected:
    """Not made of a generator: those set the traceback of what passes, which not every exception lets them."""

    __slots__ = ("_scope",)

    def __enter__(self) -> None:
        self._scope = scope = here.scope
        if scope is not None:
            scope.protect()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scope is not None:
            self._scope.unprotect()


class _Shield(_Protected):
    __slots__ = ()

    def __enter__(self) -> None:
        super().__enter__()
        here.scope = None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        here.scope = self._scope
        super().__exit__(kind, exc, trace)


def protected() -> AbstractContextManager[None]:
    """Protect the block, if this thread's call may be interrupted."""
    return _Protected()


def shield() -> AbstractContextManager[None]:
    """Let the calling thread wait in this block although its call was, or is, cancelled.

    For sync code that cleans up, and has to wait for that: everything in the block behaves as outside of any call, and
    no interrupt (``on_cancel="interrupt"``) arrives in it. What it waits for should be sure to come, since nobody can
    end the wait.

    Thread safety: any thread; it concerns the calling one only.

    .. versionadded:: 0.3
    """
    return _Shield()


def check_cancelled() -> None:
    """Raise ``CancelledError`` if the task was cancelled that waits for the call on this thread.

    For sync code that computes for long: call it now and then. It costs less than a microsecond. On a thread that runs
    no call of a task, and in a ``shield`` block, it does nothing.

    Raises:
        CancelledError: let it pass through the function, after cleaning up.
    Thread safety: any thread.

    .. versionadded:: 0.3
    """
    scope = here.scope
    if scope is not None:
        scope.check()

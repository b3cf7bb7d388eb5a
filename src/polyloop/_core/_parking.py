"""Parking: to suspend a coroutine or a thread until any other thread wakes it.

A waiter parks once. ``claim`` is its one-shot ticket: of all who want to wake it or give it up (a producer, a
canceller, a timeout), exactly one wins, so nothing is ever handed to a waiter that has left. ``wake`` may be called
by any thread and, after a ``claim``, is called once.
"""

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any

from polyloop._core import _prims
from polyloop._core._context import runs_a_loop
from polyloop._core._errors import BlockingCallError
from polyloop._core._port import Port, current_port


class _Claimed:
    """The one-shot ticket of a waiter."""

    __slots__ = ("_ticket",)

    def __init__(self) -> None:
        self._ticket = [None]

    def claim(self) -> bool:
        """Take the right to decide this park. True for exactly one caller over all threads."""
        try:
            self._ticket.pop()  # atomic: one ticket has one popper
        except IndexError:
            return False
        return True


class LoopWaiter(_Claimed):
    """One park of one coroutine on the loop that runs it (asyncio or compatible). ``await`` it to park.

    Cancellation: the ``await`` raises ``CancelledError``; the caller then tries ``claim`` and, if that fails, knows
    that somebody has already decided to wake it.
    """

    __slots__ = ("_future", "_port")

    def __init__(self) -> None:
        super().__init__()
        self._port: Port = current_port()
        self._future: asyncio.Future[None] = self._port.loop.create_future()

    def __await__(self) -> Generator[Any]:
        return self._future.__await__()

    def wake(self) -> None:
        if self._port.is_current():
            self._resolve()
        else:
            self._port.post(self._resolve)

    def _resolve(self) -> None:
        if not self._future.done():  # done: the parked task was cancelled meanwhile
            with contextlib.suppress(RuntimeError):  # the loop was closed under it
                self._future.set_result(None)


class ThreadWaiter(_Claimed):
    """One park of one plain thread."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        super().__init__()
        self._lock = _prims.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        self._lock.release()

    def park(self, timeout: float | None = None) -> bool:
        """Block the calling thread until woken; return ``False`` when ``timeout`` seconds passed first."""
        if not _prims.is_main_thread():
            return self._lock.acquire(timeout=-1 if timeout is None else timeout)
        return self._park_main(timeout)

    def _park_main(self, timeout: float | None) -> bool:
        # A signal that the kernel delivers to another thread does not interrupt the main thread's wait for a lock,
        # yet only the main thread can run its handler (measured: Ctrl-C was noticed when the wait ended). So the main
        # thread looks up ten times a second.
        deadline = None if timeout is None else _prims.monotonic() + timeout
        while True:
            left = _SIGNAL_SLICE if deadline is None else min(_SIGNAL_SLICE, deadline - _prims.monotonic())
            if self._lock.acquire(timeout=max(left, 0)):
                return True
            if deadline is not None and _prims.monotonic() >= deadline:
                return False


_SIGNAL_SLICE = 0.1


def refuse_on_loop_thread(call: str, twin: str) -> None:
    """Raise ``BlockingCallError`` if the calling thread runs a loop.

    Args:
        call: What would block, as the user wrote it.
        twin: The awaitable spelling of the same thing.
    """
    if runs_a_loop():
        thread = _prims.current_thread().name
        raise BlockingCallError(f"{call} would block the event loop of thread {thread!r}; use '{twin}' there")

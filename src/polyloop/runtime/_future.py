"""The future of a call that a runtime runs as an executor."""

import contextlib
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any

from polyloop._core import _prims
from polyloop._core._context import here
from polyloop._core._handle import TaskHandle
from polyloop._core._parking import ThreadWaiter, refuse_on_loop_thread


class RuntimeFuture[T](Future[T]):
    """What ``RuntimeExecutor.submit`` returns: a future of ``concurrent.futures`` that keeps the rules of threads.

    A thread that runs a loop must not wait for it; there, ``await asyncio.wrap_future(future)``. A thread of the pool
    that waits for it lends its place, so that what it waits for finds one, and hears of its own cancellation.

    Thread safety: any thread.

    .. versionadded:: 0.3
    """

    _handle: TaskHandle[None] | None = None  # of the task, for an async function; set before anybody has the future

    def result(self, timeout: float | None = None) -> T:
        """What the function returned; waits for it.

        Raises:
            BlockingCallError: it is not done, and this thread runs a loop.
            CancelledError: ``concurrent.futures``'s: this future was cancelled. ``asyncio``'s: the call was cancelled
                that this thread runs, or the task of the function.
            TimeoutError: it was not done in ``timeout`` seconds.
            BaseException: what the function raised.
        """
        try:
            self._wait(timeout, ".result()")
            return super().result(timeout)
        finally:
            del self  # the traceback holds this frame, and the future that exception: no cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the function raised, or ``None``; waits, and raises while waiting, as ``result`` does."""
        self._wait(timeout, ".exception()")
        return super().exception(timeout)

    def cancel(self) -> bool:
        """Withdraw the call if it has not begun; ``False`` if it has, or is done."""
        if not super().cancel():
            return False
        self.request_cancel()  # before its first step: nothing in it hears of this
        return True

    def request_cancel(self) -> None:
        """Cancel the task of an async function; that of a sync one is not touched. Any thread."""
        if self._handle is not None:
            self._handle.cancel()

    def end_in_child(self, exc: BaseException) -> None:
        """In a forked child: fail, unless it is done. Who waits for it, or holds its lock, lives in the parent only."""
        self._condition = _prims.Condition()
        self._waiters: list[Any] = []
        if not self.done():
            self.set_exception(exc)

    def _wait(self, timeout: float | None, call: str) -> None:
        """Wait as polyloop does where that differs; elsewhere ``concurrent.futures`` is about to."""
        if self.done():
            return
        refuse_on_loop_thread(f"{self!r}{call}", "await asyncio.wrap_future(future)", timeout)
        pool = here.pool
        if pool is None and here.scope is None:
            return
        waiter = ThreadWaiter()
        self.add_done_callback(partial(_wake, waiter))
        with contextlib.nullcontext() if pool is None else pool.lending():
            waiter.park(timeout)


def _wake(waiter: ThreadWaiter, _future: object) -> None:
    waiter.wake()


def complete(future: Future[Any], result: Any, exc: BaseException | None) -> None:
    """End a call that has begun. One that was given up with its loop, and comes back, has ended already."""
    with contextlib.suppress(InvalidStateError):
        if exc is None:
            future.set_result(result)
        else:
            future.set_exception(exc)


def refuse(future: Future[Any], exc: BaseException | None) -> None:
    """End a call that will not begin: with ``exc``, or cancelled. Once, by whoever has its ticket."""
    if exc is None:
        future.cancel()
    if future.set_running_or_notify_cancel():  # else ``wait`` and ``as_completed`` hear of the cancellation now
        future.set_exception(exc)

"""The handle of a task: what ``spawn`` and ``create_task`` return.

The task stays on the loop that owns it (``_task.py``); the handle is what everybody else holds. This file is the side
that users see: they read it, wait for it and cancel it, from any thread.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Generator
from typing import Any, cast

from polyloop._core._completion import Callback, SameCallback
from polyloop._core._port import Port
from polyloop._core._task import OwnedTask


class TaskHandle[T](OwnedTask[T]):
    """A task on some loop, awaitable on any loop and readable on any thread.

    Awaiting it gives the result or raises what the task raised; several waiters may do so at once. A cancelled awaiter
    cancels the task, as with ``asyncio.Task``, unless it waits through ``asyncio.shield``.

    What ``asyncio.Task`` has and a handle has not belongs to the thread that runs the task. ``cancelling`` and
    ``uncancel``: the count is for the task itself and for what it is built of (``asyncio.timeout``, ``TaskGroup``);
    inside the task ``asyncio.current_task()`` has them. ``get_stack`` and ``print_stack``: the frames of a task that
    runs on another thread cannot be read.

    Thread safety: every method may be called from any thread. ``result`` and ``exception`` block a plain thread and
    refuse to block one that runs a loop.

    .. versionadded:: 0.1
    """

    # Future-like, as asyncio.isfuture defines it: wait_for, shield, gather and the like take the handle as it is,
    # instead of a task of their own around it. They look at the second one too.
    _asyncio_future_blocking = False
    _cancel_message: Any = None
    _source_traceback = None  # asyncio.shield looks at it, as at _loop

    # For everybody

    @property
    def name(self) -> str:
        """Label of the task: the name given at creation, else the qualified name of its function.

        Messages of asyncio itself show the name given, else ``Task-N``.
        """
        return self._label()

    def get_name(self) -> str:
        """The same as ``name``, for code written against ``asyncio.Task``."""
        return self.name

    def set_name(self, value: object) -> None:
        """Change the name. Any thread; asyncio's own messages show it a moment later."""
        self._name = str(value)
        self._port.post(self._rename)  # the port is read after the name is set, as in cancel

    def get_coro(self) -> Coroutine[Any, Any, T]:
        """The coroutine that the task runs: to be looked at, not touched."""
        return self._coro

    def get_context(self) -> contextvars.Context | None:
        """The context that the task runs in; ``None`` if its own loop made it and this is another thread."""
        task = self._local_task()
        return self._context if task is None else task.get_context()

    @property
    def worker(self) -> Port:
        """Where the task runs, or where it waits to be started (it may still be stolen then)."""
        return self._port

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs on the calling thread: a handle can be awaited on any, so it is at home on each.

        Raises:
            RuntimeError: no loop runs on this thread.
        """
        return asyncio.get_running_loop()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self.get_loop()

    def __repr__(self) -> str:
        name = self.name
        if not self._done:
            state = "pending"
        elif self._cancelled:
            state = "cancelled"
        elif self._exception is not None:
            state = f"failed exception={self._exception!r}"
        else:
            state = "finished"
        return f"<TaskHandle {name!r} {state} on {self._port.name}>"

    def done(self) -> bool:
        """Whether the task has ended, in whatever way."""
        task = self._local_task()
        return self._done if task is None else task.done()

    def cancelled(self) -> bool:
        """Whether the task has ended by cancellation."""
        task = self._local_task()
        return self._done and self._cancelled if task is None else task.cancelled()

    def result(self, timeout: float | None = None) -> T:
        """The task's result; waits for it on a plain thread.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            TimeoutError: the task was not done in time; it runs on.
            BlockingCallError: the task is not done and this thread runs a loop, which must not block.
            BaseException: what the task raised; ``CancelledError`` if it was cancelled.
            ValueError: ``timeout`` is NaN, and the task not done.
        Thread safety: any thread.
        """
        task = self._local_task()
        if task is not None and task.done():
            self._watched = True
            return task.result()
        try:
            self._block(timeout, ".result()")
            return self._outcome()
        finally:
            del self  # as in _outcome

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or ``None``; waits like ``result``.

        Raises:
            TimeoutError, BlockingCallError, ValueError: as ``result``.
            CancelledError: the task was cancelled.
        Thread safety: any thread.
        """
        task = self._local_task()
        if task is not None and task.done():
            self._watched = True
            return task.exception()
        try:
            self._block(timeout, ".exception()")
            if self._cancelled:
                self._outcome()
            return self._exception_for_me()
        finally:
            del self  # as in _outcome

    def cancel(self, msg: Any = None) -> bool:
        """Ask the task to stop: ``CancelledError`` is raised in it at its next step.

        A task that has not started never will, and ends cancelled.

        Returns:
            ``False`` if the task was already done, ``True`` if the request was made.
        Thread safety: any thread; the request is delivered on the task's own loop.
        """
        task = self._local_task()
        if task is not None:
            return task.cancel(msg)
        if self._done:
            return False
        self._request_cancel(msg)
        return True

    def add_done_callback(
        self, fn: "Callable[[TaskHandle[T]], object]", *, context: contextvars.Context | None = None
    ) -> None:
        """Call ``fn(handle)`` when the task is done.

        Added on a thread that runs a loop, ``fn`` runs on that loop, soon after; added elsewhere, it runs on the
        thread that completes the task and must not block.

        Args:
            context: The context to run ``fn`` in; a copy of the current one by default.
        Thread safety: any thread.
        """
        self._add_callback(Callback(fn, self, context))

    def remove_done_callback(self, fn: "Callable[[TaskHandle[T]], object]") -> int:
        """Remove every callback equal to ``fn`` that has not been scheduled; return how many there were."""
        count = 0
        while self._drop_waiter(SameCallback(fn, count)):
            count += 1
        return count

    def __await__(self) -> Generator[Any, None, T]:
        task = self._local_task()
        if task is not None:
            self._watched = True
            return task.__await__()  # a task of this same loop: asyncio does it all
        return self._await_away()

    # Waiting

    def _await_away(self) -> Generator[Any, None, T]:
        """Wait from another loop. The awaiter's cancellation goes to the task; the awaiter then waits for its end."""
        passed_on: asyncio.CancelledError | None = None
        try:
            while not self._done:
                try:
                    yield from self._wait()
                except asyncio.CancelledError as exc:
                    if not self.cancel(*exc.args[:1]):
                        raise  # the task ended first, and the awaiter is cancelled all the same
                    passed_on = exc
            if passed_on is not None and self._missed_one():
                raise passed_on  # the task ended before the request reached it
            if self._exception is None:
                return cast("T", self._result)
            return self._outcome()
        finally:
            del self, passed_on  # as in _outcome

    def _make_cancelled_error(self) -> BaseException:
        """For asyncio.gather: the exception of a cancelled task, or of its own cancellation, with this one the last."""
        return (self._exception_for_me() if self._cancelled else None) or asyncio.CancelledError()

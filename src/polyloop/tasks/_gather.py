"""``gather``: asyncio's, over all loops."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Literal, cast, overload

from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port, current_port
from polyloop.runtime._current import running_runtime


class HandleFuture[T](asyncio.Future[T]):
    """A future of this loop that follows a handle, wherever that runs. Cancelling it cancels the task.

    It belongs to the loop it was made on; only ``wake``, by which the handle reports its end, is for other threads.
    """

    def __init__(self, handle: TaskHandle[T], port: Port) -> None:
        super().__init__(loop=port.loop)
        self._handle = handle
        self._port = port
        handle._add_waiter(self.wake)

    def cancel(self, msg: Any = None) -> bool:
        """Ask the task to stop; this future is done when the task is."""
        return not self.done() and self._handle.cancel(msg)

    def wake(self) -> None:
        """The task has ended: follow it on this future's own loop. Any thread."""
        if self._port.is_current():
            self._follow()
        else:
            self._port.post(self._follow)

    def _follow(self) -> None:
        if self.done():
            return
        handle = self._handle
        exc = handle._exception_for_me()
        if exc is None:
            self.set_result(cast("T", handle._result))
        elif handle._cancelled:
            super().cancel(*exc.args[:1])
        else:
            self.set_exception(exc)


@overload
def gather[T](
    *aws: Coroutine[Any, Any, T] | Awaitable[T], return_exceptions: Literal[False] = False
) -> "asyncio.Future[list[T]]": ...
@overload
def gather[T](
    *aws: Coroutine[Any, Any, T] | Awaitable[T], return_exceptions: bool
) -> "asyncio.Future[list[T | BaseException]]": ...
def gather(*aws: Awaitable[Any], return_exceptions: bool = False) -> "asyncio.Future[list[Any]]":
    """Run awaitables concurrently; ``asyncio.gather`` with coroutines spread over all loops.

    Coroutines become tasks on the runtime's loops. Handles are awaited where they run. Futures and tasks of this loop
    stay on it. Without a runtime all run on this loop.

    Args:
        return_exceptions: Whether exceptions are returned in the list instead of raised.
    Returns:
        A future of this loop: the list of results, in the order of ``aws``.
    Raises:
        BaseException: what the first to fail raised; the others run on.
    Cancellation: cancels all that are not done.
    Thread safety: call it on a thread that runs a loop.

    .. versionadded:: 0.1
    """
    port = current_port()
    runtime = running_runtime()
    handles: dict[int, Awaitable[Any]] = {}
    try:
        for aw in aws:
            if id(aw) not in handles:
                handles[id(aw)] = runtime.submit(aw) if runtime is not None and asyncio.iscoroutine(aw) else aw
    except BaseException:  # the runtime was closed meanwhile, and has closed the coroutine that it refused
        for aw in aws:
            if id(aw) not in handles and asyncio.iscoroutine(aw):
                aw.close()
        raise
    futures = [_future_of(handles[id(aw)], port) for aw in aws]
    return asyncio.gather(*futures, return_exceptions=return_exceptions)


def _future_of(aw: Awaitable[Any], port: Port) -> "asyncio.Future[Any]":
    if not isinstance(aw, TaskHandle):
        return asyncio.ensure_future(aw)
    task = aw._local_task()
    if task is None:
        return HandleFuture(aw, port)
    aw._watched = True  # gather looks at the task's exception
    return task

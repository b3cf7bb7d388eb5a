"""``gather``: asyncio's, over all loops."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Literal, overload

from polyloop._core._handle import TaskHandle
from polyloop.tasks._gathering import gather_migrants
from polyloop.tasks._progress import ProgressHook, watch
from polyloop.tasks._spread import spread


@overload
def gather[T](
    *aws: Coroutine[Any, Any, T] | Awaitable[T],
    return_exceptions: Literal[False] = False,
    limit: int | None = None,
    progress: ProgressHook | None = None,
) -> "asyncio.Future[list[T]]": ...
@overload
def gather[T](
    *aws: Coroutine[Any, Any, T] | Awaitable[T],
    return_exceptions: bool,
    limit: int | None = None,
    progress: ProgressHook | None = None,
) -> "asyncio.Future[list[T | BaseException]]": ...
def gather(
    *aws: Awaitable[Any],
    return_exceptions: bool = False,
    limit: int | None = None,
    progress: ProgressHook | None = None,
) -> "asyncio.Future[list[Any]]":
    """Run awaitables concurrently; ``asyncio.gather`` with coroutines spread over all loops.

    Coroutines become tasks on the runtime's loops. Handles are awaited where they run. Futures and tasks of this loop
    stay on it. Without a runtime all run on this loop.

    Args:
        return_exceptions: Whether exceptions are returned in the list instead of raised.
        limit: Most of the coroutines that run at once; the others wait for their turn, in their order.
        progress: Called with a ``Progress`` on this loop, each time that one has ended; what it raises goes to the
            loop's exception handler.
    Returns:
        A future of this loop: the list of results, in the order of ``aws``.
    Raises:
        RuntimeError: no loop runs on this thread; nothing was started, and the coroutines were closed.
        ValueError: ``limit`` is below 1; the same.
        BaseException: what the first to fail raised; the others run on, and those that wait are started.
    Cancellation: cancels all that are not done.
    Thread safety: call it on a thread that runs a loop.

    .. versionadded:: 0.1
    .. versionchanged:: 0.3 ``limit`` and ``progress``.
    """
    if limit is None and progress is None and asyncio._get_running_loop() is not None:
        gathering = gather_migrants(aws, return_exceptions)
        if gathering is not None:
            return gathering
    futures = spread(aws, limit)
    if progress is not None:
        watch(progress, futures.values())
    waited = {key: _local(future) for key, future in futures.items()}
    return asyncio.gather(*[waited[id(aw)] for aw in aws], return_exceptions=return_exceptions)


def _local(future: "TaskHandle[Any] | asyncio.Future[Any]") -> Any:
    """The task itself, if it runs on this loop: asyncio does the rest with less."""
    if not isinstance(future, TaskHandle):
        return future
    task = future._local_task()
    if task is None:
        return future  # future-like
    future._watched = True  # gather looks at the task's exception
    return task

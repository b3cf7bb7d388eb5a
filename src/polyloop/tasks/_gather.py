"""``gather``: asyncio's, over all loops."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Literal, overload

from polyloop._core._handle import TaskHandle
from polyloop.runtime._current import running_runtime


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
        RuntimeError: no loop runs on this thread; nothing was started, and the coroutines were closed.
        BaseException: what the first to fail raised; the others run on.
    Cancellation: cancels all that are not done.
    Thread safety: call it on a thread that runs a loop.

    .. versionadded:: 0.1
    """
    runtime = running_runtime()
    futures: dict[int, Awaitable[Any]] = {}  # one for each awaitable, however often it is given
    try:
        asyncio.get_running_loop()  # before anything is started: the future that is returned belongs to it
        for aw in aws:
            if id(aw) not in futures:
                started = runtime.submit(aw) if runtime is not None and asyncio.iscoroutine(aw) else aw
                futures[id(aw)] = _future_of(started)
    except BaseException:  # no loop; or a runtime that was closed meanwhile, which has closed what it refused
        for aw in aws:
            if id(aw) not in futures and asyncio.iscoroutine(aw):
                aw.close()
        raise
    return asyncio.gather(*[futures[id(aw)] for aw in aws], return_exceptions=return_exceptions)


def _future_of(aw: Awaitable[Any]) -> Awaitable[Any]:
    if not isinstance(aw, TaskHandle):
        return asyncio.ensure_future(aw)
    task = aw._local_task()
    if task is None:
        return aw  # future-like
    aw._watched = True  # gather looks at the task's exception
    return task

"""``as_completed``: asyncio's, over all loops."""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, Self

from polyloop._core._handle import TaskHandle
from polyloop.tasks._progress import ProgressHook, watch
from polyloop.tasks._spread import spread


class AsCompleted[T]:
    """What ``as_completed`` returns: iterate with ``async for`` or with ``for``, not with both.

    Thread safety: for tasks of the loop on which it was made.

    .. versionadded:: 0.3
    """

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> "TaskHandle[T] | asyncio.Future[T]":
        """The next one that has ended: the handle or future that was given, or the handle of a coroutine."""
        ended: TaskHandle[T] | asyncio.Future[T] = await anext(self._iterator)
        return ended

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Coroutine[Any, Any, T]:
        """A coroutine that waits for the next one to end, and gives its result."""
        waiting: Coroutine[Any, Any, T] = next(self._iterator)
        return waiting


def as_completed[T](
    aws: Iterable[Awaitable[T]],
    *,
    timeout: float | None = None,
    limit: int | None = None,
    progress: ProgressHook | None = None,
) -> AsCompleted[T]:
    """Run awaitables and iterate over them as they end; ``asyncio.as_completed`` with coroutines on all loops.

    As from Python 3.13 on, there are two ways::

        async for handle in polyloop.as_completed(coros):  # the handles themselves
            print(handle.get_name(), await handle)
        for waiting in polyloop.as_completed(coros):  # coroutines
            print(await waiting)

    Args:
        timeout: Seconds for all of them together.
        limit: Most of the coroutines that run at once; the others wait for their turn, in their order.
        progress: Called with a ``Progress`` on this loop, each time that one has ended; what it raises goes to the
            loop's exception handler.
    Returns:
        An iterator of both kinds. Handles, tasks and futures come out as they were given, coroutines as handles (as
        tasks of this loop, if there is no runtime and no ``limit``).
    Raises:
        TypeError: ``aws`` is no iterable of awaitables; coroutines were closed.
        ValueError: ``limit`` is below 1; coroutines were closed.
        TimeoutError: from the iterator, or from the coroutine that it gave: the time is over. All run on.
        RuntimeError: no loop runs on this thread; coroutines were closed.
    Cancellation: leaving the iteration early, or cancelling it, cancels none of them, as on asyncio. ``map``, and a
    ``TaskGroup``, do.
    Thread safety: call it on a thread that runs a loop.

    .. versionadded:: 0.3
    """
    if asyncio.iscoroutine(aws) or asyncio.isfuture(aws):
        if asyncio.iscoroutine(aws):
            aws.close()
        raise TypeError(f"as_completed() needs an iterable of awaitables, got {aws!r}")
    futures = list(spread(list(aws), limit).values())
    if progress is not None:
        watch(progress, futures)
    return AsCompleted(asyncio.as_completed(futures, timeout=timeout))

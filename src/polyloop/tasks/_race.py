"""``race`` and ``first_success``: several ways to one result, of which the others are cancelled."""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

from polyloop.tasks._spread import spread
from polyloop.tasks._start import report_failures


async def race[T](*aws: Awaitable[T]) -> T:
    """Run awaitables at once; the first that ends decides, the others are cancelled and waited for.

    Coroutines are spread over all loops, as by ``gather``.

    Returns:
        The result of the first one.
    Raises:
        ValueError: nothing was given.
        BaseException: what the first one raised; ``CancelledError`` if it was cancelled. Failures of the others go to
            the loop's exception handler.
    Cancellation: cancels all, and waits for them.
    Thread safety: any task on any loop.

    .. versionadded:: 0.3
    """
    return cast("T", await _decide("race", aws, any_end=True))


async def first_success[T](*aws: Awaitable[T]) -> T:
    """Run awaitables at once; the first that succeeds decides, the others are cancelled and waited for.

    Coroutines are spread over all loops, as by ``gather``. ::

        page = await polyloop.first_success(fetch(mirror_1), fetch(mirror_2))

    Returns:
        The first result.
    Raises:
        ValueError: nothing was given.
        ExceptionGroup: all have failed; their exceptions, in the order of ``aws``.
    Cancellation: cancels all, and waits for them.
    Thread safety: any task on any loop.

    .. versionadded:: 0.3
    """
    return cast("T", await _decide("first_success", aws, any_end=False))


async def _decide(verb: str, aws: tuple[Awaitable[Any], ...], *, any_end: bool) -> Any:
    if not aws:
        raise ValueError(f"{verb}() needs at least one awaitable: nothing can come first")
    futures = list(spread(aws).values())
    winner: Any = None
    try:
        winner = await _first(futures, any_end)
    except BaseException:
        await _end(futures)
        raise
    else:
        cancelled = await _end(futures)
        if winner is None:
            failures = [_exception(future) for future in futures]
            raise BaseExceptionGroup(f"{verb}(): all have failed", failures)
        failures = [_exception(future) for future in futures if future is not winner and not _succeeded(future)]
        report_failures(asyncio.get_running_loop(), f"{verb}()", failures, None)
        if cancelled is not None:
            raise cancelled
        return winner.result()
    finally:
        failures = []
        futures = []
        cancelled = winner = None  # what is raised holds this frame: no cycle through it


async def _first(futures: list[Any], any_end: bool) -> Any:
    """The future that decides; ``None`` if all have failed."""
    ended: asyncio.Queue[Any] = asyncio.Queue()
    for future in futures:
        future.add_done_callback(ended.put_nowait)
    try:
        for _ in futures:
            future = await ended.get()
            if any_end or _succeeded(future):
                return future
        return None
    finally:
        for future in futures:
            future.remove_done_callback(ended.put_nowait)


async def _end(futures: list[Any]) -> asyncio.CancelledError | None:
    """Cancel what is not done and wait for it; return the last cancellation that came meanwhile."""
    pending: set[Any] = {future for future in futures if not future.done()}
    for future in pending:
        future.cancel()
    cancelled: asyncio.CancelledError | None = None
    while pending:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as exc:
            cancelled = exc
        pending = {future for future in pending if not future.done()}
    return cancelled


def _succeeded(future: Any) -> bool:
    return not future.cancelled() and future.exception() is None


def _exception(future: Any) -> BaseException:
    if future.cancelled():
        return asyncio.CancelledError()
    exc: BaseException = future.exception()
    return exc

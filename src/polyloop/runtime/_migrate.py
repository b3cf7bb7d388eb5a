"""What a migratable task calls itself: where it may move, and where it stays."""

import asyncio
import math
import types
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

from polyloop._core import _prims
from polyloop._core._context import here
from polyloop._core._migrant import CHECKPOINT, MigratableTask
from polyloop._core._parking import running_migrant


@types.coroutine
def _give_way() -> Generator[Any]:
    yield None if running_migrant() is None else CHECKPOINT


async def checkpoint() -> None:
    """Let other tasks go first, and the loop's callbacks after 0.2 ms; a migratable task may go on on another worker.

    For long computations between two awaits: a task that never waits keeps its worker. In any other task it is
    ``asyncio.sleep(0)``.

    Cancellation: raised here, if it was asked for.
    Thread safety: any loop.

    .. versionadded:: 0.5
    """
    await _give_way()


async def sleep[T](delay: float, result: T | None = None) -> T | None:
    """``asyncio.sleep``; a migratable task may go on on another worker.

    Args:
        delay: Seconds; 0 or less is a ``checkpoint``.
        result: What to return.
    Raises:
        ValueError: ``delay`` is NaN.
    Cancellation: ends the sleep.
    Thread safety: any loop.

    .. versionadded:: 0.5
    """
    migrant = running_migrant()
    if migrant is None or migrant._port is not here.port:  # the latter is being closed, by anybody, and cannot sleep
        return await asyncio.sleep(delay, result)
    if math.isnan(delay):
        raise ValueError("Invalid delay: NaN (not a number)")
    if delay <= 0:
        await _give_way()
        return result
    until = _prims.monotonic() + delay
    while True:
        worker = migrant._port
        waiter = migrant.waiter()
        worker.crew_member.sleepers.add(waiter)
        timer = worker.call_later(max(0.0, until - _prims.monotonic()), waiter)
        try:
            await waiter
        except BaseException:
            worker.post(timer.cancel)  # whose thread this may be no more
            raise
        finally:
            worker.crew_member.sleepers.discard(waiter)
        if not worker.crew_member.closed:  # else its loop is gone, and this was woken early
            return result


class pinned:  # noqa: N801 - used like a function
    """``async with polyloop.pinned():`` keeps a migratable task on the loop where it is.

    For what is bound to a loop and outlives an await: streams, connections, locks of asyncio. Nothing else steps the
    task inside. Blocks may be nested, each block is entered once. Any other task stays on its loop anyway.

    Cancellation: entering and leaving wait for nothing.
    Thread safety: any loop; a block is entered and left by one task.

    .. versionadded:: 0.5
    """

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: MigratableTask[Any] | None = None

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("this block was entered before; call pinned() for another")
        self._task = pin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.detach()


def pin() -> MigratableTask[Any] | None:
    """Keep the running task on its loop until ``detach``, if it is one that migrates; which."""
    task = running_migrant()
    if task is not None:
        task.attach()
    return task

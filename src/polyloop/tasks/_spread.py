"""Coroutines among awaitables become tasks on all loops: what ``gather``, ``as_completed`` and ``race`` begin with."""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any

from polyloop._core._handle import TaskHandle
from polyloop._core._port import current_port
from polyloop.runtime._current import running_runtime
from polyloop.tasks._start import checked_limit, close_all
from polyloop.tasks._turns import Turns, Waiting, WaitingHandle, WaitingMigrant


def spread(aws: Sequence[Awaitable[Any]], limit: int | None = None) -> dict[int, Any]:
    """Start the coroutines among ``aws``; handles, tasks and futures stay what they are.

    Args:
        limit: Most of those coroutines that run at once.
    Returns:
        By the identity of each awaitable, a handle, task or future. In the order of ``aws``; one that is given twice is
        there once.
    Raises:
        ValueError: ``limit`` is below 1; every coroutine was closed.
        RuntimeError: no loop runs on this thread; every coroutine was closed.
        TypeError: one is not awaitable; the coroutines that come after it were closed.
    """
    started: dict[int, Any] = {}
    try:
        checked_limit(limit)
        asyncio.get_running_loop()  # before anything is started: the end is awaited here
        start = _Starter(limit)
        for aw in aws:
            if id(aw) not in started:
                started[id(aw)] = start(aw)
    except BaseException:  # or a runtime that was closed meanwhile, which has closed what it refused
        close_all(aw for aw in aws if id(aw) not in started)
        raise
    return started


class _Starter:
    def __init__(self, limit: int | None) -> None:
        self._runtime = running_runtime()
        self._turns = None if limit is None else Turns(limit, current_port(), self._runtime)

    def __call__(self, aw: Awaitable[Any]) -> Any:
        if not asyncio.iscoroutine(aw):
            return aw if isinstance(aw, TaskHandle) else asyncio.ensure_future(aw)
        if self._turns is not None:
            handle = self._waiting(aw)
            handle._group = self._turns
            self._turns.enter(handle, None, None)
            return handle
        return asyncio.ensure_future(aw) if self._runtime is None else self._runtime.submit(aw)

    def _waiting(self, coro: Coroutine[Any, Any, Any]) -> Waiting[Any]:
        runtime = self._runtime
        if runtime is not None and runtime.check_migratable(None):
            return WaitingMigrant(coro)
        return WaitingHandle(coro)

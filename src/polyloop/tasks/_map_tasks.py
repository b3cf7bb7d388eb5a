"""``map`` of an async function: one task for each item, on the loops of the runtime.

All decisions are taken at home. A task that ends elsewhere says so there by a post, and home starts the next one.
"""

import asyncio
import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any

from polyloop._core._context import here
from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port
from polyloop.runtime._current import running_runtime
from polyloop.runtime._routing import On
from polyloop.runtime._runtime import Runtime
from polyloop.tasks._map_board import Board
from polyloop.tasks._start import check_choice, place


class TaskLane:
    """The tasks of one ``map``. Home only, but for ``_child_ended``."""

    def __init__(self, fn: Callable[[Any], Any], context: contextvars.Context, limit: int, on: On | None) -> None:
        self.ahead = limit
        self._fn = fn
        self._context = context
        self._limit = limit
        self._on: On | None = on
        self._home: Port
        self._runtime: Runtime | None = None
        self._board: Board
        self._running: dict[TaskHandle[Any], int] = {}

    def start(self, home: Port, board: Board) -> None:
        """Take up the work; before anything else.

        Raises:
            ValueError: ``on`` makes no sense here.
        """
        self._home = home
        self._board = board
        self._runtime = running_runtime()
        check_choice(self._runtime, self._on, None)

    def feed(self) -> None:
        """Start as many tasks as may run."""
        board = self._board
        while board.ready and len(self._running) < self._limit and not board.stopped:
            self._start_one(*board.ready.popleft())

    def starved(self) -> bool:
        """Never: home starts the next one itself."""
        return False

    def crowded(self) -> bool:
        """No matter: this loop hears of every end anyway."""
        return False

    def idle(self) -> bool:
        """Whether nothing runs."""
        return not self._running

    def cancel(self, *, abandoned: bool) -> None:
        """Cancel the tasks that run."""
        del abandoned
        for handle in list(self._running):
            handle.cancel()

    def cancel_soon(self) -> None:
        """Nothing that another thread could do."""

    def forget(self) -> None:
        """Nothing is held."""

    def _start_one(self, index: int, item: Any) -> None:
        handle: TaskHandle[Any] | None = None
        try:
            coro = self._fn(item)
            if not asyncio.iscoroutine(coro):
                raise TypeError(f"map() took {self._fn!r} for an async function, and it returned {coro!r}")
            handle = TaskHandle(coro)
            handle._context = self._context.copy()
            handle._group = self
            self._running[handle] = index
            place(handle, self._runtime, self._home, self._on, None)
        except BaseException as exc:
            if handle is not None:
                self._running.pop(handle, None)
            self._board.bring((index, None, exc))
        finally:
            del self, item, handle  # the frames of the exception hold this one: no cycle through it

    def _child_ended(self, handle: TaskHandle[Any]) -> None:
        """A task is done. On whatever thread completed it."""
        if self._home is here.port:
            self._ended(handle)
        else:
            self._home.post(partial(self._ended, handle))

    def _ended(self, handle: TaskHandle[Any]) -> None:
        index = self._running.pop(handle, None)
        if index is None:  # it could not be placed, and told so twice
            return
        self._board.bring((index, handle._result, handle._exception_for_me()))
        self.feed()

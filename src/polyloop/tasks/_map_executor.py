"""``map`` on an executor: at most ``limit`` of its futures at once. Home only, but for the callback of a future."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from functools import partial
from typing import Any

from polyloop._core._context import here
from polyloop._core._port import Port
from polyloop._core._scope import Scope
from polyloop.offload._errand import _found_by_name, shares_memory
from polyloop.tasks._map_board import Board
from polyloop.tasks._map_pumps import refuse_coroutine


class ExecutorLane:
    """The futures of one ``map``.

    On threads of this process a call runs in a copy of the context of the ``map``, and hears of its cancellation. To
    anything else the function goes alone.
    """

    def __init__(
        self, fn: Callable[[Any], Any], context: contextvars.Context, limit: int, executor: Executor, coroutines: bool
    ) -> None:
        self.ahead = limit
        self._fn = fn
        self._context = context
        self._limit = limit
        self._executor = executor
        self._far = None if shares_memory(executor) else _found_by_name(fn)
        self._coroutines = coroutines  # whether the executor runs the coroutines of an async function
        self._scope = Scope()
        self._home: Port
        self._board: Board
        self._futures: dict[Future[Any], int] = {}

    def start(self, home: Port, board: Board) -> None:
        """Take up the work; before anything else."""
        self._home = home
        self._board = board

    def feed(self) -> None:
        """Submit as many calls as may be under way."""
        board = self._board
        while board.ready and len(self._futures) < self._limit and not board.stopped:
            index, item = board.ready.popleft()
            try:
                future = self._executor.submit(self._far or self._call_near, item)
            except BaseException as exc:  # it was shut down, or is broken
                board.bring((index, None, exc))
                continue
            self._futures[future] = index
            future.add_done_callback(self._done)

    def starved(self) -> bool:
        """Never: home submits the next one itself."""
        return False

    def crowded(self) -> bool:
        """No matter: this loop hears of every end anyway."""
        return False

    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._futures

    def cancel(self, *, abandoned: bool) -> None:
        """Take back what has not begun; what runs is told so if the executor can."""
        del abandoned
        self._scope.cancel()
        for future in list(self._futures):
            future.cancel()

    def cancel_soon(self) -> None:
        """Tell the calls that run on threads of this process to stop. Any thread, finalisers included."""
        self._scope.cancel()

    def forget(self) -> None:
        """Nothing is held."""

    def _call_near(self, item: Any) -> Any:
        """One call, on a thread of the executor."""
        here.call_port = self._home
        here.scope = self._scope
        try:
            self._scope.check()
            return self._context.copy().run(self._fn, item)
        finally:
            here.call_port = here.scope = None
            del self, item  # the frames of a call that failed hold this one: no cycle through it

    def _done(self, future: "Future[Any]") -> None:
        """On whatever thread the executor says so."""
        self._home.post(partial(self._ended, future))

    def _ended(self, future: "Future[Any]") -> None:
        index = self._futures.pop(future)
        self._board.bring((index, *self._outcome(future)))
        self.feed()

    def _outcome(self, future: "Future[Any]") -> tuple[Any, BaseException | None]:
        if future.cancelled():
            return None, asyncio.CancelledError()
        exc = future.exception()
        if isinstance(exc, CancelledError):  # the executor was shut down meanwhile
            return None, asyncio.CancelledError(*exc.args)
        if exc is not None:
            return None, exc
        result = future.result()
        if asyncio.iscoroutine(result) and not self._coroutines:
            return None, refuse_coroutine(result)
        return result, None

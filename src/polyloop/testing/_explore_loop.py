"""The event loop under a coroutine of a scenario: asyncio's own, but that it sleeps in the model.

It has no sockets and no executor; timers follow the virtual time of the run. Everything of asyncio itself (tasks,
futures, the queue of callbacks) happens at once as far as other threads are concerned; ``call_soon_threadsafe`` is a
switch point like any call that others can see.
"""

import asyncio
import contextlib
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from polyloop._core._port import current_port
from polyloop.testing._explore_model import running


@contextlib.contextmanager
def quietly() -> Generator[None]:
    """No switch points in this thread meanwhile."""
    run = running()
    if run is None:
        yield
        return
    actor = run.current
    actor.quiet += 1
    try:
        yield
    finally:
        actor.quiet -= 1


class _ModelSelector:
    """Sleeps in the model."""

    def __init__(self) -> None:
        self.woken = False

    def _is_woken(self) -> bool:
        return self.woken

    def select(self, timeout: float | None) -> list[Any]:
        run = running()
        if run is not None and not self.woken and (timeout is None or timeout > 0):
            run.block(self._is_woken, timeout, "the loop sleeps")
        self.woken = False
        return []


class ModelLoop(BaseEventLoop):
    """The loop of one scenario thread."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _ModelSelector()
        self.errors: list[dict[str, Any]] = []
        self.set_debug(False)
        self.set_exception_handler(self._keep_error)

    def _keep_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def time(self) -> float:
        """The virtual time."""
        run = running()
        return 0.0 if run is None else run.now

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        self._selector.woken = True


class LoopThread[T]:
    """Runs one coroutine on a loop of its own, as ``asyncio.run`` does."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._start = start
        self.loop = ModelLoop()
        self._task: asyncio.Task[T] | None = None  # the loop's thread only

    async def _main(self) -> T:
        with quietly():
            current_port()  # made once for each loop: no part of what is explored
        return await self._start()

    def run(self) -> T:
        """The life of the thread; returns what the coroutine returned."""
        loop = self.loop
        try:
            self._task = loop.create_task(self._main())
            try:
                return loop.run_until_complete(self._task)
            finally:
                self._finish()
        finally:
            self._task = None
            with quietly():
                loop.close()

    def _finish(self) -> None:
        """Cancel what the coroutine left running, and raise what was reported to the loop."""
        loop = self.loop
        run = running()
        if run is not None and run.over:
            self._drop_tasks()
            return
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        if loop._asyncgens:  # type: ignore[attr-defined]  # else the loop would run for nothing
            loop.run_until_complete(loop.shutdown_asyncgens())
        if loop.errors:
            context = loop.errors[0]
            raise RuntimeError(f"reported to the loop: {context.get('message')}") from context.get("exception")

    def _drop_tasks(self) -> None:
        """The run has failed: end the tasks without a word."""
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coro = task.get_coro()
            if coro is not None:
                with contextlib.suppress(BaseException):
                    coro.close()

    def cancel_soon(self) -> None:
        """Cancel the coroutine. Any thread of the scenario."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

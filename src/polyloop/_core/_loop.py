"""polyloop's own loop: asyncio's selector loop on a ``WorkerSelector``.

It sees what a migratable task leaves behind on a loop: a timer or a task of asyncio that is pending belongs to this
thread, and so does its maker until that has ended (see ``_migrant``).
"""

import asyncio
import contextvars
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from polyloop._core._context import here
from polyloop._core._errors import ForeignLoopError
from polyloop._core._parking import running_migrant
from polyloop._core._selector import WorkerSelector

if TYPE_CHECKING:
    from polyloop._core._migrant import MigratableTask
    from polyloop._core._port import Port


class WorkerLoop(asyncio.SelectorEventLoop):
    """asyncio's selector loop; adds nothing but a word to whoever owns it.

    Attributes:
        on_signals_released: Called after a ``remove_signal_handler``; the last one resets ``signal.set_wakeup_fd``.
        on_task_factory: Called with each new task factory, or ``None``.
        port: The worker.
    """

    def __init__(self, selector: WorkerSelector) -> None:
        self.on_signals_released: Callable[[], object] | None = None
        self.on_task_factory: Callable[[Any], object] | None = None
        self.port: Port | None = None
        self._timers_of: dict[int, MigratableTask[Any]] = {}  # pending ones of migratable tasks, by their identity
        super().__init__(selector)

    def set_task_factory(self, factory: Any) -> None:
        """Set the task factory; see ``asyncio.loop.set_task_factory``."""
        super().set_task_factory(factory)
        if self.on_task_factory is not None:
            self.on_task_factory(factory)

    def remove_signal_handler(self, sig: int) -> bool:
        """Remove a signal handler; see ``asyncio.loop.remove_signal_handler``."""
        removed = super().remove_signal_handler(sig)
        if removed and self.on_signals_released is not None:
            self.on_signals_released()
        return removed

    def call_at[*Ts](
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Set a timer; see ``asyncio.loop.call_at``."""
        if here.port is not self.port and self.port is not None:
            self._refuse_strangers("call_at()")
        timer = super().call_at(when, callback, *args, context=context)
        if self.port is not None and self.port.stepping:
            self._timer_of_migrant(timer)
        return timer

    def _timer_of_migrant(self, timer: asyncio.TimerHandle) -> None:
        migrant = running_migrant()
        if migrant is not None and migrant._port is self.port:
            migrant.attach()
            self._timers_of[id(timer)] = migrant
            timer.__class__ = _MigrantsTimer

    def create_task(self, coro: Any, **kwargs: Any) -> "asyncio.Task[Any]":
        """Create a task of asyncio; see ``asyncio.loop.create_task``."""
        if here.port is not self.port and self.port is not None:
            try:
                self._refuse_strangers("create_task()")
            except ForeignLoopError:
                coro.close()
                raise
        task: asyncio.Task[Any] = super().create_task(coro, **kwargs)
        if self.port is not None and self.port.stepping and not task.done():
            migrant = running_migrant()
            if migrant is not None and migrant._port is self.port:
                migrant.attach()
                task.add_done_callback(partial(self._child_done, migrant), context=self.port.context)
        return task

    def _child_done(self, migrant: "MigratableTask[Any]", task: object) -> None:
        # Not yet: callbacks of the task that come after this one, as asyncio.TaskGroup's, are for the same thread.
        self.call_soon(migrant.detach)

    def _refuse_strangers(self, what: str) -> None:
        """A migratable task may have carried this loop, or what belongs to it, to another."""
        migrant = running_migrant()
        if migrant is not None and migrant._port is not self.port and self.port is not None:
            raise ForeignLoopError(
                f"{what} of {self.port.name!r} was called by {migrant!r}, which has moved to"
                f" {migrant._port.name!r} since;"
                " keep it where it is with 'async with polyloop.pinned():', and use polyloop.TaskGroup for groups"
            )


class _MigrantsTimer(asyncio.TimerHandle):
    """A timer that a migratable task has set: it detaches the task when it has run, or is cancelled."""

    __slots__ = ()
    _loop: WorkerLoop

    def cancel(self) -> None:
        super().cancel()
        self._detach()

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            self._detach()

    def _detach(self) -> None:
        migrant = self._loop._timers_of.pop(id(self), None)
        if migrant is not None:
            migrant.detach()

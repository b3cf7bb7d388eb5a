"""polyloop's own loop: asyncio's selector loop on a ``WorkerSelector``."""

import asyncio
from collections.abc import Callable
from typing import Any

from polyloop._core._selector import WorkerSelector


class WorkerLoop(asyncio.SelectorEventLoop):
    """asyncio's selector loop; adds nothing but a word about two of its settings to whoever owns it.

    Attributes:
        on_signals_released: Called after a ``remove_signal_handler``; the last one resets ``signal.set_wakeup_fd``.
        on_task_factory: Called with each new task factory, or ``None``.
    """

    def __init__(self, selector: WorkerSelector) -> None:
        self.on_signals_released: Callable[[], object] | None = None
        self.on_task_factory: Callable[[Any], object] | None = None
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

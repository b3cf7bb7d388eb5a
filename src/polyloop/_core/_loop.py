"""polyloop's own loop: asyncio's selector loop on a ``WorkerSelector``."""

import asyncio
from collections.abc import Callable

from polyloop._core._selector import WorkerSelector


class WorkerLoop(asyncio.SelectorEventLoop):
    """asyncio's selector loop; adds nothing but a word when it gives up the signal wake-up descriptor.

    Attributes:
        on_signals_released: Called after the last ``remove_signal_handler``, which resets ``signal.set_wakeup_fd``.
    """

    def __init__(self, selector: WorkerSelector) -> None:
        self.on_signals_released: Callable[[], object] | None = None
        super().__init__(selector)

    def remove_signal_handler(self, sig: int) -> bool:
        """Remove a signal handler; see ``asyncio.loop.remove_signal_handler``."""
        removed = super().remove_signal_handler(sig)
        if removed and self.on_signals_released is not None:
            self.on_signals_released()
        return removed

"""Ctrl-C during ``polyloop.run``: asyncio's meaning while the main task runs, and no loose ends before and after.

Like ``asyncio.Runner``, it takes SIGINT over only on the main thread and only from Python's default handler. While
the workers start it is noted (a second one interrupts a start that is stuck); while the main task runs the first one
cancels it and the second raises ``KeyboardInterrupt`` at once; while the workers wind down it makes the deadline now.
So no ``KeyboardInterrupt`` lands in the middle of a start or an end, where it would leave threads behind.

Everything here runs on the main thread; ``_on_sigint`` between any two steps of the rest.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from polyloop._core import _prims


class CtrlC:
    """Owns SIGINT for one call of ``run``, if nobody else does.

    Attributes:
        count: How many have come.
        hurried: Whether one came while the workers wound down.
    """

    def __init__(self) -> None:
        self.count = 0
        self.hurried = False
        self._main: asyncio.Task[Any] | None = None
        self._hurry: Callable[[], object] | None = None
        self._ours = False

    def __enter__(self) -> Self:
        if _prims.is_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with contextlib.suppress(ValueError):  # a subinterpreter has no signals
                signal.signal(signal.SIGINT, self._on_sigint)
                self._ours = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours and signal.getsignal(signal.SIGINT) == self._on_sigint:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def guard(self, main: "asyncio.Task[Any]") -> None:
        """From now on it concerns the main task."""
        self._main = main

    def unguard(self, hurry: Callable[[], object]) -> None:
        """The main task has ended: from now on ``hurry`` is called instead."""
        self._hurry = hurry

    def _on_sigint(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._hurry is not None:
            self.hurried = True
            self._hurry()
        elif self._main is not None:
            if self.count > 1 or self._main.done():
                raise KeyboardInterrupt
            self._main.cancel()
            # The loop may be asleep, and the cancellation alone does not wake it.
            self._main.get_loop().call_soon_threadsafe(lambda: None)
        elif self.count > 1:
            raise KeyboardInterrupt

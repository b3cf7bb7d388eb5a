"""Virtual time for the loops of a test.

The clock is set by the test's thread and read by the loops. A loop on a clock never sleeps until a time: its selector
tells the clock when its next timer is due and sleeps until somebody wakes it. ``advance`` goes from one due timer to
the next over all loops, and waits in between until all are blocked, so that what a timer starts sees the time of that
timer.
"""

import math
from typing import TYPE_CHECKING

from polyloop.testing._blocked import wait_all_blocked

if TYPE_CHECKING:
    from polyloop.testing._loop import TestLoop


class FakeClock:
    """A clock that stands still until the test moves it; ``TestLoop(clock=clock)`` lives by it.

    ``loop.time``, ``call_later``, ``asyncio.sleep``, ``asyncio.timeout`` and ``asyncio.wait_for`` follow it. What
    blocks a thread (``handle.result(timeout=...)``) and what asks the system for the time does not.

    Args:
        start: The time at which it begins, in seconds.

    .. versionadded:: 0.1
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start  # written by the test's thread, read by the loops
        self._loops: list[TestLoop] = []  # test's thread only

    def __repr__(self) -> str:
        return f"<FakeClock now={self._now}>"

    @property
    def now(self) -> float:
        """The time, in seconds. Any thread."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass: run every timer that becomes due, in the order of their times.

        Returns when all loops on this clock are blocked again.

        Raises:
            ValueError: ``seconds`` is negative.
            TimeoutError: a loop would not come to rest (it is held, or keeps itself busy).
        Thread safety: the test's thread only, while none of the loops is paused.
        """
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise ValueError(f"time goes forward only; got {seconds!r}")
        target = self._now + seconds
        while True:
            wait_all_blocked(*self._loops)
            due = min((loop._next_timer for loop in self._loops), default=math.inf)
            if due > target:
                break
            self._now = max(self._now, due)
        self._now = target
        wait_all_blocked(*self._loops)

"""The worker under a ``TestLoop``: one that can tell when its loop is blocked.

Theory. A test asks by posting a *watcher*, which joins a list that only the loop's thread touches. So everything that
the asking thread posted before is drained before. The selector calls ``on_idle`` when the loop has nothing ready;
there, with nothing posted and no socket ready, the watchers are told. What the asking thread caused before it asked,
through the mailbox or a socket, is therefore done when it hears the answer.

For several loops, each answer carries a count of what the loop has done so far. A second round in which every loop did
nothing but answer shows that all were blocked at one moment: the end of the first round.
"""

import asyncio
import math
import selectors
from collections.abc import Callable
from typing import TYPE_CHECKING

from polyloop._core import _prims
from polyloop._core._loop import WorkerLoop
from polyloop._core._mailbox import Mailbox
from polyloop._core._selector import WorkerSelector
from polyloop._core._spin import SpinPolicy
from polyloop._core._worker import Worker

if TYPE_CHECKING:
    from polyloop._core._selector import Events
    from polyloop.testing._clock import FakeClock

#: What answering costs in the currency of ``activity``: one item posted and one tick.
ANSWER = 2

type Watcher = Callable[[int, float], object]


class WatchedSelector(WorkerSelector):
    """Counts what its loop does, and keeps virtual time if there is a clock. Loop thread only."""

    def __init__(self, spin: SpinPolicy, clock: "FakeClock | None") -> None:
        super().__init__(spin)
        self.activity = 0
        self.next_timer = math.inf
        self.clock = clock

    def select(self, timeout: float | None = None) -> "Events":
        """Serve and poll; see ``WorkerSelector``. On a clock, sleep until woken however soon the next timer is."""
        self.activity += 1
        clock = self.clock
        if clock is not None:
            self.next_timer = math.inf if timeout is None else clock.now + max(timeout, 0)
            if timeout is not None and timeout > 0:
                timeout = None
        events = super().select(timeout)
        self.activity += sum(key is not self._waker_key for key, _ in events)
        return events

    def socket_ready(self) -> bool:
        """Whether the next poll will find something to do."""
        events = selectors.DefaultSelector.select(self, 0)
        return any(key is not self._waker_key for key, _ in events)


class ClockedLoop(WorkerLoop):
    """A loop whose time is that of a clock, until it is let go."""

    def __init__(self, selector: WatchedSelector, clock: "FakeClock | None") -> None:
        self._clock = clock
        self._offset = 0.0
        super().__init__(selector)

    def time(self) -> float:
        """The time of the clock, else the runtime clock."""
        clock = self._clock
        return _prims.monotonic() + self._offset if clock is None else clock.now

    def leave_clock(self) -> None:
        """Let time pass by itself from now on, so that a shutdown has its deadlines. Loop thread."""
        if self._clock is not None:
            self._offset = self._clock.now - _prims.monotonic()
            self._clock = None


class _CountedMailbox(Mailbox):
    """Says how many items it has run. By what a drain has found: others post while it begins."""

    __slots__ = ("_count",)

    def __init__(
        self, wake: Callable[[], object], report: Callable[[BaseException], object], count: Callable[[int], object]
    ) -> None:
        super().__init__(wake, report)
        self._count = count

    def drain(self) -> int:
        items = super().drain()
        self._count(items)
        return items


class WatchedWorker(Worker):
    """A worker without a runtime that answers watchers."""

    def __init__(
        self,
        name: str,
        *,
        clock: "FakeClock | None",
        spin_ns: int,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None,
        debug: bool | None,
    ) -> None:
        super().__init__(name, 0, spin_ns=spin_ns, loop_factory=loop_factory, debug=debug)
        self.mailbox: Mailbox = _CountedMailbox(self._wake, self._report, self._count)
        self.post = self.mailbox.post
        self._clock = clock
        self._watchers: list[Watcher] = []  # loop thread only

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop_factory is not None:
            return super()._new_loop()
        self.selector = WatchedSelector(SpinPolicy(self._spin_ns), self._clock)
        self.selector.attach(self)
        return ClockedLoop(self.selector, self._clock)

    def _count(self, items: int) -> None:
        if isinstance(self.selector, WatchedSelector):
            self.selector.activity += items

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` when the loop is blocked, and what it has done so far. Posted; runs on the loop."""
        self._watchers.append(watcher)

    def leave_clock(self) -> None:
        """Let time pass by itself from now on. Posted; runs on the loop."""
        if isinstance(self.selector, WatchedSelector):
            self.selector.clock = None
        if isinstance(self.loop, ClockedLoop):
            self.loop.leave_clock()

    def on_idle(self) -> bool:
        """Called when nothing is ready; see ``Worker``."""
        if super().on_idle():
            return True
        selector = self.selector
        if self._watchers and isinstance(selector, WatchedSelector):
            self._answer(selector)
        return False

    def _answer(self, selector: WatchedSelector) -> None:
        if self.mailbox.items or self.unstarted or selector.socket_ready():
            return  # found by the poll that follows; then this is called again
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher(selector.activity, selector.next_timer)

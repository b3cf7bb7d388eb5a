"""How far a number of calls has come, told to a hook."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a number of calls has come.

    Attributes:
        done: How many have ended, in whatever way.
        failed: How many of those raised or were cancelled.
        total: How many there are; ``None`` while the end of an iterable is not in sight.

    .. versionadded:: 0.3
    """

    done: int
    failed: int
    total: int | None


#: What ``progress=`` takes: called on the loop of whoever waits for the results, after each call that has ended.
type ProgressHook = Callable[[Progress], object]


class Tally:
    """Counts the ends of calls and tells the hook. One loop."""

    __slots__ = ("_done", "_failed", "_hook", "_told", "total")

    def __init__(self, hook: ProgressHook, total: int | None) -> None:
        self._hook = hook
        self._done = 0
        self._failed = 0
        self._told: Progress | None = None
        self.total = total

    def add(self, failed: bool) -> None:
        """A call has ended."""
        self._done += 1
        self._failed += failed
        self.tell()

    def tell(self) -> None:
        """Call the hook, unless it knows."""
        now = Progress(self._done, self._failed, self.total)
        if now != self._told:
            self._told = now
            self._hook(now)


def watch(hook: ProgressHook, futures: Iterable[Any]) -> None:
    """Tell ``hook`` of each end of futures and handles of this loop; what it raises goes to the loop's handler."""
    several = list(dict.fromkeys(futures))
    tally = Tally(hook, len(several))

    def ended(future: Any) -> None:
        # Not exception(): to have looked at it is for whoever wants the result.
        tally.add(future.cancelled() or getattr(future, "_exception", None) is not None)

    for future in several:
        future.add_done_callback(ended)

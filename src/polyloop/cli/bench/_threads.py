"""``bench threads``: how many distinct threads concurrent calls of a wrapped function use, with and without a limit."""

import threading
from dataclasses import dataclass

import polyloop
from polyloop.cli.bench._measure import Size, Step

CALLS = (1, 5, 9, 13, 17)
LIMIT = 2
_MEETING_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ThreadsPoint:
    """One number of concurrent calls."""

    calls: int
    unlimited: int
    """Distinct threads used by ``async_wrap()``."""
    limited: int
    """Distinct threads used by ``async_wrap(limit=2)``."""


@dataclass(frozen=True, slots=True)
class ThreadsResult:
    """All of ``bench threads``."""

    limit: int
    points: tuple[ThreadsPoint, ...]


def steps(_size: Size) -> int:
    """Return how often :func:`measure` will call ``step``."""
    return 2 * len(CALLS)


def measure(_size: Size, step: Step) -> ThreadsResult:
    """Count the threads. These are exact numbers, so nothing is repeated."""
    return ThreadsResult(LIMIT, tuple(_point(calls, step) for calls in CALLS))


def count_threads(calls: int, limit: int | None) -> int:
    """Return how many distinct threads ``calls`` concurrent calls use."""
    return polyloop.run(_count(calls, limit))


def _point(calls: int, step: Step) -> ThreadsPoint:
    unlimited = count_threads(calls, None)
    step()
    limited = count_threads(calls, LIMIT)
    step()
    return ThreadsPoint(calls, unlimited, limited)


class _Meeting:
    """Calls that can be at work at once wait for each other, so that no thread can serve two of them."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._places = size  # guarded by _lock
        self._all_there = threading.Barrier(size)

    def attend(self) -> threading.Thread:
        with self._lock:
            invited = self._places > 0
            self._places -= int(invited)
        if invited:
            self._all_there.wait(_MEETING_SECONDS)
        return threading.current_thread()


async def _count(calls: int, limit: int | None) -> int:
    meeting = _Meeting(calls if limit is None else min(calls, limit))
    attend = polyloop.async_wrap(limit=limit)(meeting.attend)
    async with polyloop.TaskGroup() as group:
        handles = [group.create_task(attend()) for _ in range(calls)]
    return len({await handle for handle in handles})  # thread objects, as a number may be given out again

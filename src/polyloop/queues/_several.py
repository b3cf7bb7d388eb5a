"""To wait in several lines at once: for an item or the closing of the own end, or for the first of several sources.

Who does so has a place in each line, and ``Standing`` is all of them together. Whoever takes a place out of its line
tries to be the one that wakes. The first one is, and is noted in ``_fate``; to all others ``wake`` says ``False``, so
that they go on to the next in their line. So one who waits in several lines takes a wake-up from one of them only.

Why no wake-up is lost. As in ``_core._waiting``: enter the lines, then look. Who was woken in vain stays in the lines
where its place is left. Once it can be woken anew (``_fate`` is cleared), it goes back to the lines where it is not,
with new places, since the old ones may still be in the hands of wakers; and looks again. A waker that came before that
moment has marked its place as taken out, and then has found the fate decided; one that comes after it wakes. Both, and
the clearing, are operations of one dict, hence ordered: either the mark is seen, or the wake-up comes.

Who was woken from a line and took nothing there passes that wake-up on; who was woken by somebody who meant another
item than the one it had found already, too. In a ``Crowd`` all are woken at once, and nobody owes anybody anything.
Forced: ``tests/queues/test_several.py``, ``tests/queues/test_select.py``.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import cast

from polyloop._core import _prims
from polyloop._core._parking import ThreadWaiter, Waiter, async_waiter, spin_until
from polyloop._core._waiting import NOTHING, Line, Nothing, leave, wake_next


class Crowd(deque[Waiter]):
    """A line of which all are woken at once, with ``wake_all``.

    Who comes back enters at its end: ``wake_all`` takes as many from the head as there were when it began.
    """

    __slots__ = ()


class _Place:
    """The place of one standing in one line, for one time: who was taken out of the line goes back with a new one."""

    __slots__ = ("line", "out", "standing")

    def __init__(self, standing: "Standing", line: Line) -> None:
        self.standing = standing
        self.line = line
        self.out = False  # taken out of its line; set by whoever did it

    def wake(self) -> bool:
        """As ``Waiter.wake``: ``False`` if another line was faster."""
        self.out = True  # before the claim: see the module's theory
        standing = self.standing
        return standing._fate.setdefault(None, self) is self and standing._waiter.wake()


class Standing:
    """One who waits in several lines. Its own methods are for the coroutine or thread that waits.

    Attributes:
        used: The lines that what was taken belongs to: a wake-up from one of them has served its purpose.
    """

    __slots__ = ("_began", "_fate", "_places", "_waiter", "used")

    _waiter: Waiter  # set before the fate is cleared, read by whoever decides it

    def __init__(self, lines: Iterable[Line]) -> None:
        self._places = [_Place(self, line) for line in lines]
        self.used: Iterable[Line] = [place.line for place in self._places]
        # By whose place it was woken; None if it gave up before. Decided by a setdefault of any thread.
        self._fate: dict[None, _Place | None] = {None: None}
        self._began = False

    def enter(self, waiter: Waiter) -> None:
        """Take a place in each line, or take again those that were lost; ``waiter`` is woken from now on."""
        woken_from = self._fate.get(None)
        if woken_from is not None and not _among(woken_from.line, [place.line for place in self._places]):
            wake_next(woken_from.line)  # it was dropped meanwhile
        self._waiter = waiter
        self._fate.clear()
        for at, place in enumerate(self._places):
            if not self._began:
                place.line.append(place)
            elif place.out:
                self._places[at] = new = _Place(self, place.line)  # the old one may still be in the hands of a waker
                if type(place.line) is Crowd:
                    place.line.append(new)
                else:
                    place.line.appendleft(new)  # others were faster; still it is the one that has waited longest
        self._began = True

    def drop(self, lines: Iterable[Line]) -> None:
        """Leave some lines for good: nothing will come there."""
        for place in [place for place in self._places if _among(place.line, lines)]:
            self._places.remove(place)
            if place.out or not leave(place.line, place):
                wake_next(place.line)  # all who wait there are told; this one may have been told in place of another

    def give_up(self) -> bool:
        """Be woken no more; ``False`` if it was woken already."""
        return self._fate.setdefault(None, None) is None

    def leave(self, used: Iterable[Line] = ()) -> None:
        """Leave all lines, and pass on a wake-up from one that is not among ``used``."""
        woken_from = self._fate.setdefault(None, None)
        for place in self._places:
            if not place.out:
                leave(place.line, place)
        self._places.clear()  # they know this standing: no cycle is left
        if woken_from is not None:
            if type(woken_from.line) is not Crowd and not _among(woken_from.line, used):
                wake_next(woken_from.line)
            self._fate[None] = None


def _among(line: Line, lines: Iterable[Line]) -> bool:
    return any(line is other for other in lines)


async def until_any[R](standing: Standing, attempt: Callable[[], R | Nothing]) -> R:
    """``_core._waiting.until`` for one who waits in several lines.

    Args:
        attempt: Looks for what is waited for, and returns ``NOTHING`` if it is not there. Waits for nothing.
    Raises:
        BaseException: what ``attempt`` raises, or the cancellation; the next in line is not forgotten.
    """
    try:
        while True:
            waiter = async_waiter()
            standing.enter(waiter)
            result = attempt()  # after entering: see the module's theory
            if result is not NOTHING:
                standing.leave()  # who woke it meanwhile meant something else
                return cast("R", result)
            await waiter
            result = attempt()
            if result is not NOTHING:
                standing.leave(standing.used)
                return cast("R", result)
    except BaseException:
        standing.leave()
        raise


def block_until_any[R](
    standing: Standing,
    attempt: Callable[[], R | Nothing],
    timeout: float | None,
    look: Callable[[], object] | None = None,
) -> R | Nothing:
    """``until_any`` for a plain thread; returns ``NOTHING`` when ``timeout`` seconds have passed first.

    Args:
        look: Says cheaply whether an attempt is worth it. If given, the thread spins on it before it enters the lines.
    """
    deadline = None if timeout is None else _prims.monotonic() + timeout
    try:
        while True:
            if look is not None and spin_until(look, timeout) and (result := attempt()) is not NOTHING:
                standing.leave()
                return result
            waiter = ThreadWaiter()
            standing.enter(waiter)
            result = attempt()
            if result is not NOTHING:
                standing.leave()
                return result
            left = None if deadline is None else max(0.0, deadline - _prims.monotonic())
            in_time = waiter.park(left, spin=look is None)
            if not in_time:
                standing.give_up()  # before the last look: what comes later wakes another
            result = attempt()
            if result is not NOTHING or not in_time:
                standing.leave(standing.used)
                return result
    except BaseException:
        standing.leave()
        raise

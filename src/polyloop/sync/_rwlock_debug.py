"""What the debug mode knows of one ``RWLock``; see ``_debug``."""

import contextlib
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from polyloop._core._parking import Waiter
from polyloop.sync._debug import Hold, Wait, Waiting, label
from polyloop.sync._turns import Place

if TYPE_CHECKING:
    from polyloop.sync._rwlock import RWLock


class RWLockDebug:
    """What the debug mode knows of one ``RWLock``; see ``_debug``."""

    __slots__ = ("_rwlock", "_unlimited", "_what", "holds")

    def __init__(self, rwlock: "RWLock", name: str | None) -> None:
        self._rwlock = rwlock
        self._what = label("RWLock", rwlock, name)
        self.holds: dict[object, Hold] = {}  # by who(); written by the holder
        self._unlimited: set[Place] = set()  # of those who wait as long as it takes; added and removed by the waiter

    def note(self, holder: object, writes: bool) -> None:
        """The caller has entered."""
        self.holds[holder] = Hold(self._which(writes))

    @contextlib.contextmanager
    def waiting(self, hold: Place, waiter: Waiter) -> Generator[None]:
        """A block in which its task or thread waits to be let in."""
        wait = Wait(
            self._which(hold.writes),
            lambda: self._blockers(hold),
            waiter,
            end=lambda: self._end(hold),
            looked=self._rwlock._settle,
        )
        self._unlimited.add(hold)
        try:
            with Waiting(wait):
                yield
        finally:
            self._unlimited.discard(hold)

    def _which(self, writes: bool) -> str:
        return f"{self._what} for {'writing' if writes else 'reading'}"

    def _end(self, hold: Place) -> bool:
        with self._rwlock._lock:  # the second lock: after the graph's, never before it
            waiting = self._rwlock._turns.waiting
            stands = hold in waiting
            if stands:
                del waiting[hold]
            return stands

    def _blockers(self, hold: Place) -> Iterable[Hold]:
        """Those who are in. They must leave first, for a reader too, if a writer stands before it that does not go."""
        rwlock = self._rwlock
        with rwlock._lock:  # as above
            turns = rwlock._turns
            stays = not hold.entered and (
                hold.writes
                or turns.writing
                or any(other.writes and other in self._unlimited for other in turns.before(hold))
            )
        return self.holds.copy().values() if stays else ()


class DebugPlaces(dict[object, Place]):
    """The holds of one ``RWLock`` in debug mode."""

    def __init__(self, debug: RWLockDebug) -> None:
        super().__init__()
        self._debug = debug

    def __setitem__(self, holder: object, hold: Place) -> None:
        self._debug.note(holder, hold.writes)
        super().__setitem__(holder, hold)

    def __delitem__(self, holder: object) -> None:
        self._debug.holds.pop(holder, None)
        super().__delitem__(holder)

"""Whose turn it is at an ``RWLock``. Knows nothing of threads and waits for nothing; see ``_rwlock`` for the rule."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator

from polyloop._core._parking import Waiter


class Place:
    """One reader or writer, from its arrival until it leaves."""

    __slots__ = ("depth", "entered", "waiter", "writes")

    def __init__(self, writes: bool) -> None:
        self.writes = writes  # changed under the lock, by a downgrade
        self.entered = False  # whether it may go in, or has; under the lock
        self.waiter: Waiter | None = None  # set before it gets in line
        self.depth = 1  # how often a reader has entered; its own


class Turns:
    """Who is in, who waits, and who is next. Not safe for threads."""

    __slots__ = ("readers", "waiting", "writing")

    def __init__(self) -> None:
        self.readers = 0
        self.writing = False
        self.waiting: OrderedDict[Place, None] = OrderedDict()

    def _let_in(self, hold: Place) -> bool:
        if self.writing or (hold.writes and self.readers):
            return False
        hold.entered = True
        if hold.writes:
            self.writing = True
        else:
            self.readers += 1
        return True

    def arrive(self, hold: Place, waits: bool) -> bool:
        """Let it in, if it is its turn, else put it in line if it waits; whether it is in."""
        if not self.waiting and self._let_in(hold):
            return True
        if waits:
            self.waiting[hold] = None
        return False

    def leave(self, hold: Place) -> None:
        """It leaves, or gives up waiting."""
        if not hold.entered:
            self.waiting.pop(hold, None)
            return
        hold.entered = False
        if hold.writes:
            self.writing = False
        else:
            self.readers -= 1

    def before(self, hold: Place) -> Iterator[Place]:
        """Those who wait and came before it."""
        return itertools.takewhile(lambda other: other is not hold, self.waiting)

    def downgrade(self, hold: Place) -> None:
        """The writer becomes a reader."""
        hold.writes = self.writing = False
        self.readers = 1

    def admit(self) -> list[Place]:
        """Let in whoever is next."""
        admitted: list[Place] = []
        while self.waiting:
            hold = next(iter(self.waiting))
            if not self._let_in(hold):
                break
            del self.waiting[hold]
            admitted.append(hold)
        return admitted

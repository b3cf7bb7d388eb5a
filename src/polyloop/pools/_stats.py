"""What a pool counts. Each loop has counters of its own, which are added up when somebody asks."""

import math
from dataclasses import dataclass, field, fields
from typing import Final

_FIRST = 0.0001

#: Upper bounds of the classes of a wait, in seconds: each twice the one before, from 0.1 ms to 52 s.
BOUNDS: Final = tuple(_FIRST * 2**step for step in range(20))


@dataclass(frozen=True, slots=True)
class WaitHistogram:
    """How long those waited who found no idle resource on their loop.

    Attributes:
        bounds: Upper bounds of the classes, in seconds, ascending.
        counts: How many waits fell into each class; one more than there are bounds, for the longer ones.
        total: Sum of the waits, in seconds.
        longest: The longest of them, in seconds; 0 if nobody has waited.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    longest: float

    @property
    def count(self) -> int:
        """How many have waited."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """An upper bound of the wait that ``share`` of the waits did not exceed, in seconds; 0 if nobody has waited.

        Raises:
            ValueError: ``share`` is not between 0 and 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is asked for a share between 0 and 1, got {share!r}")
        wanted, seen = share * self.count, 0
        for bound, count in zip((*self.bounds, self.longest), self.counts, strict=True):
            seen += count
            if seen >= wanted and seen:
                return min(bound, self.longest)
        return 0.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment; each figure is right by itself, and they were read one after the other.

    Attributes:
        max_size: The most that there may be.
        size: Resources that there are, are being made or closed.
        in_use: Resources on loan.
        idle: Resources that wait to be lent.
        waiting: Callers that wait for one.
        loans: How often one was lent.
        created: How many were made.
        failed: How often ``create`` raised.
        closed: How many were closed, for any reason.
        reclaimed: How many of those were closed so that another loop could make one.
        moved: How many went to another loop as they were; of a pool with ``loop_bound=False``.
        broken: How many were dropped since they had ended by themselves or failed a check.
        expired: How many were closed for their age or for lying idle.
        lost: How many were given up with a loop that ended without closing them.
        waits: How long callers waited that found no idle resource.
    """

    max_size: int
    size: int
    in_use: int
    idle: int
    waiting: int
    loans: int
    created: int
    failed: int
    closed: int
    reclaimed: int
    moved: int
    broken: int
    expired: int
    lost: int
    waits: WaitHistogram


@dataclass(slots=True)
class Counters:
    """The counts of one loop, written by its thread only; read by any. Their names are those of ``PoolStats``."""

    loans: int = 0
    created: int = 0
    failed: int = 0
    closed: int = 0
    reclaimed: int = 0
    moved: int = 0
    broken: int = 0
    expired: int = 0
    lost: int = 0
    waited: float = 0.0
    longest: float = 0.0
    classes: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def count_wait(self, seconds: float) -> None:
        """Note how long a caller has waited."""
        self.waited += seconds
        self.longest = max(self.longest, seconds)
        # Not a search among the bounds: those are objects that all loops would count references of.
        doublings = max(math.ceil(seconds / _FIRST) - 1, 0).bit_length()
        self.classes[min(doublings, len(BOUNDS))] += 1

    def add(self, other: "Counters") -> None:
        """Add the counts of another loop."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.classes = [mine + its for mine, its in zip(self.classes, other.classes, strict=True)]

    def histogram(self) -> WaitHistogram:
        """The waits."""
        return WaitHistogram(BOUNDS, tuple(self.classes), self.waited, self.longest)


_SUMS = tuple(each.name for each in fields(Counters) if each.name not in {"longest", "classes"})

"""Which loop gets the next connection: the policy, without sockets, threads or a clock.

Owned by the acceptor's thread, which alone calls it.
"""


class Balance:
    """Counts the connections of each loop, and chooses the loop for the next one: the one with the fewest.

    Among equals it goes round, beginning after the one chosen last, so that short connections, which have always gone
    when the next one comes, reach every loop too.

    Args:
        places: Number of loops.
        most: Most connections at once in all; ``None`` for no limit.
        most_each: Most connections at once on one loop.

    Attributes:
        open: Connections of each loop.
        total: Their sum.
    """

    def __init__(self, places: int, *, most: int | None = None, most_each: int | None = None) -> None:
        self.open = [0] * places
        self.total = 0
        self._most = most
        self._most_each = most_each
        self._out = [False] * places  # loops that hang: they get nothing until they come back
        self._gone = [False] * places  # loops that have ended
        self._next = 0

    def choose(self) -> int | None:
        """The loop for the next connection; ``None`` while there is room on none."""
        if self._most is not None and self.total >= self._most:
            return None
        best: int | None = None
        places = len(self.open)
        for step in range(places):
            index = (self._next + step) % places
            if self._may_take(index) and (best is None or self.open[index] < self.open[best]):
                best = index
        return best

    @property
    def full(self) -> bool:
        """Whether a limit is what keeps the next connection out, and not that the loops with room hang."""
        if self.choose() is not None:
            return False
        works = [not (out or gone) for out, gone in zip(self._out, self._gone, strict=True)]
        return any(works) or (self._most is not None and self.total >= self._most)

    def take(self, index: int) -> None:
        """The loop that was chosen has got a connection."""
        self.open[index] += 1
        self.total += 1
        self._next = index + 1

    def _may_take(self, index: int) -> bool:
        if self._out[index] or self._gone[index]:
            return False
        return self._most_each is None or self.open[index] < self._most_each

    def left(self, index: int) -> None:
        """A connection of this loop has ended."""
        if not self._gone[index]:
            self.open[index] -= 1
            self.total -= 1

    def take_out(self, index: int) -> None:
        """Give this loop nothing until it is put back."""
        self._out[index] = True

    def put_back(self, index: int) -> None:
        """The loop takes connections again."""
        self._out[index] = False

    def remove(self, index: int) -> None:
        """The loop has ended, and its connections with it."""
        if not self._gone[index]:
            self._gone[index] = True
            self.total -= self.open[index]
            self.open[index] = 0

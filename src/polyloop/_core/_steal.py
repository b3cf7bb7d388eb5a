"""How many tasks a worker starts at once, and how many an idle one takes from another. Pure policy.

A task that has started cannot move, so a worker that started all its tasks at once would leave nothing to steal, and
one that starts a single task a tick would pay a tick for each. The budget follows the clock: as many as the last tick
showed to fit into a slice.
"""

#: How long the first steps of one batch should take together. A guess: ten times the price of a hop between workers.
SLICE_NS = 200_000

#: Most tasks started in one tick; the loop polls its sockets between two ticks.
MAX_BATCH = 256

#: Most tasks taken in one theft.
MAX_STOLEN = 128


class StartBudget:
    """Decides how many unstarted tasks to start in this tick. One thread."""

    __slots__ = ("_batch", "_began_ns", "_left_over")

    def __init__(self) -> None:
        self._batch = 1
        self._began_ns = 0
        self._left_over = False

    def allow(self, waiting: int, now_ns: int) -> int:
        """How many of ``waiting`` tasks to start in the tick that begins at ``now_ns``."""
        if self._left_over:  # the time since the last call is that of the last batch's first steps
            self._batch = next_batch(self._batch, now_ns - self._began_ns)
        self._began_ns = now_ns
        count = min(self._batch, waiting)
        self._left_over = waiting > count
        return count


def next_batch(batch: int, took_ns: int) -> int:
    """The next batch's size, given that ``batch`` first steps took ``took_ns`` together."""
    if took_ns <= SLICE_NS:
        return min(2 * batch, MAX_BATCH)
    return max(1, batch * SLICE_NS // took_ns)


def steal_count(waiting: int) -> int:
    """How many of a victim's ``waiting`` tasks a thief takes: half, rounded up."""
    return min((waiting + 1) // 2, MAX_STOLEN)

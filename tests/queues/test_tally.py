"""The count of unfinished items while threads raise, lower and fold it at once."""

import time
from collections import deque

import pytest

from polyloop.queues._tally import FOLD_ABOVE, Tally
from polyloop.testing import TestThread

RAISERS = 4
LOWERERS = 6
EACH = 16384  # several folds, by different threads


def race() -> Tally:
    """Lower the count once for each time that it was raised; none of that is refused."""
    tally = Tally()
    items: deque[None] = deque()
    got: deque[None] = deque()

    def put() -> None:
        for _ in range(EACH):
            tally.units.append(None)
            items.append(None)
            if len(tally.units) > FOLD_ABOVE:
                tally.fold()

    def report() -> None:
        while len(got) < RAISERS * EACH:
            try:
                items.popleft()
            except IndexError:
                time.sleep(0)
                continue
            assert not tally.is_zero(), "one is not reported yet"
            assert tally.lower(), "it was raised before"
            got.append(None)

    for thread in [TestThread(run) for run in [put] * RAISERS + [report] * LOWERERS]:
        thread.result()
    return tally


def count(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        tally = race()
        assert tally.is_zero()
        assert tally.count == 0
        assert not tally.lower()


@pytest.mark.stress
def test_stress(seconds: float) -> None:
    """For as long as one likes."""
    count(seconds)


def test_stress_in_small(seconds: float) -> None:
    """The same for a second."""
    count(seconds)

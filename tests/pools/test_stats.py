"""The classes of waits."""

import math

import pytest

from polyloop.pools._stats import BOUNDS, Counters


@pytest.mark.parametrize("place", range(len(BOUNDS)))
def test_a_wait_is_in_the_class_whose_bound_it_does_not_exceed(place: int) -> None:
    """The bound itself belongs to it, what is longer to the next."""
    counters = Counters()
    for seconds in (BOUNDS[place], math.nextafter(BOUNDS[place], math.inf) * 1.001):
        counters.count_wait(seconds)
    classes = counters.histogram().counts
    assert classes[place : place + 2] == (1, 1)
    assert sum(classes) == 2


@pytest.mark.parametrize(("seconds", "place"), [(0.0, 0), (1e-9, 0), (1e6, len(BOUNDS))])
def test_the_shortest_and_the_longest(seconds: float, place: int) -> None:
    """Everything has a class."""
    counters = Counters()
    counters.count_wait(seconds)
    assert counters.histogram().counts[place] == 1
    assert counters.histogram().longest == seconds

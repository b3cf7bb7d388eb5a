"""``explore``: what it finds, what it covers, and that a failure comes again."""

import threading

import pytest

from polyloop import PolyloopError
from polyloop.testing import ExplorationError, Explored, Interleaving, explore


class Box:
    """Counts without a lock."""

    def __init__(self) -> None:
        self.n = 0

    def increment(self) -> None:
        before = self.n
        self.n = before + 1


def equal(left: object, right: object) -> None:
    assert left == right


def lost_update(it: Interleaving) -> None:
    box = Box()
    it.thread(box.increment, name="left")
    it.thread(box.increment, name="right")
    it.check(lambda: equal(box.n, 2))


def counted_under_a_lock(it: Interleaving) -> None:
    box, lock = Box(), threading.Lock()

    def increment() -> None:
        with lock:
            box.increment()

    for _ in range(3):
        it.thread(increment)
    it.check(lambda: equal(box.n, 3))


def test_a_lost_update_is_found_at_one_preemption() -> None:
    """And not without one."""
    assert explore(lost_update, preemptions=0) == Explored(2, True, 0, 3)
    with pytest.raises(ExplorationError, match="found with 1 preemption") as caught:
        explore(lost_update)
    assert isinstance(caught.value, PolyloopError)
    assert isinstance(caught.value.__cause__, AssertionError)


def test_a_correct_program_is_explored_in_full() -> None:
    """Every schedule of three threads that take a lock, within the bound."""
    small = explore(counted_under_a_lock, preemptions=1)
    large = explore(counted_under_a_lock, preemptions=2)
    assert small.exhaustive and large.exhaustive
    assert large.schedules > small.schedules > 6

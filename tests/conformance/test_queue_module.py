"""CPython's tests of the module ``queue`` pass with the ``.sync`` faces of our queues."""

import queue
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.conformance._cpython import StandIn, Suite, copy_of, run_plain
from tests.conformance._excluded import QUEUE, Key

from polyloop import queues

TESTS = "test.test_queue"


class Queue(queues.SyncQueue[Any]):
    """A face, made as a queue is. The tests look at the name of the class."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(queues.Queue(maxsize))

    def shutdown(self, immediate: bool = False) -> None:
        """As ours. A test counts the items after it, and those do not count that a put is about to take back."""
        super().shutdown(immediate)
        deadline = time.monotonic() + 10
        while immediate and self.qsize() and time.monotonic() < deadline:
            time.sleep(0)


class LifoQueue(queues.SyncQueue[Any]):
    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(queues.LifoQueue(maxsize))


class PriorityQueue(queues.SyncQueue[Any]):
    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(queues.PriorityQueue(maxsize))


class SimpleQueue(queues.SyncSimpleQueue[Any]):
    def __init__(self) -> None:
        super().__init__(queues.SimpleQueue())


#: How many tests 3.13.0 has of each class. There are two of each, for queues in Python and in C, with the same tests;
#: for SimpleQueue, that in C has more.
AT_LEAST = {
    "PyQueueTest": 24,
    "PyLifoQueueTest": 24,
    "PyPriorityQueueTest": 24,
    "PyFailingQueueTest": 1,
    "CSimpleQueueTest": 9,
}
LEFT_OUT = ("CQueueTest", "CLifoQueueTest", "CPriorityQueueTest", "CFailingQueueTest", "PySimpleQueueTest")


def of_full_size(size: int, memuse: int, dry_run: bool = True) -> Callable[[Callable[[Any, int], None]], Any]:
    """What decorates tests with a hundred threads, which are run only where there are GB of memory for their stacks.

    These do not use it. Newer versions run such a test in a process of its own, which would not know the copy.
    """
    return lambda test: lambda case: test(case, size)


def load() -> Any:
    """A private copy of the tests."""
    if copy_of(TESTS) is None:
        return None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test.support.bigmemtest", of_full_size)
        return copy_of(TESTS)


MODULE = load()


def classes() -> dict[str, Any]:
    if MODULE is None:
        return {}
    found = {name: getattr(MODULE, name) for name in AT_LEAST}
    ours = {cls.__name__: cls for cls in (Queue, LifoQueue, PriorityQueue, SimpleQueue)}
    for cls in found.values():
        cls.queue = StandIn(queue, **ours)
    return found


SUITE = Suite(TESTS, classes(), AT_LEAST, QUEUE, module=MODULE, left_out=LEFT_OUT)


def test_the_interpreter_ships_its_tests_and_each_exclusion_is_of_one() -> None:
    """Tests that are missing, and exclusions that exclude nothing, do not go unnoticed."""
    SUITE.check()


@pytest.mark.parametrize("key", SUITE.keys, ids=".".join)
def test_of_cpython(request: pytest.FixtureRequest, key: Key) -> None:
    """A test of CPython's passes, or fails for the reason in ``_excluded``; an unexpected success is reported."""
    run_plain(SUITE.case(request, key))

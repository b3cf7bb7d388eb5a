"""CPython's tests of ``asyncio.Queue`` and its kin pass with ours, on every loop."""

import asyncio
from collections import deque
from typing import Any

import pytest
from tests.conformance._cpython import StandIn, Suite, copy_of, life, on_asyncio, on_worker
from tests.conformance._excluded import ASYNCIO_QUEUES, Key
from tests.conftest import Flavour

from polyloop import queues
from polyloop.queues._tally import Tally

TESTS = "test.test_asyncio.test_queues"


class Waiters(deque[Any]):
    """A line of ours in which a future can stand, as in asyncio's."""

    def append(self, waiter: Any) -> None:
        super().append(FutureWaiter(waiter) if asyncio.isfuture(waiter) else waiter)


class FutureWaiter:
    def __init__(self, future: "asyncio.Future[None]") -> None:
        self._future = future

    def wake(self) -> bool:
        self._future.set_result(None)
        return True


class Private:
    """What the tests use that is private in asyncio's queues."""

    def __init__(self, maxsize: float = 0) -> None:
        super().__init__(maxsize)  # type: ignore[call-arg] # of the queue that this is mixed into
        self._putters: deque[Any] = Waiters()

    _tally: Tally

    @property
    def _unfinished_tasks(self) -> int:
        return self._tally.count

    @_unfinished_tasks.setter
    def _unfinished_tasks(self, count: int) -> None:
        self._tally.units.clear()
        self._tally.units.extend([None] * count)


class Queue[T](Private, queues.Queue[T]): ...


class LifoQueue[T](Private, queues.LifoQueue[T]): ...


class PriorityQueue[T](Private, queues.PriorityQueue[T]): ...


#: How many tests 3.13.0 has of each class.
AT_LEAST = {
    "QueueBasicTests": 7,
    "QueueGetTests": 9,
    "QueuePutTests": 14,
    "LifoQueueTests": 1,
    "PriorityQueueTests": 1,
    **dict.fromkeys(("QueueJoinTests", "LifoQueueJoinTests", "PriorityQueueJoinTests"), 4),
    **dict.fromkeys(("QueueShutdownTests", "LifoQueueShutdownTests", "PriorityQueueShutdownTests"), 5),
}

MODULE = copy_of(TESTS)


def classes() -> dict[str, Any]:
    if MODULE is None:
        return {}
    ours = {cls.__name__: cls for cls in (Queue, LifoQueue, PriorityQueue)}
    MODULE.asyncio = StandIn(asyncio, **ours)
    found: dict[str, Any] = {name: getattr(MODULE, name) for name in AT_LEAST}
    for cls in found.values():
        if hasattr(cls, "q_class"):  # found when the module was loaded
            cls.q_class = ours[cls.q_class.__name__]
    return found


SUITE = Suite(TESTS, classes(), AT_LEAST, ASYNCIO_QUEUES, module=MODULE)


def test_the_interpreter_ships_its_tests_and_each_exclusion_is_of_one() -> None:
    """Tests that are missing, and exclusions that exclude nothing, do not go unnoticed."""
    SUITE.check()


@pytest.mark.parametrize("key", SUITE.keys, ids=".".join)
def test_of_cpython(request: pytest.FixtureRequest, flavour: Flavour, key: Key) -> None:
    """A test of CPython's passes, or fails for the reason in ``_excluded``; an unexpected success is reported."""
    test = life(SUITE.case(request, key))
    if flavour.name == "own":
        on_worker(test)
    else:
        on_asyncio(test, flavour.new)

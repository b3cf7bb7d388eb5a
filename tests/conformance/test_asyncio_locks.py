"""CPython's tests of ``asyncio.Lock`` and its kin pass with ours, on every loop.

The tests look at what is private in asyncio's classes; subclasses here show the same of ours. Their names are those of
asyncio's, which stand in the messages that the tests expect.
"""

import asyncio
from collections import deque
from typing import Any

import pytest
from tests.conformance._cpython import StandIn, Suite, copy_of, life, on_asyncio, on_worker
from tests.conformance._excluded import ASYNCIO_LOCKS, Key
from tests.conftest import Flavour

from polyloop import sync

TESTS = "test.test_asyncio.test_locks"


class Waiters:
    """A line of ours as asyncio's: of futures; and with room for what is none."""

    def __init__(self, line: deque[Any]) -> None:
        self._line = line
        self.append = line.append

    def __len__(self) -> int:
        return len(self._line)

    def __getitem__(self, index: int) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = self._line[index]._future
        return future


class Lock(sync.Lock):
    @property
    def _waiters(self) -> Waiters:
        return Waiters(self._permits.line)


class Event(sync.Event):
    @property
    def _waiters(self) -> Waiters:
        return Waiters(self._line)


class Condition(sync.Condition):
    @property
    def _waiters(self) -> Waiters:
        return Waiters(self._line)


class Semaphore(sync.Semaphore):
    @property
    def _waiters(self) -> Waiters:
        return Waiters(self._permits.line)

    @property
    def _value(self) -> int:
        return self.value


class Barrier(sync.Barrier):
    @property
    def _count(self) -> int:
        return len(self._inside)


def lock_condition(lock: Lock | None = None) -> Condition:
    """A condition with a ``Lock`` by default, as asyncio's; ours has an ``RLock``, as ``threading``'s."""
    return Condition(Lock() if lock is None else lock)


def load(condition: Any = Condition) -> Any:
    """A private copy of the tests, with our classes."""
    module = copy_of(TESTS)
    if module is not None:
        ours = {cls.__name__: cls for cls in (Lock, Event, Semaphore, sync.BoundedSemaphore, Barrier)}
        module.asyncio = StandIn(asyncio, Condition=condition, **ours)
    return module


MODULE = load()
#: How many tests 3.13.0 has of each class.
AT_LEAST = {"LockTests": 12, "EventTests": 6, "ConditionTests": 20, "SemaphoreTests": 15, "BarrierTests": 22}
#: Those of conditions run twice: with an ``RLock``, our conditions are another thing than asyncio's.
WITH_LOCK = "ConditionTests with a Lock"


def classes() -> dict[str, Any]:
    if MODULE is None:
        return {}
    with_lock = load(condition=lock_condition).ConditionTests
    return {**{name: getattr(MODULE, name) for name in AT_LEAST}, WITH_LOCK: with_lock}


SUITE = Suite(TESTS, classes(), {**AT_LEAST, WITH_LOCK: AT_LEAST["ConditionTests"]}, ASYNCIO_LOCKS, module=MODULE)


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

"""CPython's tests of ``threading``'s locks pass with the ``.sync`` faces of ours.

The tests use what is private in ``threading``'s; subclasses here show the same of ours.
"""

import threading
import unittest
from collections.abc import Callable, Sized
from typing import Any

import pytest
from tests.conformance._cpython import StandIn, Suite, copy_of, run_plain
from tests.conformance._excluded import THREADING_LOCKS, Key

from polyloop import sync

TESTS = "test.lock_tests"


def lock() -> sync.SyncLock:
    return sync.Lock().sync


class RLock(sync.SyncRLock):
    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(sync.RLock())

    def _is_owned(self) -> bool:
        return self._primitive._is_mine()

    def _recursion_count(self) -> int:
        return self._primitive._depth if self._primitive._is_mine() else 0

    def _release_save(self) -> int:
        return self._primitive._release_all()


class Condition(sync.SyncCondition):
    """A condition with a lock of which the tests know the face."""

    __slots__ = ()

    def __init__(self, face: sync.SyncLock | None = None) -> None:
        super().__init__(sync.Condition(None if face is None else face._primitive))

    @property
    def _waiters(self) -> Sized:
        return self._condition._line


def load() -> Any:
    """A private copy of the tests, in which ``threading.Lock`` is ours, too: they hand one to a condition."""
    module = copy_of(TESTS)
    if module is not None:
        module.threading = StandIn(threading, Lock=lock)
    return module


class Kind:
    """A class of tests: how it names what it tests, how that is made, and how many tests 3.13.0 has."""

    def __init__(self, name: str, makes: Callable[..., object], at_least: int) -> None:
        self.name = name
        self.makes = makes
        self.at_least = at_least


KINDS = {
    "LockTests": Kind("locktype", lock, 17),
    "RLockTests": Kind("locktype", RLock, 19),
    "EventTests": Kind("eventtype", lambda: sync.Event().sync, 6),
    "ConditionTests": Kind("condtype", Condition, 7),
    "SemaphoreTests": Kind("semtype", lambda value=1: sync.Semaphore(value).sync, 12),
    "BoundedSemaphoreTests": Kind("semtype", lambda value=1: sync.BoundedSemaphore(value).sync, 12),
    "BarrierTests": Kind(
        "barriertype", lambda parties, action=None, timeout=None: sync.Barrier(parties, action, timeout).sync, 12
    ),
}


MODULE = load()


def classes() -> dict[str, type[unittest.TestCase]]:
    found: dict[str, type[unittest.TestCase]] = {}
    for name, kind in KINDS.items() if MODULE is not None else ():
        found[name] = getattr(MODULE, name)
        setattr(found[name], kind.name, staticmethod(kind.makes))
    return found


SUITE = Suite(TESTS, classes(), {name: kind.at_least for name, kind in KINDS.items()}, THREADING_LOCKS, module=MODULE)


def test_the_interpreter_ships_its_tests_and_each_exclusion_is_of_one() -> None:
    """Tests that are missing, and exclusions that exclude nothing, do not go unnoticed."""
    SUITE.check()


@pytest.mark.parametrize("key", SUITE.keys, ids=".".join)
def test_of_cpython(request: pytest.FixtureRequest, key: Key) -> None:
    """A test of CPython's passes, or fails for the reason in ``_excluded``; an unexpected success is reported."""
    run_plain(SUITE.case(request, key))

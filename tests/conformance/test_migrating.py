"""CPython's tests of task groups and timeouts pass in tasks that migrate.

The method of a test runs as one, in a runtime of two loops, and what it makes with ``asyncio.create_task`` and
``asyncio.TaskGroup`` are tasks of asyncio beside it. In the flavour ``children`` its groups are ours, and their
children migrate too.
"""

import asyncio
import functools
import inspect
import unittest
from asyncio import taskgroups
from collections.abc import Callable
from typing import Any

import pytest
from tests.conformance._cpython import StandIn, Test, copy_of, life, skip_without
from tests.conformance._excluded import MIGRATING as EXCLUDED
from tests.conformance.test_taskgroups import AnyLoopEvent, quick_sleep

import polyloop
from polyloop import Runtime
from polyloop._core._migrant import MigratableTask

TASKGROUPS = "test.test_asyncio.test_taskgroups"
TIMEOUTS = "test.test_asyncio.test_timeouts"

#: How many tests CPython 3.13.0 has; later ones have more.
AT_LEAST = {TASKGROUPS: 38, TIMEOUTS: 34}

#: Our groups, whose children go where a worker has time for them.
MigrantsGroup = functools.partial(polyloop.TaskGroup, migratable=True)


def load(tests: str, *, children: bool) -> Any:
    """A private copy of the tests; ``children``: of those with our groups in the place of asyncio's."""
    module = copy_of(tests)
    if module is not None:
        quick: dict[str, Any] = {} if tests == TIMEOUTS else {"sleep": quick_sleep}
        instead: dict[str, Any] = {"TaskGroup": MigrantsGroup} if children else {}
        event: dict[str, Any] = {"Event": AnyLoopEvent} if children else {}
        module.asyncio = StandIn(asyncio, **quick, **event, **instead)
        if tests == TASKGROUPS:
            module.taskgroups = StandIn(taskgroups, **instead)
    return module


def cases_of(module: Any) -> dict[str, type[unittest.IsolatedAsyncioTestCase]]:
    """The class of each test that is a coroutine, by its name; those of eager loops are the same."""
    found: dict[str, type[unittest.IsolatedAsyncioTestCase]] = {}
    values: list[Any] = [] if module is None else list(module.__dict__.values())
    for value in values:
        if isinstance(value, type) and issubclass(value, unittest.IsolatedAsyncioTestCase):
            names = unittest.defaultTestLoader.getTestCaseNames(value)
            found.update(
                (name, value)
                for name in names
                if name not in found and inspect.iscoroutinefunction(getattr(value, name))
            )
    return found


MODULES = {
    (tests, flavour): cases_of(load(tests, children=flavour == "children"))
    for tests in AT_LEAST
    for flavour in ("parent", "children")
}
KEYS = [(flavour, name, tests) for (tests, flavour), cases in MODULES.items() for name in sorted(cases)]


def in_a_task_that_migrates(test: Callable[[], Test]) -> None:
    """Run a test on one of two loops, as a migratable task."""
    with Runtime(loops=2, debug=True) as runtime:
        runtime.spawn(test, migratable=True).result(60)


def test_a_test_is_in_a_task_that_migrates() -> None:
    """The task that it sees is one."""
    seen: list[object] = []

    async def test() -> None:
        seen.append(asyncio.current_task())

    in_a_task_that_migrates(test)
    assert isinstance(seen[0], MigratableTask)


@pytest.mark.parametrize("tests", AT_LEAST)
def test_the_interpreter_ships_its_tests(tests: str) -> None:
    """Tests that are missing do not go unnoticed."""
    skip_without(MODULES[tests, "parent"], tests)
    assert len(MODULES[tests, "parent"]) >= AT_LEAST[tests]


def test_each_exclusion_is_of_a_test() -> None:
    """Exclusions that exclude nothing do not go unnoticed."""
    for tests in AT_LEAST:
        skip_without(MODULES[tests, "parent"], tests)
    assert EXCLUDED.stale({(flavour, name) for flavour, name, _ in KEYS}) == set()


@pytest.mark.parametrize(("flavour", "name", "tests"), KEYS, ids=[f"{flavour}-{name}" for flavour, name, _ in KEYS])
def test_of_cpython(request: pytest.FixtureRequest, flavour: str, name: str, tests: str) -> None:
    """A test of CPython's passes, or fails for the reason in ``_excluded``; an unexpected success is reported."""
    EXCLUDED.apply(request, (flavour, name))
    case = MODULES[tests, flavour][name](name)
    # Some look for their frame in the task's own coroutine, so those that need nothing around them are that.
    in_a_task_that_migrates(getattr(case, name) if tests == TASKGROUPS else functools.partial(life, case))

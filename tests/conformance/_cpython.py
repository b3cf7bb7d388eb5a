"""CPython's own tests, taken from the running interpreter and turned on ours.

A module of tests is loaded a second time, under a private name, and the names ``asyncio``, ``threading``, ``queue`` in
that copy are replaced by stand-ins that have our classes. Nothing else in the process sees them.
"""

import asyncio
import importlib.util
import inspect
import sys
import unittest
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable
from types import ModuleType
from typing import Any, cast

import pytest
from tests.conformance._excluded import Exclusions, Key

import polyloop

type Test = Coroutine[Any, Any, object]


class StandIn:
    """A module with some names replaced."""

    def __init__(self, module: ModuleType, **instead: Any) -> None:
        self._module = module
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def copy_of(tests: str) -> Any:
    """A private copy of a module of tests; ``None`` where the interpreter ships no tests."""
    try:
        spec = importlib.util.find_spec(tests)
    except ModuleNotFoundError:  # the package of tests, or of those for asyncio, is missing
        return None
    if spec is None or spec.loader is None:
        return None
    package, _, name = tests.rpartition(".")  # the same package: they import each other by relative names
    private = importlib.util.spec_from_file_location(f"{package}.polyloop_conformance_{name}", spec.origin)
    assert private is not None and private.loader is not None
    module = importlib.util.module_from_spec(private)
    private.loader.exec_module(module)
    return module


class Suite:
    """The tests of one module, by classes under names of our choice, and those that are excluded.

    Args:
        tests: The module.
        classes: Empty where the interpreter ships no tests.
        at_least: How many tests of each class CPython 3.13.0 has; later ones have more.
        module: The copy, or one of several. It has no other classes of tests than ``classes``,
        left_out: these, and those that others are made of.
    """

    def __init__(
        self,
        tests: str,
        classes: dict[str, type[unittest.TestCase]],
        at_least: dict[str, int],
        excluded: Exclusions,
        *,
        module: Any,
        left_out: Collection[str] = (),
    ) -> None:
        self._tests = tests
        self._classes = classes
        self._at_least = at_least
        self._excluded = excluded
        self._module = module
        self._left_out = left_out
        names = unittest.defaultTestLoader.getTestCaseNames
        self.keys: list[Key] = [(name, test) for name, cls in classes.items() for test in names(cls)]

    def case(self, request: pytest.FixtureRequest, key: Key) -> unittest.TestCase:
        """One test, not run yet; marked, or skipped at once, if it is excluded."""
        self._excluded.apply(request, key)
        return self._classes[key[0]](key[1])

    def check(self) -> None:
        """Fail if tests are missing, or excluded that are not there."""
        skip_without(self._classes, self._tests)
        counts = Counter(name for name, _ in self.keys)
        few = {name: counts[name] for name, least in self._at_least.items() if counts[name] < least}
        assert not few, f"tests of {self._tests} are missing: {few}"
        stale = self._excluded.stale(self.keys)
        assert not stale, f"tests are excluded that do not exist: {stale}"
        new = set(classes_of(self._module)) - self._classes.keys() - set(self._left_out)
        assert not new, f"{self._tests} has classes of tests that we do not run: {new}"


def classes_of(module: Any) -> dict[str, type[unittest.TestCase]]:
    """The classes of tests in a module, without those that others are made of."""
    found = {name: cls for name, cls in vars(module).items() if isinstance(cls, type)}
    return {name: cls for name, cls in found.items() if issubclass(cls, unittest.TestCase) and name[:4] != "Base"}


def skip_without(found: object, tests: str) -> None:
    """Without CPython's tests there is nothing to conform to; the run says so."""
    if not found:
        pytest.skip(f"NO CONFORMANCE TESTS RUN: {sys.executable} ships no {tests}; install its testsuite package")


def on_asyncio(test: Test, factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run a test on a loop of asyncio's, or on another one that knows nothing of us."""
    with asyncio.Runner(debug=True, loop_factory=factory) as runner:
        runner.run(test)


def on_worker(test: Test) -> None:
    """Run a test on a loop of ours."""
    polyloop.run(test, loops=1, debug=True)


async def life(case: unittest.TestCase) -> None:
    """A test with what comes before and after it, in one task. Those that are no coroutines run on the loop, too."""
    assert isinstance(case, unittest.IsolatedAsyncioTestCase)
    case.setUp()
    await case.asyncSetUp()
    try:
        await _maybe(getattr(case, case._testMethodName)())
    finally:
        await case.asyncTearDown()
        case.tearDown()
        for function, args, kwargs in _cleanups(case):
            await _maybe(function(*args, **kwargs))


async def _maybe(made: object) -> None:
    if inspect.isawaitable(made):
        await made


def run_plain(case: unittest.TestCase) -> None:
    """Run a test without a loop, with what comes before and after it."""
    case.setUp()
    try:
        getattr(case, case._testMethodName)()
    finally:
        case.tearDown()
        for function, args, kwargs in _cleanups(case):
            function(*args, **kwargs)


def _cleanups(case: unittest.TestCase) -> Iterable[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]]:
    """What ``addCleanup`` has put on the stack. ``doCleanups`` would not raise."""
    stack = cast("Any", case)._cleanups
    while stack:
        yield stack.pop()

"""CPython's tests of ``concurrent.futures`` pass with ``Runtime.as_executor()``.

Those that are not about one kind of pool are mixed into a class of ours, which makes the executor. The others are named
in ``_excluded``, or belong to classes of tests for one pool.
"""

import importlib
import logging
import unittest
from collections.abc import Callable
from concurrent import futures
from typing import Any

import pytest
from tests.conformance._cpython import Suite, copy_of, run_plain
from tests.conformance._excluded import EXECUTOR, SHUTDOWN, Exclusions, Key

import polyloop
from polyloop._core import _pool
from polyloop._core._pool import ThreadPool
from polyloop.runtime import RuntimeExecutor, RuntimeFuture

TESTS = "test.test_concurrent_futures."

#: What the names of classes begin with whose tests are for one pool; those for threads we use as far as they go.
POOLS = ("InterpreterPool", "ProcessPool", "ThreadPool")


class OnARuntime:
    """Before the tests' own mixin: each test has a runtime, and a pool of threads, which end with it."""

    executor: Any

    def setUp(self) -> None:
        self._shared = _pool.shared.pool
        _pool.shared.pool = self._pool = ThreadPool()
        self._runtime = polyloop.Runtime(loops=2).start()
        super().setUp()  # type: ignore[misc]

    def executor_type(self, max_workers: int | None = None) -> RuntimeExecutor:
        return self._runtime.as_executor(max_workers)

    def tearDown(self) -> None:
        self.executor.shutdown()
        self._runtime.close()
        self._pool.end_idle(30)
        _pool.shared.pool = self._shared
        super().tearDown()  # type: ignore[misc]  # which looks for threads that are left


class Future(RuntimeFuture[Any]):
    """Under the name that a test expects."""

    @classmethod
    def like(cls, other: futures.Future[Any]) -> "Future":
        made = cls()
        made.__dict__.update(other.__dict__)
        return made


def ours_in(module: Any) -> None:
    """Let the tests of futures make ours."""
    create: Callable[..., futures.Future[Any]] = module.create_future
    module.create_future = lambda *args, **kwargs: Future.like(create(*args, **kwargs))
    module.Future = Future
    for name, value in list(vars(module).items()):
        if name.endswith("_FUTURE"):
            setattr(module, name, Future.like(value))


def suite(
    name: str,
    tests: str,
    at_least: int,
    excluded: Exclusions | None = None,
    change: Callable[[Any], object] | None = None,
    mixins: tuple[str, ...] = (),
) -> Suite:
    """The tests of one class of a module. ``mixins`` are what there is beside it in other classes that we use."""
    module = copy_of(TESTS + tests)
    classes: dict[str, type[unittest.TestCase]] = {}
    left_out: list[str] = []
    if module is not None:
        if change is not None:
            change(module)
        left_out = [other for other in vars(module) if other.startswith(POOLS)]
        found: Any = getattr(module, name)
        classes[name] = found if name not in MIXED else mixed(found)
        check_mixins(module, {name, *mixins})
    return Suite(TESTS + tests, classes, {name: at_least}, excluded or Exclusions(), module=module, left_out=left_out)


#: Classes that are mixed with ours, and with those that the tests of a pool of threads are mixed with.
MIXED = ("ThreadPoolExecutorTest", "ThreadPoolWaitTests", "AsCompletedTests", "ExecutorShutdownTest")


def mixed(tests: Any) -> type[unittest.TestCase]:
    util: Any = importlib.import_module(TESTS + "util")
    base = () if issubclass(tests, unittest.TestCase) else (util.ThreadPoolMixin, util.BaseTestCase)
    return type(tests.__name__, (OnARuntime, tests, *base), {})


def check_mixins(module: Any, used: set[str]) -> None:
    """A class of tests to be mixed in that we do not use would go unnoticed: it is no case."""
    found = {name for name, cls in vars(module).items() if isinstance(cls, type) and has_tests(cls)}
    new = {name for name in found - used if not name.startswith(POOLS)}
    assert not new, f"{module.__name__} has mixins of tests that we do not use: {new}"


def has_tests(cls: type) -> bool:
    return any(name.startswith("test") for name in vars(cls))


#: With the number of tests that 3.13.0 has. Those of ``executor.ExecutorTest`` are among those for a pool of threads.
SUITES = (
    suite("ThreadPoolExecutorTest", "test_thread_pool", 15, EXECUTOR, mixins=("ExecutorTest",)),
    suite("ThreadPoolWaitTests", "test_wait", 9, mixins=("WaitTests",)),
    suite("AsCompletedTests", "test_as_completed", 5),
    suite("ExecutorShutdownTest", "test_shutdown", 7, SHUTDOWN),
    suite("FutureTests", "test_future", 20, change=ours_in),
)
CASES = [(number, key) for number, one in enumerate(SUITES) for key in one.keys]


@pytest.mark.parametrize("number", range(len(SUITES)))
def test_the_interpreter_ships_its_tests_and_each_exclusion_is_of_one(number: int) -> None:
    """Tests that are missing, and exclusions that exclude nothing, do not go unnoticed."""
    SUITES[number].check()


@pytest.mark.parametrize(("number", "key"), CASES, ids=[".".join(key) for _, key in CASES])
def test_of_cpython(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, number: int, key: Key) -> None:
    """A test of CPython's passes, or fails for the reason in ``_excluded``; an unexpected success is reported."""
    monkeypatch.setattr(logging.root, "handlers", [])  # some look on stderr for what is logged
    run_plain(SUITES[number].case(request, key))

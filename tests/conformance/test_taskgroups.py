"""CPython's tests of ``asyncio.TaskGroup`` pass with ``polyloop.TaskGroup``, wherever its children run."""

import asyncio
import functools
import inspect
import unittest
from asyncio import taskgroups
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from tests.conformance._cpython import StandIn, Test, copy_of, on_asyncio, on_worker, skip_without
from tests.conformance._excluded import ELSEWHERE
from tests.conformance._excluded import TASKGROUPS as EXCLUDED

import polyloop
from polyloop._core._completion import Completion

TESTS = "test.test_asyncio.test_taskgroups"

#: The tests sleep for seconds in all, and run in seven flavours; what they need is the order of their sleeps.
_PACE = 0.25


def quick_sleep(delay: float, result: Any = None) -> Coroutine[Any, Any, Any]:
    """``asyncio.sleep``, shorter."""
    return asyncio.sleep(delay * _PACE, result)


class AnyLoopEvent:
    """An ``asyncio.Event`` that is set once, from any loop: some tests set theirs in a child."""

    def __init__(self) -> None:
        self._happened = Completion[None]()

    def set(self) -> None:
        if not self._happened.done():
            self._happened._complete(None)

    def is_set(self) -> bool:
        return self._happened.done()

    async def wait(self) -> bool:
        await self._happened
        return True


def load(event: type = asyncio.Event) -> Any:
    """A private copy of the tests, with our ``TaskGroup``; ``event`` is what they find as ``asyncio.Event``."""
    module = copy_of(TESTS)
    if module is not None:
        instead: dict[str, Any] = {"TaskGroup": polyloop.TaskGroup}
        module.taskgroups = StandIn(taskgroups, **instead)
        module.asyncio = StandIn(asyncio, Event=event, sleep=quick_sleep, **instead)
    return module


def names_of(module: Any) -> list[str]:
    """The names of all tests that are coroutines; one of 3.13.0's drives a loop of its own, by ``get_event_loop``."""
    found: set[str] = set()
    for value in vars(module).values() if module is not None else ():
        if isinstance(value, type) and issubclass(value, unittest.IsolatedAsyncioTestCase):
            names = unittest.defaultTestLoader.getTestCaseNames(value)
            found.update(name for name in names if inspect.iscoroutinefunction(getattr(value, name)))
    return sorted(found)


MODULE = load()
MODULE_ELSEWHERE = load(event=AnyLoopEvent)
NAMES = names_of(MODULE)


class Elsewhere:
    """Places every task on another loop than its creator's."""

    def choose(self, workers: Sequence[polyloop.Worker], here: polyloop.Worker | None) -> polyloop.Worker:
        return workers[0] if here is None else workers[(here.index + 1) % len(workers)]


async def _eagerly(test: Test) -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    await asyncio.create_task(test)


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def _guest_of_a_runtime(test: Test) -> None:
    with polyloop.Runtime(loops=2, debug=True):
        on_asyncio(test)


FLAVOURS: dict[str, Callable[[Test], object]] = {
    "asyncio": on_asyncio,
    "asyncio-eager": functools.partial(on_asyncio, factory=_eager_loop),
    "worker": on_worker,
    "worker-eager": lambda test: on_worker(_eagerly(test)),
    "elsewhere": functools.partial(polyloop.run, loops=2, placement=Elsewhere(), debug=True),
    "spread": functools.partial(polyloop.run, loops=4, debug=True),
    "guest": _guest_of_a_runtime,
}


def test_the_interpreter_ships_its_tests_and_each_exclusion_is_of_one() -> None:
    """Tests that are missing, and exclusions that exclude nothing, do not go unnoticed."""
    skip_without(MODULE, TESTS)
    assert len(NAMES) >= 38  # of 3.13.0; later ones have more
    assert EXCLUDED.stale({(flavour, name) for flavour in FLAVOURS for name in NAMES}) == set()


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_of_cpython(request: pytest.FixtureRequest, flavour: str, name: str) -> None:
    """A test of CPython's passes, or fails for the reason in ``_excluded``; an unexpected success is reported."""
    EXCLUDED.apply(request, (flavour, name))
    module = MODULE_ELSEWHERE if flavour in ELSEWHERE else MODULE
    FLAVOURS[flavour](getattr(module.TestTaskGroup(name), name)())

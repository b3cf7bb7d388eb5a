"""CPython's own tests of ``asyncio.TaskGroup``, taken from the running interpreter and turned on ours.

The test module is loaded a second time, under a private name, and the names ``asyncio`` and ``taskgroups`` in that copy
are replaced by stand-ins with our ``TaskGroup``. Nothing else in the process sees them.
"""

import asyncio
import importlib.util
import inspect
import unittest
from asyncio import taskgroups
from collections.abc import Coroutine
from types import ModuleType
from typing import Any

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


class _StandIn:
    """A module with some names replaced."""

    def __init__(self, module: ModuleType, **instead: Any) -> None:
        self._module = module
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def load(event: type = asyncio.Event) -> ModuleType | None:
    """A private copy of the tests, with our ``TaskGroup``; ``None`` where the interpreter ships no tests.

    Args:
        event: What the tests find as ``asyncio.Event``.
    """
    try:
        spec = importlib.util.find_spec(TESTS)
    except ModuleNotFoundError:  # the package of tests, or of those for asyncio, is missing
        return None
    if spec is None or spec.loader is None:
        return None
    private = importlib.util.spec_from_file_location("polyloop_conformance_taskgroups", spec.origin)
    assert private is not None and private.loader is not None
    module = importlib.util.module_from_spec(private)
    private.loader.exec_module(module)
    instead: dict[str, Any] = {"TaskGroup": polyloop.TaskGroup}
    vars(module)["taskgroups"] = _StandIn(taskgroups, **instead)
    vars(module)["asyncio"] = _StandIn(asyncio, Event=event, sleep=quick_sleep, **instead)
    return module


def names_of(module: ModuleType | None) -> list[str]:
    """The names of all tests that are coroutines; one of 3.13.0's drives a loop of its own, by ``get_event_loop``."""
    found: set[str] = set()
    for value in vars(module).values() if module is not None else ():
        if isinstance(value, type) and issubclass(value, unittest.IsolatedAsyncioTestCase):
            names = unittest.defaultTestLoader.getTestCaseNames(value)
            found.update(name for name in names if inspect.iscoroutinefunction(getattr(value, name)))
    return sorted(found)


def case(module: ModuleType, name: str) -> unittest.IsolatedAsyncioTestCase:
    """One test, not run yet; ``getattr(case, name)()`` is its coroutine."""
    made: unittest.IsolatedAsyncioTestCase = module.TestTaskGroup(name)
    return made

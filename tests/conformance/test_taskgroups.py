"""CPython's tests of ``asyncio.TaskGroup`` pass with ``polyloop.TaskGroup``, wherever its children run."""

import asyncio
import functools
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from tests.conformance import _cpython
from tests.conformance._excluded import ELSEWHERE, MUST_FAIL, NOT_RUN

import polyloop

MODULE = _cpython.load()
MODULE_ELSEWHERE = _cpython.load(event=_cpython.AnyLoopEvent)
NAMES = _cpython.names_of(MODULE)

type Test = Coroutine[Any, Any, object]


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


def _on_asyncio(test: Test, factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    with asyncio.Runner(debug=True, loop_factory=factory) as runner:
        runner.run(test)


def _guest_of_a_runtime(test: Test) -> None:
    with polyloop.Runtime(loops=2, debug=True):
        _on_asyncio(test)


FLAVOURS: dict[str, Callable[[Test], object]] = {
    "asyncio": _on_asyncio,
    "asyncio-eager": functools.partial(_on_asyncio, factory=_eager_loop),
    "worker": functools.partial(polyloop.run, loops=1, debug=True),
    "worker-eager": lambda test: polyloop.run(_eagerly(test), loops=1, debug=True),
    "elsewhere": functools.partial(polyloop.run, loops=2, placement=Elsewhere(), debug=True),
    "spread": functools.partial(polyloop.run, loops=4, debug=True),
    "guest": _guest_of_a_runtime,
}


def test_the_interpreter_ships_its_tests() -> None:
    """Without CPython's tests there is nothing to conform to; the run says so."""
    if MODULE is None:
        pytest.skip(
            f"NO CONFORMANCE TESTS RUN: {sys.executable} ships no {_cpython.TESTS}; install its testsuite package"
        )
    assert len(NAMES) >= 38  # of 3.13.0; later ones have more


def test_every_exclusion_names_a_flavour() -> None:
    """An exclusion for a flavour that is no more excludes nothing, and goes unnoticed."""
    assert {flavour for flavour, _ in (*MUST_FAIL, *NOT_RUN)} <= set(FLAVOURS)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NAMES)
def test_of_cpython(request: pytest.FixtureRequest, flavour: str, name: str) -> None:
    """A test of CPython's passes, or fails for the reason in ``_excluded``; an unexpected success is reported."""
    module = MODULE_ELSEWHERE if flavour in ELSEWHERE else MODULE
    assert module is not None
    chance = NOT_RUN.get((flavour, name))
    if chance is not None:
        pytest.skip(chance)
    reason = MUST_FAIL.get((flavour, name))
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    FLAVOURS[flavour](getattr(_cpython.case(module, name), name)())

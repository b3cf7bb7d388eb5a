"""``ResourceGuard``: two at once are told so."""

import asyncio
import threading

import pytest
from tests.helpers import in_trio

import polyloop
from polyloop.sync import BusyResourceError, ResourceGuard
from polyloop.testing import Interleaving, TestLoop, TestThread, explore


def enter(guard: ResourceGuard) -> None:
    with guard:
        pass


def test_the_second_is_refused_and_told_who_is_inside(left: TestLoop) -> None:
    """A task, a trio task or a thread; also itself once more. Then the guard is free again."""
    guard = ResourceGuard("reading from")
    assert repr(guard).endswith("[free]>")

    async def task() -> None:
        with guard:
            assert repr(guard).endswith("[task 'reader' of thread 'left' is reading from it]>")
            with pytest.raises(
                BusyResourceError,
                match=r"^task 'reader' of thread 'left' is already reading from this resource; thread 'other' must",
            ):
                TestThread(enter, guard, name="other").result()
            with pytest.raises(BusyResourceError, match="task 'reader' of thread 'left' must wait"):
                enter(guard)
            await asyncio.sleep(0)

    async def on_trio() -> None:
        with guard, pytest.raises(BusyResourceError, match=r"^task '.*on_trio' of thread 'trio' is already"):
            TestThread(enter, guard).result()

    left.spawn(task, name="reader").result()
    in_trio(on_trio).result()
    with guard, pytest.raises(BusyResourceError, match=f"^thread '{threading.current_thread().name}' is already"):
        left.run(enter, guard)
    with pytest.raises(KeyError), guard:
        raise KeyError
    assert repr(guard).endswith("[free]>")


def test_the_error_is_a_runtime_error_of_polyloop() -> None:
    """As anyio's and trio's are runtime errors."""
    assert issubclass(BusyResourceError, polyloop.PolyloopError)
    assert issubclass(BusyResourceError, RuntimeError)


def test_one_at_a_time_in_every_order() -> None:
    """Of two that come, one at least gets in."""

    def scenario(it: Interleaving) -> None:
        guard = ResourceGuard()
        inside: list[int] = []
        entered: list[int] = []

        def use() -> None:
            try:
                with guard:
                    inside.append(1)
                    assert inside == [1]
                    entered.append(1)
                    inside.pop()
            except BusyResourceError:
                pass

        it.thread(use)
        it.thread(use)

        def check() -> None:
            assert entered
            enter(guard)

        it.check(check)

    assert explore(scenario).exhaustive

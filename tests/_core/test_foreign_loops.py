"""What polyloop promises about a loop holds for loops of every kind, through the fallback."""

import asyncio
import threading

import pytest

from polyloop.testing import TestLoop, TestThread


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def test_posts_and_tasks_run_on_the_loop(any_loop: TestLoop) -> None:
    """In the order of the calls, on its thread."""
    seen: list[int] = []

    async def note(number: int) -> int:
        seen.append(number)
        return threading.get_ident()

    handles = [any_loop.spawn(note, number) for number in range(100)]
    assert {handle.result(30) for handle in handles} == {any_loop.worker.ident}
    assert seen == list(range(100))


def test_a_handle_is_awaited_on_a_loop_of_every_kind(any_loop: TestLoop, left: TestLoop) -> None:
    """There and back."""

    async def ask(loop: TestLoop) -> str:
        async def answer() -> str:
            await asyncio.sleep(0)
            return loop.worker.name

        return await loop.spawn(answer)

    assert any_loop.run(ask, left) == "left"
    assert left.run(ask, any_loop) == any_loop.worker.name


def test_a_task_is_cancelled_from_outside(any_loop: TestLoop) -> None:
    """From a thread; and its awaiter on another kind of loop passes its own cancellation on."""
    handle = any_loop.spawn(forever)
    assert TestThread(handle.cancel, "enough").result()
    with pytest.raises(asyncio.CancelledError, match="enough"):
        handle.result(30)


def test_a_cancelled_awaiter_cancels_a_task_on_a_loop_of_every_kind(any_loop: TestLoop, left: TestLoop) -> None:
    """Within ``asyncio.timeout`` on the other loop."""
    handle = any_loop.spawn(forever)

    async def limited() -> None:
        async with asyncio.timeout(0.01):
            await handle

    with pytest.raises(TimeoutError):
        left.run(limited)
    assert handle.cancelled()


def test_posts_made_while_the_loop_is_held_arrive(any_loop: TestLoop) -> None:
    """One wake-up for all of them."""
    seen: list[int] = []
    with any_loop.paused():
        for number in range(10):
            any_loop.worker.post(seen.append, number)
    assert any_loop.run(seen.copy) == list(range(10))

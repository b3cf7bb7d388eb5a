"""``Once``: computed once, whoever asks; failures and cancellations go on to the next."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from tests.helpers import in_trio, until

from polyloop import BlockingCallError, DeadlockError, Event
from polyloop.sync import Once
from polyloop.testing import Gate, Interleaving, TestLoop, TestThread, explore


def waiting(once: Once[Any]) -> int:
    return len(once._line)


def test_it_is_computed_once_for_all(left: TestLoop, right: TestLoop) -> None:
    """Tasks of two loops and of trio, and threads, that ask while it is computed, and later."""
    go = Event()
    calls: list[str] = []

    @Once
    async def value() -> str:
        """The value."""
        calls.append(threading.current_thread().name)
        await go.wait()
        return "value"

    assert "test_it_is_computed_once_for_all.<locals>.value" in repr(value)
    assert repr(value).endswith("[not done]>")
    assert (value.__doc__, value.__name__) == ("The value.", "value")  # type: ignore[attr-defined]
    pending: list[Any] = [left.spawn(value)]
    until(lambda: calls == ["left"])
    assert repr(value).endswith("[being done]>")
    pending += [left.spawn(value), right.spawn(value), in_trio(value), TestThread(value.sync)]
    until(lambda: waiting(value) == 4)
    assert not value.done()
    go.set()
    assert [one.result() for one in pending] == ["value"] * 5
    assert (value.sync(), left.run(value), value.done()) == ("value", "value", True)
    assert calls == ["left"]
    assert repr(value).endswith("[done]>")
    assert repr(value.sync) == f"<sync face of {value!r}>"


def test_a_plain_function_is_called_by_whoever_asks_first(left: TestLoop) -> None:
    """On a loop, also through the face for threads; ``None`` is a value."""
    calls: list[str] = []

    def note() -> None:
        calls.append(threading.current_thread().name)

    asks: list[Callable[[Once[None]], None]] = [
        lambda once: left.run(once.sync),
        lambda once: left.run(once),
        lambda once: in_trio(once).result(),
    ]
    for ask in asks:
        once = Once(note)
        ask(once)
        once.sync()
        assert once.done()
    assert calls == ["left", "left", "trio"]


def test_a_failure_is_told_to_its_caller_and_the_next_tries_again(left: TestLoop, right: TestLoop) -> None:
    """Who has waited longest does, on its own loop."""
    gate = Gate()
    calls: list[str] = []

    def compute() -> str:
        calls.append(threading.current_thread().name)
        gate.pause()
        if len(calls) == 1:
            raise LookupError("not yet")
        return "value"

    once = Once(compute)
    first = TestThread(once.sync, name="first")
    gate.reached()
    second = right.spawn(once.__call__)
    until(lambda: waiting(once) == 1)
    third = left.spawn(once.__call__)
    until(lambda: waiting(once) == 2)
    gate.open()
    with pytest.raises(LookupError, match="not yet"):
        first.result()
    assert (second.result(), third.result()) == ("value", "value")
    assert calls == ["first", "right"]


@pytest.mark.parametrize("next_one", ["task", "thread"])
def test_a_cancelled_computation_is_taken_over(left: TestLoop, right: TestLoop, next_one: str) -> None:
    """By who has waited longest; one that is cancelled while it waits changes nothing."""
    started: list[str] = []

    async def hang() -> str:
        await Event().wait()
        return "never"

    def compute() -> Any:
        started.append(threading.current_thread().name)
        return hang() if len(started) == 1 else "value"

    once: Once[str] = Once(compute)
    doomed = left.spawn(once.__call__)
    until(lambda: started == ["left"])
    impatient = right.spawn(once.__call__)
    until(lambda: waiting(once) == 1)
    following: Any = right.spawn(once.__call__) if next_one == "task" else TestThread(once.sync)
    until(lambda: waiting(once) == 2)
    impatient.cancel()
    until(lambda: waiting(once) == 1)
    doomed.cancel()
    assert following.result() == "value"
    with pytest.raises(asyncio.CancelledError):
        doomed.result()
    assert len(started) == 2


def test_a_cancelled_trio_task_gives_the_right_back() -> None:
    """The next computes."""
    calls: list[int] = []

    async def compute() -> str:
        calls.append(1)
        if len(calls) == 1:
            await trio.sleep_forever()
        return "value"

    once = Once(compute)

    async def main() -> str:
        with trio.move_on_after(0.001):
            await once()
        return await once()

    assert in_trio(main).result() == "value"
    assert once.sync() == "value"


def test_who_asks_for_what_it_computes_is_told(left: TestLoop) -> None:
    """It would wait for itself."""

    async def compute() -> int:
        return await once() + 1

    def compute_in_a_thread() -> int:
        return plain.sync() + 1

    once: Once[int] = Once(compute)
    plain: Once[int] = Once(compute_in_a_thread)
    with pytest.raises(DeadlockError, match="asks for the value that it is to compute"):
        left.run(once)
    with pytest.raises(DeadlockError):
        plain.sync()
    assert not once.done()


def test_a_thread_cannot_run_a_coroutine_function() -> None:
    """It says so, and nothing has changed."""

    async def compute() -> int:
        return 1

    for fn in (compute, lambda: compute()):
        once: Once[int] = Once(fn)
        with pytest.raises(TypeError, match="use 'await once"):
            once.sync()
        assert asyncio.run(once()) == 1
        assert once.sync() == 1


def test_a_loop_is_not_blocked_and_time_can_be_limited(left: TestLoop) -> None:
    """While another computes."""
    gate = Gate()
    once = Once(gate.pause)
    thread = TestThread(once.sync)
    gate.reached()

    async def on_a_loop() -> None:
        once.sync()

    with pytest.raises(BlockingCallError, match=r"'left'; use 'await once\(\)'"):
        left.run(on_a_loop)
    with pytest.raises(TimeoutError, match=r"was not computed within 0\.001 s"):
        once.sync(0.001)
    assert waiting(once) == 0
    gate.open()
    thread.result()


def test_it_is_computed_once_in_every_order() -> None:
    """The first fails, or is cancelled at any moment; whoever is left gets the value."""

    def scenario(it: Interleaving) -> None:
        calls: list[int] = []

        async def compute() -> int:
            calls.append(1)
            await asyncio.sleep(0)
            return len(calls)

        once = Once(compute)
        doomed = it.coroutine(once.__call__)
        it.thread(doomed.cancel)
        stays = it.coroutine(once.__call__)

        def check() -> None:
            assert stays.result() == len(calls)
            assert len(calls) == 1 or doomed.cancelled()
            assert waiting(once) == 0

        it.check(check)

    explore(scenario, preemptions=1, schedules=500)

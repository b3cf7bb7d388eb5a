"""``TestLoop``: runs, holds, waits, and closes."""

import asyncio
import contextvars
import socket
import threading

import pytest

from polyloop import BlockingCallError
from polyloop.testing import FakeClock, Gate, TestLoop, TestThread, wait_all_blocked


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def report(loop: TestLoop) -> None:
    """Let a callback of the loop fail."""
    loop.loop.call_soon(lambda: 1 // 0)


async def whoami(word: str, *, end: str = "") -> tuple[str, int]:
    await asyncio.sleep(0)
    return word + end, threading.get_ident()


def test_run_waits_for_a_function_or_a_coroutine_on_the_loop(left: TestLoop) -> None:
    """Both run on the loop's thread, inside of a task."""
    assert left.run(threading.get_ident) == left.worker.ident
    assert left.run(whoami, "a", end="b") == ("ab", left.worker.ident)
    assert left.run(asyncio.get_running_loop) is left.loop
    assert left.run(asyncio.current_task) is not None


def test_run_raises_what_the_function_raised(left: TestLoop) -> None:
    """With its own type and message."""
    with pytest.raises(ZeroDivisionError):
        left.run(lambda: 1 // 0)


def test_run_that_takes_too_long_shows_where_the_loop_is() -> None:
    """The stack of the loop's thread is in the message."""
    gate = Gate()

    def stuck_here() -> None:
        gate.pause()

    with TestLoop(timeout=0.05) as loop:
        with pytest.raises(TimeoutError, match="in stuck_here"):
            loop.run(stuck_here)
        gate.open()


def test_spawn_starts_tasks_in_call_order_in_the_callers_context(left: TestLoop) -> None:
    """Calls of one thread start in the order of the calls."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    seen: list[tuple[int, str]] = []

    async def note(number: int) -> None:
        seen.append((number, variable.get()))

    for handle in [left.spawn(note, number) for number in range(10)]:
        handle.result()
    assert seen == [(number, "mine") for number in range(10)]


def test_a_paused_loop_does_nothing_until_the_block_is_left(left: TestLoop) -> None:
    """Posts, cancellations and tasks pile up in their order."""
    seen: list[str] = []
    victim = left.spawn(forever)
    victim.add_done_callback(lambda _: seen.append("cancelled"))
    left.wait_all_blocked()
    with left.paused():
        left.worker.post(seen.append, "posted")
        victim.cancel()
        assert seen == []
    left.wait_all_blocked()
    assert seen == ["posted", "cancelled"]


@pytest.mark.parametrize("call", ["run", "wait_all_blocked", "paused", "close"])
def test_waiting_for_a_loop_that_this_thread_holds_is_refused(left: TestLoop, call: str) -> None:
    """It would wait for ever."""
    with left.paused(), pytest.raises(RuntimeError, match=r"which this thread holds; leave 'paused\(\)' first"):
        if call == "run":
            left.run(int)
        elif call == "paused":
            with left.paused():
                pass
        else:
            getattr(left, call)()


def test_an_error_in_the_block_lets_the_loop_go(left: TestLoop) -> None:
    """A failed assertion must not hang the test."""
    with pytest.raises(KeyError), left.paused():
        raise KeyError
    assert left.run(int) == 0


def test_another_thread_may_wait_for_a_held_loop(left: TestLoop) -> None:
    """It goes on when the block is left."""
    with left.paused():
        thread = TestThread(left.run, int)
    assert thread.result() == 0


def test_blocked_means_that_all_that_follows_from_a_post_is_over(left: TestLoop) -> None:
    """Callbacks that call for callbacks, a hundred deep."""
    seen: list[int] = []

    def hop(number: int) -> None:
        seen.append(number)
        if number < 100:
            left.loop.call_soon(hop, number + 1)

    left.worker.post(hop, 0)
    left.wait_all_blocked()
    assert seen == list(range(101))


def test_blocked_means_that_no_socket_is_ready(left: TestLoop) -> None:
    """What this thread wrote before is read before."""
    received: list[bytes] = []
    reader, writer = socket.socketpair()
    reader.setblocking(False)

    async def listen() -> None:
        while data := await asyncio.get_running_loop().sock_recv(reader, 1):
            received.append(data)

    with reader, writer:
        handle = left.spawn(listen)
        left.wait_all_blocked()
        for _ in range(20):
            writer.send(b"xyz")
            left.wait_all_blocked()
        assert b"".join(received) == b"xyz" * 20
        handle.cancel()
        left.wait_all_blocked()


def test_blocked_does_not_wait_for_timers_of_the_future(left: TestLoop) -> None:
    """A sleeping task is blocked."""
    handle = left.spawn(asyncio.sleep, 3600)
    left.wait_all_blocked()
    assert not handle.done()


def test_loops_that_wake_each_other_are_blocked_when_all_are(left: TestLoop, right: TestLoop) -> None:
    """A message that goes back and forth two hundred times is at rest at the end."""
    hops: list[str] = []

    def hop(here: TestLoop, there: TestLoop) -> None:
        hops.append(here.worker.name)
        if len(hops) < 200:
            there.worker.post(hop, there, here)

    left.worker.post(hop, left, right)
    wait_all_blocked(left, right)
    assert hops == ["left", "right"] * 100


def test_loops_that_never_rest_are_named() -> None:
    """Instead of waiting for ever."""
    stop: list[None] = []
    with TestLoop("a", timeout=0.1) as a, TestLoop("b", timeout=0.1) as b:

        def hop(here: TestLoop, there: TestLoop) -> None:
            if not stop:
                there.worker.post(hop, there, here)

        a.worker.post(hop, a, b)
        with pytest.raises(TimeoutError):
            wait_all_blocked(a, b)
        stop.append(None)


def test_waiting_on_a_loops_own_thread_is_refused(left: TestLoop, right: TestLoop) -> None:
    """A loop never blocks, not even for a test."""
    with pytest.raises(BlockingCallError):
        left.run(right.wait_all_blocked)


def test_only_polyloops_own_loop_tells_when_it_is_blocked() -> None:
    """Others run, but have no idle moment to hook."""
    with TestLoop(loop_factory=asyncio.SelectorEventLoop) as loop:
        assert loop.run(whoami, "a")[0] == "a"
        with pytest.raises(RuntimeError, match="only polyloop's own loop tells when it is blocked"):
            loop.wait_all_blocked()
    with pytest.raises(ValueError, match="a clock works with polyloop's own loop only"):
        TestLoop(clock=FakeClock(), loop_factory=asyncio.SelectorEventLoop)


def test_closing_cancels_what_runs() -> None:
    """With time to clean up."""
    cleaned: list[None] = []

    async def clean_up() -> None:
        try:
            await forever()
        finally:
            cleaned.append(None)

    with TestLoop() as loop:
        handle = loop.spawn(clean_up)
        loop.wait_all_blocked()
    assert cleaned == [None]
    assert handle.cancelled()
    loop.close()  # does nothing


def test_errors_reported_to_the_loop_fail_the_test() -> None:
    """Unless they were taken."""

    with pytest.raises(ExceptionGroup, match="errors were reported to <TestLoop") as group, TestLoop() as loop:
        loop.run(report, loop)
    assert isinstance(group.value.exceptions[0], ZeroDivisionError)
    with TestLoop() as loop:
        loop.run(report, loop)
        loop.wait_all_blocked()
        assert isinstance(loop.take_errors()[0]["exception"], ZeroDivisionError)
        assert loop.take_errors() == []


def test_the_error_of_the_test_comes_before_that_of_the_close() -> None:
    """The second is a note of the first."""
    with pytest.raises(KeyError) as error, TestLoop() as loop:
        loop.run(report, loop)
        raise KeyError("the test's own")
    assert "ZeroDivisionError" in error.value.__notes__[0]

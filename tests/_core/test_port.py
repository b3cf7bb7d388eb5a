"""Ports of loops that polyloop does not own."""

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from tests.conftest import Flavour

from polyloop import RuntimeClosedError
from polyloop._core._context import here
from polyloop._core._handle import TaskHandle
from polyloop._core._port import NOWHERE, GuestPort, Port, current_port
from polyloop.testing import Gate, TestThread


def on_guest_loop[T](fn: Callable[[], T]) -> T:
    """Run ``fn`` on a loop of its own in this thread."""

    async def main() -> T:
        return fn()

    return asyncio.run(main())


def test_there_is_no_port_without_a_loop() -> None:
    """The error is asyncio's own."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        current_port()


def test_a_loop_keeps_its_port_while_two_take_turns_on_a_thread() -> None:
    """Else a handle of the first would look foreign there after the second had run."""

    async def port() -> Port:
        return current_port()

    def take_turns() -> list[Port]:
        first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
        try:
            return [loop.run_until_complete(port()) for loop in (first, second, first, second)]
        finally:
            first.close()
            second.close()

    ports = TestThread(take_turns).result()
    assert ports[0] is ports[2] is not ports[1] is ports[3]


def test_ports_of_closed_loops_are_forgotten() -> None:
    """A thread that runs one loop after the other keeps the last one's port only."""

    def several() -> int:
        for _ in range(5):
            on_guest_loop(current_port)
        return len(here.guests)

    assert TestThread(several).result() == 1


def test_posts_from_a_thread_run_on_the_loop_in_their_order() -> None:
    """One ``call_soon_threadsafe`` for a batch, however many posts."""

    async def main() -> tuple[list[int], set[int]]:
        port = current_port()
        seen: list[int] = []
        threads: set[int] = set()
        done = asyncio.Event()

        def take(number: int) -> None:
            seen.append(number)
            threads.add(threading.get_ident())
            if number == 99:
                done.set()

        poster = TestThread(lambda: [port.post(take, number) for number in range(100)])
        await done.wait()
        poster.result()
        return seen, threads

    seen, threads = asyncio.run(main())
    assert seen == list(range(100))
    assert threads == {threading.get_ident()}


def test_a_post_that_raises_is_reported_and_the_rest_run() -> None:
    """One failing callable takes nothing else with it."""

    async def main() -> tuple[list[str], list[str]]:
        loop = asyncio.get_running_loop()
        reports: list[str] = []
        loop.set_exception_handler(lambda _, context: reports.append(repr(context["exception"])))
        seen: list[str] = []
        done = asyncio.Event()
        port = current_port()

        def fail() -> None:
            raise ValueError("posted")

        port.post(fail)
        port.post(seen.append, "after")
        port.post(done.set)
        await done.wait()
        return seen, reports

    assert asyncio.run(main()) == (["after"], ["ValueError('posted')"])


def test_posts_to_a_closed_loop_are_dropped_and_tasks_refused() -> None:
    """Its owner has closed it: nobody there waits, but whoever waits for the task is told."""
    port = on_guest_loop(current_port)
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    handle = TaskHandle(work())
    port.post(ran.append, 2)
    port.admit(handle, False)
    with pytest.raises(RuntimeClosedError, match="was closed before the task could start"):
        handle.result(timeout=0)
    assert ran == []
    assert len(port.mailbox.items) == 0


def test_a_task_admitted_while_the_loop_is_being_closed_is_refused() -> None:
    """The drain was scheduled and never ran: what waited for it is refused by the next who comes."""
    entered, leave = Gate("running"), Gate("leave")
    ports: list[Port] = []

    async def main() -> None:
        ports.append(current_port())
        entered.pause()  # holds the loop

    def run() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(main())
        task.add_done_callback(lambda _: loop.stop())
        loop.run_forever()
        leave.pause()
        loop.close()

    async def work() -> None:
        raise AssertionError("never started")

    thread = TestThread(run)
    entered.reached()
    entered.open()
    leave.reached()
    first = TaskHandle(work())
    ports[0].admit(first, False)
    leave.open()
    thread.result()
    second = TaskHandle(work())
    ports[0].admit(second, False)
    for handle in (first, second):
        with pytest.raises(RuntimeClosedError):
            handle.result(timeout=5)


class SlowLoop(asyncio.SelectorEventLoop):
    """Stops a call from another thread between its look whether the loop is open and its queueing."""

    queueing: Gate | None = None

    def _call_soon(self, *args: Any) -> asyncio.Handle:
        if self.queueing is not None:
            self.queueing.pause()
        handle: asyncio.Handle = super()._call_soon(*args)  # type: ignore[misc]
        return handle


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the pause stands in a private step of asyncio 3.13")
def test_a_task_admitted_at_the_moment_of_the_close_is_refused() -> None:
    """1. The poster finds the loop open. 2. The owner closes it. 3. The poster queues what nobody will run."""
    loop = SlowLoop()

    async def port() -> Port:
        return current_port()

    async def work() -> None:
        raise AssertionError("never started")

    target = loop.run_until_complete(port())
    handle = TaskHandle(work())
    loop.queueing = Gate("queueing")
    poster = TestThread(target.admit, handle, False)
    loop.queueing.reached()
    loop.close()
    loop.queueing.open()
    poster.result()
    with pytest.raises(RuntimeClosedError):
        handle.result(timeout=5)


def test_a_guest_loop_that_is_closed_with_a_task_in_it_tells_whoever_waits(flavour: Flavour) -> None:
    """Nothing was posted to it since, so nothing of ours was about to run there."""
    if flavour.untidy:
        pytest.skip(f"a closed {flavour.name} keeps its timers")
    loop = flavour.new() if flavour.new is not None else asyncio.new_event_loop()

    async def main() -> TaskHandle[None]:
        handle = TaskHandle(asyncio.sleep(3600))
        handle._start_here(current_port())
        assert handle._task is not None
        setattr(handle._task, "_log_destroy_pending", False)  # noqa: B010 - asyncio would complain of it, rightly
        await asyncio.sleep(0)
        return handle

    handle = loop.run_until_complete(main())
    assert not handle.done()
    loop.close()
    with pytest.raises(RuntimeClosedError, match="was closed before the task could start or end there"):
        handle.result(timeout=0)


def test_the_wait_for_the_close_of_a_guest_loop_keeps_nothing_alive() -> None:
    """Neither the port nor, through it, the loop."""

    async def port() -> "weakref.ref[Port]":
        return weakref.ref(current_port())

    def run() -> "weakref.ref[Port]":
        loop = asyncio.new_event_loop()
        loops.append(loop)
        return loop.run_until_complete(port())

    loops: list[asyncio.AbstractEventLoop] = []
    seen = TestThread(run).result()
    gc.collect()  # it is in cycles of its own
    loops[0].close()
    assert seen() is None  # the thread that kept it has ended


def test_a_guest_loop_that_goes_on_in_another_thread_is_still_itself() -> None:
    """A request to cancel arrives there, once; waiters are woken through the mailbox of the loop, not of a thread."""
    loop = asyncio.new_event_loop()
    handles: list[TaskHandle[None]] = []

    async def first() -> None:
        handles.append(TaskHandle(asyncio.sleep(3600)))
        handles[0]._start_here(current_port())
        await asyncio.sleep(0)

    async def second() -> int:
        task = handles[0]._task
        assert task is not None
        assert await asyncio.to_thread(handles[0].cancel)
        await asyncio.wait([task])
        return threading.get_ident()

    ran = Gate()

    def run_first() -> None:
        loop.run_until_complete(first())
        ran.pause()  # a thread that has ended would leave its identity to the next

    before = TestThread(run_first)
    ran.reached()
    port = handles[0]._port
    thread = TestThread(loop.run_until_complete, second())
    assert thread.result() == port.ident == thread.ident
    ran.open()
    before.result()
    loop.close()
    assert handles[0].cancelled()
    assert not port.is_current()


def test_a_handle_that_was_not_placed_is_nowhere() -> None:
    """It can be looked at and cancelled; the cancellation is found when it is started."""

    async def work() -> None:
        raise AssertionError("cancelled before it began")

    handle = TaskHandle(work(), "unplaced")
    assert handle.worker is NOWHERE
    assert repr(handle) == "<TaskHandle 'unplaced' pending on no loop>"
    assert handle.cancel("early")

    async def main() -> None:
        handle._start(current_port())
        with pytest.raises(asyncio.CancelledError, match="early"):
            await handle

    asyncio.run(main())


def test_a_guest_port_says_whose_loop_it_is() -> None:
    """By the name of the thread."""
    assert on_guest_loop(lambda: repr(current_port())) == "<GuestPort \"loop of thread 'MainThread'\">"
    assert isinstance(on_guest_loop(current_port), GuestPort)

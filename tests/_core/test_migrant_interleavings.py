"""Every order of a few wakers, cancellers, thieves and closers of migratable tasks, over the real code.

The workers are real, too, but for their loops: a thread of the scenario serves one by hand until nothing is left to do
there. So a wake-up that was lost shows as a task that is not done when nothing is queued any more. A task that two
threads step at once is told so by its coroutine, and fails.
"""

import asyncio
import contextlib
import contextvars
import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import pytest
from tests._core.test_selector import Tenant
from tests.helpers import equal, explore_for_longer

from polyloop import Lock, Queue, RuntimeClosedError, pinned, sleep
from polyloop._core import _crew, _prims
from polyloop._core._context import here
from polyloop._core._crew import Crew
from polyloop._core._driver import new_driver
from polyloop._core._errors import copy_exception
from polyloop._core._migrant import CHECKPOINT, MigrantWaiter, MigratableTask
from polyloop._core._overseer import Overseer
from polyloop._core._worker import Worker
from polyloop.queues import ChannelClosed, oneshot
from polyloop.testing import Interleaving, explore

#: Schedules in a test that is run all the time: all with one preemption where they are few. The stress test runs on.
SCHEDULES = 300

type Scenario = Callable[[Interleaving], None]


@pytest.fixture(autouse=True)
def timeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take no time, so that slices end by what is queued: a scenario has to do the same each time.

    Nobody oversees them.
    """
    monkeypatch.setattr(_crew, "_clock", lambda: 1)
    monkeypatch.setattr(Overseer, "call", _not_called)
    for exc in (asyncio.CancelledError(), refusal()):
        copy_exception(exc)  # remembers how, for each class


def _not_called(overseer: Overseer) -> None:
    """Instead of its thread."""


class Timer:
    """A callback for later, which may be called off."""

    def __init__(self, fn: Callable[[], object]) -> None:
        self._fn: Callable[[], object] | None = fn

    def __call__(self) -> None:
        if self._fn is not None:
            self._fn()

    def cancel(self) -> None:
        self._fn = None


class HandLoop:
    """As much of a loop as a future of asyncio needs: callbacks, which a thread of the scenario runs."""

    def __init__(self) -> None:
        self.ready: deque[Callable[[], object]] = deque()
        self.timers: deque[Timer] = deque()

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> "asyncio.Future[Any]":
        loop: Any = self
        return asyncio.Future(loop=loop)

    def call_later(self, delay: float, callback: Callable[[], object], *, context: contextvars.Context) -> Any:
        """A timer that goes off when ``ring`` is called, and is its own handle."""
        running: object = asyncio._get_running_loop()
        assert running is self, "a timer was set on the thread of another loop"
        timer = Timer(partial(context.run, callback))
        self.timers.append(timer)
        return timer

    def ring(self) -> None:
        """Let time pass for all timers."""
        while self.timers:
            self.ready.append(self.timers.popleft())

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise context["exception"]

    def call_soon(
        self, callback: Callable[..., object], *args: object, context: contextvars.Context | None = None
    ) -> None:
        running: object = asyncio._get_running_loop()
        assert running is self, "a future was touched on the thread of another loop"
        run = partial(callback, *args)
        self.ready.append(run if context is None else partial(context.run, run))


def refusal() -> RuntimeClosedError:
    return RuntimeClosedError("closed by the test")


class Hand(Worker):
    """A worker whose loop is run by hand, awake as long as there is something to do."""

    def __init__(self, index: int) -> None:
        super().__init__(f"hand-{index}", index)
        self.hands = HandLoop()
        loop: Any = self.hands
        self.loop = self.crew_member.loop = loop

    def future(self) -> "asyncio.Future[None]":
        """A future of this worker's loop."""
        return asyncio.Future(loop=self.loop)

    def drive(self) -> None:
        """Let a driver take the next step, as after several that have ended their tasks."""
        self.crew_member._drive = new_driver()

    @contextlib.contextmanager
    def held(self) -> Generator[None]:
        """This thread runs the loop."""
        self.ident = _prims.get_ident()
        port, here.port = here.port, self
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(loop)
            here.port = port

    def busy(self) -> bool:
        """Whether there is something to do here."""
        return bool(self.hands.ready or self.mailbox.items or self.runnable or self.bound)

    def run_ready(self) -> None:
        """Run the callbacks that are due. Within ``held``."""
        for _ in range(len(self.hands.ready)):
            self.hands.ready.popleft()()

    def work(self) -> None:
        """Turn the loop until nothing is left to do."""
        with self.held():
            while self.busy():
                self.run_ready()
                self.serve()

    def steal_and_work(self) -> None:
        """Take what waits at a peer, and do it."""
        with self.held():
            self.crew_member.steal()
        self.work()

    def die(self) -> None:
        """As ``Worker._die`` and ``Worker.bury``: the loop turns once more after the end."""
        self.crew_member.close(refusal())
        self.work()
        self.crew_member.close(refusal())
        self.mailbox.close()


class Ends:
    """A group of which tasks are children: counts their ends."""

    def __init__(self) -> None:
        self.ended: list[object] = []

    def _child_ended(self, handle: object) -> None:
        self.ended.append(handle)


class Scene:
    """Two workers of one crew, and their tasks."""

    def __init__(self) -> None:
        self.workers = (Hand(0), Hand(1))
        self.left, self.right = self.workers
        self.crew = Crew(self.workers)
        for worker in self.workers:
            worker.peers = self.workers
            worker.join(self.crew)
            worker.crew_member.loop = worker.loop
            worker.crew_member.pace.step_ns = 10**12  # worth stealing, each of them
            worker.drive()
        self.ends = Ends()
        self.tasks: list[MigratableTask[Any]] = []
        self.log: list[str] = []

    def task(self, body: Coroutine[Any, Any, object], on: Hand | None = None) -> MigratableTask[Any]:
        """A task that is queued, on the left unless said otherwise, and not begun."""
        task = MigratableTask(body)
        task._group = self.ends
        self.tasks.append(task)
        self.crew.start(task, self.left if on is None else on, stays=False)
        return task

    def parked(self, body: Coroutine[Any, Any, object]) -> MigratableTask[Any]:
        """One that has begun, on the left, and waits."""
        task = self.task(body)
        self.left.work()
        assert not task.done()
        return task

    def settle(self) -> None:
        """Turn the loops, one after the other, until nothing is left to do on any."""
        while any(worker.busy() for worker in self.workers):
            for worker in self.workers:
                worker.work()

    def check(self, *log: str) -> None:
        """All tasks have ended, each once, and noted one of ``log``."""
        self.settle()
        for task in self.tasks:
            assert task.done(), f"{task!r} was forgotten; it noted {self.log}"
            if not task.cancelled():
                exc = task.exception()
                assert exc is None or isinstance(exc, RuntimeClosedError), f"{task!r} failed; it noted {self.log}"
        assert sorted(map(id, self.ends.ended)) == sorted(map(id, self.tasks))
        if log:
            assert " ".join(self.log) in log
        assert not self.crew.tasks()


class Spot:
    """Where a task waits, once: its waiter is known before."""

    def __init__(self) -> None:
        self.waiter: MigrantWaiter | None = None

    def of(self, task: MigratableTask[Any]) -> None:
        self.waiter = task.waiter()

    def wake(self) -> None:
        assert self.waiter is not None
        self.waiter.wake()

    async def wait(self) -> None:
        assert self.waiter is not None
        await self.waiter
        assert self.waiter.woken, "a wait ended that nobody has ended"


def spots(scene: Scene, count: int, body: Callable[..., Coroutine[Any, Any, object]]) -> list[Spot]:
    """Places where the only task of ``scene``, which runs ``body(*spots)``, waits; it has not begun."""
    several = [Spot() for _ in range(count)]
    task = scene.task(body(*several))
    for spot in several:
        spot.of(task)
    return several


# Wakers


def a_wake_comes_while_the_task_parks(it: Interleaving) -> None:
    """It goes on, once."""
    scene = Scene()

    async def body(spot: Spot) -> None:
        await spot.wait()
        scene.log.append("woken")

    (spot,) = spots(scene, 1, body)
    it.thread(scene.left.work)
    it.thread(spot.wake)
    it.check(lambda: scene.check("woken"))


def two_wakers_wake_two_waits(it: Interleaving) -> None:
    """In any order, and the second before the task is there."""
    scene = Scene()

    async def body(first: Spot, second: Spot) -> None:
        await first.wait()
        scene.log.append("first")
        await second.wait()
        scene.log.append("second")

    first, second = spots(scene, 2, body)
    it.thread(scene.left.work)
    it.thread(first.wake)
    it.thread(second.wake)
    it.check(lambda: scene.check("first second"))


def two_wakers_wake_one_wait(it: Interleaving) -> None:
    """The task goes on once: a timer and the end of its loop may both wake a sleeper."""
    scene = Scene()

    async def body(first: Spot, second: Spot) -> None:
        await first.wait()
        scene.log.append("first")
        await second.wait()
        scene.log.append("second")

    def check() -> None:
        scene.settle()
        assert scene.log == ["first"]
        second.wake()
        scene.check("first second")

    first, second = spots(scene, 2, body)
    it.thread(scene.left.work)
    it.thread(first.wake)
    it.thread(first.wake)
    it.check(check)


def a_waker_of_the_crew_takes_the_task_over(it: Interleaving) -> None:
    """It is woken on another worker while it still parks: it goes on there, not on both."""
    scene = Scene()

    async def body(first: Spot, second: Spot) -> None:
        await first.wait()
        scene.log.append("first")
        await second.wait()
        scene.log.append("second")

    first, second = spots(scene, 2, body)

    def wake_and_work() -> None:
        with scene.right.held():
            first.wake()
            second.wake()
        scene.right.work()

    it.thread(scene.left.work)
    it.thread(wake_and_work)
    it.check(lambda: scene.check("first second"))


# Cancellers


async def cancelled_or_woken(scene: Scene, first: Spot, second: Spot) -> None:
    """What waits twice, and notes how each wait ended."""
    for spot, name in ((first, "first"), (second, "second")):
        try:
            await spot.wait()
        except asyncio.CancelledError:
            scene.log.append(f"cancelled-{name}")
        else:
            scene.log.append(name)


def one_cancellation_and_one_wake(it: Interleaving) -> None:
    """The cancellation is seen once, at the first wait or the second."""
    scene = Scene()
    first, second = spots(scene, 2, partial(cancelled_or_woken, scene))

    def check() -> None:
        scene.settle()
        second.wake()
        scene.check("cancelled-first second", "first cancelled-second", "")  # the last: before it has begun

    it.thread(scene.left.work)
    it.thread(first.wake)
    it.thread(scene.tasks[0].cancel)
    it.check(check)


def two_cancellations_and_a_wake(it: Interleaving) -> None:
    """Of two that come together one is seen, as with asyncio; the second wait is ended by the other, or is woken."""
    scene = Scene()
    first, second = spots(scene, 2, partial(cancelled_or_woken, scene))
    scene.left.work()

    def check() -> None:
        scene.settle()
        second.wake()
        scene.check("cancelled-first second", "first cancelled-second", "cancelled-first cancelled-second")

    def wake_and_work() -> None:
        first.wake()
        scene.left.work()

    it.thread(wake_and_work)
    it.thread(scene.tasks[0].cancel)
    it.thread(scene.tasks[0].cancel)
    it.check(check)


def a_late_waker_finds_the_token_of_a_later_wait(it: Interleaving) -> None:
    """The first wait is given up; its waker comes when the task waits for something else, which is not ended by that.

    Nor is the wake-up of the later one lost, which comes at the same moment.
    """
    scene = Scene()
    first, second = spots(scene, 2, partial(cancelled_or_woken, scene))
    scene.left.work()

    def cancel_and_work() -> None:
        scene.tasks[0].cancel()
        scene.left.work()

    it.thread(cancel_and_work)
    it.thread(first.wake)
    it.thread(second.wake)
    it.check(lambda: scene.check("cancelled-first second", "first cancelled-second"))


def a_late_canceller_finds_the_token_of_a_later_wait(it: Interleaving) -> None:
    """The cancellation was seen before its canceller looked for the token: it puts the later one back."""
    scene = Scene()
    first, second = spots(scene, 2, partial(cancelled_or_woken, scene))
    scene.left.work()

    def wake_and_work() -> None:
        first.wake()
        scene.left.work()

    def check() -> None:
        scene.settle()
        second.wake()
        scene.check("cancelled-first second", "first cancelled-second")

    it.thread(wake_and_work)
    it.thread(scene.tasks[0].cancel)
    it.check(check)


# Thieves


def a_task_is_cancelled_while_it_is_stolen(it: Interleaving) -> None:
    """Its thief sees the cancellation, or the victim does."""
    scene = Scene()
    first, second = spots(scene, 2, partial(cancelled_or_woken, scene))
    scene.left.work()
    first.wake()

    def check() -> None:
        scene.settle()
        second.wake()
        scene.check("cancelled-first second", "first cancelled-second")

    it.thread(scene.left.work)
    it.thread(scene.right.steal_and_work)
    it.thread(scene.tasks[0].cancel)
    it.check(check)


def two_tasks_are_stolen_while_their_owner_steps_them(it: Interleaving) -> None:
    """Each is stepped by one of the two."""
    scene = Scene()

    async def body(name: str) -> None:
        scene.log.append(name)

    scene.task(body("a"))
    scene.task(body("b"))
    it.thread(scene.left.work)
    it.thread(scene.right.steal_and_work)
    it.check(lambda: scene.check("a b", "b a"))


def a_task_that_is_pinned_is_not_stolen(it: Interleaving) -> None:
    """It goes on where it is, though a worker that is idle has woken it."""
    scene = Scene()

    async def body(first: Spot) -> None:
        async with pinned():
            await first.wait()
            scene.log.append(str(here.port))

    (first,) = spots(scene, 1, body)

    def wake_and_steal() -> None:
        with scene.right.held():
            first.wake()
        scene.right.steal_and_work()

    scene.left.work()
    it.thread(scene.left.work)
    it.thread(wake_and_steal)
    it.check(lambda: scene.check(str(scene.left)))


def a_task_is_let_go_while_it_is_woken(it: Interleaving) -> None:
    """A timer that it has set ends, on its loop, so that it may move; its waker sees it bound, or free."""
    scene = Scene()

    async def body(first: Spot) -> None:
        scene.tasks[0].attach()
        await first.wait()
        scene.log.append("woken")

    (first,) = spots(scene, 1, body)
    scene.left.work()

    def let_go() -> None:
        with scene.left.held():
            scene.tasks[0].detach()
        scene.left.work()

    def wake_and_work() -> None:
        with scene.right.held():
            first.wake()
        scene.right.work()

    it.thread(let_go)
    it.thread(wake_and_work)
    it.check(lambda: scene.check("woken"))


class Thief(Tenant):
    """A loop that finds something to steal when it looks again, after its sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.served = 0
        looks = iter([False, True])
        self.find = lambda: next(looks)

    def serve(self) -> None:
        """Count it."""
        self.served += 1


def test_sockets_that_were_found_are_returned_before_anything_is_stolen() -> None:
    """What is stolen may close them, and asyncio would take their events for those of new ones: see ``_selector``."""
    thief = Thief()
    near, far = socket.socketpair()
    with near, far, contextlib.closing(thief.selector):
        thief.selector.register(near, selectors.EVENT_READ)
        far.send(b"x")
        events = thief.selector.select(None)
        thief.selector.unregister(near)
    assert [key.fileobj for key, _ in events] == [near]
    assert thief.served == 0


# Futures of asyncio


def a_future_is_done_while_its_task_is_cancelled(it: Interleaving) -> None:
    """The cancellation is seen once: there, or at the next wait."""
    scene = Scene()
    future = scene.left.future()

    async def body(second: Spot) -> None:
        try:
            await future
        except asyncio.CancelledError:
            scene.log.append("cancelled-future")
        else:
            scene.log.append("future")
        try:
            await second.wait()
        except asyncio.CancelledError:
            scene.log.append("cancelled-second")
        else:
            scene.log.append("second")

    (second,) = spots(scene, 1, body)
    scene.left.work()

    def work() -> None:
        with scene.left.held():
            future.set_result(None)
        scene.left.work()

    def check() -> None:
        scene.settle()
        second.wake()
        scene.check("cancelled-future second", "future cancelled-second")

    it.thread(work)
    it.thread(scene.tasks[0].cancel)
    it.check(check)


async def first_then_future(scene: Scene, future: "asyncio.Future[None]", first: Spot, last: Spot) -> None:
    """Waits for three things, of which the second is a future."""
    for what, name in ((first.wait, "first"), (lambda: future, "future"), (last.wait, "last")):
        try:
            await what()
        except asyncio.CancelledError:
            scene.log.append(f"cancelled-{name}")
        else:
            scene.log.append(name)


def a_late_waker_finds_a_future(it: Interleaving) -> None:
    """The first wait was given up; its waker comes when the task awaits a future, which is done just then.

    The wake-up of the last wait must not be lost.
    """
    scene = Scene()
    future = scene.left.future()
    first, last = spots(scene, 2, partial(first_then_future, scene, future))
    scene.left.work()
    scene.tasks[0].cancel()
    scene.left.work()

    def work() -> None:
        with scene.left.held():
            future.set_result(None)
        scene.left.work()

    def check() -> None:
        scene.settle()
        last.wake()
        scene.check("cancelled-first future last")

    it.thread(work)
    it.thread(first.wake)
    it.check(check)


def a_late_canceller_finds_a_future(it: Interleaving) -> None:
    """The cancellation was seen before its canceller took the token of the future: the next one must arrive."""
    scene = Scene()
    future = scene.left.future()
    first, last = spots(scene, 2, partial(first_then_future, scene, future))
    scene.left.work()

    def wake_and_work() -> None:
        first.wake()
        scene.left.work()

    def check() -> None:
        scene.settle()
        if scene.log == ["cancelled-first"]:
            scene.tasks[0].cancel()
            scene.settle()
        last.wake()
        scene.check("cancelled-first cancelled-future last", "first cancelled-future last")

    it.thread(wake_and_work)
    it.thread(scene.tasks[0].cancel)
    it.check(check)


class Stubborn(asyncio.Future[None]):
    """As an asyncio task that swallows its first cancellations: it hears of each, and goes on."""

    asked = 0

    def cancel(self, msg: Any = None) -> bool:
        """Count it."""
        self.asked += 1
        return True


def test_what_a_task_awaits_hears_of_each_cancellation() -> None:
    """As with asyncio: a child that swallowed the first is cancelled again by the second."""
    scene = Scene()
    child = Stubborn(loop=scene.left.loop)

    async def body() -> None:
        await child

    task = scene.parked(body())
    for _ in range(2):
        task.cancel()
        scene.settle()
    asked = child.asked
    with scene.left.held():
        child.set_result(None)
    scene.check()
    assert asked == 2


def test_a_late_cancellation_is_not_delivered_on_another_loop() -> None:
    """The task has gone on, moved, and awaits another loop's future when the request comes to its old loop."""
    scene = Scene()
    left, right = scene.left.future(), scene.right.future()

    async def body(middle: Spot) -> None:
        for what in (lambda: left, middle.wait, lambda: right):
            with contextlib.suppress(asyncio.CancelledError):
                await what()

    (middle,) = spots(scene, 1, body)
    (task,) = scene.tasks
    scene.left.work()
    task.cancel()  # is in the left loop's mailbox
    with scene.left.held():
        left.set_result(None)
        scene.left.run_ready()  # sees the cancellation, and parks
    with scene.right.held():
        middle.wake()
    scene.right.work()
    assert task._fut_waiter is right
    task.cancel()  # is in the right loop's mailbox
    scene.left.work()  # raises, if it touches the future of the right loop
    scene.check()


# The end of a worker


def a_task_is_queued_on_a_worker_that_is_closed(it: Interleaving) -> None:
    """It goes to the other."""
    scene = Scene()

    async def body(first: Spot) -> None:
        await first.wait()
        scene.log.append("woken")

    (first,) = spots(scene, 1, body)
    scene.left.work()
    it.thread(first.wake)
    it.thread(scene.left.crew_member.close, refusal())
    it.check(lambda: scene.check("woken"))


def a_task_is_stolen_from_a_worker_that_is_closed(it: Interleaving) -> None:
    """It is the thief's, or is handed to it."""
    scene = Scene()

    async def body(first: Spot) -> None:
        await first.wait()
        scene.log.append("woken")

    (first,) = spots(scene, 1, body)
    scene.left.work()
    first.wake()
    it.thread(scene.right.steal_and_work)
    it.thread(scene.left.crew_member.close, refusal())
    it.check(lambda: scene.check("woken"))


def both_workers_are_closed(it: Interleaving) -> None:
    """Nobody is left to go to: what is queued is refused, by whoever finds that out."""
    scene = Scene()

    async def body(first: Spot) -> None:
        await first.wait()
        scene.log.append("woken")

    (first,) = spots(scene, 1, body)
    scene.left.work()
    it.thread(first.wake)
    it.thread(scene.left.crew_member.close, refusal())
    it.thread(scene.right.crew_member.close, refusal())
    it.check(lambda: scene.check(""))


def test_a_long_line_of_tasks_is_refused_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    """Each hands the lock to the next as it is closed, when no worker is left; nobody is forgotten."""
    scene = Scene()
    lock = Lock()
    lock.sync.acquire()

    async def body() -> None:
        async with lock:
            pass

    for _ in range(400):
        scene.parked(body())
    for worker in scene.workers:
        worker.crew_member.close(refusal())
    with caplog.at_level(logging.CRITICAL, "polyloop"):  # each complains that it raised while it was closed
        lock.sync.release()
    done = sum(task.done() for task in scene.tasks)
    scene.crew.forsake(refusal())
    assert done == len(scene.tasks)


def a_pinned_task_is_woken_while_its_worker_is_closed(it: Interleaving) -> None:
    """It is refused, once: by the closer, or by its waker."""
    scene = Scene()

    async def body(first: Spot) -> None:
        async with pinned():
            await first.wait()
            scene.log.append("woken")

    (first,) = spots(scene, 1, body)
    scene.left.work()
    it.thread(first.wake)
    it.thread(scene.left.crew_member.close, refusal())
    it.check(lambda: scene.check(""))


def a_task_that_awaits_a_future_is_cancelled_while_its_worker_dies(it: Interleaving) -> None:
    """It ends: its loop turns a last time, and whatever comes later finds that out."""
    scene = Scene()
    future = scene.left.future()

    async def body() -> None:
        await future

    task = scene.parked(body())

    it.thread(task.cancel)
    it.thread(scene.left.die)
    it.check(scene.check)


def closed_on_the_right(it: Interleaving, cleanup: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """A pinned task is woken by the end of another while its worker dies: it is closed where that one has ended."""
    scene = Scene()
    reported: list[BaseException] = []

    async def waker() -> None:
        scene.log.append("woken")

    async def body() -> None:
        try:
            async with pinned():
                await other
        finally:
            await cleanup()

    other = MigratableTask(waker())
    other._group = scene.ends
    scene.tasks.append(other)
    task = scene.parked(body())
    task._watched = True
    scene.crew.report = lambda task, exc: reported.append(exc)  # type: ignore[method-assign]
    scene.crew.start(other, scene.right, stays=True)

    def check() -> None:
        scene.settle()
        for worker in scene.workers:
            worker.hands.ring()
        scene.check("woken")
        assert not [exc for exc in reported if isinstance(exc, AssertionError)]  # a loop was touched by another thread

    it.thread(scene.left.die)
    it.thread(scene.right.work)
    it.check(check)


async def asks_for_its_cancellations() -> None:
    """As ``asyncio.timeout`` does at its end."""
    task = asyncio.current_task()
    assert task is not None
    task.cancelling()


@pytest.mark.parametrize("cleanup", [asks_for_its_cancellations, partial(sleep, 1)], ids=["cancelling", "sleep"])
def test_what_is_closed_on_another_worker_leaves_the_loops_alone(cleanup: Any) -> None:
    """At random: in which order a worker looks through the tasks of its crew depends on hashes."""
    result = explore(partial(closed_on_the_right, cleanup=cleanup), preemptions=2, seed=3, schedules=SCHEDULES)
    assert result.schedules > 1


def a_sleeper_is_cancelled_while_its_worker_dies(it: Interleaving) -> None:
    """The end of its loop wakes it early, to sleep on elsewhere; so it does unless it has seen the cancellation."""
    scene = Scene()

    async def body() -> None:
        for _ in range(2):
            try:
                await sleep(1)
            except asyncio.CancelledError:
                scene.log.append("cancelled")
            else:
                scene.log.append("awake")

    task = scene.parked(body())

    def check() -> None:
        for _ in range(2):
            scene.settle()
            scene.right.hands.ring()
        scene.check("cancelled awake", "awake cancelled")

    it.thread(task.cancel)
    it.thread(scene.left.die)
    it.check(check)


# The end of a crew


def a_task_starts_while_the_crew_is_forsaken(it: Interleaving) -> None:
    """It is refused, by whoever comes later."""
    scene = Scene()

    async def body() -> None:
        await task.waiter()

    task = MigratableTask(body())
    task._group = scene.ends
    scene.tasks.append(task)
    for worker in scene.workers:
        worker.crew_member.close(refusal())
    it.thread(partial(scene.crew.start, task, scene.left, stays=False))
    it.thread(scene.crew.forsake, refusal())
    it.check(lambda: scene.check(""))


def the_crew_ends_while_a_task_starts(it: Interleaving) -> None:
    """It is cancelled with the others, or by whoever starts it."""
    scene = Scene()

    async def body() -> None:
        await task.waiter()

    task = MigratableTask(body())
    task._group = scene.ends
    scene.tasks.append(task)

    def check() -> None:
        scene.check()
        assert task.cancelled()
        assert task.cancelling() == 1
        assert scene.crew.empty.done()

    it.thread(partial(scene.crew.start, task, scene.left, stays=False))
    it.thread(scene.crew.end)
    it.check(check)


def two_workers_end_the_crew(it: Interleaving) -> None:
    """Each winds down by itself; a task hears of it once, so its cleanup is not cut short by a second cancellation."""
    scene = Scene()

    async def body() -> None:
        try:
            await scene.tasks[0].waiter()
        finally:
            await CHECKPOINT
            scene.log.append("cleaned up")

    task = scene.parked(body())

    def check() -> None:
        scene.check()
        assert task.cancelled()
        assert task.cancelling() == 1
        assert scene.log == ["cleaned up"]
        assert scene.crew.empty.done()

    def end_and_work() -> None:
        scene.crew.end()
        scene.left.work()

    it.thread(scene.crew.end)
    it.thread(end_and_work)
    it.check(check)


def the_last_two_tasks_end_at_once(it: Interleaving) -> None:
    """One of the three who look finds nobody left, and says so once."""
    scene = Scene()

    async def body() -> None:
        scene.log.append("ran")

    scene.task(body())
    scene.task(body(), scene.right)
    told: list[object] = []
    scene.crew.empty._add_waiter(partial(told.append, None))

    def check() -> None:
        scene.check()
        assert scene.crew.empty.done()
        assert len(told) == 1

    it.thread(scene.left.work)
    it.thread(scene.right.work)
    it.thread(scene.crew.end)
    it.check(check)


def a_task_is_woken_while_the_crew_is_forsaken(it: Interleaving) -> None:
    """It is completed once, by whoever has it."""
    scene = Scene()

    async def body(first: Spot) -> None:
        await first.wait()
        scene.log.append("woken")

    (first,) = spots(scene, 1, body)
    scene.left.work()
    for worker in scene.workers:
        worker.crew_member.close(refusal())
    it.thread(first.wake)
    it.thread(scene.crew.forsake, refusal())
    it.check(lambda: scene.check(""))


def the_crew_is_forsaken_as_a_task_suspends(it: Interleaving) -> None:
    """On a thread that was taken for stuck, while somebody waits for the task: he is woken, and it is not.

    First it parks, then it awaits a future of the loop.
    """
    scene = Scene()
    told: list[object] = []

    async def body() -> None:
        await CHECKPOINT
        await task.waiter()

    async def with_future() -> None:
        await CHECKPOINT
        await scene.left.future()

    task = scene.task(body())
    other = scene.task(with_future())
    for each in (task, other):
        each._add_waiter(partial(told.append, each))

    def check() -> None:
        scene.check("")
        assert told in ([task, other], [other, task])

    it.thread(scene.left.work)
    it.thread(scene.crew.forsake, refusal())
    it.check(check)


# With the loops of others


class Sleeper(Hand):
    """A worker that sleeps when it has nothing to do, as the selector does."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.bell = threading.Semaphore(0)

    def _wake(self) -> None:
        self.bell.release()

    def work_until(self, done: Callable[[], bool]) -> None:
        """Turn the loop until ``done()``, which only changes here."""
        while not done():
            if self.busy():
                self.work()
                continue
            tokens = self.mailbox.tokens
            tokens.append(None)
            if not self.busy():
                self.bell.acquire()
                continue
            try:
                tokens.pop()
            except IndexError:
                self.bell.acquire()


def alone(body: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Sleeper, MigratableTask[Any]]:
    """A worker that sleeps, and a task on it."""
    worker = Sleeper(0)
    crew = worker.crew
    assert crew is not None
    task = MigratableTask(body())
    task._watched = True
    crew.start(task, worker, stays=False)
    return worker, task


def expect(condition: object, *seen: object) -> None:
    assert condition, seen


def a_loop_of_asyncio_feeds_a_task_and_awaits_it(it: Interleaving) -> None:
    """Both sides wait for each other, across threads; both come to their end."""
    questions, answers = Queue[int](), Queue[int]()

    async def answer() -> None:
        await answers.put(await questions.get() + 1)

    worker, task = alone(answer)

    async def ask() -> int:
        await questions.put(1)
        answer = await answers.get()
        await task
        return answer

    asker = it.coroutine(ask)
    it.thread(worker.work_until, task.done)
    it.check(lambda: expect(asker.result() == 2, asker))


def a_task_and_a_coroutine_get_from_one_queue(it: Interleaving) -> None:
    """The task may be cancelled: the item that it was woken for goes to the other."""
    queue = Queue[int]()
    got: list[int] = []  # noted at once: a cancellation may come when the item is got, and the task has yet to return

    async def get() -> None:
        got.append(await queue.get())

    worker, task = alone(get)
    it.coroutine(get, name="other")

    def feed_and_cancel() -> None:
        queue.put_nowait(1)
        task.cancel()
        queue.put_nowait(2)

    it.thread(worker.work_until, task.done)
    it.thread(feed_and_cancel)
    it.check(lambda: equal(sorted([*got, *queue.get_many_nowait(9)]), [1, 2]))


def the_awaiter_of_a_task_is_cancelled_as_it_ends(it: Interleaving) -> None:
    """The request goes to the task; if it ended without having seen it, the awaiter is cancelled, as with asyncio."""

    async def body() -> int:
        return 1

    worker, task = alone(body)
    asked: list[int] = []

    async def wait() -> None:
        me = asyncio.current_task()
        assert me is not None
        try:
            await task
        finally:
            asked.append(me.cancelling())

    waiter = it.coroutine(wait)
    it.thread(worker.work_until, task.done)
    it.thread(waiter.cancel)
    it.check(lambda: expect(waiter.cancelled() or asked == [0], asked))


def test_what_one_task_is_thrown_is_not_thrown_into_the_next() -> None:
    """Several steps are taken in one go, each with what is its own."""
    scene = Scene()

    async def swallows() -> None:
        try:
            await scene.tasks[0].waiter()
        except asyncio.CancelledError:
            scene.log.append("cancelled")

    async def goes_on() -> None:
        await CHECKPOINT
        scene.log.append("went on")

    first = scene.parked(swallows())
    scene.task(goes_on())
    scene.task(goes_on())
    first.cancel()
    member = scene.left.crew_member
    member.runnable.rotate(1)  # the cancelled one, which was queued last, is the first
    assert member.runnable[0] is first
    assert member._run_some(member.runnable, 8) == 5
    assert scene.log == ["cancelled", "went on", "went on"]


def one_of_two_tasks_that_await_a_oneshot_is_cancelled(it: Interleaving) -> None:
    """Which is sent at that moment, from elsewhere: the other has the value, or hears that it is gone."""
    scene = Scene()
    sender, receiver = oneshot[int]()

    async def body() -> None:
        try:
            scene.log.append(f"got {await receiver}")
        except ChannelClosed:
            scene.log.append("gone")
        except asyncio.CancelledError:
            scene.log.append("cancelled")

    scene.parked(body())
    doomed = scene.task(body())

    def check() -> None:
        scene.settle()
        assert all(task.done() for task in scene.tasks)
        # A cancellation may find it before it has begun.
        assert sorted(scene.log) in (["cancelled", "got 1"], ["gone", "got 1"], ["got 1"])
        assert not receiver._line
        receiver.close()

    it.thread(scene.left.work)
    it.thread(sender.send, 1)
    it.thread(doomed.cancel)
    it.check(check)


def a_task_gets_a_name_while_it_is_shown(it: Interleaving) -> None:
    """The name stays, whoever looks for the one that it had before."""
    scene = Scene()

    async def body() -> None:
        scene.log.append("done")

    task = scene.task(body())

    def check() -> None:
        scene.check("done")
        assert task.name == "new"

    it.thread(partial(task.set_name, "new"))
    it.thread(partial(repr, task))
    it.check(check)


SCENARIOS: list[Scenario] = [
    a_wake_comes_while_the_task_parks,
    two_wakers_wake_two_waits,
    two_wakers_wake_one_wait,
    a_waker_of_the_crew_takes_the_task_over,
    one_cancellation_and_one_wake,
    two_cancellations_and_a_wake,
    a_late_waker_finds_the_token_of_a_later_wait,
    a_late_canceller_finds_the_token_of_a_later_wait,
    a_task_is_cancelled_while_it_is_stolen,
    two_tasks_are_stolen_while_their_owner_steps_them,
    a_task_that_is_pinned_is_not_stolen,
    a_task_is_let_go_while_it_is_woken,
    a_future_is_done_while_its_task_is_cancelled,
    a_late_waker_finds_a_future,
    a_late_canceller_finds_a_future,
    a_task_is_queued_on_a_worker_that_is_closed,
    a_task_is_stolen_from_a_worker_that_is_closed,
    both_workers_are_closed,
    a_pinned_task_is_woken_while_its_worker_is_closed,
    a_task_that_awaits_a_future_is_cancelled_while_its_worker_dies,
    a_sleeper_is_cancelled_while_its_worker_dies,
    a_task_starts_while_the_crew_is_forsaken,
    the_crew_ends_while_a_task_starts,
    two_workers_end_the_crew,
    the_last_two_tasks_end_at_once,
    a_task_is_woken_while_the_crew_is_forsaken,
    the_crew_is_forsaken_as_a_task_suspends,
    a_loop_of_asyncio_feeds_a_task_and_awaits_it,
    a_task_and_a_coroutine_get_from_one_queue,
    the_awaiter_of_a_task_is_cancelled_as_it_ends,
    one_of_two_tasks_that_await_a_oneshot_is_cancelled,
    a_task_gets_a_name_while_it_is_shown,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_nobody_is_lost_or_stepped_twice(scenario: Scenario) -> None:
    """In every order with one preemption, and in many with two."""
    result = explore(scenario, preemptions=2, schedules=SCHEDULES)
    print(result)
    assert result.schedules > 1


@pytest.mark.stress
def test_nobody_is_lost_in_many_more_orders(seed: int, seconds: float) -> None:
    """The same, systematically and then at random, for as long as asked."""
    explore_for_longer({s.__name__: s for s in SCENARIOS}, seed, seconds)

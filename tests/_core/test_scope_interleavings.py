"""Every order of a wait on a thread, its wake-up and the cancellation of its scope, over the real code."""

import asyncio
from collections.abc import Callable

import pytest

from polyloop import Condition, Event, Lock, Queue, Semaphore
from polyloop._core._context import here
from polyloop._core._scope import Scope
from polyloop.testing import Interleaving, explore


def in_turn(*steps: Callable[[], object]) -> Callable[[], None]:
    """One after the other."""

    def run() -> None:
        for step in steps:
            step()

    return run


def in_scope(scope: Scope, wait: Callable[[], object]) -> Callable[[], bool]:
    """Wait as an offloaded call does; whether it got what it waited for."""

    def run() -> bool:
        here.scope = scope
        try:
            wait()
        except asyncio.CancelledError:
            assert scope.cancelled
            return False
        finally:
            here.scope = None
        return True

    return run


def check(it: Interleaving, thread: object, holds: Callable[[bool], None]) -> None:
    it.check(lambda: holds(thread.result()))  # type: ignore[attr-defined]


def an_item(it: Interleaving) -> None:
    """It is got, or still there."""
    queue, scope = Queue[int](), Scope()
    getter = it.thread(in_scope(scope, queue.sync.get), name="getter")
    it.thread(scope.cancel, name="canceller")
    it.thread(lambda: queue.sync.put(1), name="putter")

    def holds(got: bool) -> None:
        assert (queue.qsize(), len(queue._getters)) == (int(not got), 0)

    check(it, getter, holds)


def an_item_for_two(it: Interleaving) -> None:
    """A wake-up that a cancelled getter takes with it is passed on."""
    queue, scope = Queue[int](), Scope()
    it.thread(in_scope(scope, queue.sync.get), name="doomed")
    other = it.thread(lambda: queue.sync.get(), name="other")
    it.thread(in_turn(lambda: queue.sync.put(1), scope.cancel, lambda: queue.sync.put(2)), name="putter")
    it.check(lambda: other.result() in {1, 2} or pytest.fail("nothing was got"))


def a_lock(it: Interleaving) -> None:
    """It is held, or free: never held by nobody."""
    lock, scope = Lock(), Scope()
    assert lock.sync.acquire()
    waiter = it.thread(in_scope(scope, lock.sync.acquire), name="waiter")
    it.thread(scope.cancel, name="canceller")
    it.thread(lock.release, name="holder")

    def holds(got: bool) -> None:
        assert lock.locked() == got

    check(it, waiter, holds)


def a_permit(it: Interleaving) -> None:
    """It is not lost."""
    permits, scope = Semaphore(0), Scope()
    waiter = it.thread(in_scope(scope, permits.sync.acquire), name="waiter")
    it.thread(in_turn(scope.cancel, permits.release), name="canceller")

    def holds(got: bool) -> None:
        assert permits.value == int(not got)

    check(it, waiter, holds)


def a_notification(it: Interleaving) -> None:
    """The lock is held again, and a notification that came with the cancellation goes to the next."""
    condition, scope = Condition(), Scope()
    notified: list[str] = []

    def wait(name: str) -> None:
        with condition.sync:
            condition.sync.wait()
            notified.append(name)

    def notify() -> None:
        while not notified:
            with condition.sync:
                condition.sync.notify()
                if notified or not condition._line:
                    return

    doomed = it.thread(in_scope(scope, lambda: wait("doomed")), name="doomed")
    it.thread(in_turn(scope.cancel, notify), name="canceller")

    def holds(got: bool) -> None:
        assert (not condition.locked(), len(condition._line)) == (True, 0)
        assert got == bool(notified)

    check(it, doomed, holds)


def a_flag(it: Interleaving) -> None:
    """Whoever waited has left the line."""
    event, scope = Event(), Scope()
    waiter = it.thread(in_scope(scope, event.sync.wait), name="waiter")
    it.thread(in_turn(scope.cancel, event.set), name="canceller")

    def holds(got: bool) -> None:
        assert not event._line

    check(it, waiter, holds)


def a_promise(it: Interleaving) -> None:
    """Whoever is found asleep raises, though its own wake-up comes at that moment: nobody need interrupt it."""
    event, scope = Event(), Scope()
    waiter = it.thread(in_scope(scope, event.sync.wait), name="waiter")
    canceller = it.thread(scope.cancel, name="canceller")
    it.thread(event.set, name="setter")

    def holds(got: bool) -> None:
        assert not (got and canceller.result()), "it went on, and nobody will tell it again"

    check(it, waiter, holds)


@pytest.mark.parametrize("scenario", [an_item, an_item_for_two, a_lock, a_permit, a_notification, a_flag, a_promise])
def test_nothing_is_lost_between_a_wake_up_and_a_cancellation(scenario: Callable[[Interleaving], None]) -> None:
    """With every order of few preemptions."""
    explore(scenario, preemptions=2, schedules=400)

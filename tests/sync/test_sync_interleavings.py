"""Every order of a few acquires, releases, notifications, cancellations and timeouts, over the real code."""

from collections.abc import Callable

import pytest
from tests.helpers import equal, explore_for_longer

from polyloop import BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore
from polyloop.testing import Interleaving, explore

#: Schedules in a test that is run all the time: all with one preemption where they are few. The stress test runs on.
SCHEDULES = 250


class Room:
    """Says when more are inside than may be."""

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self.inside = 0
        self.entered = 0

    def visit(self) -> None:
        self.inside += 1  # exact where most is 1, and that is the question
        assert self.inside <= self.most
        self.entered += 1
        self.inside -= 1


def lock_with_a_cancelled_waiter(it: Interleaving) -> None:
    """One is inside at a time, and a lock that was handed to the cancelled one goes on."""
    lock, room = Lock(), Room()

    def hold() -> None:
        with lock.sync:
            room.visit()

    async def hold_on_loop() -> None:
        async with lock:
            room.visit()

    doomed = it.coroutine(hold_on_loop, name="doomed")

    def hold_and_cancel() -> None:
        with lock.sync:
            room.visit()
            doomed.cancel()

    it.thread(hold)
    it.thread(hold_and_cancel)
    it.check(lambda: equal((room.entered, lock.locked()), (2 + (not doomed.cancelled()), False)))


def lock_that_is_not_got_in_time(it: Interleaving) -> None:
    """A lock that comes at the end of the time is held, or goes to the next."""
    lock, room = Lock(), Room()
    missed: list[int] = []

    def impatient() -> None:
        if lock.sync.acquire(timeout=1):
            room.visit()
            lock.release()
        else:
            missed.append(1)

    async def patient() -> None:
        async with lock:
            room.visit()

    it.thread(impatient)
    it.coroutine(patient)
    it.coroutine(patient)
    it.check(lambda: equal((room.entered + len(missed), lock.locked()), (3, False)))


def rlock_with_a_cancelled_waiter(it: Interleaving) -> None:
    """Taken twice, it is given on once, when both are undone."""
    lock, room = RLock(), Room()

    async def hold_on_loop() -> None:
        async with lock, lock:
            room.visit()

    doomed = it.coroutine(hold_on_loop, name="doomed")

    def hold() -> None:
        face = lock.sync
        with face, face:
            room.visit()
            doomed.cancel()

    it.thread(hold)
    it.coroutine(hold_on_loop, name="other")
    it.check(lambda: equal((room.entered, lock.locked()), (2 + (not doomed.cancelled()), False)))


def semaphore(make: Callable[[int], Semaphore]) -> Callable[[Interleaving], None]:
    def scenario(it: Interleaving) -> None:
        """A permit that a cancelled or late one was given is not lost."""
        permits = make(1)
        missed: list[int] = []

        async def use() -> None:
            async with permits:
                pass

        doomed = it.coroutine(use, name="doomed")

        def impatient() -> None:
            if permits.sync.acquire(timeout=1):
                doomed.cancel()
                permits.release()
            else:
                missed.append(1)

        it.thread(impatient)
        it.thread(lambda: [permits.sync.acquire(), permits.release()], name="patient")  # type: ignore[func-returns-value]
        it.check(lambda: equal(permits.value, 1))

    return scenario


def release_of_several(it: Interleaving) -> None:
    """Permits that are released together wake as many."""
    permits = Semaphore(0)
    it.thread(permits.sync.acquire)
    it.coroutine(permits.acquire)
    it.thread(permits.release, 2)
    it.check(lambda: equal(permits.value, 0))


def event_that_is_set_for_a_moment(it: Interleaving) -> None:
    """Who waited when it was set goes on, though it is cleared at once; who comes later is woken by the next."""
    event = Event()
    it.thread(event.sync.wait)
    it.coroutine(event.wait)

    def flash() -> None:
        event.set()
        event.clear()
        event.set()

    it.thread(flash)
    it.check(lambda: equal((event.is_set(), len(event._line)), (True, 0)))


def event_with_one_that_is_cancelled(it: Interleaving) -> None:
    """It leaves nothing behind, and takes nobody's wake-up."""
    event = Event()
    doomed = it.coroutine(event.wait)
    patient = it.thread(event.sync.wait)

    def end() -> None:
        doomed.cancel()
        event.set()

    it.thread(end)
    it.check(lambda: equal((patient.result(), len(event._line)), (True, 0)))


def event_with_one_that_is_out_of_time(it: Interleaving) -> None:
    """The same."""
    event = Event()
    it.thread(event.sync.wait, 1)
    patient = it.coroutine(event.wait)
    it.thread(event.set)
    it.check(lambda: equal((patient.result(), len(event._line)), (True, 0)))


class Tokens:
    """What a condition guards: so many tokens to be taken, with a notification for each."""

    def __init__(self) -> None:
        self.condition = Condition(Lock())
        self.count = 0

    def add(self) -> None:
        with self.condition.sync:
            self.count += 1
            self.condition.notify()

    def take(self, timeout: float | None = None) -> bool:
        with self.condition.sync:
            while not self.count:
                if not self.condition.sync.wait(timeout) and not self.count:
                    return False
            self.count -= 1
            return True

    async def take_on_loop(self) -> None:
        async with self.condition:
            while not self.count:
                await self.condition.wait()
            self.count -= 1


def notification_for_one_that_is_cancelled(it: Interleaving) -> None:
    """It goes to the other, so that the token is taken."""
    tokens = Tokens()
    doomed = it.coroutine(tokens.take_on_loop, name="doomed")
    other = it.thread(tokens.take, name="other")

    def feed() -> None:
        tokens.add()
        doomed.cancel()
        tokens.add()

    it.thread(feed)
    it.check(lambda: equal((other.result(), tokens.count), (True, int(doomed.cancelled()))))


def notification_for_one_that_is_out_of_time(it: Interleaving) -> None:
    """It is taken, or goes to the other."""
    tokens = Tokens()
    impatient = it.thread(tokens.take, 1, name="impatient")
    it.coroutine(tokens.take_on_loop)

    def feed() -> None:
        tokens.add()
        tokens.add()

    it.thread(feed)
    it.check(lambda: equal((tokens.count, len(tokens.condition._line)), (int(not impatient.result()), 0)))


SCENARIOS: dict[str, Callable[[Interleaving], None]] = {
    "lock, cancelled": lock_with_a_cancelled_waiter,
    "lock, timed": lock_that_is_not_got_in_time,
    "rlock, cancelled": rlock_with_a_cancelled_waiter,
    "semaphore": semaphore(Semaphore),
    "bounded semaphore": semaphore(BoundedSemaphore),
    "several permits": release_of_several,
    "event, flashed": event_that_is_set_for_a_moment,
    "event, cancelled": event_with_one_that_is_cancelled,
    "event, timed": event_with_one_that_is_out_of_time,
    "condition, cancelled": notification_for_one_that_is_cancelled,
    "condition, timed": notification_for_one_that_is_out_of_time,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_wake_up_is_lost_in_any_order(name: str) -> None:
    """The simplest orders first: without a preemption, with one, with two."""
    assert explore(SCENARIOS[name], preemptions=2, schedules=SCHEDULES).schedules > 1


@pytest.mark.stress
def test_no_wake_up_is_lost_in_any_order_for_longer(seed: int, seconds: float) -> None:
    """Two preemptions in all orders as far as time allows, and many at random."""
    explore_for_longer(SCENARIOS, seed, seconds)

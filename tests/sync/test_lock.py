"""``Lock`` and ``RLock`` between loops, trio and threads: turns, owners, cancellation and time."""

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable

import pytest
import trio
import trio.testing
from tests.helpers import cancel_amid, in_trio, one_of_three_is_cancelled, park_on_a_dead_loop, queue_up, until
from tests.sync.races import race, short_and_long, tiny

from polyloop import BlockingCallError, DeadlockError, Lock, RLock
from polyloop.testing import Interleaving, TestLoop, TestThread, explore

KINDS = [Lock, RLock]


def waiting(lock: Lock | RLock) -> int:
    return len(lock._permits.line)


@pytest.fixture(params=KINDS)
def lock(request: pytest.FixtureRequest) -> Lock | RLock:
    """A lock of each kind."""
    made: Lock | RLock = request.param()
    return made


class Holder:
    """A thread that holds a lock until it is told."""

    def __init__(self, lock: Lock | RLock) -> None:
        self._lock = lock
        self._held = threading.Event()
        self._go = threading.Event()
        self._thread = TestThread(self._hold)
        assert self._held.wait(20)

    def _hold(self) -> None:
        with self._lock.sync:
            self._held.set()
            assert self._go.wait(20)

    def release(self) -> None:
        self._go.set()
        self._thread.result()


# Turns


def test_tasks_of_all_loops_and_threads_take_turns(left: TestLoop, right: TestLoop, lock: Lock | RLock) -> None:
    """In the order they came, trio's tasks too."""
    holder = Holder(lock)
    order: list[int] = []

    async def task(number: int) -> None:
        async with lock:
            order.append(number)

    def thread(number: int) -> None:
        with lock.sync:
            order.append(number)

    pending = queue_up(left, right, task, thread, lambda: waiting(lock))
    assert lock.locked()
    assert f"[locked, waiters:{len(pending)}]>" in repr(lock)
    holder.release()
    for one in pending:
        one.result()
    assert order == list(range(8))
    assert not lock.locked()
    assert repr(lock).endswith("[unlocked]>")


def test_a_newcomer_does_not_overtake(left: TestLoop, lock: Lock | RLock) -> None:
    """A lock that was handed over is not free, though its new holder has not run yet."""
    holder = Holder(lock)

    async def task() -> None:
        async with lock:
            pass

    waiter = left.spawn(task)
    left.wait_all_blocked()
    with left.paused():
        holder.release()
        assert lock.locked()
        assert not lock.acquire_nowait()
        assert not lock.sync.acquire(blocking=False)
        assert not lock.sync.acquire(timeout=0.01)
        assert lock.sync.locked()
    waiter.result()
    assert not lock.locked()


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_a_cancelled_waiter_passes_the_lock_on(
    left: TestLoop, right: TestLoop, lock: Lock | RLock, cancelled_first: bool
) -> None:
    """Handed over and cancelled before it can run, in either order: it ends cancelled, the next has the lock."""
    holder = Holder(lock)

    async def task() -> None:
        async with lock:
            pass

    doomed = left.spawn(task)
    left.wait_all_blocked()
    following = right.spawn(task)
    right.wait_all_blocked()
    cancel_amid(left, doomed, holder.release, cancelled_first)
    following.result()
    assert (lock.locked(), waiting(lock)) == (False, 0)


def test_a_cancelled_trio_task_does_not_hold_the_lock(lock: Lock | RLock) -> None:
    """Its own cancellation, also one that comes with the lock."""
    holder = Holder(lock)

    async def main() -> bool:
        with trio.move_on_after(0.01) as scope:
            async with lock:
                pass
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lock.acquire)
                await trio.testing.wait_all_tasks_blocked()
                holder.release()  # the wake-up is under way to this thread
                scope.cancel()
        return lock.locked()

    in_trio(main).result()
    until(lambda: not lock.locked())
    assert waiting(lock) == 0


def test_a_waiter_of_a_dead_loop_is_skipped(lock: Lock | RLock) -> None:
    """The next has the lock, or it is free."""
    holder = Holder(lock)
    parked = [park_on_a_dead_loop(lock.acquire) for _ in range(2)]

    def use() -> None:
        with lock.sync:
            pass

    thread = TestThread(use)
    until(lambda: waiting(lock) == 3)
    holder.release()
    thread.result()
    assert (lock.locked(), waiting(lock)) == (False, 0)
    for one in parked:
        one.close()
    assert len(lock._permits.free) == 1


def test_a_waiter_that_is_closed_takes_no_lock_with_it(lock: Lock | RLock) -> None:
    """Its task was destroyed: a ``GeneratorExit`` is no cancellation."""

    async def main() -> None:
        holder = Holder(lock)
        parked = [lock.acquire(), lock.acquire()]
        for one in parked:
            one.send(None)
        parked[0].close()
        assert waiting(lock) == 1
        holder.release()
        assert lock.locked()  # handed to the second, which is closed before it runs
        parked[1].close()
        assert not lock.locked()

    asyncio.run(main())


# The face for threads


def test_a_wait_of_a_thread_can_be_limited(lock: Lock | RLock) -> None:
    """Out of time it does not hold the lock, and is out of the line; with time it gets it."""
    holder = Holder(lock)
    began = time.monotonic()
    assert not lock.sync.acquire(timeout=0.02)
    assert time.monotonic() - began >= 0.02
    assert not lock.sync.acquire(timeout=0)
    assert waiting(lock) == 0

    def patient() -> bool:
        taken = lock.sync.acquire(True, None)
        lock.sync.release()
        return taken

    thread = TestThread(patient)
    until(lambda: waiting(lock) == 1)
    holder.release()
    assert thread.result()
    assert not lock.locked()


@pytest.mark.parametrize(("blocking", "timeout"), [(False, 1.0), (True, -2.0), (True, math.nan)])
def test_a_timeout_that_makes_no_sense_is_refused(lock: Lock | RLock, blocking: bool, timeout: float) -> None:
    """As ``threading`` refuses it."""
    with pytest.raises(ValueError, match="timeout"):
        lock.sync.acquire(blocking, timeout)
    with pytest.raises(OverflowError, match="too large"):
        lock.sync.acquire(timeout=1e30)
    assert not lock.locked()


def test_a_loop_is_not_blocked(left: TestLoop, lock: Lock | RLock) -> None:
    """A call that would have to wait is refused, and names the awaitable twin; others are not."""
    holder = Holder(lock)

    async def on_a_loop() -> None:
        with pytest.raises(BlockingCallError, match=r"'left'; use 'await r?lock.acquire\(\)'"):
            lock.sync.acquire()
        with pytest.raises(BlockingCallError), lock.sync:
            pass
        assert not lock.sync.acquire(blocking=False)
        assert waiting(lock) == 0

    async def free() -> None:
        with lock.sync:
            assert lock.locked()

    left.run(on_a_loop)
    in_trio_thread = in_trio(on_trio, lock)
    assert in_trio_thread.result()
    holder.release()
    left.run(free)
    assert not lock.locked()


async def on_trio(lock: Lock | RLock) -> bool:
    with pytest.raises(BlockingCallError, match="'trio'"):
        lock.sync.acquire()
    return True


# Owners


def test_a_lock_may_be_released_by_another(left: TestLoop) -> None:
    """As asyncio's and threading's; what nobody holds is not released."""
    lock = Lock()
    assert left.run(lock.acquire)
    lock.sync.release()
    TestThread(lock.sync.acquire).result()
    left.run(lock.release)
    with pytest.raises(RuntimeError, match="Lock is not acquired"):
        lock.release()
    assert not lock.locked()


def test_who_would_wait_for_itself_is_told(left: TestLoop) -> None:
    """At once, on both faces and in trio; with a limit of time, it waits."""
    lock = Lock()

    async def task() -> None:
        async with lock:
            with pytest.raises(DeadlockError, match=r"await lock.acquire\(\) would wait for its own caller"):
                await lock.acquire()
            with pytest.raises(DeadlockError, match=r"release it first, or use polyloop\.RLock"):
                async with lock:
                    pass
            assert not lock.acquire_nowait()

    left.run(task)
    in_trio(task).result()
    with lock.sync:
        with pytest.raises(DeadlockError, match=r"lock.sync.acquire\(\)"):
            lock.sync.acquire()
        with pytest.raises(DeadlockError), lock.sync:
            pass
        assert not lock.sync.acquire(timeout=0.001)
    assert (lock.locked(), waiting(lock)) == (False, 0)


def test_a_thread_with_the_identity_of_a_dead_one_is_somebody_else() -> None:
    """Identities of threads are reused: who waits for what a dead thread took does not wait for itself."""
    for _ in range(10):
        lock = Lock()
        TestThread(lock.sync.acquire).result()
        thread = TestThread(lock.sync.acquire)
        until(lambda lock=lock: waiting(lock) == 1)  # type: ignore[misc]
        lock.release()
        assert thread.result()


def test_a_task_with_the_identity_of_a_dead_one_is_somebody_else() -> None:
    """As threads; and it does not own the dead one's ``RLock``."""

    async def main() -> None:
        lock, rlock = Lock(), RLock()

        async def take() -> None:
            await lock.acquire()
            await rlock.acquire()

        async def want() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await lock.acquire()
            assert not rlock.acquire_nowait()
            with pytest.raises(RuntimeError):
                rlock.release()

        await asyncio.create_task(take())
        for _ in range(20):
            await asyncio.create_task(want())

    asyncio.run(main())


def test_an_rlock_is_its_holders_as_often_as_it_likes(left: TestLoop) -> None:
    """And nobody else's, on the same loop or thread or not, until it was released as often."""
    lock = RLock()

    async def task() -> None:
        async with lock, lock:
            with lock.sync:
                assert lock.acquire_nowait()
                lock.release()
            assert not await asyncio.create_task(asyncio.to_thread(lock.sync.acquire, False))

            async def other() -> bool:
                with pytest.raises(RuntimeError, match="cannot release un-acquired lock"):
                    lock.release()
                return lock.acquire_nowait()

            assert not await asyncio.create_task(other())
        with pytest.raises(RuntimeError):
            lock.release()

    left.run(task)
    in_trio(trio_task, lock).result()
    with lock.sync, lock.sync:
        assert not TestThread(lock.acquire_nowait).result()
        with pytest.raises(RuntimeError):
            TestThread(lock.sync.release).result()
        lock.sync.release()
        assert lock.sync.acquire()
    assert not lock.locked()


async def trio_task(lock: RLock) -> None:
    async with lock, lock:
        assert not TestThread(lock.sync.acquire, False).result()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other_trio_task, lock)


async def other_trio_task(lock: RLock) -> None:
    assert not lock.acquire_nowait()


def test_the_faces_are_shown(lock: Lock | RLock) -> None:
    """With what they are the face of."""
    assert repr(lock.sync) == f"<sync face of {lock!r}>"


# All interleavings, and random ones


@pytest.mark.parametrize("kind", KINDS)
def test_one_at_a_time_in_every_order(kind: type[Lock | RLock]) -> None:
    """A task and two threads, of which one gives up at some time."""

    def scenario(it: Interleaving) -> None:
        lock = kind()
        inside: list[int] = []

        def use() -> None:
            inside.append(1)
            assert inside == [1]
            inside.pop()

        async def task() -> None:
            async with lock:
                use()

        def thread() -> None:
            with lock.sync:
                use()

        def impatient() -> None:
            if lock.sync.acquire(timeout=1):
                use()
                lock.sync.release()

        it.coroutine(task)
        it.thread(thread)
        it.thread(impatient)

        def check() -> None:
            assert (lock.locked(), waiting(lock)) == (False, 0)

        it.check(check)

    explore(scenario, preemptions=1, schedules=800)
    explore(scenario, seed=2, schedules=80)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancellation_at_any_moment_loses_no_lock(kind: Callable[[], Lock | RLock]) -> None:
    """Between two others: whether it had the lock or not, the last one gets it."""

    def free(lock: Lock | RLock) -> bool:
        return not lock.locked() and not waiting(lock)

    scenario = one_of_three_is_cancelled(kind, lambda lock: (lock, lock.sync), free)
    explore(scenario, preemptions=1, schedules=800)
    explore(scenario, seed=2, schedules=80)


@short_and_long
def test_the_lock_is_not_lost_in_a_random_race(lock: Lock | RLock, rng: random.Random, seconds: float) -> None:
    """Tasks and threads that take it, or give up, at random."""
    inside = served = 0  # guarded by the lock under test

    def use() -> None:
        nonlocal inside, served
        inside += 1
        served += 1
        assert inside == 1
        inside -= 1

    async def task(own: random.Random) -> None:
        async with lock:
            use()
            await asyncio.sleep(0)

    def thread(own: random.Random) -> None:
        if lock.sync.acquire(timeout=tiny(own)):
            use()
            lock.sync.release()

    race(rng, seconds, task, [thread] * 2)
    assert (lock.locked(), waiting(lock)) == (False, 0)
    assert served > 100

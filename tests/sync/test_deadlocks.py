"""The debug mode of locks: a wait that would close a cycle is refused, with who holds what and where; no other is."""

import asyncio
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.helpers import in_trio, until

import polyloop
from polyloop import Barrier, Condition, DeadlockError, Lock, RLock
from polyloop.sync import RWLock, _debug
from polyloop.testing import Interleaving, TestLoop, TestThread, explore

KINDS: list[Callable[[str], Lock | RLock]] = [
    lambda name: Lock(debug=True, name=name),
    lambda name: RLock(debug=True, name=name),
]


@pytest.fixture(autouse=True)
def graph() -> _debug.Graph:
    """The graph of all waits, in which none must be left."""
    assert not _debug.GRAPH._waits
    return _debug.GRAPH


@pytest.fixture(params=KINDS, ids=["Lock", "RLock"])
def new(request: pytest.FixtureRequest) -> Callable[[str], Lock | RLock]:
    """Makes locks of each kind, in debug mode."""
    given: Callable[[str], Lock | RLock] = request.param
    return given


async def both(first: Lock | RLock, second: Lock | RLock, meet: Barrier) -> str:
    """Take one, wait until all others have theirs, and take the other."""
    async with first:
        await meet.wait()
        async with second:
            return "done"


def both_in_a_thread(first: Lock | RLock, second: Lock | RLock, meet: Barrier) -> str:
    with first.sync:
        meet.sync.wait()
        with second.sync:
            return "done"


def outcomes(pending: list[Any]) -> list[DeadlockError]:
    """What the one was told that closed the cycle; the others must have come to their end."""
    errors: list[DeadlockError] = []
    for one in pending:
        try:
            assert one.result() == "done"
        except DeadlockError as exc:
            errors.append(exc)
    return errors


# Cycles


def test_two_tasks_of_two_loops(left: TestLoop, right: TestLoop, new: Callable[[str], Lock | RLock]) -> None:
    """One is told, with both sides of it; the other goes on."""
    a, b, meet = new("a"), new("b"), Barrier(2)
    one = left.spawn(both, a, b, meet, name="one")
    other = right.spawn(both, b, a, meet, name="other")
    (error,) = outcomes([one, other])
    kind = type(a).__name__
    assert str(error).startswith("to wait here would never end, since each of these waits for the next:\n")
    for task, loop, holds, wants in (("one", "left", "a", "b"), ("other", "right", "b", "a")):
        assert f"\n  task '{task}' of thread '{loop}' holds {kind} '{holds}', taken at {__file__}:" in str(error)
        assert f"; waits for {kind} '{wants}' at {__file__}:" in str(error)
    assert {party.who.split("'")[1] for party in error.cycle} == {"one", "other"}
    assert all(" in both" in party.taken_at and " in both" in party.waits_at for party in error.cycle)
    assert not a.locked()
    assert not b.locked()


def test_a_task_and_a_thread(left: TestLoop, new: Callable[[str], Lock | RLock]) -> None:
    """Whichever of them closes the cycle."""
    for _ in range(10):
        a, b, meet = new("a"), new("b"), Barrier(2)
        task = left.spawn(both, a, b, meet)
        thread = TestThread(both_in_a_thread, b, a, meet, name="thread")
        (error,) = outcomes([task, thread])
        assert "thread 'thread' holds" in str(error)
        assert not a.locked()
        assert not b.locked()


def test_three_parties_of_three_kinds(left: TestLoop, new: Callable[[str], Lock | RLock]) -> None:
    """A task, a task of trio, and a thread; the one that is told comes first in the report."""
    a, b, c, meet = new("a"), new("b"), new("c"), Barrier(3)
    pending: list[Any] = [
        left.spawn(both, a, b, meet),
        in_trio(both, b, c, meet),
        TestThread(both_in_a_thread, c, a, meet),
    ]
    (error,) = outcomes(pending)
    assert len(error.cycle) == 3
    for party, following in zip(error.cycle, [*error.cycle[1:], error.cycle[0]], strict=True):
        assert party.waits_for == following.holds
    assert str(error).count("\n") == 3


def test_one_that_waits_for_itself(left: TestLoop) -> None:
    """With where it has taken the lock; an ``RLock`` may be taken again."""
    lock, rlock = Lock(debug=True), RLock(debug=True)

    async def task() -> None:
        async with lock:
            with pytest.raises(DeadlockError, match=r"holds Lock at 0x.*, taken at .* in .*task; waits for Lock at"):
                await lock.acquire()
        async with rlock, rlock:
            pass

    left.run(task)
    with lock.sync, pytest.raises(DeadlockError, match="taken at"):
        lock.sync.acquire()
    assert not lock.locked()
    assert not rlock.locked()


def test_the_stack_shows_who_called_a_helper() -> None:
    """Three frames of the user's, none of ours."""
    lock = Lock(debug=True, name="x")

    def helper() -> None:
        lock.sync.acquire()

    def caller() -> None:
        helper()

    caller()
    with pytest.raises(DeadlockError) as caught:
        caller()
    (party,) = caught.value.cycle
    assert ".helper, called at " in party.taken_at
    assert ".caller, called at " in party.waits_at
    assert "polyloop/sync" not in str(caught.value)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (str(twin), twin.cycle) == (str(caught.value), caught.value.cycle)
    lock.release()


def test_readers_and_writers(left: TestLoop, right: TestLoop) -> None:
    """A writer waits for each of the readers, and so does a reader that stands behind a writer who does."""
    rwlock, lock = RWLock(debug=True, name="table"), Lock(debug=True, name="log")
    meet = Barrier(2)

    async def read_then_log() -> str:
        async with rwlock.read:
            await meet.wait()
            async with lock:
                return "done"

    async def log_then_write() -> str:
        async with lock:
            await meet.wait()
            async with rwlock.write:
                return "done"

    (error,) = outcomes([left.spawn(read_then_log), right.spawn(log_then_write)])
    assert "holds RWLock 'table' for reading" in str(error)
    assert "waits for RWLock 'table' for writing" in str(error)

    async def log_then_read() -> str:
        async with lock:
            await meet.wait()
            until(lambda: len(rwlock._turns.waiting) == 1)
            async with rwlock.read:
                return "done"

    def write() -> str:
        with rwlock.sync.write:
            return "done"

    reader = left.spawn(read_then_log)
    until(lambda: rwlock.readers == 1)
    writer = TestThread(write)
    (error,) = outcomes([reader, right.spawn(log_then_read), writer])
    assert "waits for RWLock 'table' for reading" in str(error)
    assert len(error.cycle) == 2
    assert not rwlock.locked()


def test_a_condition_that_wants_its_lock_back(left: TestLoop, right: TestLoop) -> None:
    """It must get it, so another is told: who holds that lock and waits for the outer one."""
    outer = Lock(debug=True, name="outer")
    condition = Condition(Lock(debug=True, name="inner"))

    async def waits() -> str:
        async with outer, condition:
            await condition.wait()
        return "done"

    async def notifies() -> str:
        async with condition:
            condition.notify()
            async with outer:
                return "done"

    waiter = left.spawn(waits, name="waits")
    until(lambda: len(condition._line) == 1)
    with left.paused():  # it wants its lock back when the other waits already
        notifier = right.spawn(notifies, name="notifies")
        until(lambda: len(outer._permits.line) == 1)
    with pytest.raises(DeadlockError, match="task 'waits' of thread 'left' holds Lock 'outer'"):
        notifier.result()
    assert waiter.result() == "done"
    assert not outer.locked()
    assert not condition.locked()


def test_a_condition_in_a_thread_that_wants_its_lock_back(left: TestLoop) -> None:
    """As a task; here the other waits for an ``RWLock``."""
    table = RWLock(debug=True, name="table")
    condition = Condition(RLock(debug=True, name="inner"))

    def waits() -> str:
        with table.sync.read, condition.sync:
            condition.sync.wait()
        return "done"

    async def notifies() -> str:
        async with condition:
            condition.notify()
            until(lambda: len(condition._lock._permits.line) == 1)
            async with table.write:
                return "done"

    async def notifies_later() -> str:
        async with condition, table.write:
            return "done"

    waiter = TestThread(waits)
    until(lambda: len(condition._line) == 1)
    with pytest.raises(DeadlockError, match="for writing at"):
        left.run(notifies)  # the last to wait: it closes the cycle itself
    assert waiter.result() == "done"
    waiter = TestThread(waits)
    until(lambda: len(condition._line) == 1)
    notifier = left.spawn(notifies_later)
    until(lambda: len(table._turns.waiting) == 1)
    condition._line.popleft().wake()  # notified, by one who does not hold the lock
    with pytest.raises(DeadlockError, match="holds RWLock 'table' for reading"):
        notifier.result()
    assert waiter.result() == "done"
    assert not table.locked()
    assert not condition.locked()


# No cycles


def test_a_wait_that_ends_by_itself_is_not_reported(left: TestLoop) -> None:
    """A thread with a limit of time closes no cycle, and is part of none."""
    a, b, meet = Lock(debug=True), Lock(debug=True), Barrier(2)

    def impatient() -> str:
        with b.sync:
            meet.sync.wait()
            assert not a.sync.acquire(timeout=0.02)
        return "done"

    assert outcomes([left.spawn(both, a, b, meet), TestThread(impatient)]) == []


def test_a_cancelled_wait_is_forgotten(left: TestLoop, right: TestLoop, graph: _debug.Graph) -> None:
    """What it waited for may be waited for by those it holds up."""
    a, b = Lock(debug=True), Lock(debug=True)
    assert b.acquire_nowait()  # by this thread
    meet = Barrier(2)

    async def impatient() -> str:
        async with a:
            await meet.wait()
            try:
                async with asyncio.timeout(0.01):
                    await b.acquire()
            except TimeoutError:
                return "done"
        return "taken"

    handle = left.spawn(impatient)
    meet.sync.wait()
    assert handle.result() == "done"
    assert not graph._waits
    with a.sync:
        pass
    b.release()


def test_a_lock_that_is_handed_over_has_no_holder_yet(left: TestLoop) -> None:
    """So nobody is reported to wait for one that does not hold it any more."""
    lock, other = Lock(debug=True), Lock(debug=True)
    holder = threading.Event()
    go = threading.Event()

    def hold() -> str:
        with lock.sync:
            holder.set()
            assert go.wait(20)
        with other.sync:  # held by the task that was handed the first
            return "done"

    async def wants() -> str:
        async with other, lock:
            pass
        return "done"

    thread = TestThread(hold)
    assert holder.wait(20)
    task = left.spawn(wants)
    until(lambda: len(lock._permits.line) == 1)
    with left.paused():  # handed over, not yet known to the task
        go.set()
        until(lambda: len(other._permits.line) == 1)
    assert outcomes([thread, task]) == []


def test_locks_released_by_another_are_held_by_nobody(left: TestLoop) -> None:
    """Who has taken them is not waited for any more."""
    a, b = Lock(debug=True), Lock(debug=True)
    left.run(a.acquire)
    a.release()
    with b.sync, a.sync:
        pass
    TestThread(a.sync.acquire).result()
    a.sync.release()
    assert a._permits.hold is None  # type: ignore[attr-defined]


def test_without_debug_nothing_is_noted() -> None:
    """Names may stay: so one option switches it on and off."""
    lock, rlock, rwlock = Lock(name="x"), RLock(name="x"), RWLock(name="x")
    assert type(lock._permits) is type(rlock._permits) is not _debug.DebugPermits
    assert type(lock._holder) is not _debug.DebugHolder
    assert rwlock._debug is None


def test_one_of_two_is_told_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or none, if they do not meet; nobody ever waits for ever, and both locks are free in the end."""

    def scenario(it: Interleaving) -> None:
        monkeypatch.setattr(_debug, "GRAPH", _debug.Graph())  # with a lock of the model
        a, b = Lock(debug=True, name="a"), Lock(debug=True, name="b")

        def thread(first: Lock, second: Lock) -> bool:
            try:
                with first.sync, second.sync:
                    return True
            except DeadlockError:
                return False

        async def task(first: Lock, second: Lock) -> bool:
            try:
                async with first, second:
                    return True
            except DeadlockError:
                return False

        one, other = it.thread(thread, a, b), it.coroutine(task, b, a)

        def check() -> None:
            assert one.result() or other.result()
            assert not a.locked()
            assert not b.locked()
            assert not _debug.GRAPH._waits

        it.check(check)

    explore(scenario, preemptions=1, schedules=800)
    explore(scenario, seed=1, schedules=80)


def test_locks_taken_in_one_order_are_never_reported(rng: random.Random) -> None:
    """Tasks and threads that take some of five locks of all kinds at random, always in one order, half a second."""
    locks: list[Lock | RLock] = [Lock(debug=True), RLock(debug=True), Lock(debug=True), RLock(debug=True)]
    table = RWLock(debug=True)
    stop = threading.Event()
    served = [0]

    async def task(seed: int) -> None:
        mine = random.Random(seed)
        while not stop.is_set():
            chosen = [lock for lock in locks if mine.random() < 0.5]
            taken: list[Lock | RLock] = []
            try:
                async with asyncio.timeout(mine.choice([None, None, 0.0005])):
                    async with table.write if mine.random() < 0.2 else table.read:
                        for lock in chosen:
                            await lock.acquire()
                            taken.append(lock)
                        await asyncio.sleep(0)
                        served[0] += 1
                        while taken:
                            taken.pop().release()
            except TimeoutError:
                pass
            finally:
                for lock in taken[::-1]:
                    lock.release()
            await asyncio.sleep(0)

    def thread(seed: int) -> None:
        mine = random.Random(seed)
        while not stop.is_set():
            with table.sync.write if mine.random() < 0.2 else table.sync.read:
                taken = [lock for lock in locks if mine.random() < 0.5 and lock.sync.acquire()]
                for lock in taken[::-1]:
                    lock.sync.release()

    with polyloop.Runtime(loops=2, steal=False) as runtime:
        pending: list[Any] = [
            runtime.spawn(task, rng.randrange(1 << 30), on=worker) for worker in runtime.workers for _ in range(3)
        ]
        pending += [TestThread(thread, rng.randrange(1 << 30)) for _ in range(2)]
        stop.wait(0.5)
        stop.set()
        for one in pending:
            one.result()
    assert served[0] > 10
    assert not table.locked()
    assert not any(lock.locked() for lock in locks)

"""``RWLock``: its rule of order, owners, both faces, and what cancellation and time do to it."""

import asyncio
import random
import threading
from collections import deque
from typing import Any

import pytest
from tests.helpers import cancel_amid, in_trio, one_of_three_is_cancelled, park_on_a_dead_loop, queue_up, until
from tests.sync.races import race, short_and_long, tiny

import polyloop
from polyloop import DeadlockError
from polyloop.sync import RWLock
from polyloop.sync._turns import Place, Turns
from polyloop.testing import Gate, Interleaving, TestLoop, TestThread, explore


def waiting(rwlock: RWLock) -> int:
    return len(rwlock._turns.waiting)


def idle(rwlock: RWLock) -> bool:
    return not rwlock.locked() and not waiting(rwlock) and not rwlock._holds


# The rule


def test_the_rule_of_order() -> None:
    """In the order of coming; readers next to one another enter together; nobody is overtaken. At random, 20000 steps.

    Who waits is always behind everybody who is in, of those who are next nobody could enter, and whoever is in may be.
    """
    rng = random.Random(5)
    turns = Turns()
    inside: list[Place] = []
    line: list[Place] = []
    for _ in range(20_000):
        if rng.random() < 0.5:
            hold = Place(rng.random() < 0.3)
            waits = rng.random() < 0.9
            if turns.arrive(hold, waits):
                assert not line  # else it has overtaken
                inside.append(hold)
            elif waits:
                line.append(hold)
        elif rng.random() < 0.2 and line:
            turns.leave(line.pop(rng.randrange(len(line))))
        elif inside:
            hold = rng.choice(inside)
            if hold.writes and rng.random() < 0.3:
                turns.downgrade(hold)
            else:
                inside.remove(hold)
                turns.leave(hold)
        for hold in turns.admit():
            assert hold is line.pop(0)
            inside.append(hold)
        writers = sum(hold.writes for hold in inside)
        assert len(inside) == 1 if writers else all(hold.entered for hold in inside)
        assert list(turns.waiting) == line
        assert (turns.writing, turns.readers) == (writers == 1, len(inside) - writers)
        assert not line or (inside and (writers or line[0].writes))


def test_phases_over_loops_and_threads(left: TestLoop, right: TestLoop) -> None:
    """A reader in; then come W1, R2, R3, W4, R5 as tasks of loops and of trio, and threads: they enter as they came."""
    rwlock = RWLock()
    names = ["W1", "R2", "R3", "W4", "R5"]
    entered: list[str] = []
    together = polyloop.Barrier(2)

    async def task(number: int) -> None:
        name = names[number]
        async with rwlock.write if name[0] == "W" else rwlock.read:
            entered.append(name)
            if name in ("R2", "R3"):
                await together.wait()  # both are in at once

    def thread(number: int) -> None:
        name = names[number]
        with rwlock.sync.write if name[0] == "W" else rwlock.sync.read:
            entered.append(name)
            if name in ("R2", "R3"):
                together.sync.wait()

    assert rwlock.acquire_read_nowait()
    pending = queue_up(left, right, task, thread, lambda: waiting(rwlock), len(names))
    assert entered == []
    rwlock.release_read()
    for one in pending:
        one.result()
    assert entered[0] == "W1"
    assert sorted(entered[1:3]) == ["R2", "R3"]
    assert entered[3:] == ["W4", "R5"]
    assert idle(rwlock)


def test_readers_share_and_a_writer_does_not(left: TestLoop) -> None:
    """The properties and the reprs say who is in."""
    rwlock = RWLock()
    assert (rwlock.locked(), rwlock.readers) == (False, 0)
    assert repr(rwlock).endswith("[unlocked]>")
    with rwlock.sync.read:
        assert left.run(rwlock.acquire_read)
        assert rwlock.readers == rwlock.sync.readers == 2
        assert rwlock.locked()
        assert rwlock.sync.locked()
        assert (rwlock.read.locked(), rwlock.write.locked(), rwlock.sync.read.locked()) == (True, False, True)
        assert not left.run(rwlock.acquire_write_nowait)
        assert not TestThread(rwlock.sync.write.acquire, False).result()
        assert repr(rwlock).endswith("[reading, readers:2]>")
    # That reader's task has ended without a release; its hold is taken back here by hand.
    (hold,) = rwlock._holds.values()
    rwlock._holds.clear()
    rwlock._leave(hold)

    async def write() -> None:
        async with rwlock.write:
            assert rwlock.write.locked()
            assert repr(rwlock).endswith("[writing]>")
            assert repr(rwlock.write).startswith("<write side of <polyloop.sync._rwlock.RWLock object")
            assert repr(rwlock.sync.read).startswith("<sync face of <read side of <polyloop")
            assert repr(rwlock.sync).startswith("<sync face of <polyloop")
            assert not TestThread(rwlock.sync.read.acquire, False).result()
            assert not TestThread(rwlock.acquire_read_nowait).result()

    left.run(write)
    assert idle(rwlock)


def test_a_writer_that_waits_holds_newcomers_back(left: TestLoop) -> None:
    """Though a reader is in; when it gives up, they enter at once."""
    rwlock = RWLock()
    rwlock.acquire_read_nowait()
    writer = left.spawn(rwlock.write.acquire)
    until(lambda: waiting(rwlock) == 1)
    assert not TestThread(rwlock.acquire_read_nowait).result()

    def read() -> None:
        with rwlock.sync.read:
            pass

    readers = [TestThread(read), TestThread(read)]
    until(lambda: waiting(rwlock) == 3)
    assert "waiters:3" in repr(rwlock)
    writer.cancel()
    for reader in readers:
        reader.result()
    assert not TestThread(rwlock.sync.write.acquire, True, 0.01).result()
    rwlock.release_read()
    assert idle(rwlock)


def test_a_writer_out_of_time_lets_the_readers_behind_it_in() -> None:
    """As a cancelled one."""
    rwlock = RWLock()
    rwlock.acquire_read_nowait()
    gate = Gate()

    def write() -> bool:
        gate.reached()
        return rwlock.sync.write.acquire(timeout=0.05)

    def read() -> bool:
        until(lambda: waiting(rwlock) == 1)
        with rwlock.sync.read:
            return True

    writer, reader = TestThread(write), TestThread(read)
    gate_thread = TestThread(gate.pause)
    gate.open()
    assert (writer.result(), reader.result(), gate_thread.result()) == (False, True, None)
    rwlock.release_read()
    assert idle(rwlock)


# Races


@pytest.mark.parametrize("cancelled_first", [False, True])
@pytest.mark.parametrize("side", ["read", "write"])
def test_a_cancellation_that_meets_the_admission_lets_the_next_in(
    left: TestLoop, right: TestLoop, side: str, cancelled_first: bool
) -> None:
    """Both happen before the waiter can run, in either order: it ends cancelled and does not hold the lock."""
    rwlock = RWLock()
    rwlock.acquire_write_nowait()
    doomed = left.spawn(rwlock.write.acquire if side == "write" else rwlock.read.acquire)
    until(lambda: waiting(rwlock) == 1)

    async def write() -> None:
        async with rwlock.write:
            pass

    following = right.spawn(write)
    until(lambda: waiting(rwlock) == 2)
    cancel_amid(left, doomed, rwlock.release_write, cancelled_first)
    following.result()
    assert idle(rwlock)


def test_a_waiter_of_a_dead_loop_is_skipped() -> None:
    """The next enters."""
    rwlock = RWLock()
    rwlock.acquire_read_nowait()
    parked = park_on_a_dead_loop(rwlock.acquire_write)
    thread = TestThread(rwlock.sync.write.acquire)
    until(lambda: waiting(rwlock) == 2)
    rwlock.release_read()
    assert thread.result()
    parked.close()
    assert (rwlock._turns.writing, rwlock.readers, waiting(rwlock)) == (True, 0, 0)


def test_a_cancelled_trio_task_does_not_hold_it() -> None:
    """Its own cancellation, not asyncio's."""
    import trio

    rwlock = RWLock()
    rwlock.acquire_read_nowait()

    async def main() -> None:
        with trio.move_on_after(0.01):
            await rwlock.acquire_write()

    in_trio(main).result()
    rwlock.release_read()
    assert idle(rwlock)


@pytest.mark.timeout(20)
def test_a_coroutine_may_be_closed_wherever_that_interrupts() -> None:
    """Also in the thread that has the internal lock: it leaves, and the next enters, once the lock is free."""

    async def main() -> None:
        rwlock = RWLock()
        await rwlock.acquire_read()
        parked = RWLock.acquire_write(rwlock)
        seen: list[int] = []

        class Collecting(deque[Any]):
            """What the holder of the lock looks at; a finaliser runs in the middle of that."""

            def __bool__(self) -> bool:
                if rwlock._lock.locked() and not seen:
                    seen.append(1)
                    parked.close()
                return len(self) > 0

        async def another() -> None:
            parked.send(None)
            rwlock._left = Collecting()
            async with rwlock.read:
                assert seen == [1]
                assert rwlock.readers == 2

        await asyncio.create_task(another())
        rwlock.release_read()
        assert idle(rwlock)

    asyncio.run(main())


# Owners


def test_a_reader_reads_again_while_a_writer_waits(left: TestLoop) -> None:
    """It would wait for itself otherwise; the writer comes when the last of its holds is released."""
    rwlock = RWLock()

    async def read() -> None:
        async with rwlock.read:
            writer = TestThread(rwlock.sync.write.acquire)
            until(lambda: waiting(rwlock) == 1)
            async with rwlock.read:
                assert rwlock.read.acquire_nowait()
                assert rwlock.readers == 1
                rwlock.read.release()
            assert waiting(rwlock) == 1
        assert await asyncio.to_thread(writer.result)

    left.run(read)
    assert rwlock.write.locked()


def test_an_upgrade_is_refused_and_says_what_to_do(left: TestLoop) -> None:
    """Always, also if it would find nobody else in, on both faces; the reader goes on reading."""
    rwlock = RWLock()
    advice = "for writing its caller, who holds it for reading, would wait for itself; release it first"

    async def main() -> None:
        async with rwlock.read:
            with pytest.raises(DeadlockError, match=advice):
                await rwlock.acquire_write()
            with pytest.raises(DeadlockError, match=advice):
                rwlock.acquire_write_nowait()
            with pytest.raises(DeadlockError, match=advice):
                rwlock.sync.write.acquire()
            assert rwlock.readers == 1

    left.run(main)
    assert idle(rwlock)


def test_a_writer_takes_nothing_more_but_may_go_on_as_a_reader(left: TestLoop, right: TestLoop) -> None:
    """Without a writer in between; the readers that are next enter too; the block sees to the release."""
    rwlock = RWLock()

    async def main() -> None:
        async with rwlock.write:
            with pytest.raises(DeadlockError, match="take it once, further out"):
                await rwlock.write.acquire()
            with pytest.raises(DeadlockError, match=r"use 'rwlock.downgrade\(\)'"):
                await rwlock.read.acquire()
            reader = right.spawn(rwlock.acquire_read)
            until(lambda: waiting(rwlock) == 1)
            writer = TestThread(rwlock.sync.write.acquire)
            until(lambda: waiting(rwlock) == 2)
            rwlock.downgrade()
            assert rwlock.readers == 2
            await reader
            async with rwlock.read:
                pass
            assert waiting(rwlock) == 1
            with pytest.raises(RuntimeError, match="does not hold"):
                rwlock.downgrade()
        assert rwlock.readers == 1
        for hold in list(rwlock._holds.values()):  # that reader's task has ended without a release
            rwlock._holds.clear()
            rwlock._leave(hold)
        assert await asyncio.to_thread(writer.result)

    left.run(main)

    def threads() -> None:
        other = RWLock()
        with other.sync.write:
            other.sync.downgrade()
            assert other.readers == 1
        assert idle(other)

    TestThread(threads).result()


def test_only_the_holder_releases() -> None:
    """For what it holds it; the lock is none the worse."""
    rwlock = RWLock()
    for release in (rwlock.release_read, rwlock.release_write, rwlock.sync.read.release, rwlock.write.release):
        with pytest.raises(RuntimeError, match="does not hold"):
            release()
    rwlock.acquire_read_nowait()
    with pytest.raises(RuntimeError, match=r"does not hold .* for writing"):
        rwlock.release_write()
    with pytest.raises(RuntimeError, match=r"does not hold .* for reading"):
        TestThread(rwlock.release_read).result()
    rwlock.release_read()
    assert idle(rwlock)


# Threads that run loops; time


def test_a_loop_is_not_blocked(left: TestLoop) -> None:
    """Only if it would have to wait; it names the awaitable twin, and nothing has changed."""
    rwlock = RWLock()

    async def on_a_loop() -> None:
        with rwlock.sync.read:
            pass
        with rwlock.sync.write:
            pass
        rwlock_thread = TestThread(rwlock.acquire_write_nowait)
        assert rwlock_thread.result()
        for side, twin in ((rwlock.sync.read, "rwlock.read"), (rwlock.sync.write, "rwlock.write")):
            with pytest.raises(polyloop.BlockingCallError, match=f"'left'; use 'async with {twin}'"):
                side.acquire()
            assert not side.acquire(blocking=False)
        assert waiting(rwlock) == 0

    left.run(on_a_loop)


@pytest.mark.parametrize(("blocking", "timeout"), [(False, 1.0), (True, -2.0)])
def test_a_timeout_that_makes_no_sense_is_refused(blocking: bool, timeout: float) -> None:
    """As ``threading`` refuses it."""
    rwlock = RWLock()
    for side in (rwlock.sync.read, rwlock.sync.write):
        with pytest.raises(ValueError, match="timeout"):
            side.acquire(blocking, timeout)
    assert idle(rwlock)


# All interleavings, and random ones


def test_readers_and_writers_exclude_each_other_in_every_order() -> None:
    """Two readers and a writer, of both kinds; all get in, none is left."""

    def scenario(it: Interleaving) -> None:
        rwlock = RWLock()
        writing: list[int] = []

        def read() -> None:
            with rwlock.sync.read:
                assert not writing

        async def read_async() -> None:
            async with rwlock.read:
                assert not writing

        def write() -> None:
            with rwlock.sync.write:
                assert not writing
                writing.append(1)
                assert rwlock.readers == 0
                writing.pop()

        it.thread(read)
        it.coroutine(read_async)
        it.thread(write)
        it.check(lambda: check(rwlock))

    def check(rwlock: RWLock) -> None:
        assert idle(rwlock)

    explore(scenario, preemptions=1, schedules=500)
    explore(scenario, seed=3, schedules=50)


def test_a_cancellation_at_any_moment_loses_nobody() -> None:
    """A writer in the line between two others; whether it was let in or not, the last one gets its turn."""
    scenario = one_of_three_is_cancelled(RWLock, lambda rwlock: (rwlock.write, rwlock.sync.write), idle)
    explore(scenario, preemptions=1, schedules=500)
    explore(scenario, seed=4, schedules=50)


@short_and_long
def test_nobody_is_lost_in_a_random_race(rng: random.Random, seconds: float) -> None:
    """Readers and writers on loops and threads that give up at random; who is in is counted."""
    rwlock = RWLock()
    guard = threading.Lock()
    inside = {False: 0, True: 0}  # readers and writers; both guarded by guard
    served = {False: 0, True: 0}

    def use(writes: bool) -> None:
        with guard:
            inside[writes] += 1
            served[writes] += 1
            assert inside[True] == 0 or (inside[True], inside[False]) == (1, 0)
        with guard:
            inside[writes] -= 1

    async def task(own: random.Random) -> None:
        writes = own.random() < 0.3
        async with rwlock.write if writes else rwlock.read:
            use(writes)
            if writes and own.random() < 0.2:
                rwlock.downgrade()
            await asyncio.sleep(0)

    def thread(own: random.Random) -> None:
        writes = own.random() < 0.3
        side = rwlock.sync.write if writes else rwlock.sync.read
        if side.acquire(timeout=tiny(own)):
            use(writes)
            side.release()

    race(rng, seconds, task, [thread] * 3)
    assert idle(rwlock)
    assert min(served.values()) > 20

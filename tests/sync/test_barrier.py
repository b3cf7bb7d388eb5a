"""``Barrier``: parties of all kinds, and what cancellation, time, reset and abort do to them."""

import asyncio
import random
import threading
from collections import deque
from typing import Any

import pytest
from tests.helpers import in_trio, park_on_a_dead_loop, until

import polyloop
from polyloop import BrokenBarrierError
from polyloop.sync import Barrier
from polyloop.testing import Gate, Interleaving, TestLoop, TestThread, explore


def arrived(barrier: Barrier, count: int) -> None:
    until(lambda: barrier.n_waiting == count)


# All come


def test_parties_of_all_kinds_go_on_together(left: TestLoop, right: TestLoop) -> None:
    """Tasks of two loops and of trio, and threads; each gets its number, in the order of coming."""
    barrier = Barrier(5)
    pending: list[Any] = [left.spawn(barrier.wait)]
    arrived(barrier, 1)
    pending.append(TestThread(barrier.sync.wait))
    arrived(barrier, 2)
    pending.append(in_trio(barrier.wait))
    arrived(barrier, 3)
    pending.append(right.spawn(barrier.wait))
    arrived(barrier, 4)
    assert barrier.sync.n_waiting == 4
    assert barrier.sync.wait() == 4
    assert [one.result() for one in pending] == [0, 1, 2, 3]
    assert (barrier.n_waiting, barrier.parties, barrier.broken) == (0, 5, False)


def test_a_barrier_is_used_again_and_again(left: TestLoop) -> None:
    """No party runs ahead by more than one round."""
    barrier = Barrier(3)
    rounds = [0, 0, 0]

    async def task(me: int) -> None:
        for _ in range(50):
            rounds[me] += 1
            async with barrier as position:
                assert position in range(3)
                assert max(rounds) - min(rounds) <= 1

    def thread(me: int) -> None:
        for _ in range(50):
            rounds[me] += 1
            barrier.sync.wait()
            assert max(rounds) - min(rounds) <= 1

    pending: list[Any] = [left.spawn(task, 0), TestThread(thread, 1), TestThread(thread, 2)]
    for one in pending:
        one.result()
    assert rounds == [50, 50, 50]


def test_one_party_waits_for_nobody() -> None:
    """On a loop, also through the face for threads."""

    async def main() -> None:
        barrier = Barrier(1)
        assert await barrier.wait() == 0
        assert barrier.sync.wait() == 0

    asyncio.run(main())


def test_a_barrier_needs_a_party() -> None:
    """As in asyncio and threading."""
    for parties in (0, -1):
        with pytest.raises(ValueError, match="parties must be >= 1"):
            Barrier(parties)


def test_the_state_is_shown() -> None:
    """As asyncio shows it."""

    async def main() -> None:
        barrier = Barrier(3)
        assert repr(barrier).endswith("[filling, waiters:0/3]>")
        waiters = [asyncio.create_task(barrier.wait()) for _ in range(2)]
        await asyncio.sleep(0)
        assert repr(barrier).endswith("[filling, waiters:2/3]>")
        assert repr(barrier.sync).startswith("<sync face of <polyloop.sync._barrier.Barrier object")
        await barrier.wait()
        assert repr(barrier).endswith("[draining, waiters:0/3]>")
        await barrier.reset()
        assert repr(barrier).endswith("[resetting, waiters:0/3]>")
        await barrier.abort()
        assert repr(barrier).endswith("[broken]>")
        await asyncio.gather(*waiters, return_exceptions=True)

    asyncio.run(main())


# Somebody does not


def test_a_cancelled_party_has_not_come(left: TestLoop) -> None:
    """The barrier is as it was, and whole."""
    barrier = Barrier(2)
    doomed = left.spawn(barrier.wait)
    arrived(barrier, 1)
    doomed.cancel()
    arrived(barrier, 0)
    other = left.spawn(barrier.wait)
    arrived(barrier, 1)
    assert (barrier.sync.wait(), other.result()) == (1, 0)
    with pytest.raises(asyncio.CancelledError):
        doomed.result()


def test_a_cancellation_after_the_last_came_holds_nobody_up(left: TestLoop, right: TestLoop) -> None:
    """Both happen before the party can run: it ends cancelled, the others go on, and the barrier fills again."""
    barrier = Barrier(3)
    doomed = left.spawn(barrier.wait)
    arrived(barrier, 1)
    other = right.spawn(barrier.wait)
    arrived(barrier, 2)
    with left.paused():
        assert barrier.sync.wait() == 2
        doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        doomed.result()
    assert other.result() == 1
    assert repr(barrier).endswith("[filling, waiters:0/3]>")


def test_a_cancelled_trio_task_has_not_come() -> None:
    """Its own cancellation, not asyncio's."""
    import trio

    barrier = Barrier(2)

    async def main() -> None:
        with trio.move_on_after(0.01):
            await barrier.wait()

    in_trio(main).result()
    assert (barrier.n_waiting, barrier.broken) == (0, False)


def test_a_party_of_a_dead_loop_leaves_by_itself() -> None:
    """Nobody is there to leave, and the barrier still fills again."""
    barrier = Barrier(2)
    parked = park_on_a_dead_loop(barrier.wait)
    assert barrier.n_waiting == 1
    assert barrier.sync.wait() == 1
    assert repr(barrier).endswith("[filling, waiters:0/2]>")
    parked.close()


def test_a_party_out_of_time_breaks_the_barrier(left: TestLoop) -> None:
    """For all, and until a reset; also by the time that the barrier was made with."""
    for barrier, timeout in ((Barrier(3), 0.01), (Barrier(3, timeout=0.01), None)):
        other = left.spawn(barrier.wait)
        arrived(barrier, 1)
        with pytest.raises(BrokenBarrierError, match="the time was over before all 3 parties were there"):
            barrier.sync.wait(timeout)
        with pytest.raises(BrokenBarrierError, match="was broken or reset"):
            other.result()
        assert barrier.broken
        assert barrier.sync.broken
        for wait in (barrier.sync.wait, lambda barrier=barrier: left.run(barrier.wait)):
            with pytest.raises(BrokenBarrierError, match="'reset' makes it as new"):
                wait()
        barrier.sync.reset()
        assert repr(barrier).endswith("[filling, waiters:0/3]>")


def test_the_error_is_asyncios_and_threadings() -> None:
    """Code that catches either catches ours."""
    for base in (asyncio.BrokenBarrierError, threading.BrokenBarrierError, polyloop.PolyloopError):
        assert issubclass(BrokenBarrierError, base)


def test_a_reset_breaks_those_who_wait_and_nobody_else(left: TestLoop) -> None:
    """Of both kinds, through either face; then the barrier works again."""
    barrier = Barrier(3)
    for reset in (barrier.sync.reset, lambda: left.run(barrier.reset)):
        pending: list[Any] = [left.spawn(barrier.wait), TestThread(barrier.sync.wait)]
        arrived(barrier, 2)
        reset()
        for one in pending:
            with pytest.raises(BrokenBarrierError):
                one.result()
        until(lambda: "filling" in repr(barrier))
        assert not barrier.broken
    pending = [left.spawn(barrier.wait), TestThread(barrier.sync.wait)]
    barrier.sync.wait()
    for one in pending:
        one.result()


@pytest.mark.parametrize("face", ["async", "sync"])
def test_a_reset_and_those_who_could_go_on(left: TestLoop, face: str) -> None:
    """asyncio's breaks those who have not run yet; threading's does not."""
    barrier = Barrier(2)
    slow = left.spawn(barrier.wait)
    arrived(barrier, 1)
    with left.paused():
        barrier.sync.wait()
        if face == "sync":
            barrier.sync.reset()
        else:
            asyncio.run(barrier.reset())
    if face == "sync":
        assert slow.result() == 0
    else:
        with pytest.raises(BrokenBarrierError):
            slow.result()
    assert repr(barrier).endswith("[filling, waiters:0/2]>")


def test_an_abort_breaks_all_wherever_they_stand(left: TestLoop, right: TestLoop) -> None:
    """Those who could go on but have not run, and those who stand aside until these have left."""
    barrier = Barrier(2)
    slow = left.spawn(barrier.wait)
    arrived(barrier, 1)
    with left.paused():
        barrier.sync.wait()
        aside: list[Any] = [right.spawn(barrier.wait), TestThread(barrier.sync.wait)]
        until(lambda: len(barrier._aside) == 2)
        barrier.sync.abort()
        for one in aside:
            with pytest.raises(BrokenBarrierError):
                one.result()
    with pytest.raises(BrokenBarrierError):
        slow.result()
    barrier.sync.reset()
    left.run(barrier.abort)
    assert barrier.broken


def test_who_comes_while_others_leave_is_of_the_next_round(left: TestLoop, right: TestLoop) -> None:
    """And may give up meanwhile: by cancellation it leaves no trace, out of time it breaks the barrier."""
    barrier = Barrier(2)
    slow = left.spawn(barrier.wait)
    arrived(barrier, 1)
    with left.paused():
        barrier.sync.wait()
        doomed = right.spawn(barrier.wait)
        until(lambda: len(barrier._aside) == 1)
        doomed.cancel()
        until(lambda: not barrier._aside)
        pending: list[Any] = [right.spawn(barrier.wait), TestThread(barrier.sync.wait)]
        until(lambda: len(barrier._aside) == 2)
        assert (barrier.n_waiting, "draining" in repr(barrier)) == (0, True)
    assert slow.result() == 0
    assert sorted(one.result() for one in pending) == [0, 1]
    slow = left.spawn(barrier.wait)
    arrived(barrier, 1)
    with left.paused():
        barrier.sync.wait()
        with pytest.raises(BrokenBarrierError, match="the time was over"):
            barrier.sync.wait(0.01)
    with pytest.raises(BrokenBarrierError):
        slow.result()


# The action


def test_the_action_is_called_by_the_last_before_anybody_goes_on(left: TestLoop) -> None:
    """Once a round, on the thread of the last, without the lock."""
    threads: list[int] = []

    def action() -> None:
        assert not barrier._lock.locked()
        assert barrier.n_waiting == 2
        threads.append(threading.get_ident())

    barrier = Barrier(2, action)

    async def task() -> int:
        await barrier.wait()
        return len(threads)

    first = left.spawn(task)
    arrived(barrier, 1)
    barrier.sync.wait()
    assert first.result() == 1
    thread = TestThread(barrier.sync.wait)
    arrived(barrier, 1)
    assert left.run(task) == 2
    thread.result()
    assert threads == [threading.get_ident(), left.worker.ident]


def test_an_action_that_raises_breaks_the_barrier(left: TestLoop) -> None:
    """The last gets what it raised, the others a ``BrokenBarrierError``."""

    def action() -> None:
        raise LookupError("no")

    barrier = Barrier(2, action)
    first = left.spawn(barrier.wait)
    arrived(barrier, 1)
    with pytest.raises(LookupError):
        barrier.sync.wait()
    with pytest.raises(BrokenBarrierError):
        first.result()
    assert barrier.broken
    assert not barrier._inside


@pytest.mark.parametrize("how", ["abort", "reset", "both"])
def test_an_action_may_end_the_round(left: TestLoop, how: str) -> None:
    """It may use the barrier; everybody of that round gets an error, each once."""

    def action() -> None:
        if how in ("abort", "both"):
            barrier.sync.abort()
        if how in ("reset", "both"):
            asyncio.run(barrier.reset())

    barrier = Barrier(2, action)
    first = left.spawn(barrier.wait)
    arrived(barrier, 1)
    with pytest.raises(BrokenBarrierError):
        barrier.sync.wait()
    with pytest.raises(BrokenBarrierError):
        first.result()
    assert barrier.broken == (how == "abort")


def test_time_that_ends_during_the_action_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are there: who has waited so long waits for the action, too."""
    gate = Gate()
    barrier = Barrier(2, gate.pause)
    looked = threading.Event()
    look = Barrier._late

    def late(self: Barrier, place: Any) -> bool:
        gate.reached()  # the last has come, and calls the action
        acting = look(self, place)
        looked.set()
        return acting

    monkeypatch.setattr(Barrier, "_late", late)
    first = TestThread(barrier.sync.wait, 0.01)
    arrived(barrier, 1)
    last = TestThread(barrier.sync.wait)
    assert looked.wait(20)
    gate.open()
    assert (first.result(), last.result()) == (0, 1)


def test_a_party_cancelled_during_the_action_holds_nobody_up(left: TestLoop, right: TestLoop) -> None:
    """It had come; it goes without waiting for the action."""
    gate = Gate()
    barrier = Barrier(3, gate.pause)
    doomed = left.spawn(barrier.wait)
    arrived(barrier, 1)
    other = right.spawn(barrier.wait)
    arrived(barrier, 2)
    last = TestThread(barrier.sync.wait)
    gate.reached()
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        doomed.result()
    gate.open()
    assert (other.result(), last.result()) == (1, 2)


# Threads that run loops, finalisers


def test_a_loop_is_not_blocked(left: TestLoop) -> None:
    """Unless the party is the last; a refusal has changed nothing."""
    barrier = Barrier(2)

    async def on_a_loop() -> int:
        return barrier.sync.wait()

    with pytest.raises(polyloop.BlockingCallError, match=r"'left'; use 'await barrier.wait\(\)'"):
        left.run(on_a_loop)
    assert (barrier.n_waiting, barrier.broken) == (0, False)
    other = TestThread(barrier.sync.wait)
    arrived(barrier, 1)
    assert left.run(on_a_loop) == 1
    other.result()


@pytest.mark.timeout(20)
def test_a_coroutine_may_be_closed_wherever_that_interrupts() -> None:
    """Also in the thread that has the barrier's lock: it leaves once the lock is free."""

    async def main() -> None:
        barrier = Barrier(3)
        parked = barrier.wait()
        parked.send(None)
        seen: list[int] = []

        class Collecting(deque[Any]):
            """What the holder of the lock looks at; a finaliser runs in the middle of that."""

            def __bool__(self) -> bool:
                if barrier._lock.locked() and not seen:
                    seen.append(1)
                    parked.close()
                return len(self) > 0

        barrier._gone = Collecting()
        other = asyncio.create_task(barrier.wait())
        await asyncio.sleep(0)
        assert (seen, barrier.n_waiting) == ([1], 1)
        await barrier.abort()
        await asyncio.gather(other, return_exceptions=True)

    asyncio.run(main())


# All interleavings, and random ones


def test_all_go_on_however_they_come() -> None:
    """Two rounds of a task and a thread: each round, one is the first and one the last."""

    def scenario(it: Interleaving) -> None:
        barrier = Barrier(2)

        def thread() -> list[int]:
            return [barrier.sync.wait(), barrier.sync.wait()]

        async def task() -> list[int]:
            return [await barrier.wait(), await barrier.wait()]

        one, other = it.thread(thread), it.coroutine(task)

        def check() -> None:
            assert [sorted(pair) for pair in zip(one.result(), other.result(), strict=True)] == [[0, 1], [0, 1]]
            assert not barrier._inside

        it.check(check)

    assert explore(scenario, preemptions=1).exhaustive


def test_a_cancellation_at_any_moment_leaves_the_barrier_whole() -> None:
    """The party has come or it has not; if it got through, so has the other, and nobody is left inside."""

    def scenario(it: Interleaving) -> None:
        barrier = Barrier(2)

        def other() -> bool:
            try:
                barrier.sync.wait(1)
            except BrokenBarrierError:
                return False
            return True

        async def task() -> bool:
            try:
                await barrier.wait()
            except BrokenBarrierError:
                return False
            return True

        doomed, stays = it.coroutine(task), it.thread(other)
        it.thread(doomed.cancel)

        def check() -> None:
            assert stays.result() or doomed.cancelled() or not doomed.result()
            assert barrier.broken != stays.result()
            assert not barrier._inside

        it.check(check)

    explore(scenario, preemptions=1, schedules=500)


def test_an_abort_at_any_moment_reaches_all() -> None:
    """Who has not gone on by then gets an error, and nobody waits for ever."""

    def scenario(it: Interleaving) -> None:
        barrier = Barrier(2)

        def thread() -> str:
            try:
                barrier.sync.wait()
                return "through"
            except BrokenBarrierError:
                return "broken"

        async def task() -> str:
            try:
                await barrier.wait()
                return "through"
            except BrokenBarrierError:
                return "broken"

        one, other = it.thread(thread), it.coroutine(task)
        it.thread(barrier.sync.abort)

        def check() -> None:
            assert {one.result(), other.result()} <= {"through", "broken"}
            assert barrier.broken
            assert not barrier._inside

        it.check(check)

    explore(scenario, preemptions=1, schedules=500)


def test_rounds_stay_rounds_in_a_random_race(rng: random.Random, seconds: float) -> None:
    """Parties that are cancelled and come again; those that get through are always as many as there are parties."""
    barrier = Barrier(3)
    through: deque[int] = deque()

    async def task(seed: int, limit: float) -> None:
        mine = random.Random(seed)
        loop = asyncio.get_running_loop()
        stop = loop.time() + limit
        while loop.time() < stop:
            try:
                async with asyncio.timeout(mine.choice([0, 0.0002, 0.001])):
                    through.append(await barrier.wait())
            except TimeoutError:
                await asyncio.sleep(0)

    with polyloop.Runtime(loops=2, steal=False) as runtime:
        handles = [runtime.spawn(task, rng.randrange(1 << 30), seconds, on=worker) for worker in runtime.workers * 3]
        for handle in handles:
            handle.result()
    assert len(through) > 10
    assert not barrier._inside
    assert repr(barrier).endswith("[filling, waiters:0/3]>")

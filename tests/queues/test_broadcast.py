"""``broadcast``: every receiver gets every value, is told what it missed, and hears of the end."""

import asyncio
import pickle
from typing import Any

import pytest
from tests.helpers import cancel_amid, in_all_worlds, in_trio, until

from polyloop import BlockingCallError, PolyloopError, QueueEmpty
from polyloop.queues import BroadcastReceiver, ChannelClosed, ClosedEndError, Lagged, broadcast
from polyloop.testing import TestLoop, TestThread


def all_of(receiver: BroadcastReceiver[int]) -> list[int]:
    with receiver:
        return list(receiver.sync)


def test_every_receiver_gets_what_is_sent_after_it_subscribed() -> None:
    """And then the end; senders never wait."""

    async def main() -> tuple[list[int], list[int]]:
        sender, first = broadcast[int](8)
        async with sender:
            assert sender.send(1) == 1
            second = sender.subscribe()
            assert sender.send(2) == 2
        return [value async for value in first], [value async for value in second]

    assert asyncio.run(main()) == ([1, 2], [2])


def test_a_receiver_that_is_too_slow_is_told_once_and_goes_on() -> None:
    """With the oldest value that is kept; others are not affected."""
    sender, slow = broadcast[int](3)
    quick = slow.clone()
    with sender, slow:
        for value in range(5):
            sender.send(value)
            assert quick.receive_nowait() == value
        assert (slow.pending, quick.pending, slow.capacity) == (5, 0, 3)
        with pytest.raises(Lagged) as caught:
            slow.receive_nowait()
        assert caught.value.missed == 2
        assert slow.pending == 3
        assert [slow.receive_nowait() for _ in range(3)] == [2, 3, 4]
        with pytest.raises(QueueEmpty):
            slow.receive_nowait()


def test_what_was_missed_is_told_in_plain_words_and_pickles() -> None:
    """It is a signal of ours."""
    lagged = pickle.loads(pickle.dumps(Lagged(2)))
    assert (lagged.missed, str(lagged)) == (2, "2 values were overwritten before this receiver came to them")
    assert isinstance(lagged, PolyloopError)


def test_iteration_goes_on_after_a_lag() -> None:
    """``async for`` raises it, and may be begun again."""

    async def main() -> tuple[int, list[int]]:
        sender, receiver = broadcast[int](2)
        with sender:
            for value in range(4):
                sender.send(value)
        missed, values = 0, list[int]()
        while True:
            try:
                async for value in receiver:
                    values.append(value)
                return missed, values
            except Lagged as exc:
                missed += exc.missed

    assert asyncio.run(main()) == (2, [2, 3])


def test_what_nobody_receives_is_dropped() -> None:
    """Who subscribes later gets what comes later."""
    sender, receiver = broadcast[int](2)
    with sender:
        sender.send(0)
        receiver.close()
        assert sender.send(1) == 0
        assert {value for _, value in sender._ring.slots} == {None}
        late = sender.subscribe()
        assert sender.send(2) == 1
    assert all_of(late) == [2]


def test_a_clone_gets_what_the_receiver_has_not_got_yet() -> None:
    """Also what was sent before it was made; from then on each goes its own way."""
    sender, receiver = broadcast[int](4)
    with sender:
        for value in range(3):
            sender.send(value)
        assert receiver.receive_nowait() == 0
        clone = receiver.clone()
    assert all_of(receiver) == all_of(clone) == [1, 2]


def test_the_last_sender_ends_it() -> None:
    """A clone keeps it open."""
    sender, receiver = broadcast[int](4)
    with sender.clone() as clone:
        sender.close()
        clone.send(1)
    assert receiver.receive_nowait() == 1
    with pytest.raises(ChannelClosed, match="all senders are closed"):
        receiver.receive_nowait()
    receiver.close()


def test_a_closed_end_refuses_every_call() -> None:
    """With an error of its own."""
    sender, receiver = broadcast[int](1)
    sender.close()
    receiver.close()
    for call in (
        lambda: sender.send(1),
        sender.subscribe,
        sender.clone,
        receiver.clone,
        receiver.receive_nowait,
        receiver.sync.receive,
    ):
        with pytest.raises(ClosedEndError):
            call()


@pytest.mark.parametrize(("capacity", "error"), [(0, ValueError), (1.0, TypeError), (float("inf"), TypeError)])
def test_a_capacity_is_a_whole_number_of_at_least_one(capacity: Any, error: type[Exception]) -> None:
    """There is no ring without an end."""
    with pytest.raises(error, match="capacity must be"):
        broadcast(capacity)


def test_a_forgotten_sender_ends_it_with_a_warning_and_a_forgotten_receiver_does_not_count() -> None:
    """Nobody waits for a receiver."""
    sender, receiver = broadcast[int](1)
    forgotten = sender.subscribe()
    assert sender.receivers == 2
    del forgotten
    assert sender.receivers == 1
    with pytest.warns(ResourceWarning, match="BroadcastSender.* was dropped"):
        del sender
    assert all_of(receiver) == []


def test_a_value_is_freed_when_it_is_overwritten_and_may_send_then() -> None:
    """Its finaliser runs outside of the lock; what it sends is in order."""
    sender, receiver = broadcast[object](1)

    class Value:
        def __del__(self) -> None:
            sender.send("last words")

    with sender, receiver:
        sender.send(Value())
        sender.send("next")
        with pytest.raises(Lagged) as caught:
            receiver.receive_nowait()
        assert caught.value.missed == 2
        assert receiver.receive_nowait() == "last words"


def test_loops_threads_and_trio_get_the_same_in_the_same_order(left: TestLoop, right: TestLoop) -> None:
    """From two senders at once."""
    sender, receiver = broadcast[int](1000)

    async def follow(end: BroadcastReceiver[int]) -> list[int]:
        async with end:
            return [value async for value in end]

    following: list[Any] = [
        left.spawn(follow, receiver.clone()),
        right.spawn(follow, receiver.clone()),
        in_trio(follow, receiver.clone()),
        TestThread(all_of, receiver),
    ]

    def publish(start: int) -> None:
        with sender.clone() as own:
            for value in range(start, start + 200):
                assert own.send(value) == 4

    publishing = [TestThread(publish, 0), TestThread(publish, 200)]
    for one in publishing:
        one.result()
    sender.close()
    seen = [one.result() for one in following]
    assert all(each == seen[0] for each in seen)
    assert sorted(seen[0]) == list(range(400))


def test_all_who_wait_are_woken_by_one_value(left: TestLoop, right: TestLoop) -> None:
    """And by the end, and by the closing of their own receiver."""
    sender, receiver = broadcast[int](4)
    others = [receiver.clone() for _ in range(3)]

    def start() -> list[Any]:
        waiting = in_all_worlds(left, right, [other.receive for other in others], receiver.sync.receive)
        until(lambda: len(receiver._ring.line) == 4)
        return waiting

    waiting = start()
    sender.send(1)
    assert [one.result() for one in waiting] == [1] * 4
    waiting = start()
    others[0].close()
    with pytest.raises(ClosedEndError):
        waiting[0].result(30)
    assert len(receiver._ring.line) == 3
    sender.close()
    for one in waiting[1:]:
        with pytest.raises(ChannelClosed):
            one.result()
    for end in (receiver, *others):
        end.close()


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_a_cancelled_receive_has_taken_nothing(left: TestLoop, cancelled_first: bool) -> None:
    """The value is there for the next call."""
    sender, receiver = broadcast[int](1)
    doomed = left.spawn(receiver.receive)
    left.wait_all_blocked()
    cancel_amid(left, doomed, lambda: sender.send(1), cancelled_first)
    assert receiver.receive_nowait() == 1
    assert not receiver._ring.line
    sender.close()
    receiver.close()


def test_a_call_that_would_block_a_loop_is_refused(left: TestLoop) -> None:
    """With the twin to await."""
    sender, receiver = broadcast[int](1)
    with sender, receiver, pytest.raises(BlockingCallError, match=r"await receiver.receive\(\)"):
        left.run(receiver.sync.receive)

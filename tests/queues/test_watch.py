"""``watch``: the latest value, waits for a newer one, and the end."""

import asyncio
from typing import Any

import pytest
from tests.helpers import cancel_amid, in_all_worlds, in_trio, until

from polyloop import BlockingCallError
from polyloop.queues import ChannelClosed, ClosedEndError, WatchReceiver, watch
from polyloop.testing import TestLoop, TestThread


def test_a_receiver_sees_the_latest_value_and_not_all() -> None:
    """``value`` looks, ``changed`` waits for a newer one than was seen."""

    async def main() -> None:
        sender, receiver = watch("a")
        async with sender, receiver:
            assert (sender.value, receiver.value, receiver.has_changed) == ("a", "a", False)
            sender.send("b")
            sender.send("c")
            assert (receiver.value, receiver.has_changed) == ("c", True)
            assert await receiver.changed() == "c"
            assert not receiver.has_changed
            waiter = asyncio.create_task(receiver.changed())
            await asyncio.sleep(0)
            sender.send("d")
            assert await waiter == "d"

    asyncio.run(main())


def test_iteration_begins_with_the_value_that_is_there() -> None:
    """And ends with the last one."""

    async def main() -> list[int]:
        sender, receiver = watch(0)
        seen: list[int] = []
        async with sender, receiver:
            async for value in receiver:
                seen.append(value)
                if value < 3:
                    sender.send(value + 1)
                elif value == 3:
                    sender.send(9)
                    sender.close()
        return seen

    assert asyncio.run(main()) == [0, 1, 2, 3, 9]


def test_the_last_value_is_seen_after_the_end() -> None:
    """Then waits raise, and the value stays readable."""
    sender, receiver = watch(0)
    late = sender.subscribe()
    sender.send(1)
    sender.close()
    assert receiver.sync.changed() == 1
    with pytest.raises(ChannelClosed, match="will not change"):
        receiver.sync.changed()
    assert list(late.sync) == [1]
    receiver.close()
    late.close()
    assert (receiver.value, receiver.sync.value, sender.value) == (1, 1, 1)


def test_a_new_receiver_has_seen_the_value_and_a_clone_what_its_origin_has() -> None:
    """From then on each sees for itself."""
    sender, receiver = watch(0)
    with sender, receiver:
        sender.send(1)
        with sender.subscribe() as subscribed, receiver.clone() as clone:
            assert (subscribed.has_changed, clone.has_changed) == (False, True)
            receiver.sync.changed()
            assert (receiver.has_changed, clone.has_changed) == (False, True)
        assert sender.receivers == 1


def test_a_predicate_is_asked_about_the_value_that_is_there_first() -> None:
    """Then about each newer one; what it raises is raised."""

    async def main() -> None:
        sender, receiver = watch(1)
        with sender, receiver:
            assert await receiver.wait_for(lambda value: value == 1) == 1
            waiter = asyncio.create_task(receiver.wait_for(lambda value: value > 2))
            for value in (2, 3):
                await asyncio.sleep(0)
                sender.send(value)
            assert await waiter == 3
            with pytest.raises(ZeroDivisionError):
                await receiver.wait_for(lambda value: value / 0)
            waiter = asyncio.create_task(receiver.wait_for(lambda value: value > 9))
            await asyncio.sleep(0)
            sender.close()
            with pytest.raises(ChannelClosed):
                await waiter

    asyncio.run(main())


def test_time_runs_out() -> None:
    """With the value that was there instead."""
    sender, receiver = watch(0)
    with sender, receiver:
        with pytest.raises(TimeoutError, match=r"did not change within 0\.0 s"):
            receiver.sync.changed(0.0)
        with pytest.raises(TimeoutError, match=r"within 0\.001 s; it is 0"):
            receiver.sync.wait_for(bool, 0.001)
        with pytest.raises(ValueError, match="non-negative"):
            receiver.sync.wait_for(bool, -1)
        assert not receiver._cell.line


def test_a_closed_end_refuses_every_call() -> None:
    """But for the look at the value."""
    sender, receiver = watch(0)
    sender.close()
    receiver.sync.close()
    for call in (
        lambda: sender.send(1),
        sender.subscribe,
        sender.clone,
        receiver.clone,
        receiver.sync.changed,
        lambda: receiver.sync.wait_for(bool),
        lambda: next(iter(receiver.sync)),
    ):
        with pytest.raises(ClosedEndError):
            call()
    assert sender.value == 0


def test_a_forgotten_sender_ends_it_with_a_warning() -> None:
    """A clone that is closed does not."""
    sender, receiver = watch(0)
    sender.clone().close()
    with pytest.warns(ResourceWarning, match="WatchSender.* was dropped"):
        del sender
    with receiver, pytest.raises(ChannelClosed):
        receiver.sync.changed()


def test_a_value_is_freed_when_it_is_replaced_and_may_send_then() -> None:
    """Its finaliser runs outside of the lock."""
    sender, receiver = watch[object](None)

    class Value:
        def __del__(self) -> None:
            sender.send("last words")

    with sender, receiver:
        sender.send(Value())
        sender.send("next")
        assert receiver.sync.changed() == "last words"


def test_all_who_wait_are_told_of_one_change(left: TestLoop, right: TestLoop) -> None:
    """Tasks of two loops and of trio, and a thread; then of the end, or of the closing of their own receiver."""
    sender, receiver = watch(0)
    others = [receiver.clone() for _ in range(3)]

    def start() -> list[Any]:
        waiting = in_all_worlds(left, right, [other.changed for other in others], receiver.sync.changed)
        until(lambda: len(receiver._cell.line) == 4)
        return waiting

    waiting = start()
    sender.send(1)
    assert [one.result() for one in waiting] == [1] * 4
    waiting = start()
    receiver.close()
    with pytest.raises(ClosedEndError):
        waiting[3].result()
    sender.close()
    for one in waiting[:3]:
        with pytest.raises(ChannelClosed):
            one.result()
    for end in others:
        end.close()


def test_who_shares_a_receiver_is_told_of_other_changes(left: TestLoop) -> None:
    """One change, one of them."""
    sender, receiver = watch(0)
    both = [left.spawn(receiver.changed) for _ in range(2)]
    left.wait_all_blocked()
    sender.send(1)
    left.wait_all_blocked()
    assert sorted(one.done() for one in both) == [False, True]
    sender.send(2)
    assert sorted(one.result(30) for one in both) == [1, 2]
    sender.close()
    receiver.close()


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_a_cancelled_wait_has_seen_nothing(left: TestLoop, cancelled_first: bool) -> None:
    """The change is there for the next call."""
    sender, receiver = watch(0)
    doomed = left.spawn(receiver.changed)
    left.wait_all_blocked()
    cancel_amid(left, doomed, lambda: sender.send(1), cancelled_first)
    assert receiver.sync.changed() == 1
    assert not receiver._cell.line
    sender.close()
    receiver.close()


def test_loops_and_threads_follow_the_same_value(any_loop: TestLoop) -> None:
    """Whatever they miss, they see values in order, and the last one."""
    sender, receiver = watch(0)

    async def follow(end: WatchReceiver[int]) -> list[int]:
        async with end:
            return [value async for value in end]

    def follow_in_thread(end: WatchReceiver[int]) -> list[int]:
        with end:
            return list(end.sync)

    following: list[Any] = [any_loop.spawn(follow, receiver.clone()), TestThread(follow_in_thread, receiver.clone())]
    following.append(in_trio(follow, receiver))
    with sender:
        for value in range(1, 200):
            sender.send(value)
    for one in following:
        seen = one.result()
        assert seen == sorted(set(seen))
        assert seen[-1] == 199


def test_a_call_that_would_block_a_loop_is_refused(left: TestLoop) -> None:
    """With the twin to await."""
    sender, receiver = watch(0)
    with sender, receiver:
        with pytest.raises(BlockingCallError, match=r"await receiver.changed\(\)"):
            left.run(receiver.sync.changed)
        with pytest.raises(BlockingCallError, match=r"await receiver.wait_for\(\)"):
            left.run(receiver.sync.wait_for, bool)
        assert left.run(receiver.sync.wait_for, lambda value: value == 0) == 0

"""``channel``: items, room, ends that are closed, cloned and forgotten, both faces, loops, threads and trio."""

import asyncio
import copy
import gc
import math
import pickle
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
from tests.conftest import Flavour
from tests.helpers import cancel_amid, in_all_worlds, in_trio, until

import polyloop
from polyloop import BlockingCallError, PolyloopError, QueueEmpty, QueueFull, QueueShutDown
from polyloop.queues import ChannelClosed, ClosedEndError, Receiver, Sender, broadcast, channel, oneshot, watch
from polyloop.testing import TestLoop, TestThread


def drain(receiver: Receiver[int]) -> list[int]:
    """Receive all there is, and close."""
    with receiver:
        return list(receiver.sync)


# One task


def test_items_come_in_order_and_then_the_end() -> None:
    """``async for`` ends when the senders are closed and nothing is left."""

    async def main() -> list[int]:
        sender, receiver = channel[int](3)
        async with receiver:
            async with sender:
                for item in range(3):
                    await sender.send(item)
            items = [item async for item in receiver]
            with pytest.raises(ChannelClosed, match="all senders are closed"):
                await receiver.receive()
            return items

    assert asyncio.run(main()) == [0, 1, 2]


def test_nowait_says_full_and_empty() -> None:
    """With asyncio's and queue's own errors, and the name of the call that waits."""
    sender, receiver = channel[int](1)
    with sender, receiver:
        with pytest.raises(QueueEmpty, match="await receive"):
            receiver.receive_nowait()
        sender.send_nowait(1)
        with pytest.raises(QueueFull, match="1 items and no room; use 'await send"):
            sender.send_nowait(2)
        assert receiver.receive_nowait() == 1
        sender.send_nowait(2)
        assert (sender.pending, receiver.pending, sender.capacity) == (1, 1, 1)


def test_a_channel_without_a_bound_is_never_full() -> None:
    """Its capacity is infinite."""
    sender, receiver = channel[int](math.inf)
    with sender:
        for item in range(5000):
            sender.send_nowait(item)
        assert (sender.pending, sender.capacity) == (5000, math.inf)
    assert drain(receiver) == list(range(5000))


@pytest.mark.parametrize(
    ("capacity", "error", "message"),
    [
        (0, ValueError, "at least 1, got 0; with 1,"),
        (-1, ValueError, "at least 1"),
        (1.5, TypeError, "an int or math.inf"),
        (None, TypeError, "an int or math.inf"),
    ],
)
def test_a_capacity_is_a_whole_number_of_at_least_one(capacity: Any, error: type[Exception], message: str) -> None:
    """Or infinite; without any room a cancelled ``send`` could not tell whether its item was received."""
    with pytest.raises(error, match=message):
        channel(capacity)


def test_the_ends_say_what_they_are() -> None:
    """Their repr and properties count both sides."""
    sender, receiver = channel[int](1)
    clone = sender.clone()
    with receiver, sender, clone:
        assert (receiver.senders, receiver.receivers, receiver.closed) == (2, 1, False)
        assert "open, 2 senders, 1 receivers>" in repr(sender)
        clone.close()
        clone.close()
        assert (sender.senders, clone.closed) == (1, True)
        assert "closed, 1 senders" in repr(clone)
        assert repr(receiver.sync).startswith("<sync face of <Receiver at ")
        assert repr(sender.sync).startswith("<sync face of <Sender at ")


def test_the_errors_have_the_meaning_of_builtins() -> None:
    """The end of a channel is that of a queue; both pickle."""
    assert issubclass(ChannelClosed, QueueShutDown)
    assert issubclass(ChannelClosed, asyncio.QueueShutDown)
    assert issubclass(ClosedEndError, RuntimeError)
    assert issubclass(ClosedEndError, PolyloopError)
    assert pickle.loads(pickle.dumps(ChannelClosed("over"))).args == ("over",)


# Ends


def test_a_closed_end_refuses_every_call() -> None:
    """With an error of its own: it is the caller who closed it."""

    async def main() -> None:
        sender, receiver = channel[int](1)
        sender.close()
        receiver.close()
        calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [lambda: sender.send(1), receiver.receive]
        for call in calls:
            with pytest.raises(ClosedEndError, match="was closed"):
                await call()
        with pytest.raises(ClosedEndError):
            async for _ in receiver:
                pass

    asyncio.run(main())
    sender, receiver = channel[int](1)
    sender.sync.close()
    receiver.sync.close()
    for call in (
        sender.clone,
        receiver.clone,
        lambda: sender.send_nowait(1),
        lambda: sender.sync.send(1),
        receiver.receive_nowait,
        receiver.sync.receive,
    ):
        with pytest.raises(ClosedEndError):
            call()


def test_clones_keep_a_channel_open() -> None:
    """It ends with the last of each side."""
    sender, receiver = channel[int](3)
    with sender.clone() as clone:
        sender.close()
        clone.send_nowait(1)
    with receiver.clone() as other:
        receiver.close()
        assert list(other.sync) == [1]


def test_items_left_are_dropped_with_the_last_receiver() -> None:
    """And who sends is told that nobody receives."""
    sender, receiver = channel[object](3)
    with sender:
        sender.send_nowait(object())
        receiver.close()
        assert sender.pending == 0
        with pytest.raises(ChannelClosed, match="all receivers are closed"):
            sender.send_nowait(1)
        with pytest.raises(ChannelClosed):
            sender.sync.send(1)


def test_items_left_when_the_senders_went_first_are_dropped_too() -> None:
    """The last receiver drops what it has not received."""
    sender, receiver = channel[int](3)
    sender.send_nowait(1)
    sender.close()
    receiver.close()
    assert receiver.pending == 0


def test_a_sender_that_is_forgotten_ends_the_channel_with_a_warning() -> None:
    """Its receiver does not wait for ever."""
    sender, receiver = channel[int](1)
    sender.send_nowait(1)
    with pytest.warns(ResourceWarning, match="Sender.* was dropped without having been closed"):
        del sender
    assert drain(receiver) == [1]


def test_a_receiver_that_is_forgotten_ends_the_channel_with_a_warning() -> None:
    """Its sender does not wait for ever; also if the collector finds it in a cycle."""
    sender, receiver = channel[int](1)
    cycle: list[Any] = [receiver]
    cycle.append(cycle)
    del receiver
    del cycle
    with pytest.warns(ResourceWarning, match="Receiver.* was dropped"):
        gc.collect()
    with sender, pytest.raises(ChannelClosed):
        sender.send_nowait(1)


def test_an_end_that_nobody_waits_for_is_dropped_in_silence() -> None:
    """The other side has gone before."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sender, receiver = channel[int](1)
        receiver.close()
        del sender


@pytest.mark.parametrize("make", [lambda: channel(1), lambda: broadcast(1), lambda: watch(1), oneshot])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_end_is_neither_copied_nor_sent_to_another_process(
    make: Callable[[], tuple[Any, Any]], duplicate: Callable[[object], object]
) -> None:
    """What was sent by a copy would be lost without a word."""
    for end in make():
        with end, pytest.raises(TypeError, match=f"cannot copy or pickle <{type(end).__name__} at .* its process"):
            duplicate(end)


def test_an_item_is_not_kept_by_the_channel() -> None:
    """What was received is the receiver's alone."""

    class Item:
        alive = True

        def __del__(self) -> None:
            Item.alive = False

    sender, receiver = channel[Item](1)
    with sender, receiver:
        sender.send_nowait(Item())
        receiver.receive_nowait()
        gc.collect()
        assert not Item.alive


# Several loops and threads


def test_a_loop_a_thread_and_trio_share_a_channel(left: TestLoop) -> None:
    """Each receives, each sends, and every item comes once."""
    sender, receiver = channel[int](2)
    results, more = channel[int](math.inf)

    async def work(source: Receiver[int], sink: Sender[int]) -> None:
        async with source, sink:
            async for item in source:
                await sink.send(item * item)

    def work_in_thread(source: Receiver[int], sink: Sender[int]) -> None:
        with source, sink:
            for item in source.sync:
                sink.sync.send(item * item)

    pending: list[Any] = [
        left.spawn(work, receiver.clone(), results.clone()),
        in_trio(work, receiver.clone(), results.clone()),
        TestThread(work_in_thread, receiver, results),
    ]
    with sender:
        for item in range(100):
            sender.sync.send(item)
    for one in pending:
        one.result()
    assert sorted(drain(more)) == [item * item for item in range(100)]


def test_every_kind_of_loop_is_woken(any_loop: TestLoop, flavour: Flavour) -> None:
    """Items go to it and come from it one by one."""
    there, source = channel[int](1)
    sink, back = channel[int](1)

    async def echo() -> None:
        async with source, sink:
            async for item in source:
                await sink.send(item)

    handle = any_loop.spawn(echo)
    with there:
        for item in range(20):
            there.sync.send(item)
            assert back.sync.receive(30) == item
    handle.result(30)
    back.close()


def test_who_waits_for_room_is_woken_in_turn(left: TestLoop, right: TestLoop) -> None:
    """First come, first served, over loops and threads."""
    sender, receiver = channel[str](1)
    sender.send_nowait("first")
    pending: list[Any] = []
    for name, start in (
        ("left", lambda: left.spawn(sender.send, "left")),
        ("thread", lambda: TestThread(sender.sync.send, "thread")),
        ("right", lambda: right.spawn(sender.send, "right")),
    ):
        pending.append(start())
        until(lambda: len(sender._pipe.queue._putters) == len(pending))
        assert name
    with sender, receiver:
        assert [receiver.sync.receive(30) for _ in range(4)] == ["first", "left", "thread", "right"]
        for one in pending:
            one.result()


def test_a_call_that_would_block_a_loop_is_refused(left: TestLoop) -> None:
    """With the twin to await; one that need not wait is not."""
    sender, receiver = channel[int](1)

    def on_loop() -> None:
        with pytest.raises(BlockingCallError, match=r"use 'await receiver.receive\(\)' there"):
            receiver.sync.receive()
        sender.sync.send(1)
        with pytest.raises(BlockingCallError, match=r"use 'await sender.send\(\)' there"):
            sender.sync.send(2, timeout=1)
        assert receiver.sync.receive() == 1

    with sender, receiver:
        left.run(on_loop)
        assert (receiver.pending, len(sender._closing), len(receiver._closing)) == (0, 0, 0)


def test_time_runs_out_on_both_sides() -> None:
    """What was waited for is not there, and nothing is left in any line."""
    sender, receiver = channel[int](1)
    with sender, receiver:
        with pytest.raises(QueueEmpty, match=r"within 0\.0 s"):
            receiver.sync.receive(0.0)
        sender.send_nowait(1)
        with pytest.raises(QueueFull, match=r"no room for 0\.001 s"):
            sender.sync.send(2, 0.001)
        with pytest.raises(ValueError, match="non-negative"):
            sender.sync.send(2, -1)
        assert not sender._pipe.queue._getters
        assert not sender._pipe.queue._putters


# Races


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_an_item_that_meets_a_cancellation_goes_to_the_next(
    left: TestLoop, right: TestLoop, cancelled_first: bool
) -> None:
    """Both happen before the receiver can run."""
    sender, receiver = channel[int](1)
    doomed = left.spawn(receiver.receive)
    left.wait_all_blocked()
    following = right.spawn(receiver.receive)
    right.wait_all_blocked()
    cancel_amid(left, doomed, lambda: sender.send_nowait(1), cancelled_first)
    assert following.result(30) == 1
    assert not receiver._closing
    sender.close()
    receiver.close()


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_room_that_meets_a_cancellation_goes_to_the_next(
    left: TestLoop, right: TestLoop, cancelled_first: bool
) -> None:
    """The cancelled sender has sent nothing."""
    sender, receiver = channel[int](1)
    sender.send_nowait(0)
    doomed = left.spawn(sender.send, 1)
    left.wait_all_blocked()
    following = right.spawn(sender.send, 2)
    right.wait_all_blocked()
    cancel_amid(left, doomed, receiver.receive_nowait, cancelled_first)
    following.result(30)
    sender.close()
    assert drain(receiver) == [2]


def test_closing_an_end_wakes_those_who_wait_by_way_of_it_only(left: TestLoop, right: TestLoop) -> None:
    """Other ends of the same side wait on, in their order."""
    sender, receiver = channel[int](1)
    other = receiver.clone()
    first = left.spawn(other.receive)
    left.wait_all_blocked()
    doomed = right.spawn(receiver.receive)
    right.wait_all_blocked()
    doomed_thread = TestThread(receiver.sync.receive)
    until(lambda: len(receiver._closing) == 2)
    last = left.spawn(other.receive)
    left.wait_all_blocked()
    receiver.close()
    for one in (doomed, doomed_thread):
        with pytest.raises(ClosedEndError):
            one.result()
    sender.send_nowait(1)
    assert first.result(30) == 1
    sender.send_nowait(2)
    assert last.result(30) == 2
    sender.close()
    other.close()


def test_closing_a_sender_wakes_those_who_wait_for_room_by_way_of_it(left: TestLoop) -> None:
    """Who waits by way of another one gets the room."""
    sender, receiver = channel[int](1)
    other = sender.clone()
    sender.send_nowait(0)
    doomed = left.spawn(sender.send, 1)
    left.wait_all_blocked()
    patient = TestThread(other.sync.send, 2)
    until(lambda: len(other._closing) == 1)
    sender.close()
    with pytest.raises(ClosedEndError):
        doomed.result(30)
    assert receiver.sync.receive(30) == 0
    patient.result()
    other.close()
    assert drain(receiver) == [2]


def test_the_end_wakes_all_who_wait(left: TestLoop, right: TestLoop) -> None:
    """Receivers when the last sender is closed, senders when the last receiver is."""
    sender, receiver = channel[int](1)
    receiving = in_all_worlds(left, right, [receiver.receive] * 3, receiver.sync.receive)
    until(lambda: len(receiver._closing) == 4)
    sender.close()
    for one in receiving:
        with pytest.raises(ChannelClosed):
            one.result()
    receiver.close()

    sender, receiver = channel[int](1)
    sender.send_nowait(0)
    sending: list[Any] = [left.spawn(sender.send, 1), TestThread(sender.sync.send, 2), in_trio(sender.send, 3)]
    until(lambda: len(sender._closing) == 3)
    receiver.close()
    for one in sending:
        with pytest.raises(ChannelClosed):
            one.result()
    sender.close()


def test_a_cancelled_trio_task_has_taken_nothing() -> None:
    """Nor sent anything."""
    sender, receiver = channel[int](1)

    async def main() -> None:
        with trio.move_on_after(0.01):
            await receiver.receive()
        sender.send_nowait(1)
        with trio.move_on_after(0.01):
            await sender.send(2)

    in_trio(main).result()
    sender.close()
    assert drain(receiver) == [1]


def test_it_works_in_a_runtime() -> None:
    """Producers and consumers on any of its loops."""

    async def produce(sender: Sender[int], items: range) -> None:
        async with sender:
            for item in items:
                await sender.send(item)

    async def consume(receiver: Receiver[int]) -> int:
        async with receiver:
            return sum([item async for item in receiver])

    async def main() -> int:
        sender, receiver = channel[int](4)
        async with polyloop.TaskGroup() as group:
            with sender, receiver:
                for start in range(0, 400, 100):
                    group.create_task(produce(sender.clone(), range(start, start + 100)))
                sums = [group.create_task(consume(receiver.clone())) for _ in range(3)]
        return sum([await each for each in sums])

    assert polyloop.run(main(), loops=3) == sum(range(400))

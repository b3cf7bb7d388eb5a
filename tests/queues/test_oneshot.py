"""``oneshot``: one value, sent once and received once; or the end, or a receiver that has gone."""

import asyncio
import gc
from typing import Any

import pytest
from tests.helpers import cancel_amid, in_trio, until

from polyloop import BlockingCallError, QueueEmpty
from polyloop.queues import ChannelClosed, ClosedEndError, OneshotReceiver, OneshotSender, oneshot
from polyloop.testing import TestLoop, TestThread


def test_the_value_is_awaited() -> None:
    """By ``await receiver``, or ``receive``; before it is sent or after."""

    async def main() -> None:
        sender, receiver = oneshot[int]()
        sender.send(1)
        assert await receiver == 1
        sender, receiver = oneshot[int]()
        waiter = asyncio.create_task(receiver.receive())
        await asyncio.sleep(0)
        sender.send(2)
        assert await waiter == 2

    asyncio.run(main())


def test_a_value_is_sent_once_and_received_once() -> None:
    """More is refused on both sides, and says why."""
    sender, receiver = oneshot[int]()
    with pytest.raises(QueueEmpty):
        receiver.receive_nowait()
    sender.send(1)
    with pytest.raises(ClosedEndError, match="a value was sent before"):
        sender.send(2)
    assert (sender.closed, receiver.closed) == (True, False)
    assert receiver.receive_nowait() == 1
    with pytest.raises(ChannelClosed, match="was received before"):
        receiver.receive_nowait()
    assert list(receiver.sync) == []


def test_a_sender_that_is_closed_without_a_value_ends_the_wait() -> None:
    """And refuses to send."""

    async def main() -> None:
        sender, receiver = oneshot[int]()
        waiter = asyncio.create_task(receiver.receive())
        await asyncio.sleep(0)
        sender.close()
        with pytest.raises(ChannelClosed, match="closed without a value"):
            await waiter
        with pytest.raises(ClosedEndError, match="was closed"):
            sender.send(1)
        assert [value async for value in receiver] == []

    asyncio.run(main())


def test_a_sender_that_is_forgotten_ends_the_wait_with_a_warning() -> None:
    """Also one that its block has left is closed."""
    sender, receiver = oneshot[int]()
    with pytest.warns(ResourceWarning, match="OneshotSender.* was dropped"):
        del sender
    with pytest.raises(ChannelClosed):
        receiver.sync.receive()
    other, receiver = oneshot[int]()
    with other:
        pass
    with pytest.raises(ChannelClosed):
        receiver.sync.receive()


def test_a_sender_learns_that_the_receiver_has_gone() -> None:
    """Closed or forgotten; the value is not kept."""
    sender, receiver = oneshot[int]()
    assert sender.receivers == 1
    receiver.close()
    assert sender.receivers == 0
    with pytest.raises(ChannelClosed, match="the receiver is closed"):
        sender.send(1)
    sender, receiver = oneshot[int]()
    del receiver
    gc.collect()
    with pytest.raises(ChannelClosed):
        sender.send(1)


def test_a_value_that_was_not_received_is_dropped_with_the_receiver() -> None:
    """It is nobody's any more."""
    sender, receiver = oneshot[int]()
    sender.send(1)
    receiver.close()
    assert "value" not in receiver._state
    with pytest.raises(ClosedEndError):
        receiver.receive_nowait()


@pytest.mark.parametrize("kind", ["left", "thread", "trio"])
def test_any_kind_of_waiter_is_woken(left: TestLoop, kind: str) -> None:
    """By a value from another thread."""
    sender, receiver = oneshot[int]()
    start: dict[str, Any] = {
        "left": lambda: left.spawn(receiver.receive),
        "thread": lambda: TestThread(receiver.sync.receive),
        "trio": lambda: in_trio(receiver.receive),
    }
    waiting = start[kind]()
    until(lambda: len(receiver._line) == 1)
    sender.send(1)
    assert waiting.result() == 1


def test_of_several_who_wait_one_gets_the_value(left: TestLoop, right: TestLoop) -> None:
    """The others are told that it is gone."""
    sender, receiver = oneshot[int]()
    waiting: list[Any] = [left.spawn(receiver.receive), right.spawn(receiver.receive)]
    waiting.append(TestThread(receiver.sync.receive))
    until(lambda: len(receiver._line) == 3)
    sender.send(1)
    found: list[object] = []
    for one in waiting:
        try:
            found.append(one.result())
        except ChannelClosed:
            found.append("gone")
    assert sorted(found, key=str) == [1, "gone", "gone"]


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_a_cancelled_wait_has_taken_nothing(left: TestLoop, cancelled_first: bool) -> None:
    """The value is there for the next."""
    sender, receiver = oneshot[int]()

    async def wait(end: OneshotReceiver[int]) -> int:
        return await end

    doomed = left.spawn(wait, receiver)
    left.wait_all_blocked()
    cancel_amid(left, doomed, lambda: sender.send(1), cancelled_first)
    assert receiver.receive_nowait() == 1
    assert not receiver._line


def test_closing_the_receiver_wakes_who_waits_by_way_of_it(left: TestLoop) -> None:
    """With the error of a closed end."""
    sender, receiver = oneshot[int]()
    waiting = left.spawn(receiver.receive)
    left.wait_all_blocked()
    receiver.close()
    with pytest.raises(ClosedEndError):
        waiting.result(30)
    sender.close()


def test_time_runs_out_and_a_loop_is_not_blocked(left: TestLoop) -> None:
    """Neither changes anything."""
    sender, receiver = oneshot[int]()
    with pytest.raises(QueueEmpty, match=r"within 0\.001 s"):
        receiver.sync.receive(0.001)
    with pytest.raises(BlockingCallError, match=r"await receiver.receive\(\)"):
        left.run(receiver.sync.receive)
    sender.send(1)
    assert left.run(receiver.sync.receive) == 1


def test_an_end_that_could_not_be_made_is_dropped_in_silence() -> None:
    """Ends are made by ``oneshot``."""
    for kind in (OneshotSender, OneshotReceiver):
        with pytest.raises(TypeError):
            kind()  # type: ignore[call-arg]


def test_a_closed_receiver_says_so_where_no_loop_runs() -> None:
    """Before it asks for a loop to wait on."""
    sender, receiver = oneshot[int]()
    receiver.close()
    with pytest.raises(ClosedEndError):
        receiver.receive().send(None)
    sender.close()

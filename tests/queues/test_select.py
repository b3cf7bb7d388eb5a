"""``select``: one item of one of several sources, fairly, and nothing lost for the others who wait there."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.helpers import cancel_amid, in_trio, until

from polyloop import (
    BlockingCallError,
    LifoQueue,
    PriorityQueue,
    Queue,
    QueueEmpty,
    QueueShutDown,
    SimpleQueue,
)
from polyloop.queues import (
    ChannelClosed,
    ClosedEndError,
    Lagged,
    Selected,
    _select,
    broadcast,
    channel,
    oneshot,
    select,
    select_sync,
    watch,
)
from polyloop.testing import TestLoop, TestThread


def everything() -> tuple[dict[Any, Callable[[int], object]], list[Any]]:
    """A source of each kind with what puts something there; and the ends to be closed."""
    queues: list[Any] = [Queue(), SimpleQueue(), LifoQueue(), PriorityQueue()]
    sender, receiver = channel[int](1)
    publisher, subscriber = broadcast[int](1)
    setter, watcher = watch(0)
    shooter, target = oneshot[int]()
    feeds: dict[Any, Callable[[int], object]] = {queue: queue.put_nowait for queue in queues}
    feeds |= {receiver: sender.send_nowait, subscriber: publisher.send, watcher: setter.send, target: shooter.send}
    return feeds, [sender, receiver, publisher, subscriber, setter, watcher, shooter, target]


def test_every_kind_of_source_is_selected_from(left: TestLoop) -> None:
    """While the others have nothing; by a task, a thread and trio."""
    feeds, ends = everything()
    oneshots = [source for source in feeds if source in ends[7:]]
    for start in (
        lambda: left.spawn(select, *feeds),
        lambda: TestThread(select_sync, *feeds),
        lambda: in_trio(select, *feeds),
    ):
        for number, (source, feed) in enumerate(feeds.items(), 1):
            if source in oneshots:
                continue
            waiting: Any = start()
            until(lambda: len(ends[1]._closing) == 1)
            feed(number)
            assert waiting.result() == Selected(source, number)
    (target,) = oneshots
    feeds[target](1)
    assert select_sync(*feeds).source is target
    for end in ends:
        end.close()


def test_what_is_there_is_taken_at_once_and_only_that() -> None:
    """One item; the rest stays."""
    left, right = Queue[int](), Queue[int]()
    left.put_nowait(1)
    right.put_nowait(2)
    assert select_sync(left).item == 1
    assert select_sync(left, right).source is right
    assert left.empty()
    assert right.empty()


def test_a_busy_source_does_not_starve_another() -> None:
    """Of two that always have something, each is taken from."""

    async def main() -> Counter[int]:
        left, right = Queue[int](), Queue[int]()
        for _ in range(400):
            left.put_nowait(0)
            right.put_nowait(1)
        taken = Counter[int]()
        for _ in range(400):
            taken[(await select(left, right)).item] += 1
        for _ in range(100):  # a program that selects in turns from these and from others
            taken[(await select(left, right)).item] += 1
            other = SimpleQueue[int]()
            other.put(2)
            await select(other, SimpleQueue[int]())
        return taken

    taken = asyncio.run(main())
    assert min(taken.values()) > 150


def test_a_source_that_has_ended_is_left_out_until_all_have() -> None:
    """Queues that were shut down and channels without senders alike."""

    async def main() -> None:
        queue = Queue[int]()
        sender, receiver = channel[int](1)
        with receiver:
            sender.send_nowait(1)
            sender.close()
            queue.shutdown()
            assert await select(queue, receiver) == (receiver, 1)
            with pytest.raises(ChannelClosed, match="all that select"):
                await select(queue, receiver)
            other = SimpleQueue[int]()
            waiter = asyncio.create_task(select(queue, other, receiver))
            await asyncio.sleep(0)
            other.put(2)
            assert await waiter == (other, 2)

    asyncio.run(main())


def test_sources_end_while_it_waits(left: TestLoop) -> None:
    """One by one; with the last one it raises."""
    queue = Queue[int]()
    sender, receiver = channel[int](1)
    waiting = left.spawn(select, queue, receiver)
    left.wait_all_blocked()
    queue.shutdown()
    left.wait_all_blocked()
    assert not waiting.done()
    assert not queue._getters
    sender.close()
    with pytest.raises(ChannelClosed):
        waiting.result(30)
    receiver.close()


def test_a_receiver_that_is_closed_meanwhile_raises(left: TestLoop) -> None:
    """It is the caller's own end."""
    queue = Queue[int]()
    sender, receiver = channel[int](1)
    waiting = left.spawn(select, queue, receiver)
    left.wait_all_blocked()
    receiver.close()
    with pytest.raises(ClosedEndError):
        waiting.result(30)
    assert not queue._getters
    sender.close()


def test_a_lag_is_raised_and_the_next_call_goes_on() -> None:
    """As by ``receive``."""
    sender, receiver = broadcast[int](1)
    with sender, receiver:
        sender.send(1)
        sender.send(2)
        with pytest.raises(Lagged):
            select_sync(receiver, Queue[int]())
        assert select_sync(receiver, Queue[int]()).item == 2


def test_wrong_sources_are_refused() -> None:
    """None at all, and what is no source."""
    with pytest.raises(ValueError, match="at least one"):
        select_sync()
    with pytest.raises(TypeError, match="queues and receivers, not for 1"):
        select_sync(Queue[int](), 1)  # type: ignore[call-overload]


def test_a_waker_goes_on_to_the_next_if_the_select_was_woken_before(left: TestLoop, right: TestLoop) -> None:
    """Two items come before the select can run: it takes the first, and who stands behind it gets the second."""
    one, two = Queue[str](), Queue[str]()
    selecting = left.spawn(select, one, two)
    left.wait_all_blocked()
    getter = right.spawn(two.get)
    right.wait_all_blocked()
    with left.paused():
        one.put_nowait("a")
        two.put_nowait("b")
        assert getter.result(30) == "b"
    assert selecting.result(30) == (one, "a")


def test_a_wake_up_that_is_not_used_is_passed_on(
    left: TestLoop, right: TestLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Woken for one source, the select finds something in another first: who stands behind it is woken."""
    monkeypatch.setattr(_select._Dice, "throw", lambda self, sides: 1)
    one, two = Queue[str](), Queue[str]()
    selecting = left.spawn(select, one, two)
    left.wait_all_blocked()
    getter = right.spawn(one.get)
    right.wait_all_blocked()
    with left.paused():
        one.put_nowait("a")
        two.put_nowait("b")
    assert selecting.result(30) == (two, "b")
    assert getter.result(30) == "a"


@pytest.mark.parametrize("cancelled_first", [False, True])
def test_an_item_that_meets_a_cancellation_goes_to_the_next(
    left: TestLoop, right: TestLoop, cancelled_first: bool
) -> None:
    """Both happen before the select can run; it leaves no trace in any line."""
    one, two = Queue[int](), Queue[int]()
    doomed = left.spawn(select, one, two)
    left.wait_all_blocked()
    getter = right.spawn(two.get)
    right.wait_all_blocked()
    cancel_amid(left, doomed, lambda: two.put_nowait(1), cancelled_first)
    assert getter.result(30) == 1
    assert not one._getters
    assert not two._getters


@pytest.mark.parametrize("which", [0, 1])
def test_who_was_woken_in_vain_keeps_its_place(left: TestLoop, right: TestLoop, which: int) -> None:
    """Another was faster; in both lines it is still before those who came later."""
    queues = Queue[int](), Queue[int]()
    selecting = left.spawn(select, *queues)
    left.wait_all_blocked()
    later = [right.spawn(queue.get) for queue in queues]
    right.wait_all_blocked()
    with left.paused():
        queues[0].put_nowait(1)
        assert queues[0].get_nowait() == 1
    left.wait_all_blocked()
    queues[which].put_nowait(2)
    assert selecting.result(30) == (queues[which], 2)
    for getter, queue in zip(later, queues, strict=True):
        queue.put_nowait(3)
        assert getter.result(30) == 3


def test_time_runs_out_and_leaves_no_trace() -> None:
    """With the number of sources in the message."""
    one, two = Queue[int](), SimpleQueue[int]()
    for timeout in (0, 0.001):
        with pytest.raises(QueueEmpty, match=f"none of the 2 sources had anything within {timeout} s"):
            select_sync(one, two, timeout=timeout)
    assert not one._getters
    assert not two._getters


def test_a_call_that_would_block_a_loop_is_refused(left: TestLoop) -> None:
    """One that need not wait is not."""
    queue = Queue[int]()

    def on_loop() -> None:
        with pytest.raises(BlockingCallError, match=r"await select\(\)"):
            select_sync(queue)
        queue.put_nowait(1)
        assert select_sync(queue).item == 1

    left.run(on_loop)


def test_a_shutdown_reaches_those_behind_a_select(left: TestLoop, right: TestLoop) -> None:
    """It stays for another source, and they are told all the same."""
    one, two = Queue[int](), Queue[int]()
    selecting = left.spawn(select, one, two)
    left.wait_all_blocked()
    getters = [right.spawn(one.get) for _ in range(2)]
    right.wait_all_blocked()
    one.shutdown()
    for getter in getters:
        with pytest.raises(QueueShutDown):
            getter.result(30)
    left.wait_all_blocked()
    two.put_nowait(1)
    assert selecting.result(30) == (two, 1)

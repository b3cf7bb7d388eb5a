"""Every order of a few sends, receives, closes, clones, cancellations and timeouts, over the real code."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.helpers import equal, explore_for_longer

from polyloop import Queue, QueueEmpty, QueueShutDown, SimpleQueue
from polyloop.queues import (
    BroadcastReceiver,
    ChannelClosed,
    ClosedEndError,
    Lagged,
    OneshotReceiver,
    Receiver,
    Selected,
    Sender,
    _select,
    broadcast,
    channel,
    oneshot,
    select,
    select_sync,
    watch,
)
from polyloop.queues._ends import End
from polyloop.testing import Interleaving, explore

#: Schedules with one preemption, and at random, in a test that is run all the time. The stress test runs on.
SCHEDULES = 200


def in_the_end(it: Interleaving, check: Callable[[], object], *ends: End) -> None:
    """Check, and close what else would be dropped without having been closed."""

    def look() -> None:
        try:
            check()
        finally:
            for end in ends:
                end.close()

    it.check(look)


def attempt[R](fn: Callable[[], R]) -> Callable[[], R | str]:
    """``fn``, with what a channel raises as a result."""

    def call() -> R | str:
        try:
            return fn()
        except (QueueShutDown, ClosedEndError, Lagged, QueueEmpty) as exc:
            return type(exc).__name__

    return call


def attempting[R](fn: Callable[[], Coroutine[Any, Any, R]]) -> Callable[[], Coroutine[Any, Any, R | str]]:
    async def call() -> R | str:
        try:
            return await fn()
        except (QueueShutDown, ClosedEndError, Lagged) as exc:
            return type(exc).__name__

    return call


def left_in[T](receiver: Receiver[T] | BroadcastReceiver[T]) -> list[T]:
    found: list[T] = []
    try:
        while True:
            found.append(receiver.receive_nowait())
    except (QueueEmpty, ChannelClosed):
        return found


def left_in_queue(queue: Queue[int] | SimpleQueue[int]) -> list[int]:
    found: list[int] = []
    try:
        while True:
            found.append(queue.get_nowait())
    except (QueueEmpty, QueueShutDown):
        return found


# channel


def sent_from_loop_to_thread(it: Interleaving) -> None:
    """A channel with room for one brings two items over, and then the end."""
    sender, receiver = channel[int](1)

    async def produce() -> None:
        async with sender:
            await sender.send(1)
            await sender.send(2)

    it.coroutine(produce)
    consumer = it.thread(lambda: list(receiver.sync), name="consume")
    in_the_end(it, lambda: equal(consumer.result(), [1, 2]), receiver)


def the_last_two_senders_are_closed_at_once(it: Interleaving) -> None:
    """Both have sent before; the receiver gets both items and then the end."""
    sender, receiver = channel[int](2)

    def produce(end: Sender[int], item: int) -> None:
        with end:
            end.send_nowait(item)

    it.thread(produce, sender, 1)
    it.thread(produce, sender.clone(), 2)
    consumer = it.thread(lambda: sorted(receiver.sync), name="consume")
    in_the_end(it, lambda: equal(consumer.result(), [1, 2]), receiver)


def a_sender_is_cloned_while_it_is_closed(it: Interleaving) -> None:
    """Either the clone is refused, or it counts and its item arrives."""
    sender, receiver = channel[int](1)

    def clone() -> int:
        with sender.clone() as twin:
            twin.send_nowait(1)
        return 1

    cloner = it.thread(attempt(clone), name="clone")
    it.thread(sender.close)
    consumer = it.thread(lambda: list(receiver.sync), name="consume")

    def check() -> None:
        assert consumer.result() == ([] if cloner.result() == "ClosedEndError" else [1])

    in_the_end(it, check, receiver)


def a_sender_is_closed_while_it_sends(it: Interleaving) -> None:
    """Either the send is refused, or its item arrives."""
    sender, receiver = channel[int](1)
    sending = it.thread(attempt(lambda: sender.send_nowait(1)), name="send")
    it.thread(sender.close)
    consumer = it.thread(lambda: list(receiver.sync), name="consume")

    def check() -> None:
        assert (sending.result(), consumer.result()) in ((None, [1]), ("ClosedEndError", []))

    in_the_end(it, check, receiver)


def the_last_receiver_is_closed_under_a_send(it: Interleaving) -> None:
    """The send raises, unless its item was accepted before and dropped; it does not wait for ever."""
    sender, receiver = channel[int](1)
    sender.send_nowait(0)
    sending = it.coroutine(attempting(lambda: sender.send(1)), name="send")
    it.thread(receiver.close)
    in_the_end(it, lambda: equal((sending.result(), sender.pending), ("ChannelClosed", 0)), sender)


def a_sender_is_closed_while_it_and_another_wait_for_room(it: Interleaving) -> None:
    """It is refused, or served; the room goes to the other if not to it."""
    sender, receiver = channel[int](1)
    other = sender.clone()
    sender.send_nowait(0)
    sending = it.coroutine(attempting(lambda: sender.send(1)), name="send")
    it.thread(other.sync.send, 2, name="other")

    def drain() -> list[int]:
        sender.close()
        return [receiver.sync.receive(), receiver.sync.receive()]

    drained = it.thread(drain)

    def check() -> None:
        sent = [0, 2] if sending.result() == "ClosedEndError" else [0, 1, 2]
        assert sorted([*drained.result(), *left_in(receiver)]) == sent

    in_the_end(it, check, other, receiver)


def one_of_two_receivers_is_closed(it: Interleaving) -> None:
    """The one item reaches who waits by way of the other; if it was faster, it gives it back."""
    sender, receiver = channel[int](2)
    other = receiver.clone()

    def receive_and_give_back() -> None:
        sender.send_nowait(receiver.sync.receive())

    it.thread(attempt(receive_and_give_back), name="doomed")
    patient = it.coroutine(other.receive, name="patient")

    def feed() -> None:
        sender.send_nowait(1)
        receiver.close()

    it.thread(feed)
    in_the_end(it, lambda: equal(patient.result(), 1), sender, other)


def one_of_two_receives_is_cancelled(it: Interleaving) -> None:
    """The same for one that is cancelled."""
    sender, receiver = channel[int](2)

    async def receive_and_give_back() -> None:
        sender.send_nowait(await receiver.receive())

    doomed = it.coroutine(receive_and_give_back, name="doomed")
    patient = it.thread(receiver.sync.receive, name="patient")

    def feed() -> None:
        sender.send_nowait(1)
        doomed.cancel()

    it.thread(feed)
    in_the_end(it, lambda: equal(patient.result(), 1), sender, receiver)


# select


def chosen(*sources: Any, timeout: float | None = None) -> Selected[int]:
    """``select_sync`` that begins with the same source in each run."""
    _select._dice.state = 1
    return select_sync(*sources, timeout=timeout)


async def choose(*sources: Any) -> Selected[int]:
    _select._dice.state = 1
    return await select(*sources)


def selected_beside_getters(it: Interleaving) -> None:
    """Two items in two queues: one goes to the select; a getter of the other queue gets the other."""
    left, right = Queue[int](), SimpleQueue[int]()
    choice = it.thread(chosen, left, right)
    it.thread(left.put_nowait, 1)
    it.thread(right.put_nowait, 2)

    def check() -> None:
        source, item = choice.result()
        assert item == (1 if source is left else 2)
        assert sorted([item, *left_in_queue(left), *left_in_queue(right)]) == [1, 2]

    it.check(check)


def a_wake_up_that_select_does_not_use_is_passed_on(it: Interleaving) -> None:
    """Two items, one for each queue; who waits for one of them only is not forgotten for the one who selects."""
    left, right = Queue[int](), SimpleQueue[int]()
    choice = it.coroutine(choose, left, right)
    getter = it.thread(left.sync.get, name="getter")

    def feed() -> None:
        left.put_nowait(1)
        right.put_nowait(2)
        left.put_nowait(3)

    it.thread(feed)

    def check() -> None:
        taken = [choice.result().item, getter.result(), *left_in_queue(left), *left_in_queue(right)]
        assert sorted(taken) == [1, 2, 3]

    it.check(check)


def two_select_from_the_same_two(it: Interleaving) -> None:
    """Each gets one of two items, also if both are in one queue."""
    left, right = Queue[int](), Queue[int]()
    first = it.thread(chosen, left, right, name="first")
    second = it.thread(chosen, right, left, name="second")

    def feed() -> None:
        left.put_nowait(1)
        left.put_nowait(2)

    it.thread(feed)
    it.check(lambda: equal(sorted([first.result().item, second.result().item]), [1, 2]))


def a_select_is_cancelled(it: Interleaving) -> None:
    """The one item reaches who stands behind it; if it was faster, it gives it back."""
    left, right = Queue[int](), Queue[int]()

    async def choose_and_give_back() -> None:
        right.put_nowait((await choose(left, right)).item)

    doomed = it.coroutine(choose_and_give_back, name="doomed")
    getter = it.thread(right.sync.get, name="getter")

    def feed() -> None:
        right.put_nowait(1)
        doomed.cancel()

    it.thread(feed)
    it.check(lambda: equal(getter.result(), 1))


def a_select_runs_out_of_time(it: Interleaving) -> None:
    """The same for one that gives up at the end of its time."""
    left, right = Queue[int](), SimpleQueue[int]()

    def choose_and_give_back() -> None:
        try:
            right.put(chosen(left, right, timeout=1).item)
        except QueueEmpty:
            pass

    it.thread(choose_and_give_back, name="impatient")
    getter = it.thread(right.sync.get, name="getter")
    it.thread(right.put, 1)
    it.check(lambda: equal(getter.result(), 1))


def a_source_is_shut_down_beside_a_getter(it: Interleaving) -> None:
    """The getter is told, and the select waits on for what is left."""
    left, right = Queue[int](), Queue[int]()
    choice = it.thread(chosen, left, right)
    getter = it.thread(attempt(left.sync.get), name="getter")

    def end() -> None:
        left.put_nowait(1)
        left.shutdown()
        right.put_nowait(2)

    it.thread(end)

    def check() -> None:
        source, item = choice.result()
        assert getter.result() == ("QueueShutDown" if source is left else 1)
        assert sorted([item, *([1] if getter.result() == 1 else []), *left_in_queue(right)]) == [1, 2]

    it.check(check)


def selected_from_receivers_that_end(it: Interleaving) -> None:
    """The item of the one that ends later is taken; then all have ended."""
    sender, receiver = channel[int](1)
    publisher, subscriber = broadcast[int](1)

    def run() -> list[int | str]:
        first = chosen(receiver, subscriber).item
        return [first, attempt(lambda: chosen(receiver, subscriber).item)()]

    choice = it.thread(run)
    it.thread(sender.close)

    def publish() -> None:
        with publisher:
            publisher.send(1)

    it.thread(publish)
    in_the_end(it, lambda: equal(choice.result(), [1, "ChannelClosed"]), receiver, subscriber)


# broadcast


def two_publish_to_two(it: Interleaving) -> None:
    """Both get both values, in the same order."""
    sender, first = broadcast[int](2)
    second = first.clone()
    for value, end in ((1, sender), (2, sender.clone())):

        def publish(value: int = value, end: Any = end) -> None:
            with end:
                end.send(value)

        it.thread(publish, name=f"publish-{value}")
    one = it.thread(lambda: list(first.sync), name="one")

    async def follow() -> list[int]:
        return [value async for value in second]

    two = it.coroutine(follow)

    def check() -> None:
        assert sorted(one.result()) == [1, 2]
        assert one.result() == two.result()

    in_the_end(it, check, first, second)


def a_receiver_is_lapped(it: Interleaving) -> None:
    """What it missed and what it got make up what was sent."""
    sender, receiver = broadcast[int](1)

    def publish() -> None:
        with sender:
            for value in range(3):
                sender.send(value)

    it.thread(publish)

    def follow() -> tuple[int, list[int]]:
        missed, values = 0, list[int]()
        while True:
            try:
                values.append(receiver.sync.receive())
            except Lagged as exc:
                missed += exc.missed
            except ChannelClosed:
                return missed, values

    follower = it.thread(follow)

    def check() -> None:
        missed, values = follower.result()
        assert missed + len(values) == 3
        assert values == sorted(set(values))
        assert values[-1] == 2

    in_the_end(it, check, receiver)


def two_share_a_receiver(it: Interleaving) -> None:
    """Each value goes to one of them."""
    sender, receiver = broadcast[int](2)
    first = it.thread(receiver.sync.receive, name="first")
    second = it.coroutine(receiver.receive, name="second")

    def publish() -> None:
        with sender:
            sender.send(1)
            sender.send(2)

    it.thread(publish)
    in_the_end(it, lambda: equal(sorted([first.result(), second.result()]), [1, 2]), receiver)


def two_look_at_once(it: Interleaving) -> None:
    """Each value goes to one of those who share a receiver, also if none has to wait."""
    sender, receiver = broadcast[int](2)
    with sender:
        sender.send(1)
        sender.send(2)
    both = [it.thread(receiver.receive_nowait, name=name) for name in ("first", "second")]
    in_the_end(it, lambda: equal(sorted(one.result() for one in both), [1, 2]), receiver)


def the_last_subscriber_leaves_while_one_publishes(it: Interleaving) -> None:
    """Nobody hangs, and what was sent counts as sent or not; who shares the receiver is told."""
    sender, receiver = broadcast[int](1)
    taker = it.thread(attempt(receiver.sync.receive), name="taker")
    publisher = it.thread(sender.send, 1, name="publisher")
    it.thread(receiver.close)

    def check() -> None:
        assert taker.result() in (1, "ClosedEndError")
        assert publisher.result() in (0, 1)
        assert publisher.result() or taker.result() != 1

    in_the_end(it, check, sender)


# watch


def a_value_is_watched(it: Interleaving) -> None:
    """Who waits for a change sees the last value in the end, whatever it misses."""
    sender, receiver = watch(0)

    def change() -> None:
        with sender:
            sender.send(1)
            sender.send(2)

    it.thread(change)

    async def follow() -> list[int]:
        return [value async for value in receiver]

    follower = it.coroutine(follow)

    def check() -> None:
        seen = follower.result()
        assert seen == sorted(set(seen))
        assert seen[-1] == 2

    in_the_end(it, check, receiver)


def two_share_what_they_have_seen(it: Interleaving) -> None:
    """Of one change one of them is told; the other is told of the end."""
    sender, receiver = watch(0)
    first = it.thread(attempt(receiver.sync.changed), name="first")
    second = it.coroutine(attempting(receiver.changed), name="second")

    def change() -> None:
        with sender:
            sender.send(1)

    it.thread(change)
    in_the_end(it, lambda: equal(sorted([first.result(), second.result()], key=str), [1, "ChannelClosed"]), receiver)


def a_predicate_is_waited_for(it: Interleaving) -> None:
    """Who waits for a value that comes gets it; who waits for another is told of the end."""
    sender, receiver = watch(0)
    waiter = it.thread(lambda: receiver.sync.wait_for(bool), name="waiter")
    other = receiver.clone()
    hopeless = it.coroutine(attempting(lambda: other.wait_for(lambda value: value == 3)), name="hopeless")

    def change() -> None:
        with sender:
            sender.send(1)
            sender.send(2)

    it.thread(change)

    def check() -> None:
        assert waiter.result() in (1, 2)
        assert hopeless.result() == "ChannelClosed"

    in_the_end(it, check, receiver, other)


# oneshot


def sent_once(it: Interleaving) -> None:
    """Of two sends and a close at once one wins, and the receiver hears of that one."""
    sender, receiver = oneshot[int]()
    first = it.thread(attempt(lambda: sender.send(1)), name="first")
    second = it.thread(attempt(lambda: sender.send(2)), name="second")
    it.thread(sender.close)

    async def receive() -> int:
        return await receiver

    taker = it.coroutine(attempting(receive))

    def check() -> None:
        won: list[object] = [value for value, sent in ((1, first.result()), (2, second.result())) if sent is None]
        assert len(won) < 2
        assert [taker.result()] == (won or ["ChannelClosed"])

    in_the_end(it, check, receiver)


def given_up_while_it_is_sent(it: Interleaving) -> None:
    """The value is received, or dropped with the receiver, or the sender is told; never two of these."""
    sender, receiver = oneshot[int]()
    sending = it.thread(attempt(lambda: sender.send(1)), name="send")
    taker = it.thread(attempt(receiver.sync.receive), name="taker")
    it.thread(receiver.close)

    def check() -> None:
        assert (taker.result(), sending.result()) in (
            (1, None),
            ("ClosedEndError", None),
            ("ClosedEndError", "ChannelClosed"),
        )
        assert "value" not in receiver._state

    it.check(check)


def one_of_two_who_wait_for_a_value_is_cancelled(it: Interleaving) -> None:
    """Both are woken at once: who goes on has the value, or hears that it is gone."""
    sender, receiver = oneshot[int]()
    got: list[int] = []

    async def take() -> None:
        got.append(await receiver)

    doomed = it.coroutine(attempting(take), name="doomed")
    other = it.coroutine(attempting(receiver.receive), name="other")
    it.thread(doomed.cancel)
    it.thread(sender.send, 1)

    def check() -> None:
        assert (got, other.result()) in (([1], "ChannelClosed"), ([], 1))
        assert not receiver._line

    in_the_end(it, check, receiver)


def the_receiver_is_closed_under_two_while_it_is_sent(it: Interleaving) -> None:
    """Both hear of it, however they wait, and the value is received once, or not at all."""
    sender, receiver = oneshot[int]()
    thread = it.thread(attempt(receiver.sync.receive), name="thread")
    task = it.coroutine(attempting(receiver.receive), name="task")
    sending = it.thread(attempt(lambda: sender.send(1)), name="send")
    it.thread(receiver.close)

    def check() -> None:
        found = [thread.result(), task.result()]
        assert set(found) <= {1, "ClosedEndError", "ChannelClosed"}
        assert found.count(1) <= 1
        if sending.result() == "ChannelClosed":
            assert found == ["ClosedEndError"] * 2
        assert not receiver._line
        assert "value" not in receiver._state

    it.check(check)


def the_receiver_is_closed_under_two(it: Interleaving) -> None:
    """Nobody sends: both hear of the close all the same."""
    sender, receiver = oneshot[int]()
    _closed_under_two(it, receiver, receiver.close, "ClosedEndError", sender)


def the_sender_is_closed_under_two(it: Interleaving) -> None:
    """Both hear that nothing will come."""
    sender, receiver = oneshot[int]()
    _closed_under_two(it, receiver, sender.close, "ChannelClosed", sender)


def _closed_under_two(
    it: Interleaving, receiver: OneshotReceiver[int], close: Callable[[], None], told: str, sender: End
) -> None:
    thread = it.thread(attempt(receiver.sync.receive), name="thread")
    task = it.coroutine(attempting(receiver.receive), name="task")
    it.thread(close)

    def check() -> None:
        assert (thread.result(), task.result()) == (told, told)
        assert not receiver._line

    in_the_end(it, check, receiver, sender)


def the_time_for_a_value_runs_out(it: Interleaving) -> None:
    """It is received in time, or is there for whoever asks next."""
    sender, receiver = oneshot[int]()
    taker = it.thread(attempt(lambda: receiver.sync.receive(timeout=1)), name="taker")
    it.thread(sender.send, 1)

    def check() -> None:
        if taker.result() != 1:
            assert taker.result() == "QueueEmpty"
            assert receiver.receive_nowait() == 1
        assert not receiver._line

    in_the_end(it, check, receiver)


def two_select_from_a_value_and_a_queue(it: Interleaving) -> None:
    """Each has one of the two."""
    sender, receiver = oneshot[int]()
    queue = Queue[int]()
    thread = it.thread(attempt(lambda: chosen(receiver, queue).item), name="thread")
    task = it.coroutine(attempting(lambda: choose(receiver, queue)), name="task")

    def feed() -> None:
        sender.send(1)
        queue.put_nowait(2)

    it.thread(feed)

    def check() -> None:
        selected = task.result()
        assert isinstance(selected, Selected)
        assert {thread.result(), selected.item} == {1, 2}
        assert not receiver._line
        assert not queue._getters

    in_the_end(it, check, receiver)


SCENARIOS: dict[str, Callable[[Interleaving], None]] = {
    fn.__name__.replace("_", " "): fn
    for fn in (
        sent_from_loop_to_thread,
        the_last_two_senders_are_closed_at_once,
        a_sender_is_cloned_while_it_is_closed,
        a_sender_is_closed_while_it_sends,
        the_last_receiver_is_closed_under_a_send,
        a_sender_is_closed_while_it_and_another_wait_for_room,
        one_of_two_receivers_is_closed,
        one_of_two_receives_is_cancelled,
        selected_beside_getters,
        a_wake_up_that_select_does_not_use_is_passed_on,
        two_select_from_the_same_two,
        a_select_is_cancelled,
        a_select_runs_out_of_time,
        a_source_is_shut_down_beside_a_getter,
        selected_from_receivers_that_end,
        two_publish_to_two,
        a_receiver_is_lapped,
        two_share_a_receiver,
        two_look_at_once,
        the_last_subscriber_leaves_while_one_publishes,
        a_value_is_watched,
        two_share_what_they_have_seen,
        a_predicate_is_waited_for,
        sent_once,
        given_up_while_it_is_sent,
        one_of_two_who_wait_for_a_value_is_cancelled,
        the_receiver_is_closed_under_two_while_it_is_sent,
        the_receiver_is_closed_under_two,
        the_sender_is_closed_under_two,
        the_time_for_a_value_runs_out,
        two_select_from_a_value_and_a_queue,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_in_any_order(name: str) -> None:
    """All orders without a preemption, some with one, and some at random."""
    assert explore(SCENARIOS[name], preemptions=0).exhaustive
    assert explore(SCENARIOS[name], preemptions=1, schedules=SCHEDULES).schedules > 1
    assert explore(SCENARIOS[name], preemptions=3, seed=1, schedules=SCHEDULES).schedules == SCHEDULES


@pytest.mark.stress
def test_nothing_is_lost_in_any_order_for_longer(seed: int, seconds: float) -> None:
    """Two preemptions in all orders as far as time allows, and many at random."""
    explore_for_longer(SCENARIOS, seed, seconds)

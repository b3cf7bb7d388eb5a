"""Every order of a few puts, gets, cancellations, timeouts and shutdowns, over the real code."""

import contextlib
import inspect
from collections.abc import Callable

import pytest
from tests.helpers import equal, explore_for_longer

from polyloop import Event, LifoQueue, PriorityQueue, Queue, QueueEmpty, QueueFull, QueueShutDown, SimpleQueue
from polyloop.queues import SyncQueue
from polyloop.testing import InterleavedTask, InterleavedThread, Interleaving, explore

#: Schedules in a test that is run all the time: all with one preemption where they are few. The stress test runs on.
SCHEDULES = 250


def got(side: InterleavedTask[int] | InterleavedThread[int]) -> list[int]:
    """What a getter has taken: one item, or none if it was cancelled."""
    if isinstance(side, InterleavedTask) and side.cancelled():
        return []
    return [side.result()]


def left_in(queue: Queue[int]) -> list[int]:
    return queue.get_many_nowait(100)


def feed_two(queue: Queue[int]) -> None:
    queue.put_nowait(1)
    queue.put_nowait(2)


def handed_from_thread_to_thread(it: Interleaving) -> None:
    """A getter that waits is woken, whenever the item comes."""
    queue = Queue[int]()
    it.thread(queue.sync.put, 1)
    getter = it.thread(queue.sync.get)
    it.check(lambda: equal(getter.result(), 1))


def handed_from_loop_to_loop(it: Interleaving) -> None:
    """The same for two coroutines."""
    queue = Queue[int]()
    it.coroutine(queue.put, 1)
    getter = it.coroutine(queue.get)
    it.check(lambda: equal(getter.result(), 1))


def one_of_two_getters_is_cancelled(it: Interleaving) -> None:
    """The item that the cancelled one was woken for goes to the other."""
    queue = Queue[int]()
    doomed = it.coroutine(queue.get, name="doomed")
    other = it.thread(queue.sync.get, name="other")

    def feed() -> None:
        queue.put_nowait(1)
        doomed.cancel()
        queue.put_nowait(2)

    it.thread(feed)
    it.check(lambda: equal(sorted([*got(doomed), *got(other), *left_in(queue)]), [1, 2]))


def a_getter_runs_out_of_time(it: Interleaving) -> None:
    """The item that it was woken for at the end of its time is taken by it, or goes to the other."""
    queue = Queue[int]()
    taken: list[int] = []

    def impatient() -> None:
        try:
            taken.append(queue.sync.get(timeout=1))
        except QueueEmpty:
            pass

    it.thread(impatient)
    patient = it.thread(queue.sync.get, name="patient")
    it.thread(feed_two, queue)
    it.check(lambda: equal(sorted([patient.result(), *taken, *left_in(queue)]), [1, 2]))


def a_putter_is_cancelled_while_room_is_made(it: Interleaving) -> None:
    """The room that it was woken for goes to the other."""
    queue = Queue[int](1)
    queue.put_nowait(0)
    doomed = it.coroutine(queue.put, 1, name="doomed")
    it.thread(queue.sync.put, 2, name="other")

    def drain() -> list[int]:
        doomed.cancel()
        first = queue.sync.get()
        return [first, queue.sync.get()]

    drained = it.thread(drain)

    def check() -> None:
        put = {0, 2} if doomed.cancelled() else {0, 1, 2}
        assert {*drained.result(), *left_in(queue)} == put

    it.check(check)


def shut_down_while_one_puts_and_one_gets(make: Callable[[], Queue[int]]) -> Callable[[Interleaving], None]:
    def scenario(it: Interleaving) -> None:
        """What was put is got; what was not got was refused."""
        queue = make()
        put: list[int] = []

        def produce() -> None:
            try:
                queue.put_nowait(1)
            except QueueShutDown:
                return
            put.append(1)

        consumer = it.thread(lambda: list(queue.sync), name="consume")
        it.thread(produce)
        it.thread(queue.shutdown)
        it.check(lambda: equal(consumer.result(), put))

    return scenario


def shut_down_while_putters_race(it: Interleaving) -> None:
    """Two puts that race with the shutdown do not take back each other's item."""
    queue = Queue[str]()
    put: list[str] = []

    def produce(item: str) -> None:
        try:
            queue.put_nowait(item)
        except QueueShutDown:
            return
        put.append(item)

    it.thread(produce, "a")
    it.thread(produce, "b")
    it.thread(queue.shutdown)
    it.check(lambda: equal(sorted(queue.get_many_nowait(9)) if put else [], sorted(put)))


def begin_to_put(queue: Queue[str], item: str) -> Callable[[], None]:
    """Do the first half of a put; return what does the other, and takes the item back if the queue has ended."""
    queue._units.append(None)
    queue._items.append(item)

    def go_on() -> None:
        with contextlib.suppress(QueueShutDown):
            queue._after_put(item)

    return go_on


def shut_down_at_once_while_an_item_is_taken_back(it: Interleaving) -> None:
    """Nothing is left of those which are in the hands of that put meanwhile."""
    queue = Queue[str]()
    it.thread(begin_to_put(queue, "a"))
    queue.put_nowait("b")
    it.thread(queue.shutdown, True)
    it.check(lambda: equal((list(queue._items), queue.unfinished_tasks), ([], 0)))


def peeked_at_while_an_item_is_taken_back(it: Interleaving) -> None:
    """A queue whose items are in the hands of that put is not at its end."""
    queue = Queue[str]()
    it.thread(begin_to_put(queue, "a"))
    queue.put_nowait("b")

    def end() -> None:
        queue.shutdown()
        assert queue.peek_nowait() in {"a", "b"}

    it.thread(end)
    it.check(lambda: equal(queue.get_many_nowait(9)[-1], "b"))


#: Puts, and returns what is to be awaited if need be.
type Put = Callable[[Queue[int], SyncQueue[int]], object]


def put_after_the_end(make: Callable[[], Queue[int]], put: Put) -> Callable[[Interleaving], None]:
    def scenario(it: Interleaving) -> None:
        """A put that begins when ``shutdown`` has returned is refused, and nobody sees its item meanwhile."""
        queue, ended = make(), Event()
        face = queue.sync

        async def put_late() -> None:
            await ended.wait()
            with pytest.raises(QueueShutDown):
                if inspect.isawaitable(waiting := put(queue, face)):
                    await waiting

        def end() -> None:
            queue.shutdown(immediate=True)
            ended.set()
            assert queue.empty()
            with pytest.raises(QueueShutDown):
                queue.get_nowait()
            with pytest.raises(QueueShutDown):
                queue.peek_nowait()

        it.coroutine(put_late)
        it.thread(end)

    return scenario


def shut_down_while_one_waits_for_room(it: Interleaving) -> None:
    """The putter is refused, and whoever waits for an item gets the one that is left."""
    queue = Queue[int](1)
    queue.put_nowait(0)
    put = [0]

    async def produce() -> None:
        try:
            await queue.put(1)
        except QueueShutDown:
            return
        put.append(1)

    it.coroutine(produce)
    consumer = it.thread(lambda: list(queue.sync), name="consume")
    it.thread(queue.shutdown)
    it.check(lambda: equal(consumer.result(), put))


def joined_while_the_last_is_done(it: Interleaving) -> None:
    """``join`` returns, and not before all is done."""
    queue = Queue[int]()
    queue.put_nowait(1)
    done: list[int] = []

    def work() -> None:
        done.append(queue.get_nowait())
        queue.task_done()

    def join() -> None:
        queue.sync.join()
        assert done == [1]

    it.thread(work)
    it.thread(join)


def full_or_in_order(it: Interleaving) -> None:
    """A bounded queue never holds more than its bound, and keeps the order of each producer."""
    queue = Queue[int](1)
    refused: list[int] = []

    def produce() -> None:
        for item in (1, 2):
            try:
                queue.put_nowait(item)
            except QueueFull:
                refused.append(item)

    it.thread(produce)
    consumer = it.thread(queue.sync.get)
    it.check(lambda: equal([consumer.result(), *left_in(queue), *refused], [1, 2]))


def batches(it: Interleaving) -> None:
    """A batch wakes as many getters as it has items for."""
    queue = Queue[int]()
    first, second = it.thread(queue.sync.get), it.coroutine(queue.get)
    it.coroutine(queue.put_many, [1, 2])
    it.check(lambda: equal(sorted([first.result(), second.result()]), [1, 2]))


def simple(it: Interleaving) -> None:
    """A simple queue loses nothing either."""
    queue = SimpleQueue[int]()
    doomed, other = it.coroutine(queue.get), it.thread(queue.sync.get)

    def feed() -> None:
        queue.put(1)
        doomed.cancel()
        queue.put(2)

    it.thread(feed)
    it.check(lambda: equal(len(got(doomed)) + len(got(other)) + queue.qsize(), 2))


SCENARIOS: dict[str, Callable[[Interleaving], None]] = {
    "thread to thread": handed_from_thread_to_thread,
    "loop to loop": handed_from_loop_to_loop,
    "cancelled get": one_of_two_getters_is_cancelled,
    "timed get": a_getter_runs_out_of_time,
    "cancelled put": a_putter_is_cancelled_while_room_is_made,
    "shutdown, FIFO": shut_down_while_one_puts_and_one_gets(Queue[int]),
    "shutdown, bounded": shut_down_while_one_puts_and_one_gets(lambda: Queue[int](1)),
    "shutdown, LIFO": shut_down_while_one_puts_and_one_gets(LifoQueue[int]),
    "shutdown, priority": shut_down_while_one_puts_and_one_gets(PriorityQueue[int]),
    "shutdown, two puts": shut_down_while_putters_race,
    "shutdown, waiting put": shut_down_while_one_waits_for_room,
    "shutdown, at once": shut_down_at_once_while_an_item_is_taken_back,
    "shutdown, peek": peeked_at_while_an_item_is_taken_back,
    "join": joined_while_the_last_is_done,
    "full": full_or_in_order,
    "batch": batches,
    "simple": simple,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_item_is_lost_in_any_order(name: str) -> None:
    """The simplest orders first: without a preemption, with one, with two."""
    assert explore(SCENARIOS[name], preemptions=2, schedules=SCHEDULES).schedules > 1


KINDS: list[Callable[[], Queue[int]]] = [Queue[int], lambda: Queue[int](1), LifoQueue[int]]
PUTS: dict[str, Put] = {
    "put": lambda queue, face: queue.put(1),
    "put_nowait": lambda queue, face: queue.put_nowait(1),
    "put_many": lambda queue, face: queue.put_many([1]),
    "face": lambda queue, face: face.put(1),
}


@pytest.mark.parametrize("make", KINDS, ids=["fifo", "bounded", "lifo"])
@pytest.mark.parametrize("put", PUTS)
def test_what_is_put_after_the_end_is_never_seen(make: Callable[[], Queue[int]], put: str) -> None:
    """In all orders with one preemption; by a face, too, that is older than the end."""
    assert explore(put_after_the_end(make, PUTS[put]), preemptions=1).exhaustive


@pytest.mark.stress
def test_no_item_is_lost_in_any_order_for_longer(seed: int, seconds: float) -> None:
    """Two preemptions in all orders as far as time allows, and many at random."""
    explore_for_longer(SCENARIOS, seed, seconds)

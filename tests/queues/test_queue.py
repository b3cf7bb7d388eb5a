"""The queues: both faces, between loops, threads and trio, and what their ends say."""

import asyncio
import math
import queue as std
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from tests.helpers import until

import polyloop
from polyloop import (
    BlockingCallError,
    LifoQueue,
    PriorityQueue,
    Queue,
    QueueEmpty,
    QueueFull,
    QueueShutDown,
    SimpleQueue,
)
from polyloop.queues._tally import FOLD_ABOVE, Tally
from polyloop.testing import TestLoop, TestThread

KINDS: list[Callable[..., Queue[Any]]] = [
    Queue,
    LifoQueue,
    PriorityQueue,
    partial(Queue, sizer=lambda item: 1),  # pyright: ignore[reportUnknownLambdaType]
]


@pytest.fixture(params=KINDS, ids=["fifo", "lifo", "priority", "weighed"])
def make(request: pytest.FixtureRequest) -> Callable[..., Queue[Any]]:
    """Makes a queue of each kind."""
    made: Callable[..., Queue[Any]] = request.param
    return made


# Order


def test_a_queue_is_first_in_first_out() -> None:
    """And the others are what their names say."""
    queues: list[tuple[Queue[int], list[int]]] = [
        (Queue[int](), [2, 3, 1]),
        (LifoQueue[int](), [1, 3, 2]),
        (PriorityQueue[int](), [1, 2, 3]),
    ]
    for queue, order in queues:
        for item in (2, 3, 1):
            queue.put_nowait(item)
        assert queue.peek_nowait() == order[0]
        assert queue.get_many_nowait(9) == order


def test_items_cross_from_anywhere_to_anywhere(
    make: Callable[..., Queue[Any]], left: TestLoop, right: TestLoop
) -> None:
    """A getter that waits on a loop, a thread or in trio gets what a loop, a thread or trio puts."""
    queue = make()
    getters: list[Callable[[], Any]] = [
        lambda: left.spawn(queue.get),
        lambda: TestThread(queue.sync.get),
        lambda: TestThread(trio.run, queue.get),
    ]
    putters: list[Callable[[int], Any]] = [
        lambda item: right.spawn(queue.put, item),
        lambda item: TestThread(queue.sync.put, item),
        lambda item: TestThread(trio.run, queue.put, item),
    ]
    for get in getters:
        for item, put in enumerate(putters):
            getter = get()
            until(lambda: queue._getters)
            put(item).result()
            assert getter.result() == item


def test_getters_are_woken_in_the_order_they_came(make: Callable[..., Queue[Any]], left: TestLoop) -> None:
    """Tasks and threads alike."""
    queue = make()
    order: list[str] = []

    async def get(name: str) -> None:
        await queue.get()
        order.append(name)

    first = left.spawn(get, "first")
    left.wait_all_blocked()
    second = left.spawn(get, "second")
    left.wait_all_blocked()
    queue.put_nowait(1)
    first.result()
    queue.put_nowait(2)
    second.result()
    assert order == ["first", "second"]


# Room


def test_a_full_queue_waits_for_room(make: Callable[..., Queue[Any]], left: TestLoop) -> None:
    """On each face; ``_nowait`` and timed calls say that there is none."""
    queue = make(1)
    queue.put_nowait(1)
    assert queue.full()
    with pytest.raises(QueueFull, match="room"):
        queue.put_nowait(2)
    with pytest.raises(std.Full):
        queue.sync.put(2, block=False)
    with pytest.raises(asyncio.QueueFull, match=r"no room for 0\.01 s"):
        queue.sync.put(2, timeout=0.01)
    waiting = left.spawn(queue.put, 3)
    left.wait_all_blocked()
    assert queue.get_nowait() == 1
    waiting.result()
    threaded = TestThread(queue.sync.put, 4)
    until(lambda: queue._putters)
    assert left.spawn(queue.get).result() == 3
    threaded.result()
    assert queue.get_nowait() == 4


def test_an_item_of_a_cancelled_put_is_not_put(left: TestLoop) -> None:
    """Cancelled at the moment when room was made: the room goes to the next."""
    queue = Queue[int](1)
    queue.put_nowait(0)
    doomed = left.spawn(queue.put, 1)
    left.wait_all_blocked()
    other = TestThread(queue.sync.put, 2)
    until(lambda: len(queue._putters) == 2)
    with left.paused():
        assert queue.get_nowait() == 0
        doomed.cancel()
    other.result()
    with pytest.raises(asyncio.CancelledError):
        doomed.result()
    assert queue.get_many_nowait(9) == [2]


def test_put_racing_a_cancelled_get_keeps_the_item(left: TestLoop, make: Callable[..., Queue[Any]]) -> None:
    """An item for which a getter was woken that is cancelled stays, and the next getter is woken for it."""
    queue = make()
    doomed = left.spawn(queue.get)
    left.wait_all_blocked()
    other = TestThread(queue.sync.get)
    until(lambda: len(queue._getters) == 2)
    with left.paused():  # both happen before the getter can run
        queue.put_nowait("a")
        doomed.cancel()
    assert other.result() == "a"
    with pytest.raises(asyncio.CancelledError):
        doomed.result()


def test_a_huge_bound_costs_nothing_until_it_is_used() -> None:
    """Places are made as they are needed, and no more than the bound."""
    queue = Queue[int](10**9)
    for item in range(5000):
        queue.put_nowait(item)
    assert queue.qsize() == 5000
    small = Queue[int](3000)
    assert small.put_many_nowait(range(4000)) == 3000


# Weights


def test_a_weighed_queue_is_full_by_weight() -> None:
    """And a light item does not overtake a heavy one that waits."""
    queue = Queue[str](10, sizer=len)

    async def main() -> None:
        await queue.put("abcdef")
        heavy = asyncio.create_task(queue.put("ABCDE"))
        await asyncio.sleep(0)
        light = asyncio.create_task(queue.put("x"))
        await asyncio.sleep(0)
        assert not heavy.done()
        assert not light.done()
        with pytest.raises(QueueFull, match="others waiting"):
            queue.put_nowait("y")
        assert await queue.get() == "abcdef"
        await asyncio.gather(heavy, light)
        assert [await queue.get(), await queue.get()] == ["ABCDE", "x"]

    asyncio.run(main())
    with pytest.raises(ValueError, match="weight 11 never fits into a queue of maxsize=10"):
        queue.put_nowait("a" * 11)
    with pytest.raises(ValueError, match="weight -1"):
        Queue[int](10, sizer=lambda item: -1).put_nowait(1)
    assert queue.sync.empty()


def test_items_of_a_heap_that_cannot_be_compared_are_not_lost() -> None:
    """A put that fails has put nothing; a get that fails has taken nothing."""
    queue = PriorityQueue[Any]()
    for item in (5, 3, 8, 1):
        queue.put_nowait(item)
    with pytest.raises(TypeError, match="not supported"):
        queue.put_nowait("x")
    assert queue.unfinished_tasks == 4
    assert queue.get_many_nowait(9) == [1, 3, 5, 8]

    class Touchy:
        def __init__(self, key: int) -> None:
            self.key = key
            self.broken = False

        def __lt__(self, other: "Touchy") -> bool:
            if self.broken or other.broken:
                raise TypeError("broken")
            return self.key < other.key

    items = [Touchy(key) for key in range(5)]
    touchy = PriorityQueue[Touchy]()
    assert touchy.put_many_nowait(items) == 5
    for one in items:
        one.broken = True
    with pytest.raises(TypeError, match="broken"):
        touchy.get_nowait()
    assert touchy.qsize() == 5
    for one in items:
        one.broken = False
    assert {one.key for one in touchy.get_many_nowait(9)} == {0, 1, 2, 3, 4}


def test_a_comparison_may_put_into_the_queue_that_compares() -> None:
    """What it puts is stored when the operation has ended; it may not get."""
    queue = PriorityQueue["Chatty"]()
    errors: list[str] = []

    class Chatty:
        def __init__(self, key: int) -> None:
            self.key = key

        def __lt__(self, other: "Chatty") -> bool:
            if self.key == 1 and queue.qsize() < 4:
                queue.put_nowait(Chatty(10))
                try:
                    queue.get_nowait()
                except RuntimeError as exc:
                    errors.append(str(exc))
            return self.key < other.key

    queue.put_nowait(Chatty(2))
    queue.put_nowait(Chatty(1))
    assert sorted(item.key for item in queue.get_many_nowait(9))[:2] == [1, 2]
    assert errors[0] == "PriorityQueue.get was called by an operation of the same queue"


# Several at once


def test_many_items_at_once(left: TestLoop, make: Callable[..., Queue[Any]]) -> None:
    """``get_many`` waits for one item only; ``put_many`` waits for room for all."""
    queue = make(3)
    putting = left.spawn(queue.put_many, [1, 2, 3, 4, 5])
    left.wait_all_blocked()
    first = queue.sync.get_many(2)
    assert len(first) == 2
    putting.result()
    second = left.spawn(queue.get_many, 10).result()
    assert sorted([*first, *second]) == [1, 2, 3, 4, 5]
    assert queue.get_many_nowait(1) == []
    with pytest.raises(ValueError, match="max_items must be at least 1, got 0"):
        queue.get_many_nowait(0)
    getting = left.spawn(queue.get_many, 2)
    left.wait_all_blocked()
    queue.sync.put_many([6, 7, 8])
    assert len(getting.result()) in {1, 2}


def test_a_batch_says_how_many_it_has_put() -> None:
    """When the queue ends under it."""
    queue = Queue[int](2)
    batch = TestThread(queue.sync.put_many, [1, 2, 3])
    until(lambda: queue._putters)
    queue.shutdown()
    with pytest.raises(QueueShutDown) as caught:
        batch.result()
    assert caught.value.items_put == 2
    assert queue.get_many_nowait(9) == [1, 2]
    with pytest.raises(QueueShutDown) as caught:
        queue.put_many_nowait([4])
    assert caught.value.items_put == 0


# Ending


def test_a_queue_that_was_shut_down_refuses_items_and_gives_what_it_has(make: Callable[..., Queue[Any]]) -> None:
    """On each face, by an error that both families know."""
    queue = make()
    queue.put_nowait(1)
    queue.shutdown()
    assert queue.is_shutdown
    for error in (asyncio.QueueShutDown, std.ShutDown, polyloop.PolyloopError):
        with pytest.raises(error, match="was shut down"):
            queue.put_nowait(2)
    assert queue.peek_nowait() == 1
    assert list(queue.sync) == [1]
    with pytest.raises(QueueShutDown):
        queue.peek_nowait()
    with pytest.raises(QueueShutDown):
        asyncio.run(queue.get())
    with pytest.raises(QueueShutDown):
        asyncio.run(queue.put(1))
    assert "shutdown" in repr(queue)


def test_shutting_down_wakes_all_who_wait(make: Callable[..., Queue[Any]], left: TestLoop) -> None:
    """For an item or for room."""
    empty, full = make(), make(1)
    full.put_nowait(0)
    waiting: list[Any] = [
        left.spawn(empty.get),
        TestThread(empty.sync.get),
        left.spawn(full.put, 1),
        TestThread(full.sync.put, 2),
    ]
    until(lambda: len(empty._getters) == 2 and len(full._putters) >= 1)
    empty.shutdown()
    full.shutdown()
    for waiter in waiting:
        with pytest.raises(QueueShutDown):
            waiter.result()


def test_an_immediate_shutdown_drops_items_and_ends_join(make: Callable[..., Queue[Any]], left: TestLoop) -> None:
    """What is dropped counts as done."""
    queue = make()
    queue.sync.put_many([1, 2, 3])
    joined = left.spawn(queue.join)
    left.wait_all_blocked()
    queue.shutdown(immediate=True)
    joined.result()
    assert queue.empty()
    with pytest.raises(QueueShutDown):
        queue.get_nowait()


def test_iterating_ends_with_the_queue(left: TestLoop) -> None:
    """Any number of tasks and threads share the items."""
    queue = Queue[int]()

    async def collect() -> list[int]:
        return [item async for item in queue]

    sides: list[Any] = [left.spawn(collect), TestThread(lambda: list(queue.sync))]
    for item in range(100):
        queue.put_nowait(item)
    queue.shutdown()
    assert sorted(item for side in sides for item in side.result()) == list(range(100))


# Joining


def test_join_waits_until_all_is_done(make: Callable[..., Queue[Any]], left: TestLoop) -> None:
    """On each face; one report too many is refused."""
    queue = make()
    asyncio.run(queue.join())
    queue.sync.put_many([1, 2])
    joined: list[Any] = [left.spawn(queue.join), TestThread(queue.sync.join)]
    until(lambda: len(queue._joiners) == 2)
    queue.get_many_nowait(2)
    queue.task_done()
    assert queue.unfinished_tasks == 1
    queue.sync.task_done()
    for join in joined:
        join.result()
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        queue.task_done()


def test_clear_counts_as_done(make: Callable[..., Queue[Any]]) -> None:
    """And makes room."""
    queue = make(2)
    queue.sync.put_many([1, 2])
    putting = TestThread(queue.sync.put_many, [3, 4])
    until(lambda: queue._putters)
    assert queue.clear() == 2
    putting.result()
    assert queue.unfinished_tasks == 2
    assert queue.sync.clear() == 2
    assert queue.unfinished_tasks == 0


def test_a_count_that_only_grows_takes_no_memory() -> None:
    """Units are folded into a number, and unfolded when it goes down."""
    queue = Queue[int]()
    for _ in range(5):
        assert queue.put_many_nowait(range(FOLD_ABOVE)) == FOLD_ABOVE
        for _ in range(FOLD_ABOVE):
            queue.get_nowait()
    assert queue.unfinished_tasks == 5 * FOLD_ABOVE
    assert len(queue._tally.units) <= FOLD_ABOVE
    for _ in range(5 * FOLD_ABOVE):
        assert not queue._tally.is_zero()
        queue.task_done()
    assert queue._tally.is_zero()
    assert not Tally().lower()


class RacedUnits(deque[None]):
    """Units that others report when a fold begins, all but a few."""

    def __init__(self, queue: Queue[int], left: int) -> None:
        super().__init__([None] * queue.unfinished_tasks)
        self._reports = self._many = queue.unfinished_tasks - left
        self._report = queue.task_done

    def __len__(self) -> int:
        many, self._many = self._many, 0
        return FOLD_ABOVE + 1 if many else super().__len__()

    def pop(self) -> None:  # type: ignore[override]
        reports, self._reports = self._reports, 0
        for _ in range(reports):
            self._report()
        super().pop()


@pytest.mark.parametrize("left", [0, 3])
def test_reports_that_race_with_a_fold_end_a_join(left: int) -> None:
    """The count of what is folded is too high meanwhile, and there may be less to fold than there was."""
    queue = Queue[int]()
    queue.put_many_nowait(range(5))
    joining = TestThread(queue.sync.join)
    until(lambda: queue._joiners)
    queue._units = queue._tally.units = RacedUnits(queue, left)
    queue._fold()
    for _ in range(left):
        assert queue._joiners
        queue.task_done()
    joining.result()
    assert queue.unfinished_tasks == 0
    with pytest.raises(ValueError, match="too many times"):
        queue.task_done()


# Guards


def test_blocking_a_loop_is_refused(make: Callable[..., Queue[Any]], left: TestLoop) -> None:
    """Only where the call would wait; the message names the awaitable twin."""
    queue = make(1)
    with pytest.raises(BlockingCallError, match=r"queue\.sync\.get\(\) would block .* use 'await queue\.get\(\)'"):
        left.run(queue.sync.get)
    with pytest.raises(QueueEmpty):  # that waits for no time
        left.run(queue.sync.get, True, 0)
    left.run(queue.sync.put, 1)
    with pytest.raises(BlockingCallError, match=r"use 'await queue\.put\(\)'"):
        left.run(queue.sync.put, 2)
    with pytest.raises(BlockingCallError, match=r"use 'await queue\.join\(\)'"):
        left.run(queue.sync.join)
    assert left.run(queue.sync.get) == 1
    assert not queue._getters
    assert not queue._putters


def test_bad_timeouts_are_refused() -> None:
    """As by the module ``queue``."""
    queue = Queue[int](1)
    with pytest.raises(ValueError, match="'timeout' must be a non-negative number, got -1"):
        queue.sync.get(timeout=-1)
    with pytest.raises(ValueError, match="'timeout' must be a non-negative number, got nan"):
        queue.sync.get(timeout=math.nan)
    with pytest.raises(QueueEmpty, match=r"empty after 0\.01 s"):
        queue.sync.get(timeout=0.01)
    with pytest.raises(QueueEmpty, match="is empty"):
        queue.sync.get(block=False)
    with pytest.raises(QueueEmpty, match="is empty"):
        queue.sync.get(block=False, timeout=-1)


# Names of others


def test_a_program_written_for_janus_runs() -> None:
    """Its names are there."""

    async def main() -> list[int]:
        queue = Queue[int]()
        loop = asyncio.get_running_loop()

        def produce(sync_q: Any) -> None:
            for item in range(10):
                sync_q.put(item)
            sync_q.join()

        producing = loop.run_in_executor(None, produce, queue.sync_q)
        taken: list[int] = []
        for _ in range(10):
            taken.append(await queue.async_q.get())
            queue.async_q.task_done()
        await producing
        assert not queue.closed
        with pytest.raises(RuntimeError, match="non-closed"):
            await queue.wait_closed()
        await queue.aclose()
        await queue.wait_closed()
        assert queue.closed
        assert queue.sync_q.closed
        return taken

    assert asyncio.run(main()) == list(range(10))


# SimpleQueue


def test_a_simple_queue_crosses_too(left: TestLoop, right: TestLoop) -> None:
    """It has no bound, no ``join`` and no end."""
    queue = SimpleQueue[int]()
    getter = left.spawn(queue.get)
    left.wait_all_blocked()
    right.run(queue.put, 1)
    assert getter.result() == 1
    threaded = TestThread(queue.sync.get)
    until(lambda: queue._getters)
    queue.put_nowait(2)
    assert threaded.result() == 2
    queue.sync.put(3, False, None)
    assert (queue.qsize(), queue.sync.empty(), repr(queue).endswith("items=1>")) == (1, False, True)
    assert queue.sync.get_nowait() == 3
    with pytest.raises(QueueEmpty):
        queue.get_nowait()
    with pytest.raises(QueueEmpty):
        queue.sync.get(timeout=0.01)
    with pytest.raises(BlockingCallError):
        left.run(queue.sync.get)

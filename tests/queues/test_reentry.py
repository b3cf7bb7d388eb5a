"""Code that runs in the middle of a queue's own: signal handlers, and finalisers of items."""

import asyncio
import itertools
import selectors
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import CodeType, FrameType
from typing import Any, Self

import pytest

from polyloop import Event, LifoQueue, PriorityQueue, Queue, QueueFull, SimpleQueue
from polyloop._core._waiting import Stock

# Signal handlers that wake


class InterruptedSelector(selectors.DefaultSelector):
    """A selector that gets a signal when it is about to sleep for long; ``woken`` says whether that ends the sleep."""

    woken: bool | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.woken is not None or (timeout is not None and timeout < 3600):
            return super().select(timeout)
        signal.raise_signal(signal.SIGUSR1)  # the handler has run when this returns
        events = super().select(0)
        self.woken = bool(events)
        return events


def queue_of(kind: Callable[[], Any]) -> tuple[Callable[[], Any], Callable[[], object]]:
    queue = kind()
    return queue.get, partial(queue.put_nowait, True)


def an_event() -> tuple[Callable[[], Any], Callable[[], object]]:
    event = Event()
    return event.wait, event.set


@pytest.mark.parametrize(
    "make",
    [
        partial(queue_of, Queue),
        partial(queue_of, PriorityQueue),
        partial(queue_of, partial(Queue, sizer=bool)),
        partial(queue_of, SimpleQueue),
        an_event,
    ],
    ids=["queue", "priority", "weighed", "simple", "event"],
)
def test_a_signal_handler_ends_the_sleep_of_the_loop_that_it_interrupts(
    make: Callable[[], tuple[Callable[[], Any], Callable[[], object]]],
) -> None:
    """A loop of asyncio's in the main thread: what its own thread does there is no step of a task."""
    wait, wake = make()
    selector = InterruptedSelector()
    before = signal.signal(signal.SIGUSR1, lambda *_: wake())
    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            assert runner.run(wait())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert selector.woken


# Signal handlers that put


class Interrupter:
    """Runs a handler where that of a signal might: when a C function that ``code`` has called returns, the nth one."""

    def __init__(self, code: CodeType, at: int, handler: Callable[[], object]) -> None:
        self._code = code
        self._left = at
        self._handler = handler

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "c_return" and frame.f_code is self._code:
            self._left -= 1
            if self._left == -1:
                self._handler()

    def __enter__(self) -> Self:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def put_many(queue: Queue[int], most: int) -> int:
    """Put so many items, or as many as there is room for; return how many."""
    for count in range(most):
        try:
            queue.put_nowait(count)
        except QueueFull:
            return count
    return most


def put_interrupted(bound: int, at: int, by: int) -> bool:
    """Put into a queue which has no places made, interrupted by ``by`` puts; ``False`` if it ended before that."""
    queue = Queue[int](bound)
    room = queue._room
    assert room is not None
    before = len(room.free)
    assert put_many(queue, before) == before
    handled: list[int] = []

    def handle() -> None:
        lock = room._lock
        assert lock is not None
        assert lock.acquire(blocking=False)  # else the put would wait for ever for the one that it interrupts
        lock.release()
        handled.append(put_many(queue, by))

    with Interrupter(Stock._issue.__code__, at, handle):
        put = put_many(queue, 1)
    assert handled in ([], [min(by, bound - before)], [min(by, bound - before - 1)])
    assert put == (before + sum(handled) < bound)
    assert before + sum(handled) + put + put_many(queue, bound) == bound
    return bool(handled)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("by", [1, 1024, 9999])
def test_a_put_interrupted_by_puts_keeps_the_bound(blocks: int, by: int) -> None:
    """Wherever it is when a block of places is made: each gets one while there are any, and no place is made twice."""
    bound = blocks * 1024 + 5
    assert all(put_interrupted(bound, at, by) for at in range(2))
    assert not all(put_interrupted(bound, at, by) for at in itertools.islice(itertools.count(2), 20))


# Finalisers that put


class Mortal:
    """An item that puts another when it is freed; all are equal."""

    def __init__(self, queue: Queue[Any], heirs: int = 1) -> None:
        self._queue = queue
        self._heirs = heirs

    def __lt__(self, other: object) -> bool:
        return False

    def __del__(self) -> None:
        if self._heirs:
            self._queue.put_nowait(Mortal(self._queue, 0))


@pytest.mark.parametrize(
    "make",
    [Queue, LifoQueue, PriorityQueue, partial(Queue, sizer=lambda item: 1)],
    ids=["fifo", "lifo", "priority", "weighed"],
)
def test_items_that_put_when_they_are_dropped_keep_the_bound(make: Callable[..., Queue[Any]]) -> None:
    """They find the room that ``clear`` has made, and take it."""
    queue = make(2)
    queue.put_nowait(Mortal(queue))
    queue.put_nowait(Mortal(queue))
    assert queue.clear() == 2
    assert (queue.qsize(), queue.full(), queue.unfinished_tasks) == (2, True, 2)
    with pytest.raises(QueueFull):
        queue.put_nowait(0)
    assert queue.clear() == 2
    assert (queue.qsize(), queue.unfinished_tasks) == (0, 0)

"""The queues that compare or weigh their items: code of the user under their lock, weights, and who waits for room."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from polyloop import LifoQueue, PriorityQueue, Queue, QueueFull, QueueShutDown
from polyloop.testing import Interleaving, TestLoop, explore

WEIGHED: list[Callable[..., Queue[Any]]] = [
    partial(Queue, sizer=float),
    partial(LifoQueue, sizer=float),
    partial(PriorityQueue, sizer=float),
]


@pytest.fixture(params=WEIGHED, ids=["fifo", "lifo", "priority"])
def weighed(request: pytest.FixtureRequest) -> Callable[..., Queue[Any]]:
    """Makes a queue of numbers that weigh what they are, of each kind."""
    made: Callable[..., Queue[Any]] = request.param
    return made


# Items that do not compare


class Moody:
    """Compares by its key, ``good_for`` times."""

    good_for = math.inf

    def __init__(self, key: int) -> None:
        self.key = key

    def __lt__(self, other: "Moody") -> bool:
        Moody.good_for -= 1
        if Moody.good_for < 0:
            raise TypeError("in a bad mood")
        return self.key < other.key


@pytest.mark.parametrize("face", ["queue", "sync"])
@pytest.mark.parametrize("good_for", range(5))
def test_a_batch_loses_nothing_when_a_comparison_fails(
    monkeypatch: pytest.MonkeyPatch, good_for: int, face: str
) -> None:
    """``get_many`` returns what it has got by then, and the next one raises; whichever comparison it is."""
    queue = PriorityQueue[Moody]()
    queue.put_many_nowait([Moody(key) for key in range(5)])
    get = queue.get_many_nowait if face == "queue" else queue.sync.get_many
    taken: list[Moody] = []
    monkeypatch.setattr(Moody, "good_for", good_for)
    with pytest.raises(TypeError, match="bad mood"):
        while len(taken) < 5:
            taken += get(9)
    monkeypatch.setattr(Moody, "good_for", math.inf)
    assert queue.qsize() == 5 - len(taken)
    taken += queue.get_many_nowait(9)
    assert sorted(item.key for item in taken) == [0, 1, 2, 3, 4]


def test_a_late_item_that_does_not_compare_leaves_the_queue_working(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a comparison puts: it is stored all the same, and the operation that compared has succeeded."""
    queue = PriorityQueue[Moody]()

    class Chatty(Moody):
        def __lt__(self, other: Moody) -> bool:
            if queue.qsize() == 2:  # itself included
                queue.put_nowait(Moody(3))
                monkeypatch.setattr(Moody, "good_for", 0)
                return True
            return super().__lt__(other)

    queue.put_nowait(Moody(2))
    queue.put_nowait(Chatty(1))
    assert queue.qsize() == 3
    with pytest.raises(TypeError, match="bad mood"):
        queue.get_nowait()
    monkeypatch.setattr(Moody, "good_for", math.inf)
    assert [item.key for item in queue.get_many_nowait(9)] == [1, 2, 3]
    assert queue.unfinished_tasks == 3


def test_a_comparison_may_not_clear_the_queue_that_compares() -> None:
    """It is told so, and nothing is dropped."""
    queue = PriorityQueue["Rude"]()

    class Rude:
        def __lt__(self, other: object) -> bool:
            with pytest.raises(RuntimeError, match=r"PriorityQueue\.clear was called by an operation"):
                queue.clear()
            return False

    queue.put_many_nowait([Rude(), Rude(), Rude()])
    assert len(queue.get_many_nowait(9)) == 3


# Weights


def test_an_empty_queue_weighs_nothing(weighed: Callable[..., Any]) -> None:
    """Nothing of the errors in a sum of floats is left, so that the heaviest item fits again."""
    queue = weighed(1.0)
    for _ in range(3):
        assert queue.put_many_nowait([0.1] * 9) == 9
        assert queue.get_many_nowait(9) == [0.1] * 9
        assert queue.size == 0
        queue.put_nowait(1.0)
        assert queue.get_nowait() == 1.0


def test_an_item_without_a_weight_is_refused(weighed: Callable[..., Any]) -> None:
    """``nan`` is not below a bound, nor above it."""
    for queue in (weighed(), weighed(10)):
        with pytest.raises(ValueError, match="weight nan never fits"):
            queue.put_nowait(math.nan)
        with pytest.raises(ValueError, match="weight nan never fits"):
            queue.sync.put(math.nan)
        assert (queue.qsize(), queue.size, queue.unfinished_tasks) == (0, 0, 0)


# Waiting for room


def a_heavy_one_runs_out_of_time(make: Callable[..., Queue[float]]) -> Callable[[Interleaving], None]:
    def scenario(it: Interleaving) -> None:
        """It is woken for room that is too little, keeps its place, and gives up: then the light one is woken."""
        queue = make(10)
        queue.put_many_nowait([5, 3])

        def heavy() -> None:
            with pytest.raises(QueueFull):
                queue.sync.put(9, timeout=1)

        it.thread(heavy)
        it.thread(queue.sync.put, 4)
        it.thread(queue.sync.get)

    return scenario


def a_heavy_one_is_cancelled(make: Callable[..., Queue[float]]) -> Callable[[Interleaving], None]:
    def scenario(it: Interleaving) -> None:
        """The same for a coroutine."""
        queue = make(10)
        queue.put_many_nowait([5, 3])
        heavy = it.coroutine(queue.put, 9)

        def get_and_cancel() -> None:
            queue.sync.get()
            heavy.cancel()

        it.coroutine(queue.put, 4)
        it.thread(get_and_cancel)

    return scenario


@pytest.mark.parametrize("heavy", [a_heavy_one_runs_out_of_time, a_heavy_one_is_cancelled])
def test_a_light_item_is_put_when_a_heavy_one_gives_up(
    weighed: Callable[..., Queue[float]], heavy: Callable[[Callable[..., Queue[float]]], Callable[[Interleaving], None]]
) -> None:
    """In every order with one preemption of those that were tried; else it would wait for ever."""
    assert explore(heavy(weighed), preemptions=1, schedules=150).schedules > 1


def test_a_put_after_the_end_is_refused_as_such_though_others_wait(left: TestLoop) -> None:
    """Who waited in turn for room has yet to be told."""
    queue = Queue[str](3, sizer=len)
    queue.put_nowait("abc")
    waiting = [left.spawn(queue.put, "a") for _ in range(2)]
    left.wait_all_blocked()
    with pytest.raises(QueueFull, match="others waiting"):
        queue.put_nowait("")
    with left.paused():
        queue.shutdown()
        with pytest.raises(QueueShutDown):
            queue.put_nowait("")
        with pytest.raises(QueueShutDown):
            queue.sync.put("", block=False)
    for one in waiting:
        with pytest.raises(QueueShutDown):
            one.result()

"""What the faces of a queue and its subclasses owe to each other, and what a batch says that ended early."""

from collections.abc import Callable
from typing import Any

import pytest

from polyloop import BlockingCallError, LifoQueue, PriorityQueue, Queue, QueueFull
from polyloop.testing import TestLoop

# Subclasses


class Named(Queue[int]):
    """A queue with a constructor of its own, that notes what is put."""

    def __init__(self, name: str, *colours: str, depth: int = 0) -> None:
        super().__init__(depth)
        self.name = name
        self.colours = colours
        self.noted: list[int] = []

    def put_nowait(self, item: int) -> None:
        self.noted.append(item)
        super().put_nowait(item)

    def _try_get(self) -> Any:
        self.noted.append(0)
        return super()._try_get()


def test_a_subclass_has_a_constructor_of_its_own() -> None:
    """With arguments that no queue has."""
    queue = Named("left", "red", "green", depth=2)
    assert (queue.name, queue.colours, queue.maxsize) == ("left", ("red", "green"), 2)
    queue.sync.put_many([1, 2])
    assert queue.get_many_nowait(9) == [1, 2]


def test_the_face_for_threads_calls_what_a_subclass_has_changed() -> None:
    """It takes no short cut past it."""
    queue = Named("left")
    queue.sync.put(7)
    assert queue.noted == [7]
    assert queue.sync.get() == 7
    assert queue.noted == [7, 0]


def test_a_subclass_of_queue_does_not_weigh() -> None:
    """It says so; those of the other queues weigh as these do."""

    class Mine(Queue[str]):
        pass

    with pytest.raises(TypeError, match="Mine cannot weigh its items; use Queue itself"):
        Mine(3, sizer=len)

    class Own(LifoQueue[str]):
        pass

    assert Own(3, sizer=len).put_many_nowait(["ab", "c", "d"]) == 2


# Batches that end early


@pytest.mark.parametrize("kind", [Queue, LifoQueue, PriorityQueue])
@pytest.mark.parametrize("timeout", [0, 0.001])
def test_a_batch_without_room_says_how_many_it_has_put(kind: Callable[[int], Queue[int]], timeout: float) -> None:
    """Those are in the queue, the others are not."""
    queue = kind(2)
    with pytest.raises(QueueFull) as caught:
        queue.sync.put_many([1, 2, 3, 4], timeout=timeout)
    assert caught.value.items_put == 2
    assert sorted(queue.get_many_nowait(9)) == [1, 2]


@pytest.mark.parametrize("kind", [Queue, LifoQueue, PriorityQueue])
def test_a_batch_that_would_block_a_loop_says_how_many_it_has_put(
    left: TestLoop, kind: Callable[[int], Queue[int]]
) -> None:
    """It goes on with ``put_many`` of the queue itself."""
    queue = kind(2)
    items = [1, 2, 3]

    async def on_a_loop() -> list[int]:
        with pytest.raises(BlockingCallError) as caught:
            queue.sync.put_many(items)
        put = caught.value.items_put
        assert put == 2
        taken = await queue.get_many(9)
        await queue.put_many(items[put:])
        return sorted([*taken, *queue.get_many_nowait(9)])

    assert left.run(on_a_loop) == items

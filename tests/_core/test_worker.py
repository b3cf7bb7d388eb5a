"""What a worker tells about itself, and what it takes from another."""

from collections import deque
from typing import Any

import pytest

import polyloop
from polyloop._core._handle import TaskHandle
from polyloop._core._worker import Worker
from polyloop.testing import TestThread


async def work() -> None:
    raise AssertionError("never started")


def test_the_load_counts_tasks_that_were_placed_by_name() -> None:
    """They wait here like the others, and nobody else may take them."""
    worker = Worker("w", 0)
    handles = [TaskHandle(work()) for _ in range(3)]
    for handle in handles:
        worker.admit(handle, handle is handles[0])
    assert worker.load == 3
    worker.leave_behind(polyloop.RuntimeClosedError("over"))
    assert worker.load == 0


def test_a_worker_in_the_callers_thread_has_its_name() -> None:
    """``run`` may be called on any thread."""

    async def main() -> str:
        return polyloop.current_runtime().workers[0].thread_name

    thread = TestThread(lambda: polyloop.run(main(), loops=1), name="embedder")
    assert thread.result() == "embedder"


def test_an_interrupted_theft_loses_no_task() -> None:
    """Ctrl-C between taking and keeping: each is in a queue afterwards."""
    thief, victim = Worker("thief", 0), Worker("victim", 1)

    class Interrupting:
        _port: Any = None

        def __setattr__(self, name: str, value: object) -> None:
            raise KeyboardInterrupt

    waiting: list[Any] = [Interrupting() for _ in range(4)]
    victim.unstarted = deque(waiting)
    with pytest.raises(KeyboardInterrupt):
        thief._take_from(victim)
    assert [*thief.unstarted, *victim.unstarted] == waiting

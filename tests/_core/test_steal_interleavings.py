"""Every interleaving of a task's arrival at a busy worker with an idle one that falls asleep.

Proved, over the real workers and selector: no task waits at a busy worker while another sleeps.
"""

from collections.abc import Callable
from typing import Any

import pytest
from tests._core.models import Selector, stepped_mailbox
from tests.explorer import Deque, Run, explore

from polyloop._core._spin import SpinPolicy
from polyloop._core._worker import Worker


class FakeHandle:
    """Notes who started it."""

    _port: Worker

    def __init__(self) -> None:
        self.started_by: list[str] = []

    def _start(self, port: Worker) -> None:
        self.started_by.append(port.name)


def stepped_worker(run: Run, name: str, index: int) -> Worker:
    worker: Any = Worker(name, index, stealing=True)
    worker.mailbox = stepped_mailbox(run, worker._wake)
    worker.unstarted = Deque(run, f"{name}.unstarted")
    worker.selector = Selector(SpinPolicy(0))
    worker.selector.run = run
    worker.selector.attach(worker)
    made: Worker = worker
    return made


@pytest.mark.parametrize("preemptions", [3, pytest.param(None, marks=pytest.mark.stress)])
def test_an_idle_worker_takes_what_comes_to_a_busy_one(model: Callable[[Run], None], preemptions: int | None) -> None:
    """The busy one never looks; the idle one steals before its sleep, or is woken from it."""

    def scenario(run: Run) -> None:
        model(run)
        busy, idle = (stepped_worker(run, name, index) for index, name in enumerate(("busy", "idle")))
        busy.peers = idle.peers = (busy, idle)
        handle: Any = FakeHandle()

        def serve() -> None:
            assert idle.selector is not None
            while not handle.started_by:
                idle.selector.select(None)

        def check() -> None:
            assert handle.started_by == ["idle"]
            for worker in (busy, idle):
                assert worker.selector is not None
                worker.selector.close()

        run.thread(serve)
        run.thread(lambda: busy.admit(handle, True))
        run.check(check)

    assert explore(scenario, preemptions=preemptions) > 100

"""Every interleaving of cancelling a task with starting and stealing it, over the real handle.

Proved, for up to two cancellers, an owner and a thief: a task is started once or not at all, and every request to
cancel either keeps it from starting or is delivered to it, exactly once.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from tests._core.models import stepped_mailbox
from tests.explorer import Deque, Run, explore, stepped

from polyloop._core import _prims, _task
from polyloop._core._context import here
from polyloop._core._handle import TaskHandle
from polyloop._core._port import NOWHERE, Port


class FakeTask:
    """Counts the cancellations that reach it."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def cancel(self, msg: Any = None) -> bool:
        self.requests.append(msg)
        return True

    def done(self) -> bool:
        return False

    def add_done_callback(self, fn: Callable[..., object], *, context: contextvars.Context | None = None) -> None:
        """Never done."""


class FakePort(Port):
    """A port whose thread is one of the explorer's."""

    plain_tasks = False  # so that new_task makes the tasks

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(name)
        self.mailbox = stepped_mailbox(run, lambda: None)
        self.post = self.mailbox.post
        self.tasks: list[FakeTask] = []

    def new_task[T](
        self, coro: Coroutine[Any, Any, T], name: str | None, context: contextvars.Context | None
    ) -> "asyncio.Task[T]":
        coro.close()
        task: Any = FakeTask()
        self.tasks.append(task)
        return task  # type: ignore[no-any-return]


async def work() -> None:
    """Never runs."""


def set_once(run: Run, owner: Any, name: str, value: deque[Any]) -> Any:
    """A step of its own, as the real one is atomic; the list is one whose operations are steps."""
    stepped_list = Deque[Any](run, name)
    deque.extend(stepped_list, value)
    run.step(f"{name} set once")
    found = owner.__dict__["stepped_" + name]
    if found is None:
        owner.__dict__["stepped_" + name] = found = stepped_list
        return value  # the very object: it was set
    return found


class Scene:
    """A handle in a queue, ports that may start it, and cancellers."""

    def __init__(self, run: Run, ports: int, placed: bool) -> None:
        self.run = run
        self.ports = [FakePort(run, f"port {number}") for number in range(ports)]
        self.queue = Deque[TaskHandle[None]](run, "queue")
        handle: Any = stepped(TaskHandle, "_port", "_task", "_cancels")(work())
        handle.__dict__["stepped__cancels"] = None
        handle._port = self.ports[0] if placed else NOWHERE
        handle.run = run
        self.handle: TaskHandle[None] = handle
        deque.append(self.queue, self.handle)
        self.cancelling = 0
        self.draining = 0

    def serve(self, port: FakePort) -> None:
        """What a worker does: take the handle, if it is there still; then run what is posted until all is quiet."""
        port.ident = _prims.get_ident()
        here.port = port
        try:
            handle = self.queue.popleft()
        except IndexError:
            pass
        else:
            handle._port = port
            handle._start(port)
        while True:
            self.run.wait_until(lambda: bool(self.posted(port)) or self.quiet(), "posted or quiet")
            if not self.posted(port):
                return
            self.draining += 1
            port.mailbox.drain()
            self.draining -= 1

    def posted(self, port: FakePort) -> int:
        return deque.__len__(port.mailbox.items)

    def quiet(self) -> bool:
        return not self.cancelling and not self.draining and not any(map(self.posted, self.ports))

    def canceller(self, msg: str) -> Callable[[], None]:
        self.cancelling += 1

        def cancel() -> None:
            assert self.handle.cancel(msg) or self.handle._done
            self.cancelling -= 1

        return cancel

    def check(self, messages: list[str]) -> None:
        tasks = [task for port in self.ports for task in port.tasks]
        if self.handle._done:
            assert tasks == [], "started and refused"
            assert self.handle._cancelled
        else:
            assert len(tasks) == 1, "not started, and not cancelled either"
            assert sorted(tasks[0].requests) == messages, "a request was lost or delivered twice"


@pytest.mark.parametrize(
    ("ports", "placed", "messages", "preemptions"),
    [
        (1, False, ["a"], 3),
        (1, True, ["a"], 3),
        (1, True, ["a", "b"], 2),
        (2, True, ["a"], 2),
        pytest.param(1, True, ["a"], 5, marks=pytest.mark.stress),
        pytest.param(2, False, ["a"], 3, marks=pytest.mark.stress),
        pytest.param(2, True, ["a", "b"], 2, marks=pytest.mark.stress),
    ],
)
def test_every_request_is_delivered_once(
    monkeypatch: pytest.MonkeyPatch, ports: int, placed: bool, messages: list[str], preemptions: int | None
) -> None:
    """Cancelling races the start, the placing before it, and with two ports the theft: the second is a thief."""

    def scenario(run: Run) -> None:
        monkeypatch.setattr(_task, "set_once", partial(set_once, run))
        scene = Scene(run, ports, placed)
        for port in scene.ports:
            run.thread(lambda port=port: scene.serve(port))  # type: ignore[misc]
        for message in messages:
            run.thread(scene.canceller(message))
        run.check(lambda: scene.check(messages))

    assert explore(scenario, preemptions=preemptions, limit=2_000_000) > 100

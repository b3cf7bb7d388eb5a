"""A task that migrates and never waits is named in the log, with its stack, whatever it is that it runs."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator

import pytest

import polyloop
from polyloop import Runtime
from polyloop._core import _overseer

#: Seconds until a test gives up.
PATIENCE = 30


class Watch(logging.Handler):
    """Takes the messages; what blocks a worker waits for the first."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self._told.set()

    def block(self) -> None:
        """Keep the thread that calls until somebody complains."""
        assert self._told.wait(PATIENCE), "nobody has said anything"


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """What polyloop says while a step takes some hundredths of a second."""
    monkeypatch.setattr(_overseer, "LONG_NS", 30_000_000)
    handler = Watch()
    logger = logging.getLogger("polyloop")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.mark.parametrize("loops", [1, 2])
def test_a_task_that_never_waits_is_named_once(watch: Watch, loops: int) -> None:
    """With its worker, the way out, and where it is, from the task's own code on."""

    async def crunch() -> int:
        watch.block()
        for _ in range(3):
            await polyloop.checkpoint()
        return 1

    with Runtime(loops=loops, name="busy") as runtime:
        assert runtime.spawn(crunch, migratable=True).result(PATIENCE) == 1
    (message,) = watch.messages
    assert "crunch' pending on busy-" in message
    assert "has kept 'busy-" in message
    assert "polyloop.checkpoint()" in message
    _, _, stack = message.partition("It is at")
    assert "test_migrating_watched.py" in stack.splitlines()[1]
    assert "in crunch" in stack.splitlines()[1]
    assert "in block" in stack


@pytest.mark.parametrize("where", ["driven", "cancelled"])
def test_its_stack_begins_with_its_own_code_however_it_is_stepped(watch: Watch, where: str) -> None:
    """By a driver, after several that have ended at once; and after a cancellation."""

    async def nothing() -> None:
        pass

    async def crunch() -> None:
        if where == "cancelled":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await polyloop.checkpoint()
        watch.block()

    async def main() -> None:
        async with polyloop.TaskGroup(migratable=True) as group:
            for _ in range(8):
                group.create_task(nothing())
            group.create_task(crunch())

    polyloop.run(main(), loops=1)
    (message,) = watch.messages
    _, _, stack = message.partition("It is at")
    assert "test_migrating_watched.py" in stack.splitlines()[1]
    assert "in crunch" in stack.splitlines()[1]


def test_a_task_of_asyncio_that_takes_its_first_step_there_is_named(watch: Watch) -> None:
    """It is that one that keeps the worker."""

    async def crunch() -> None:
        watch.block()

    async def main() -> None:
        await asyncio.Task(crunch(), name="eager child", loop=asyncio.get_running_loop(), eager_start=True)

    with Runtime(loops=2) as runtime:
        runtime.spawn(main, migratable=True).result(PATIENCE)
    (message,) = watch.messages
    assert "polyloop: task 'eager child' has kept" in message
    assert "in crunch" in message


def test_a_callback_that_a_task_calls_at_its_end_is_told(watch: Watch) -> None:
    """No task runs any more then; the stack says what does."""
    gate = polyloop.Event()

    async def ends() -> None:
        await gate.wait()

    called = threading.Event()

    def crunch(handle: polyloop.TaskHandle[None]) -> None:
        watch.block()
        called.set()

    with Runtime(loops=2) as runtime:
        handle = runtime.spawn(ends, migratable=True)
        handle.add_done_callback(crunch)
        gate.set()
        assert called.wait(PATIENCE)
    (message,) = watch.messages
    assert "a callback has kept" in message
    assert "in crunch" in message

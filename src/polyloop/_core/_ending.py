"""Ending a loop: cancel what runs there, wait within a deadline, and name what would not stop.

Everything here runs on the loop's own thread, except ``thread_stack``.
"""

import asyncio
import sys
import traceback
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from polyloop._core import _prims

if TYPE_CHECKING:
    from polyloop._core._migrant import MigratableTask

#: Seconds that each step after the deadline gets, so that one with nothing to do is not taken for stuck.
_LEAST_STEP = 0.05


@dataclass(frozen=True, slots=True)
class Stuck:
    """Something that did not stop within the deadline of a shutdown.

    Attributes:
        kind: ``"task"`` for a coroutine that swallowed its cancellation, ``"thread"`` for a thread that never came back
            to its loop, or of a loop's default executor.
        name: The task's or thread's name.
        where: Name of the worker.
        stack: Its stack at that moment, outermost frame first, one ``file:line in function`` each.
    """

    kind: Literal["task", "thread"]
    name: str
    where: str
    stack: tuple[str, ...]

    def __str__(self) -> str:
        frames = "".join(f"\n    {frame}" for frame in self.stack)
        return f"{self.kind} {self.name!r} on {self.where}{frames}"


async def cancel_all(
    loop: asyncio.AbstractEventLoop, deadline: float, ours: Iterable[Any], cancelled: "set[asyncio.Task[Any]]"
) -> "set[asyncio.Task[Any]]":
    """Cancel every task of ``loop`` but the caller's, once each, and wait for them until ``deadline``.

    Args:
        ours: Tasks whose exceptions somebody else reports.
        cancelled: Tasks that were cancelled by an earlier call, which was interrupted; added to.
    Returns:
        The tasks that were not done at the deadline.
    """
    me = asyncio.current_task()
    quiet = set(ours)
    while True:
        tasks = {task for task in asyncio.all_tasks(loop) if task is not me}
        if not tasks:
            return tasks
        for task in tasks - cancelled:
            cancelled.add(task)
            task.cancel()
        done, _ = await asyncio.wait(tasks, timeout=max(0.0, deadline - _prims.monotonic()))
        for task in done - quiet:
            _report_error(loop, task)
        if _prims.monotonic() >= deadline:
            return {task for task in tasks if not task.done()}


def _report_error(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[Any]") -> None:
    if task.cancelled() or (exc := task.exception()) is None:
        return
    message = "unhandled exception during the shutdown of a polyloop runtime"
    loop.call_exception_handler({"message": message, "exception": exc, "task": task})


async def finish_loop(loop: asyncio.AbstractEventLoop, deadline: float, where: str) -> list[Stuck]:
    """Close async generators and the loop's own default executor, as ``asyncio.run`` does, but within ``deadline``.

    Returns:
        The threads of that executor that did not end.
    """
    await _until(loop.shutdown_asyncgens(), deadline)
    # Looked up before: the loop forgets them. No public name leads to them, and without one this names nothing.
    threads = set(getattr(getattr(loop, "_default_executor", None), "_threads", ()))
    if await _until(loop.shutdown_default_executor(), deadline):
        return []
    return [stuck_thread(thread.ident, thread.name, where) for thread in threads if thread.is_alive()]


async def _until(step: Coroutine[Any, Any, object], deadline: float) -> bool:
    """Wait for a step of the end; say whether it was done in time."""
    try:
        await asyncio.wait_for(step, max(_LEAST_STEP, deadline - _prims.monotonic()))
    except TimeoutError:
        return False
    except NotImplementedError:  # a foreign loop without such a thing
        pass
    return True


def stuck_task(task: "asyncio.Task[Any]", name: str, where: str) -> Stuck:
    """Describe a task of this thread's loop that would not end."""
    return Stuck("task", name, where, task_stack(task))


def task_stack(task: "asyncio.Task[Any] | MigratableTask[Any]") -> tuple[str, ...]:
    """The stack of a task that is suspended."""
    return tuple(_frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name) for frame in task.get_stack())


def stuck_thread(ident: int | None, name: str, where: str) -> Stuck:
    """Describe a thread that would not end. Any thread."""
    return Stuck("thread", name, where, () if ident is None else thread_stack(ident))


def thread_stack(ident: int) -> tuple[str, ...]:
    """The stack of another thread, best effort: it may move while it is read.

    CPython stops the world to find the frame (``_PyThread_CurrentFrames``), not while it is walked, so this is for
    threads that are stuck, not for sampling.
    """
    frame = sys._current_frames().get(ident)
    if frame is None:
        return ()
    return tuple(_frame(entry.filename, entry.lineno or 0, entry.name) for entry in traceback.extract_stack(frame))


def _frame(filename: str, line: int, function: str) -> str:
    return f"{filename}:{line} in {function}"

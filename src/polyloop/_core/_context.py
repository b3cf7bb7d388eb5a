"""Which loop and which runtime the calling thread belongs to.

One thread-local cell a thread, written by that thread only. A worker's thread gets its cell before the loop runs; the
thread of a loop that somebody else runs (``asyncio.run``, Jupyter, pytest) gets one at its first use of polyloop.
"""

import asyncio
import sys
from typing import TYPE_CHECKING

from polyloop._core import _prims, _trio

if TYPE_CHECKING:
    from polyloop._core._pool import ThreadPool
    from polyloop._core._port import Port
    from polyloop._core._scope import Scope
    from polyloop._core._spin import SpinPolicy


class _Here(_prims.local):
    port: "Port | None" = None  # the way into the loop of this thread
    guests: "tuple[Port, ...]" = ()  # ports of loops not of ours that took turns on this thread and are not closed
    spin: "SpinPolicy | None" = None  # of a plain thread that has parked
    # While the thread runs an offloaded call:
    call_port: "Port | None" = None  # the port whose task has made the call
    scope: "Scope | None" = None  # through which it is told to stop
    pool: "ThreadPool | None" = None  # of one of its threads


here = _Here()


def runs_a_loop() -> bool:
    """Whether an event loop of any kind runs on the calling thread, which therefore must not block."""
    return asyncio._get_running_loop() is not None


def who() -> object:
    """The running task (asyncio or trio), else what stands for the calling thread; to be compared, and hashed.

    Not an identity: those are reused. A lock keeps the task that holds it; one that has ended without a release is
    dropped by whoever releases instead, which is safe on any thread once the task has ended.
    """
    loop = _running_loop()
    if loop is not None:
        task = _current_task(loop)
        if task is not None:
            return task
    if _TRIO in _modules and (trio_task := _trio.current_task()) is not None:
        return trio_task
    try:
        return _mine.token
    except AttributeError:
        _mine.token = token = object()
        return token


def who_by_name() -> str:
    """``who``, for messages: the names of the running task, if any, and of its thread."""
    thread = f"thread {_prims.current_thread().name!r}"
    loop = _running_loop()
    task = _current_task(loop) if loop is not None else None
    if task is not None:
        return f"task {task.get_name()!r} of {thread}"
    trio_task = _trio.current_task()
    return thread if trio_task is None else f"task {trio_task.name!r} of {thread}"


# Every lock asks who(): a global is read faster than the attribute of a module.
_running_loop = asyncio._get_running_loop
_current_task = asyncio.current_task
_mine = _prims.local()  # of each thread its token; not in ``here``, whose class makes it three times as slow
_modules = sys.modules
_TRIO = "trio"

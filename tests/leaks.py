"""Finds what a test left behind: threads, event loops, tasks, sockets; and says where it is.

A thread that is about to end is waited for. Idle threads of the offload pool may stay: they retire by themselves.
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

#: Seconds that threads get to end which have nothing left to do but that.
_LAST_STEPS = 5.0

_POOL_THREADS = "polyloop-thread-"

#: What a descriptor of an event loop or of a connection links to in /proc/self/fd.
_KINDS = ("socket:", "anon_inode:[eventpoll]", "anon_inode:[eventfd]")

_kept: set[str] = set()  # links of descriptors that outlive their test on purpose

_DESTROYED = "was destroyed but it is pending"

_loops: "weakref.WeakSet[asyncio.AbstractEventLoop]" = weakref.WeakSet()  # every loop made since install()


class _Destroyed(logging.Handler):
    """Keeps asyncio's complaints about tasks that were dropped before they ended."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if _DESTROYED in message:
            self.messages.append(message)


_destroyed = _Destroyed()


def install() -> None:
    """Note every event loop from now on, and every task that is dropped before its end."""
    make = asyncio.BaseEventLoop.__init__

    def init(self: asyncio.BaseEventLoop) -> None:
        make(self)
        _loops.add(self)

    setattr(asyncio.BaseEventLoop, "__init__", init)  # noqa: B010 - assigning to a method is what types forbid
    logging.getLogger("asyncio").addHandler(_destroyed)


def keep(descriptor: int) -> None:
    """Take a descriptor for one of the whole session's, though a test has opened it."""
    with contextlib.suppress(OSError):
        _kept.add(os.readlink(f"/proc/self/fd/{descriptor}"))


def threads_that_hold_the_process() -> list[threading.Thread]:
    """Those for whose end the interpreter would wait."""
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]


class Snapshot:
    """What there is before a test; ``leaks`` says what there is more of after it."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._loops = set(_loops)
        self._descriptors = _descriptors()
        self._destroyed = len(_destroyed.messages)

    def leaks(self, *, descriptors: bool = True) -> list[str]:
        """One line or more for each thing that was left behind; ``descriptors`` says whether those count."""
        found = self._look(descriptors)
        if found:  # perhaps only a reference cycle that nobody has looked at yet
            gc.collect()
            found = self._look(descriptors)
        return found + _destroyed.messages[self._destroyed :]

    def _look(self, descriptors: bool) -> list[str]:
        found = [*self._leaked_threads(), *self._leaked_loops()]
        return found + list(self._leaked_descriptors()) if descriptors else found

    def _leaked_threads(self) -> Iterator[str]:
        for thread in set(threading.enumerate()) - self._threads:
            if thread.name.startswith(_POOL_THREADS):
                continue
            thread.join(_LAST_STEPS)
            if thread.is_alive():
                yield f"thread {thread.name!r} is still running:\n{_stack(thread)}"

    def _leaked_loops(self) -> Iterator[str]:
        for loop in set(_loops) - self._loops:
            if not loop.is_closed():
                yield f"event loop {loop!r} was not closed"
            for task in asyncio.all_tasks(loop):
                yield f"task {task!r} was not ended:\n{_task_stack(task)}"

    def _leaked_descriptors(self) -> Iterator[str]:
        for number, link in _descriptors().items():
            if self._descriptors.get(number) != link and link not in _kept:
                yield f"descriptor {number} ({link}) was not closed: {_owner(number)}"


def _descriptors() -> dict[int, str]:
    """The descriptors of this process that belong to loops and connections; none where /proc does not tell."""
    found: dict[int, str] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/self/fd/{name}")
                if link.startswith(_KINDS):
                    found[int(name)] = link
    return found


def _owner(number: int) -> str:
    for thing in gc.get_objects():
        if isinstance(thing, (socket.socket, asyncio.AbstractEventLoop)):
            with contextlib.suppress(Exception):
                if isinstance(thing, socket.socket) and thing.fileno() == number:
                    return repr(thing)
    return "not a socket object"


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)"


def _task_stack(task: "asyncio.Task[Any]") -> str:
    return "".join(f"  {frame.f_code.co_filename}:{frame.f_lineno}\n" for frame in task.get_stack())

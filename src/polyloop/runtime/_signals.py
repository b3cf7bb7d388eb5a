"""Signals: the main thread hears of one at once, whichever thread the kernel gave it to.

Python runs signal handlers on the main thread only, and a signal that lands on a worker's thread does not end the main
thread's sleep: with plain ``signal.signal`` the handler ran when the sleep ended (1.0 s in the measurement of
docs/design.md). So while the runtime's first loop runs on the main thread, it owns the process' wake-up descriptor.
Elsewhere (a runtime in a thread, a notebook, pytest) nothing is installed.
"""

import contextlib
import signal
import socket
from collections.abc import Generator

from polyloop._core import _prims
from polyloop._core._loop import WorkerLoop
from polyloop._core._worker import Worker


@contextlib.contextmanager
def signals_wake(worker: Worker) -> Generator[None]:
    """Let every signal wake ``worker``'s loop, which the calling thread is about to run."""
    if not _prims.is_main_thread():
        yield
        return
    with contextlib.ExitStack() as stack:
        _install(worker, stack)
        yield


def _install(worker: Worker, stack: contextlib.ExitStack) -> None:
    reader, writer = socket.socketpair()
    stack.callback(reader.close)
    stack.callback(writer.close)
    reader.setblocking(False)
    writer.setblocking(False)
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    if previous != -1:  # somebody owns it; one owner per process, and it wakes the main thread as well
        signal.set_wakeup_fd(previous)
        return
    loop = worker.loop
    stack.callback(_release, writer.fileno())
    loop.add_reader(reader.fileno(), _swallow, reader)
    stack.callback(_remove_reader, worker, reader.fileno())
    if isinstance(loop, WorkerLoop):
        loop.on_signals_released = lambda: _reclaim(writer.fileno())
        stack.callback(setattr, loop, "on_signals_released", None)


def _swallow(reader: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError, InterruptedError):
        reader.recv(4096)


def _reclaim(fd: int) -> None:
    """asyncio has given the descriptor up after its last signal handler; take it back."""
    previous = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    if previous not in (-1, fd):
        signal.set_wakeup_fd(previous)


def _release(fd: int) -> None:
    previous = signal.set_wakeup_fd(-1)
    if previous not in (-1, fd):
        signal.set_wakeup_fd(previous)


def _remove_reader(worker: Worker, fd: int) -> None:
    if not worker.loop.is_closed():
        worker.loop.remove_reader(fd)

"""The processes that all calls of this process share: a pool made when it is first used, and anew when it broke.

Starting the first process of a pool may take as long as an interpreter takes to start, so that is done on a thread of
its own: calls that come before it is done wait in ``_early``, in their order, and whoever submits never blocks.

States, guarded by ``_lock``: *cold* (no pool), *starting* (a thread makes one, and sends what is in ``_early``),
*warm* (``_pool`` takes calls directly). A pool that broke makes it cold. The starting thread finds ``_early`` empty and
sets ``_pool`` in one locked step; a caller that finds no pool appends to ``_early`` in another: no call is left there.

At exit ``concurrent.futures`` waits for its processes without limit. Our hook runs before that: calls that have not
begun are cancelled, the others get ``EXIT_TIMEOUT`` seconds, and then their processes are killed.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from polyloop._core import _prims

#: Seconds that calls in processes get to end at interpreter exit; as long as runtimes get.
EXIT_TIMEOUT = 2.0

#: Seconds for processes that were killed to be gone. A guess: they need milliseconds.
_KILLED_TIMEOUT = 5.0

#: Safe beside threads, as ``fork`` is not; the first that the system has.
METHODS = ("forkserver", "spawn")


class _Early(Future[Any]):
    """The future of a call that came before there was a pool; from when it was sent on, a mirror of the pool's own."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self._call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = (fn, args, kwargs)
        self._unsent = [None]  # a ticket: for whoever sends the call, or cancels it before that
        self._sent: Future[Any] | None = None
        self._unwanted = False  # cancelled while it was being sent

    def send(self, pool: ProcessPoolExecutor) -> None:
        """Hand the call over, unless it was cancelled. Once; may block."""
        call = self._take()
        if call is None:
            return
        fn, args, kwargs = call
        try:
            sent = pool.submit(fn, *args, **kwargs)
        except BaseException as exc:
            self.set_exception(exc)
            return
        self._sent = sent
        if self._unwanted:  # set before the other looks at _sent a second time: one of the two sees the other
            sent.cancel()
        sent.add_done_callback(self._follow)

    def fail(self, exc: BaseException) -> None:
        """There will be no pool."""
        if self._take() is not None:
            self.set_exception(exc)

    def cancel(self) -> bool:
        """As any future's: what has not begun is withdrawn, from here or from the pool."""
        if self.done():
            return self.cancelled()
        if self._take() is not None:
            self._say_cancelled()
            return True
        self._unwanted = True
        sent = self._sent
        return sent is not None and sent.cancel()  # which calls _follow

    def running(self) -> bool:
        """Whether the call has been handed to a process, or is about to be."""
        sent = self._sent
        return sent is not None and sent.running()

    def _take(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None:
        """The call, for the one that comes first."""
        try:
            self._unsent.pop()  # atomic: one ticket has one popper
        except IndexError:
            return None
        call, self._call = self._call, None
        return call

    def _say_cancelled(self) -> None:
        super().cancel()
        self.set_running_or_notify_cancel()

    def _follow(self, sent: Future[Any]) -> None:
        if sent.cancelled():
            self._say_cancelled()
        elif (exc := sent.exception()) is not None:
            self.set_exception(exc)
        else:
            self.set_result(sent.result())


class _Context:
    """A multiprocessing context that remembers its processes, in the form in which a pool wants one."""

    def __init__(self, method: str) -> None:
        self._context: Any = multiprocessing.get_context(method)
        self.processes: list[multiprocessing.Process] = []

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - the name that a pool looks for
        process = self._context.Process(*args, **kwargs)
        self.processes.append(process)
        return process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class SharedProcesses(Executor):
    """An executor over the one process pool of this process. Any thread may submit; none blocks.

    A call that is in a pool which breaks fails with ``BrokenProcessPool``; the next call gets a new pool.
    """

    def __init__(self, methods: tuple[str, ...] = METHODS) -> None:
        there = multiprocessing.get_all_start_methods()
        self.method = next(method for method in methods if method in there)
        self._lock = _prims.Lock()  # guards the fields below
        self._pool: ProcessPoolExecutor | None = None
        self._made: tuple[ProcessPoolExecutor, _Context] | None = None  # the newest pool, from its very start
        self._starting = False
        self._early: deque[_Early] = deque()

    def __repr__(self) -> str:
        return f"<SharedProcesses {self.method} max_workers={self.max_workers}>"

    @property
    def max_workers(self) -> int:
        """Most processes of a pool."""
        return _prims.usable_cores()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` in one of the processes."""
        pool = self._pool
        if pool is not None:
            try:
                return pool.submit(fn, *args, **kwargs)
            except BrokenProcessPool:
                self._forget(pool)
        early = _Early(fn, args, kwargs)
        with self._lock:
            pool = self._pool
            first = pool is None and not self._starting
            if pool is None:
                self._early.append(early)
                self._starting = True
        if pool is not None:  # started meanwhile
            early.send(pool)
        elif first:
            _prims.start_thread(self._start, "polyloop-processes-start")
        return early

    def end(self, timeout: float) -> None:
        """Cancel what has not begun, wait for the rest, and kill the processes in which it goes on. Plain thread."""
        with self._lock:
            made, self._made, self._pool = self._made, None, None
            early = [*self._early]
            self._early.clear()
        for call in early:
            call.cancel()
        if made is None:
            return
        pool, context = made
        shutdown = _prims.start_thread(partial(pool.shutdown, cancel_futures=True), "polyloop-processes-end")
        shutdown.join(timeout)
        if shutdown.is_alive():
            for process in context.processes:
                process.kill()
            shutdown.join(_KILLED_TIMEOUT)

    def _forget(self, pool: ProcessPoolExecutor) -> None:
        """``pool`` is broken."""
        with self._lock:
            if self._pool is pool:
                self._pool = None

    def _start(self) -> None:
        """Make a pool and send the calls that came early; on a thread of its own."""
        try:
            context: Any = _Context(self.method)
            pool = ProcessPoolExecutor(self.max_workers, mp_context=context)
            at_exit.install()
        except BaseException as exc:  # the system lacks what it takes, or the interpreter exits
            self._fail_to_start(exc)
            return
        self._made = (pool, context)
        while True:
            with self._lock:
                if not self._early:
                    self._pool, self._starting = pool, False
                    return
                call = self._early.popleft()
            call.send(pool)

    def _fail_to_start(self, exc: BaseException) -> None:
        with self._lock:
            self._starting = False
            early = [*self._early]
            self._early.clear()
        for call in early:
            call.fail(exc)


class _Shared:
    """Holds the processes of this process; a forked child gets none of them."""

    def __init__(self) -> None:
        self.processes = SharedProcesses()
        self._left_behind: list[SharedProcesses] = []

    def reset(self) -> None:
        # The parent's pool is kept as it is: freed here, it would want a lock that a thread of the parent may have. And
        # the server that forks belongs to the parent, which alone can wait for it.
        self._left_behind.append(self.processes)
        self.processes = SharedProcesses(("spawn",))


class _AtExit:
    """The hook at interpreter exit, installed once: after that of ``concurrent.futures``, and so called before it."""

    def __init__(self) -> None:
        self._unclaimed = [None]

    def install(self) -> None:
        try:
            self._unclaimed.pop()  # atomic: one ticket has one popper
        except IndexError:
            return
        _prims.before_threads_end(lambda: shared.processes.end(EXIT_TIMEOUT))


at_exit = _AtExit()
shared = _Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.reset)

"""The process-wide pool of threads for sync code: elastic, bounded, shared by all loops.

States of a thread: *running* a call, *idle* (listed in ``_idle``, first spinning, then parked), *retired*. A call
goes to the idle thread that was used last, else to a new thread, else into ``_backlog``.

Who takes a thread out of ``_idle`` decides what it does next: a caller that pops it gives it a call, the thread itself
removes itself to retire or to serve the backlog. Both are atomic operations of one deque.

Why no call waits beside an idle thread: a caller that found no thread appends to the backlog and *then* looks at
``_idle`` again; a thread appends itself to ``_idle`` and *then* looks at the backlog. One of the two sees the other.

Why no call waits for a thread that retires: the thread gives up its place in ``_count`` and *then* looks at the
backlog; a caller appends to the backlog and *then* looks for a free place. One of the two sees the other, and serves
the call.

Why a limit of two uses two threads: a thread lists itself as idle *before* it announces its result, so whoever starts
the next call on hearing of it finds that same thread.

Why a full pool does not wait for itself: a thread that waits for a task, which may need a thread in its turn, *lends*
its place meanwhile. When it goes on there may be more threads at work than ``max_threads``; the next ones that have
done a job end.
"""

import atexit
import itertools
import os
from collections import deque
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from polyloop._core import _overdue, _prims
from polyloop._core._context import here
from polyloop._core._port import logger
from polyloop._core._spin import SpinPolicy, spin_ns_for, spin_permits

#: Seconds that a thread stays idle before it ends. Tokio's blocking threads keep the same.
IDLE_TIMEOUT = 10.0

#: Seconds that idle threads get to end at interpreter exit. A guess: they need microseconds.
EXIT_TIMEOUT = 1.0

#: Looks at the inbox between two looks at the clock while spinning.
_LOOKS = 16


def default_max_threads() -> int:
    """Most threads of the pool. asyncio has min(32, cores + 4) for each loop; this is one bound for all. A guess."""
    return 32 + 16 * _prims.usable_cores()


class Job(Protocol):
    """A call to run on a thread of the pool. Neither method may raise."""

    def execute(self) -> None:
        """Run the call and keep its outcome."""
        ...

    def announce(self) -> None:
        """Publish the outcome. The thread may be given its next job before this returns."""
        ...


class _Nothing:
    """A job that only wakes its thread."""

    def execute(self) -> None:
        pass

    def announce(self) -> None:
        pass


class ThreadPool:
    """Threads that run jobs. Any thread may submit."""

    def __init__(self, max_threads: int | None = None, idle_timeout: float = IDLE_TIMEOUT) -> None:
        self.max_threads = default_max_threads() if max_threads is None else max_threads
        self.idle_timeout = idle_timeout
        self._lock = _prims.Lock()  # guards the next three
        self._count = 0  # threads that have a place
        self._lent = 0  # threads that have lent theirs
        self._peak = 0
        self._numbers = itertools.count(1)  # next() is atomic
        self._idle: deque[_PoolThread] = deque()  # the last used at the right
        self._backlog: deque[Job] = deque()
        self._ending = False  # set once, by end_idle(); read by any thread

    def submit(self, job: Job) -> None:
        """Run ``job`` on a thread, now or when one is free. Any thread; never blocks."""
        try:
            thread = self._idle.pop()
        except IndexError:
            self._start_or_queue(job)
        else:
            thread.give(job)

    def withdraw(self, job: Job) -> bool:
        """Take a job back that no thread has taken yet; ``False`` if one has."""
        try:
            self._backlog.remove(job)
        except ValueError:
            return False
        return True

    def end_idle(self, timeout: float) -> None:
        """End the idle threads and wait for them; from now on threads end after their job instead of becoming idle.

        For interpreter exit: a daemon thread that goes to sleep or wakes while the interpreter is taken down has
        crashed it (seen on 3.13t with the GIL on, in ``_PyEval_ReleaseLock``). Threads that are at work are left
        behind.
        """
        self._ending = True
        ended: list[_PoolThread] = []
        for thread in list(self._idle):
            try:
                self._idle.remove(thread)
            except ValueError:  # somebody else took it out: it has a job, or is ending
                continue
            thread.give(_Nothing())
            ended.append(thread)
        deadline = _prims.monotonic() + timeout
        for thread in ended:
            thread.join(deadline - _prims.monotonic())

    @property
    def threads(self) -> int:
        """Threads that exist now."""
        return self._count + self._lent

    @property
    def idle(self) -> int:
        """Threads that wait for a call."""
        return len(self._idle)

    @property
    def queued(self) -> int:
        """Calls that wait for a thread."""
        return len(self._backlog)

    @property
    def abandoned(self) -> int:
        """Threads of this process, of whatever executor, whose call was abandoned: nobody waits for its result."""
        return _overdue.abandoned()

    @property
    def peak(self) -> int:
        """Most threads that existed at once."""
        return self._peak

    def submit_last(self, job: Job) -> None:
        """Run ``job`` when those that wait for a thread have got one: for a job that goes on. Any thread."""
        self._queue(job)

    def _start_or_queue(self, job: Job) -> None:
        if self._take_place():
            self._start(job)
        else:
            self._queue(job)

    def _queue(self, job: Job) -> None:
        self._backlog.append(job)
        self._serve_backlog()
        if self._backlog and self._take_place():  # a thread has retired since the first look
            try:
                self._start_for_backlog()
            except BaseException:
                if self.withdraw(job):
                    raise

    def _start_for_backlog(self) -> None:
        """Start a thread in a place that was taken for it. Raises if it cannot, and no other comes to the backlog."""
        try:
            job = self._backlog.popleft()
        except IndexError:  # served meanwhile
            self._give_place_up()
            return
        try:
            self._start(job)
        except BaseException as exc:
            self._backlog.appendleft(job)
            if not (isinstance(exc, Exception) and self._count):
                raise

    def _start(self, job: Job) -> None:
        """Start a thread in a place that was taken for it."""
        thread = _PoolThread(self)
        thread.give(job)
        try:
            thread.start(f"polyloop-thread-{next(self._numbers)}")
        except BaseException:
            self._give_place_up()
            raise

    def _serve_backlog(self) -> None:
        """Bring queued jobs and idle threads together. Any thread that has just added one of the two."""
        while self._backlog:
            try:
                thread = self._idle.pop()
            except IndexError:
                return
            try:
                thread.give(self._backlog.popleft())
            except IndexError:  # another thread took the last job: this one is idle again
                self._idle.append(thread)

    def _take_place(self) -> bool:
        with self._lock:
            if self._count >= self.max_threads:
                return False
            self._count += 1
            self._peak = max(self._peak, self._count + self._lent)
            return True

    def lending(self) -> AbstractContextManager[None]:
        """Lend the place of the calling thread, which waits in this block for somebody who may need it."""
        return _Lending(self)

    def _lend(self) -> None:
        with self._lock:
            self._count -= 1
            self._lent += 1
        try:
            if self._backlog and self._take_place():
                self._start_for_backlog()
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        with self._lock:
            self._count += 1
            self._lent -= 1

    def _give_place_up(self) -> None:
        with self._lock:
            self._count -= 1

    def _dismiss(self) -> bool:
        """Take the place of a thread that has done a job, if there are too many; the others serve the backlog."""
        with self._lock:
            if self._count <= self.max_threads:
                return False
            self._count -= 1
            return True

    def _has_too_many(self) -> bool:
        """Whether an idle thread is to end at once."""
        return self._ending or self._count > self.max_threads

    def _is_needed(self) -> bool:
        """Give up the place of a thread that is about to retire; take it back and say so if a call waits by now."""
        self._give_place_up()  # if there are too many, none is there to be taken back
        return len(self._backlog) > 0 and self._take_place()  # one look: `not (backlog and …)` would take two


class _Lending:
    """One that is not made of a generator: see ``_scope``."""

    __slots__ = ("_pool",)

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool

    def __enter__(self) -> None:
        self._pool._lend()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool._take_back()


class _PoolThread:
    """One thread. ``give`` is for whoever popped it from the idle list, everything else for itself."""

    __slots__ = ("_inbox", "_pool", "_signal", "_spin", "_thread", "_tokens")

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._inbox: deque[Job] = deque()
        self._tokens: deque[None] = deque()  # holds one while this thread is parked
        self._signal = _prims.Lock()  # released by whoever pops the token
        self._signal.acquire()
        self._spin = SpinPolicy(spin_ns_for(None))
        self._thread: _prims.Thread | None = None  # set by start()

    def start(self, name: str) -> None:
        self._thread = _prims.start_thread(self.run, name)

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread, if whoever started it has come so far as to note it."""
        if self._thread is not None:
            self._thread.join(max(0.0, timeout))

    def give(self, job: Job) -> None:
        self._inbox.append(job)
        if self._tokens:
            try:
                self._tokens.pop()  # atomic: one token has one popper
            except IndexError:
                return
            self._signal.release()

    def run(self) -> None:
        pool, inbox = self._pool, self._inbox
        here.pool = pool
        while True:
            job = inbox.popleft()
            job.execute()
            dismissed = pool._count > pool.max_threads and pool._dismiss()
            if not dismissed:
                pool._idle.append(self)  # before the result is known: see the module's theory
            try:
                job.announce()
            except BaseException:
                logger.exception("polyloop: the end of %r could not be told", job)
            del job  # an idle thread keeps nobody's arguments alive
            if dismissed:
                return
            pool._serve_backlog()
            if not self._wait():
                return

    def _wait(self) -> bool:
        """Wait for the next job; ``False`` says that none came, that nobody can give one: this thread has retired."""
        pool = self._pool
        while not self._inbox and (pool._has_too_many() or not (self._spin_a_while() or self._park())):
            try:
                pool._idle.remove(self)
            except ValueError:
                continue  # popped a moment ago: a job is on its way
            if not pool._is_needed():
                return False
            pool._idle.append(self)
            pool._serve_backlog()
        return True

    def _spin_a_while(self) -> bool:
        policy = self._spin
        spin_ns = policy.spin_ns and policy.next_spin_ns()
        if not spin_ns:
            return False
        try:
            spin_permits.pop()
        except IndexError:
            return False
        try:
            return self._spin_for(spin_ns)
        finally:
            spin_permits.append(None)

    def _spin_for(self, spin_ns: int) -> bool:
        clock, inbox = _prims.monotonic_ns, self._inbox
        began = now = clock()
        while now - began < spin_ns:
            for _ in range(_LOOKS):
                if inbox:
                    self._spin.hit()
                    return True
            now = clock()
        self._spin.miss(now - began)
        return False

    def _park(self) -> bool:
        """Sleep until a job comes or the idle time is over; say whether there is a job."""
        self._tokens.append(None)  # announce the sleep, then look a last time: the order of _core._mailbox
        began = _prims.monotonic_ns()
        if self._inbox or not self._signal.acquire(timeout=self._pool.idle_timeout):
            try:
                self._tokens.pop()
            except IndexError:
                self._signal.acquire()  # whoever has the token is about to release
        self._spin.woken(_prims.monotonic_ns() - began)
        return bool(self._inbox)


class _Shared:
    """Holds the pool of this process; a forked child gets a new one, since the threads stay behind."""

    def __init__(self) -> None:
        self.pool = ThreadPool()

    def reset(self) -> None:
        """In a forked child: no thread lives on but this one, and whoever waits for its call is in the parent."""
        here.call_port = here.scope = here.pool = None
        _overdue.forget()
        self.pool = ThreadPool(self.pool.max_threads, self.pool.idle_timeout)


shared = _Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.reset)


def _end_idle_at_exit() -> None:
    shared.pool.end_idle(EXIT_TIMEOUT)


atexit.register(_end_idle_at_exit)


def thread_pool() -> ThreadPool:
    """The process-wide pool that ``to_thread`` and ``async_wrap`` use.

    Its ``threads``, ``idle``, ``queued``, ``abandoned`` and ``peak`` say how it is used; ``max_threads`` and
    ``idle_timeout`` may be set.

    .. versionadded:: 0.1
    """
    return shared.pool

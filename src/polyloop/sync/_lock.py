"""``Lock`` and ``RLock``: one holder at a time, over all loops and threads, in the order they came.

The one permit says whether somebody may enter (see ``_core._waiting``). ``Lock._holder`` is filled from when the holder
knows that it has the permit until the release: to pop it is the right to release, which one caller gets.
"""

from asyncio import current_task
from collections import deque
from types import TracebackType
from typing import Literal

from polyloop._core._context import who
from polyloop._core._errors import DeadlockError
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._waiting import Permits
from polyloop.sync._debug import DebugHolder, DebugPermits, label
from polyloop.sync._face import LockFace, checked_timeout, described


class Lock:
    """A mutual exclusion lock for tasks of any loops and for plain threads; ``asyncio.Lock`` across loops.

    Use it as ``async with lock`` in a task, and as ``with lock.sync`` in a plain thread. It is fair: waiters get it in
    the order they came, tasks and threads alike, and who releases it while somebody waits cannot overtake.

    As with ``asyncio.Lock`` and ``threading.Lock``, one task or thread may release what another has acquired.

    Args:
        debug: Look, before each wait without a limit, for a cycle of such waits among tasks and threads, and raise
            ``DeadlockError`` instead of closing it. Only locks in debug mode are seen, and their holders are taken for
            the ones who release them. A contended lock becomes several times slower; without it, there is no cost.
        name: What reports of the debug mode call the lock.
    Cancellation: a cancelled ``acquire`` does not hold the lock; if it was handed over at that moment, it goes to the
    next waiter.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_free", "_holder", "_permits")

    def __init__(self, *, debug: bool = False, name: str | None = None) -> None:
        # Who holds it; appended by the holder, popped by whoever releases.
        self._holder: deque[object]
        if debug:
            self._permits: Permits = DebugPermits(label("Lock", self, name))
            self._holder = DebugHolder(self._permits)
        else:
            self._permits = Permits(1)
            self._holder = deque()
        self._free = self._permits.free

    def __repr__(self) -> str:
        return described(self, "locked" if self.locked() else "unlocked", self._permits.line)

    def locked(self) -> bool:
        """Whether somebody holds the lock, or is being handed it."""
        return not self._free

    async def acquire(self) -> Literal[True]:
        """Take the lock, in turn.

        Raises:
            DeadlockError: the calling task holds the lock, and would wait for itself.
        """
        try:
            self._free.pop()
        except IndexError:
            self._refuse_holder("await lock.acquire()")
            await self._permits.wait()
        self._holder.append(who())
        return True

    def acquire_nowait(self) -> bool:
        """Take the lock if it is free; whether it was."""
        try:
            self._free.pop()
        except IndexError:
            return False
        self._holder.append(who())
        return True

    def release(self) -> None:
        """Give the lock to whoever has waited longest, or free it. Waits for nothing.

        Raises:
            RuntimeError: nobody holds it.
        """
        try:
            self._holder.pop()
        except IndexError:
            raise RuntimeError("Lock is not acquired.") from None
        if self._permits.line:
            self._permits.give()
        else:
            self._free.append(None)
            if self._permits.line:  # somebody came before the append: see _core._waiting
                self._permits.match()

    async def __aenter__(self) -> None:
        # As acquire() and who(), in one frame: this is the hottest line of the module.
        try:
            self._free.pop()
        except IndexError:
            self._refuse_holder("async with lock")
            await self._permits.wait()
        try:
            self._holder.append(current_task() or who())
        except RuntimeError:  # no loop of asyncio runs here
            self._holder.append(who())

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def sync(self) -> "SyncLock":
        """The same lock for plain threads, with the signatures of ``threading.Lock``."""
        return SyncLock(self)

    def _block(self, patience: float | None) -> bool:
        if patience is None:
            self._refuse_holder("lock.sync.acquire()")
        refuse_on_loop_thread("lock.sync.acquire()", "await lock.acquire()", patience)
        if not self._permits.block(patience):
            return False
        self._holder.append(who())
        return True

    def _refuse_holder(self, call: str) -> None:
        """Raise if the caller is about to wait for itself."""
        try:
            holder = self._holder[0]
        except IndexError:  # it is just being handed over
            return
        if holder == who() and type(self._permits) is Permits:  # the debug mode reports it with more
            raise DeadlockError(
                f"{call} would wait for its own caller, who holds {self!r}; release it first, or use polyloop.RLock"
            )

    # What Condition needs of its lock

    def _is_mine(self) -> bool:
        """Whether the caller may use a condition of this lock. As asyncio: anybody, while somebody holds it."""
        return bool(self._holder)

    def _release_all(self) -> int:
        self.release()
        return 1

    async def _acquire_again(self, depth: int) -> None:
        if not self.acquire_nowait():
            await self._permits.wait_again()
            self._holder.append(who())

    def _block_again(self, depth: int) -> None:
        if not self.acquire_nowait():
            self._permits.block_again()
            self._holder.append(who())


class SyncLock(LockFace[Lock]):
    """The face of a ``Lock`` for plain threads, with the signatures of ``threading.Lock``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

    # As LockFace, each in one frame: these are hot, too.

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        patience = None if timeout == -1 else checked_timeout(blocking, timeout)
        lock = self._primitive
        try:
            lock._free.pop()
        except IndexError:
            return lock._block(patience) if blocking else False
        lock._holder.append(who())
        return True

    def __enter__(self) -> bool:
        lock = self._primitive
        try:
            lock._free.pop()
        except IndexError:
            return self.acquire()
        lock._holder.append(who())
        return True


class RLock:
    """A ``Lock`` that its holder may take again; ``threading.RLock`` for tasks of any loops and for plain threads.

    It belongs to the task that took it, or to the thread where no task runs, and only that one may release it, as often
    as it took it.

    Args:
        debug: As for ``Lock``.
        name: As for ``Lock``.
    Cancellation: as ``Lock``.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_depth", "_owner", "_permits")

    def __init__(self, *, debug: bool = False, name: str | None = None) -> None:
        self._permits = DebugPermits(label("RLock", self, name)) if debug else Permits(1)
        self._owner: object = None  # written by who has the permit; others may read it, and find that it is not them
        self._depth = 0  # of the owner; written and read by the owner

    def __repr__(self) -> str:
        return described(self, "locked" if self.locked() else "unlocked", self._permits.line)

    def locked(self) -> bool:
        """Whether somebody holds the lock, or is being handed it."""
        return not self._permits.free

    async def acquire(self) -> Literal[True]:
        """Take the lock, in turn, or once more."""
        if not self.acquire_nowait():
            await self._permits.wait()
            self._enter(1)
        return True

    def acquire_nowait(self) -> bool:
        """Take the lock if it is free or the caller's; whether it was."""
        me = who()
        if self._owner == me:
            self._depth += 1
            return True
        if not self._permits.take_nowait():
            return False
        self._owner = me
        self._depth = 1
        return True

    def release(self) -> None:
        """Undo one ``acquire``; the last one gives the lock to whoever has waited longest, or frees it.

        Raises:
            RuntimeError: the caller does not hold it.
        """
        self._check_owner()
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._permits.give()

    async def __aenter__(self) -> None:
        if not self.acquire_nowait():
            await self._permits.wait()
            self._enter(1)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def sync(self) -> "SyncRLock":
        """The same lock for plain threads, with the signatures of ``threading.RLock``."""
        return SyncRLock(self)

    def _block(self, patience: float | None) -> bool:
        refuse_on_loop_thread("rlock.sync.acquire()", "await rlock.acquire()", patience)
        if not self._permits.block(patience):
            return False
        self._enter(1)
        return True

    def _enter(self, depth: int) -> None:
        self._owner = who()
        self._depth = depth

    def _check_owner(self) -> None:
        if self._owner != who():
            raise RuntimeError("cannot release un-acquired lock")

    # What Condition needs of its lock

    def _is_mine(self) -> bool:
        return self._owner == who()

    def _release_all(self) -> int:
        self._check_owner()
        depth = self._depth
        self._depth = 0
        self._owner = None
        self._permits.give()
        return depth

    async def _acquire_again(self, depth: int) -> None:
        if not self._permits.take_nowait():
            await self._permits.wait_again()
        self._enter(depth)

    def _block_again(self, depth: int) -> None:
        if not self._permits.take_nowait():
            self._permits.block_again()
        self._enter(depth)


class SyncRLock(LockFace[RLock]):
    """The face of an ``RLock`` for plain threads, with the signatures of ``threading.RLock``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

"""``RWLock``: many readers or one writer, over all loops and threads.

The rule: strictly in the order of arrival, where readers that stand next to one another in the line go in together. So
a writer that waits holds back the readers who come after it, and those who came before the next writer go in together
once it has left. Nobody on either side is overtaken, so nobody starves.

Who may enter is decided under ``_lock`` by ``Turns``, which knows nothing of threads; waking comes after it. Who holds
what is written by the holders themselves, in ``_holds``, by single operations of that dictionary. A finaliser or a
signal handler may interrupt the thread that has the lock, and release, or close a coroutine that waits. So whoever
leaves appends itself to ``_left`` and *then* tries the lock, without waiting; whoever had it releases it and *then*
looks at ``_left``.
"""

from collections import deque
from types import TracebackType
from typing import Literal

from polyloop._core import _prims
from polyloop._core._context import who
from polyloop._core._errors import DeadlockError
from polyloop._core._parking import ThreadWaiter, async_waiter, refuse_on_loop_thread
from polyloop.sync._face import Face, LockFace, described
from polyloop.sync._rwlock_debug import DebugPlaces, RWLockDebug
from polyloop.sync._turns import Place, Turns


class RWLock:
    """A lock that many may hold for reading, or one for writing; for tasks of any loops and for plain threads.

    Use it as ``async with rwlock.read`` and ``async with rwlock.write`` in a task, and as ``with rwlock.sync.read`` and
    ``with rwlock.sync.write`` in a plain thread. It is fair: everybody enters in the order of coming, and readers that
    came one after the other enter together. A writer that waits therefore holds back the readers that come after it.

    It belongs to the task that took it, or to the thread where no task runs. A reader may take it for reading again,
    also while a writer waits, and releases it as often. Everything else that it could take besides is refused, since it
    would wait for itself: a reader releases before it writes; a writer that wants to go on reading uses ``downgrade``.

    Args:
        debug: As for ``Lock``.
        name: As for ``Lock``.
    Cancellation: a cancelled ``acquire`` does not hold the lock; if it was let in at that moment, the next enters.
    Thread safety: every method may be called from any loop and any thread; the releases also from signal handlers and
    finalisers.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_debug", "_holds", "_left", "_lock", "_turns")

    def __init__(self, *, debug: bool = False, name: str | None = None) -> None:
        self._debug = RWLockDebug(self, name) if debug else None
        # By who(); written by the holder, from when it knows that it has entered until it leaves.
        self._holds: dict[object, Place] = {} if self._debug is None else DebugPlaces(self._debug)
        self._left: deque[Place] = deque()  # appended by any thread, popped under the lock
        self._lock = _prims.Lock()  # guards the one below
        self._turns = Turns()

    def __repr__(self) -> str:
        turns = self._turns
        readers = turns.readers
        state = "writing" if turns.writing else f"reading, readers:{readers}" if readers else "unlocked"
        return described(self, state, turns.waiting)

    @property
    def readers(self) -> int:
        """How many hold the lock for reading, or are being let in."""
        return self._turns.readers

    def locked(self) -> bool:
        """Whether somebody holds the lock, for reading or for writing, or is being let in."""
        return self._turns.writing or self._turns.readers > 0

    @property
    def read(self) -> "RWLockSide":
        """The lock for reading: an asynchronous context manager with the methods of ``Lock``."""
        return RWLockSide(self, False)

    @property
    def write(self) -> "RWLockSide":
        """The lock for writing: an asynchronous context manager with the methods of ``Lock``."""
        return RWLockSide(self, True)

    async def acquire_read(self) -> Literal[True]:
        """Take the lock for reading, in turn, or once more.

        Raises:
            DeadlockError: the caller holds it for writing, and would wait for itself.
        """
        return await self._acquire(False)

    def acquire_read_nowait(self) -> bool:
        """Take the lock for reading if no writer holds it or waits, or once more; whether it was taken.

        Raises:
            DeadlockError: the caller holds it for writing.
        """
        return self._acquire_nowait(False)

    def release_read(self) -> None:
        """Undo one ``acquire_read``. Waits for nothing.

        Raises:
            RuntimeError: the caller does not hold the lock for reading.
        """
        self._release(False)

    async def acquire_write(self) -> Literal[True]:
        """Take the lock for writing, in turn.

        Raises:
            DeadlockError: the caller holds it, for reading or for writing, and would wait for itself.
        """
        return await self._acquire(True)

    def acquire_write_nowait(self) -> bool:
        """Take the lock for writing if nobody holds it; whether it was taken.

        Raises:
            DeadlockError: the caller holds it.
        """
        return self._acquire_nowait(True)

    def release_write(self) -> None:
        """Let the next in. Waits for nothing.

        Raises:
            RuntimeError: the caller does not hold the lock for writing.
        """
        self._release(True)

    def downgrade(self) -> None:
        """Go on as a reader, without letting a writer in between; readers that are next in line enter too.

        The lock is released with ``release_read`` then; ``async with rwlock.write`` sees to that itself.

        Raises:
            RuntimeError: the caller does not hold the lock for writing.
        """
        me = who()
        hold = self._mine(me, True)
        with self._lock:
            self._turns.downgrade(hold)
            admitted = self._admit_locked()
        self._wake(admitted)
        self._settle()
        if self._debug is not None:
            self._debug.note(me, False)

    @property
    def sync(self) -> "SyncRWLock":
        """The same lock for plain threads."""
        return SyncRWLock(self)

    async def _acquire(self, writes: bool) -> Literal[True]:
        if self._acquire_nowait(writes):
            return True
        hold = Place(writes)
        try:
            waiter = hold.waiter = async_waiter()
            if not self._arrive(hold):
                if self._debug is None:
                    await waiter
                else:
                    with self._debug.waiting(hold, waiter):
                        await waiter
        except BaseException:  # cancelled, or closed with its coroutine
            self._leave(hold)
            raise
        self._holds[who()] = hold
        return True

    def _block(self, writes: bool, timeout: float | None) -> bool:
        hold = Place(writes)
        try:
            waiter = hold.waiter = ThreadWaiter()
            entered = self._arrive(hold)
            if not entered:
                if self._debug is None or timeout is not None:
                    waiter.park(timeout)
                else:
                    with self._debug.waiting(hold, waiter):
                        waiter.park()
                entered = hold.entered  # let in at the very end of the time, too
        except BaseException:  # KeyboardInterrupt
            self._leave(hold)
            raise
        if entered:
            self._holds[who()] = hold
        else:
            self._leave(hold)
        return entered

    def _acquire_nowait(self, writes: bool) -> bool:
        me = who()
        hold = self._holds.get(me)
        if hold is not None:
            self._refuse_more(hold, writes)
            hold.depth += 1
            return True
        hold = Place(writes)
        if not self._arrive(hold):
            return False
        self._holds[me] = hold
        return True

    def _refuse_more(self, hold: Place, writes: bool) -> None:
        """Raise unless it is a reader that wants to read again."""
        if not writes and not hold.writes:
            return
        if not hold.writes:
            has, advice = "reading", "release it first, and look again at what was read once it is held for writing"
        elif writes:
            has, advice = "writing", "take it once, further out"
        else:
            has, advice = "writing", "use 'rwlock.downgrade()' to go on as a reader"
        wants = "writing" if writes else "reading"
        raise DeadlockError(
            f"to take {self!r} for {wants} its caller, who holds it for {has}, would wait for itself; {advice}"
        )

    def _mine(self, me: object, writes: bool) -> Place:
        hold = self._holds.get(me)
        if hold is None or hold.writes is not writes:
            raise RuntimeError(f"the caller does not hold {self!r} for {'writing' if writes else 'reading'}")
        return hold

    def _release(self, writes: bool) -> None:
        me = who()
        self._undo(me, self._mine(me, writes))

    def _release_side(self, writes: bool) -> None:
        """As ``_release``; at the end of a block that has taken the lock for writing, perhaps no longer for that."""
        me = who()
        hold = self._holds.get(me)
        self._undo(me, self._mine(me, writes) if hold is None else hold)

    def _undo(self, me: object, hold: Place) -> None:
        """Undo one acquire of what is the caller's."""
        hold.depth -= 1
        if not hold.depth:
            del self._holds[me]
            self._leave(hold)

    def _arrive(self, hold: Place) -> bool:
        """Go in, or get in line if the hold has a waiter; whether it is in."""
        with self._lock:
            admitted = self._admit_locked()
            entered = self._turns.arrive(hold, hold.waiter is not None)
        self._wake(admitted)
        self._settle()
        return entered

    def _leave(self, hold: Place) -> None:
        """Hold it no more, and want it no more. Waits for nothing."""
        self._left.append(hold)
        self._settle()

    def _settle(self) -> None:
        """Let the next in, unless somebody has the lock, who does so next. See the module's theory."""
        while self._left and self._lock.acquire(blocking=False):
            try:
                admitted = self._admit_locked()
            finally:
                self._lock.release()
            self._wake(admitted)

    def _admit_locked(self) -> list[Place]:
        """Take in who has left, and let the next in; the caller wakes them, without the lock."""
        while self._left:
            self._turns.leave(self._left.popleft())
        return self._turns.admit()

    def _wake(self, admitted: list[Place]) -> None:
        """Tell them. The caller settles afterwards."""
        for hold in admitted:
            if hold.waiter is not None and not hold.waiter.wake():  # its loop has ended
                self._left.append(hold)


class RWLockSide:
    """An ``RWLock`` for reading or for writing; what its ``read`` and ``write`` are.

    Cancellation: a cancelled ``acquire`` does not hold the lock.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = ("_rwlock", "_writes")

    def __init__(self, rwlock: RWLock, writes: bool) -> None:
        self._rwlock = rwlock
        self._writes = writes

    def __repr__(self) -> str:
        return f"<{'write' if self._writes else 'read'} side of {self._rwlock!r}>"

    def locked(self) -> bool:
        """Whether somebody holds the lock for this, or is being let in."""
        turns = self._rwlock._turns
        return turns.writing if self._writes else turns.readers > 0

    async def acquire(self) -> Literal[True]:
        """Take the lock, in turn; for reading also once more.

        Raises:
            DeadlockError: the caller holds it already, and would wait for itself.
        """
        return await self._rwlock._acquire(self._writes)

    def acquire_nowait(self) -> bool:
        """Take the lock if that needs no waiting; whether it was taken.

        Raises:
            DeadlockError: the caller holds it already, and would wait for itself.
        """
        return self._rwlock._acquire_nowait(self._writes)

    def release(self) -> None:
        """Undo one ``acquire``.

        Raises:
            RuntimeError: the caller does not hold the lock for this.
        """
        self._rwlock._release(self._writes)

    async def __aenter__(self) -> None:
        await self._rwlock._acquire(self._writes)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release_at_end()

    def _block(self, patience: float | None) -> bool:
        side = "write" if self._writes else "read"
        refuse_on_loop_thread(f"rwlock.sync.{side}.acquire()", f"async with rwlock.{side}", patience)
        return self._rwlock._block(self._writes, patience)

    def _release_at_end(self) -> None:
        self._rwlock._release_side(self._writes)


class SyncRWLock(Face[RWLock]):
    """The face of an ``RWLock`` for plain threads.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

    @property
    def readers(self) -> int:
        """How many hold the lock for reading, or are being let in."""
        return self._primitive.readers

    def locked(self) -> bool:
        """Whether somebody holds the lock, for reading or for writing, or is being let in."""
        return self._primitive.locked()

    @property
    def read(self) -> "SyncRWLockSide":
        """The lock for reading: a context manager with the methods of ``threading.Lock``."""
        return SyncRWLockSide(RWLockSide(self._primitive, False))

    @property
    def write(self) -> "SyncRWLockSide":
        """The lock for writing: a context manager with the methods of ``threading.Lock``."""
        return SyncRWLockSide(RWLockSide(self._primitive, True))

    def downgrade(self) -> None:
        """Go on as a reader, without letting a writer in between; readers that are next in line enter too.

        Raises:
            RuntimeError: the caller does not hold the lock for writing.
        """
        self._primitive.downgrade()


class SyncRWLockSide(LockFace[RWLockSide]):
    """An ``RWLock`` for reading or for writing in plain threads, with the signatures of ``threading.Lock``.

    Thread safety: any thread; on one that runs a loop a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._primitive._release_at_end()

"""What the faces of all primitives share, timeouts as ``threading`` takes them, and how a primitive is shown."""

from collections.abc import Sized
from types import TracebackType
from typing import Protocol

from polyloop._core import _prims


class Face[P]:
    """The face of a primitive for plain threads."""

    __slots__ = ()

    _primitive: P  # each face has the slot itself: an inherited one takes longer to reach

    def __init__(self, primitive: P) -> None:
        self._primitive = primitive  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"<sync face of {self._primitive!r}>"


class Lockable(Protocol):
    """What has a ``LockFace``."""

    def locked(self) -> bool: ...

    def acquire_nowait(self) -> bool: ...

    def release(self) -> None: ...

    def _block(self, patience: float | None) -> bool:
        """Acquire it on a plain thread where ``acquire_nowait`` could not; ``False`` when the time is over."""
        ...


class LockFace[P: Lockable](Face[P]):
    """The face of a lock, with the signatures of ``threading.Lock``."""

    __slots__ = ()

    def acquire(self, blocking: bool = True, timeout: float | None = -1) -> bool:
        """Take the lock, in turn; once more, if it is one that its holder may take again.

        Args:
            timeout: Seconds to wait at most; -1 and ``None`` wait as long as it takes.
        Returns:
            Whether the lock was taken.
        Raises:
            BlockingCallError: the call would have to wait, and this thread runs a loop.
            DeadlockError: the calling thread would wait for itself, or, in debug mode, for others that wait for it.
            ValueError: a ``timeout`` below 0 that is not -1, or one beside ``blocking=False``.
        """
        patience = None if timeout == -1 else checked_timeout(blocking, timeout)
        lock = self._primitive
        if lock.acquire_nowait():
            return True
        return lock._block(patience) if blocking else False

    def release(self) -> None:
        """Undo one ``acquire``. With the last one, the lock goes to whoever has waited longest, or is free.

        Raises:
            RuntimeError: the lock is not held, or not by who may release it.
        """
        self._primitive.release()

    def locked(self) -> bool:
        """Whether somebody holds the lock, or is being handed it."""
        return self._primitive.locked()

    def __enter__(self) -> bool:
        return self._primitive.acquire_nowait() or self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._primitive.release()


def checked_timeout(blocking: bool, timeout: float | None) -> float | None:
    """Translate ``threading``'s ways to say how long into seconds or ``None``.

    Raises:
        OverflowError: more than a thread can wait (``threading.TIMEOUT_MAX``).
        ValueError: not a number, below 0 and not -1, or given beside ``blocking=False``.
    """
    if timeout is None or timeout == -1:
        return None
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if not timeout >= 0:  # NaN is refused, too
        raise ValueError(f"timeout must be -1, None or at least 0, got {timeout!r}")
    if timeout > _prims.TIMEOUT_MAX:
        raise OverflowError(f"timeout value is too large: {timeout!r} seconds; use None to wait as long as it takes")
    return timeout


def described(primitive: object, state: str, line: Sized) -> str:
    """The ``repr`` of a primitive, as asyncio's: its state and who waits."""
    waiters = f", waiters:{len(line)}" if line else ""
    return f"<{object.__repr__(primitive)[1:-1]} [{state}{waiters}]>"


def patience_of(timeout: float | None) -> float | None:
    """A timeout of ``threading``'s conditions, events and semaphores: what is below 0 does not wait at all.

    Raises:
        OverflowError: more than a thread can wait (``threading.TIMEOUT_MAX``).
        ValueError: not a number.
    """
    return None if timeout is None else checked_timeout(True, max(timeout, 0.0))  # in this order NaN stays NaN

"""What the faces of all primitives share: timeouts as ``threading`` takes them, and how a primitive is shown."""

from collections.abc import Sized

from polyloop._core import _prims


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

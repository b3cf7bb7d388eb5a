"""Lines of waiters, and the two ways to wait in one. What every lock and queue of polyloop is made of.

A *line* is a deque of waiters in the order they came. Whoever takes a waiter out of its line decides its fate: a waker
that pops it owes it a ``wake``, a waiter that gives up removes itself, and of the two exactly one succeeds, since
``deque.popleft`` and ``deque.remove`` are critical sections of that deque (``remove`` runs no code of anybody: waiters
compare by identity).

Why no wake-up is lost. What is waited for lives in a container of its own, too. A waiter enters the line and *then*
looks whether it has to wait at all; a waker changes what is waited for and *then* looks at the line. In every order of
these four steps one of the two sees the other. It relies on the length of a deque being a sequentially consistent load
and on its methods being critical sections, as the mailbox does. In every order: ``test_queue_interleavings.py``,
``test_sync_interleavings.py``; stress: ``test_queue_stress.py``, ``test_sync_stress.py``.

*Trying again* (``until``, ``block_until``): who is woken looks for itself whether there is something left for it, and
goes back to the head of the line if not. Fast where one wake-up can serve many: queues. Who is woken but leaves without
having looked passes the wake-up on.

*Handing over* (``Permits``): who is woken has got what it waited for. Strictly in turn: locks and semaphores. Who is
woken but leaves gives it back, to the next in line.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, cast

from polyloop._core import _prims
from polyloop._core._parking import AsyncWaiter, ThreadWaiter, Waiter, async_waiter, spin_until

type Line = deque[Waiter]


class Nothing:
    """What an attempt returns that has to be made again later."""

    __slots__ = ()


NOTHING: Final = Nothing()


def wake_next(line: Line) -> bool:
    """Wake whoever has waited longest; ``False`` if nobody waits. Any thread."""
    while True:
        try:
            waiter = line.popleft()
        except IndexError:
            return False
        if waiter.wake():
            return True


def wake_all(line: Line) -> None:
    """Wake all who stand in the line now, in their order. Any thread."""
    for _ in range(len(line)):
        if not wake_next(line):
            return


def leave(line: Line, waiter: Waiter) -> bool:
    """Take a waiter that gives up out of its line; ``False`` if it is being woken at this moment, or was."""
    try:
        line.remove(waiter)
    except ValueError:
        return False
    return True


def was_woken(line: Line, waiter: AsyncWaiter) -> bool:
    """Whether the parked coroutine that ends was woken, so that it must pass on what for; else it has left its line."""
    return not leave(line, waiter) and not waiter.forsaken()


async def until[R](line: Line, attempt: Callable[[], R | Nothing]) -> R:
    """Wait in ``line`` until ``attempt`` returns something.

    Args:
        attempt: Looks for what is waited for, and returns ``NOTHING`` if it is not there. Waits for nothing.
    Raises:
        BaseException: what ``attempt`` raises, or the cancellation; the next in line is not forgotten.
    """
    enter = line.append
    while True:
        waiter = async_waiter()
        enter(waiter)
        try:
            result = attempt()  # after entering: see the module's theory
            if result is not NOTHING:
                if not leave(line, waiter):
                    wake_next(line)  # a wake-up for something else than what was taken
                return cast("R", result)
            await waiter
            result = attempt()
        except BaseException:
            if not leave(line, waiter):
                wake_next(line)
            raise
        if result is not NOTHING:
            return cast("R", result)
        enter = line.appendleft  # others were faster; still it is the one that has waited longest


def block_until[R](
    line: Line, attempt: Callable[[], R | Nothing], timeout: float | None, look: Callable[[], object] | None = None
) -> R | Nothing:
    """``until`` for a plain thread; returns ``NOTHING`` when ``timeout`` seconds have passed first.

    Args:
        look: Says cheaply whether an attempt is worth it. If given, the thread spins on it before it enters the line,
            so that nobody has to wake it.
    """
    deadline = None if timeout is None else _prims.monotonic() + timeout
    enter = line.append
    while True:
        if look is not None and spin_until(look, timeout) and (result := attempt()) is not NOTHING:
            return result
        waiter = ThreadWaiter()
        enter(waiter)
        try:
            result = attempt()
            if result is not NOTHING:
                if not leave(line, waiter):
                    wake_next(line)
                return result
            left = None if deadline is None else max(0.0, deadline - _prims.monotonic())
            in_time = waiter.park(left, spin=look is None)
            gave_up = not in_time and leave(line, waiter)  # before the last look: what comes later wakes another
            result = attempt()
        except BaseException:
            if not leave(line, waiter):
                wake_next(line)
            raise
        if result is not NOTHING or gave_up or not in_time:
            return result
        enter = line.appendleft


class Stock:
    """So many things without a face, to be taken and put back.

    Thread safety: everything may be called by any thread.
    """

    __slots__ = ("_lock", "_unissued", "free")

    def __init__(self, count: int) -> None:
        self.free: deque[None] = deque([None] * min(count, _BLOCK))
        # What nobody has needed yet is but a number; guarded by _lock, and read without it.
        self._unissued = count - len(self.free)
        # One that a signal handler may take again which interrupts its holder.
        self._lock = _prims.RLock() if self._unissued else None

    @property
    def count(self) -> int:
        """How many are free now."""
        return len(self.free) + self._unissued

    def take_nowait(self) -> bool:
        """Take one if there is one."""
        try:
            self.free.pop()
        except IndexError:
            return self._lock is not None and self._issue(self._lock)
        return True

    def _issue(self, lock: Any) -> bool:
        """Take one after making the next block of them."""
        while True:
            with lock:
                block = self._unissued
                block = block if block < _BLOCK else _BLOCK  # noqa: FURB136 - a call lets handlers in
                self._unissued -= block
                self.free.extend([None] * block)  # under the lock: who comes next and finds no block left finds these
            try:
                self.free.pop()
            except IndexError:
                if not self._unissued:
                    return False
            else:
                return True


class Permits(Stock):
    """What is held and given back, in turn: the core of locks and semaphores.

    ``free`` and ``line`` are never both filled for long: who adds to one of them looks at the other. A permit goes from
    hand to hand while anybody waits, so nobody who comes later overtakes.

    Thread safety: everything may be called by any thread. ``give`` waits for nothing.
    """

    __slots__ = ("line",)

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.line: Line = deque()

    def give(self) -> None:
        """Give one back: to whoever has waited longest, if anybody waits."""
        if self.line and wake_next(self.line):
            return
        self.free.append(None)
        if self.line:
            self.match()

    def match(self) -> None:
        """Bring permits and waiters together. Whoever has just added one of the two, and saw the other."""
        while self.free and self.line:
            try:
                self.free.pop()
            except IndexError:  # whoever has it looks at the line when giving it back
                return
            if not wake_next(self.line):  # the last one has left: put it back, and look at the line again
                self.free.append(None)

    async def wait(self) -> None:
        """Take one, in turn.

        Cancellation: holds none; one that was handed over at that moment goes to the next.
        """
        waiter = async_waiter()
        self.line.append(waiter)
        try:
            self.match()
            await waiter
        except BaseException:
            if was_woken(self.line, waiter):
                self.give()
            raise

    async def wait_again(self) -> None:
        """``wait``, for a condition that must hold its lock when it ends: the debug mode must not end it."""
        await self.wait()

    def block_again(self) -> None:
        """``block`` without limit, for a condition that must hold its lock when it ends."""
        self.block(None)

    def block(self, timeout: float | None) -> bool:
        """Take one on a plain thread, in turn; ``False`` when ``timeout`` seconds have passed first."""
        waiter = ThreadWaiter()
        self.line.append(waiter)
        try:
            self.match()
            # Handed over at the very end of the time: it is ours.
            return waiter.park(timeout) or not leave(self.line, waiter)
        except BaseException:  # KeyboardInterrupt
            if not leave(self.line, waiter):
                self.give()
            raise


#: They are made in blocks of this many: a semaphore of a million costs nothing until it is used.
_BLOCK: Literal[1024] = 1024

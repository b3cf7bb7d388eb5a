"""Parking: to suspend a coroutine or a thread until any other thread wakes it.

A waiter parks once and is woken by at most one caller of ``wake``, from any thread. Who may wake it, or give it up, is
decided elsewhere: as a rule by whoever takes it out of the line it stands in (see ``_waiting``).
"""

import asyncio
import sys
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from polyloop._core import _prims, _trio
from polyloop._core._context import here, runs_a_loop
from polyloop._core._errors import BlockingCallError
from polyloop._core._port import Port, current_port
from polyloop._core._scope import protected
from polyloop._core._spin import SpinPolicy, spin_ns_for, spin_permits

if TYPE_CHECKING:
    from polyloop._core._migrant import MigratableTask


class Waiter(Protocol):
    """Whoever is parked, or about to park."""

    def wake(self) -> bool:
        """End the park, or prevent it. Any thread; once.

        ``False``: nobody waits here any more, or it was woken elsewhere; try the next one.
        """
        ...


class AsyncWaiter(Waiter, Protocol):
    """A parked coroutine. ``await`` it to park.

    Cancellation: the ``await`` raises, whether ``wake`` was called meanwhile or not.
    """

    def __await__(self) -> Generator[Any, Any, Any]: ...

    def forsaken(self) -> bool:
        """Whether ``wake`` has returned ``False``, or will: so there is nothing to be passed on.

        For a coroutine that ends while it is parked, is out of its line, and may have been handed something. Once.
        """
        ...


class LoopWaiter:
    """One park of one coroutine on the loop that runs it (asyncio or compatible)."""

    __slots__ = ("_came_late", "_future", "_port")

    def __init__(self) -> None:
        port = current_port()
        self._port: Port = port
        self._future: asyncio.Future[None] = port.loop.create_future()

    def __await__(self) -> Generator[Any]:
        return self._future.__await__()

    def wake(self) -> bool:
        port = self._port
        if port.mailbox.closed:
            return self._refuse()
        # Outside of a task the caller may be a signal handler that interrupts the loop's sleep, which then would go on.
        if port.is_current() and asyncio.current_task(port.loop) is not None:
            return self() or self._refuse()
        port.post(self)  # itself: a bound method would be one more object for the garbage collector
        return True

    def __call__(self) -> bool:
        """Resolve the future, on its loop; ``False`` if that was closed under it."""
        fates = self._port.fates
        if fates:
            fates.pop(self, None)
        if self._future.done():  # the parked task was cancelled meanwhile
            self._came_late = True
            return True
        try:
            self._future.set_result(None)
        except RuntimeError:
            return False
        return True

    def _refuse(self) -> bool:
        """The loop has ended; ``True`` if the coroutine was closed, too, and has passed on what it was woken for."""
        return self._port.fates.setdefault(self, _REFUSED) is not _REFUSED

    def forsaken(self) -> bool:
        """Whether ``wake`` has returned ``False``, or will. For a coroutine that ends after it was taken for woken."""
        fates, future = self._port.fates, self._future
        if fates.get(self) is _REFUSED:
            return True
        if hasattr(self, "_came_late") or (future.done() and not future.cancelled()):  # the wake-up has arrived
            return False
        # Kept until it arrives: the loop may end before, and the waker must find this then.
        return fates.setdefault(self, _PASSED_ON) is _REFUSED


#: What has become of a waiter whose loop has ended: its waker has gone on to the next, or it has, being closed.
_REFUSED: Final = "refused"
_PASSED_ON: Final = "passed on"


_modules = sys.modules
_running_loop = asyncio._get_running_loop
_untyped: Any = asyncio.current_task  # typed as if there were no other tasks than asyncio's own
_current_task: "Callable[[asyncio.AbstractEventLoop], MigratableTask[Any] | None]" = _untyped
_TRIO = "trio"


class Migrant:
    """What ``running_migrant`` knows a ``MigratableTask`` by."""

    __slots__ = ()


def running_migrant() -> "MigratableTask[Any] | None":
    """The migratable task that calls, if one does."""
    loop = _running_loop()
    if loop is None:
        return None
    task = _current_task(loop)
    return task if isinstance(task, Migrant) else None


def async_waiter() -> AsyncWaiter:
    """A waiter for the running coroutine: a migratable task's, or on asyncio or trio.

    Raises:
        RuntimeError: none of them runs it.
    """
    migrant = running_migrant()
    if migrant is not None:
        return migrant.waiter()
    return _trio.TrioWaiter() if _TRIO in _modules and _trio.runs_this() else LoopWaiter()


class ThreadWaiter:
    """One park of one plain thread."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _prims.Lock()
        self._lock.acquire()

    def wake(self) -> bool:
        try:  # not contextlib.suppress, which costs more than all the rest
            self._lock.release()
        except RuntimeError:  # unlocked: its scope was cancelled at the same moment
            pass
        return True

    def park(self, timeout: float | None = None, spin: bool = True) -> bool:
        """Block the calling thread until woken; return ``False`` when ``timeout`` seconds passed first.

        Args:
            spin: Whether to spin first, where that has been paying off.
        Raises:
            CancelledError: the call was cancelled that this thread runs; whether it was woken is not known.
        """
        if self._lock.acquire(False) or (spin and spin_until(partial(self._lock.acquire, False), timeout)):
            return True
        scope = here.scope
        if scope is None or (timeout is not None and timeout <= 0):  # what waits for no time is not cancelled
            return self._sleep(timeout)
        return scope.sleep(self, self._sleep, timeout)

    def _sleep(self, timeout: float | None) -> bool:
        policy = here.spin
        if policy is None or not policy.spin_ns:
            return self._park(timeout)
        began = _prims.monotonic_ns()
        woken = self._park(timeout)
        if woken:
            policy.woken(_prims.monotonic_ns() - began)
        return woken

    def _park(self, timeout: float | None) -> bool:
        if _prims.is_main_thread():
            return self._park_main(timeout)
        return self._lock.acquire(timeout=-1 if timeout is None else timeout)

    def _park_main(self, timeout: float | None) -> bool:
        # A signal that the kernel delivers to another thread does not interrupt the main thread's wait for a lock,
        # yet only the main thread can run its handler (measured: Ctrl-C was noticed when the wait ended). So the main
        # thread looks up ten times a second.
        deadline = None if timeout is None else _prims.monotonic() + timeout
        while True:
            left = _SIGNAL_SLICE if deadline is None else min(_SIGNAL_SLICE, deadline - _prims.monotonic())
            if self._lock.acquire(timeout=max(left, 0)):
                return True
            if deadline is not None and _prims.monotonic() >= deadline:
                return False


_SIGNAL_SLICE = 0.1

#: Looks between two looks at the clock while spinning, and what passes between two of them: some 0.1 us.
_LOOKS = 8
_PAUSE = range(8)


def spin_until(look: Callable[[], object], timeout: float | None) -> bool:
    """Look for a while on a plain thread, if that has been paying off, before it is put to sleep.

    Args:
        look: Says whether to stop looking; called some thousand times.
        timeout: Do not spin if the thread waits for less than a spin.
    Returns:
        What ``look`` said last.
    """
    if here.scope is not None:
        with protected():  # a permit that an interrupt loses is lost for the process
            return _spin_until(look, timeout)
    return _spin_until(look, timeout)


def _spin_until(look: Callable[[], object], timeout: float | None) -> bool:
    policy = here.spin
    if policy is None:  # each thread learns from its own hit rate
        policy = here.spin = SpinPolicy(spin_ns_for(None))
    spin_ns = policy.spin_ns and policy.next_spin_ns()
    if not spin_ns or (timeout is not None and timeout * 1e9 < spin_ns):
        return False
    try:
        spin_permits.pop()
    except IndexError:
        return False
    try:
        clock = _prims.monotonic_ns
        began = now = clock()
        while now - began < spin_ns:
            for _ in range(_LOOKS):
                if look():
                    policy.hit()
                    return True
                for _ in _PAUSE:  # each look takes the cache line from whoever is about to write to it
                    pass
            now = clock()
        policy.miss(now - began)
        return False
    finally:
        spin_permits.append(None)


def refuse_on_loop_thread(call: str, twin: str, timeout: float | None = None) -> None:
    """Raise ``BlockingCallError`` if the calling thread runs a loop.

    Args:
        call: What would block, as the user wrote it.
        twin: The awaitable spelling of the same thing.
        timeout: How long it would block at most: what waits for no time is not refused.
    """
    if timeout is not None and timeout <= 0:
        return
    if runs_a_loop() or _trio.runs_this():
        thread = _prims.current_thread().name
        raise BlockingCallError(f"{call} would block the event loop of thread {thread!r}; use '{twin}' there")

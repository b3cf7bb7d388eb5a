"""Parking: to suspend a coroutine or a thread until any other thread wakes it.

A waiter parks once and is woken by at most one caller of ``wake``, from any thread. Who may wake it, or give it up, is
decided elsewhere: as a rule by whoever takes it out of the line it stands in (see ``_waiting``).
"""

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any, Protocol

from polyloop._core import _prims, _trio
from polyloop._core._context import here, runs_a_loop
from polyloop._core._errors import BlockingCallError
from polyloop._core._port import Port, current_port
from polyloop._core._spin import SpinPolicy, spin_ns_for, spin_permits


class Waiter(Protocol):
    """Whoever is parked, or about to park."""

    def wake(self) -> bool:
        """End the park, or prevent it. Any thread; once. ``False``: nobody waits here any more, try the next one."""
        ...


class AsyncWaiter(Waiter, Protocol):
    """A parked coroutine. ``await`` it to park.

    Cancellation: the ``await`` raises, whether ``wake`` was called meanwhile or not.
    """

    def __await__(self) -> Generator[Any, Any, Any]: ...


class LoopWaiter:
    """One park of one coroutine on the loop that runs it (asyncio or compatible)."""

    __slots__ = ("_future", "_port")

    def __init__(self) -> None:
        port = current_port()
        self._port: Port = port
        self._future: asyncio.Future[None] = port.loop.create_future()

    def __await__(self) -> Generator[Any]:
        return self._future.__await__()

    def wake(self) -> bool:
        port = self._port
        if port.is_current():
            self()
        elif port.mailbox.closed:
            return False
        else:
            port.post(self)  # itself: a bound method would be one more object for the garbage collector
        return True

    def __call__(self) -> None:
        """Resolve the future, on its loop."""
        if not self._future.done():  # done: the parked task was cancelled meanwhile
            with contextlib.suppress(RuntimeError):  # the loop was closed under it
                self._future.set_result(None)


def async_waiter() -> AsyncWaiter:
    """A waiter for the running coroutine, on asyncio or trio.

    Raises:
        RuntimeError: neither of them runs it.
    """
    return _trio.TrioWaiter() if _trio.runs_this() else LoopWaiter()


class ThreadWaiter:
    """One park of one plain thread."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _prims.Lock()
        self._lock.acquire()

    def wake(self) -> bool:
        self._lock.release()
        return True

    def park(self, timeout: float | None = None) -> bool:
        """Block the calling thread until woken; return ``False`` when ``timeout`` seconds passed first."""
        lock = self._lock
        if lock.acquire(blocking=False):
            return True
        policy = here.spin or _new_policy()
        spin_ns = policy.spin_ns and policy.next_spin_ns()
        if spin_ns and (timeout is None or timeout * 1e9 > spin_ns) and self._spin(policy, spin_ns):
            return True
        began = _prims.monotonic_ns()
        woken = self._park_main(timeout) if _prims.is_main_thread() else self._park(timeout)
        if woken and policy.spin_ns:
            policy.woken(_prims.monotonic_ns() - began)
        return woken

    def _spin(self, policy: SpinPolicy, spin_ns: int) -> bool:
        try:
            spin_permits.pop()
        except IndexError:
            return False
        try:
            clock, acquire = _prims.monotonic_ns, self._lock.acquire
            began = now = clock()
            while now - began < spin_ns:
                for _ in range(_LOOKS):
                    if acquire(False):
                        policy.hit()
                        return True
                now = clock()
            policy.miss(now - began)
            return False
        finally:
            spin_permits.append(None)

    def _park(self, timeout: float | None) -> bool:
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

#: Looks at the lock between two looks at the clock while spinning.
_LOOKS = 8


def _new_policy() -> SpinPolicy:
    """The calling thread's own: it learns from its own hit rate."""
    policy = here.spin = SpinPolicy(spin_ns_for(None))
    return policy


def refuse_on_loop_thread(call: str, twin: str) -> None:
    """Raise ``BlockingCallError`` if the calling thread runs a loop.

    Args:
        call: What would block, as the user wrote it.
        twin: The awaitable spelling of the same thing.
    """
    if runs_a_loop() or _trio.runs_this():
        thread = _prims.current_thread().name
        raise BlockingCallError(f"{call} would block the event loop of thread {thread!r}; use '{twin}' there")

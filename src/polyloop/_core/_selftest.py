"""The cross-thread wake-up self-test: does a foreign loop deliver every ``call_soon_threadsafe``?

uvloop before 0.23 on a free-threaded build loses some (its issue 720): the loop sleeps on until its next timer. A pool
over such a loop hangs now and then, and the fault looks like ours. So each loop class that polyloop did not make is
tried once per process, and refused by name.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from polyloop._core import _prims
from polyloop._core._completion import Completion
from polyloop._core._errors import UnreliableLoopError

#: Wake-ups sent one after the other, each answered before the next: the loop goes to sleep in between.
_SINGLE = 50

#: Seconds between two of them, so that it has gone to sleep: who waits for the answer spins, and hears it at once.
_NAP = 0.0002

#: Wake-ups sent at once by each of two threads, several rounds: they race the loop falling asleep.
_BURST = 25
_ROUNDS = 20

#: Seconds until a wake-up counts as lost.
_TIMEOUT = 2.0

_passed: set[type] = set()  # loop classes that passed; added to by any thread


def check_wakeups(loop: asyncio.AbstractEventLoop, *, timeout: float = _TIMEOUT) -> None:
    """Refuse a loop that loses cross-thread wake-ups. The loop must be running on another thread.

    Raises:
        UnreliableLoopError: a ``call_soon_threadsafe`` was not run within ``timeout`` seconds.
    """
    kind = type(loop)
    if kind in _passed:
        return
    sent = 0
    try:
        for _ in range(_SINGLE):
            sent += 1
            _ping(loop).result(timeout)
            _prims.sleep(_NAP)
        for _ in range(_ROUNDS):
            sent += 2 * _BURST
            _burst(loop, timeout)
    except TimeoutError:
        raise UnreliableLoopError(_refusal(kind, sent, timeout)) from None
    _passed.add(kind)


def _refusal(kind: type, sent: int, timeout: float) -> str:
    advice = "use uvloop 0.23 or newer there" if "uvloop" in kind.__module__ else "use another loop_factory"
    return (
        f"the event loop {kind.__module__}.{kind.__qualname__} loses cross-thread wake-ups: of {sent} calls of"
        f" call_soon_threadsafe one was not run within {timeout} s; {advice}, or none for polyloop's own"
    )


class _Pong(Completion[None]):
    def result(self, timeout: float) -> None:
        """Wait twice: what a machine that stood still has delayed comes by itself when it goes on, a lost one never."""
        try:
            self._block(timeout, "")
        except TimeoutError:
            self._block(timeout, "")


def _ping(loop: asyncio.AbstractEventLoop) -> _Pong:
    pong = _Pong()
    loop.call_soon_threadsafe(pong._complete, None)
    return pong


def _burst(loop: asyncio.AbstractEventLoop, timeout: float) -> None:
    """Two threads send at once; the last of each thread must arrive, and with it all before."""
    other: list[Any] = []
    thread = _prims.start_thread(lambda: other.extend(_ping(loop) for _ in range(_BURST)), "polyloop-selftest")
    pongs = [_ping(loop) for _ in range(_BURST)]
    thread.join()
    for pong in (*pongs, *other):
        pong.result(timeout)


def check_factory(factory: Callable[[], asyncio.AbstractEventLoop], *, timeout: float = _TIMEOUT) -> None:
    """Make a loop in a thread of its own, try it, and close it: for a loop that the caller is about to run itself.

    Raises:
        UnreliableLoopError: as ``check_wakeups``.
    """
    made = _Made()
    thread = _prims.start_thread(lambda: _run_made(factory, made), "polyloop-selftest-loop")
    loop = made.loop()
    try:
        check_wakeups(loop, timeout=timeout)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout)


class _Made(Completion[asyncio.AbstractEventLoop]):
    def loop(self) -> asyncio.AbstractEventLoop:
        self._block(None, "")
        return self._outcome()


def _run_made(factory: Callable[[], asyncio.AbstractEventLoop], made: _Made) -> None:
    try:
        loop = factory()
    except BaseException as exc:
        made._complete(None, exc)
        return
    loop.call_soon(made._complete, loop)
    loop.call_later(10 * _TIMEOUT, loop.stop)  # ends the thread even if the stop of check_factory is lost
    try:
        loop.run_forever()
    finally:
        loop.close()

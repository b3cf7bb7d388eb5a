"""Calls that may be interrupted: the last resort against a function that never waits and never asks.

``PyThreadState_SetAsyncExc`` makes CPython raise an exception in another thread, between two bytecodes, at some later
time. By then the thread may run somebody else's call, or hold a lock of ours. So the scope of such a call has one
ticket, which is there while the function may be interrupted: whoever takes it decides. The canceller that takes it
sends the exception. The thread takes it before it leaves the function, and before it enters code that must not be torn
apart; if the ticket is gone, it waits until the exception was sent, and lets it arrive there. So it arrives in the
function, or at its border, once, and never later.
"""

import asyncio
import ctypes
from collections import deque
from typing import Any

from polyloop._core import _prims
from polyloop._core._scope import Scope
from polyloop.offload._call import Call


class InterruptibleScope(Scope):
    """A scope in whose thread ``CancelledError`` can be raised. ``interrupt`` is for one canceller, the rest for it."""

    __slots__ = ("_depth", "_ident", "_sent", "_spent", "_ticket", "_wanted")

    def __init__(self) -> None:
        super().__init__()
        self._ticket: deque[None] = deque()
        self._wanted = False  # somebody has asked for the interrupt
        self._spent = False  # it has been sent, or raised; the thread's own
        self._sent = _prims.Lock()  # free once it was sent
        self._sent.acquire()
        self._depth = 1  # how many protected regions the thread is in; the first ends with begin()
        self._ident = 0

    def begin(self) -> None:
        """The function may be interrupted from now on. Raises if it was before it began."""
        self._ident = _prims.get_ident()
        self.unprotect()

    def protect(self) -> None:
        """Not from now on; one that is on its way arrives here."""
        self._depth += 1
        if self._depth > 1 or self._spent:
            return
        try:
            self._ticket.pop()  # atomic: one ticket has one popper
        except IndexError:
            self._spent = True
            with self._sent:  # waits for whoever has popped it
                pass
            for _ in range(3):  # a loop is where CPython looks for it
                pass

    def unprotect(self) -> None:
        """From now on again, if it was not yet. Raises if somebody wanted it meanwhile."""
        self._depth -= 1
        if self._depth or self._spent:
            return
        self._ticket.append(None)  # and *then* look: the canceller sets the flag and then pops
        if self._wanted:
            try:
                self._ticket.pop()
            except IndexError:
                return  # it is on its way
            self._spent = True
            self.check()

    def interrupt(self) -> None:
        """Raise ``CancelledError`` in the thread, now or when it may be. Any thread; after ``cancel``."""
        self._wanted = True
        try:
            self._ticket.pop()
        except IndexError:  # the thread finds the flag, or has no more use for it
            return
        try:
            _raise_in(self._ident, asyncio.CancelledError)
        finally:
            self._sent.release()


class InterruptibleCall[T](Call[T]):
    """A call in whose thread ``CancelledError`` is raised when it is cancelled."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._scope: InterruptibleScope = InterruptibleScope()

    def _run(self) -> T:
        scope = self._scope
        try:
            scope.begin()
            return super()._run()
        finally:
            scope.protect()  # for good
            del self  # as in execute

    def cancel_running(self) -> bool:
        """Tell the function to stop, and interrupt it, unless its thread was asleep and raises by itself."""
        asleep = super().cancel_running()
        if not asleep:
            self._scope.interrupt()
        return asleep


def _raise_in(ident: int, kind: type[BaseException]) -> None:
    """Raise an exception of ``kind`` in a thread."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(kind))

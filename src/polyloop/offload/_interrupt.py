"""Calls that may be interrupted: the last resort against a function that never waits and never asks.

``PyThreadState_SetAsyncExc`` makes CPython raise an exception in another thread, between two bytecodes, at some later
time. By then the thread may run somebody else's call. So a call has one ticket for one interrupt, from the moment the
function begins; its thread takes the ticket back when the function has ended, and if it is gone waits until the
exception was sent and withdraws it, in case that it has not arrived. The exception may arrive anywhere until then, in
the taking back too; wherever it does, it is the outcome of the call, and there is no second one.
"""

import asyncio
import ctypes
from collections import deque
from typing import Any

from polyloop._core import _prims
from polyloop.offload._call import Call


class InterruptibleCall[T](Call[T]):
    """A call in whose thread ``CancelledError`` is raised when it is cancelled."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._ticket: deque[None] = deque()
        self._sent = _prims.Lock()  # released when the exception was sent
        self._sent.acquire()

    def _run(self) -> T:
        self._ticket.append(None)
        try:
            return super()._run()  # looks whether it was cancelled: by whoever found no ticket
        finally:
            self._take_ticket_back()
            del self  # as in execute

    def _take_ticket_back(self) -> None:
        try:
            self._ticket.pop()  # atomic: one ticket has one popper
        except IndexError:
            self._sent.acquire()
            _raise_in(_prims.get_ident(), None)

    def cancel_running(self) -> bool:
        """Tell the function to stop, and interrupt it, unless its thread was asleep and raises by itself."""
        if super().cancel_running():
            return True
        try:
            self._ticket.pop()
        except IndexError:  # it has not begun, and will not; or has ended, or was interrupted
            return False
        try:
            assert self.thread is not None
            _raise_in(self.thread[0], asyncio.CancelledError)
        finally:
            self._sent.release()
        return False


def _raise_in(ident: int, kind: type[BaseException] | None) -> None:
    """Raise an exception of ``kind`` in a thread, or withdraw one that has not arrived."""
    raised = None if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), raised)

"""Limits: at most so many tasks of one group or ``gather`` at once; the others wait for their turn, in order.

A handle that waits is in ``_line`` and on no loop. It has one *ticket*. Whoever takes that decides its fate: ``match``
starts it, its canceller refuses it. A ticket that was taken leaves a dead entry in the line, which ``match`` skips.

Why no handle waits beside a free turn: who adds a handle appends it to the line and *then* looks for a turn; who gives
a turn back does so and *then* looks at the line. One of the two sees the other, and brings them together.

Why a cancellation is not missed that comes before the handle is in the line: the canceller lists its request and *then*
takes the ticket; who adds the handle hands out the ticket and *then* looks for requests.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Hashable
from typing import Any

from polyloop._core._context import here, runs_a_loop
from polyloop._core._context_owner import claim_context
from polyloop._core._handle import TaskHandle
from polyloop._core._migrant import MigratableTask
from polyloop._core._port import Port, current_port
from polyloop._core._waiting import Stock
from polyloop.runtime._placement import Here
from polyloop.runtime._routing import On
from polyloop.runtime._runtime import Runtime
from polyloop.tasks._start import check_choice, place


class Waiting[T](TaskHandle[T]):
    """What a task has that may have to wait for its turn."""

    _turns: "Turns | None" = None  # set before it is in line
    _where: tuple[Port | None, On | None, Hashable | None] = (None, None, None)
    _has_turn = False  # set by whoever takes the ticket to start it
    _ticket: deque[None]  # made in Turns.enter; atomic: one ticket has one popper

    def _request_cancel(self, msg: Any) -> None:
        super()._request_cancel(msg)
        turns = self._turns
        if turns is not None:
            turns.give_up(self, msg)


class WaitingHandle[T](Waiting[T]):
    """The handle of such a task."""


class WaitingMigrant[T](Waiting[T], MigratableTask[T]):
    """Such a task that migrates."""


class Turns:
    """As many turns as ``limit``, and the line of those who wait for one. Any thread, where nothing else is said."""

    def __init__(self, limit: int, home: Port, runtime: Runtime | None) -> None:
        self._home = home
        self._runtime = runtime
        self._free = Stock(limit)
        self._line: deque[Waiting[Any]] = deque()
        self._closed = False

    def enter(self, handle: Waiting[Any], on: On | None, key: Hashable | None) -> None:
        """Start a new handle when it is its turn, where ``on`` and ``key`` said from the caller's point of view.

        Raises:
            ValueError, TypeError: ``on`` and ``key`` make no sense; the coroutine was closed.
        """
        try:
            check_choice(self._runtime, on, key)
        except BaseException:
            handle._drop()
            raise
        port = None if isinstance(handle, MigratableTask) else self._port_for(handle, on, key)
        handle._where = (port, on, key)
        if handle._context is None:
            handle._context = contextvars.copy_context()
        handle._ticket = deque((None,))
        handle._turns = self
        requests = handle._cancel_requests()
        if requests is not None:  # cancelled while it was on its way: see the module's theory
            self.give_up(handle, requests[-1])
            return
        self._line.append(handle)
        self.match()

    def give_up(self, handle: Waiting[Any], msg: Any) -> None:
        """Complete a handle that was cancelled, if it still waits."""
        try:
            handle._ticket.pop()
        except IndexError:  # it is being started, or was cancelled before
            return
        handle._refuse(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))

    def ended(self, handle: TaskHandle[Any]) -> None:
        """A task has ended, in its turn or before; on whatever thread completed it."""
        if isinstance(handle, Waiting) and handle._has_turn:
            self._free.free.append(None)
            if self._line:
                # Not at once: starting a task may fail and so end it, which would call this again, and so on.
                self._home.post(self.match)

    _child_ended = ended  # of ``gather``, which has no group

    def close(self) -> None:
        """Start nobody any more; who still waits is about to be cancelled."""
        self._closed = True

    def match(self) -> None:
        """Bring turns and handles together. Whoever has just added one of the two."""
        while self._line and not self._closed and self._free.take_nowait():
            handle = self._next()
            if handle is None:
                self._free.free.append(None)
            else:
                self._start(handle)

    def _next(self) -> Waiting[Any] | None:
        """The handle that has waited longest and was not cancelled."""
        while True:
            try:
                handle = self._line.popleft()
            except IndexError:
                return None
            try:
                handle._ticket.pop()
            except IndexError:
                continue
            return handle

    def _start(self, handle: Waiting[Any]) -> None:
        handle._has_turn = True
        port, on, key = handle._where
        try:
            if port is None:
                place(handle, self._runtime, self._home, on, key)
            elif port is here.port:
                handle._start_here(port)
            else:
                handle._claim_context(port)
                port.admit(handle, False)
        except BaseException as exc:  # the runtime is closing, say; the coroutine was closed
            if not handle._done:
                self._home.post(handle._refuse, exc)
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise

    def _port_for(self, handle: Waiting[Any], on: On | None, key: Hashable | None) -> Port | None:
        """The loop of the caller, if that is where the task is to run; else its place is found when it starts."""
        if not runs_a_loop() or key is not None:
            return None
        if on == "here" or isinstance(on, Here):
            return current_port()
        if on is None and handle._shares_context:
            assert handle._context is not None
            return claim_context(handle._context, current_port())
        if on is None and self._runtime is not None and isinstance(self._runtime._router._policy, Here):
            return current_port()
        return None

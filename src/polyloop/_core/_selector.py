"""The selector that knows when its loop sleeps.

An asyncio loop calls ``select`` once per tick, so the selector sees every tick and every sleep without any hook into
the loop. It owns the sleep protocol of the mailbox (see ``_mailbox``), the spin before a sleep, and the figures that
follow from sleeps: utilisation and idleness. Everything here runs on the loop's own thread, except ``wake``.

Why it cannot hang: a sleep is entered only after the token is in place and the mailbox was found empty after that, so
every later post ends it. Spurious wake-ups are possible and harmless; a missing one is not possible.

What is served may run a task's first step, and that may do anything to the sockets: stop reading one, close it and
get its number for another. So nothing is served between a poll that found sockets and the return of what it found,
which asyncio would take for events of the new ones. The next tick serves first.
"""

import os
import select
import selectors
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from polyloop._core import _prims
from polyloop._core._mailbox import Mailbox
from polyloop._core._spin import SpinPolicy, spin_permits
from polyloop._core._waker import new_waker

if TYPE_CHECKING:
    type Events = list[tuple[selectors.SelectorKey, int]]

#: Looks at the mailbox between two looks at the sockets while spinning: a look at a deque takes 0.1 us, a poll 0.5 us.
_LOOKS_PER_POLL = 8

#: A loop that has other work looks at its sockets this often at most. asyncio polls at every tick; a poll takes 0.5
#: us, a tick can be as short as 5 us, and no socket notices a delay of two kernel wake-ups.
_POLL_INTERVAL_NS = 50_000

#: How long ``close`` waits for a thread that is between taking the token and writing, in seconds.
_LAST_WAKE_TIMEOUT = 1.0


class Tenant(Protocol):
    """What the selector serves: the loop's mailbox, tasks that have not started or migrate, and its idle moments."""

    mailbox: Mailbox
    unstarted: deque[Any]
    runnable: deque[Any]
    bound: deque[Any]

    def serve(self) -> None:
        """Run what was posted and start tasks. Loop thread."""
        ...

    def on_idle(self) -> bool:
        """Called when the loop is about to sleep; return whether that found something to serve. Loop thread."""
        ...


class WorkerSelector(selectors.DefaultSelector):
    """A selector that serves a mailbox between polls.

    Args:
        spin: The policy for spinning before a sleep.
    """

    def __init__(self, spin: SpinPolicy) -> None:
        super().__init__()
        self._spin_policy = spin
        self._waker = new_waker()
        # (None, None) is what asyncio reads as "no reader, no writer": it ignores the event of this descriptor.
        self._waker_key = self.register(self._waker.fileno(), selectors.EVENT_READ, (None, None))
        self._wakes_owed = 0  # tokens that a poster took and whose wake has not been drained yet
        self._tenant: Tenant
        self._items: deque[Any]
        self._unstarted: deque[object]
        self._runnable: deque[Any]
        self._bound: deque[Any]
        self._tokens: deque[None]
        self._polled_ns = 0  # when the sockets were last looked at
        self.slept_ns = 0  # written by the loop thread, read by anyone
        self.sleeps = 0

    def attach(self, tenant: Tenant) -> None:
        """Set what this selector serves; once, before the loop runs."""
        self._tenant = tenant
        self._items = tenant.mailbox.items
        self._tokens = tenant.mailbox.tokens
        self._unstarted = tenant.unstarted
        self._runnable = tenant.runnable
        self._bound = tenant.bound

    def wake(self) -> None:
        """End the sleep. Called by whoever popped the token, from any thread."""
        self._waker.wake()

    def select(self, timeout: float | None = None) -> "Events":
        """Serve the mailbox, then poll; sleep for at most ``timeout`` seconds if there is nothing to do."""
        if self._items or self._unstarted or self._runnable or self._bound:
            self._tenant.serve()
            return self._poll_if_due()
        if timeout is not None and timeout <= 0:
            return self._poll_if_due()
        events = self._spin(timeout)
        if events is None:
            return self._sleep(timeout)
        if events:
            return events
        self._tenant.serve()  # what the spin found, now that its permit is back
        return self._poll_if_due()

    def _poll_if_due(self) -> "Events":
        """Look at the sockets, unless that was done a moment ago: a busy loop ticks every few microseconds."""
        now = _prims.monotonic_ns()
        if now - self._polled_ns < _POLL_INTERVAL_NS:
            return []
        self._polled_ns = now
        return super().select(0)

    def _spin(self, timeout: float | None) -> "Events | None":
        """Look for work for a while.

        Returns:
            What the sockets had; nothing, if there is something to serve; ``None``, if there was no work at all or
            spinning does not pay now.
        """
        policy = self._spin_policy
        spin_ns = policy.spin_ns and policy.next_spin_ns()
        if not spin_ns:
            return None
        try:
            spin_permits.pop()
        except IndexError:
            return None
        try:
            return self._spin_for(spin_ns if timeout is None else min(spin_ns, int(timeout * 1e9)))
        finally:
            spin_permits.append(None)

    def _spin_for(self, spin_ns: int) -> "Events | None":
        clock = _prims.monotonic_ns
        items, unstarted, runnable, bound = self._items, self._unstarted, self._runnable, self._bound
        began = now = clock()
        while now - began < spin_ns:
            for _ in range(_LOOKS_PER_POLL):
                if items or unstarted or runnable or bound:
                    self._spin_policy.hit()
                    return []
            self._polled_ns = now
            events = super().select(0)
            if events:
                self._take_wakes(events)
                self._spin_policy.hit()
                return events
            now = clock()
        self._spin_policy.miss(now - began)
        return None

    def _sleep(self, timeout: float | None) -> "Events":
        # Announce the sleep, then look a last time, at the peers' tasks too: see _mailbox. A peer that gets one appends
        # it and then looks for a worker that has announced its sleep, so none waits there while this one sleeps.
        self._tokens.append(None)
        if self._items or self._unstarted or self._runnable or self._bound or self._tenant.on_idle():
            self._retract()
            self._tenant.serve()
            return self._poll_if_due()
        began = _prims.monotonic_ns()
        try:
            events = super().select(timeout)
        finally:  # a signal handler may raise out of the sleep, and a token left behind would outlive the waker
            slept_ns = _prims.monotonic_ns() - began
            self._retract()
        self.sleeps += 1
        self.slept_ns += slept_ns
        self._take_wakes(events)
        if self._items or self._unstarted or self._runnable or self._bound:
            self._spin_policy.woken(slept_ns)
            if _only(self._waker_key, events):
                self._tenant.serve()
        elif _only(self._waker_key, events) and self._tenant.on_idle():  # a peer that has too much has called
            self._tenant.serve()
        return events

    def _take_wakes(self, events: "Events") -> None:
        """Drain the waker if it is among ``events``: left readable, it would end every sleep and feed every spin."""
        for key, _ in events:
            if key is self._waker_key:
                self._wakes_owed = max(0, self._wakes_owed - self._waker.drain())
                return

    def _retract(self) -> None:
        """Take the token back; if a poster has it, that poster's wake is still owed."""
        try:
            self._tokens.pop()
        except IndexError:
            self._wakes_owed += 1

    def close(self) -> None:
        """Close, once no thread can still write to the waker. Loop thread, once the loop has stopped."""
        self._tokens.clear()  # none is left, unless a signal handler raised just where one was put down
        deadline = _prims.monotonic() + _LAST_WAKE_TIMEOUT
        while self._wakes_owed > 0 and _prims.monotonic() < deadline:
            super().select(0.01)
            self._wakes_owed -= self._waker.drain()
        if self._wakes_owed <= 0:
            self._waker.close()  # else leak it: a thread was stopped between taking the token and its write
        super().close()

    def cut_off(self, error: BaseException) -> None:
        """In a forked child: leave the parent's epoll alone, and fail a loop that goes on here with ``error``.

        Both processes share one epoll object: a descriptor that the child takes out of it, for instance when its copy
        of the loop is closed at exit, would be gone for the parent too. So the child's descriptor is pointed at a
        fresh one. (kqueue is not inherited.)
        """

        def refuse(timeout: float | None = None) -> "Events":
            raise error

        self.select = refuse  # type: ignore[method-assign]
        self._wakes_owed = 0
        if hasattr(select, "epoll"):
            with select.epoll() as fresh:
                os.dup2(fresh.fileno(), self.fileno(), inheritable=False)


def _only(waker: selectors.SelectorKey, events: "Events") -> bool:
    """Whether a poll has found no socket: see the module's theory."""
    return not events or (len(events) == 1 and events[0][0] is waker)

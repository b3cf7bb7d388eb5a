"""One loop's part of a pool: its free list, its loans and its line of waiters.

Everything here runs on that loop's thread, except what says otherwise; see ``_shared`` for what crosses loops, and
``_ledger`` for who is next.

A resource is at one place at a time: in ``idle``, in ``loans``, or on its way there or out in a task of the desk. A
waiter is in ``_line`` until it is served or gives up; it is served by whoever takes it out of there, by the result of
its future. Resources are made and closed by tasks of the desk, not of the waiter: a caller that is cancelled, or whose
time is up, interrupts neither, so a server never sees more connections than there are permits.
"""

import asyncio
import contextvars
import dataclasses
import inspect
import random
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

from polyloop._core import _prims
from polyloop._core._errors import ForeignLoopError, PoolClosedError, RuntimeClosedError
from polyloop._core._migrant import MigratableTask
from polyloop._core._port import current_port, logger
from polyloop.pools._loop_end import LoopEnd
from polyloop.pools._shared import Shared
from polyloop.pools._stats import Counters
from polyloop.pools._where import Home, call_site, made_for
from polyloop.sync import Event

#: A lifetime is shortened by up to this share at random, so that what was made together is not made anew together.
_JITTER = 0.1

#: Seconds until a resource that is to lie ready is tried to be made again after that has failed.
_RETRY = 1.0

#: Resources in a row that may have ended by themselves before anybody used them.
_MOST_STILLBORN = 3

_NEVER = float("inf")

_monotonic = _prims.monotonic  # asked at each return, where a global is read faster than the attribute of a module

type _Why = Literal["broken", "expired", "closed"]


def finalising() -> bool:
    """Whether the caller is being closed, perhaps by the garbage collector, amid whatever this thread does."""
    return isinstance(sys.exception(), GeneratorExit)


class Slot[R]:
    """A resource and what the pool knows of it."""

    __slots__ = ("closed_before", "desk", "expires_at", "guest", "holder", "idle_since", "made_at", "resource", "since")

    def __init__(self, resource: R, desk: "Desk[R]", made_at: str, now: float, lifetime: float | None) -> None:
        self.resource = resource
        self.desk = desk
        self.made_at = made_at
        self.since = now  # when it came to this desk
        self.idle_since = now
        self.expires_at = None if lifetime is None else now + lifetime * (1 - _JITTER * random.random())
        self.holder: object = None  # the loan that has it
        self.guest: MigratableTask[Any] | None = None  # the borrower, if it is to stay on this loop meanwhile
        self.closed_before = False  # its close was begun, and cancelled

    def refuse(self, what: str, advice: str) -> ForeignLoopError:
        """The error for ``what`` being used here, on another loop; see ``Home.refuse``."""
        return Home(self.desk.port, self.made_at).refuse(what, advice)


class Ticket[R]:
    """A waiter: when it came, where from, whose, and what it waits for."""

    __slots__ = ("at", "future", "holder", "site")

    def __init__(self, at: float, future: "asyncio.Future[Slot[R] | BaseException]", holder: object, site: str) -> None:
        self.at = at
        self.future = future
        self.holder = holder
        self.site = site


class Desk[R]:
    """The part of one pool on the running loop. ``begin`` follows, when it is known to the others."""

    def __init__(self, shared: Shared[R], here: "Callable[[], Desk[R]]") -> None:
        self.shared = shared
        self.rules = rules = dataclasses.replace(shared.rules)  # a copy: what loops share costs each of them more
        self.port = current_port()
        self.silent = self.port.silent
        self.lost = False  # written off with its loop; set under the lock
        self.here = here  # gives the desk of the running loop
        self.is_current = self.port.is_current
        self.resets = rules.reset is not None
        self.binds = rules.loop_bound
        self.alert: deque[None] = deque()  # a token while somebody applies, or the pool is ending; see _shared
        self.idle: deque[Slot[R]] = deque()  # the last to come back is the first to go; its length is read by others
        self.loans: dict[Slot[R], None] = {}  # its length is read by others
        self.counts = Counters()
        self._end: LoopEnd | None = None
        self._ending = False  # the loop is
        self._line: OrderedDict[Ticket[R], None] = OrderedDict()
        self._making: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._again: list[Slot[R]] = []  # whose close was cancelled
        self._look_at: asyncio.TimerHandle | None = None  # when to look again whether to give something up
        self._retry: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at = 0.0
        self._expires = rules.max_idle_time is not None or rules.max_lifetime is not None
        self._looks = rules.check is not None or rules.is_closed is not None
        self._creates, self._balances = self._create_for_first, self.balance  # bound once: others post them
        self._task_name = f"upkeep of pool {rules.name!r}"

    def begin(self) -> None:
        """Hear of the loop's end from now on.

        Raises:
            RuntimeClosedError: the loop was given up already.
        """
        self._end = LoopEnd(self)
        if self.port.mailbox.closed:
            raise RuntimeClosedError(f"pool {self.rules.name!r} lends nothing on {self.port.name!r}, which has ended")

    # Lending

    def borrow_nowait(self, holder: object) -> Slot[R] | None:
        """Take an idle resource, if there is one, nobody waits, and it need not be looked at before."""
        if self.alert or self._looks or self._line:
            return None
        try:
            slot = self.idle.pop()
        except IndexError:
            return None
        slot.holder = holder
        self.loans[slot] = None
        self.counts.loans += 1
        return slot

    async def borrow(self, holder: object) -> Slot[R]:
        """Take an idle resource, or wait for one; see ``ResourcePool.acquire``."""
        stillborn = 0
        while True:
            if self.idle and not self._line and not self.alert:
                slot, idle_for = self.idle.pop(), _monotonic()
                idle_for -= slot.idle_since
                self._lend(slot, holder)
            else:
                slot, idle_for = await self._wait(holder), -1.0
            if self._looks and self._has_ended(slot):
                stillborn += idle_for < 0
                self.drop(slot)
                if stillborn > _MOST_STILLBORN:
                    raise ConnectionError(
                        f"pool {self.rules.name!r}: is_closed() is true of what create() has just made"
                    )
            elif not self._looks or idle_for < self.rules.check_after or await self._passes(slot):
                self.counts.loans += 1
                return slot

    def _lend(self, slot: Slot[R], holder: object) -> None:
        slot.holder = holder
        self.loans[slot] = None

    def _has_ended(self, slot: Slot[R]) -> bool:
        """Whether a resource says that it has ended, or cannot say."""
        if self.rules.is_closed is None:
            return False
        try:
            return self.rules.is_closed(slot.resource)
        except Exception:
            logger.exception("polyloop: pool %r: is_closed raised, and the resource is dropped", self.rules.name)
            return True

    async def _passes(self, slot: Slot[R]) -> bool:
        """Whether it passes the check, if there is one; if not, it is gone."""
        if self.rules.check is None:
            return True
        passed = False
        try:
            async with asyncio.timeout(self.rules.upkeep_timeout):
                passed = await self.rules.check(slot.resource) is not False
        except Exception as exc:
            logger.debug("polyloop: pool %r: a resource failed its check: %r", self.rules.name, exc)
        finally:  # a cancelled check leaves it in a state that nobody knows
            if not passed:
                self.safely(self.drop, slot)
        return passed and slot.holder is not None

    def safely(self, step: "Callable[[Slot[R]], object]", slot: Slot[R]) -> None:
        """Do it now, or, on another loop or in what may be a finaliser, later."""
        if finalising() or not self.port.is_current():
            self.port.post(step, slot)
        else:
            step(slot)

    async def _wait(self, holder: object) -> Slot[R]:
        if self._ending:
            raise RuntimeClosedError(f"pool {self.rules.name!r} lends nothing on {self.port.name!r}, which is ending")
        ticket: Ticket[R] = Ticket(_monotonic(), self.port.loop.create_future(), holder, call_site())
        self._line[ticket] = None
        try:
            self.shared.apply(self, ticket)
        except BaseException:
            self._line.pop(ticket, None)
            raise
        try:
            self.balance()
            outcome = await ticket.future
        except BaseException:
            if finalising() or not self.port.is_current():
                self.port.post(self._give_up, ticket)
            else:
                self._give_up(ticket)
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        self.counts.count_wait(_monotonic() - ticket.at)
        return outcome

    def _give_up(self, ticket: Ticket[R]) -> None:
        """A waiter was cancelled, or closed with its coroutine."""
        if ticket in self._line:
            del self._line[ticket]
            self.shared.leave(self, ticket)
        elif ticket.future.done() and not ticket.future.cancelled():
            outcome = ticket.future.result()
            if isinstance(outcome, Slot) and self._take_back(outcome):
                self._stock(outcome)  # it was served at the same moment

    def _first(self) -> Ticket[R] | None:
        """The first in line. Those before it that were cancelled, and do not know it yet, leave hereby."""
        while self._line:
            ticket = next(iter(self._line))
            if not ticket.future.done():
                return ticket
            del self._line[ticket]
            self.shared.leave(self, ticket)
        return None

    def _serve(self, ticket: Ticket[R], outcome: "Slot[R] | BaseException") -> None:
        del self._line[ticket]
        if isinstance(outcome, Slot):
            self._lend(outcome, ticket.holder)
        ticket.future.set_result(outcome)

    # Getting back

    def lent(self, resource: R) -> Slot[R] | None:
        """The loan of a resource. Any thread: a snapshot."""
        return next((slot for slot in self.loans.copy() if slot.resource is resource and slot.holder is not None), None)

    async def end_loan(self, slot: Slot[R]) -> None:
        """A loan has ended, on whichever loop."""
        if finalising():  # of one that was not reset, nobody knows what was done with it
            self.port.post(self.drop if self.resets else self.give_back, slot)
        elif self.rules.loop_bound and not self.port.is_current():
            self.port.post(self.drop, slot)
            raise slot.refuse(f"a resource of pool {self.rules.name!r}", "borrow, use and return it on one loop")
        elif self.port.mailbox.closed:  # the loop that lent it is gone, and its permits with it
            done = self.rules.close(slot.resource)
            if inspect.isawaitable(done):
                await done
        elif self.resets:
            await self._reset(slot)
        else:
            self.safely(self.give_back, slot)

    def give_back(self, slot: Slot[R]) -> None:
        """A loan has ended."""
        slot.holder = None
        try:  # _take_back() by hand: this is run for each loan
            del self.loans[slot]
        except KeyError:  # the pool has closed it meanwhile
            return
        if slot.guest is not None:
            slot.guest.detach()
            slot.guest = None
        now = slot.idle_since = _monotonic()
        if self._looks and self._has_ended(slot):
            self._discard(slot, "broken")
        elif slot.expires_at is not None and now >= slot.expires_at:
            self._discard(slot, "expired")
        else:  # _stock() by hand
            self.idle.append(slot)
            if self.alert or self._line or self._ending:
                self.balance()
            if self._expires and (self._expiry is None or (slot.expires_at or _NEVER) < self._expiry_at) and self.idle:
                self._arm_expiry()

    async def _reset(self, slot: Slot[R]) -> None:
        """End a loan whose resource has to be reset; cancelled, or in vain, it is dropped."""
        assert self.rules.reset is not None
        slot.holder = None  # nobody can return it once more
        done = False
        try:
            async with asyncio.timeout(self.rules.upkeep_timeout):
                await self.rules.reset(slot.resource)
            done = True
        except Exception as exc:
            logger.debug("polyloop: pool %r: a resource could not be reset: %r", self.rules.name, exc)
        finally:
            self.safely(self.give_back if done else self.drop, slot)

    def drop(self, slot: Slot[R]) -> None:
        """A loan has ended whose resource is not to be used again."""
        if self._take_back(slot):
            self._discard(slot, "broken")

    def _take_back(self, slot: Slot[R]) -> bool:
        """Whether it was on loan."""
        slot.holder = None
        try:
            del self.loans[slot]
        except KeyError:
            return False
        if slot.guest is not None:
            slot.guest.detach()
            slot.guest = None
        return True

    def _stock(self, slot: Slot[R]) -> None:
        """Something is free: for whoever waits here or elsewhere, else for the free list."""
        self.idle.append(slot)
        if self.alert or self._line or self._ending:
            self.balance()
        if self._expires and (self._expiry is None or (slot.expires_at or _NEVER) < self._expiry_at) and self.idle:
            self._arm_expiry()

    # Sharing with the other desks

    def balance_soon(self) -> None:
        """Somebody waits, here or elsewhere. Any thread."""
        self.port.post(self._balances)

    def balance(self) -> None:
        """Do with what lies idle what the ledger says."""
        shared = self.shared
        if self._look_at is not None:
            self._look_at.cancel()
            self._look_at = None
        while self.idle and (self._line or self.alert):
            first = self._first()
            (what, again_at), to = shared.decide(self, first, self.idle[0].since)
            if what == "serve" and first is not None:
                self._serve(first, self.idle.pop())
            elif what == "keep":
                if again_at is not None:
                    delay = max(0.0, again_at - _monotonic())
                    self._look_at = self.port.call_later(delay, self.balance)
                break
            elif to is not None:
                self.counts.moved += 1
                to.port.post(to.receive, self.idle.popleft())
            else:
                self.counts.reclaimed += 1
                self._close_noted(self.idle.popleft())
        if (shared.state != "open" or self._ending) and not self._line:
            self._close_all_idle()

    def receive(self, slot: Slot[R]) -> None:
        """A resource comes from another desk, for somebody here."""
        slot.desk, slot.since = self, _monotonic()
        self._arrived(slot)

    def _arrived(self, slot: Slot[R], took: float | None = None) -> None:
        """A permit that was granted for somebody here has brought a resource, which ``took`` seconds to make."""
        first = self._first()
        self.shared.fulfil(self, first, took)
        if first is None:
            self._stock(slot)
        else:
            self._serve(first, slot)

    # Making

    def create_soon(self) -> None:
        """A permit was granted for somebody who waits here: make a resource with it. Any thread."""
        self.port.post(self._creates)

    def _create_for_first(self) -> None:
        if self._ending or self.shared.state in {"closing", "closed"}:
            self.shared.failed(self, None, granted=True)
            return
        first = self._first()
        self._start(self._create(self.rules.made_at if first is None else first.site, True), self._making)

    async def prepare(self) -> None:
        """Make a resource that lies ready, if that is missing and there is a permit for it that nobody waits for.

        Raises:
            Exception: what ``create`` raised.
        """
        if not self.shared.take(self, self.rules.min_idle):
            return
        ready: asyncio.Future[Exception | None] = self.port.loop.create_future()
        self._start(self._create(self.rules.made_at, False, ready), self._making)
        failure = await asyncio.shield(ready)
        if failure is not None:
            raise failure

    async def _create(
        self, made_at: str, granted: bool, ready: "asyncio.Future[Exception | None] | None" = None
    ) -> None:
        """Make a resource with a permit that was ``granted`` for a waiter, or to lie ready."""
        made_for.set(made_at)
        began = _monotonic()
        try:
            resource = await self.rules.create()
        except BaseException as exc:
            # Else it was closed with its coroutine, and the permit goes with the loop.
            if self.port.is_current() and not isinstance(exc, GeneratorExit):
                self._could_not_create(exc, granted, ready)
            if not isinstance(exc, Exception):
                raise
            return
        self.counts.created += 1
        now = _monotonic()
        slot = Slot(resource, self, made_at, now, self.rules.max_lifetime)
        if granted:
            self._arrived(slot, now - began)
        else:
            self._stock(slot)
            if ready is not None:
                ready.set_result(None)

    def _could_not_create(
        self, exc: BaseException, granted: bool, ready: "asyncio.Future[Exception | None] | None"
    ) -> None:
        self.counts.failed += 1
        first = self._first() if granted else None
        self.shared.failed(self, first, granted=granted)
        if isinstance(exc, Exception):
            error = exc
        else:
            name, where = self.rules.name, self.port.name
            error = RuntimeClosedError(f"the create() of pool {name!r} was cancelled on {where!r}")
        if ready is not None:
            ready.set_result(error)
        elif first is not None:
            self._serve(first, error)
        elif isinstance(exc, Exception):  # else it was cancelled with its loop
            logger.warning("polyloop: pool %r could not make a resource: %r", self.rules.name, exc)
        if ready is None:
            self._retry_later()

    # What is to lie ready

    def keep_ready_soon(self) -> None:
        """Something was closed: see to it that enough lies ready. Any thread."""
        self.port.post(self._keep_ready)

    def _keep_ready(self) -> None:
        """Make what is missing of ``min_idle``, unless that has just failed."""
        if self._ending or self._failed_lately():
            return
        for _ in range(self.rules.min_idle):
            if not self.shared.take(self, self.rules.min_idle):
                return
            self._start(self._create(self.rules.made_at, False), self._making)
            if self._failed_lately():
                return

    def _failed_lately(self) -> bool:
        return self._retry is not None

    def _retry_later(self) -> None:
        if self.rules.min_idle and self._retry is None:
            self._retry = self._later(_RETRY, Desk[R]._ready_again)

    def _ready_again(self) -> None:
        self._retry = None
        self._keep_ready()

    # Closing

    def _discard(self, slot: Slot[R], why: _Why) -> None:
        """Close a resource that is neither idle nor lent; its permit is free when that is done."""
        if why == "broken":
            self.counts.broken += 1
        elif why == "expired":
            self.counts.expired += 1
        self.shared.close(self)
        self._close_noted(slot)

    def _close_noted(self, slot: Slot[R]) -> None:
        done: object = None
        try:
            done = self.rules.close(slot.resource)
        except Exception as exc:
            self._could_not_close(exc)
        finally:
            if done is not None and inspect.isawaitable(done):
                self._start(self._close(slot, done), self._closing)
            else:
                self._closed()

    async def _close(self, slot: Slot[R], done: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self.rules.upkeep_timeout):
                await done
        except Exception as exc:
            self._could_not_close(exc)
        except asyncio.CancelledError:
            if not slot.closed_before:  # it was cancelled with all tasks of its loop, which is ending: begin anew then
                slot.closed_before = True
                self._again.append(slot)
                self.port.call_later(_RETRY, self._close_again)
                return
        except GeneratorExit:  # closed with its coroutine, and the permit goes with the loop
            raise
        self._closed()

    def _close_again(self) -> None:
        slots, self._again = self._again, []
        for slot in slots:
            self._close_noted(slot)

    def _could_not_close(self, exc: Exception) -> None:
        logger.warning("polyloop: pool %r: closing a resource failed, and it is dropped: %r", self.rules.name, exc)

    def _closed(self) -> None:
        self.counts.closed += 1
        self.shared.closed(self)
        if self.rules.min_idle:
            self.keep_ready_soon()

    def _start(self, coro: Coroutine[Any, Any, None], tasks: "set[asyncio.Task[None]]") -> None:
        """Run a task of the pool's with no variables of anybody; its first step at once, and often that is all."""
        task = asyncio.Task(
            coro, loop=self.port.loop, name=self._task_name, context=contextvars.Context(), eager_start=True
        )
        if not task.done():
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def _close_all_idle(self) -> None:
        for _ in range(len(self.idle)):
            self._discard(self.idle.popleft(), "closed")

    def close_idle(self, done: Event) -> None:
        """Close what lies idle now, though it could be lent, and say when that is done."""
        before = set(self._closing)
        self._close_all_idle()
        self._start(_say_when_done(self._closing - before, done), self._making)

    # Age

    def _arm_expiry(self) -> None:
        """Look for what has lain idle for too long, or has grown too old, when the first of them has."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry_at = min(self._expires_at(slot) for slot in self.idle)
        delay = max(0.0, self._expiry_at - _monotonic())
        self._expiry = self._later(delay, Desk[R]._expire)

    def _expires_at(self, slot: Slot[R]) -> float:
        most = self.rules.max_idle_time
        idle_until = _NEVER if most is None else slot.idle_since + most
        return idle_until if slot.expires_at is None else min(idle_until, slot.expires_at)

    def _expire(self) -> None:
        self._expiry = None
        now = _monotonic()
        spare = self.shared.idle() - self.rules.min_idle
        kept: deque[Slot[R]] = deque()
        due: list[Slot[R]] = []
        for slot in self.idle:
            if slot.expires_at is not None and now >= slot.expires_at:
                due.append(slot)
            elif now >= self._expires_at(slot) and spare > 0:
                spare -= 1
                due.append(slot)
            else:
                if now >= self._expires_at(
                    slot
                ):  # one of those that are to lie ready: look again after another such time
                    slot.idle_since = now
                kept.append(slot)
        self.idle = kept
        for slot in due:
            self._discard(slot, "expired")
        if self.idle:
            self._arm_expiry()

    def _later(self, delay: float, step: "Callable[[Desk[R]], object]") -> asyncio.TimerHandle:
        """A timer that does not keep a pool that everybody has forgotten."""
        weak = weakref.ref(self)

        def act() -> None:
            desk = weak()
            if desk is not None:
                step(desk)

        return self.port.call_later(delay, act)

    # The end of the pool, or of the loop

    def shut(self) -> None:
        """The pool is closing: nobody waits any more, and nothing lies idle."""
        for ticket in list(self._line):
            self.shared.leave(self, ticket)
            if ticket.future.done():
                del self._line[ticket]
            else:
                self._serve(ticket, PoolClosedError(f"pool {self.rules.name!r} was closed while this waited"))
        self.balance()

    def force(self) -> None:
        """The time is up: close also what is on loan, and make nothing more."""
        for task in list(self._making):
            task.cancel()
        for slot in list(self.loans):
            if self._take_back(slot):
                self._discard(slot, "closed")

    def leave(self) -> None:
        """The pool is closed: this loop need not tell of its end."""
        for timer in (self._look_at, self._expiry, self._retry):
            if timer is not None:
                timer.cancel()
        if self._end is not None:
            self._end.dismiss()
        self.shared.lost(self)

    async def loop_ends(self) -> None:
        """Close everything here: all tasks have ended, and the loop is about to be closed."""
        self._ending = True
        self.shut()
        self.force()
        self._close_again()
        while tasks := {*self._closing, *self._making}:
            await asyncio.wait(tasks)

    def loop_lost(self) -> None:
        self.shared.lost(self)


async def _say_when_done(tasks: "set[asyncio.Task[None]]", done: Event) -> None:
    try:
        if tasks:
            await asyncio.wait(tasks)
    finally:
        done.set()

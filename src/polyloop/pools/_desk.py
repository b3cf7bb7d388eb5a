"""One loop's part of a pool: its free list, its loans and its line of waiters.

Everything here runs on that loop's thread, except what says otherwise; see ``_shared`` for what crosses loops, and
``_ledger`` for who is next.

A resource is at one place at a time: in ``idle``, in ``loans``, or on its way there or out in a task of ``_tasks``. A
waiter is in ``_line`` until it is served or gives up; it is served by whoever takes it out of there, by the result of
its future. Resources are made and closed by tasks of the desk, not of the waiter: a caller that is cancelled, or whose
time is up, interrupts neither, so a server never sees more connections than there are permits.
"""

import asyncio
import contextvars
import dataclasses
import inspect
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

from polyloop._core import _prims
from polyloop._core._errors import PoolClosedError, RuntimeClosedError
from polyloop._core._port import logger
from polyloop.pools._loop_end import LoopEnd
from polyloop.pools._shared import Shared
from polyloop.pools._stats import Counters
from polyloop.pools._where import Home, call_site, made_for
from polyloop.sync import Event

#: A lifetime is shortened by up to this share at random, so that what was made together is not made anew together.
_JITTER = 0.1

#: Seconds until a resource that is to lie ready is tried to be made again after that has failed.
_RETRY = 1.0

_monotonic = _prims.monotonic  # asked at each return, where a global is read faster than the attribute of a module

type _Why = Literal["broken", "expired", "closed"]


class Slot[R]:
    """A resource and what the pool knows of it."""

    __slots__ = ("desk", "expires_at", "holder", "home", "idle_since", "resource", "since")

    def __init__(self, resource: R, desk: "Desk[R]", made_at: str, now: float, lifetime: float | None) -> None:
        self.resource = resource
        self.desk = desk
        self.home = Home(desk.port, made_at)
        self.since = now  # when it came to this desk
        self.idle_since = now
        self.expires_at = None if lifetime is None else now + lifetime * random.uniform(1 - _JITTER, 1)
        self.holder: object = None  # the loan that has it


class Ticket[R]:
    """A waiter: when it came, where from, and what it waits for."""

    __slots__ = ("at", "future", "site")

    def __init__(self, at: float, future: "asyncio.Future[Slot[R] | BaseException]", site: str) -> None:
        self.at = at
        self.future = future
        self.site = site


class Desk[R]:
    """The part of one pool on the running loop."""

    def __init__(self, shared: Shared[R], here: "Callable[[], Desk[R]]") -> None:
        self.shared = shared
        self.rules = rules = dataclasses.replace(shared.rules)  # a copy: what loops share costs each of them more
        self.resets = rules.reset is not None
        self.alert: deque[None] = deque()  # a token while somebody applies, or the pool is ending; see _shared
        self.end = LoopEnd(self)
        self.port = self.end.port
        self._here = here  # the desk of the running loop
        self._ending = False  # the loop is
        self.idle: deque[Slot[R]] = deque()  # the last to come back is the first to go; its length is read by others
        self.loans: dict[int, Slot[R]] = {}  # by the identity of the resource
        self.counts = Counters()
        self._line: OrderedDict[Ticket[R], None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._look_at: asyncio.TimerHandle | None = None  # when to look again whether to give something up
        self._retry: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expires = rules.max_idle_time is not None or rules.max_lifetime is not None
        self._looks = rules.check is not None or rules.is_closed is not None

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
        self.loans[id(slot.resource)] = slot
        self.counts.loans += 1
        return slot

    async def borrow(self, holder: object) -> Slot[R]:
        """Take an idle resource, or wait for one; see ``ResourcePool.acquire``."""
        rules = self.rules
        while True:
            from_idle = self.idle and not self._line and not self.alert
            slot = self.idle.pop() if from_idle else await self._wait()
            slot.holder = holder
            self.loans[id(slot.resource)] = slot
            if rules.is_closed is not None and rules.is_closed(slot.resource):
                self.drop(slot)
                continue
            to_check = from_idle and rules.check is not None and _monotonic() - slot.idle_since >= rules.check_after
            if not to_check or await self._passes(slot):
                self.counts.loans += 1
                return slot

    async def _passes(self, slot: Slot[R]) -> bool:
        """Whether it passes the check; if not, it is gone."""
        assert self.rules.check is not None
        passed = False
        try:
            async with asyncio.timeout(self.rules.upkeep_timeout):
                passed = await self.rules.check(slot.resource) is not False
        except Exception as exc:
            logger.debug("polyloop: pool %r: a resource failed its check: %r", self.rules.name, exc)
        finally:  # a cancelled check leaves it in a state that nobody knows
            if not passed:
                self.drop(slot)
        return passed and slot.holder is not None

    async def _wait(self) -> Slot[R]:
        if self._ending:
            raise RuntimeClosedError(f"pool {self.rules.name!r} lends nothing on {self.port.name!r}, which is ending")
        ticket: Ticket[R] = Ticket(_monotonic(), self.port.loop.create_future(), call_site())
        self._line[ticket] = None
        try:
            self.shared.apply(self, ticket)
        except BaseException:
            del self._line[ticket]
            raise
        self.balance()
        try:
            outcome = await ticket.future
        except BaseException:
            self._give_up(ticket)
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        self.counts.count_wait(_monotonic() - ticket.at)
        return outcome

    def _give_up(self, ticket: Ticket[R]) -> None:
        """A waiter was cancelled, or closed with its coroutine: that may be on any thread."""
        if not self.port.is_current():
            self.port.post(self._give_up, ticket)
        elif ticket in self._line:
            del self._line[ticket]
            self.shared.leave(self, ticket)
        elif not ticket.future.cancelled() and isinstance(slot := ticket.future.result(), Slot):
            self._stock(slot)  # it was served at the same moment

    def _first(self) -> Ticket[R] | None:
        """The first in line that has not been cancelled."""
        for ticket in self._line:
            if not ticket.future.done():
                return ticket
        return None

    def _serve(self, ticket: Ticket[R], outcome: "Slot[R] | BaseException") -> None:
        del self._line[ticket]
        ticket.future.set_result(outcome)

    # Getting back

    def give_back(self, slot: Slot[R]) -> None:
        """A loan has ended."""
        if not self._take_back(slot):  # the pool has closed it meanwhile
            return
        now = slot.idle_since = _monotonic()
        if self._looks and (is_closed := self.rules.is_closed) is not None and is_closed(slot.resource):
            self._discard(slot, "broken")
        elif slot.expires_at is not None and now >= slot.expires_at:
            self._discard(slot, "expired")
        else:
            self._stock(slot)

    async def reset(self, slot: Slot[R]) -> None:
        """End a loan whose resource has to be reset; cancelled, or in vain, it is dropped."""
        assert self.rules.reset is not None
        done = False
        try:
            async with asyncio.timeout(self.rules.upkeep_timeout):
                await self.rules.reset(slot.resource)
            done = True
        except Exception as exc:
            logger.debug("polyloop: pool %r: a resource could not be reset: %r", self.rules.name, exc)
        finally:
            if done:
                self.give_back(slot)
            else:
                self.drop(slot)

    def desk_for_stray(self, slot: Slot[R]) -> "Desk[R]":
        """A loan of this desk ends on another loop: that one's desk, if resources may change loops. Any loop."""
        if not self.rules.loop_bound:
            desk = self._here()
            desk.adopt(slot)
            return desk
        self.port.post(self.drop, slot)  # nobody knows what was done with it
        raise slot.home.refuse(f"a resource of pool {self.rules.name!r}", "borrow, use and return it on one loop")

    def adopt(self, slot: Slot[R]) -> None:
        """A loan of another desk has ended here; of a resource that belongs to no loop. This loop's thread."""
        if slot.desk.loans.pop(id(slot.resource), None) is None:  # atomic: the pool has closed it meanwhile
            return
        brought = self.shared.bring(slot.desk, self)
        self.loans[id(slot.resource)] = slot
        slot.desk = self
        if not brought:  # the loop that lent it is gone, and its permits with it
            self.drop(slot)

    def drop(self, slot: Slot[R]) -> None:
        """A loan has ended whose resource is not to be used again."""
        if self._take_back(slot):
            self._discard(slot, "broken")

    def _take_back(self, slot: Slot[R]) -> bool:
        """Whether it was on loan."""
        slot.holder = None
        return self.loans.pop(id(slot.resource), None) is not None

    def _stock(self, slot: Slot[R]) -> None:
        """Something is free: for whoever waits here or elsewhere, else for the free list."""
        self.idle.append(slot)
        if self.alert or self._line or self._ending:
            self.balance()
        if self._expiry is None and self._expires and self.idle:
            self._arm_expiry()

    # Sharing with the other desks

    def balance_soon(self) -> None:
        """Somebody waits, here or elsewhere. Any thread."""
        self.port.post(self.balance)

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
                    self._look_at = self.port.loop.call_later(delay, self.balance, context=self.port.context)
                break
            elif to is not None:
                self.counts.moved += 1
                to.port.post(to._receive, self.idle.popleft())
            else:
                self.counts.reclaimed += 1
                self._close_noted(self.idle.popleft())
        if (shared.state != "open" or self._ending) and not self._line:
            while self.idle:
                self._discard(self.idle.popleft(), "closed")

    def _receive(self, slot: Slot[R]) -> None:
        """A resource comes from another desk, for somebody here."""
        slot.desk, slot.since = self, _monotonic()
        slot.home = Home(self.port, slot.home.made_at)
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
        self.port.post(self._create_for_first)

    def _create_for_first(self) -> None:
        first = self._first()
        self._start_create(self.rules.made_at if first is None else first.site, None)

    async def prepare(self) -> None:
        """Make a resource that lies ready, if that is missing and there is a permit for it that nobody waits for.

        Raises:
            Exception: what ``create`` raised.
        """
        if not self.shared.take(self, self.rules.min_idle):
            return
        ready: asyncio.Future[Exception | None] = self.port.loop.create_future()
        self._start_create(self.rules.made_at, ready)
        failure = await asyncio.shield(ready)
        if failure is not None:
            raise failure

    def _start_create(self, made_at: str, ready: "asyncio.Future[Exception | None] | None") -> None:
        context = contextvars.Context()
        context.run(made_for.set, made_at)
        self._start(self._create(made_at, ready), context, "make a resource of pool")

    async def _create(self, made_at: str, ready: "asyncio.Future[Exception | None] | None") -> None:
        """Make a resource: to lie ``ready``, else for somebody who waits."""
        rules = self.rules
        began = _monotonic()
        try:
            resource = await rules.create()
        except BaseException as exc:
            if self.port.is_current():  # else it was closed with its coroutine, and the permit goes with the loop
                self._could_not_create(exc, ready)
            if not isinstance(exc, Exception):
                raise
            return
        self.counts.created += 1
        now = _monotonic()
        slot = Slot(resource, self, made_at, now, rules.max_lifetime)
        if ready is None:
            self._arrived(slot, now - began)
        else:
            self._stock(slot)
            ready.set_result(None)

    def _could_not_create(self, exc: BaseException, ready: "asyncio.Future[Exception | None] | None") -> None:
        self.counts.failed += 1
        first = self._first() if ready is None else None
        self.shared.failed(self, first, granted=ready is None)
        if isinstance(exc, Exception):
            error = exc
        else:
            error = RuntimeClosedError(
                f"pool {self.rules.name!r} makes nothing on {self.port.name!r}: it was cancelled"
            )
        if ready is not None:
            ready.set_result(error)
        elif first is not None:
            self._serve(first, error)
        elif isinstance(exc, Exception):  # else it was cancelled with its loop
            logger.warning("polyloop: pool %r could not make a resource: %r", self.rules.name, exc)
        self._ready_later()

    def _keep_ready(self) -> None:
        """Make what is missing of ``min_idle``."""
        least = self.rules.min_idle
        if least and not self._ending and self.shared.take(self, least):
            self._start_create(self.rules.made_at, self.port.loop.create_future())

    def _ready_later(self) -> None:
        if self.rules.min_idle and self._retry is None:
            self._retry = self.port.loop.call_later(_RETRY, self._ready_again, context=self.port.context)

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
        try:
            done = self.rules.close(slot.resource)
        except Exception as exc:
            self._could_not_close(exc)
        else:
            if inspect.isawaitable(done):
                self._start(self._close(done), contextvars.Context(), "close a resource of pool")
                return
        self._closed()

    async def _close(self, done: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self.rules.upkeep_timeout):
                await done
        except Exception as exc:
            self._could_not_close(exc)
        finally:
            if self.port.is_current():  # else it was closed with its coroutine, and the permit goes with the loop
                self._closed()

    def _could_not_close(self, exc: Exception) -> None:
        logger.warning("polyloop: pool %r: closing a resource failed, and it is dropped: %r", self.rules.name, exc)

    def _closed(self) -> None:
        self.counts.closed += 1
        self.shared.closed(self)
        self._keep_ready()

    def _start(self, coro: Coroutine[Any, Any, None], context: contextvars.Context, what: str) -> None:
        """Run a task of the pool's; its first step at once, and often that is all."""
        task = asyncio.Task(
            coro, loop=self.port.loop, name=f"{what} {self.rules.name!r}", context=context, eager_start=True
        )
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    # Age

    def _arm_expiry(self) -> None:
        """Look for what has lain idle for too long, or has grown too old, when the first of them has."""
        due = min(self._expires_at(slot) for slot in self.idle)
        delay = max(0.0, due - _monotonic())
        self._expiry = self.port.loop.call_later(delay, self._expire, context=self.port.context)

    def _expires_at(self, slot: Slot[R]) -> float:
        most = self.rules.max_idle_time
        idle_until = float("inf") if most is None else slot.idle_since + most
        return idle_until if slot.expires_at is None else min(idle_until, slot.expires_at)

    def _expire(self) -> None:
        self._expiry = None
        now = _monotonic()
        spare = self.shared.idle() - self.rules.min_idle
        for slot in list(self.idle):
            too_old = slot.expires_at is not None and now >= slot.expires_at
            if not too_old and now >= self._expires_at(slot):
                if spare <= 0:
                    slot.idle_since = now  # one of those that are to lie ready: look again after another such time
                    continue
                spare -= 1
                too_old = True
            if too_old:
                self.idle.remove(slot)
                self._discard(slot, "expired")
        if self.idle:
            self._arm_expiry()

    def close_idle(self, done: Event) -> None:
        """Close what lies idle now, though it could be lent, and say when that is done."""
        before = set(self._tasks)
        while self.idle:
            self._discard(self.idle.popleft(), "closed")
        self._start(_say_when_done(self._tasks - before, done), contextvars.Context(), "close what is idle of pool")

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
        """The time is up: close also what is on loan."""
        for slot in list(self.loans.values()):
            if self._take_back(slot):
                self._discard(slot, "closed")

    def leave(self) -> None:
        """The pool is closed: this loop need not tell of its end."""
        for timer in (self._look_at, self._expiry, self._retry):
            if timer is not None:
                timer.cancel()
        self.end.dismiss()
        self.shared.lost(self)

    async def loop_ends(self) -> None:
        """Close everything here: all tasks have ended, and the loop is about to be closed."""
        self._ending = True
        self.shut()
        self.force()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def loop_lost(self) -> None:
        self.shared.lost(self)


async def _say_when_done(tasks: "set[asyncio.Task[None]]", done: Event) -> None:
    if tasks:
        await asyncio.wait(tasks)
    done.set()

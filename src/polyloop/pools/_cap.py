"""One cap on the connections of clients that keep them in pools of their own, one set of such pools for each loop.

A client here knows how to connect, and which of its connections on a loop lie idle. It takes a permit before it
connects, and gives it back when the connection is closed. What the cap adds is the word between loops: when somebody
waits for a permit, the others are told, and close what lies idle.

The rule of fairness is that of ``ResourcePool`` (see ``_ledger``), with a desk for each loop and *key*: the server that
a connection goes to. A permit that comes free goes to whoever has waited longest. A connection that comes free, or lies
idle, is closed for the sake of one who cannot use it, for another loop or another server; but a waiter of its own loop
and server takes it as it is if that one came at most ``patience`` seconds later, and a connection younger than
``patience`` is not closed for one who has waited for less. So no waiter is overtaken by one that came more than
``patience`` later (or ten times what connecting takes, see ``_ledger``), and loops that are all busy do not spend their
time on connecting.

Why nobody is overlooked. A waiter applies under the lock, which also says that each other seat is to look, and then
posts that to them. A seat looks on its own thread: a connection that lay idle by then is seen by this look, and one
that comes to be idle later is offered by its client.

Why nobody is locked out. A finaliser may run amid any of this: the garbage collector closes a coroutine that waits for
a connection, or has one. What it does then is to post, or to leave a word in ``_words``.

Why nothing is lost with a loop. A seat lives until its port says that nothing will run there any more; its permits are
free then. That word, and a permit that is given back, may come from a finaliser, which may interrupt a thread that has
the lock: so they go through ``_words``, which is emptied by whoever has the lock next.
"""

import asyncio
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

from polyloop._core import _prims
from polyloop._core._errors import PoolClosedError
from polyloop._core._port import current_port
from polyloop.pools._desk import finalising
from polyloop.pools._ledger import Ledger, Verdict


class Pooled(Protocol):
    """A connection as the cap sees it. Loop thread.

    Attributes:
        key: What it can be used for: where it goes to, and how.
        since: When it was made, on the monotonic clock.
    """

    since: float

    @property
    def key(self) -> Hashable:
        """See above."""

    def lend(self) -> None:
        """It was given to somebody who waits, and nobody else may take it until that one comes."""

    def unlend(self) -> None:
        """That one did not come, or is about to take it as anybody would."""

    def give_up(self) -> None:
        """Close it for somebody who waits; ``Seat.closed`` with ``ordered`` follows."""


class _Ticket:
    """A waiter: when it came, and what tells it of its connection, or with ``None`` of its permit.

    ``number`` is what the ledger knows it by. Their order is that of the line, as the ledger expects.
    """

    __slots__ = ("at", "future", "number")

    def __init__(self, at: float, future: "asyncio.Future[Any]", number: int) -> None:
        self.at = at
        self.future = future
        self.number = number


class _Desk(NamedTuple):
    seat: "Seat[Any]"
    key: Hashable


class ConnectionCap:
    """At most ``limit`` connections in the process. ``_lock`` guards the ledger and what seats say is under it.

    Args:
        limit: The most connections, at least 1.
        name: Shown in errors.
        patience: Seconds, see the module's theory.
    """

    def __init__(self, limit: int, name: str, *, patience: float = 0.1) -> None:
        given: Any = limit
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise ValueError(f"max_connections must be a whole number, at least 1; got {limit!r}")
        self.limit = limit
        self.name = name
        self._lock = _prims.Lock()
        self._ledger: Ledger[_Desk, int] = Ledger(limit, patience)
        self._seats: set[Seat[Any]] = set()
        self._words: deque[tuple[_Desk, bool] | Seat[Any]] = deque()  # appended by any thread, finalisers included

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.size}/{self.limit} open, {self.waiting} waiting>"

    @property
    def size(self) -> int:
        """Connections that are open, being made or closed. Any thread."""
        return self.limit - self._ledger.free

    @property
    def waiting(self) -> int:
        """How many wait for one. Any thread."""
        return self._ledger.waiting

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a permit; as of a moment ago, unless that was applied for on this thread."""
        return self._ledger.crowded

    # What a seat says, on its loop's thread. Each is one step under the lock, and hands out what came free by it.

    def enter(self, seat: "Seat[Any]") -> None:
        """A new seat."""
        with self._lock:
            self._seats.add(seat)
        self._tell([])

    def take(self, desk: _Desk) -> bool:
        """A permit, if there is one that nobody waits for."""
        with self._lock:
            taken = self._ledger.take(desk)
            if taken:
                desk.seat._count(desk.key, 1)
        self._tell([])
        return taken

    def apply(self, desk: _Desk, ticket: _Ticket) -> None:
        """A waiter comes to a seat."""
        with self._lock:
            self._ledger.apply(desk, ticket.number, ticket.at)
            desk.seat._count(desk.key, 1)
            granted = self._grants_locked()
            # A seat without a permit has nothing that lies idle.
            lookers = [seat for seat in self._seats if seat._keys and not seat._told] if self._ledger.crowded else []
            for seat in lookers:
                seat._told = True
        self._tell(granted)
        for seat in lookers:
            seat.port.post(seat.look)
            if seat.port.silent and seat.port.loop.is_closed():
                self.lost(seat)

    def leave(self, desk: _Desk, ticket: _Ticket) -> None:
        """A waiter gives up."""
        with self._lock:
            self._ledger.leave(desk, ticket.number)
            desk.seat._count(desk.key, -1)
            granted = self._grants_locked()
        self._tell(granted)

    def fulfil(self, desk: _Desk, ticket: _Ticket | None) -> None:
        """A permit that was granted to a desk has come there, for a waiter if there still is one."""
        with self._lock:
            self._ledger.fulfil(desk, None if ticket is None else ticket.number)
            if ticket is not None:
                desk.seat._count(desk.key, -1)
        self._tell([])

    def made(self, seconds: float) -> None:
        """Connecting took so long. Where it is slow, loops are more patient: it is not to take all their time."""
        with self._lock:
            self._ledger.made(seconds)
        self._tell([])

    def heard(self, seat: "Seat[Any]") -> bool:
        """A seat begins to look; whether there is anything to look for."""
        with self._lock:
            seat._told = False
            crowded = self._ledger.crowded
        self._tell([])
        return crowded

    def decide(self, desk: _Desk, first: _Ticket | None, since: float) -> Verdict:
        """What a seat does with a connection that lies idle; that is noted, too.

        Args:
            first: Its first waiter for such a one; it is served, if the verdict says so.
        """
        with self._lock:
            ledger = self._ledger
            verdict = ledger.verdict(desk, None if first is None else first.at, since, _prims.monotonic())
            if verdict.what == "serve" and first is not None:
                ledger.leave(desk, first.number)
                desk.seat._count(desk.key, -1)
            elif verdict.what == "give":
                ledger.close(desk)
            granted = self._grants_locked()
        self._tell(granted)
        return verdict

    def wanted(self, desk: _Desk, since: float) -> bool:
        """Whether a connection would be closed for somebody else, if it lay idle."""
        with self._lock:
            verdict = self._ledger.verdict(desk, None, since, _prims.monotonic())
        self._tell([])
        return verdict.what == "give"

    # What anybody may say, finalisers included

    def freed(self, desk: _Desk, *, ordered: bool) -> None:
        """A connection is closed, or was not made."""
        self._words.append((desk, ordered))
        self._pump()

    def lost(self, seat: "Seat[Any]") -> None:
        """A seat's loop is gone, or its client has nothing there any more."""
        self._words.append(seat)
        self._pump()

    def _pump(self) -> None:
        # Whoever has the lock looks at _words after releasing it: in every order one of the two finds the word.
        while self._words and self._lock.acquire(blocking=False):
            try:
                if self._words:  # by another pump, meanwhile
                    self._hear_locked(self._words.popleft())
                granted = self._grants_locked()
            finally:
                self._lock.release()
            self._post(granted)

    def _hear_locked(self, word: "tuple[_Desk, bool] | Seat[Any]") -> None:
        if isinstance(word, Seat):
            self._seats.discard(word)
            for desk in self._ledger.desks():
                if desk.seat is word:
                    self._ledger.lose(desk)
            word._keys = {}
        else:
            desk, ordered = word
            self._ledger.freed(desk, closing=ordered)
            desk.seat._count(desk.key, -1)

    def _grants_locked(self) -> list[_Desk]:
        granted = self._ledger.grants(_prims.monotonic())
        for desk in granted:
            desk.seat._count(desk.key, 1)
        return granted

    def _tell(self, granted: list[_Desk]) -> None:
        self._post(granted)
        if self._words:
            self._pump()

    def _post(self, granted: list[_Desk]) -> None:
        for desk in granted:
            desk.seat.port.post(desk.seat._granted, desk.key)


class Seat[C: Pooled]:
    """The part of a cap that one client has on the running loop.

    Everything here is for that loop's thread, but for ``closed``.

    Args:
        idle: Gives the connections that lie idle here and were not lent, in the order in which they are to be closed.
    """

    def __init__(self, cap: ConnectionCap, idle: Callable[[], Iterable[C]]) -> None:
        self.cap = cap
        self.port = current_port()
        self._idle = idle
        self._lines: dict[Hashable, OrderedDict[_Ticket, None]] = {}  # no empty ones
        self._timer: asyncio.TimerHandle | None = None
        self._left = False
        self._number = 0
        self._told = False  # whether a look has been posted and not begun; under the cap's lock
        self._keys: dict[Hashable, int] = {}  # permits and waiters of each desk that has any; under the cap's lock
        self._when_lost = partial(_lost, weakref.ref(self))
        cap.enter(self)
        self.port.when_ended(self._when_lost)

    def _count(self, key: Hashable, step: int) -> None:
        """One more or less permit or waiter. Under the cap's lock."""
        count = self._keys.get(key, 0) + step
        if count > 0:
            self._keys[key] = count
        else:
            self._keys.pop(key, None)

    def waits(self, key: Hashable) -> bool:
        """Whether somebody waits here for such a connection."""
        return key in self._lines

    async def take(self, key: Hashable, at: float, *, again: bool = False) -> C | None:
        """Wait for a permit to make a connection, or for one that is there.

        Args:
            at: When the caller came.
            again: Whether it has waited before, and goes to the head of its line.
        Returns:
            ``None``: it has a permit. Else a connection of this loop, lent: ``unlend`` and take it, at once.
        Raises:
            PoolClosedError: the client was closed.
        Cancellation: nothing is taken.
        """
        desk = _Desk(self, key)
        self._refuse_if_left()
        if self.cap.take(desk):
            return None
        self._number += 1
        ticket = _Ticket(at, self.port.loop.create_future(), self._number)
        line = self._lines.setdefault(key, OrderedDict())
        line[ticket] = None
        if again:
            _put_first(line, ticket)
        self.cap.apply(desk, next(reversed(line)))
        try:
            outcome: C | BaseException | None = await ticket.future
        except BaseException:
            if finalising() or not self.port.is_current():
                self.port.post(self._give_up, desk, ticket)
            else:
                self._give_up(desk, ticket)
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def closed(self, key: Hashable, *, ordered: bool = False) -> None:
        """A connection is closed, or was not made: its permit is free. Any thread, finalisers included.

        Args:
            ordered: Whether it was closed by ``give_up``.
        """
        self.cap.freed(_Desk(self, key), ordered=ordered)

    def look(self) -> None:
        """Do with what lies idle what the cap says. When one came to lie idle, and somebody waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._left or not self.cap.heard(self):
            return
        again_at: list[float] = []
        for connection in list(self._idle()):
            first = self._first(connection.key)
            verdict = self.cap.decide(_Desk(self, connection.key), first, connection.since)
            if verdict.what == "serve" and first is not None:
                connection.lend()
                self._serve(connection.key, first, connection)
            elif verdict.what == "give":
                connection.give_up()
            elif verdict.again_at is not None:
                again_at.append(verdict.again_at)
        if again_at:
            delay = max(0.0, min(again_at) - _prims.monotonic())
            self._timer = self.port.call_later(delay, self.look)

    def share(self, connection: C) -> None:
        """Have all take a connection who wait for such a one here: it serves several at a time."""
        key = connection.key
        for ticket in list(self._lines.get(key, ())):
            self.cap.leave(_Desk(self, key), ticket)
            self._serve(key, ticket, connection)

    def wanted(self, connection: C) -> bool:
        """Whether others have waited for so long that a connection that serves several is to serve no more of them."""
        return self.cap.crowded and self.cap.wanted(_Desk(self, connection.key), connection.since)

    def shut(self) -> None:
        """The client is being closed here: nobody waits any more."""
        self._left = True
        if self._timer is not None:
            self._timer.cancel()
        for key, line in list(self._lines.items()):
            for ticket in list(line):
                self.cap.leave(_Desk(self, key), ticket)
                error = PoolClosedError(f"{self.cap.name} was closed while this waited for a connection")
                self._serve(key, ticket, error)

    def leave(self) -> None:
        """The client is closed here: its permits are free."""
        self.shut()
        self.port.forget(self._when_lost)
        self.cap.lost(self)

    def _refuse_if_left(self) -> None:
        if self._left:
            raise PoolClosedError(f"{self.cap.name} is closed on {self.port.name!r}; use it before that")

    def _first(self, key: Hashable) -> _Ticket | None:
        """The first in line. Those before it that were cancelled, and do not know it yet, leave hereby."""
        while key in self._lines:
            ticket = next(iter(self._lines[key]))
            if not ticket.future.done():
                return ticket
            self._drop(key, ticket)
            self.cap.leave(_Desk(self, key), ticket)
        return None

    def _granted(self, key: Hashable) -> None:
        """There is a permit for somebody who waits here."""
        desk = _Desk(self, key)
        first = self._first(key)
        self.cap.fulfil(desk, first)
        if first is None:
            self.closed(key)
        else:
            self._serve(key, first, None)

    def _serve(self, key: Hashable, ticket: _Ticket, outcome: "C | BaseException | None") -> None:
        self._drop(key, ticket)
        if not ticket.future.done():
            ticket.future.set_result(outcome)

    def _drop(self, key: Hashable, ticket: _Ticket) -> None:
        line = self._lines[key]
        del line[ticket]
        if not line:
            del self._lines[key]

    def _give_up(self, desk: _Desk, ticket: _Ticket) -> None:
        """A waiter was cancelled, or closed with its coroutine."""
        if ticket in self._lines.get(desk.key, ()):
            self._drop(desk.key, ticket)
            self.cap.leave(desk, ticket)
        elif ticket.future.done() and not ticket.future.cancelled():  # it was served at the same moment
            outcome = ticket.future.result()
            if outcome is None:
                self.closed(desk.key)
            elif not isinstance(outcome, BaseException):
                outcome.unlend()
                self.look()


def _put_first(line: OrderedDict[_Ticket, None], ticket: _Ticket) -> None:
    """Move a ticket from the end of the line to its head: each gets the number of the one before it."""
    line.move_to_end(ticket, last=False)
    numbers = sorted(each.number for each in line)
    for each, number in zip(line, numbers, strict=True):
        each.number = number


def _lost(seat: "weakref.ref[Seat[Any]]") -> None:
    found = seat()
    if found is not None:
        found.cap.lost(found)

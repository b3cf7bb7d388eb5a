"""What the desks of one pool share: the ledger under its lock, and the word to other desks that follows from a change.

Theory. What is hot belongs to one loop: its *desk* has its own free list, its own loans and its own line of waiters,
and only that loop's thread touches them. Shared is the ledger, which says how many permits each desk has and which
desks need more; it is asked only when a desk has nothing idle, or somebody waits. The latter is said at each desk, in
its ``alert``: a deque that holds a token while there are applications, or the pool is ending. One for all would be
shared by what is hot; and the length of a deque is a sequentially consistent load.

Why nobody is overlooked. A desk that gets a resource back puts it into its free list and *then* looks at its ``alert``.
A desk whose waiter applies fills all of them and *then* looks at the lengths of the free lists. In every order one of
the two sees the other: the owner gives a resource up by itself, or is told that somebody waits and looks again.

Why nobody is locked out. A finaliser may run amid any of this: the garbage collector closes a coroutine that has a loan
or waits for one. All that it does then is to post; see ``finalising`` in ``_desk``.

Why nothing is lost with a loop. A desk lives until its port says that nothing will run there any more; what it held is
written off then, and everything that was posted to it concerns nobody. That word may come from a finaliser, which may
interrupt a thread that has the lock; so it goes through ``_dead``, which is emptied by whoever has the lock next.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polyloop._core import _prims
from polyloop._core._errors import PoolBusyError, PoolClosedError, RuntimeClosedError
from polyloop._core._port import Port, logger
from polyloop.pools._ledger import Ledger, Verdict
from polyloop.pools._stats import Counters
from polyloop.sync import Event

if TYPE_CHECKING:
    from polyloop.pools._desk import Desk, Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules[R]:
    """What a pool was told when it was made; see ``ResourcePool``."""

    create: Callable[[], Awaitable[R]]
    close: Callable[[R], object]
    check: Callable[[R], Awaitable[object]] | None
    reset: Callable[[R], Awaitable[object]] | None
    is_closed: Callable[[R], bool] | None
    max_size: int
    min_idle: int
    max_idle_time: float | None
    max_lifetime: float | None
    max_waiting: int | None
    check_after: float
    patience: float
    upkeep_timeout: float
    loop_bound: bool
    name: str
    made_at: str


type State = Literal["open", "draining", "closing", "closed"]
_STATES: tuple[State, ...] = ("open", "draining", "closing", "closed")


class Shared[R]:
    """The ledger of a pool and its desks. ``_lock`` guards both; no code of users runs under it."""

    __slots__ = ("_alert", "_dead", "_ledger", "_lock", "_past", "desks", "empty", "row", "rules", "state")

    def __init__(self, rules: Rules[R]) -> None:
        self.rules = rules
        # "draining": who waits is served, nobody else; "closing": nobody is. Goes forward only; written under the lock.
        self.state: State = "open"
        self._alert = False  # whether there is a token at each desk; under the lock
        self.desks: dict[Port, Desk[R]] = {}  # entered and removed under the lock; read by anybody
        self.row: tuple[Desk[R], ...] = ()  # the same, for those who look at each
        self.empty = Event()  # set when nothing is left of a pool that is ending
        self._past = Counters()  # of desks that are gone; under the lock
        self._lock = _prims.Lock()
        self._ledger: Ledger[Desk[R], Ticket[R]] = Ledger(rules.max_size, rules.patience if rules.loop_bound else None)
        self._dead: deque[Desk[R]] = deque()  # appended by any thread, also in finalisers; popped under the lock

    @property
    def size(self) -> int:
        """Resources that there are, are being made or closed. Any thread."""
        return self._ledger.permits - self._ledger.free

    @property
    def waiting(self) -> int:
        """How many wait. Any thread."""
        return self._ledger.waiting

    def idle(self) -> int:
        """How many lie idle. Any thread."""
        return sum(len(desk.idle) for desk in self.row)

    def counts(self) -> Counters:
        """The sums of all loops. Any thread."""
        total = Counters()
        with self._lock:
            for each in (self._past, *(desk.counts for desk in self.row)):
                total.add(each)
        self._bury()
        return total

    # ``with self as ledger`` is one step under the lock. Afterwards what came free by it is handed out, and dead desks
    # are buried. Not a generator's context manager, which costs more than the step; and ``decide``, ``fulfil`` and
    # ``closed``, the path of a hand-over, spell it out.

    def __enter__(self) -> Ledger["Desk[R]", "Ticket[R]"]:
        self._lock.acquire()
        return self._ledger

    def __exit__(self, *exc_info: object) -> None:
        granted: list[Desk[R]] | tuple[()] = ()
        try:
            granted = self._settle_locked()
        finally:
            self._lock.release()
        if granted or self._dead or self.state != "open":
            self._tell(granted)

    def _settle_locked(self) -> "list[Desk[R]] | tuple[()]":
        ledger = self._ledger
        granted: list[Desk[R]] | tuple[()] = ()
        if ledger.free and ledger.uncovered and self.state in {"open", "draining"}:
            granted = ledger.grants(_prims.monotonic())
        if (ledger.uncovered > 0 or self.state != "open") is not self._alert:
            self._alert = not self._alert
            for desk in self.row:
                if self._alert:
                    desk.alert.append(None)
                else:
                    desk.alert.clear()
        return granted

    def _tell(self, granted: "list[Desk[R]] | tuple[()]") -> None:
        for desk in granted:
            desk.create_soon()
        if self.state != "open" and not self.size:
            self.empty.set()
        if self._dead:
            self._bury()

    # What a desk says, on its loop's thread

    def apply(self, desk: "Desk[R]", ticket: "Ticket[R]") -> None:
        """A waiter comes to a desk.

        Raises:
            PoolClosedError: the pool is ending. Told here, under the lock: who applied before is served or told.
            PoolBusyError: too many wait already.
            RuntimeClosedError: the loop was given up.
        """
        most, busy, waiting = self.rules.max_waiting, False, 0
        with self as ledger:
            state = self.state
            lost = desk.lost
            if most is not None:
                waiting = ledger.uncovered
                busy = waiting >= most and not desk.idle and ledger.would_wait(desk)
            if state == "open" and not busy and not lost:
                ledger.apply(desk, ticket, ticket.at)
        if state != "open":
            raise PoolClosedError(f"pool {self.rules.name!r} is {state}, and lends nothing more; acquire before that")
        if lost:
            raise RuntimeClosedError(
                f"pool {self.rules.name!r} lends nothing on {desk.port.name!r}, which was given up"
            )
        if busy:
            raise PoolBusyError(
                f"{waiting} callers wait for pool {self.rules.name!r} already, max_waiting={most!r};"
                f" try again later, or raise max_size={self.rules.max_size!r}"
            )
        if desk.alert:
            # After the alerts were filled: see the module's theory. To each that has something, for one that is told
            # may have lent it by then, or be busy with something else.
            for other in self.row:
                if other.idle and other is not desk:
                    other.balance_soon()
                elif other.silent and other.port.loop.is_closed():
                    self.lost(other)

    def leave(self, desk: "Desk[R]", ticket: "Ticket[R]") -> None:
        """A waiter gives up."""
        with self as ledger:
            ledger.leave(desk, ticket)

    def decide(self, desk: "Desk[R]", first: "Ticket[R] | None", since: float) -> "tuple[Verdict, Desk[R] | None]":
        """What a desk does with a resource that it has free; that is noted, too.

        Args:
            first: Its first waiter; it is served, if the verdict says so.
        Returns:
            The verdict, and whom to give it to if it moves as it is; else ``close`` was noted.
        """
        to: Desk[R] | None = None
        now = _prims.monotonic()
        ledger = self._ledger
        self._lock.acquire()
        try:
            verdict = ledger.verdict(desk, None if first is None else first.at, since, now)
            if verdict.what == "serve" and first is not None:
                ledger.leave(desk, first)
            elif verdict.what == "give":
                if not desk.rules.loop_bound:
                    to = ledger.move(desk, now)
                if to is None:
                    ledger.close(desk)
            granted = self._settle_locked()
        finally:
            self._lock.release()
        if granted or self._dead or self.state != "open":
            self._tell(granted)
        return verdict, to

    def fulfil(self, desk: "Desk[R]", first: "Ticket[R] | None", took: float | None = None) -> None:
        """What was made for a waiter, in that time, or was moved, is here; it goes to the first, if one still waits."""
        ledger = self._ledger
        self._lock.acquire()
        try:
            if took is not None:
                ledger.made(took)
            ledger.fulfil(desk, first)
            granted = self._settle_locked()
        finally:
            self._lock.release()
        if granted or self._dead or self.state != "open":
            self._tell(granted)

    def failed(self, desk: "Desk[R]", first: "Ticket[R] | None", *, granted: bool) -> None:
        """A resource could not be made, with a permit that was granted or one for later; the first is told why."""
        with self as ledger:
            if granted:
                ledger.fulfil(desk, first)
            ledger.freed(desk, closing=False)

    def take(self, desk: "Desk[R]", least: int) -> bool:
        """A permit to make a resource that is to lie ready, if fewer than ``least`` do."""
        lent = sum(len(other.loans) for other in self.row)
        with self as ledger:
            wanted = self.state == "open" and not desk.lost and self.size - lent < least
            return wanted and ledger.take(desk)

    def close(self, desk: "Desk[R]") -> None:
        """A resource is about to be closed; ``closed`` follows."""
        with self as ledger:
            ledger.close(desk)

    def closed(self, desk: "Desk[R]") -> None:
        """It is closed."""
        ledger = self._ledger
        self._lock.acquire()
        try:
            ledger.freed(desk, closing=True)
            granted = self._settle_locked()
        finally:
            self._lock.release()
        if granted or self._dead or self.state != "open":
            self._tell(granted)

    # Any thread

    def end(self, state: State) -> None:
        """The pool is ending; states go forward only."""
        with self:
            if _STATES.index(state) > _STATES.index(self.state):
                self.state = state

    def enter(self, desk: "Desk[R]") -> None:
        """A new desk."""
        with self:
            self.desks[desk.port] = desk
            self.row = tuple(self.desks.values())
            if self._alert:
                desk.alert.append(None)

    def holders(self) -> str:
        """The names of the loops that hold permits."""
        with self as ledger:
            return ", ".join(desk.port.name for desk in self.row if ledger.held(desk))

    def lost(self, desk: "Desk[R]") -> None:
        """Nothing comes of a desk any more. Any thread, finalisers included."""
        self._dead.append(desk)
        self._bury()

    def _bury(self) -> None:
        # Whoever had the lock looks at _dead after releasing it: in every order one of the two finds the desk.
        while self._dead and self._lock.acquire(blocking=False):
            desk, held = None, 0
            try:
                desk = self._dead.popleft() if self._dead else None
                if desk is not None and self.desks.get(desk.port) is desk:
                    del self.desks[desk.port]
                    self.row = tuple(self.desks.values())
                    desk.lost = True
                    held = self._ledger.lose(desk)
                    desk.counts.lost += held
                    self._past.add(desk.counts)
                granted = self._settle_locked()
            finally:
                self._lock.release()
            if held and desk is not None:
                logger.warning("polyloop: %r ended with %d resources of pool %r", desk.port, held, self.rules.name)
            self._tell(granted)
            if self.rules.min_idle:
                for other in self.row:
                    other.keep_ready_soon()

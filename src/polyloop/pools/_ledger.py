"""Who may have how many resources, and who is next: the policy of a pool. Pure: no locks, threads, clocks or resources.

Each loop that uses a pool has a *desk* there. A desk holds *permits*, one for each resource that it has, makes or
closes; all desks together never hold more than there are. A waiter that finds nothing at its own desk *applies* for a
permit, so that its desk can make a resource. It is *covered* when a permit was granted for it, and then waits for that
resource or for one that comes back to its desk earlier, whichever is first.

The rule of fairness: what comes free goes to whoever has waited longest, wherever that is, except that a desk may serve
its own waiter first if that one came at most ``patience`` seconds later. A resource that changes loops has to be closed
and made anew, so strict order would spend most of the time on that; this way loops that are equally busy serve their
own. Three more rules keep it so. A desk that has nothing at all comes first, within the patience, if the giver keeps
something: else each loop would wait in turn until its patience is over. For the sake of the order, one resource at a
time is on its way to a desk: that takes a while, and what was given in the meantime would soon be taken back. (One that
takes longer than the patience does not count: it may never come. What lies idle is not bound by this rule.) And the
patience is at least ten times what making a resource has taken lately, so that no more than a tenth of anybody's time
goes into it: where connecting is slow, waits are long, and those would make more of them change loops. (Measured on 4
busy loops with 6 connections, 4,500 loans: 2,700 connections were made without the first two of these rules, 740 with
the second, 31 with both.)
"""

from collections import OrderedDict
from collections.abc import Container, Hashable
from itertools import islice
from typing import Literal, NamedTuple

#: The patience is at least so many times the cost of making a resource, of which the last has this weight, but is not
#: made longer than so many seconds by that. Guesses.
_COSTS, _WEIGHT, _MOST = 10, 0.125, 2.0

#: So many accounts are kept at most though there is nothing in them.
_MANY = 64


class Verdict(NamedTuple):
    """What a desk does with a resource that is free.

    Attributes:
        what: ``"serve"`` its own first waiter, ``"give"`` the permit up for another desk, or ``"keep"`` it.
        again_at: When to ask again, if it is kept although another desk waits.
    """

    what: Literal["serve", "give", "keep"]
    again_at: float | None = None


_SERVE, _GIVE, _KEEP = Verdict("serve"), Verdict("give"), Verdict("keep")


class _Account[T: Hashable]:
    """What one desk has, and who waits there.

    Attributes:
        held: Its permits.
        closing: How many of those are about to be free.
        line: Who waits, in the order they applied, and when each came.
        granted: How many permits were granted that have brought nothing yet. They cover the first in line.
        granted_at: When the last of them was.
    """

    __slots__ = ("closing", "granted", "granted_at", "held", "line")

    def __init__(self) -> None:
        self.held = 0
        self.closing = 0
        self.line: OrderedDict[T, float] = OrderedDict()
        self.granted = 0
        self.granted_at = 0.0


class Ledger[D: Hashable, T: Hashable]:
    """The permits of one pool, and the applications for them. Not safe for threads.

    Each desk has a line of waiters; as many of its first as it has grants are covered, and the others apply. So a desk
    serves its waiters in the order in which they applied, but for those that are about to leave.

    What a desk's own thread makes (tickets, times) is let go there as well, and accounts are kept: objects that one
    thread makes and another drops cost ten times as much as a step here.

    Args:
        permits: How many there are.
        patience: Seconds, see the module's theory; ``None`` keeps strict order, for what changes desks at once.
    """

    __slots__ = (
        "_accounts",
        "_applying",
        "_coming",
        "_cost",
        "_least_patience",
        "free",
        "patience",
        "permits",
        "uncovered",
        "waiting",
    )

    def __init__(self, permits: int, patience: float | None) -> None:
        self.permits = permits
        self.patience = patience  # as it is at the moment: see ``made``
        self._least_patience = patience
        self._cost = 0.0  # what making a resource has taken lately
        self.free = permits
        self.waiting = 0  # tickets that applied and have not left, covered or not
        self.uncovered = 0  # those of them for whom nothing is on its way
        self._coming = 0  # permits that are about to be free
        self._accounts: dict[D, _Account[T]] = {}
        self._applying: dict[D, _Account[T]] = {}  # those of them where somebody is not covered

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a permit."""
        return self.uncovered > 0

    def would_wait(self, desk: D) -> bool:
        """Whether a waiter who comes to a desk now is not covered at once."""
        account = self._accounts.get(desk)
        return not self.free and (account is None or len(account.line) >= account.granted)

    def held(self, desk: D) -> int:
        """How many permits a desk holds."""
        account = self._accounts.get(desk)
        return 0 if account is None else account.held

    def desks(self) -> list[D]:
        """Those that hold something or wait, and some that did."""
        return list(self._accounts)

    def applications(self, desk: D) -> dict[T, float]:
        """Who applies at a desk, oldest first, and when each came."""
        account = self._accounts.get(desk)
        return {} if account is None else dict(islice(account.line.items(), account.granted, None))

    # Waiters

    def apply(self, desk: D, ticket: T, at: float) -> None:
        """A waiter comes to a desk that has nothing for it."""
        account = self._account(desk)
        account.line[ticket] = at
        self.waiting += 1
        if len(account.line) > account.granted:  # else one has left for whom something is on its way
            self.uncovered += 1
            self._applying[desk] = account

    def leave(self, desk: D, ticket: T) -> None:
        """It was served by what came back to the desk, or gave up. If it was covered, the next one is instead."""
        account = self._accounts.get(desk)
        if account is None or account.line.pop(ticket, None) is None:  # it was lost
            return
        self.waiting -= 1
        if len(account.line) >= account.granted:
            self.uncovered -= 1
            if len(account.line) == account.granted:
                del self._applying[desk]
        self._tidy(desk, account)

    def fulfil(self, desk: D, ticket: T | None) -> None:
        """A granted permit has brought a resource, or an error, which goes to ``ticket`` if somebody still waits."""
        account = self._accounts.get(desk)
        if account is None or not account.granted:  # it was lost
            return
        account.granted -= 1
        if len(account.line) > account.granted:
            self.uncovered += 1
            self._applying[desk] = account
        if ticket is not None:
            self.leave(desk, ticket)

    # Permits

    def take(self, desk: D) -> bool:
        """A permit for a desk that wants to make a resource for nobody yet; not while anybody waits for one."""
        if self.uncovered or not self.free:
            return False
        self.free -= 1
        self._account(desk).held += 1
        return True

    def grants(self, now: float) -> list[D]:
        """Hand the free permits to the oldest applications; a desk is in the list once for each."""
        granted: list[D] = []
        while self.free and self.uncovered:
            heads = self._heads()
            desk = self._next(heads, ()) if len(heads) > 1 else next(iter(heads))
            account = self._accounts[desk]
            self._cover_oldest(desk, account, now)
            self.free -= 1
            account.held += 1
            granted.append(desk)
        return granted

    def freed(self, desk: D, *, closing: bool) -> None:
        """A permit of the desk is free: what it was for is closed, or could not be made."""
        account = self._accounts.get(desk)
        if account is None or not account.held:  # it was lost
            return
        if closing:
            account.closing -= 1
            self._coming -= 1
        account.held -= 1
        self.free += 1
        self._tidy(desk, account)

    def close(self, desk: D) -> None:
        """The desk begins to close a resource; ``freed`` follows."""
        account = self._accounts.get(desk)
        if account is None or not account.held:  # it was lost
            return
        account.closing += 1
        self._coming += 1

    def move(self, desk: D, now: float) -> D | None:
        """Hand a permit with its resource to the oldest application of another desk, if there is one: which."""
        giver = self._accounts.get(desk)
        heads = self._heads()
        heads.pop(desk, None)
        if not heads or giver is None or not giver.held:  # the last two: it was lost
            return None
        to = min(heads, key=heads.__getitem__)
        account = self._accounts[to]
        self._cover_oldest(to, account, now)
        giver.held -= 1
        account.held += 1
        return to

    def lose(self, desk: D) -> int:
        """The loop of a desk is gone, with all that it had; how many permits came free by that."""
        account = self._accounts.pop(desk, None)
        if account is None:
            return 0
        self.free += account.held
        self._coming -= account.closing
        self.waiting -= len(account.line)
        self._applying.pop(desk, None)
        self.uncovered -= max(0, len(account.line) - account.granted)
        return account.held

    def _account(self, desk: D) -> _Account[T]:
        account = self._accounts.get(desk)
        if account is None:
            account = self._accounts[desk] = _Account()
        return account

    def _tidy(self, desk: D, account: _Account[T]) -> None:
        """Drop an account with nothing in it, if there are many."""
        if len(self._accounts) > _MANY and not (account.held or account.line or account.granted):
            del self._accounts[desk]

    def _cover_oldest(self, desk: D, account: _Account[T], now: float) -> None:
        account.granted += 1
        account.granted_at = now
        self.uncovered -= 1
        if len(account.line) <= account.granted:
            del self._applying[desk]

    def _heads(self) -> dict[D, float]:
        """The desks that apply, and when the oldest application of each was made."""
        heads: dict[D, float] = {}
        for desk, account in self._applying.items():
            times = account.line.values()
            heads[desk] = next(islice(times, account.granted, None) if account.granted else iter(times))
        return heads

    def _next(self, heads: dict[D, float], expecting: Container[D]) -> D:
        """Whose application is granted first: the oldest, or within the patience that of a desk that has nothing.

        Args:
            heads: The desks that apply, and when the oldest application of each was made.
            expecting: Those for whom something is on its way.
        """
        first = min(heads, key=heads.__getitem__)
        if self.patience is not None and self._has(first, expecting):
            poor = min((desk for desk in heads if not self._has(desk, expecting)), key=heads.__getitem__, default=first)
            if heads[poor] - heads[first] <= self.patience:
                return poor
        return first

    def _has(self, desk: D, expecting: Container[D]) -> bool:
        return desk in expecting or self.held(desk) > 0

    def made(self, seconds: float) -> None:
        """A resource was made in that time."""
        if self._least_patience is not None:
            self._cost += (seconds - self._cost) * _WEIGHT
            self.patience = max(self._least_patience, min(_COSTS * self._cost, _MOST))

    # Sharing

    def verdict(self, desk: D, own: float | None, since: float, now: float) -> Verdict:
        """What the desk does with a resource that it has free.

        Args:
            own: When its first waiter came, if any waits.
            since: When the resource came to be at this desk. One that is younger than the patience is not given up for
                one who has waited for less: loops that take turns would do nothing else.
        """
        if not self.uncovered:
            return _KEEP if own is None else _SERVE
        pending, expecting = self._pending(desk)
        if not pending:
            return _KEEP if own is None else _SERVE
        if own is not None:
            return _SERVE if self._may_come_first(desk, own, pending, expecting, now) else _GIVE
        if self._least_patience is None or self._starving(desk, pending, expecting) is not None:
            return _GIVE
        again_at = min(since, *pending.values()) + self._least_patience
        return _GIVE if now >= again_at else Verdict("keep", again_at)

    def _may_come_first(
        self, desk: D, own: float, pending: dict[D, float], expecting: Container[D], now: float
    ) -> bool:
        """Whether a desk serves its own waiter, who came at ``own``, before those of others."""
        if self.patience is None:
            return own <= min(pending.values())
        starving = self._starving(desk, pending, expecting)
        if starving is not None and starving < own:
            return False
        for other, at in pending.items():
            if own - at > self.patience and not self._expects(other, expecting, now):
                return False
        return True

    def _starving(self, desk: D, pending: dict[D, float], expecting: Container[D]) -> float | None:
        """When the first came of those who wait at desks that have nothing, if this one has more than the one."""
        if self.held(desk) < 2:
            return None
        return min((at for other, at in pending.items() if not self._has(other, expecting)), default=None)

    def _expects(self, desk: D, expecting: Container[D], now: float) -> bool:
        """Whether something is on its way to a desk, and has not been for too long: making one may hang.

        If two of them do, a third is not tried: somewhere else they are of use.
        """
        if desk in expecting:
            return True
        account = self._accounts[desk]
        return account.granted > 1 or (account.granted == 1 and now - account.granted_at <= (self.patience or 0.0))

    def _pending(self, desk: D) -> tuple[dict[D, float], Container[D]]:
        """The other desks' oldest applications that what is being closed will not serve; and whom that will serve."""
        heads = self._heads()
        expecting: set[D] = set()
        if self._coming:
            times = {
                other: islice(account.line.values(), account.granted + 1, None)
                for other, account in self._applying.items()
            }
            for _ in range(self._coming):
                if not heads:
                    break
                other = self._next(heads, expecting)
                expecting.add(other)
                at = next(times[other], None)
                if at is None:
                    del heads[other]
                else:
                    heads[other] = at
        heads.pop(desk, None)
        return heads, expecting

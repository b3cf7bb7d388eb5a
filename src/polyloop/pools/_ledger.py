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

from collections import OrderedDict, deque
from collections.abc import Container, Hashable
from typing import Literal, NamedTuple

#: The patience is at least so many times the cost of making a resource, of which the last has this weight, but is not
#: made longer than so many seconds by that. Guesses.
_COSTS, _WEIGHT, _MOST = 10, 0.125, 2.0


class Verdict(NamedTuple):
    """What a desk does with a resource that is free.

    Attributes:
        what: ``"serve"`` its own first waiter, ``"give"`` the permit up for another desk, or ``"keep"`` it.
        again_at: When to ask again, if it is kept although another desk waits.
    """

    what: Literal["serve", "give", "keep"]
    again_at: float | None = None


_SERVE, _GIVE, _KEEP = Verdict("serve"), Verdict("give"), Verdict("keep")


class Ledger[D: Hashable, T: Hashable]:
    """The permits of one pool, and the applications for them. Not safe for threads.

    For each desk: as many applications as it has more waiters than grants, and those are of its latest. So a desk
    serves its waiters in the order in which they applied, but for those that are about to leave.

    Args:
        permits: How many there are.
        patience: Seconds, see the module's theory; ``None`` keeps strict order, for what changes desks at once.
    """

    def __init__(self, permits: int, patience: float | None) -> None:
        self.permits = permits
        self.patience = patience  # as it is at the moment: see ``made``
        self._least_patience = patience
        self._cost = 0.0  # what making a resource has taken lately
        self.free = permits
        self.waiting = 0  # tickets that applied and have not left, covered or not
        self._held: dict[D, int] = {}  # permits of each desk that has any
        self._closing: dict[D, int] = {}  # how many of those are about to be free
        self._coming = 0  # their sum
        self._applied: dict[D, OrderedDict[T, float]] = {}  # by desk, oldest first: when each ticket came
        self._waiting: dict[D, int] = {}  # by desk
        self._granted: dict[D, deque[float]] = {}  # by desk: when permits were granted that have brought nothing yet

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a permit."""
        return bool(self._applied)

    def would_wait(self, desk: D) -> bool:
        """Whether a waiter who comes to a desk now is not covered at once."""
        return not self.free and self._waiting.get(desk, 0) >= len(self._granted.get(desk, ()))

    @property
    def uncovered(self) -> int:
        """How many wait for whom nothing is on its way."""
        return sum(map(len, self._applied.values()))

    def held(self, desk: D) -> int:
        """How many permits a desk holds."""
        return self._held.get(desk, 0)

    # Waiters

    def apply(self, desk: D, ticket: T, at: float) -> None:
        """A waiter comes to a desk that has nothing for it."""
        waiting = self._waiting.get(desk, 0)
        self._waiting[desk] = waiting + 1
        self.waiting += 1
        if waiting >= len(self._granted.get(desk, ())):  # else one has left for whom something is on its way
            self._applied.setdefault(desk, OrderedDict())[ticket] = at

    def leave(self, desk: D, ticket: T) -> None:
        """It was served by what came back to the desk, or gave up. If it was covered, the next one is instead."""
        if desk not in self._waiting:  # it was lost
            return
        self.waiting -= 1
        self._count(self._waiting, desk, -1)
        applied = self._applied.get(desk)
        if applied is not None:
            most = self._waiting.get(desk, 0) - len(self._granted.get(desk, ()))
            if applied.pop(ticket, None) is None and len(applied) > most:
                applied.popitem(last=False)
            if not applied:
                del self._applied[desk]

    def fulfil(self, desk: D, ticket: T | None) -> None:
        """A granted permit has brought a resource, or an error, which goes to ``ticket`` if somebody still waits."""
        granted = self._granted.get(desk)
        if granted is not None:  # else it was lost
            granted.popleft()
            if not granted:
                del self._granted[desk]
            if ticket is not None:
                self.leave(desk, ticket)

    @staticmethod
    def _count(counts: dict[D, int], desk: D, change: int) -> None:
        counts[desk] = counts.get(desk, 0) + change
        if not counts[desk]:
            del counts[desk]

    # Permits

    def take(self, desk: D) -> bool:
        """A permit for a desk that wants to make a resource for nobody yet; not while anybody waits for one."""
        if self.crowded or not self.free:
            return False
        self._grant(desk)
        return True

    def grants(self, now: float) -> list[D]:
        """Hand the free permits to the oldest applications; a desk is in the list once for each."""
        granted: list[D] = []
        while self.free and self._applied:
            if len(self._applied) == 1:
                (desk,) = self._applied
            else:
                desk = self._next({each: self._first_of(each) for each in self._applied}, self._held)
            self._cover_oldest(desk, now)
            self._grant(desk)
            granted.append(desk)
        return granted

    def freed(self, desk: D, *, closing: bool) -> None:
        """A permit of the desk is free: what it was for is closed, or could not be made."""
        if desk not in self._held:  # it was lost
            return
        if closing:
            self._count(self._closing, desk, -1)
            self._coming -= 1
        self._count(self._held, desk, -1)
        self.free += 1

    def close(self, desk: D) -> None:
        """The desk begins to close a resource; ``freed`` follows."""
        if desk not in self._held:  # it was lost
            return
        self._count(self._closing, desk, 1)
        self._coming += 1

    def move(self, desk: D, now: float) -> D | None:
        """Hand a permit with its resource to the oldest application of another desk, if there is one: which."""
        others = [other for other in self._applied if other != desk]
        if not others:
            return None
        to = min(others, key=self._first_of)
        self._cover_oldest(to, now)
        self._count(self._held, desk, -1)
        self._count(self._held, to, 1)
        return to

    def lose(self, desk: D) -> int:
        """The loop of a desk is gone, with all that it had; how many permits came free by that."""
        held = self._held.pop(desk, 0)
        self.free += held
        self._coming -= self._closing.pop(desk, 0)
        self.waiting -= self._waiting.pop(desk, 0)
        self._granted.pop(desk, None)
        self._applied.pop(desk, None)
        return held

    def _grant(self, desk: D) -> None:
        self.free -= 1
        self._count(self._held, desk, 1)

    def _first_of(self, desk: D) -> float:
        """When the oldest application of a desk was made."""
        return next(iter(self._applied[desk].values()))

    def _next(self, heads: dict[D, float], having: Container[D]) -> D:
        """Whose application is granted first: the oldest, or within the patience that of a desk that has nothing.

        Args:
            heads: The desks that apply, and when the oldest application of each was made.
            having: The desks that have something.
        """
        first = min(heads, key=heads.__getitem__)
        if self.patience is not None and first in having:
            poor = min((desk for desk in heads if desk not in having), key=heads.__getitem__, default=first)
            if heads[poor] - heads[first] <= self.patience:
                return poor
        return first

    def _cover_oldest(self, desk: D, now: float) -> None:
        applied = self._applied[desk]
        applied.popitem(last=False)
        if not applied:
            del self._applied[desk]
        self._granted.setdefault(desk, deque()).append(now)

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
        if not self._others_apply(desk):
            return _KEEP if own is None else _SERVE
        pending, expecting = self._pending(desk) if self._coming else (self._others(desk), set[D]())
        if own is not None:
            return _SERVE if self._may_come_first(desk, own, pending, expecting, now) else _GIVE
        if not pending:
            return _KEEP
        rival = min(pending.values())
        if self._least_patience is None or self._starving(desk, pending, expecting) is not None:
            return _GIVE
        again_at = min(since, rival) + self._least_patience
        return _GIVE if now >= again_at else Verdict("keep", again_at)

    def _may_come_first(self, desk: D, own: float, pending: dict[D, float], expecting: set[D], now: float) -> bool:
        """Whether a desk serves its own waiter, who came at ``own``, before those of others."""
        if self.patience is None:
            return own <= min(pending.values(), default=own)
        starving = self._starving(desk, pending, expecting)
        if starving is not None and starving < own:
            return False
        first = min((at for other, at in pending.items() if not self._expects(other, expecting, now)), default=own)
        return own - first <= self.patience

    def _starving(self, desk: D, pending: dict[D, float], expecting: set[D]) -> float | None:
        """When the first came of those who wait at desks that have nothing, if this one has more than the one."""
        if self._held.get(desk, 0) < 2:
            return None
        return min(
            (at for other, at in pending.items() if other not in self._held and other not in expecting), default=None
        )

    def _expects(self, desk: D, expecting: set[D], now: float) -> bool:
        """Whether something is on its way to a desk, and has not been for too long: making one may hang.

        If two of them do, a third is not tried: somewhere else they are of use.
        """
        granted = self._granted.get(desk)
        if desk in expecting:
            return True
        return granted is not None and (len(granted) > 1 or now - granted[-1] <= (self.patience or 0.0))

    def _others_apply(self, desk: D) -> bool:
        return len(self._applied) > (desk in self._applied)

    def _others(self, desk: D) -> dict[D, float]:
        """The other desks that apply, and when the oldest application of each was made."""
        return {other: next(iter(applied.values())) for other, applied in self._applied.items() if other != desk}

    def _pending(self, desk: D) -> tuple[dict[D, float], set[D]]:
        """The other desks' oldest applications that what is being closed will not serve; and whom that will serve."""
        times = {other: iter(applied.values()) for other, applied in self._applied.items()}
        heads = {other: next(its) for other, its in times.items()}
        expecting: set[D] = set()
        having = set(self._held) if self._coming else ()
        for _ in range(self._coming):
            if not heads:
                break
            other = self._next(heads, {*having, *expecting})
            expecting.add(other)
            at = next(times[other], None)
            if at is None:
                del heads[other]
            else:
                heads[other] = at
        heads.pop(desk, None)
        return heads, expecting

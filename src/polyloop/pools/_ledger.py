"""Who may have how many resources, and who is next: the policy of a pool. Pure: no locks, threads, clocks or resources.

Each loop that uses a pool has a *desk* there. A desk holds *permits*, one for each resource that it has, makes or
closes; all desks together never hold more than there are. A waiter that finds nothing at its own desk *applies* for a
permit, so that its desk can make a resource. It is *covered* when a permit was granted for it, and then waits for that
resource or for one that comes back to its desk earlier, whichever is first.

The rule of fairness: what comes free goes to whoever has waited longest, wherever that is, except that a desk may serve
its own waiter first if that one came at most ``patience`` seconds later. A resource that changes loops has to be closed
and made anew, so strict order would spend most of the time on that; this way loops that are equally busy serve their
own, and no waiter is overtaken by one that came more than ``patience`` later.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Literal, NamedTuple


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

    For each desk: as many applications as it has more waiters than grants, and those are of its latest.

    Args:
        permits: How many there are.
        patience: Seconds, see the module's theory.
    """

    def __init__(self, permits: int, patience: float) -> None:
        self.permits = permits
        self.patience = patience
        self.free = permits
        self.waiting = 0  # tickets that applied and have not left, covered or not
        self._held: dict[D, int] = {}  # permits of each desk that has any
        self._closing: dict[D, int] = {}  # how many of those are about to be free
        self._coming = 0  # their sum
        self._applied: dict[D, OrderedDict[T, float]] = {}  # by desk, oldest first: when each ticket came
        self._waiting: dict[D, int] = {}  # by desk
        self._granted: dict[D, int] = {}  # by desk: permits granted to its waiters that have brought nothing yet

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for a permit."""
        return bool(self._applied)

    def held(self, desk: D) -> int:
        """How many permits a desk holds."""
        return self._held.get(desk, 0)

    # Waiters

    def apply(self, desk: D, ticket: T, at: float) -> None:
        """A waiter comes to a desk that has nothing for it."""
        waiting = self._waiting.get(desk, 0)
        self._waiting[desk] = waiting + 1
        self.waiting += 1
        if waiting >= self._granted.get(desk, 0):  # else one has left for whom something is on its way
            self._applied.setdefault(desk, OrderedDict())[ticket] = at

    def leave(self, desk: D, ticket: T) -> None:
        """It was served by what came back to the desk, or gave up. If it was covered, the next one is instead."""
        if desk not in self._waiting:  # it was lost
            return
        self.waiting -= 1
        self._count(self._waiting, desk, -1)
        applied = self._applied.get(desk)
        if applied is not None:
            most = self._waiting.get(desk, 0) - self._granted.get(desk, 0)
            if applied.pop(ticket, None) is None and len(applied) > most:
                applied.popitem(last=False)
            if not applied:
                del self._applied[desk]

    def fulfil(self, desk: D, ticket: T | None) -> None:
        """A granted permit has brought a resource, or an error, which goes to ``ticket`` if somebody still waits."""
        if desk in self._granted:  # else it was lost
            self._count(self._granted, desk, -1)
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

    def grants(self) -> list[D]:
        """Hand the free permits to the oldest applications; a desk is in the list once for each."""
        granted: list[D] = []
        while self.free and self._applied:
            desk = self._oldest(self._applied)
            self._cover_oldest(desk)
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

    def move(self, desk: D) -> D | None:
        """Hand a permit with its resource to the oldest application of another desk, if there is one: which."""
        others = [other for other in self._applied if other != desk]
        if not others:
            return None
        to = self._oldest(others)
        self._cover_oldest(to)
        self.bring(desk, to)
        return to

    def bring(self, desk: D, to: D) -> bool:
        """A resource of one desk comes to another; ``False`` if the one was lost."""
        if desk not in self._held:
            return False
        self._count(self._held, desk, -1)
        self._count(self._held, to, 1)
        return True

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

    def _oldest(self, desks: "Iterator[D] | list[D] | dict[D, OrderedDict[T, float]]") -> D:
        return min(desks, key=lambda desk: next(iter(self._applied[desk].values())))

    def _cover_oldest(self, desk: D) -> None:
        applied = self._applied[desk]
        applied.popitem(last=False)
        if not applied:
            del self._applied[desk]
        self._count(self._granted, desk, 1)

    # Sharing

    def verdict(self, desk: D, own: float | None, since: float, now: float) -> Verdict:
        """What the desk does with a resource that it has free.

        Args:
            own: When its first waiter came, if any waits.
            since: When the resource came to be at this desk. One that is younger than the patience is not given up for
                one who has waited for less: loops that take turns would do nothing else.
        """
        rival = self._rival_of(desk)
        if own is not None:
            return _SERVE if rival is None or own - rival <= self.patience else _GIVE
        if rival is None:
            return _KEEP
        again_at = min(since, rival) + self.patience
        return _GIVE if now >= again_at else Verdict("keep", again_at)

    def _rival_of(self, desk: D) -> float | None:
        """When the oldest application of another desk was made that is not served by what is being closed anyway."""
        if not self._applied or (len(self._applied) == 1 and desk in self._applied):
            return None
        if not self._coming:
            return min(next(iter(applied.values())) for other, applied in self._applied.items() if other != desk)
        heads = [(next(times), number, times, other) for number, (other, times) in enumerate(self._times())]
        heapq.heapify(heads)
        for _ in range(self._coming):
            _, number, times, other = heads[0]
            at = next(times, None)
            if at is not None:
                heapq.heapreplace(heads, (at, number, times, other))
            else:
                heapq.heappop(heads)
                if not heads:
                    return None
        return min((at for at, _, _, other in heads if other != desk), default=None)

    def _times(self) -> Iterator[tuple[D, Iterator[float]]]:
        return ((desk, iter(applied.values())) for desk, applied in self._applied.items())

    def helpers(self, idle: Callable[[D], int], desks: Iterable[D]) -> list[D]:
        """Which desks to tell that somebody waits: as many as can help, of those that have resources lying idle."""
        short = sum(map(len, self._applied.values())) - self._coming
        told: list[D] = []
        for desk in desks:
            if short <= 0:
                break
            if spare := idle(desk):
                short -= spare
                told.append(desk)
        return told

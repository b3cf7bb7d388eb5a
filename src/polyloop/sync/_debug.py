"""The debug mode of locks: who holds what and who waits for whom, and an error for a wait that would never end.

The graph. A *hold* says who has taken a lock and where; it stands at the lock. A *wait* says who waits for which lock;
it stands in the one graph of the process. From a wait there is an edge to each hold that must end before it can, and
from a hold to the wait of its holder. A wait that comes last to a cycle finds it, since it enters the graph and looks
in one step, under the graph's lock.

Why no cycle is reported that is none. A hold is taken away before its lock is released, and put there by its holder,
who has left the graph before. So a hold in the graph is true, and a wait that has got its lock but does not know it has
no edge: nobody holds that lock. No wait enters the graph while another looks, so whoever is found to wait has been
waiting since the look began. Waits with a limit of time end by themselves, and are not in the graph. Limits that a lock
cannot see, such as ``asyncio.timeout`` around it, are not considered; nor is that somebody could release a lock that
another holds.

The graph's lock is taken by waits that do not end at once, never by whoever takes a free lock or releases one; so these
may be done by finalisers and signal handlers, wherever they interrupt.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType

from polyloop._core import _prims
from polyloop._core._context import who, who_by_name
from polyloop._core._errors import DeadlockError, DeadlockParty
from polyloop._core._parking import ThreadWaiter, Waiter, async_waiter
from polyloop._core._waiting import Permits, leave, was_woken

#: How many frames of the user's are shown of each stack. A guess: enough to tell two callers of one helper apart.
_FRAMES = 3


def label(kind: str, lock: object, name: str | None) -> str:
    """How a lock is called in reports."""
    return f"{kind} at {id(lock):#x}" if name is None else f"{kind} {name!r}"


def _stack() -> str:
    """Where the user's code called, innermost first: cheaper than ``traceback``, which reads the sources."""
    frame: FrameType | None = sys._getframe(1)
    found: list[str] = []
    while frame is not None and len(found) < _FRAMES:
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith("polyloop."):
            if found and module.startswith(("asyncio.", "threading", "trio.")):
                break
            code = frame.f_code
            found.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}")
        frame = frame.f_back
    return ", called at ".join(found)


class Hold:
    """Who has taken a lock, and where. Not changed, but for ``what``."""

    __slots__ = ("name", "what", "where", "who")

    def __init__(self, what: str) -> None:
        self.who = who()
        self.name = who_by_name()
        self.what = what
        self.where = _stack()


class Wait:
    """Who waits for which lock, and where.

    Args:
        blockers: Returns the holds that must end first; called under the graph's lock.
        end: Takes the waiter out of its line, and says whether it was there; called under the graph's lock. ``None`` if
            others must not end the wait.
        looked: Called, without the graph's lock, when ``blockers`` or ``end`` has been.
    """

    __slots__ = ("blockers", "doom", "end", "looked", "name", "waiter", "what", "where", "who")

    def __init__(
        self,
        what: str,
        blockers: Callable[[], Iterable[Hold]],
        waiter: Waiter,
        *,
        end: Callable[[], bool] | None = None,
        looked: Callable[[], object] | None = None,
    ) -> None:
        self.who = who()
        self.name = who_by_name()
        self.what = what
        self.where = _stack()
        self.blockers = blockers
        self.waiter = waiter
        self.end = end
        self.looked = looked
        self.doom: DeadlockError | None = None  # why it was ended by others; under the graph's lock


class Graph:
    """All waits of the process."""

    def __init__(self) -> None:
        self._lock = _prims.Lock()
        self._waits: dict[object, Wait] = {}  # by who waits; added under the lock, removed by whoever waited

    def enter(self, wait: Wait) -> list[tuple[Wait, Hold]] | None:
        """Add a wait; return the cycle that it closes, if any. It is removed in any case with ``leave``."""
        came: dict[Wait, tuple[Wait, Hold]] = {}
        with self._lock:
            self._waits[wait.who] = wait
            cycle = self._cycle_locked(wait, came)
        _looked((wait, *came))
        return cycle

    def leave(self, wait: Wait) -> None:
        """Remove a wait."""
        self._waits.pop(wait.who, None)

    def _cycle_locked(self, start: Wait, came: dict[Wait, tuple[Wait, Hold]]) -> list[tuple[Wait, Hold]] | None:
        """Each wait of the cycle, with the hold that it waits for: that of the next in the cycle.

        Args:
            came: Filled with the waits that were found, and from which wait and hold.
        """
        unseen = [start]
        while unseen:
            wait = unseen.pop()
            for hold in wait.blockers():
                if hold.who == start.who:
                    cycle = [(wait, hold)]
                    while wait is not start:
                        cycle.append(came[wait])
                        wait = cycle[-1][0]
                    return cycle[::-1]
                following = self._waits.get(hold.who)
                if following is not None and following not in came:
                    came[following] = (wait, hold)
                    unseen.append(following)
        return None

    def end_one(self, waits: list[Wait], error: DeadlockError) -> Wait | None:
        """End the first of these waits that can be; the caller wakes it."""
        with self._lock:
            ended = next((wait for wait in waits if wait.end is not None and wait.end()), None)
            if ended is not None:
                ended.doom = error
        _looked(waits)
        return ended

    def doom_of(self, wait: Wait) -> DeadlockError | None:
        """Why a wait was ended by others, if it was; for one that is out of its line."""
        with self._lock:
            return wait.doom


def _looked(waits: Iterable[Wait]) -> None:
    for wait in waits:
        if wait.looked is not None:
            wait.looked()


GRAPH = Graph()


def _report(cycle: list[tuple[Wait, Hold]]) -> DeadlockError:
    before = [cycle[-1][1], *(hold for _, hold in cycle[:-1])]  # what each holds that the one before it waits for
    parties = tuple(
        DeadlockParty(wait.name, held.what, held.where, wait.what, wait.where)
        for (wait, _), held in zip(cycle, before, strict=True)
    )
    lines = [
        f"  {party.who} holds {party.holds}, taken at {party.taken_at}; waits for {party.waits_for} at {party.waits_at}"
        for party in parties
    ]
    error = DeadlockError("\n".join(["to wait here would never end, since each of these waits for the next:", *lines]))
    error.cycle = parties
    return error


class Waiting:
    """A block in which its task or thread waits without limit.

    Args:
        again: It is the wait of a condition for its lock, which it must hold when it ends, whatever happens: if it
            closes a cycle, another of that is ended instead.
    Raises:
        DeadlockError: the wait would never end, or has been ended for such a condition.
    """

    __slots__ = ("_again", "_wait")

    def __init__(self, wait: Wait, again: bool = False) -> None:
        self._wait = wait
        self._again = again

    def __enter__(self) -> None:
        try:
            cycle = GRAPH.enter(self._wait)
            if cycle is not None:
                self._refuse(cycle)
        except BaseException:
            GRAPH.leave(self._wait)
            raise

    def _refuse(self, cycle: list[tuple[Wait, Hold]]) -> None:
        error = _report(cycle)
        if not self._again:
            raise error
        # One of these may be ended. They cannot all be conditions that want their locks back: each would have taken
        # what it holds before it let go of what the next has taken since, and so on around the cycle.
        ended = GRAPH.end_one([wait for wait, _ in cycle], error)
        if ended is not None:  # else it has just got its lock, and there is no cycle any more
            ended.waiter.wake()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        GRAPH.leave(self._wait)
        if exc is None and self._wait.doom is not None:  # set before the waiter was woken
            raise self._wait.doom


class DebugPermits(Permits):
    """The one permit of a lock, and who has it."""

    __slots__ = ("_what", "hold")

    def __init__(self, what: str) -> None:
        super().__init__(1)
        self._what = what
        self.hold: Hold | None = None  # written by who has the permit

    def take_nowait(self) -> bool:
        """Take it if it is free."""
        taken = super().take_nowait()
        if taken:
            self.note()
        return taken

    def give(self) -> None:
        """Give it back."""
        self.hold = None
        super().give()

    async def wait(self) -> None:
        """Take it, in turn. Raises ``DeadlockError``."""
        await self._wait(False)

    async def wait_again(self) -> None:
        """Take it, in turn, though another must fail for that."""
        await self._wait(True)

    def block(self, timeout: float | None) -> bool:
        """Take it on a plain thread, in turn. Raises ``DeadlockError`` if the time is not limited."""
        taken = super().block(timeout) if timeout is not None else self._block(False)
        if taken:
            self.note()
        return taken

    def block_again(self) -> None:
        """Take it on a plain thread, in turn, though another must fail for that."""
        self._block(True)
        self.note()

    def note(self) -> None:
        """Note that the caller has taken it, and where."""
        self.hold = Hold(self._what)

    async def _wait(self, again: bool) -> None:
        waiter = async_waiter()
        wait = self._new_wait(waiter, again)
        try:
            self.match()
            with Waiting(wait, again):
                await waiter
        except BaseException:
            if was_woken(self.line, waiter) and GRAPH.doom_of(wait) is None:
                self.give()
            raise
        self.note()

    def _block(self, again: bool) -> bool:
        waiter = ThreadWaiter()
        wait = self._new_wait(waiter, again)
        try:
            self.match()
            with Waiting(wait, again):
                waiter.park()
        except BaseException:
            if not leave(self.line, waiter) and GRAPH.doom_of(wait) is None:
                self.give()
            raise
        return True

    def _new_wait(self, waiter: Waiter, again: bool) -> Wait:
        line = self.line
        line.append(waiter)
        return Wait(self._what, self._blockers, waiter, end=None if again else lambda: leave(line, waiter))

    def _blockers(self) -> tuple[Hold, ...]:
        hold = self.hold
        return () if hold is None else (hold,)


class DebugHolder(deque[object]):
    """The holder of a ``Lock``, who has taken its permit or is about to give it back: see ``Lock._holder``."""

    __slots__ = ("_permits",)

    def __init__(self, permits: DebugPermits) -> None:
        super().__init__()
        self._permits = permits

    def append(self, holder: object, /) -> None:
        """Note who holds the lock."""
        self._permits.note()
        super().append(holder)

    def pop(self) -> object:  # type: ignore[override]
        """Take the right to release."""
        holder = super().pop()
        self._permits.hold = None
        return holder

"""``Barrier``: parties that wait for one another, over all loops and threads.

States. *Filling*: parties arrive and wait. *Acting*: all are there, and the last one calls the action. *Draining*: they
may go; each leaves when its task or thread runs, and the last to leave makes the barrier fill again. *Resetting*: as
draining, but each that leaves gets an error. *Broken*: all get an error, until ``reset``. What becomes of a party is
decided by the state at the moment it leaves, as in asyncio. Who arrives while others leave stands aside and tries again
once the barrier fills.

All is decided under ``_lock``; waking and the action come after it. A finaliser or a signal handler may interrupt the
thread that has the lock, and close a coroutine that waits here. So whoever gives up appends itself to ``_gone`` and
*then* tries the lock, without waiting; whoever had it releases it and *then* looks at ``_gone``.
"""

import enum
from collections import deque
from collections.abc import Callable
from types import TracebackType

from polyloop._core import _prims
from polyloop._core._errors import BrokenBarrierError
from polyloop._core._parking import ThreadWaiter, Waiter, async_waiter, refuse_on_loop_thread
from polyloop._core._waiting import Line, leave, wake_all
from polyloop.sync._face import Face, described, patience_of


class _State(enum.Enum):
    FILLING = enum.auto()
    ACTING = enum.auto()
    DRAINING = enum.auto()
    RESETTING = enum.auto()
    BROKEN = enum.auto()


_FILLS = (_State.FILLING, _State.ACTING)


class _Place(enum.Enum):
    """Where a party stands that has come."""

    ASIDE = enum.auto()  # others still leave: try again
    INSIDE = enum.auto()
    LAST = enum.auto()  # all are there


class _Party:
    """One call of ``wait``."""

    __slots__ = ("index", "waiter")

    def __init__(self) -> None:
        # Both under the lock: what wakes it, taken out by whoever is going to, and what ``wait`` returns.
        self.waiter: Waiter | None = None
        self.index = 0


class Barrier:
    """A point where a number of tasks and threads wait until all are there; ``asyncio.Barrier`` across loops.

    Use ``await barrier.wait()`` or ``async with barrier as position`` in a task, and ``barrier.sync.wait()`` in a plain
    thread. Tasks of any loops and threads may be parties of one barrier.

    Args:
        parties: How many must come; at least 1.
        action: Called by the last that comes, before anybody goes on; on its thread, so it must not block a loop. What
            it raises breaks the barrier and is raised by that party's ``wait``.
        timeout: Seconds that ``sync.wait`` waits by default; ``None`` waits as long as it takes.
    Raises:
        ValueError: ``parties`` is below 1.
    Cancellation: a cancelled ``wait`` leaves the barrier as if it had not come; if all were there at that moment, the
    others go on.
    Thread safety: every method may be called from any loop and any thread.

    .. versionadded:: 0.2
    """

    __slots__ = (
        "__weakref__", "_action", "_aside", "_gone", "_inside", "_lock", "_parties", "_state", "_timeout"
    )  # fmt: skip

    def __init__(self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None) -> None:
        if parties < 1:
            raise ValueError(f"parties must be >= 1, got {parties!r}")
        self._parties = parties
        self._action = action
        self._timeout = timeout
        self._aside: Line = deque()  # those who try again; they may leave it without the lock
        self._gone: deque[_Party] = deque()  # appended by any thread, popped under the lock
        self._lock = _prims.Lock()  # guards the two below; they may be read without it
        self._state = _State.FILLING
        self._inside: dict[_Party, None] = {}  # in the order they came, until they have left

    def __repr__(self) -> str:
        state = self._state
        shown = "filling" if state in _FILLS else state.name.lower()
        waiters = "" if state is _State.BROKEN else f", waiters:{self.n_waiting}/{self._parties}"
        return described(self, shown + waiters, ())

    @property
    def parties(self) -> int:
        """How many must come."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many have come and wait for the others."""
        return len(self._inside) if self._state in _FILLS else 0

    @property
    def broken(self) -> bool:
        """Whether the barrier is broken."""
        return self._state is _State.BROKEN

    async def wait(self) -> int:
        """Wait until all parties are there.

        Returns:
            A number from 0 to ``parties - 1``, another for each party: the order in which they came.
        Raises:
            BrokenBarrierError: the barrier is broken, or was broken or reset before this party went on.
        Cancellation: this party has not come; the others wait on.
        """
        party = _Party()
        while True:
            waiter = async_waiter()
            place = self._enter(party, waiter)
            if place is _Place.LAST:
                return self._go(party)
            try:
                await waiter
            except BaseException:  # cancelled, or closed with its coroutine
                self._give_up(party, waiter)
                raise
            if place is _Place.INSIDE:
                return self._leave(party)

    async def reset(self) -> None:
        """Make the barrier as new. Waits for nothing.

        Those who wait get a ``BrokenBarrierError``, and so do those who could have gone on but have not run since.
        """
        self._reset((_State.FILLING, _State.ACTING, _State.DRAINING, _State.BROKEN))

    async def abort(self) -> None:
        """Break the barrier. Waits for nothing.

        Those who wait, and all who come until ``reset``, get a ``BrokenBarrierError``.
        """
        self._break()

    async def __aenter__(self) -> int:
        return await self.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def sync(self) -> "SyncBarrier":
        """The same barrier for plain threads, with the signatures of ``threading.Barrier``."""
        return SyncBarrier(self)

    def _enter(self, party: _Party, waiter: Waiter | None) -> _Place:
        """Come to the barrier. Without a ``waiter``, only the last one does; for others nothing has changed."""
        with self._lock:
            fills = self._drop_gone_locked()
            state = self._state
            place = self._place_locked(party, waiter)
        if fills:
            wake_all(self._aside)
        self._settle()
        if state is _State.BROKEN:
            raise BrokenBarrierError(f"{self!r} is broken; 'reset' makes it as new")
        return place

    def _place_locked(self, party: _Party, waiter: Waiter | None) -> _Place:
        if self._state is not _State.FILLING:
            if waiter is not None and self._state is not _State.BROKEN:
                self._aside.append(waiter)
            return _Place.ASIDE
        last = len(self._inside) + 1 == self._parties
        if last or waiter is not None:
            party.waiter = None if last else waiter
            self._inside[party] = None
        if not last:
            return _Place.INSIDE
        self._state = _State.ACTING
        for index, one in enumerate(self._inside):
            one.index = index
        return _Place.LAST

    def _go(self, last: _Party) -> int:
        """All are there: call the action, let them go, and go too."""
        try:
            if self._action is not None:
                self._action()
        except BaseException:
            self._break()
            self._give_up(last)
            raise
        with self._lock:
            if self._state is _State.ACTING:  # else broken or reset meanwhile, by somebody who has woken all
                self._state = _State.DRAINING
            woken = self._waiters_locked()
        self._wake(woken)
        return self._leave(last)

    def _leave(self, party: _Party) -> int:
        """Go on, or not, as the state says now."""
        with self._lock:
            state = self._state
            self._inside.pop(party, None)
            fills = self._drop_gone_locked()
        if fills:
            wake_all(self._aside)
        self._settle()
        if state is not _State.DRAINING:
            raise BrokenBarrierError(f"{self!r} was broken or reset under those who waited")
        return party.index

    def _give_up(self, party: _Party, waiter: Waiter | None = None) -> None:
        """Leave without having got through. Waits for nothing."""
        if waiter is not None:
            leave(self._aside, waiter)
        self._gone.append(party)
        self._settle()

    def _settle(self) -> None:
        """Let those go who have given up, unless somebody has the lock, who does so next. See the module's theory."""
        while self._gone and self._lock.acquire(blocking=False):
            try:
                fills = self._drop_gone_locked()
            finally:
                self._lock.release()
            if fills:
                wake_all(self._aside)

    def _drop_gone_locked(self) -> bool:
        """Let those go who have given up; whether the barrier fills again, so that those aside are to be woken."""
        while self._gone:
            self._inside.pop(self._gone.popleft(), None)
        if self._inside or self._state not in (_State.DRAINING, _State.RESETTING):
            return False
        self._state = _State.FILLING
        return True

    def _reset(self, effective: tuple[_State, ...]) -> None:
        """Reset. Those inside get an error if the state is an ``effective`` one."""
        with self._lock:
            self._drop_gone_locked()
            if not self._inside:
                self._state = _State.FILLING
            elif self._state in effective:
                self._state = _State.RESETTING
            woken = self._waiters_locked() if self._state is _State.RESETTING else []
            fills = self._state is _State.FILLING
        self._wake(woken)
        if fills:
            wake_all(self._aside)
        self._settle()

    def _break(self, unless: tuple[_State, ...] = ()) -> _State:
        """Break the barrier, if its state is none of these; the state before."""
        with self._lock:
            state = self._state
            if state not in unless:
                self._state = _State.BROKEN
            woken = self._waiters_locked() if state not in unless else []
        self._wake(woken)
        if state not in unless:
            wake_all(self._aside)
        self._settle()
        return state

    def _late(self, place: _Place) -> bool:
        """A party runs out of time: break the barrier, unless all have come; whether their action is being called."""
        unless = () if place is _Place.ASIDE else (_State.ACTING, _State.DRAINING, _State.RESETTING, _State.BROKEN)
        state = self._break(unless)
        if state not in unless:
            raise BrokenBarrierError(f"{self!r}: the time was over before all {self._parties} parties were there")
        return state is _State.ACTING

    def _waiters_locked(self) -> list[tuple[_Party, Waiter]]:
        """Those inside who are still asleep; the caller wakes them, without the lock."""
        found: list[tuple[_Party, Waiter]] = []
        for party in self._inside:
            if party.waiter is not None:
                found.append((party, party.waiter))
                party.waiter = None
        return found

    def _wake(self, woken: list[tuple[_Party, Waiter]]) -> None:
        for party, waiter in woken:
            if not waiter.wake():  # its loop has ended
                self._gone.append(party)


class SyncBarrier(Face[Barrier]):
    """The face of a ``Barrier`` for plain threads, with the signatures of ``threading.Barrier``.

    Thread safety: any thread; on one that runs a loop, ``wait`` raises ``BlockingCallError`` unless all others are
    there.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

    @property
    def parties(self) -> int:
        """How many must come."""
        return self._primitive.parties

    @property
    def n_waiting(self) -> int:
        """How many have come and wait for the others."""
        return self._primitive.n_waiting

    @property
    def broken(self) -> bool:
        """Whether the barrier is broken."""
        return self._primitive.broken

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties are there.

        Args:
            timeout: Seconds to wait at most, by default what the barrier was made with. When they are over, the barrier
                is broken for all, unless the action is being called: then it waits for its end.
        Returns:
            A number from 0 to ``parties - 1``, another for each party: the order in which they came.
        Raises:
            BlockingCallError: others are missing, and this thread runs a loop.
            BrokenBarrierError: the barrier is broken, was broken or reset before this party went on, or the time was
                over.
        """
        barrier = self._primitive
        patience = patience_of(barrier._timeout if timeout is None else timeout)
        deadline = None if patience is None else _prims.monotonic() + patience
        party = _Party()
        while True:
            if barrier._enter(party, None) is _Place.LAST:
                return barrier._go(party)
            refuse_on_loop_thread("barrier.sync.wait()", "await barrier.wait()")
            waiter = ThreadWaiter()
            place = barrier._enter(party, waiter)
            if place is _Place.LAST:
                return barrier._go(party)
            try:
                in_time = waiter.park(None if deadline is None else max(0.0, deadline - _prims.monotonic()))
                if not in_time and (place is _Place.INSIDE or leave(barrier._aside, waiter)) and barrier._late(place):
                    waiter.park()
            except BaseException:  # out of time, or KeyboardInterrupt
                barrier._give_up(party, waiter)
                raise
            if place is _Place.INSIDE:
                return barrier._leave(party)

    def reset(self) -> None:
        """Make the barrier as new. Those who wait get a ``BrokenBarrierError``; those who could go on already go on."""
        self._primitive._reset((_State.FILLING, _State.BROKEN))

    def abort(self) -> None:
        """Break the barrier. Those who wait, and all who come until ``reset``, get a ``BrokenBarrierError``."""
        self._primitive._break()

"""``ResourcePool``: resources that cost something to make, lent to the tasks of all loops under one cap.

The parts: ``_ledger`` is the policy, ``_shared`` what all loops have in common, ``_desk`` what each has for itself, and
``_loan`` what a caller holds. This file is what users call.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from polyloop._core._context import here
from polyloop._core._errors import PoolClosedError
from polyloop._core._port import current_port, logger
from polyloop.pools._desk import Desk, Slot, finalising
from polyloop.pools._loan import Loan
from polyloop.pools._shared import Rules, Shared
from polyloop.pools._stats import PoolStats
from polyloop.pools._where import call_site
from polyloop.runtime._current import running_runtime
from polyloop.sync import Event

#: How much longer than it may take to close a resource a pool waits for the loops that do it, in seconds.
_GRACE = 1.0


class ResourcePool[R]:
    """Resources that are expensive to make, lent to tasks of any loop, never more than ``max_size`` in the process.

    ::

        pool = ResourcePool(connect, Connection.close, max_size=10)

        async with pool.acquire() as connection:      # on any loop
            await connection.send(request)

    Each loop keeps its own idle resources, so as a rule lending touches nothing that loops share. When all permits are
    taken and another loop has an idle resource, that loop closes it, and the one that waits makes its own: a connection
    never changes loops. ``loop_bound=False`` says that resources may; then they are handed over as they are.

    Fairness: callers are served in the order they came, over all loops, to within ``patience`` seconds: no caller is
    overtaken by one that came more than ``patience`` later, unless a resource is being made for its loop. One on a loop
    that has nothing is served as soon as a loop with more than one gets one back. An idle resource is given up for
    another loop at once, or, if it was made less than ``patience`` ago and is the last of its loop, when that is over.
    (Where making a resource takes long, ten times that is the patience: see ``docs/design.md``.)

    Args:
        create: Makes a resource, on the loop that is going to use it; called with no context variables set. It is not
            cancelled with the caller that needs it, and holds a permit, so give it a limit of time of its own.
        close: Closes a resource, on its loop; a function, async or not. One that the loop's end has cancelled is called
            once more.
        check: Says whether a resource still works, when it is lent after it lay idle for ``check_after`` seconds:
            ``False`` or an exception drops it, and the next one is tried.
        reset: Cleans a resource up when its loan ends. If it raises, takes too long or is cancelled, the resource is
            dropped.
        is_closed: Says whether a resource has ended by itself; waits for nothing. Asked at each loan and return.
        max_size: The most resources that there may be in the process, at least 1.
        min_idle: How many are kept ready for use, over all loops; made by ``async with pool`` (or ``open``).
        max_idle_time: Seconds that one may lie idle before it is closed; ``None``: as long as it likes.
        max_lifetime: Seconds after which one is replaced when it is not on loan, less up to a tenth at random.
        max_waiting: The most callers that may wait for whom nothing is on its way; one more gets ``PoolBusyError``.
        check_after: Seconds, see ``check``; 0 checks at each loan.
        patience: Seconds, see above. Smaller is fairer; larger keeps loops that are equally busy from taking resources
            from each other. Not used with ``loop_bound=False``, where the order is strict.
        upkeep_timeout: Seconds that a ``check``, ``reset`` or ``close`` may take; then it is cancelled and the resource
            dropped.
        loop_bound: Whether a resource can be used on the loop only where it was made.
        name: Shown in errors, logs and ``repr``.
    Raises:
        TypeError: ``create`` or ``close`` cannot be called.
        ValueError: a number is out of range.
    Cancellation: cancelling a caller that waits takes nothing from the pool.
    Thread safety: any loop, polyloop's or not; ``stats`` from any thread. A loan is returned on the loop that took it.
    Idle resources are closed with their loop, after its tasks; to close them earlier, close the pool.
    Source: ``docs/design.md`` section 5, Pools.

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        create: Callable[[], Awaitable[R]],
        close: Callable[[R], object],
        *,
        max_size: int,
        check: Callable[[R], Awaitable[object]] | None = None,
        reset: Callable[[R], Awaitable[object]] | None = None,
        is_closed: Callable[[R], bool] | None = None,
        min_idle: int = 0,
        max_idle_time: float | None = 300.0,
        max_lifetime: float | None = 3600.0,
        max_waiting: int | None = None,
        check_after: float = 1.0,
        patience: float = 0.25,
        upkeep_timeout: float = 5.0,
        loop_bound: bool = True,
        name: str | None = None,
    ) -> None:
        for what, fn in (("create", create), ("close", close)):
            if not callable(fn):
                raise TypeError(f"a pool needs a function for {what}, got {fn!r}")
        _check_whole("max_size", max_size, 1)
        _check_whole("min_idle", min_idle, 0)
        if min_idle > max_size:
            raise ValueError(f"min_idle must not exceed max_size={max_size!r}, got {min_idle!r}")
        if max_waiting is not None:
            _check_whole("max_waiting", max_waiting, 0)
        for what, seconds, positive in (
            ("max_idle_time", max_idle_time, True),
            ("max_lifetime", max_lifetime, True),
            ("upkeep_timeout", upkeep_timeout, True),
            ("check_after", check_after, False),
            ("patience", patience, False),
        ):
            _check_seconds(what, seconds, positive)
        self._rules = Rules(
            create=create,
            close=close,
            check=check,
            reset=reset,
            is_closed=is_closed,
            max_size=max_size,
            min_idle=min_idle,
            max_idle_time=max_idle_time,
            max_lifetime=max_lifetime,
            max_waiting=max_waiting,
            check_after=check_after,
            patience=patience,
            upkeep_timeout=upkeep_timeout,
            loop_bound=loop_bound,
            name=name or str(getattr(create, "__qualname__", "pool")),
            made_at=call_site(),
        )
        self._shared = Shared(self._rules)
        self._desks = self._shared.desks

    def __repr__(self) -> str:
        shared = self._shared
        return (
            f"<{type(self).__name__} {self._rules.name!r} {shared.state}, {shared.size}/{self._rules.max_size} made,"
            f" {shared.waiting} waiting>"
        )

    @property
    def max_size(self) -> int:
        """The most resources that there may be."""
        return self._rules.max_size

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._rules.name

    # Lending

    def acquire(self) -> Loan[R]:
        """Borrow a resource: ``async with pool.acquire() as resource``, or ``await`` it and ``release`` it later.

        An idle one of this loop, else a new one if there is a permit, else the first to come free in turn. Bound the
        wait with ``asyncio.timeout``.

        Returns:
            A loan, for one use. The block returns the resource however it ends.
        Raises:
            RuntimeError: no loop runs on this thread.
            PoolClosedError: the pool is draining or closed.
            PoolBusyError: ``max_waiting`` callers wait already.
            RuntimeClosedError: the running loop is ending.
            Exception: what ``create`` raised, for the caller that has waited longest on its loop.
        Cancellation: while it waits, nothing is taken. During ``check``, that resource is closed.
        Thread safety: any loop.
        """
        return Loan(self._desk())

    async def release(self, resource: R) -> None:
        """Return what ``await pool.acquire()`` gave, once. It waits for ``reset``, if the pool has one.

        One that the pool has closed meanwhile is let go without a word. Like any pool's, it cannot tell a second return
        from that of the next borrower: prefer the block.

        Raises:
            ForeignLoopError: it was borrowed on another loop, where it has to be returned.
            ValueError: it is not on loan.
        Cancellation: the resource is dropped if ``reset`` is cut short.
        """
        slot = self._slot_of(resource)
        if slot is not None:
            await slot.desk.end_loan(slot)

    def discard(self, resource: R) -> None:
        """End the loan of a resource that is not to be used again: it is closed. Inside of its block, too.

        Raises:
            ForeignLoopError: it was borrowed on another loop.
            ValueError: it is not on loan.
        """
        slot = self._slot_of(resource)
        if slot is not None:
            slot.desk.safely(slot.desk.drop, slot)

    def _slot_of(self, resource: R) -> Slot[R] | None:
        """The loan of a resource, which ends; ``None`` if the pool has closed it under its borrower."""
        for desk in list(self._desks.values()):
            slot = desk.lent(resource)
            if slot is not None:
                if self._rules.loop_bound and not desk.port.is_current() and not finalising():
                    raise slot.refuse(f"{resource!r} of pool {self.name!r}", "return it on the loop that borrowed it")
                return slot
        if self._shared.state in {"closing", "closed"}:
            return None
        raise ValueError(f"{resource!r} is not on loan from {self!r}; it was returned before, or belongs elsewhere")

    def _desk(self) -> Desk[R]:
        """The desk of the running loop."""
        port = here.port
        if port is None or not port.is_current():
            port = current_port()
        desk = self._desks.get(port)
        return self._new_desk() if desk is None else desk

    def _new_desk(self) -> Desk[R]:
        if self._shared.state != "open":
            raise PoolClosedError(f"{self!r} lends nothing more; acquire before drain() or close()")
        desk = Desk(self._shared, self._desk)
        self._shared.enter(desk)
        desk.begin()
        return desk

    # Life

    async def open(self) -> Self:
        """Make ``min_idle`` resources, spread over the loops of the running runtime; ``async with pool`` does this.

        Raises:
            PoolClosedError: the pool is draining or closed.
            Exception: what ``create`` raised; those that were made stay.
        Cancellation: those that were begun are made.
        """
        if self._shared.state != "open":
            raise PoolClosedError(f"{self!r} cannot be opened again; make a new one")
        runtime = running_runtime()
        workers = [] if runtime is None else [worker for worker in runtime.workers if worker.alive]
        if not workers or runtime is None:
            for _ in range(self._rules.min_idle):
                await self._prepare()
            return self
        handles = [
            runtime.spawn(self._prepare, on=workers[number % len(workers)]) for number in range(self._rules.min_idle)
        ]
        for handle in handles:
            await handle
        return self

    async def _prepare(self) -> None:
        await self._desk().prepare()

    async def drain(self) -> None:
        """Lend nothing to those who come from now on; wait until all loans are returned, and close everything.

        Who waits already is still served.

        Cancellation: the pool goes on draining.
        Thread safety: any loop, several at once.
        """
        self._shared.end("draining")
        await self._wait_empty(None)
        self._shared.end("closed")
        self._tell_desks(lambda desk: desk.leave())

    async def close(self, timeout: float = 10.0) -> None:
        """Lend nothing more, wait ``timeout`` seconds for loans to be returned, close everything. Bounded.

        Callers that wait get ``PoolClosedError``. What is still on loan then is closed under its borrower; a loop that
        does not answer is left with what it has, and named in the log.

        Args:
            timeout: Seconds; 0 closes at once what is on loan.
        Cancellation: the pool goes on closing what is not on loan.
        Thread safety: any loop, several at once.
        """
        shared = self._shared
        if shared.state != "closed":
            shared.end("closing")
            self._tell_desks(lambda desk: desk.shut())
            if not await self._wait_empty(timeout):
                self._tell_desks(lambda desk: desk.force())
                if not await self._wait_empty(self._rules.upkeep_timeout + _GRACE):
                    logger.error("polyloop: %r is closed, but not what it has on %s", self, shared.holders())
            shared.end("closed")
            self._tell_desks(lambda desk: desk.leave())

    async def close_idle(self) -> None:
        """Close what lies idle now, on all loops; the pool stays open, and loans go on. Bounded.

        Cancellation: the loops go on closing.
        Thread safety: any loop, several at once.
        """
        waits: list[Event] = []
        for desk in list(self._desks.values()):
            waits.append(done := Event())
            desk.port.post(desk.close_idle, done)
            if desk.port.mailbox.closed:  # its loop has ended, and nobody would tell
                waits.pop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rules.upkeep_timeout + _GRACE):
                for done in waits:
                    await done.wait()

    async def refresh(self) -> None:
        """Replace everything: close what lies idle now, and what is on loan when it is returned. The pool stays open.

        After a password, a schema or a server has changed. Bounded.

        Cancellation: the loops go on closing.
        Thread safety: any loop, several at once.
        """
        for desk in list(self._desks.values()):
            for slot in desk.loans.copy():
                slot.expires_at = 0.0
        await self.close_idle()

    def _tell_desks(self, what: Callable[[Desk[R]], object]) -> None:
        for desk in list(self._desks.values()):
            desk.port.post(what, desk)

    async def _wait_empty(self, timeout: float | None) -> bool:
        shared = self._shared
        self._tell_desks(lambda desk: desk.balance())
        if not shared.size:
            return True
        try:
            async with asyncio.timeout(timeout):
                await shared.empty.wait()
        except TimeoutError:
            return not shared.size
        return True

    async def __aenter__(self) -> Self:
        try:
            return await self.open()
        except BaseException:
            await self.close_idle()  # and stays open: somebody may be using it, and one may try again
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def stats(self) -> PoolStats:
        """What the pool has and has done. Any thread."""
        counts = self._shared.counts()
        return PoolStats(
            max_size=self.max_size,
            size=self._shared.size,
            in_use=sum(len(desk.loans) for desk in list(self._desks.values())),
            idle=self._shared.idle(),
            waiting=self._shared.waiting,
            loans=counts.loans,
            created=counts.created,
            failed=counts.failed,
            closed=counts.closed,
            reclaimed=counts.reclaimed,
            moved=counts.moved,
            broken=counts.broken,
            expired=counts.expired,
            lost=counts.lost,
            waits=counts.histogram(),
        )


def _check_whole(what: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be a whole number, at least {least}; got {value!r}")


def _check_seconds(what: str, value: Any, positive: bool) -> None:
    if value is None and what in {"max_idle_time", "max_lifetime"}:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0 or (positive and not value):
        raise ValueError(f"{what} must be a number of seconds{' above 0' if positive else ''}; got {value!r}")

"""``map`` of a sync function on the process-wide pool of threads.

One job for each item would cost more than many an item is worth. So a few *pumps* run on threads of the pool, at most
``limit``, and each takes one item after the other until there is none.

A pump may go on for as long as there are items. So that nobody starves on a full pool, it looks after each call whether
somebody waits for a thread, and queues up behind.

A pump is *at work* (the pool has it) or *resting* (listed in ``_resting``). Why no item waits beside a resting pump:
home appends an item and *then* looks for a resting pump; a pump lists itself and *then* looks at the items. One of the
two sees the other; whoever takes the pump out of the list hands it to the pool. A pump rests when its thread is listed
as idle by the pool, so the thread that is given the pump again is the one that had it.

One scope (``_core._scope``) serves all calls of a ``map``, as they are cancelled together. Each call runs in a copy of
the context in which ``map`` was called.

Why an end is noticed: who ends a map cancels the scope and clears the items, waits in ``line`` and *then* looks whether
all pumps rest; a pump lists itself as resting and *then* looks at ``line``. A pump that is taken out of the list once
more, by another that saw an item before it was cleared, finds nothing and rests again: it calls nothing.
"""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable
from types import CoroutineType
from typing import Any

from polyloop._core import _overdue, _prims
from polyloop._core._completion import Completion
from polyloop._core._context import here
from polyloop._core._pool import ThreadPool
from polyloop._core._port import Port
from polyloop._core._scope import Scope
from polyloop._core._waiting import wake_next
from polyloop.sync._capacity import CapacityLimiter
from polyloop.tasks._map_board import Board, Outcome

_CORES = _prims.usable_cores()


class Pump(Completion[None]):
    """A job of the pool that works on items until there is none; done when the map was ended and it rests for good."""

    thread: tuple[int, str] | None = None  # identity and name of the thread that had it last

    _goes_on = False  # there are more items, and others that wait for its thread

    def __init__(self, lane: "PumpLane") -> None:
        super().__init__()
        self._lane = lane
        self.port: Port | None = lane.port

    def __repr__(self) -> str:
        return f"<pump of map({self.name})>"

    @property
    def name(self) -> str:
        """What it calls."""
        return self._lane.name

    def execute(self) -> None:
        """Work on items, on this thread."""
        lane = self._lane
        self.thread = (_prims.get_ident(), _prims.current_thread().name)
        here.call_port = lane.port
        here.scope = lane.scope
        try:
            self._goes_on = lane.work()
        finally:
            here.call_port = here.scope = None
            del self, lane  # the frames of a call that failed hold this one: no cycle through it

    def announce(self) -> None:
        """Rest, or make room for others. The thread may be given its next job before this returns."""
        if self._goes_on:
            self._lane.go_on_later(self)
        else:
            self._lane.rest(self)


class PumpLane:
    """The pumps of one ``map``. Home only, but for what the pumps call."""

    def __init__(
        self,
        fn: Callable[[Any], Any],
        context: contextvars.Context,
        limit: int,
        limiter: CapacityLimiter | None,
        pool: ThreadPool,
    ) -> None:
        self.scope = Scope()
        self.port: Port | None = None  # home; set by start()
        self.ahead = limit
        self._fn = fn
        self._context = context  # entered by nobody: copies may be made on any thread
        self._limit = limit
        self._limiter = limiter
        self._pool = pool
        self._board: Board
        self._pumps: list[Pump] = []  # all that were made
        self._dry = False  # a pump has found no item; set by any, a hint
        self._resting: deque[Pump] = deque()  # appended by the pump itself, popped by whoever gives it to the pool

    @property
    def name(self) -> str:
        """What is called."""
        return str(getattr(self._fn, "__qualname__", self._fn))

    def start(self, home: Port, board: Board) -> None:
        """Take up the work; before anything else."""
        self.port = home
        self._board = board

    def feed(self) -> None:
        """An item was added: see that a pump takes it.

        Raises:
            RuntimeError: the system cannot start a thread.
        """
        if not self._resting and len(self._pumps) >= self._limit:
            return
        try:
            pump = self._resting.pop()
        except IndexError:
            if len(self._pumps) >= self._limit:
                return
            pump = Pump(self)
            self._pumps.append(pump)
        try:
            self._pool.submit(pump)
        except BaseException:
            self._resting.append(pump)
            raise

    def starved(self) -> bool:
        """Whether a pump has found no item since this was asked last."""
        dry, self._dry = self._dry, False
        return dry

    def crowded(self) -> bool:
        """Whether there is a call on every core."""
        return len(self._pumps) - len(self._resting) >= _CORES

    def idle(self) -> bool:
        """Whether nothing runs."""
        return len(self._resting) == len(self._pumps)

    def cancel(self, *, abandoned: bool) -> None:
        """Tell the calls that run to stop, after the board was stopped; nobody waits for those that are abandoned."""
        self.scope.cancel()
        for pump in self._pumps:
            if self._pool.withdraw(pump):
                self.rest(pump)
        resting: set[Pump] = set()
        with contextlib.suppress(IndexError):
            while True:  # not copy(), in the middle of which another may be appended
                resting.add(self._resting.popleft())
        self._resting.extend(resting)
        for pump in self._pumps:
            if pump not in resting:
                _overdue.add(pump, abandoned=abandoned)

    def cancel_soon(self) -> None:
        """Tell the calls that run to stop. Any thread, finalisers included."""
        self.scope.cancel()

    def forget(self) -> None:
        """All is over: free the pumps, which hold this object."""
        self._pumps.clear()
        self._resting.clear()

    # For the pumps, on their threads

    def work(self) -> bool:
        """Take items and call until there is none, or somebody waits for a thread; say whether it is the latter."""
        board, waiting = self._board, self._pool._backlog
        take = board.ready.popleft
        while not board.stopped:
            try:
                index, item = take()
            except IndexError:
                return False
            board.bring(self._call(index, item))
            del item  # while the next one is awaited: nobody's argument is kept alive
            if waiting:
                return True
        return False

    def go_on_later(self, pump: Pump) -> None:
        """Let those go first that wait for a thread."""
        try:
            self._pool.submit_last(pump)
        except BaseException as exc:
            self._fail(pump, exc)

    def rest(self, pump: Pump) -> None:
        """Rest; go on at once if an item has come meanwhile."""
        self._dry = True
        self._resting.append(pump)
        board = self._board
        if board.ready and not board.stopped:
            try:
                pump = self._resting.pop()
            except IndexError:  # home has it
                return
            self._submit_again(pump)
        elif self.scope.cancelled and not pump._done:
            pump._complete(None)
        if board.line:  # an end is waited for, or there may be room for more items
            wake_next(board.line)

    def _submit_again(self, pump: Pump) -> None:
        try:
            self._pool.submit(pump)
        except BaseException as exc:
            self._fail(pump, exc)

    def _fail(self, pump: Pump, exc: BaseException) -> None:
        """No thread can be started: one item, at least, tells the consumer."""
        self._resting.append(pump)
        with contextlib.suppress(IndexError):
            self._board.bring((self._board.ready.popleft()[0], None, exc))

    def _call(self, index: int, item: Any) -> Outcome:
        try:
            self.scope.check()  # cancelled since the item was taken
            if self._limiter is None:
                result = self._context.copy().run(self._fn, item)
            else:
                with self._limiter.sync:
                    result = self._context.copy().run(self._fn, item)
        except BaseException as exc:  # SystemExit too: it belongs to the consumer, not to this thread
            # Without this frame; and without a name for the traceback, which would be a cycle through this frame.
            return index, None, exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)
        finally:
            del self, item  # as in execute
        if type(result) is CoroutineType or asyncio.iscoroutine(result):
            return index, None, refuse_coroutine(result)
        return index, result, None


def refuse_coroutine(coro: Any) -> TypeError:
    """The outcome of a function that was taken for a sync one, and made a coroutine."""
    coro.close()
    return TypeError(
        f"map() took the function for a sync one, and it returned {coro!r}; give map() an async function, such as "
        "'async def call(item): return await fn(item)'"
    )

"""The heart of ``map``: what is taken from the source, what runs, and what is yielded next. Home only.

*Home* is the loop of the consumer. An item is *taken* from the source, *ready* for whoever runs the calls (the *lane*),
*running*, *arrived*, and *yielded*. At most ``limit`` run. Between taken and yielded there are at most ``limit`` and
``ahead`` more: what the lane finds ready when a call ends, so that it does not wait for home.

An iterable is read by the consumer itself, when it asks for the next result. An asynchronous one is read by a task of
its own, the *reader*, as its items may come while the consumer waits for a result, and the other way round.

Waking the consumer takes a core from a thread that computes. So if results come fast and there is a call on every core,
the consumer *naps*: it looks at what has arrived by itself, once in ``NAP`` seconds, and is woken before only by a
thread that has nothing to do.

How it ends. ``stop`` lets nothing new begin and cancels what runs; ``close`` waits for that. It is done by whoever
finds out: the consumer that is cancelled or gets a failure, leaves a ``with`` block, or has all results. An iterator
that is dropped can wait for nothing: a task waits instead.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from polyloop._core._context import here
from polyloop._core._migrant import MigratableTask
from polyloop._core._port import Port, current_port
from polyloop._core._waiting import NOTHING, Nothing, until, wake_all
from polyloop.runtime._migrate import pin
from polyloop.tasks._map_board import ANY, NOTHING_NOW, AsTheyCome, Board, InOrder, Lane, Outcome
from polyloop.tasks._progress import Tally
from polyloop.tasks._start import report_failures

#: Most items that are taken beyond ``limit``, unless the limit is higher: some milliseconds of the shortest calls.
MAX_AHEAD = 256

#: Results that a consumer gets in a row before it lets its loop have a turn. A guess.
_IN_A_ROW = 64

#: Seconds of a nap: what a result may come late, where more than one comes in that time. Calls of 1 ms took 3% more
#: processor time than on bare threads with a wake-up each or naps of 2 ms, and 0.3% more with naps of 5 ms.
NAP = 0.005

#: All results were yielded.
END: Final = (-1, None, None)


class Stream:
    """One run of a ``map``, without the iterator that its consumer holds."""

    def __init__(
        self,
        source: Iterator[Any] | AsyncIterator[Any],
        lane: Lane,
        limit: int,
        context: contextvars.Context,
        ordered: bool,
        return_exceptions: bool,
        tally: Tally | None,
    ) -> None:
        self._source: Iterator[Any] | AsyncIterator[Any] | None = source  # None: it has ended
        self._lane = lane
        self._limit = limit
        self._context = context
        self._return_exceptions = return_exceptions
        self._shelf = InOrder() if ordered else AsTheyCome()
        self._tally = tally
        self._board = Board(not return_exceptions)
        self._home: Port | None = None  # None: not begun
        self._consumer: MigratableTask[Any] | None = None
        self._reader: asyncio.Task[None] | None = None  # until it is done
        self._room: asyncio.Future[None] | None = None  # the reader waits for room
        self._ahead = lane.ahead
        self._taken = 0
        self._yielded = 0
        self._in_a_row = 0
        self._waited_at = 0.0  # when the consumer had to wait last, and how many it had got by then
        self._yielded_then = 0
        self._total: int | None = None  # known when the source has ended
        self._source_error: BaseException | None = None
        self._busy = False
        self._closed = False
        self._over = False

    # For the iterator

    def enter(self) -> None:
        """A task is about to wait here.

        Raises:
            RuntimeError: another task waits here, or this is another loop.
        """
        if self._busy:
            raise RuntimeError("map() has one consumer at a time, and another task waits for its next result")
        home = self._home
        if home is not None and home is not here.port and home is not current_port():
            raise RuntimeError(f"the results of a map() are for one loop, and it was begun on {home.name}")
        self._busy = True

    def leave(self) -> None:
        """The task of ``enter`` waits no more."""
        self._busy = False

    @property
    def closed(self) -> bool:
        """Whether nothing will be yielded any more."""
        return self._closed

    async def next(self) -> Outcome:
        """The next outcome to be yielded, or ``END``; its failure is the caller's business."""
        if self._closed:
            return END
        if self._home is None:
            self._begin()
        if self._in_a_row >= _IN_A_ROW:  # nothing else would run on this loop if the results never ran out
            self._in_a_row = 0
            await asyncio.sleep(0)
        self._fill()
        found = self._attempt()
        if isinstance(found, Nothing):
            self._in_a_row = 0
            found = await self._wait()
        self._in_a_row += 1
        if found is not END:
            self._yielded += 1
            self._make_room()
        return found

    async def _wait(self) -> Outcome:
        nap = self._nap()
        try:
            return await until(self._board.line, self._attempt)
        finally:
            if nap is not None:
                nap.cancel()
                self._want()

    def _nap(self) -> asyncio.TimerHandle | None:
        """Begin a nap, if it is worth one."""
        loop = self._loop_of_home()
        now, yielded = loop.time(), self._yielded
        passed, got = now - self._waited_at, yielded - self._yielded_then
        self._waited_at, self._yielded_then = now, yielded
        if not (0 < passed < NAP * got and self._lane.crowded()):
            return None
        self._board.wanted = NOTHING_NOW
        return loop.call_later(NAP, self._end_nap)

    def _end_nap(self) -> None:
        self._want()
        wake_all(self._board.line)

    def _want(self) -> None:
        """Say what the consumer is to be woken for."""
        if not self._closed:
            self._board.wanted = ANY if self._tally is not None else self._shelf.next

    def raises(self, exc: BaseException) -> bool:
        """Whether an outcome's exception is raised rather than yielded."""
        return not self._return_exceptions or isinstance(exc, (SystemExit, KeyboardInterrupt))

    def stop(self, *, abandoned: bool = False) -> None:
        """Let nothing new begin, and cancel what runs."""
        self._closed = True
        board = self._board
        board.wanted = ANY
        board.stop()
        self._lane.cancel(abandoned=abandoned)
        if self._reader is not None:
            self._reader.cancel()

    async def close(self, raising: BaseException | None = None) -> None:
        """``stop``, and wait until nothing runs.

        Args:
            raising: What the caller is about to raise.
        Cancellation: goes on waiting; then raises, unless that is what the caller does anyway.
        """
        if self._home is None:
            self._closed = True
            return
        if not self._closed:
            self.stop()
        cancelled: asyncio.CancelledError | None = None
        while not self._is_over():
            try:
                await until(self._board.line, self._until_over)
            except asyncio.CancelledError as exc:
                cancelled = exc
        self._lane.forget()
        self._report_rest(raising)
        self._let_go()
        if cancelled is not None and not isinstance(raising, asyncio.CancelledError):
            try:
                raise cancelled
            finally:
                del cancelled, raising

    def abandon_soon(self) -> None:
        """Nobody holds the iterator any more. Any thread, in the middle of anything."""
        home = self._home
        if home is None or self._closed:
            return
        self._board.stop()
        self._lane.cancel_soon()
        home.post(self._abandon)

    def _let_go(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.detach()

    # Beginning and reading

    def _begin(self) -> None:
        home = current_port()
        self._lane.start(home, self._board)
        self._home = home
        self._consumer = pin()  # one that migrates: its results come to this loop
        self._want()
        if isinstance(self._source, AsyncIterator):
            reading = self._read(self._source)
            self._reader = home.loop.create_task(reading, name="polyloop.map reader", context=self._context.copy())
            self._reader.add_done_callback(self._reader_ended)

    def _fill(self) -> None:
        """Take items from an iterable, as many as there is room for."""
        source = self._source
        if source is None or isinstance(source, AsyncIterator):
            return
        board = self._board
        while self._has_room() and not board.stopped:
            try:
                item = next(source)
            except StopIteration:
                self._end_source(None)
                return
            except Exception as exc:
                self._end_source(exc)
                return
            self._take(item)

    async def _read(self, source: AsyncIterator[Any]) -> None:
        """The reader: take items from an asynchronous iterable as there is room for them."""
        try:
            async for item in source:
                self._take(item)
                while not self._has_room():
                    self._room = self._loop_of_home().create_future()
                    await self._room
        except BaseException as exc:  # SystemExit too: it is the consumer's
            self._end_source(exc)
        else:
            self._end_source(None)
        finally:
            del self, source  # the exception holds this frame: no cycle through it

    def _reader_ended(self, reader: "asyncio.Task[None]") -> None:
        self._reader = None
        if reader.cancelled() and self._total is None:  # before its first step
            self._end_source(asyncio.CancelledError())
        wake_all(self._board.line)

    def _loop_of_home(self) -> asyncio.AbstractEventLoop:
        assert self._home is not None
        return self._home.loop

    def _has_room(self) -> bool:
        return self._taken - self._yielded < self._limit + self._ahead

    def _make_room(self) -> None:
        room = self._room
        if room is not None and not room.done() and self._has_room():
            room.set_result(None)

    def _grow(self) -> None:
        """If the consumer has to wait and the lane has nothing to do, more items should have been ready."""
        if self._total is None and self._ahead < MAX_AHEAD and self._lane.starved():
            self._ahead = min(2 * self._ahead, MAX_AHEAD)
            self._fill()
            self._make_room()

    def _take(self, item: Any) -> None:
        self._board.ready.append((self._taken, item))
        self._taken += 1
        self._lane.feed()

    def _end_source(self, error: BaseException | None) -> None:
        self._source = None
        self._total = self._taken
        self._source_error = error
        if self._tally is not None and not self._closed:
            self._tally.total = self._total

    # What comes next

    def _attempt(self) -> Outcome | Nothing:
        if self._closed:
            return END
        self._collect()
        found = self._shelf.take()
        if found is not None:
            self._want()
            return found
        if self._total is None or self._yielded < self._total:
            self._grow()
            return NOTHING
        if self._tally is not None:
            self._tally.tell()
        error, self._source_error = self._source_error, None
        return END if error is None else (self._taken, None, error)

    def _collect(self) -> None:
        """Put on the shelf what has arrived."""
        take, add, tally = self._board.arrived.popleft, self._shelf.add, self._tally
        while True:
            try:
                outcome = take()
            except IndexError:
                return
            add(outcome)
            if tally is not None:
                tally.add(outcome[2] is not None)

    # Ending

    def _is_over(self) -> bool:
        self._over = self._over or (self._lane.idle() and self._reader is None)
        return self._over

    def _until_over(self) -> bool | Nothing:
        return self._is_over() or NOTHING

    def _abandon(self) -> None:
        """The iterator was dropped: cancel all, and let a task wait for the end."""
        if self._closed:
            return
        self.stop(abandoned=True)
        self._let_go()
        self._loop_of_home().create_task(self._wait_alone(), name="polyloop.map dropped")

    async def _wait_alone(self) -> None:
        await until(self._board.line, self._until_over)
        self._lane.forget()
        self._report_rest(None)

    def _report_rest(self, raising: BaseException | None) -> None:
        """Hand what failed and will not be raised to the loop's handler, all at once."""
        rest = [*self._shelf.drain(), *self._board.arrived]
        self._board.arrived.clear()
        failures = [exc for _, _, exc in rest if exc is not None]
        if self._source_error is not None:
            failures.append(self._source_error)
            self._source_error = None
        report_failures(self._loop_of_home(), "map()", failures, raising)

"""A one-shot result that any loop and any thread may wait for.

Theory. The completing thread stores the outcome, sets ``_done`` and then appends a mark to the list of waiters; a
waiter appends itself and then reads ``_done``. All appends to one list are ordered by that list's own lock, so: a
waiter that appended before the mark is seen by the completing thread, which wakes all that came before; one that
appended after it sees ``_done`` and wakes itself. Every waiter is popped, and so woken, by exactly one thread. It
relies on ``list.append`` and ``list.pop`` being critical sections. Stress: ``tests/_core/test_completion_stress.py``.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, cast

from polyloop._core import _prims
from polyloop._core._context import here, runs_a_loop
from polyloop._core._errors import copy_exception
from polyloop._core._parking import ThreadWaiter, refuse_on_loop_thread
from polyloop._core._port import Port, current_port, logger

#: A waiter: called once, by any thread, to wake whoever waits. Must not raise.
type Wake = Callable[[], object]


def MARK() -> None:  # noqa: N802 - a constant that happens to be callable, like every waiter
    """Ends the list of waiters of a completion that is done. Nobody waits here."""


def _resolve(future: "asyncio.Future[None]") -> None:
    """Wake the coroutine that is parked on ``future``; on its loop."""
    if not future.done():  # done: the coroutine was cancelled meanwhile
        future.set_result(None)


class Completion[T]:
    """A value, an exception or a cancellation that arrives once, from any thread, for any number of waiters."""

    _done = False
    _result: T | None = None
    _exception: BaseException | None = None
    _spare: BaseException | None = None  # a copy of it, taken before anybody could raise it, and never raised itself
    _cancelled = False

    def __init__(self) -> None:
        self._waiters: list[Wake] = []  # appended and popped by any thread

    def _complete(self, result: T | None, exception: BaseException | None = None) -> None:
        """Publish the outcome; the caller makes sure that it happens once."""
        self._result = result
        if exception is not None:
            self._exception = exception
            self._spare = copy_exception(exception)
            self._cancelled = isinstance(exception, asyncio.CancelledError)
        self._publish()

    def _publish(self) -> None:
        """Announce the outcome that was stored."""
        self._done = True  # after the outcome: whoever reads True reads the outcome
        waiters = self._waiters
        waiters.append(MARK)
        if len(waiters) > 1:  # somebody came before the mark
            self._wake_all()

    def _add_waiter(self, wake: Wake) -> None:
        """Call ``wake`` once when done, at once if it is done already."""
        self._waiters.append(wake)
        if self._done:
            self._wake_all()

    def _drop_waiter(self, wake: Wake) -> None:
        """Forget a waiter that gave up; one that is being woken at this moment is gone already."""
        with contextlib.suppress(ValueError):
            self._waiters.remove(wake)

    def _wake_all(self) -> None:
        waiters = self._waiters
        for _ in range(len(waiters)):  # those who come later find it done, and wake themselves
            try:
                wake = waiters.pop(0)
            except IndexError:  # another thread is waking them too
                return
            wake()

    def _outcome(self) -> T:
        if self._exception is not None:
            raise self._exception_for_me() or self._exception
        return cast("T", self._result)

    def _exception_for_me(self) -> BaseException | None:
        """The exception object itself for the first thread that asks, an equal copy for every other.

        Raising one exception object on two threads at once mixes their tracebacks, and on 3.13t it is a data race that
        can crash the interpreter (``PyException_SetTraceback`` has a critical section from 3.14 on only). So is to copy
        one that is being raised; hence the spare.
        """
        exc = self._exception
        if exc is None:
            return None
        self._mark_retrieved()
        me = _prims.get_ident()
        owner = self.__dict__.setdefault("_raiser", me)  # atomic: the first thread to look stays the owner
        return exc if owner == me else copy_exception(self._spare or exc)

    def _mark_retrieved(self) -> None:
        """Somebody has seen the exception."""

    def done(self) -> bool:
        """Whether the outcome is known. Any thread."""
        return self._done

    def cancelled(self) -> bool:
        """Whether the outcome is a cancellation. Any thread."""
        return self._done and self._cancelled

    def __await__(self) -> Generator[Any, None, T]:
        while not self._done:
            yield from self._wait()
        return self._outcome()

    def _wait(self) -> Generator[Any]:
        """Park the calling coroutine once."""
        port = here.port
        if port is None or port.loop is not asyncio._get_running_loop():
            port = current_port()
        future = asyncio.Future[None](loop=port.loop)
        wake = partial(port.post, partial(_resolve, future))
        self._waiters.append(wake)
        if self._done:
            self._wake_all()
        try:
            yield from future
        except BaseException:
            self._drop_waiter(wake)
            raise

    def _block(self, timeout: float | None, call: str) -> None:
        """Wait on a plain thread.

        Raises:
            BlockingCallError: the calling thread runs a loop.
            TimeoutError: ``timeout`` seconds passed first.
        """
        if self._done:
            return
        refuse_on_loop_thread(f"{self!r}{call}", "await handle")
        waiter = ThreadWaiter()
        self._add_waiter(waiter.wake)
        try:
            woken = waiter.park(timeout)
        except BaseException:  # KeyboardInterrupt on the main thread
            self._drop_waiter(waiter.wake)
            raise
        if not woken:
            self._drop_waiter(waiter.wake)
            raise TimeoutError(f"{self!r} was not done after {timeout} s")


class Callback[H]:
    """A waiter that calls ``fn(handle)``: on the loop it was added from, else where the handle completes."""

    __slots__ = ("_context", "_handle", "_port", "fn")

    def __init__(self, fn: Callable[[H], object], handle: H, context: contextvars.Context | None) -> None:
        self.fn = fn
        self._handle = handle
        self._context = contextvars.copy_context() if context is None else context
        self._port: Port | None = current_port() if runs_a_loop() else None

    def __call__(self) -> None:
        port = self._port
        if port is None:
            self._call()
        elif port.is_current():
            self._schedule()
        else:
            port.post(self._schedule)

    def _schedule(self) -> None:
        assert self._port is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed: as asyncio, nobody is called
            self._port.loop.call_soon(self.fn, self._handle, context=self._context)

    def _call(self) -> None:
        try:
            self._context.run(self.fn, self._handle)
        except Exception:
            logger.exception("polyloop: a done callback of %r raised", self._handle)


class AllDone:
    """A waiter that completes ``target`` once it was woken ``count`` times, from any threads."""

    __slots__ = ("_left", "_target")

    def __init__(self, target: Completion[None], count: int) -> None:
        self._target = target
        self._left = list(range(count))

    def __call__(self) -> None:
        if self._left.pop() == 0:  # atomic: each number has one popper, and 0 is popped last
            self._target._complete(None)


def all_done(completions: Iterable[Completion[Any]]) -> Completion[None]:
    """A completion that is done when all of ``completions`` are, however they end."""
    several = list(completions)
    target = Completion[None]()
    if not several:
        target._complete(None)
    waiter = AllDone(target, len(several))
    for completion in several:
        completion._add_waiter(waiter)
    return target

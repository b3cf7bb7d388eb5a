"""A one-shot result that any loop and any thread may wait for.

Theory. The waiters are the keys of a dict: an ordered set that forgets one of many in constant time. The completing
thread stores the outcome, sets ``_done``, and then *looks* at the dict, by a ``pop`` that finds nothing; a waiter
enters itself and then reads ``_done``. All that is done to one dict is ordered by that dict's own lock, so: a waiter
that entered before the look is seen by the completing thread, which wakes all that came before, in their order; one
that entered after it sees ``_done`` and wakes itself. A waiter is woken by whoever removes it, which is exactly one. It
relies on setting and popping a key of a dict, and copying it, being critical sections (a ``pop`` is one for an empty
dict too: CPython 3.13, ``dictobject.c``). Stress: ``tests/_core/test_completion_stress.py``.
"""

import asyncio
import contextlib
import contextvars
import math
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from polyloop._core import _prims
from polyloop._core._context import here, runs_a_loop
from polyloop._core._errors import copy_exception
from polyloop._core._parking import ThreadWaiter, refuse_on_loop_thread, running_migrant
from polyloop._core._port import Port, current_port, logger
from polyloop._core._scope import protected

if TYPE_CHECKING:
    from polyloop._core._migrant import MigrantWaiter

#: A waiter: called once, by any thread, to wake whoever waits. Must not raise.
type Wake = Callable[[], object]


def LOOK() -> None:  # noqa: N802 - a constant that happens to be callable, like every waiter
    """No waiter is this one: to pop it is to look at the waiters, in a critical section of their dict."""


def set_once[V](owner: object, name: str, value: V) -> V:
    """Set an attribute of one instance unless it is set, and return what it is then: atomic, the first thread wins."""
    return cast("V", owner.__dict__.setdefault(name, value))


def _reraise(exc: BaseException) -> None:
    raise exc


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
        self._waiters: dict[Wake, object] = {}  # with values that are true; entered and popped by any thread

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
        waiters.pop(LOOK, None)
        if waiters:  # somebody came before the look
            self._wake_all()

    def _add_waiter(self, wake: Wake) -> None:
        """Call ``wake``, which waits nowhere else here, once when done; at once if it is done already."""
        self._waiters[wake] = True
        if self._done and self._waiters.pop(wake, False):
            wake()

    def _add_callback(self, callback: "SameCallback") -> None:
        """``_add_waiter`` for one whose function may have been added before."""
        while self._waiters.setdefault(callback, callback) is not callback:
            callback.number += 1
        if self._done and self._waiters.pop(callback, False):
            callback()

    def _drop_waiter(self, wake: Wake) -> bool:
        """Forget a waiter that gave up; ``False`` if it is being woken at this moment, or was."""
        return bool(self._waiters.pop(wake, False))

    def _wake_all(self) -> None:
        """Wake those who came before the look; those who come later find it done, and wake themselves."""
        waiters = self._waiters
        try:
            for wake in waiters.copy():
                if waiters.pop(wake, False):  # atomic: whoever removes a waiter wakes it
                    wake()
        except BaseException:  # of a signal handler that came in between: the others are owed their wake
            self._wake_all()
            raise

    def _outcome(self) -> T:
        exc = self._exception
        if exc is None:
            return cast("T", self._result)
        try:
            raise self._exception_for_me() or exc
        finally:
            del self, exc  # the traceback holds this frame: no cycle through it

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
        owner = set_once(self, "_raiser", me)  # the first thread to look stays the owner
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
        try:
            while not self._done:
                yield from self._wait()
            return self._outcome()
        finally:
            del self  # as in _outcome

    def _wait(self) -> Generator[Any]:
        """Park the calling coroutine once."""
        migrant = running_migrant()
        if migrant is not None:
            yield from self._park_migrant(migrant.waiter())
            return
        port = here.port
        if port is None or port.loop is not asyncio._get_running_loop():
            port = current_port()
        future = asyncio.Future[None](loop=port.loop)
        wake = partial(port.post, partial(_resolve, future))
        self._waiters[wake] = True
        if self._done and self._waiters.pop(wake, False):
            return
        try:
            yield from future
        except BaseException:
            self._drop_waiter(wake)
            raise

    def _park_migrant(self, waiter: "MigrantWaiter") -> Generator[Any]:
        self._waiters[waiter] = True
        if self._done and self._waiters.pop(waiter, False):
            return
        try:
            yield waiter
        except BaseException:
            self._drop_waiter(waiter)
            raise

    def _block(self, timeout: float | None, call: str) -> None:
        """Wait on a plain thread.

        Raises:
            BlockingCallError: the calling thread runs a loop.
            CancelledError: the call was cancelled that this thread runs.
            TimeoutError: ``timeout`` seconds passed first.
            ValueError: ``timeout`` is NaN.
        """
        if self._done:
            return
        if timeout is not None and math.isnan(timeout):
            raise ValueError(f"'timeout' must be a number, got {timeout!r}")
        refuse_on_loop_thread(f"{self!r}{call}", "await handle")
        if here.scope is None and here.pool is None:
            woken = self._park(timeout)
        else:
            with protected(), here.pool.lending() if here.pool is not None else contextlib.nullcontext():
                woken = self._park(timeout)  # for what may need a thread itself
        if not woken:
            raise TimeoutError(f"{self!r} was not done after {timeout} s")

    def _park(self, timeout: float | None) -> bool:
        waiter = ThreadWaiter()
        self._add_waiter(waiter.wake)
        try:
            woken = waiter.park(timeout)
        except BaseException:  # KeyboardInterrupt on the main thread, or the end of this thread's call
            self._drop_waiter(waiter.wake)
            raise
        if not woken:
            self._drop_waiter(waiter.wake)
        return woken


class SameCallback:
    """Finds a callback among the waiters: the one of its number of those with an equal function."""

    __slots__ = ("fn", "number")

    def __init__(self, fn: Callable[..., object], number: int = 0) -> None:
        self.fn = fn
        self.number = number

    def __hash__(self) -> int:
        try:
            return hash((self.fn, self.number))
        except TypeError:  # an unhashable function
            return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameCallback) and other.number == self.number and bool(other.fn == self.fn)

    def __call__(self) -> None:
        raise NotImplementedError


class Callback[H](SameCallback):
    """A waiter that calls ``fn(handle)``: on the loop it was added from, else where the handle completes."""

    __slots__ = ("_context", "_handle", "_port")

    def __init__(self, fn: Callable[[H], object], handle: H, context: contextvars.Context | None) -> None:
        super().__init__(fn)
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
        except BaseException as exc:  # the CancelledError of handle.result() too: others wait for their wake
            port = here.port
            if isinstance(exc, (SystemExit, KeyboardInterrupt)) and port is not None:
                port.post(_reraise, exc)  # leaves the loop of this thread, as from a callback of asyncio
            else:
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
    several = dict.fromkeys(completions)
    target = Completion[None]()
    if not several:
        target._complete(None)
    waiter = AllDone(target, len(several))
    for completion in several:
        completion._add_waiter(waiter)
    return target

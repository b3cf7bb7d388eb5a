"""One offloaded call: what runs on the thread, and how its caller waits for it on a loop."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

from polyloop._core._completion import Completion
from polyloop._core._context import here
from polyloop._core._port import Port
from polyloop.sync._capacity import CapacityLimiter


class Call[T](Completion[T]):
    """A call of sync code, run in the context of whoever made it.

    Made on a loop; ``execute`` and ``announce`` run on the thread, once each, in this order.

    A limiter's token that it holds is returned when the thread is done with it, which may be long after the caller has
    stopped waiting.
    """

    def __init__(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], port: Port | None) -> None:
        super().__init__()
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self._context = contextvars.copy_context()
        self._port = port
        self._outcome_here: tuple[T | None, BaseException | None] = (None, None)
        self._tokens: list[CapacityLimiter] = []  # the limiter to which this call owes a token, if any

    def __repr__(self) -> str:
        return f"<call of {getattr(self._fn, '__qualname__', self._fn)!r}>"

    def execute(self) -> None:
        """Run the function on this thread and keep its outcome."""
        here.call_port = self._port
        try:
            self._outcome_here = (self._context.run(self._fn, *self._args, **self._kwargs), None)
        except BaseException as exc:  # SystemExit too: it belongs to the awaiter, not to this thread
            # Without this frame, which the awaiter does not know.
            self._outcome_here = (None, exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next))
        finally:
            here.call_port = None
            del self  # the frames of the call hold this one, their caller's: no cycle through it

    def announce(self) -> None:
        """Return the token, then tell whoever waits."""
        result, exc = self._outcome_here
        self._outcome_here = (None, None)
        self.give_token_back()
        self._complete(result, exc)

    async def borrow(self, limiter: CapacityLimiter) -> None:
        """Wait for a token of ``limiter``; this call owes it from then on."""
        await limiter.acquire_on_behalf_of(self)
        self._tokens.append(limiter)

    def give_token_back(self) -> None:
        """Return the limiter's token, if this call still holds one."""
        try:
            limiter = self._tokens.pop()  # atomic: of the thread and the canceller one returns it
        except IndexError:
            return
        limiter.release_on_behalf_of(self)


async def finish[T](call: Call[T], withdraw: Callable[[Call[T]], bool], abandon_on_cancel: bool) -> T:
    """Wait for a submitted call.

    Cancellation: a call that no thread has taken is withdrawn; else the wait goes on until the thread is done (so that
    what it uses is not pulled away under it), or ends at once with ``abandon_on_cancel``. Then ``CancelledError``,
    whose context is the exception of the call if it had one.
    """
    try:
        return await call
    except asyncio.CancelledError as exc:
        if withdraw(call):
            call.give_token_back()
        elif not abandon_on_cancel:
            await _wait_out(call)
            if exc.__context__ is None and exc is not call._exception:
                exc.__context__ = call._exception_for_me()
        raise
    finally:
        # Nobody else waits. The traceback holds this frame and its callers', and those the call: no cycle through it.
        call._exception = call._spare = None


async def _wait_out(call: Call[Any]) -> None:
    """Wait for the end of the call, whatever cancellations come meanwhile; the first one is being raised already."""
    while not call.done():
        try:
            await _Parked(call)
        except asyncio.CancelledError:
            continue


class _Parked:
    """Awaits one wake of a completion, without its outcome."""

    __slots__ = ("_completion",)

    def __init__(self, completion: Completion[Any]) -> None:
        self._completion = completion

    def __await__(self) -> Any:
        return self._completion._wait()

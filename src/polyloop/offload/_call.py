"""One offloaded call: what runs on the thread, and how its caller waits for it on a loop.

Cancelling a call. One that no thread has begun is withdrawn. One that runs is told so by its scope (``_core._scope``):
whatever it waits for on polyloop raises. What its caller does meanwhile is the caller's policy, ``OnCancel``.
"""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Literal

from polyloop._core import _overdue, _prims
from polyloop._core._completion import Completion
from polyloop._core._context import here
from polyloop._core._port import Port, current_port
from polyloop._core._scope import Scope
from polyloop.sync._capacity import CapacityLimiter

#: What a cancelled call does whose function runs already; see ``to_thread``.
type OnCancel = Literal["wait", "abandon", "interrupt"]


def check_policy(on_cancel: OnCancel) -> None:
    """Raise ``ValueError`` for what is no policy."""
    if on_cancel not in ("wait", "abandon", "interrupt"):
        raise ValueError(f"on_cancel must be 'wait', 'abandon' or 'interrupt', got {on_cancel!r}")


class Call[T](Completion[T]):
    """A call of sync code, run in the context of whoever made it.

    Made on a loop; ``execute`` and ``announce`` run on the thread, once each, in this order.

    A limiter's token that it holds is returned when the thread is done with it, which may be long after the caller has
    stopped waiting.
    """

    thread: tuple[int, str] | None = None  # identity and name of the thread that has begun it

    def __init__(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], port: Port | None) -> None:
        super().__init__()
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self._context = contextvars.copy_context()
        self.port = port
        self._scope = Scope()
        self._outcome_here: tuple[T | None, BaseException | None] = (None, None)
        self._tokens: list[tuple[CapacityLimiter, Any]] = []  # what this call owes to limiters: one, as a rule, or none

    def __repr__(self) -> str:
        return f"<call of {self.name!r}>"

    @property
    def name(self) -> str:
        """What is called."""
        return str(getattr(self._fn, "__qualname__", self._fn))

    def execute(self) -> None:
        """Run the function on this thread and keep its outcome."""
        self.thread = (_prims.get_ident(), _prims.current_thread().name)
        here.call_port = self.port
        here.scope = self._scope
        try:
            self._outcome_here = (self._run(), None)
        except BaseException as exc:  # SystemExit too: it belongs to the awaiter, not to this thread
            # Without the two frames that the awaiter does not know.
            trace = exc.__traceback__ and exc.__traceback__.tb_next and exc.__traceback__.tb_next.tb_next
            self._outcome_here = (None, exc.with_traceback(trace))
            del trace  # it leads to this frame, as below
        finally:
            here.call_port = here.scope = None
            del self  # the frames of the call hold this one, their caller's: no cycle through it

    def _run(self) -> T:
        try:
            self._scope.check()  # cancelled between leaving the queue and here
            return self._context.run(self._fn, *self._args, **self._kwargs)
        finally:
            del self  # as in execute

    def announce(self) -> None:
        """Return the token, then tell whoever waits."""
        result, exc = self._outcome_here
        self._outcome_here = (None, None)
        self.end(result, exc)

    def end(self, result: T | None, exc: BaseException | None) -> None:
        """``announce`` an outcome that came another way than by ``execute``."""
        self.give_token_back()
        self._complete(result, exc)

    def cancel_running(self) -> bool:
        """Tell the function to stop; ``True`` if its thread was asleep, and will hear of it at once. Any thread."""
        return self._scope.cancel()

    async def borrow(self, limiter: CapacityLimiter) -> None:
        """Wait for a token of ``limiter``; this call owes it from then on."""
        self._tokens.append((limiter, await limiter._borrow()))

    def give_token_back(self) -> None:
        """Return the limiters' tokens that this call still holds."""
        tokens = self._tokens
        while tokens:
            try:
                limiter, token = tokens.pop()  # atomic: of the thread and the canceller one returns it
            except IndexError:
                return
            limiter._give_back(token)


def new_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], on_cancel: OnCancel) -> Call[Any]:
    """A call for the running task.

    Raises:
        ValueError: ``on_cancel`` is no policy.
    """
    if on_cancel == "interrupt":
        from polyloop.offload._interrupt import InterruptibleCall  # noqa: PLC0415 - needs ctypes, and is a call itself

        return InterruptibleCall(fn, args, kwargs, current_port())
    check_policy(on_cancel)
    return Call(fn, args, kwargs, current_port())


async def finish[T](call: Call[T], withdraw: Callable[[Call[T]], bool], on_cancel: OnCancel) -> T:
    """Wait for a submitted call.

    Cancellation: a call that no thread has taken is withdrawn; else its function is told to stop, and the wait goes on
    until the thread is done (so that what it uses is not pulled away under it), or ends at once with ``"abandon"``.
    Then ``CancelledError``, whose context is the exception of the call if it had one.
    """
    try:
        return await call
    except asyncio.CancelledError as exc:
        if withdraw(call):
            call.give_token_back()
        else:
            if not call.done():
                call.cancel_running()
                _overdue.add(call, abandoned=on_cancel == "abandon")
            if on_cancel != "abandon":
                await _wait_out(call)
                _set_context(exc, call)
        raise
    except GeneratorExit:  # closed with the coroutine that waits: nobody does any more
        if withdraw(call):
            call.give_token_back()
        elif not call.done():
            call.cancel_running()
            _overdue.add(call, abandoned=True)
        raise
    finally:
        # Nobody else waits. The traceback holds this frame and its callers', and those the call: no cycle through it.
        call._exception = call._spare = None


def _set_context(exc: BaseException, call: Call[Any]) -> None:
    """What the function raised is the context of its caller's cancellation, unless it is that same cancellation."""
    raised = call._exception_for_me()
    if isinstance(raised, asyncio.CancelledError):
        raised = raised.__context__  # an interrupt may come when the function has raised
    if raised is not exc and exc.__context__ is None and not isinstance(raised, asyncio.CancelledError):
        exc.__context__ = raised


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

"""From sync code back to a loop, and what else sync code that runs for a task may do."""

import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from polyloop._core import _prims
from polyloop._core._context import here
from polyloop._core._handle import TaskHandle
from polyloop._core._parking import ThreadWaiter, refuse_on_loop_thread
from polyloop._core._port import Port
from polyloop._core._scope import check_cancelled, protected, shield
from polyloop.runtime._current import current_runtime
from polyloop.runtime._runtime import Runtime


def run[*Ts, T](fn: Callable[[*Ts], Coroutine[Any, Any, T]], /, *args: *Ts, runtime: Runtime | None = None) -> T:
    """Run the async function ``fn`` as a task and wait for it, on a thread; ``anyio.from_thread.run``.

    In a call of ``to_thread`` and the like the task runs on the loop that made the call, where the caller's objects
    live. On any other thread it runs on one of ``runtime``'s loops, or of the only one that is running. It gets a copy
    of the thread's context.

    A thread of the pool that waits here lends its place, so that async code which offloads in its turn finds a thread
    on a pool that is full, too.

    Args:
        runtime: Where to run it, instead of on the loop that made the call.
    Returns:
        What ``fn`` returned.
    Raises:
        BlockingCallError: this thread runs a loop; await the coroutine there.
        NoRuntimeError: no task has made a call on this thread, and no runtime, or more than one, is running.
        RuntimeClosedError: the runtime is closing, or the loop was closed.
        TypeError: ``fn`` is not an async function.
        BaseException: what ``fn`` raised.
    Cancellation: when the call was cancelled that this thread runs, the task is cancelled, and its end waited for. What
    it raises then is the context of the ``CancelledError``.
    Thread safety: any thread that runs no loop.

    .. versionadded:: 0.3
    """
    refuse_on_loop_thread("from_thread.run()", "await fn()")
    check_cancelled()
    with protected():
        port = here.call_port
        if runtime is not None or port is None:
            handle = (current_runtime() if runtime is None else runtime).spawn(fn, *args)
        else:
            handle = _start(port, fn, args)
        try:
            handle._block(None, ".result()")
        except BaseException as exc:  # cancelled, or KeyboardInterrupt on the main thread
            handle.cancel()
            with shield():
                handle._block(None, ".result()")
            if exc.__context__ is None and not handle.cancelled():
                exc.__context__ = handle._exception_for_me()
            raise
        else:
            return handle._outcome()
        finally:
            del handle  # it has the exception, whose traceback has this frame


def _start(port: Port, fn: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> TaskHandle[Any]:
    """Start ``fn(*args)`` on the loop of ``port``."""
    coro = fn(*args)
    if not hasattr(coro, "send"):
        raise TypeError(f"from_thread.run() needs an async function, and {fn!r} returned {coro!r}; use run_sync()")
    handle = TaskHandle(coro, None, None)
    handle._context = contextvars.copy_context()
    handle._claim_context(port)
    port.admit(handle, False)
    return handle


def run_sync[*Ts, T](fn: Callable[[*Ts], T], /, *args: *Ts, runtime: Runtime | None = None) -> T:
    """``run`` for a sync function: call it on the thread of the loop, between two steps of tasks.

    For objects that belong to that loop, such as transports and asyncio's own primitives.

    Raises, cancellation, thread safety: as ``run``; a function that runs already is not interrupted.

    .. versionadded:: 0.3
    """

    async def call() -> T:
        return fn(*args)

    return run(call, runtime=runtime)


def sleep_sync(seconds: float) -> None:
    """Sleep on a plain thread; ``time.sleep`` that ends when the call is cancelled that this thread runs.

    Args:
        seconds: How long; 0 and below return at once.
    Raises:
        BlockingCallError: this thread runs a loop; use ``await asyncio.sleep(seconds)``.
        ValueError: ``seconds`` is not a number.
    Cancellation: raises ``CancelledError`` at once.
    Thread safety: any thread.

    .. versionadded:: 0.3
    """
    if seconds != seconds:  # noqa: PLR0124 - NaN
        raise ValueError(f"seconds must be a number, got {seconds!r}")
    refuse_on_loop_thread(f"sleep_sync({seconds!r})", f"await asyncio.sleep({seconds!r})", seconds)
    check_cancelled()
    if seconds > 0:
        ThreadWaiter().park(seconds if seconds <= _prims.TIMEOUT_MAX else None, spin=False)

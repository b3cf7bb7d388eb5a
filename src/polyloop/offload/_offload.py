"""``offload``: run a function on threads, processes, interpreters, a cluster, or any executor."""

import contextvars
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, overload

from polyloop._core._pool import shared
from polyloop.offload._call import Call, OnCancel, finish, new_call
from polyloop.offload._errand import on_executor
from polyloop.offload._targets import OffloadTo, Target, resolve
from polyloop.offload._to_thread import on_pool
from polyloop.runtime._executor import is_async_function
from polyloop.sync._capacity import CapacityLimiter

#: Of the calls that compute, the one on whose thread this context, or the one it is a copy of, was made.
_outer: contextvars.ContextVar[weakref.ref[Call[Any]] | None] = contextvars.ContextVar("polyloop_offload", default=None)


@overload
async def offload[*Ts, T](
    fn: Callable[[*Ts], Coroutine[Any, Any, T]],
    /,
    *args: *Ts,
    on: OffloadTo | None = None,
    limiter: CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
) -> T: ...
@overload
async def offload[*Ts, T](
    fn: Callable[[*Ts], T],
    /,
    *args: *Ts,
    on: OffloadTo | None = None,
    limiter: CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
) -> T: ...
@overload
async def offload[T](
    fn: Callable[..., Coroutine[Any, Any, T]],
    /,
    *args: Any,
    on: OffloadTo | None = None,
    limiter: CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
    **kwargs: Any,
) -> T: ...
@overload
async def offload[T](
    fn: Callable[..., T],
    /,
    *args: Any,
    on: OffloadTo | None = None,
    limiter: CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
    **kwargs: Any,
) -> T: ...
async def offload(  # type: ignore[misc]  # as to_thread
    fn: Callable[..., Any],
    /,
    *args: Any,
    on: OffloadTo | None = None,
    limiter: CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
    **kwargs: Any,
) -> Any:
    """Run ``fn(*args, **kwargs)`` wherever ``on`` says, and wait for it; ``to_thread`` for any place.

    Args:
        on: Where. ``"threads"``: as ``to_thread``. ``"cpu"``, for functions that compute: threads, as many at once as
            there are cores, where the interpreter runs without the GIL at this moment; else processes. ``"processes"``:
            a pool that all calls of this process share; ``"interpreters"``, from CPython 3.14 on, likewise. The address
            of a Dask cluster, as in ``"tcp://host:8786"``. Or any ``concurrent.futures.Executor``. By default the
            environment variable ``POLYLOOP_OFFLOAD`` says it, in the same words, and else it is ``"threads"``.
        limiter: Limits how many of its calls run at once, over all loops.
        on_cancel: What a cancelled call does whose function runs already; see ``to_thread``. Functions on threads of
            this process are told; others go on to their end, and ``"interrupt"`` is not for them.
    Returns:
        What ``fn`` returned. What goes to other processes and interpreters, and comes back, is pickled.
    Raises:
        BaseException: what ``fn`` raised. From another process its ``__cause__`` shows the traceback there.
        BrokenProcessPool: a process has died. So do all calls in the shared pool; the next one gets a new pool.
        ModuleNotFoundError: ``on`` is the address of a cluster, and the extra ``polyloop[dask]`` is not installed.
        TypeError: ``fn`` is an async function, and ``on`` not a place that runs such: a cluster, or a runtime's
            ``as_executor()``.
        ValueError: ``on`` is no place that is known, or not to be had here; or ``on_cancel`` no policy, or not for it.
    Cancellation: a call that has not begun is never made. Else see ``on_cancel``.
    Thread safety: any task on any loop. On threads of this process, and a runtime's executor, ``fn`` runs in a copy of
    the caller's context; elsewhere without it.

    .. versionadded:: 0.3
    """
    return await on_target(fn, args, kwargs, resolve(on), limiter, on_cancel)


async def on_target(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Target,
    limiter: CapacityLimiter | None,
    on_cancel: OnCancel,
) -> Any:
    """``offload`` with its options apart from the function's own arguments."""
    if not target.coroutines and is_async_function(fn):
        raise TypeError(
            f"{fn!r} is an async function, which is for a loop: await it, or spawn it; offload() takes async functions"
            " with on= a cluster or Runtime.as_executor()"
        )
    if target.executor is not None:
        return await on_executor(fn, args, kwargs, None, target.executor, limiter, on_cancel)
    if target.limiter is None:
        return await on_pool(fn, args, kwargs, limiter, on_cancel)
    return await _compute(fn, args, kwargs, target.limiter, limiter, on_cancel)


async def _compute(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cores: CapacityLimiter,
    limiter: CapacityLimiter | None,
    on_cancel: OnCancel,
) -> Any:
    """On a thread, with a token of ``cores``.

    A call that is made for a call which computes (by way of ``from_thread.run``) has no token: the outer one waits with
    its own, and as many of those as there are cores would wait for ever.
    """
    call = new_call(fn, args, kwargs, on_cancel)
    outer = _outer.get()
    inner = outer is not None and (of := outer()) is not None and not of.done()
    call._context.run(_outer.set, weakref.ref(call))
    pool = shared.pool
    try:
        if limiter is not None:
            await call.borrow(limiter)
        if not inner:
            await call.borrow(cores)
        pool.submit(call)
    except BaseException:  # cancelled, or the system cannot start a thread
        call.give_token_back()
        raise
    return await finish(call, pool.withdraw, on_cancel)

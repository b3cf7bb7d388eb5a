"""``to_thread``: run sync code on the process-wide pool of threads."""

from collections.abc import Callable
from typing import Any, overload

from polyloop._core._pool import shared
from polyloop._core._port import current_port
from polyloop.offload._call import Call, finish
from polyloop.sync._capacity import CapacityLimiter


@overload
async def to_thread[*Ts, T](
    fn: Callable[[*Ts], T], /, *args: *Ts, limiter: CapacityLimiter | None = None, abandon_on_cancel: bool = False
) -> T: ...
@overload
async def to_thread[T](
    fn: Callable[..., T],
    /,
    *args: Any,
    limiter: CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
    **kwargs: Any,
) -> T: ...
async def to_thread(  # type: ignore[misc]  # mypy takes `*args: Any` to be less than `*args: *Ts`
    fn: Callable[..., Any],
    /,
    *args: Any,
    limiter: CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
    **kwargs: Any,
) -> Any:
    """Run ``fn(*args, **kwargs)`` on a thread and wait for it; ``asyncio.to_thread`` on one pool for all loops.

    Without the GIL such calls run in parallel, on every core. The pool grows as calls come, up to
    ``thread_pool().max_threads``; more calls than that wait for a thread. For work that computes, pass a ``limiter`` of
    as many tokens as there are cores.

    Args:
        limiter: Limits how many of its calls run at once, over all loops; first come, first served.
        abandon_on_cancel: What a cancelled call does whose function runs already: wait for it (the default, as anyio
            does, so that nothing is pulled away under the function) or leave it to itself and drop its result.
    Returns:
        What ``fn`` returned.
    Raises:
        BaseException: what ``fn`` raised.
    Cancellation: a call that no thread has taken yet is never made. Else see ``abandon_on_cancel``: an exception of a
    function that was waited for becomes the context of the ``CancelledError``. A limiter's token stays borrowed until
    the thread is done.
    Thread safety: any task on any loop. ``fn`` runs in a copy of the caller's context; what it sets there stays there.

    .. versionadded:: 0.1
    """
    return await on_pool(fn, args, kwargs, limiter, abandon_on_cancel)


async def on_pool(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    limiter: CapacityLimiter | None,
    abandon_on_cancel: bool,
) -> Any:
    """``to_thread`` with its options apart from the function's own arguments."""
    call: Call[Any] = Call(fn, args, kwargs, current_port())
    if limiter is not None:
        await call.borrow(limiter)
    pool = shared.pool
    try:
        pool.submit(call)
    except BaseException:  # the system cannot start a thread
        call.give_token_back()
        raise
    return await finish(call, pool.withdraw, abandon_on_cancel)

"""``to_thread``: run sync code on the process-wide pool of threads."""

from collections.abc import Callable
from typing import Any, overload

from polyloop._core._pool import shared
from polyloop.offload._call import OnCancel, finish, new_call
from polyloop.sync._capacity import CapacityLimiter


@overload
async def to_thread[*Ts, T](
    fn: Callable[[*Ts], T], /, *args: *Ts, limiter: CapacityLimiter | None = None, on_cancel: OnCancel = "wait"
) -> T: ...
@overload
async def to_thread[T](
    fn: Callable[..., T],
    /,
    *args: Any,
    limiter: CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
    **kwargs: Any,
) -> T: ...
async def to_thread(  # type: ignore[misc]  # mypy takes `*args: Any` to be less than `*args: *Ts`
    fn: Callable[..., Any],
    /,
    *args: Any,
    limiter: CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
    **kwargs: Any,
) -> Any:
    """Run ``fn(*args, **kwargs)`` on a thread and wait for it; ``asyncio.to_thread`` on one pool for all loops.

    Without the GIL such calls run in parallel, on every core. The pool grows as calls come, up to
    ``thread_pool().max_threads``; more calls than that wait for a thread. For work that computes, pass a ``limiter`` of
    as many tokens as there are cores.

    Args:
        limiter: Limits how many of its calls run at once, over all loops; first come, first served.
        on_cancel: What a cancelled call does whose function runs already. In any case the function is told: whatever
            it waits for on polyloop raises ``CancelledError`` in it, and so does ``from_thread.check_cancelled``.
            ``"wait"`` waits for its end, so that nothing is pulled away under it. ``"abandon"`` leaves it to itself and
            drops its result; it is counted, and named when the runtime closes. ``"interrupt"`` waits too, and raises
            ``CancelledError`` between any two bytecodes of the function: a last resort, see "Cancelling sync code" in
            the documentation for what it can break, and what it cannot reach.
    Returns:
        What ``fn`` returned.
    Raises:
        BaseException: what ``fn`` raised.
        ValueError: ``on_cancel`` is no policy.
    Cancellation: a call that no thread has taken yet is never made. Else see ``on_cancel``: an exception of a function
    that was waited for becomes the context of the ``CancelledError``. A limiter's token stays borrowed until the thread
    is done.
    Thread safety: any task on any loop. ``fn`` runs in a copy of the caller's context; what it sets there stays there.

    .. versionadded:: 0.1
    """
    return await on_pool(fn, args, kwargs, limiter, on_cancel)


async def on_pool(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    limiter: CapacityLimiter | None,
    on_cancel: OnCancel,
) -> Any:
    """``to_thread`` with its options apart from the function's own arguments."""
    call = new_call(fn, args, kwargs, on_cancel)
    if limiter is not None:
        await call.borrow(limiter)
    pool = shared.pool
    try:
        pool.submit(call)
    except BaseException:  # the system cannot start a thread
        call.give_token_back()
        raise
    return await finish(call, pool.withdraw, on_cancel)

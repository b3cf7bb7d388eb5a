"""``async_wrap``: a sync function made async, by running it on a thread or on any executor."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, overload

from polyloop.offload._call import OnCancel, check_policy
from polyloop.offload._errand import on_executor
from polyloop.offload._to_thread import on_pool
from polyloop.sync._capacity import CapacityLimiter


@overload
def async_wrap[**P, T](fn: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def async_wrap[**P, T](
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: Executor | None = None,
    limit: int | CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
) -> Callable[[Callable[P, T]], Callable[P, Coroutine[Any, Any, T]]]: ...
def async_wrap(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: Executor | None = None,
    limit: int | CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
) -> Any:
    """Make a sync function or method async: each call runs on a thread and is awaited.

    Use it bare or with options; signature, types, name and docstring are kept::

        @polyloop.async_wrap(limit=2)
        def checksum(path: Path) -> str: ...

        digest = await checksum(path)  # on any loop

    Args:
        loop: Run the calls on this loop's default executor (see ``loop.set_default_executor``) instead of the
            process-wide pool. It must be running when a call is made. With ``executor`` too, that one is used, as
            ``loop.run_in_executor`` does.
        executor: Run the calls on this ``concurrent.futures`` executor. The threads of a ``ThreadPoolExecutor`` see the
            caller's context; other executors get the bare call. What goes to a process pool must pickle; the function
            itself is found by its name there, decorated as it is.
        limit: Most calls of this function that run at once, over all loops; a ``CapacityLimiter`` to share it.
        on_cancel: What a cancelled call does whose function runs already; see ``to_thread``.
    Returns:
        An async function, or a decorator that makes one.
    Raises:
        TypeError: the function is async already, or ``@async_wrap`` stands above ``@staticmethod``.
        ValueError: ``limit`` is below 1, or ``on_cancel`` no policy.
        RuntimeError: at the call: ``loop`` does not run, or the executor was shut down.
    Cancellation: as ``to_thread``. In other processes a function that runs is not told of it.
    Thread safety: the async function may be called on any loop, on several at once.

    .. versionadded:: 0.1
    """
    check_policy(on_cancel)
    limiter = limit if limit is None or isinstance(limit, CapacityLimiter) else CapacityLimiter(limit)

    def decorate(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        _check(function)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            if loop is None and executor is None:
                return await on_pool(function, args, kwargs, limiter, on_cancel)
            return await on_executor(function, args, kwargs, loop, executor, limiter, on_cancel)

        return call

    return decorate if fn is None else decorate(fn)


def _check(function: Any) -> None:
    kind = type(function).__name__
    if kind in ("staticmethod", "classmethod"):
        raise TypeError(f"async_wrap() got a {kind}; write '@{kind}' above '@async_wrap'")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"async_wrap() is for sync functions, and {function!r} is async already; call it as it is")

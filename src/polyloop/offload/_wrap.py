"""``async_wrap``: a sync function made async, by running it on a thread or on any executor."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, overload

from polyloop.offload._call import OnCancel, check_policy
from polyloop.offload._errand import on_executor
from polyloop.offload._offload import on_target
from polyloop.offload._targets import OffloadTo, resolve
from polyloop.offload._to_thread import on_pool
from polyloop.runtime._executor import is_async_function
from polyloop.sync._capacity import CapacityLimiter


class _Decorator(Protocol):
    """What ``async_wrap`` with options is: a decorator of sync functions, and where they can be run, of async ones."""

    @overload
    def __call__[**P, T](self, fn: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__[**P, T](self, fn: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def async_wrap[**P, T](fn: Callable[P, T], /) -> Callable[P, Coroutine[Any, Any, T]]: ...
@overload
def async_wrap(
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: OffloadTo | None = None,
    limit: int | CapacityLimiter | None = None,
    on_cancel: OnCancel = "wait",
) -> _Decorator: ...
def async_wrap(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: OffloadTo | None = None,
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
        executor: Run the calls on this ``concurrent.futures`` executor, or wherever else ``offload`` can, by its words
            (``"cpu"``, ``"processes"``, …). Threads of this process see the caller's context; other executors get the
            bare call. What goes to other processes must pickle; the function itself is found by its name there,
            decorated as it is. By default it is threads, whatever the environment says.
        limit: Most calls of this function that run at once, over all loops; a ``CapacityLimiter`` to share it.
        on_cancel: What a cancelled call does whose function runs already; see ``to_thread``.
    Returns:
        An async function, or a decorator that makes one.
    Raises:
        ModuleNotFoundError: ``executor`` is the address of a cluster, and Dask is not installed.
        TypeError: the function is async already (and ``executor`` runs no such), or ``@async_wrap`` stands above
            ``@staticmethod``.
        ValueError: ``limit`` is below 1, ``on_cancel`` no policy, or ``executor`` no place that is known.
        RuntimeError: at the call: ``loop`` does not run, or the executor was shut down.
    Cancellation: as ``to_thread``. In other processes a function that runs is not told of it.
    Thread safety: the async function may be called on any loop, on several at once.

    .. versionadded:: 0.1
    """
    check_policy(on_cancel)
    limiter = limit if limit is None or isinstance(limit, CapacityLimiter) else CapacityLimiter(limit)

    def decorate(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        _check(function, executor is not None and resolve(executor).coroutines)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            if executor is not None:
                return await on_target(function, args, kwargs, resolve(executor), limiter, on_cancel)
            if loop is None:
                return await on_pool(function, args, kwargs, limiter, on_cancel)
            return await on_executor(function, args, kwargs, loop, None, limiter, on_cancel)

        return call

    return decorate if fn is None else decorate(fn)


def _check(function: Any, coroutines: bool) -> None:
    kind = type(function).__name__
    if kind in ("staticmethod", "classmethod"):
        raise TypeError(f"async_wrap() got a {kind}; write '@{kind}' above '@async_wrap'")
    if (is_async_function(function) and not coroutines) or inspect.isasyncgenfunction(function):
        raise TypeError(f"async_wrap() is for sync functions, and {function!r} is async already; call it as it is")

"""``async_wrap``: a sync function made async, by running it on a thread or on any executor."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, overload

from polyloop._core._port import current_port
from polyloop.offload._call import Call, finish
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
) -> Callable[[Callable[P, T]], Callable[P, Coroutine[Any, Any, T]]]: ...
def async_wrap(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    executor: Executor | None = None,
    limit: int | CapacityLimiter | None = None,
) -> Any:
    """Make a sync function or method async: each call runs on a thread and is awaited.

    Use it bare or with options; signature, types, name and docstring are kept::

        @polyloop.async_wrap(limit=2)
        def checksum(path: Path) -> str: ...

        digest = await checksum(path)  # on any loop

    Args:
        loop: Run the calls on this loop's default executor (see ``loop.set_default_executor``) instead of the
            process-wide pool; with ``executor`` too, through this loop's ``run_in_executor``. It must be running.
        executor: Run the calls on this ``concurrent.futures`` executor. Only threads of this process see the caller's
            context; what goes to a process pool must pickle.
        limit: Most calls of this function that run at once, over all loops; a ``CapacityLimiter`` to share it.
    Returns:
        An async function, or a decorator that makes one.
    Raises:
        TypeError: the function is async already.
        ValueError: ``limit`` is below 1.
    Cancellation: a call that has not begun is never made; one that has is waited for, and its result dropped.
    Thread safety: the async function may be called on any loop, on several at once.

    .. versionadded:: 0.1
    """
    limiter = CapacityLimiter(limit) if isinstance(limit, int) else limit

    def decorate(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"async_wrap() is for sync functions, and {function!r} is async already; call it as it is")

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            if loop is None and executor is None:
                return await on_pool(function, args, kwargs, limiter, False)
            return await on_executor(function, args, kwargs, loop, executor, limiter)

        return call

    return decorate if fn is None else decorate(fn)


class _ExecutorCall(Call[Any]):
    """A call that an executor of somebody else runs."""

    future: "Future[Any]"

    def submit(self, loop: asyncio.AbstractEventLoop | None, executor: Executor | None) -> None:
        """Hand the call over. Raises what the executor raises."""
        if loop is not None:
            self.future = self._through(loop, executor)
        else:
            assert executor is not None
            fn = functools.partial(self._context.run, self._fn) if _shares_memory(executor) else self._fn
            self.future = executor.submit(fn, *self._args, **self._kwargs)
        self.future.add_done_callback(self._follow)

    def _through(self, loop: asyncio.AbstractEventLoop, executor: Executor | None) -> "Future[Any]":
        fn = functools.partial(self._fn, *self._args, **self._kwargs)
        if executor is None or _shares_memory(executor):
            fn = functools.partial(self._context.run, fn)

        async def there() -> Any:
            return await loop.run_in_executor(executor, fn)

        if loop is asyncio.get_running_loop():
            return _as_concurrent(asyncio.ensure_future(there()))
        coro = there()
        try:
            return asyncio.run_coroutine_threadsafe(coro, loop)
        except BaseException:
            coro.close()
            raise

    def _follow(self, future: "Future[Any]") -> None:
        """The executor is done; on whatever thread it says so."""
        if future.cancelled():
            outcome: tuple[Any, BaseException | None] = (None, asyncio.CancelledError())
        else:
            exc = future.exception()
            outcome = (None, exc) if exc is not None else (future.result(), None)
        self._outcome_here = outcome
        self.announce()

    def withdraw(self) -> bool:
        """Take the call back if it has not begun."""
        return self.future.cancel()


async def on_executor(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loop: asyncio.AbstractEventLoop | None,
    executor: Executor | None,
    limiter: CapacityLimiter | None,
) -> Any:
    """Run a call on ``executor``, or on ``loop``'s default one, and wait for it on the caller's loop."""
    call = _ExecutorCall(fn, args, kwargs, current_port())
    if limiter is not None:
        await limiter.acquire_on_behalf_of(call)
        call.limiter = limiter
    try:
        call.submit(loop, executor)
    except BaseException:
        call.give_token_back()
        raise
    return await finish(call, lambda _: call.withdraw(), False)


def _shares_memory(executor: Executor) -> bool:
    """Whether the executor's workers are threads of this interpreter, which can enter a context of ours."""
    return isinstance(executor, ThreadPoolExecutor) and "Interpreter" not in type(executor).__name__


def _as_concurrent(task: "asyncio.Future[Any]") -> "Future[Any]":
    """A concurrent future that follows a future of this loop; cancelling it cancels that one."""
    twin: Future[Any] = Future()

    def follow(done: "asyncio.Future[Any]") -> None:
        if done.cancelled():
            twin.cancel()
            twin.set_running_or_notify_cancel()
        elif (exc := done.exception()) is not None:
            twin.set_exception(exc)
        else:
            twin.set_result(done.result())

    task.add_done_callback(follow)
    return twin

"""``async_wrap``: a sync function made async, by running it on a thread or on any executor."""

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, overload

from polyloop._core._port import Port, current_port
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
            process-wide pool. It must be running when a call is made. With ``executor`` too, that one is used, as
            ``loop.run_in_executor`` does.
        executor: Run the calls on this ``concurrent.futures`` executor. The threads of a ``ThreadPoolExecutor`` see the
            caller's context; other executors get the bare call. What goes to a process pool must pickle; the function
            itself is found by its name there, decorated as it is.
        limit: Most calls of this function that run at once, over all loops; a ``CapacityLimiter`` to share it.
    Returns:
        An async function, or a decorator that makes one.
    Raises:
        TypeError: the function is async already, or ``@async_wrap`` stands above ``@staticmethod``.
        ValueError: ``limit`` is below 1.
        RuntimeError: at the call: ``loop`` does not run, or the executor was shut down.
    Cancellation: a call that has not begun is never made; one that has is waited for, and its result dropped, as with
    ``to_thread``.
    Thread safety: the async function may be called on any loop, on several at once.

    .. versionadded:: 0.1
    """
    limiter = limit if limit is None or isinstance(limit, CapacityLimiter) else CapacityLimiter(limit)

    def decorate(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        _check(function)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            if loop is None and executor is None:
                return await on_pool(function, args, kwargs, limiter, False)
            return await on_executor(function, args, kwargs, loop, executor, limiter)

        return call

    return decorate if fn is None else decorate(fn)


def _check(function: Any) -> None:
    kind = type(function).__name__
    if kind in ("staticmethod", "classmethod"):
        raise TypeError(f"async_wrap() got a {kind}; write '@{kind}' above '@async_wrap'")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"async_wrap() is for sync functions, and {function!r} is async already; call it as it is")


class _ExecutorCall(Call[Any]):
    """A call that an executor of somebody else runs.

    It ends when its executor says so (``_follow``), or on its thread (``run``), where we can run code of ours. One
    ticket decides who comes first: the thread that begins the call, or whoever gives it up.
    """

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], port: Port | None
    ) -> None:
        super().__init__(fn, args, kwargs, port)
        self._future: Future[Any] | None = None  # None: it goes by way of a loop
        self._unclaimed = [None]

    def submit(self, loop: asyncio.AbstractEventLoop | None, executor: Executor | None) -> None:
        """Hand the call over. Raises what the executor raises."""
        if executor is not None:
            fn = (
                functools.partial(self._context.run, self._fn) if _shares_memory(executor) else _found_by_name(self._fn)
            )
            self._future = executor.submit(fn, *self._args, **self._kwargs)
            self._future.add_done_callback(self._follow)
            return
        assert loop is not None
        if not loop.is_running():
            raise RuntimeError(f"async_wrap(loop=...): {loop!r} does not run, so its executor cannot be used")
        if loop is asyncio.get_running_loop():
            self._submit_there(loop)
        else:
            loop.call_soon_threadsafe(self._submit_there, loop)

    def _submit_there(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            future = loop.run_in_executor(None, self._run)
        except BaseException as exc:
            self._give_up(exc)
        else:
            future.add_done_callback(self._dropped)

    def withdraw(self) -> bool:
        """Take the call back if it has not begun."""
        return self._claim() if self._future is None else self._future.cancel()

    def _claim(self) -> bool:
        try:
            self._unclaimed.pop()  # atomic: one ticket has one popper
        except IndexError:
            return False
        return True

    def _run(self) -> None:
        """The call, on a thread of the loop's executor."""
        if self._claim():
            self.execute()
            self.announce()

    def _dropped(self, future: "asyncio.Future[None]") -> None:
        """The loop's executor is done with it; if it was shut down meanwhile, perhaps without beginning it."""
        if future.cancelled():
            self._give_up(asyncio.CancelledError())

    def _give_up(self, exc: BaseException) -> None:
        if self._claim():
            self._end(None, exc)

    def _follow(self, future: "Future[Any]") -> None:
        """The executor is done; on whatever thread it says so."""
        if future.cancelled():
            self._end(None, asyncio.CancelledError())
        elif (exc := future.exception()) is not None:
            self._end(None, exc)
        else:
            self._end(future.result(), None)

    def _end(self, result: Any, exc: BaseException | None) -> None:
        self._outcome_here = (result, exc)
        self.announce()


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
        await call.borrow(limiter)
    try:
        call.submit(loop, executor)
    except BaseException:
        call.give_token_back()
        raise
    return await finish(call, lambda _: call.withdraw(), False)


def _shares_memory(executor: Executor) -> bool:
    """Whether the executor's workers are threads of this interpreter, which can enter a context of ours."""
    if not isinstance(executor, ThreadPoolExecutor):
        return False
    interpreters = sys.modules.get("concurrent.futures.interpreter")  # 3.14; not imported: there is none of its pools
    return interpreters is None or not isinstance(executor, interpreters.InterpreterPoolExecutor)


def _found_by_name(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` in a form that pickles although its name now leads to the async function made from it."""
    named = _named(fn)
    return functools.partial(_call_wrapped, named) if getattr(named, "__wrapped__", None) is fn else fn


def _named(fn: Callable[..., Any]) -> Any:
    """What the module and qualified name of ``fn`` lead to, if anything."""
    found: Any = sys.modules.get(getattr(fn, "__module__", None) or "")
    for name in getattr(fn, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found


def _call_wrapped(decorated: Any, /, *args: Any, **kwargs: Any) -> Any:
    """In the other process: call the sync function under the async one, if the name leads to that there too."""
    fn = decorated.__wrapped__ if inspect.iscoroutinefunction(decorated) else decorated
    return fn(*args, **kwargs)

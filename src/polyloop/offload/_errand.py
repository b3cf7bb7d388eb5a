"""Calls that an executor of somebody else runs."""

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from polyloop.offload._call import Call, OnCancel, finish, new_call
from polyloop.runtime._executor import RuntimeExecutor, is_async_function
from polyloop.runtime._future import RuntimeFuture
from polyloop.sync._capacity import CapacityLimiter

#: Seconds between two looks at a loop that has a call and has not begun it. A guess: loops are rarely closed under one.
_WATCH = 0.5


class Errand:
    """The way of one call through an executor.

    On threads of this process the call runs as it does on ours (``_work``), and its end is known there. Elsewhere the
    function goes alone, and its future tells the end (``_follow``). One ticket decides who comes first: the thread that
    begins the call, or whoever gives it up.
    """

    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self._future: Future[Any] | None = None  # None: it goes by way of a loop
        self._unclaimed = [None]
        self._watcher: asyncio.TimerHandle | None = None  # on the caller's loop, if the call goes to another

    def submit(self, executor: Executor) -> None:
        """Hand the call over. Raises what the executor raises."""
        if _runs_our_code(executor, self._call._fn):
            self._future = executor.submit(self._work)
            self._future.add_done_callback(self._dropped)
        else:
            call = self._call
            self._future = executor.submit(_found_by_name(call._fn), *call._args, **call._kwargs)
            self._future.add_done_callback(self._follow)

    def submit_to_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand the call to the default executor of ``loop``."""
        if not loop.is_running():
            raise RuntimeError(f"async_wrap(loop=...): {loop!r} does not run, so its executor cannot be used")
        if loop is asyncio.get_running_loop():
            self._submit_there(loop)
        else:
            loop.call_soon_threadsafe(self._submit_there, loop)
            self._watch(loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the caller's loop: look now and then whether ``loop`` was closed before the call began.

        A closed loop drops what it has not run, and a ``__del__`` could tell. But without the GIL what this thread has
        made is freed by this thread, when it runs next: if it sleeps, nobody is told.
        """
        if not self._unclaimed:
            return
        if loop.is_closed():
            self._give_up(RuntimeError(f"async_wrap(loop=...): {loop!r} was closed before the call began"))
        else:
            self._watcher = asyncio.get_running_loop().call_later(_WATCH, self._watch, loop)

    def stop_watching(self) -> None:
        """The call has ended for its caller, on whose loop this is."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # and the timer holds this

    def _submit_there(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            future = loop.run_in_executor(None, self._work)
        except BaseException as exc:
            self._give_up(exc)
        else:
            future.add_done_callback(self._dropped)

    def withdraw(self, _call: Call[Any]) -> bool:
        """Take the call back if it has not begun; tell the task that it is to end, if it is one."""
        future = self._future
        if future is None:
            return self._claim()
        if future.cancel():  # which calls the callback below
            return True
        if isinstance(future, RuntimeFuture):
            future.request_cancel()
        return False

    def _claim(self) -> bool:
        try:
            self._unclaimed.pop()  # atomic: one ticket has one popper
        except IndexError:
            return False
        return True

    def _work(self) -> None:
        """The call, on a thread of the executor."""
        if self._claim():
            self._call.execute()
            self._call.announce()

    def _dropped(self, future: "asyncio.Future[None] | Future[None]") -> None:
        """The executor is done with it; if it was shut down meanwhile, or broke, perhaps without beginning it."""
        if future.cancelled():
            self._give_up(asyncio.CancelledError())
        elif (exc := future.exception()) is not None:
            self._give_up(exc)

    def _give_up(self, exc: BaseException) -> None:
        if self._claim():
            self._call.end(None, exc)

    def _follow(self, future: "Future[Any]") -> None:
        """The executor is done; on whatever thread it says so."""
        if not self._claim():
            return  # it was taken back
        if future.cancelled():
            self._call.end(None, asyncio.CancelledError())
        elif (exc := future.exception()) is not None:
            self._call.end(None, exc)
        else:
            self._call.end(future.result(), None)


async def on_executor(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loop: asyncio.AbstractEventLoop | None,
    executor: Executor | None,
    limiter: CapacityLimiter | None,
    on_cancel: OnCancel,
) -> Any:
    """Run a call on ``executor``, or on ``loop``'s default one, and wait for it on the caller's loop.

    Raises:
        ValueError: ``on_cancel`` is no policy, or needs threads and the executor has none of this process.
    """
    if on_cancel == "interrupt" and executor is not None and not _runs_our_code(executor, fn):
        raise ValueError(f"on_cancel='interrupt' is for threads of this process, and {executor!r} has none: use 'wait'")
    call = new_call(fn, args, kwargs, on_cancel)
    errand = Errand(call)
    if limiter is not None:
        await call.borrow(limiter)
    try:
        if executor is not None:
            errand.submit(executor)
        else:
            assert loop is not None
            errand.submit_to_loop(loop)
    except BaseException:
        call.give_token_back()
        raise
    try:
        return await finish(call, errand.withdraw, on_cancel)
    finally:
        errand.stop_watching()


def shares_memory(executor: Executor) -> bool:
    """Whether the executor's workers are threads of this interpreter, where code of ours can run around the call."""
    if not isinstance(executor, ThreadPoolExecutor):
        return False
    interpreters = sys.modules.get("concurrent.futures.interpreter")  # 3.14; not imported: there is none of its pools
    return interpreters is None or not isinstance(executor, interpreters.InterpreterPoolExecutor)


def _runs_our_code(executor: Executor, fn: Callable[..., Any]) -> bool:
    """Whether a call of ``fn`` runs there as it does on our own threads: told of its cancellation, in its context."""
    return shares_memory(executor) or (isinstance(executor, RuntimeExecutor) and not is_async_function(fn))


def _found_by_name(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` in a form that pickles although its name now leads to the async function made from it."""
    named = _named(fn)
    if getattr(named, "__wrapped__", None) is not fn:
        return fn
    return functools.partial(_await_wrapped if is_async_function(fn) else _call_wrapped, named)


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


async def _await_wrapped(decorated: Any, /, *args: Any, **kwargs: Any) -> Any:
    """``_call_wrapped`` for an async function under the one that the name leads to."""
    return await getattr(decorated, "__wrapped__", decorated)(*args, **kwargs)

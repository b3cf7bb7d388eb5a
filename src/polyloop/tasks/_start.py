"""Starting handles and awaitables where they belong: what the verbs of this folder share."""

import asyncio
import contextvars
from collections.abc import Awaitable, Hashable, Iterable
from typing import Any

from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port
from polyloop._core._worker import Worker
from polyloop.runtime._placement import policy_for
from polyloop.runtime._routing import On
from polyloop.runtime._runtime import Runtime


def checked_limit(limit: int | None) -> int | None:
    """The limit itself.

    Raises:
        ValueError: it is no whole number, or below 1.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):  # type: ignore[redundant-expr]
        raise ValueError(f"limit must be a whole number, at least 1, or None for no limit; got {limit!r}")
    return limit


def place(handle: TaskHandle[Any], runtime: Runtime | None, home: Port, on: On | None, key: Hashable | None) -> None:
    """Start a new handle: where the runtime places it, or at home if there is none. Any thread.

    Raises:
        BaseException: it is refused; its coroutine was closed.
    """
    if runtime is not None:
        runtime.place(handle, on, key)
        return
    try:
        check_choice(None, on, key)
    except BaseException:
        handle._drop()
        raise
    if home.is_current():
        handle._start_here(home)
    else:
        handle._context = handle._context or contextvars.copy_context()
        handle._claim_context(home)
        home.admit(handle, False)


def check_choice(runtime: Runtime | None, on: On | None, key: Hashable | None) -> None:
    """Refuse a choice of the loop that makes no sense, with a runtime and without.

    Raises:
        ValueError, TypeError: as ``Runtime.spawn``.
    """
    if on is None:
        return
    if key is not None:
        raise ValueError(f"both on={on!r} and key={key!r} say where to run; give one")
    if not isinstance(on, Worker):
        policy_for(on)
    elif runtime is None:
        raise ValueError(f"{on!r} cannot be chosen: no runtime is open here")
    elif on.runtime is not runtime:
        raise ValueError(f"{on!r} is no worker of {runtime!r}; use one of its .workers")


def close_all(aws: Iterable[Awaitable[Any]]) -> None:
    """Close the coroutines among awaitables that nobody will run."""
    for aw in aws:
        if asyncio.iscoroutine(aw):
            aw.close()


def report_failures(
    loop: asyncio.AbstractEventLoop, verb: str, failures: list[BaseException], raising: BaseException | None
) -> None:
    """Hand exceptions to the handler of this thread's loop that gave way to another end."""
    failures = [exc for exc in failures if exc is not raising and not isinstance(exc, asyncio.CancelledError)]
    if failures:
        message = f"calls of {verb} failed whose results nobody gets"
        loop.call_exception_handler({"message": message, "exception": BaseExceptionGroup(message, failures)})

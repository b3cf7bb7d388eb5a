"""Which runtime a caller means that names none."""

import contextvars
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, cast

from polyloop._core._context import here
from polyloop._core._errors import NoRuntimeError
from polyloop._core._handle import TaskHandle
from polyloop._core._worker import Worker
from polyloop.runtime import _registry
from polyloop.runtime._routing import On
from polyloop.runtime._runtime import Runtime


def find_runtime() -> Runtime | None:
    """The runtime of the calling thread, or ``None``; see ``current_runtime``."""
    for port in (here.port, here.call_port):
        # A closed loop is left over from a run that has ended on this thread.
        if isinstance(port, Worker) and isinstance(port.runtime, Runtime) and not port.loop.is_closed():
            return port.runtime
    running = _registry.running()
    return cast("Runtime", running[0]) if len(running) == 1 else None


def running_runtime() -> Runtime | None:
    """``find_runtime``, or ``None`` if it is closing: what a cancelled task starts then stays on its own loop."""
    runtime = find_runtime()
    return runtime if runtime is not None and runtime._state == "running" else None


def current_runtime() -> Runtime:
    """The runtime that the caller belongs to.

    On a worker's thread: the worker's. In a call offloaded by ``to_thread``: that of the task that made the call.
    On any other thread: the only one that is running.

    Raises:
        NoRuntimeError: no runtime is running, or several are and the thread belongs to none of them.
    Thread safety: any thread.

    .. versionadded:: 0.1
    """
    runtime = find_runtime()
    if runtime is not None:
        return runtime
    running = len(_registry.running())
    if running:
        raise NoRuntimeError(f"{running} runtimes are running and this thread belongs to none; call the one you mean")
    raise NoRuntimeError("no runtime is running; use polyloop.run(main()) or 'with polyloop.Runtime() as rt:'")


def spawn[*Ts, T](
    fn: Callable[[*Ts], Coroutine[Any, Any, T]],
    *args: *Ts,
    on: On | None = None,
    key: Hashable | None = None,
    name: str | None = None,
    context: contextvars.Context | None = None,
    migratable: bool | None = None,
) -> TaskHandle[T]:
    """Start ``fn(*args)`` on one of the current runtime's loops; see ``Runtime.spawn``.

    Raises:
        NoRuntimeError: there is no current runtime.

    .. versionadded:: 0.1
    """
    return current_runtime().spawn(fn, *args, on=on, key=key, name=name, context=context, migratable=migratable)

"""Where a server runs: all workers of the caller's runtime, or, without one, the loop of the caller."""

import contextvars
from collections.abc import Coroutine
from typing import Any

from polyloop._core._errors import WorkerDiedError
from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port, current_port
from polyloop.runtime._current import running_runtime
from polyloop.runtime._runtime import Runtime


def places(runtime: Runtime | None) -> tuple[Port, ...]:
    """The loops of a server that is opened here.

    Raises:
        RuntimeClosedError: ``runtime`` does not run.
        RuntimeError: there is neither a runtime nor a running loop.
        WorkerDiedError: all its workers have died.
    """
    chosen = running_runtime() if runtime is None else runtime
    if chosen is None:
        return (current_port(),)
    if chosen._state != "running":
        raise chosen._closed_error("a server")
    alive = tuple(worker for worker in chosen.workers if worker.alive)
    if not alive:
        raise WorkerDiedError(f"cannot start a server: all workers of {chosen!r} have died; start a new Runtime")
    return alive


def start_on[T](port: Port, coro: Coroutine[Any, Any, T], name: str) -> TaskHandle[T]:
    """Start a coroutine on one of these loops. Any thread."""
    handle = TaskHandle(coro, name)
    if port.is_current():
        handle._start_here(port)
    else:
        handle._context = contextvars.copy_context()
        handle._claim_context(port)
        port.admit(handle, False)
    return handle

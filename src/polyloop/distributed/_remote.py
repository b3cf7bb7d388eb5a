"""What runs on a Dask worker, in one of its threads. Imported there, and on the scheduler, by name."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from polyloop._core import _prims
from polyloop.distributed import _travel
from polyloop.runtime._runtime import Runtime


class _Host:
    """The runtime of this worker process, for async functions; started by the first of them."""

    def __init__(self) -> None:
        self._lock = _prims.Lock()  # guards _runtime; held while it starts
        self._runtime: Runtime | None = None

    def run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the runtime and wait for it, on the thread that Dask has given the call."""
        with self._lock:
            if self._runtime is None:
                self._runtime = Runtime(name="polyloop-dask").start()  # the exit hook closes it
            runtime = self._runtime
        return runtime.run(coro)


_host = _Host()


def run(payload: bytes) -> bytes:
    """Make one call, and return its result pickled.

    Raises:
        Failure: it failed; this carries the exception.
    """
    try:
        return _travel.dumps(_call(*_load(payload)))
    except BaseException as exc:  # SystemExit too: it belongs to whoever made the call, not to the worker
        trace = exc.__traceback__
        failure = _travel.pack(exc.with_traceback(trace and trace.tb_next))  # without this frame
    raise failure  # outside of the handler: the exception is in it, and need not be its context too


def _load(payload: bytes) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    try:
        fn, args, kwargs = _travel.loads(payload)
    except Exception as exc:
        exc.add_note("while the call was unpickled on the Dask worker: the code it uses must be installed there")
        raise
    return fn, args, kwargs


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = fn(*args, **kwargs)
    return _host.run(result) if asyncio.iscoroutine(result) else result

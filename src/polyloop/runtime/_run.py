"""``polyloop.run``: asyncio.run on every core.

The calling thread is worker 0, so the main task runs where ``asyncio.run`` would run it, and ``asyncio.Runner`` gives
signals and Ctrl-C their usual meaning. The other workers are threads beside it.

The order of the end: the main task is done; all workers, this one included, wind down together under one deadline;
the Runner closes the loop. A Ctrl-C during the wind-down makes the deadline now.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from polyloop._core import _prims
from polyloop._core._completion import all_done, copy_exception
from polyloop._core._context import runs_a_loop
from polyloop._core._errors import RuntimeClosedError
from polyloop._core._selftest import check_factory
from polyloop._core._worker import LoopFactory
from polyloop.runtime._placement import Placement, PlacementName
from polyloop.runtime._runtime import _GRACE, SHUTDOWN_TIMEOUT, Runtime
from polyloop.runtime._signals import signals_wake


def run[T](
    main: Coroutine[Any, Any, T],
    *,
    loops: int | None = None,
    loop_factory: LoopFactory | None = None,
    placement: PlacementName | Placement = "least_loaded",
    steal: bool = True,
    spin: bool | float | None = None,
    debug: bool | None = None,
    shutdown_timeout: float = SHUTDOWN_TIMEOUT,
) -> T:
    """Run a coroutine on a pool of event loops, one per core; ``asyncio.run`` with more loops.

    ``main`` runs on the calling thread, which is worker 0. Ctrl-C cancels it, as under ``asyncio.run``; a second one
    raises ``KeyboardInterrupt`` at once. Tasks that are left when it ends are cancelled on every loop.

    Args:
        main: The coroutine to run.
        loops: Number of loops; by default one per usable core on a free-threaded interpreter, and 1 with the GIL.
        loop_factory, placement, steal, spin, debug, shutdown_timeout: See ``Runtime``.
    Returns:
        The result of ``main``.
    Raises:
        TypeError: ``main`` is not a coroutine.
        RuntimeError: a loop already runs on this thread.
        UnreliableLoopError: the loops of ``loop_factory`` lose cross-thread wake-ups.
        BaseException: what ``main`` raised; ``SystemExit`` and ``KeyboardInterrupt`` of a task on any loop.
    Thread safety: any thread that runs no loop; off the main thread no signal handler is installed.

    .. versionadded:: 0.1
    """
    if not asyncio.iscoroutine(main):
        raise TypeError(f"run() needs a coroutine, got {main!r}; call the async function: polyloop.run(main())")
    if runs_a_loop():
        main.close()
        raise RuntimeError("polyloop.run() cannot be called from a running event loop; await the coroutine instead")
    try:
        runtime = Runtime(
            loops=loops,
            loop_factory=loop_factory,
            placement=placement,
            steal=steal,
            spin=spin,
            debug=debug,
            shutdown_timeout=shutdown_timeout,
        )
    except BaseException:
        main.close()
        raise
    return _Run(runtime).run(main, debug)


class _Run:
    """One call of ``run``: the runtime, and the Runner that drives worker 0 on the calling thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._worker = runtime.workers[0]
        self._others = runtime.workers[1:]

    def run[T](self, main: Coroutine[Any, Any, T], debug: bool | None) -> T:
        runtime, worker = self._runtime, self._worker
        runner = asyncio.Runner(debug=debug, loop_factory=worker.new_loop)
        try:
            runner.get_loop()
            if runtime._loop_factory is not None and not self._others:
                check_factory(runtime._loop_factory)
            runtime._begin()
            runtime._start_threads(self._others)
        except BaseException:
            main.close()
            runner.close()
            raise
        for other in self._others:
            other.on_fatal = self._raise_here
        worker.ready._complete(None)
        with signals_wake(worker):
            try:
                return runner.run(main)
            finally:
                self._end(runner)

    def _raise_here(self, exc: BaseException) -> None:
        """SystemExit or KeyboardInterrupt on another loop: it leaves ``run`` on this thread, as asyncio's would."""
        self._worker.post(_raise, copy_exception(exc))

    def _end(self, runner: asyncio.Runner) -> None:
        runtime, worker = self._runtime, self._worker
        if not runtime._claim_close():
            # Closed by somebody else, from a plain thread: that thread has told this worker to wind down.
            runtime._closed._block(None, ".close()")
        try:
            runner.run(self._wind_down())
        except KeyboardInterrupt:
            runner.run(self._wind_down_now())
        finally:
            if not worker.stuck:  # else Runner.close would wait for what is stuck, without limit
                runner.close()
            worker.bury()
            worker.ended._complete(None)
            runtime._finish_end(runtime.workers)

    async def _wind_down(self) -> None:
        runtime, worker = self._runtime, self._worker
        deadline = runtime._begin_end(self._others, runtime._shutdown_timeout)
        refusal = RuntimeClosedError(f"the task was not run to its end: {runtime!r} was closed")
        await worker.wind_down(refusal, deadline)
        await self._others_ended(deadline + _GRACE - _prims.monotonic())

    async def _wind_down_now(self) -> None:
        refusal = RuntimeClosedError(f"the task was not run to its end: {self._runtime!r} was interrupted")
        now = _prims.monotonic()
        for other in self._others:
            other.post(other.begin_wind_down, refusal, now)
        await self._worker.wind_down(refusal, now)
        await self._others_ended(_GRACE)

    async def _others_ended(self, timeout: float) -> None:
        ended = all_done(other.ended for other in self._others)
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                await ended
        except TimeoutError:
            return  # _finish_end names them


def _raise(exc: BaseException) -> None:
    raise exc

"""``polyloop.run``: asyncio.run on every core.

The calling thread is worker 0, so the main task runs where ``asyncio.run`` would run it, and ``asyncio.Runner`` gives
signals and Ctrl-C their usual meaning. The other workers are threads beside it.

The order of the end: the main task is done; all workers, this one included, wind down together under one deadline;
the loop is closed. A Ctrl-C during the wind-down makes the deadline now.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from polyloop._core import _prims
from polyloop._core._completion import all_done
from polyloop._core._context import runs_a_loop
from polyloop._core._errors import copy_exception
from polyloop._core._port import logger
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
        RuntimeError: a loop already runs on this thread, or a task stopped the loop of ``main``.
        CancelledError: another thread closed the runtime.
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
        self._main: Coroutine[Any, Any, Any] | None = None
        self._leaving = False  # run() is being left by SystemExit or KeyboardInterrupt; worker 0's thread
        self._deadline: float | None = None  # set by somebody else who closes the runtime; worker 0's thread

    def run[T](self, main: Coroutine[Any, Any, T], debug: bool | None) -> T:
        worker = self._worker
        self._main = main
        # The Runner is never closed: winding down does all that its close does, within a deadline.
        runner = asyncio.Runner(debug=debug, loop_factory=worker.new_loop)
        try:
            self._start(runner)
        except BaseException:
            main.close()
            if worker.ident:
                worker.bury()
            raise
        with signals_wake(worker):
            try:
                return runner.run(main)
            except (SystemExit, KeyboardInterrupt):
                self._leaving = True
                raise
            finally:
                if self._runtime._forked_error is None:  # else this is a child, and all this is its parent's
                    self._end(runner)

    def _start(self, runner: asyncio.Runner) -> None:
        runtime, worker = self._runtime, self._worker
        runner.get_loop()
        if runtime._loop_factory is not None and not self._others:
            check_factory(runtime._loop_factory)
        worker.on_close = self._closed_by_other
        for other in self._others:
            other.on_fatal = self._raise_here
        runtime._begin()
        runtime._start_threads(self._others)
        worker.ready._complete(None)

    def _raise_here(self, exc: BaseException) -> None:
        """SystemExit or KeyboardInterrupt on another loop: it leaves ``run`` on this thread, as asyncio's would."""
        self._worker.post(self._raise, copy_exception(exc))

    def _raise(self, exc: BaseException) -> None:
        if not self._leaving:  # else the main task has raised it already, or another: one is enough to end the program
            raise exc

    def _closed_by_other(self, deadline: float) -> None:
        """Somebody else closes the runtime: cancel the main task, and leave the rest to ``_end``. On worker 0."""
        if self._deadline is None:
            self._deadline = deadline
            for task in asyncio.all_tasks(self._worker.loop):
                if task.get_coro() is self._main:
                    task.cancel()

    def _end(self, runner: asyncio.Runner) -> None:
        runtime, worker = self._runtime, self._worker
        mine = runtime._claim_close()
        deadline = self._deadline
        if deadline is None:
            deadline = _prims.monotonic() + runtime._shutdown_timeout
        try:
            self._wind_all_down(runner, deadline)
        finally:
            worker.bury()
            worker.ended._complete(None)
            if mine:
                runtime._finish_end(runtime.workers)
            else:
                runtime._wait_closed(deadline)

    def _wind_all_down(self, runner: asyncio.Runner, deadline: float) -> None:
        """Run worker 0's loop while all workers wind down; wait for the others without it if it is beyond use."""
        runtime = self._runtime
        refusal = runtime._end_refusal()
        try:
            runtime._begin_end(self._others, refusal, deadline)
            _drive(runner, self._wind_down(refusal, deadline))
        except (KeyboardInterrupt, SystemExit) as exc:  # of a signal, or of a task that was being cancelled
            for other in self._others:
                other.on_fatal = None
            if isinstance(exc, KeyboardInterrupt):
                deadline = _prims.monotonic()
            runtime._begin_end(self._others, refusal, deadline)
            _drive(runner, self._wind_down(refusal, deadline))
            raise
        except Exception as exc:  # whoever called run() hears of it from the main task
            logger.critical("polyloop: %r could not wind down: its event loop raised %r", self._worker, exc)
            runtime._wait_ended(self._others, deadline)

    async def _wind_down(self, refusal: BaseException, deadline: float) -> None:
        worker = self._worker
        await worker.wind_down(refusal, deadline)
        ended = all_done(other.ended for other in self._others)
        try:
            async with asyncio.timeout(max(0.0, deadline + _GRACE - _prims.monotonic())):
                await ended
        except TimeoutError:
            return  # _finish_end names them


def _drive(runner: asyncio.Runner, step: Coroutine[Any, Any, None]) -> None:
    try:
        runner.run(step)
    finally:
        step.close()  # a loop beyond use has not begun it

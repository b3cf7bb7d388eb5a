"""``polyloop.run``: asyncio.run on every core.

The calling thread is worker 0, so the main task runs where ``asyncio.run`` would run it, and signals and Ctrl-C have
their usual meaning (``_signals``, ``_ctrl_c``). The other workers are threads beside it.

The order of the end: the main task is done; all workers, this one included, wind down together under one deadline;
the loop is closed. A Ctrl-C during the wind-down makes the deadline now.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Coroutine
from typing import Any

from polyloop._core import _prims
from polyloop._core._completion import all_done
from polyloop._core._context import runs_a_loop
from polyloop._core._errors import copy_exception
from polyloop._core._port import logger
from polyloop._core._selftest import check_factory
from polyloop._core._worker import LoopFactory, Worker
from polyloop.runtime._ctrl_c import CtrlC
from polyloop.runtime._life import GRACE, SHUTDOWN_TIMEOUT
from polyloop.runtime._placement import Placement, PlacementName
from polyloop.runtime._runtime import Runtime
from polyloop.runtime._signals import signals_wake


def run[T](
    main: Coroutine[Any, Any, T],
    *,
    loops: int | None = None,
    loop_factory: LoopFactory | None = None,
    placement: PlacementName | Placement = "least_loaded",
    steal: bool = True,
    migratable: bool = False,
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
        loop_factory, placement, steal, migratable, spin, debug, shutdown_timeout: See ``Runtime``.
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
            migratable=migratable,
            spin=spin,
            debug=debug,
            shutdown_timeout=shutdown_timeout,
        )
    except BaseException:
        main.close()
        raise
    return _Run(runtime).run(main)


class _Run:
    """One call of ``run``. Everything runs on the calling thread, which is worker 0's."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._worker = runtime.workers[0]
        self._others = runtime.workers[1:]
        self._ctrl_c = CtrlC()
        self._main: asyncio.Task[Any] | None = None
        self._leaving = False  # run() is being left by SystemExit or KeyboardInterrupt
        self._deadline: float | None = None  # set by somebody else who closes the runtime

    def run[T](self, main: Coroutine[Any, Any, T]) -> T:
        with self._ctrl_c, contextlib.ExitStack() as stack:
            try:
                result = self._run(main, stack)
            finally:
                if self._main is None:
                    main.close()
                if self._runtime._forked_error is None:  # else this is a child, and the rest is its parent's
                    self._end()
            if self._ctrl_c.hurried:
                raise KeyboardInterrupt
            return result

    def _run[T](self, main: Coroutine[Any, Any, T], stack: contextlib.ExitStack) -> T:
        loop = self._start()
        if self._ctrl_c.count:
            raise KeyboardInterrupt
        stack.enter_context(signals_wake(self._worker))
        task: asyncio.Task[T] = loop.create_task(main, context=contextvars.copy_context())
        self._main = task
        self._ctrl_c.guard(task)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            if self._ctrl_c.count > 0 and task.uncancel() == 0:
                raise KeyboardInterrupt from None
            raise
        except (SystemExit, KeyboardInterrupt):
            self._leaving = True
            raise

    def _start(self) -> asyncio.AbstractEventLoop:
        runtime, worker = self._runtime, self._worker
        loop = worker.new_loop()
        if runtime._loop_factory is not None and not self._others:
            check_factory(runtime._loop_factory)
        worker.on_close = self._closed_by_other
        for other in self._others:
            other.on_fatal = self._raise_here
        runtime._begin()
        runtime._start_threads(self._others)
        worker.ready._complete(None)
        return loop

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
            if self._main is not None:
                self._main.cancel()

    def _end(self) -> None:
        runtime, worker = self._runtime, self._worker
        self._ctrl_c.unguard(self._hurry)
        if runtime._state == "new":  # the start failed before anything ran
            if worker.ident:
                worker.bury()
            return
        mine = runtime._claim_close()
        deadline = self._deadline
        if deadline is None:  # where the main task never began, there is nobody to wait for
            deadline = _prims.monotonic() + (runtime._shutdown_timeout if self._main is not None else 0.0)
        try:
            self._wind_all_down(deadline)
        finally:
            worker.bury()
            worker.ended._complete(None)
            if mine:
                runtime._finish_end((worker, *self._running()))
            else:
                runtime._wait_closed(deadline)

    def _running(self) -> tuple[Worker, ...]:
        """The other workers that were started."""
        return tuple(other for other in self._others if other.thread is not None)

    def _hurry(self) -> None:
        """Ctrl-C while winding down: the deadline is now. A signal handler."""
        now = _prims.monotonic()
        self._runtime._begin_end(self._running(), self._runtime._end_refusal(), now)
        self._worker.hurry(now)

    def _wind_all_down(self, deadline: float) -> None:
        """Run worker 0's loop while all workers wind down; wait for the others without it if it is beyond use."""
        runtime, others = self._runtime, self._running()
        refusal = runtime._end_refusal()
        try:
            runtime._begin_end(others, refusal, deadline)
            self._drive(refusal, deadline)
        except (KeyboardInterrupt, SystemExit):  # of a task that was being cancelled, or of a signal handler
            for other in others:
                other.on_fatal = None
            runtime._begin_end(others, refusal, deadline)
            self._drive(refusal, deadline)
            raise
        except Exception as exc:  # whoever called run() hears of it from the main task
            logger.critical("polyloop: %r could not wind down: its event loop raised %r", self._worker, exc)
            runtime._wait_ended(others, deadline)

    def _drive(self, refusal: BaseException, deadline: float) -> None:
        step = self._wind_down(refusal, deadline)
        try:
            self._worker.loop.run_until_complete(step)
        finally:
            step.close()  # a loop beyond use has not begun it

    async def _wind_down(self, refusal: BaseException, deadline: float) -> None:
        """Worker 0's own end, and then, on its loop, the end of the others."""
        worker = self._worker
        await worker.wind_down(refusal, deadline)
        others = self._runtime._ends(self._running())
        while not all(other.done() for other in others):
            left = min(deadline, worker.wind_down_by) + GRACE - _prims.monotonic()
            if left <= 0:
                return  # _finish_end names them
            try:
                async with asyncio.timeout(left):
                    await all_done(others)
            except (TimeoutError, asyncio.CancelledError):
                continue

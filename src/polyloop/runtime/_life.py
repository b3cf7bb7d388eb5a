"""The life of a runtime: start, close, and what an exit or a fork makes of it.

A runtime goes through its states once, ``new -> running -> closing -> closed``. Whoever moves it to ``closing`` is the
closer and sees it through; everybody else waits for the closer, within a deadline of their own.

Why closing cannot hang: each worker gets the same deadline, and cancels, waits and stops on its own; the closer waits
for all of them until a little later, completes the handles of those that did not come back, names them in the report
and leaves their (daemon) threads behind. An interrupted closer publishes what it knows on its way out.
"""

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from polyloop._core import _overdue, _prims
from polyloop._core._completion import Completion, all_done
from polyloop._core._context import here
from polyloop._core._crew import Crew
from polyloop._core._ending import Stuck, stuck_thread
from polyloop._core._errors import RuntimeClosedError
from polyloop._core._gilwatch import gil_watch
from polyloop._core._parking import ThreadWaiter, refuse_on_loop_thread
from polyloop._core._port import logger
from polyloop._core._scope import shield
from polyloop._core._selftest import check_wakeups
from polyloop._core._worker import LoopFactory, Worker
from polyloop.runtime import _registry
from polyloop.runtime._report import ShutdownReport

if TYPE_CHECKING:
    from polyloop.runtime._executor import RuntimeExecutor

#: Seconds that a shutdown waits for tasks to end, unless the caller says otherwise.
SHUTDOWN_TIMEOUT = 10.0

#: Seconds beyond the deadline for a worker to stop its loop and leave.
GRACE = 1.0

type State = Literal["new", "running", "closing", "closed"]
type Workers = tuple[Worker, ...]


class Life:
    """The half of ``Runtime`` that starts and ends. ``_lock`` guards ``_state``; it is held for a few statements."""

    def __init__(self, workers: Workers, loop_factory: LoopFactory | None, shutdown_timeout: float) -> None:
        self._workers = workers
        self._crew = Crew(workers)
        self._loop_factory = loop_factory
        self._shutdown_timeout = shutdown_timeout
        self._lock = _prims.Lock()
        self._state: State = "new"
        self._solo: Worker | None = None  # the only worker, while it runs: where to place a task is then no question
        self._forked_error: RuntimeClosedError | None = None  # set in a forked child
        self._closed = Completion[ShutdownReport]()
        self._executors: dict[
            RuntimeExecutor, None
        ] = {}  # those with calls; each is entered and removed under its lock
        self._calls_ended: list[Completion[None]] = []  # of those executors; set by the closer

    # Start

    def start(self) -> Self:
        """Start the workers' threads and wait until their loops run; ``with`` does this.

        Raises:
            BlockingCallError: this thread runs a loop; use ``async with`` there.
            RuntimeError: the runtime was started before.
            UnreliableLoopError: the loops of ``loop_factory`` lose wake-ups.
            BaseException: what ``loop_factory`` raised.
        """
        refuse_on_loop_thread("Runtime.start()", "async with Runtime()")
        self._begin()
        try:
            self._start_threads(self._workers)
        except BaseException:
            self._abort()
            raise
        return self

    def _begin(self) -> None:
        with self._lock:
            if self._state != "new":
                raise RuntimeError(f"{self!r} was started or closed before; make a new Runtime")
            self._state = "running"
            self._solo = self._workers[0] if len(self._workers) == 1 else None
        _registry.add(self)
        gil_watch.install()

    def _start_threads(self, workers: Workers) -> None:
        """Start ``workers`` in threads and wait until their loops run. A plain thread, or one about to run a loop."""
        for worker in workers:
            worker.start_thread()
        for worker in workers:
            worker.ready._block(None, ".start()")
            worker.ready._outcome()
        if self._loop_factory is not None and workers:
            check_wakeups(workers[0].loop)

    def _abort(self) -> None:
        """Undo a start that failed. Nothing of the user's runs yet, so what does not come back at once is left."""
        if self._claim_close():
            self._end(0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._begin()
        try:
            for worker in self._workers:
                worker.start_thread()
            for worker in self._workers:
                await worker.ready
            if self._loop_factory is not None:
                await _in_thread(lambda: check_wakeups(self._workers[0].loop))
        except BaseException:
            await _in_thread(self._abort)  # it may take a moment, which is not for this loop
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # Close

    def close(self, timeout: float | None = None) -> ShutdownReport:
        """Stop taking work, cancel what runs, wait for it, and close the loops.

        The phases, which share one deadline: refuse new tasks, and those that never started (their handles fail with
        ``RuntimeClosedError``); cancel the others; close asynchronous generators and executors; close the loops.

        Args:
            timeout: Seconds until what still runs is left behind; ``shutdown_timeout`` of the runtime by default.
        Returns:
            What was left behind; also logged. Closing again gives the first close's report.
        Raises:
            BlockingCallError: this thread runs a loop; use ``aclose`` there.
            TimeoutError: somebody else closes the runtime and has not come to an end within ``timeout``.
        Thread safety: any thread. A second closer waits for the first.

        .. versionadded:: 0.1
        """
        refuse_on_loop_thread("Runtime.close()", "await runtime.aclose()")
        patience = self._shutdown_timeout if timeout is None else timeout
        if self._claim_close():
            self._end(patience)
        else:
            self._closed._block(patience + 2 * GRACE, ".close()")
        return self._closed._outcome()

    async def aclose(self, timeout: float | None = None) -> ShutdownReport:
        """``close`` for a thread that runs a loop of its own (a notebook, an ``async with``).

        Takes a ``timeout`` although it is async: the workers need the deadline, not only the caller.

        Raises:
            RuntimeError: called by a task of this same runtime, which would wait for itself.
        Cancellation: makes the deadline now; what does not stop within a second is left behind.
        """
        mine = here.port
        if isinstance(mine, Worker) and mine.runtime is self and self._state != "closed":
            raise RuntimeError(f"a task of {self!r} cannot wait for its own end; return from it, or cancel it, instead")
        if self._claim_close():
            deadline = _prims.monotonic() + (self._shutdown_timeout if timeout is None else timeout)
            refusal = self._end_refusal()
            try:
                self._begin_end(self._workers, refusal, deadline)
                await self._workers_ended(deadline)
            except asyncio.CancelledError:
                now = _prims.monotonic()
                self._begin_end(self._workers, refusal, now)
                await self._workers_ended(now)
                raise
            finally:
                self._finish_end(self._workers)
        return await self._closed

    def _claim_close(self) -> bool:
        """Take the right to close this runtime; ``False`` if somebody has it or there is nothing to close."""
        with self._lock:
            state = self._state
            if state == "running":
                self._state = "closing"
                self._solo = None
            elif state == "new":
                self._state = "closed"
        if state == "new":
            self._closed._complete(ShutdownReport())
        elif state == "running":
            refusal = RuntimeClosedError(f"the call did not come to its end: {self!r} was closed")
            self._calls_ended = [executor._runtime_closes(refusal) for executor in list(self._executors)]
        return state == "running"

    def _ends(self, workers: Workers) -> list[Completion[Any]]:
        """What a closer waits for: the ends of the workers, and of what executors run on threads."""
        return [*(worker.ended for worker in workers), *self._calls_ended]

    def _end(self, timeout: float) -> None:
        """See the end through, on a plain thread. The caller has claimed it."""
        with shield():  # bounded as it is: a cancelled call that closes a runtime does that properly
            self._end_shielded(timeout)

    def _end_shielded(self, timeout: float) -> None:
        # Those that came to life: in a thread, or, for the first of polyloop.run, on the thread of its caller.
        workers = tuple(worker for worker in self._workers if worker.thread is not None or worker.ident)
        deadline = _prims.monotonic() + timeout
        refusal = self._end_refusal()
        try:
            try:
                self._begin_end(workers, refusal, deadline)
                self._wait_ended(workers, deadline)
            except KeyboardInterrupt:
                self._begin_end(workers, refusal, _prims.monotonic())
                self._wait_ended(workers, _prims.monotonic())
                raise
        finally:
            self._finish_end(workers)

    def _end_refusal(self) -> RuntimeClosedError:
        return RuntimeClosedError(f"the task was not run to its end: {self!r} was closed")

    def _begin_end(self, workers: Workers, refusal: BaseException, deadline: float) -> None:
        """Tell the workers to wind down; a second call may bring the deadline forward. Any thread."""
        for worker in workers:
            worker.post(worker.begin_wind_down, refusal, deadline)

    def _wait_ended(self, workers: Workers, deadline: float) -> None:
        """Wait for the workers' end until a little after the deadline. A plain thread."""
        waiter = ThreadWaiter()
        all_done(self._ends(workers))._add_waiter(waiter.wake)
        waiter.park(max(0.0, deadline + GRACE - _prims.monotonic()))

    async def _workers_ended(self, deadline: float) -> None:
        """``_wait_ended`` for a thread that runs a loop."""
        ended = all_done(self._ends(self._workers))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline + GRACE - _prims.monotonic())):
                await ended

    def _wait_closed(self, deadline: float) -> None:
        """Wait for somebody else's close, which is bounded unless its own thread is stuck. A plain thread."""
        try:
            self._closed._block(max(0.0, deadline + 2 * GRACE - _prims.monotonic()), ".close()")
        except TimeoutError:
            logger.error("polyloop: %r: whoever closes it has not come to an end", self)

    def _finish_end(self, workers: Workers) -> None:
        """Complete the handles of workers that did not come back; publish the report, whatever happens meanwhile."""
        stuck: list[Stuck] = []
        try:
            for worker in workers:
                stuck.extend(worker.stuck)
                if not worker.ended.done():
                    stuck.append(stuck_thread(worker.ident, worker.thread_name, worker.name))
                    worker.abandon(RuntimeClosedError(f"{self!r} was closed while {worker!r} was stuck"))
                elif worker.thread is not None:
                    worker.thread.join(GRACE)
            self._crew.forsake(self._end_refusal())
            self._crew.overseer.stop(GRACE)
            stuck.extend(_overdue.left_behind(workers))
        finally:
            self._publish(ShutdownReport(tuple(stuck)))

    def _publish(self, report: ShutdownReport) -> None:
        if not report.clean:
            logger.error("polyloop: %r: %s", self, report)
        self._state = "closed"
        _registry.discard(self)
        if not _registry.running():
            gil_watch.remove()
        self._closed._complete(report)

    # Exit and fork

    def _close_at_exit(self, deadline: float) -> None:
        """Close a runtime that nobody has closed, or wait for whoever is at it. The exit hook."""
        try:
            if self._claim_close():
                self._end(max(0.0, deadline - _prims.monotonic()))
            else:
                self._wait_closed(deadline)
        except Exception:
            logger.exception("polyloop: %r could not be closed at exit", self)

    def _forked(self) -> None:
        """In a forked child only the forking thread lives on: say so instead of hanging."""
        if self._state not in ("running", "closing"):
            return
        self._lock = _prims.Lock()
        self._state = "closed"
        self._solo = None
        error = RuntimeClosedError(
            f"{self!r} belongs to the parent process: only the thread that forked lives on in this one;"
            " start a new Runtime here, or use the 'spawn' or 'forkserver' start method"
        )
        self._forked_error = error
        for worker in self._workers:
            worker.cut_off(error)
        for worker in self._workers:
            worker.leave_behind(error)
        self._crew.forsake(error)
        for executor in list(self._executors):
            executor._forked(error)
        _registry.discard(self)
        self._closed._complete(ShutdownReport())


def _in_thread(fn: Callable[[], object]) -> Completion[None]:
    """Run ``fn()`` in a thread of its own; for the few blocking steps of a start on a thread that runs a loop."""
    done = Completion[None]()

    def work() -> None:
        try:
            fn()
        except BaseException as exc:
            done._complete(None, exc)
        else:
            done._complete(None)

    _prims.start_thread(work, "polyloop-start")
    return done

"""The runtime: N workers that behave like one event loop.

Owned here: the workers, the placement of tasks, and the order of start and shutdown. A runtime goes through its states
once, ``new -> running -> closing -> closed``, under ``_lock``, which guards ``_state`` and nothing else.

Two ways to run one. ``polyloop.run`` makes the calling thread worker 0 (module ``_run``). ``with Runtime()`` starts all
workers in threads and leaves the caller free: for sync code, notebooks and tests.

Why closing cannot hang: each worker gets the same deadline, and cancels, waits and stops on its own; the closer waits
for all of them until a little later, completes the handles of those that did not come back, names them in the report
and leaves their (daemon) threads behind.
"""

import asyncio
import contextvars
import weakref
from collections.abc import Callable, Coroutine, Hashable
from types import CoroutineType, TracebackType
from typing import Any, Literal, Self, cast

from polyloop._core import _prims
from polyloop._core._completion import Completion, all_done
from polyloop._core._context import here, runs_a_loop
from polyloop._core._ending import Stuck, stuck_thread
from polyloop._core._errors import RuntimeClosedError, WorkerDiedError
from polyloop._core._gilwatch import gil_watch
from polyloop._core._handle import TaskHandle
from polyloop._core._parking import ThreadWaiter, refuse_on_loop_thread
from polyloop._core._port import Port, current_port, logger
from polyloop._core._selftest import check_wakeups
from polyloop._core._spin import spin_ns_for
from polyloop._core._worker import LoopFactory, Worker
from polyloop.runtime._placement import Here, Placement, PlacementName, by_key, policy_for
from polyloop.runtime._report import ShutdownReport

#: Seconds that a shutdown waits for tasks to end, unless the caller says otherwise.
SHUTDOWN_TIMEOUT = 10.0

#: Seconds beyond the deadline for a worker to stop its loop and leave.
_GRACE = 1.0

type On = PlacementName | Placement | Worker
type State = Literal["new", "running", "closing", "closed"]

#: Runtimes that run, for the exit hook, the fork hook and ``current_runtime`` on plain threads.
open_runtimes: "weakref.WeakSet[Runtime]" = weakref.WeakSet()
open_lock = _prims.Lock()  # guards open_runtimes


class Runtime:
    """A pool of event loops, one per thread, that behaves like one runtime.

    Use it as a context manager: ``with`` on a plain thread, ``async with`` on a thread that runs a loop of its own::

        with polyloop.Runtime(loops=4) as rt:
            handle = rt.spawn(fetch, url)
            print(handle.result(timeout=5))

    Leaving the block cancels what still runs, as ``asyncio.run`` does, waits for it up to ``shutdown_timeout`` and logs
    what would not stop.

    Args:
        loops: Number of workers; by default one per usable core on a free-threaded interpreter, and 1 with the GIL.
        loop_factory: Makes each worker's loop, called on that worker's thread. By default polyloop's own, which wakes
            faster than any other. Any other loop is tried once for lost wake-ups, and refused if it loses one.
        placement: Where tasks go that say nothing themselves: ``"least_loaded"``, ``"round_robin"``, ``"here"``, or an
            object with a ``choose`` method (see ``Placement``).
        steal: Whether an idle worker may take tasks that have not started from a busy one.
        spin: How long an idle worker looks for work before it sleeps: seconds, ``True`` or ``False``. By default 50 us
            on a free-threaded interpreter with more than one core, adapted to how often it pays; off with the GIL.
        debug: asyncio's debug mode for every loop; by default as ``PYTHONASYNCIODEBUG`` says.
        name: Prefix of the workers' thread names.
        shutdown_timeout: Seconds that leaving the block waits for tasks to end.
    Raises:
        ValueError: ``loops`` is below 1, or ``placement`` or ``spin`` is out of range.
    Thread safety: ``spawn``, ``run``, ``close`` and the attributes may be used from any thread.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        *,
        loops: int | None = None,
        loop_factory: LoopFactory | None = None,
        placement: PlacementName | Placement = "least_loaded",
        steal: bool = True,
        spin: bool | float | None = None,
        debug: bool | None = None,
        name: str = "polyloop",
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
    ) -> None:
        count = default_loops() if loops is None else loops
        if not isinstance(count, int) or count < 1:  # type: ignore[redundant-expr]
            raise ValueError(f"a runtime needs a whole number of loops, at least one; got loops={loops!r}")
        self.name = name
        self._policy = policy_for(placement)
        self._policies: dict[str, Placement] = {}
        self._loop_factory = loop_factory
        self._shutdown_timeout = shutdown_timeout
        self._lock = _prims.Lock()
        self._state: State = "new"
        self._forked_error: RuntimeClosedError | None = None  # set in a forked child
        self._closed = Completion[ShutdownReport]()
        spin_ns = spin_ns_for(spin)
        stealing = steal and count > 1
        self._workers = tuple(
            Worker(f"{name}-{index}", index, spin_ns=spin_ns, stealing=stealing, loop_factory=loop_factory, debug=debug)
            for index in range(count)
        )
        # The only worker, while it runs: most of the decisions below are no decisions then.
        self._solo: Worker | None = None
        self._open = self._workers  # workers that take tasks; replaced as a whole when one dies
        for worker in self._workers:
            worker.peers = self._workers
            worker.runtime = self
            worker.adopt = self._adopt

    def __repr__(self) -> str:
        return f"<Runtime {self.name!r} {self._state} loops={len(self._workers)}>"

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The workers, in the order of their index; also those that died."""
        return self._workers

    # Work

    def spawn[*Ts, T](
        self,
        fn: Callable[[*Ts], Coroutine[Any, Any, T]],
        *args: *Ts,
        on: On | None = None,
        key: Hashable | None = None,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> TaskHandle[T]:
        """Start ``fn(*args)`` on one of the loops and return without waiting for it.

        Args:
            on: Where to run it: a placement by name, a ``Worker``, or a policy object; the runtime's by default.
            key: Tasks of one key run on the same worker, whichever it is; instead of ``on``.
            name: Label in logs and reports; the qualified name of ``fn`` by default.
            context: The context to run in; a copy of the caller's by default. One thread at a time can be in a context,
                so without ``on`` or ``key`` the task stays on the caller's loop.
        Returns:
            A handle; awaiting it, on any loop, gives the result or raises what ``fn`` raised.
        Raises:
            RuntimeClosedError: the runtime is not running; ``fn`` was not called.
            TypeError: ``fn`` is not an async function.
            WorkerDiedError: every worker has died.
            ValueError: ``on`` names no placement or a worker of another runtime, or both ``on`` and ``key`` are given.
        Cancellation: cancelling the caller later leaves the task running; closing the runtime cancels it.
        Thread safety: any thread, with or without a loop. Tasks that one thread puts on the same worker by ``on`` or
        ``key`` start in the order of the calls.

        .. versionadded:: 0.1
        """
        if _is_coroutine(fn):
            cast("Any", fn).close()
            raise TypeError(
                f"spawn() calls the function itself, got {fn!r}; write spawn(fetch, url) or submit(fetch(url))"
            )
        if self._state != "running":
            raise self._closed_error(getattr(fn, "__qualname__", repr(fn)))
        coro = fn(*args)
        if not _is_coroutine(coro):
            raise TypeError(f"spawn() needs an async function, and {fn!r} returned {coro!r}; use to_thread() for it")
        handle = TaskHandle(coro, name, context)
        self.place(handle, on, key)
        return handle

    def submit[T](
        self,
        coro: Coroutine[Any, Any, T],
        *,
        on: On | None = None,
        key: Hashable | None = None,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> TaskHandle[T]:
        """``spawn`` for a coroutine that exists already; it is closed if the runtime refuses it.

        Raises:
            TypeError: ``coro`` is not a coroutine.
        """
        if not _is_coroutine(coro):
            raise TypeError(f"submit() needs a coroutine, got {coro!r}; call the async function: submit(main())")
        handle = TaskHandle(coro, name, context)
        self.place(handle, on, key)
        return handle

    def place(self, handle: TaskHandle[Any], on: On | None = None, key: Hashable | None = None) -> None:
        """Start a new handle, here or elsewhere; its coroutine is closed if that is refused. Any thread."""
        solo = self._solo
        if solo is not None and solo is here.port and on is None and key is None:
            handle._start_here(solo)
            return
        if handle._context is not None and on is None and key is None:
            # One thread at a time can be in a context, so tasks that share one share a loop.
            on, key = ("here", None) if runs_a_loop() else (None, id(handle._context))
        try:
            if self._state != "running":
                raise self._closed_error(handle.name)
            port, stealable = self._place(on, key)
        except BaseException:
            handle._drop()
            raise
        if port is here.port and not (stealable and port.stealing):
            handle._start_here(port)
            return
        if handle._context is None:
            handle._context = contextvars.copy_context()
        port.admit(handle, stealable)

    def _place(self, on: On | None, key: Hashable | None) -> tuple[Port, bool]:
        """The loop for a new task, and whether an idle worker may steal it."""
        if type(on) is Worker and key is None:
            if on.runtime is not self:
                raise ValueError(f"{on!r} is no worker of {self!r}; use one of its .workers")
            return on, False
        if key is not None:
            if on is not None:
                raise ValueError(f"both on={on!r} and key={key!r} say where to run; give one")
            return self._choose(lambda workers: by_key(key, workers)), False
        policy = self._policy if on is None else self._policy_for(on)
        port = here.port
        mine = port if isinstance(port, Worker) and port.runtime is self else None
        if not isinstance(policy, Here):
            return self._choose(lambda workers: policy.choose(workers, mine)), True
        if mine is None and runs_a_loop():  # "here" on a loop that is not of this runtime
            return current_port(), False
        return self._choose(lambda workers: policy.choose(workers, mine)), False

    def _choose(self, choice: Callable[[tuple[Worker, ...]], Worker]) -> Worker:
        """Ask for a worker until it is one that lives."""
        worker = self._checked(choice(self._open))
        if not worker.alive:
            alive = tuple(other for other in self._workers if other.alive)
            if not alive:
                raise WorkerDiedError(f"every worker of {self!r} has died; the log says why; start a new Runtime")
            self._open = alive
            worker = self._checked(choice(alive))
        if not worker.alive:
            raise WorkerDiedError(f"{worker!r} has died, and no other was chosen; the log says why it died")
        return worker

    def _checked(self, worker: object) -> Worker:
        """The answer of a placement policy, which may be the user's."""
        if not isinstance(worker, Worker) or worker.runtime is not self:
            raise ValueError(f"the placement of a task chose {worker!r}; it must return one of the workers of {self!r}")
        return worker

    def _policy_for(self, on: On) -> Placement:
        if not isinstance(on, str):
            return policy_for(on)
        policy = self._policies.get(on)
        if policy is None:
            policy = self._policies.setdefault(on, policy_for(on))
        return policy

    def _adopt(self, handle: TaskHandle[Any]) -> bool:
        """Find another worker for a task that waited on one that died."""
        try:
            port, _ = self._place("least_loaded", None)
        except WorkerDiedError:
            return False
        port.admit(handle, True)
        return True

    def _closed_error(self, what: str) -> RuntimeClosedError:
        if self._forked_error is not None:
            return RuntimeClosedError(f"cannot start {what}: {self._forked_error}")
        advice = "spawn inside its 'with' block" if self._state == "new" else "start a new Runtime"
        return RuntimeClosedError(f"cannot start {what}: {self!r} is not running; {advice}")

    def run[T](self, main: Coroutine[Any, Any, T]) -> T:
        """Run ``main`` on one of the loops and wait for its result, on a plain thread.

        Raises:
            TypeError: ``main`` is not a coroutine.
            BlockingCallError: this thread runs a loop; await ``submit`` there.
            RuntimeClosedError: the runtime is not running.
            BaseException: what ``main`` raised.
        Cancellation: Ctrl-C cancels ``main``, waits for it to end and raises ``KeyboardInterrupt``; a second Ctrl-C
        does not wait.
        Thread safety: any thread, several at once.

        .. versionadded:: 0.1
        """
        if not _is_coroutine(main):
            raise TypeError(f"run() needs a coroutine, got {main!r}; call the async function: runtime.run(main())")
        try:
            refuse_on_loop_thread("Runtime.run()", "await runtime.submit(...)")
        except BaseException:
            main.close()
            raise
        handle = self.submit(main)
        try:
            return handle.result()
        except KeyboardInterrupt:
            if not handle.done():
                handle.cancel()
                handle._block(None, ".run()")
            raise

    # Life

    def start(self) -> Self:
        """Start the workers' threads and wait until their loops run; ``with`` does this.

        Raises:
            RuntimeError: the runtime was started before.
            UnreliableLoopError: the loops of ``loop_factory`` lose wake-ups.
            BaseException: what ``loop_factory`` raised.
        """
        refuse_on_loop_thread("Runtime.start()", "async with Runtime()")
        self._begin()
        self._start_threads(self._workers)
        return self

    def _begin(self) -> None:
        with self._lock:
            if self._state != "new":
                raise RuntimeError(f"{self!r} was started or closed before; make a new Runtime")
            self._state = "running"
            self._solo = self._workers[0] if len(self._workers) == 1 else None
        with open_lock:
            open_runtimes.add(self)
        gil_watch.install()

    def _start_threads(self, workers: tuple[Worker, ...]) -> None:
        """Start ``workers`` in threads; if one cannot be started, stop those that were, and raise."""
        try:
            for worker in workers:
                worker.start_thread()
            for worker in workers:
                worker.ready._block(None, ".start()")
                worker.ready._outcome()
            if self._loop_factory is not None and workers:
                check_wakeups(workers[0].loop)
        except BaseException:
            self._abort(workers)
            raise

    def _abort(self, workers: tuple[Worker, ...]) -> None:
        """Undo a start that failed; nothing of the user's runs yet, so nobody is waited for. Any thread."""
        if self._claim_close():
            self._end(tuple(worker for worker in workers if worker.thread is not None), 0)

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
                await _in_thread(check_wakeups, self._workers[0].loop)
        except BaseException:
            self._abort(self._workers)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

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
        Thread safety: any thread. A second closer waits for the first.

        .. versionadded:: 0.1
        """
        refuse_on_loop_thread("Runtime.close()", "await runtime.aclose()")
        if self._claim_close():
            self._end(self._workers, self._shutdown_timeout if timeout is None else timeout)
        else:
            self._closed._block(None, ".close()")
        return self._closed._outcome()

    async def aclose(self, timeout: float | None = None) -> ShutdownReport:
        """``close`` for a thread that runs a loop of its own (a notebook, an ``async with``).

        Raises:
            RuntimeError: called by a task of this same runtime, which would wait for itself.
        """
        mine = here.port
        if isinstance(mine, Worker) and mine.runtime is self and self._state != "closed":
            raise RuntimeError(f"a task of {self!r} cannot wait for its own end; return from it, or cancel it, instead")
        if self._claim_close():
            deadline = _prims.monotonic() + (self._shutdown_timeout if timeout is None else timeout)
            self._begin_end(self._workers, self._end_refusal(), deadline)
            ended = all_done(worker.ended for worker in self._workers)
            try:
                async with asyncio.timeout(max(0.0, deadline + _GRACE - _prims.monotonic())):
                    await ended
            except TimeoutError:
                pass
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
                return True
            if state == "new":
                self._state = "closed"
        if state == "new":
            self._closed._complete(ShutdownReport())
        return False

    def _end(self, workers: tuple[Worker, ...], timeout: float) -> None:
        deadline = _prims.monotonic() + timeout
        try:
            self._begin_end(workers, self._end_refusal(), deadline)
            self._wait_ended(workers, deadline)
        finally:  # also after a Ctrl-C
            self._finish_end(workers)

    def _end_refusal(self) -> RuntimeClosedError:
        return RuntimeClosedError(f"the task was not run to its end: {self!r} was closed")

    def _begin_end(self, workers: tuple[Worker, ...], refusal: RuntimeClosedError, deadline: float) -> None:
        """Tell the workers to wind down; a second call may bring the deadline forward."""
        for worker in workers:
            worker.post(worker.begin_wind_down, refusal, deadline)

    def _wait_ended(self, workers: tuple[Worker, ...], deadline: float) -> None:
        """Wait for the workers' end until a little after the deadline. A plain thread."""
        waiter = ThreadWaiter()
        all_done(worker.ended for worker in workers)._add_waiter(waiter.wake)
        waiter.park(max(0.0, deadline + _GRACE - _prims.monotonic()))

    def _close_at_exit(self, timeout: float) -> None:
        """``close`` for the exit hook: somebody who began to close and was interrupted is not waited for."""
        if self._claim_close():
            self._end(self._workers, timeout)
        else:
            self._wait_closed(_prims.monotonic() + timeout)

    def _wait_closed(self, deadline: float) -> None:
        """Wait for somebody else's close, which is bounded unless its own thread is stuck. A plain thread."""
        try:
            self._closed._block(max(0.0, deadline + 2 * _GRACE - _prims.monotonic()), ".close()")
        except TimeoutError:
            logger.error("polyloop: %r: whoever closes it has not come to an end", self)

    def _finish_end(self, workers: tuple[Worker, ...]) -> None:
        """Complete the handles of workers that did not come back, and publish the report."""
        stuck: list[Stuck] = []
        for worker in workers:
            stuck.extend(worker.stuck)
            if not worker.ended.done():
                stuck.append(stuck_thread(worker.ident, worker.thread_name, worker.name))
                worker.abandon(RuntimeClosedError(f"{self!r} was closed while {worker!r} was stuck"))
            elif worker.thread is not None:
                worker.thread.join(_GRACE)
        self._publish(tuple(stuck))

    def _publish(self, stuck: tuple[Stuck, ...]) -> None:
        report = ShutdownReport(stuck)
        if stuck:
            logger.error("polyloop: %r: %s", self, report)
        self._state = "closed"
        with open_lock:
            open_runtimes.discard(self)
            if not open_runtimes:
                gil_watch.remove()
        self._closed._complete(report)

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
        self._closed._complete(ShutdownReport())


def _in_thread[*Ts](fn: Callable[[*Ts], object], *args: *Ts) -> Completion[None]:
    """Run ``fn(*args)`` in a thread of its own; for the few blocking steps of a start."""
    done = Completion[None]()

    def work() -> None:
        try:
            fn(*args)
        except BaseException as exc:
            done._complete(None, exc)
        else:
            done._complete(None)

    _prims.start_thread(work, "polyloop-start")
    return done


def _is_coroutine(value: object) -> bool:
    return type(value) is CoroutineType or asyncio.iscoroutine(value)


def default_loops() -> int:
    """One loop per usable core without the GIL; one with it, since more would take turns."""
    return 1 if _prims.gil_enabled() else _prims.usable_cores()

"""``Runtime``: N workers that behave like one event loop. What users call; the parts have files of their own.

``_life`` starts and ends it, ``_routing`` chooses loops for tasks, ``_run`` is ``polyloop.run``, which makes the
calling thread worker 0. ``with Runtime()`` starts all workers in threads and leaves the caller free: for sync code,
notebooks and tests.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable
from types import CoroutineType, FunctionType
from typing import Any, cast

from polyloop._core import _prims
from polyloop._core._context import here
from polyloop._core._context_owner import context_owner
from polyloop._core._errors import RuntimeClosedError, WorkerDiedError
from polyloop._core._handle import TaskHandle
from polyloop._core._migrant import MigratableTask
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._port import Port
from polyloop._core._scope import shield
from polyloop._core._spin import spin_ns_for
from polyloop._core._worker import LoopFactory, Worker
from polyloop.runtime._executor import RuntimeExecutor
from polyloop.runtime._life import SHUTDOWN_TIMEOUT, Life
from polyloop.runtime._placement import Placement, PlacementName
from polyloop.runtime._routing import On, Router


class Runtime(Life):
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
        steal: Whether an idle worker may take tasks that have not started from a busy one, and those that migrate.
        migratable: Whether tasks migrate that say nothing themselves, neither ``migratable`` nor where to run; see
            ``spawn``.
        spin: How long an idle worker looks for work before it sleeps: seconds, ``True`` or ``False``. By default 50 us
            on a free-threaded interpreter with more than one core, adapted to how often it pays; off with the GIL.
        debug: asyncio's debug mode for every loop; by default as ``PYTHONASYNCIODEBUG`` says.
        name: Prefix of the workers' thread names.
        shutdown_timeout: Seconds that leaving the block waits for tasks to end.
    Raises:
        ValueError: ``loops`` is below 1, or ``placement`` or ``spin`` is out of range, or ``migratable`` is given with
            a ``loop_factory``.
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
        migratable: bool = False,
        spin: bool | float | None = None,
        debug: bool | None = None,
        name: str = "polyloop",
        shutdown_timeout: float = SHUTDOWN_TIMEOUT,
    ) -> None:
        count = default_loops() if loops is None else loops
        if not isinstance(count, int) or count < 1:  # type: ignore[redundant-expr]
            raise ValueError(f"a runtime needs a whole number of loops, at least one; got loops={loops!r}")
        self.name = name
        spin_ns = spin_ns_for(spin)
        stealing = steal and count > 1
        workers = tuple(
            Worker(f"{name}-{index}", index, spin_ns=spin_ns, stealing=stealing, loop_factory=loop_factory, debug=debug)
            for index in range(count)
        )
        super().__init__(workers, loop_factory, shutdown_timeout)
        self._router = Router(self, workers, placement)
        self._migratable = migratable
        self.check_migratable(migratable)
        for worker in workers:
            worker.peers = workers
            worker.join(self._crew)
            worker.runtime = self
            worker.adopt = self._router.adopt

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
        migratable: bool | None = None,
    ) -> TaskHandle[T]:
        """Start ``fn(*args)`` on one of the loops and return without waiting for it.

        Args:
            on: Where to run it: a placement by name, a ``Worker``, or a policy object. A task whose place was asked for
                stays there; by default the runtime's placement applies, and an idle worker may steal the task.
            key: Tasks of one key run on the same worker, whichever it is; instead of ``on``.
            name: Label in logs and reports; the qualified name of ``fn`` by default.
            context: The context to run in; a copy of the caller's by default. One thread at a time can be in a context,
                so without ``on`` or ``key`` the task stays on the caller's loop.
            migratable: Whether the task may go on on another worker each time it has waited for something of polyloop.
                With ``on`` or ``key`` it is a task of that kind, and stays where that says. By default as the runtime
                was told. See ``docs/migrating.md``.
        Returns:
            A handle; awaiting it, on any loop, gives the result or raises what ``fn`` raised.
        Raises:
            RuntimeClosedError: the runtime is not running; ``fn`` was not called.
            TypeError: ``fn`` is not an async function.
            WorkerDiedError: every worker has died.
            ValueError: ``on`` names no placement or a worker of another runtime, or both ``on`` and ``key`` are given,
                or ``migratable`` although the loops are not polyloop's own.
        Cancellation: cancelling the caller later leaves the task running; closing the runtime cancels it.
        Thread safety: any thread, with or without a loop. Tasks that one thread puts on the same worker by ``on`` or
        ``key`` start in the order of the calls.

        .. versionadded:: 0.1
        """
        if type(fn) is not FunctionType and _is_coroutine(fn):
            cast("Any", fn).close()
            raise TypeError(
                f"spawn() calls the function itself, got {fn!r}; write spawn(fetch, url) or submit(fetch(url))"
            )
        if self._state != "running":
            raise self._closed_error(getattr(fn, "__qualname__", repr(fn)))
        coro = fn(*args)
        if not _is_coroutine(coro):
            raise TypeError(f"spawn() needs an async function, and {fn!r} returned {coro!r}; use to_thread() for it")
        handle = self.new_handle(coro, name, context, migratable, on, key)
        self.place(handle, on, key)
        return handle

    def new_handle[T](
        self,
        coro: Coroutine[Any, Any, T],
        name: str | None,
        context: contextvars.Context | None,
        migratable: bool | None,
        on: On | None,
        key: Hashable | None,
    ) -> TaskHandle[T]:
        """A task of the kind that is asked for, to be placed. Any thread.

        Raises:
            ValueError: ``migratable`` although the loops are not polyloop's own; ``coro`` was closed.
        """
        if migratable is None:
            migratable = self._migratable and on is None and key is None and context is None
        if not migratable:
            return TaskHandle(coro, name, context)
        if self._loop_factory is not None:
            coro.close()
            self.check_migratable(True)
        return MigratableTask(coro, name, context)

    def check_migratable(self, migratable: bool | None) -> bool:
        """Whether tasks migrate, given what their caller has said.

        Raises:
            ValueError: it has said so, and the loops are not polyloop's own.
        """
        if migratable and self._loop_factory is not None:
            raise ValueError("tasks migrate between polyloop's own loops only; leave out loop_factory or migratable")
        return self._migratable if migratable is None else migratable

    def submit[T](
        self,
        coro: Coroutine[Any, Any, T],
        *,
        on: On | None = None,
        key: Hashable | None = None,
        name: str | None = None,
        context: contextvars.Context | None = None,
        migratable: bool | None = None,
    ) -> TaskHandle[T]:
        """``spawn`` for a coroutine that exists already; it is closed if the runtime refuses it.

        Raises:
            TypeError: ``coro`` is not a coroutine.
        """
        if not _is_coroutine(coro):
            raise TypeError(f"submit() needs a coroutine, got {coro!r}; call the async function: submit(main())")
        handle = self.new_handle(coro, name, context, migratable, on, key)
        self.place(handle, on, key)
        return handle

    def place(self, handle: TaskHandle[Any], on: On | None = None, key: Hashable | None = None) -> None:
        """Start a new handle, here or elsewhere; its coroutine is closed if that is refused. Any thread."""
        if isinstance(handle, MigratableTask):
            self._place_migrant(handle, on, key)
            return
        solo = self._solo
        if solo is not None and solo is here.port and on is None and key is None:
            handle._start_here(solo)
            return
        try:
            if self._state != "running":
                raise self._closed_error(handle.name)
            if handle._shares_context and on is None and key is None:
                port, stealable = self._home_of(handle), False
            else:
                port, stealable = self._router.route(on, key)
        except BaseException as exc:
            handle._drop()
            if isinstance(exc, WorkerDiedError) and self._state != "running":  # they refuse, since it closes
                raise self._closed_error(handle.name) from None
            raise
        if port is here.port and not (stealable and port.stealing):
            handle._start_here(port)
            return
        if handle._context is None:
            handle._context = contextvars.copy_context()
        handle._claim_context(port)
        port.admit(handle, stealable)

    def _place_migrant(self, task: MigratableTask[Any], on: On | None, key: Hashable | None) -> None:
        port: Port | None = here.port
        stays = on is not None or key is not None or task._shares_context
        try:
            if self._state != "running":
                raise self._closed_error(task.name)
            if task._shares_context and on is None and key is None:
                port = self._home_of(task)
            elif stays or port is None or port.crew is not self._crew:
                port, _ = self._router.route(on, key)
            if not isinstance(port, Worker):
                raise ValueError(f"{task.name!r} cannot stay on {port!r}, which is no worker: leave out migratable")
            if task._shares_context:
                task._claim_context(port)
        except BaseException as exc:
            task._drop()
            if isinstance(exc, WorkerDiedError) and self._state != "running":
                raise self._closed_error(task.name) from None
            raise
        self._crew.start(task, port, stays)

    def _home_of(self, handle: TaskHandle[Any]) -> Port:
        """The loop for a task in a context of the user's: one thread at a time can be in it, so it has one loop."""
        assert handle._context is not None
        owner = context_owner(handle._context)
        return self._router.route("here", None)[0] if owner is None else owner

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
        does not wait. So does the cancellation of the call that this thread runs, which raises ``CancelledError``.
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
        except BaseException:  # Ctrl-C, or the end of the call that this thread runs
            if not handle.done():
                handle.cancel()
                with shield():
                    handle._block(None, ".run()")
            raise

    def as_executor(self, max_workers: int | None = None) -> RuntimeExecutor:
        """A ``concurrent.futures.Executor`` over this runtime, for code that takes one.

        Args:
            max_workers: Most sync functions that it runs at once; by default the process-wide pool's limit applies.
        Returns:
            A new executor. Shutting it down leaves the runtime, and other executors over it, as they are.
        Raises:
            ValueError: ``max_workers`` is below 1.
        Thread safety: any thread; the runtime need not have been started.

        .. versionadded:: 0.3
        """
        return RuntimeExecutor(self, max_workers)


def default_loops() -> int:
    """One loop per usable core without the GIL; one with it, since more would take turns."""
    return 1 if _prims.gil_enabled() else _prims.usable_cores()


def _is_coroutine(value: object) -> bool:
    return type(value) is CoroutineType or asyncio.iscoroutine(value)

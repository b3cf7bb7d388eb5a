"""``Runtime.as_executor()``: a runtime as a ``concurrent.futures.Executor``.

Who owns what. Each call has one ticket: for the thread or the task that begins it, or for whoever sees that none will
(a shutdown that cancels, a runtime that closes, a task that was refused). Who has the ticket completes the future, and
then takes the call out of ``_pending``. So each future is completed once.

Why no future waits for ever: an executor is listed with its runtime, and *then* looks whether that runs, before it
takes a call; a closer says that it does not, and *then* looks at the list. One of the two sees the other. A call that
has begun ends on its own; a task is cancelled by its runtime, a function is told to stop as those of ``to_thread`` are.

Futures are completed, and jobs handed to the pool of threads, outside of the lock.
"""

import asyncio
import contextvars
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from inspect import CO_COROUTINE, iscoroutinefunction
from types import FunctionType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

from polyloop._core import _overdue, _pool, _prims
from polyloop._core._completion import Completion, Wake
from polyloop._core._context import here
from polyloop._core._errors import RuntimeClosedError, copy_exception
from polyloop._core._handle import TaskHandle
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._port import Port
from polyloop._core._scope import Scope
from polyloop._core._worker import Worker
from polyloop.runtime._future import RuntimeFuture, complete, refuse

if TYPE_CHECKING:
    from polyloop.runtime._runtime import Runtime


def is_async_function(fn: Callable[..., Any]) -> bool:
    """Whether calling ``fn`` makes a coroutine: an ``async def``, a partial of one, an object whose call is one."""
    if type(fn) is FunctionType and not fn.__dict__:  # most are; the other looks take microseconds
        return bool(fn.__code__.co_flags & CO_COROUTINE)
    method = getattr(type(fn), "__call__", None)  # noqa: B004 - it is this very function that matters
    return iscoroutinefunction(fn) or iscoroutinefunction(method)


class _Work:
    """A call, from its submission to its end."""

    def __init__(self, executor: "RuntimeExecutor", call: Callable[[], Any], name: str) -> None:
        self.future = RuntimeFuture[Any]()
        self.executor = executor
        self.name = name  # what is called
        self._call: Callable[[], Any] | None = call  # until it was made, or will not be
        self._ticket = [None]

    def claim(self) -> bool:
        """Take the right to end it. Any thread."""
        try:
            self._ticket.pop()  # atomic: one ticket has one popper
        except IndexError:
            return False
        return True

    def drop(self, exc: BaseException | None) -> None:
        """It will not begin: ``exc`` is the outcome, or a cancellation. For whoever has claimed it."""
        self._call = None
        refuse(self.future, exc)

    def stop(self) -> None:
        """The runtime closes: tell what runs to stop."""


class _Job(_Work):
    """The call of a sync function; ``execute`` and ``announce`` are for the thread of the pool."""

    def __init__(self, executor: "RuntimeExecutor", call: Callable[[], Any], name: str) -> None:
        super().__init__(executor, call, name)
        self._context = contextvars.copy_context()
        self.port: Port | None = executor._home()
        self.thread: tuple[int, str] | None = None  # identity and name of the one that has begun it
        self._scope = Scope()
        self._outcome: tuple[Any, BaseException | None] | None = None

    def execute(self) -> None:
        """Make the call, unless somebody else has ended it."""
        call, self._call = self._call, None
        self.thread = (_prims.get_ident(), _prims.current_thread().name)
        if not self.claim():
            return
        if call is None or not self.future.set_running_or_notify_cancel():
            self.executor._forget(self)
            return
        here.call_port, here.scope = self.port, self._scope
        try:
            self._outcome = (self._context.run(call), None)
        except BaseException as exc:  # SystemExit too: it belongs to the future, not to this thread
            self._outcome = (None, self.executor._own_outcome(exc))
        finally:
            here.call_port = here.scope = None
            del self, call

    def announce(self) -> None:
        """Complete the future, and let the next one in."""
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            complete(self.future, *outcome)
            self.executor._forget(self)
        self.executor._let_in()

    def stop(self) -> None:
        self._scope.cancel()
        _overdue.add(self, abandoned=False)

    def _add_waiter(self, wake: Wake) -> None:
        self.future.add_done_callback(lambda _: wake())


class _Task(_Work):
    """The call of an async function."""

    _begun = False  # set by the task, read when that is done

    def start(self, runtime: "Runtime") -> None:
        """Place the task. By whoever submits it, before anybody has the future."""
        handle = TaskHandle(self._run(), self.name)
        self.future._handle = handle
        handle._add_waiter(partial(self._over, handle))
        runtime.place(handle)

    async def _run(self) -> None:
        call, self._call = self._call, None
        if call is None or not self.claim():
            return
        self._begun = True
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = await call()
        except BaseException as exc:
            complete(self.future, None, self.executor._own_outcome(exc))
            if isinstance(exc, (asyncio.CancelledError, GeneratorExit)):
                raise  # the end of the task itself
        else:
            complete(self.future, result, None)
            del result
        finally:
            del self, call

    def _over(self, handle: TaskHandle[None]) -> None:
        """The task is done, or never will begin."""
        exc = handle._exception_for_me()
        if self.claim():
            self.drop(None if isinstance(exc, asyncio.CancelledError) else exc)
        elif self._begun:
            if not self.future.done():  # it was given up together with its loop
                complete(self.future, None, exc)
        else:
            return  # whoever has the ticket
        self.executor._forget(self)

    def drop(self, exc: BaseException | None) -> None:
        super().drop(exc)
        self.future.request_cancel()


class RuntimeExecutor(Executor):
    """A runtime as an executor, for code that takes a ``concurrent.futures.Executor``; see ``Runtime.as_executor``.

    Sync functions run on the process-wide pool of threads, ``async def`` ones as tasks on the runtime's loops, both in
    a copy of the submitter's context. In both, ``current_runtime`` is the runtime; in the sync ones ``from_thread.run``
    runs coroutines on it.

    Leaving its ``with`` block waits for all calls, as with any executor. If the runtime closes first, calls that have
    not begun fail with ``RuntimeClosedError``, tasks are cancelled, and functions are told to stop as those of
    ``to_thread`` are. The end of the program does not wait for it.

    Attributes:
        max_workers: Most sync functions that run at once; ``None`` leaves that to the pool.
        runs_coroutines: An ``async def`` function may be submitted as it is.
    Thread safety: any thread.

    .. versionadded:: 0.3
    """

    runs_coroutines: ClassVar[bool] = True

    def __init__(self, runtime: "Runtime", max_workers: int | None = None) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, got {max_workers!r}")
        self.max_workers = max_workers
        self._runtime = runtime
        self._turns = itertools.count()  # next() is atomic
        self._lock = _prims.RLock()  # guards the fields below; a finaliser in its midst may end a task, or submit one
        self._shut_down = False
        self._refusal: RuntimeClosedError | None = None  # of the runtime that closes
        self._pending: dict[_Work, None] = {}
        self._room = max_workers  # for jobs with the pool; None: without limit
        self._waiting: deque[_Job] = deque()  # jobs for which there is no room
        self._drained: Completion[None] | None = None  # for those who wait in shutdown()

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else "open"
        return f"<RuntimeExecutor of {self._runtime!r} {state} pending={len(self._pending)}>"

    @overload
    def submit[**P, T](
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> RuntimeFuture[T]: ...
    @overload
    def submit[**P, T](self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> RuntimeFuture[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RuntimeFuture[Any]:
        """Run ``fn(*args, **kwargs)``: on a thread, or, if it is an async function, on one of the loops.

        Returns:
            Its future. What has not begun can be cancelled by it.
        Raises:
            RuntimeClosedError: the runtime is not running; ``fn`` was not called.
            RuntimeError: the executor was shut down.
        Thread safety: any thread; never blocks. Sync functions of one thread begin in the order of the calls.
        """
        call = partial(fn, *args, **kwargs) if args or kwargs else fn
        kind = _Task if is_async_function(fn) else _Job
        work = kind(self, call, str(getattr(fn, "__qualname__", fn)))
        goes = self._admit(work)
        try:
            if isinstance(work, _Task):
                work.start(self._runtime)
            elif goes:
                _pool.shared.pool.submit(work)
        except BaseException:  # the runtime closes, or the system cannot start a thread
            if work.claim():
                self._forget(work)
            if isinstance(work, _Job):
                self._let_in()
            raise
        return work.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: Wait for those there are.
            cancel_futures: Cancel those that have not begun.
        Raises:
            BlockingCallError: there is something to wait for, and this thread runs a loop; use ``aclose`` there. The
                executor is shut down all the same.
        Thread safety: any thread, any number of times.
        """
        drained = self._begin_shutdown(cancel_futures)
        if wait and not drained.done():
            refuse_on_loop_thread("RuntimeExecutor.shutdown()", "await executor.aclose()")
            drained._block(None, ".shutdown()")

    async def aclose(self, *, cancel_futures: bool = False) -> None:
        """``shutdown`` for async code.

        Cancellation: the executor is shut down, and what runs goes on.
        """
        await self._begin_shutdown(cancel_futures)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _begin_shutdown(self, cancel_futures: bool) -> Completion[None]:
        """Refuse calls from now on; what is returned is done when there are none any more."""
        with self._lock:
            self._shut_down = True
            drained = self._drained
            if drained is None:
                drained = self._drained = Completion[None]()
                if not self._pending:
                    drained._complete(None)
        if cancel_futures:
            self._take_back(None)
        return drained

    def _admit(self, work: _Work) -> bool:
        """Take a call, or raise; say whether there is room for it now."""
        runtime = self._runtime
        with self._lock:
            self._pending[work] = None
            runtime._executors[self] = None  # before the look at its state: see the module's theory
            closed = self._refusal is not None or runtime._state != "running"
            if not (closed or self._shut_down):
                return isinstance(work, _Job) and self._has_room_locked(work)
            del self._pending[work]
            self._unlist_locked()
        if closed:
            raise runtime._closed_error(work.name)
        raise RuntimeError(f"cannot schedule new futures after shutdown of {self!r}")

    def _has_room_locked(self, job: _Job) -> bool:
        """Take a place for a job, or let it wait for one."""
        if self._room is None:
            return True
        if self._room > 0:
            self._room -= 1
            return True
        self._waiting.append(job)
        return False

    def _forget(self, work: _Work) -> None:
        """A call has ended. By whoever had its ticket, when the future is done."""
        with self._lock:
            self._pending.pop(work, None)
            self._unlist_locked()
            drained = None if self._pending else self._drained
        if drained is not None and not drained.done():
            drained._complete(None)

    def _unlist_locked(self) -> None:
        if not self._pending:
            self._runtime._executors.pop(self, None)

    def _let_in(self) -> None:
        """A job has left the pool: let the next one in."""
        with self._lock:
            if self._room is None:
                return
            if not self._waiting:
                self._room += 1
                return
            job = self._waiting.popleft()
        try:
            _pool.shared.pool.submit(job)
        except BaseException as exc:  # the system cannot start a thread: somebody waits for the future
            if job.claim():
                job.drop(exc)
                self._forget(job)

    def _take_back(self, refusal: RuntimeClosedError | None) -> list[_Work]:
        """End all calls that have not begun; return the others."""
        with self._lock:
            works = [*self._pending]
            self._waiting.clear()  # each of them is ended here, or has been
        begun: list[_Work] = []
        for work in works:
            if work.claim():
                work.drop(refusal and copy_exception(refusal))
                self._forget(work)
            else:
                begun.append(work)
        return begun

    def _runtime_closes(self, refusal: RuntimeClosedError) -> Completion[None]:
        """Take no more calls, end those that have not begun, tell the others. Any thread, once.

        Returns:
            Done when all calls have ended.
        """
        with self._lock:
            self._refusal = refusal
        for work in self._take_back(refusal):
            work.stop()
        return self._begin_shutdown(False)

    def _forked(self, refusal: RuntimeClosedError) -> None:
        """In a forked child, whose only thread runs none of the calls, and where locks may be held for ever."""
        self._lock = _prims.RLock()
        self._refusal = refusal
        works, self._pending = self._pending, {}
        for work in works:
            work.future.end_in_child(copy_exception(refusal))
        drained, self._drained = self._drained, None
        if drained is not None:
            drained._complete(None)

    def _own_outcome(self, exc: BaseException) -> BaseException:
        """What a call raised; if the runtime closes, nobody else has cancelled it.

        Without the frame of its caller, which holds it, and that the future, and that the exception.
        """
        outcome, refusal, trace = exc, self._refusal, exc.__traceback__
        if refusal is not None and isinstance(exc, asyncio.CancelledError):
            outcome = copy_exception(refusal)
            outcome.__cause__ = exc
        return outcome.with_traceback(trace and trace.tb_next)

    def _home(self) -> Worker:
        """Where ``from_thread.run`` goes: the submitter's own loop, else one after the other."""
        workers = self._runtime.workers
        for mine in (here.port, here.call_port):
            if isinstance(mine, Worker) and mine.runtime is self._runtime:
                return mine
        first = next(self._turns)
        turned = (workers[(first + step) % len(workers)] for step in range(len(workers)))
        return next((worker for worker in turned if worker.alive), workers[0])

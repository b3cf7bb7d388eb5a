"""The handle of a task: what ``spawn`` and ``create_task`` return.

The task itself (``asyncio.Task``) is created, run, finished and dropped on one loop's thread; nobody else touches it
(invariant 1 of docs/design.md). The handle is what everybody else holds.

States, and who may change them::

    unstarted --_start--> running --_finish--> done
        |                     |                 ^
        +--- _refuse ---------+--- _fail -------+

An unstarted handle is in exactly one queue, and whoever pops it there is the only one who may start it, put it into
another worker's queue, or refuse it. A running one is in ``port.live``, and whoever removes it there completes it:
``_finish`` on its own thread, or the one who finds its loop dead. So every handle is completed, once.

Cancellation before the start. The canceller counts its request and *then* reads ``_port``; a starter sets ``_port`` and
``_task`` and *then* looks at the count. So the starter sees the request, or the canceller posts to the port where the
task runs. Requests are taken under a lock, each exactly once, as ``Task.cancelling`` counts them.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, cast

from polyloop._core import _prims
from polyloop._core._completion import MARK, Callback, Completion
from polyloop._core._context import here
from polyloop._core._port import NOWHERE, Port, logger


class Group(Protocol):
    """What a handle tells of its end, besides its waiters."""

    def _child_ended(self, handle: "TaskHandle[Any]", /) -> None:
        """``handle`` is done. Called once, on the thread that completed it; must not block or raise."""
        ...


#: Guards ``_cancels`` of every handle: cancelling is rare, and the lock is held for two statements.
_cancel_lock = _prims.Lock()


class TaskHandle[T](Completion[T]):
    """A task on some loop, awaitable on any loop and readable on any thread.

    Awaiting it gives the result or raises what the task raised; several waiters may do so at once. A cancelled awaiter
    cancels the task, as with ``asyncio.Task``, unless it waits through ``asyncio.shield``.

    Thread safety: every method may be called from any thread. ``result`` and ``exception`` block a plain thread and
    refuse to block one that runs a loop.

    .. versionadded:: 0.1
    """

    _port: Port = NOWHERE  # set by whoever places it; final from _start on
    # Future-like, as asyncio.isfuture defines it: wait_for, shield, gather and the like take the handle as it is,
    # instead of a task of their own around it. They look at the second one too.
    _asyncio_future_blocking = False
    _cancel_message: Any = None

    _task: "asyncio.Task[T] | None" = None  # owner thread only: others must not even hold a reference
    _name: str | None = None
    _context: contextvars.Context | None = None
    _shares_context = False  # the context was given by the user: another thread may be in it at any time
    _group: "Group | None" = None  # set before start
    _cancels: tuple[Any, ...] = ()  # messages of requests not yet delivered; guarded by _cancel_lock
    _watched = False  # somebody on the owner's loop awaits the task itself and will see its exception
    _unseen: "_UnseenError | None" = None

    def __init__(
        self, coro: Coroutine[Any, Any, T], name: str | None = None, context: contextvars.Context | None = None
    ) -> None:
        # Not super().__init__(): a handle is made for every task, and the call is a tenth of its price.
        self._waiters = []
        self._coro = coro
        if name is not None:
            self._name = name
        if context is not None:
            self._context = context
            self._shares_context = True

    # For everybody

    @property
    def name(self) -> str:
        """Label of the task: the name given at creation, else the qualified name of its function."""
        name = self._name
        if name is None:
            name = self._name = str(getattr(self._coro, "__qualname__", "task"))
        return name

    def get_name(self) -> str:
        """The same as ``name``, for code written against ``asyncio.Task``."""
        return self.name

    @property
    def worker(self) -> Port:
        """Where the task runs, or where it waits to be started (it may still be stolen then)."""
        return self._port

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs on the calling thread: a handle can be awaited on any, so it is at home on each.

        Raises:
            RuntimeError: no loop runs on this thread.
        """
        return asyncio.get_running_loop()

    def __repr__(self) -> str:
        name = self.name
        if not self._done:
            state = "pending"
        elif self._cancelled:
            state = "cancelled"
        elif self._exception is not None:
            state = f"failed exception={self._exception!r}"
        else:
            state = "finished"
        return f"<TaskHandle {name!r} {state} on {self._port.name}>"

    def done(self) -> bool:
        """Whether the task has ended, in whatever way."""
        task = self._local_task()
        return self._done if task is None else task.done()

    def cancelled(self) -> bool:
        """Whether the task has ended by cancellation."""
        task = self._local_task()
        return self._done and self._cancelled if task is None else task.cancelled()

    def result(self, timeout: float | None = None) -> T:
        """The task's result; waits for it on a plain thread.

        Args:
            timeout: Seconds to wait at most; ``None`` waits as long as it takes.
        Raises:
            TimeoutError: the task was not done in time; it runs on.
            BlockingCallError: the task is not done and this thread runs a loop, which must not block.
            BaseException: what the task raised; ``CancelledError`` if it was cancelled.
        Thread safety: any thread.
        """
        task = self._local_task()
        if task is not None and task.done():
            self._watched = True
            return task.result()
        self._block(timeout, ".result()")
        return self._outcome()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or ``None``; waits like ``result``.

        Raises:
            TimeoutError, BlockingCallError: as ``result``.
            CancelledError: the task was cancelled.
        Thread safety: any thread.
        """
        task = self._local_task()
        if task is not None and task.done():
            self._watched = True
            return task.exception()
        self._block(timeout, ".exception()")
        if self._cancelled:
            self._outcome()
        return self._exception_for_me()

    def cancel(self, msg: Any = None) -> bool:
        """Ask the task to stop: ``CancelledError`` is raised in it at its next step.

        A task that has not started never will, and ends cancelled.

        Returns:
            ``False`` if the task was already done, ``True`` if the request was made.
        Thread safety: any thread; the request is delivered on the task's own loop.
        """
        task = self._local_task()
        if task is not None:
            return task.cancel(msg)
        if self._done:
            return False
        with _cancel_lock:
            self._cancels += (msg,)
        self._port.post(self._deliver_cancels)  # the port is read after the request is counted: see the theory above
        return True

    def add_done_callback(
        self, fn: "Callable[[TaskHandle[T]], object]", *, context: contextvars.Context | None = None
    ) -> None:
        """Call ``fn(handle)`` when the task is done.

        Added on a thread that runs a loop, ``fn`` runs on that loop, soon after; added elsewhere, it runs on the
        thread that completes the task and must not block.

        Args:
            context: The context to run ``fn`` in; a copy of the current one by default.
        Thread safety: any thread.
        """
        self._add_waiter(Callback(fn, self, context))

    def remove_done_callback(self, fn: "Callable[[TaskHandle[T]], object]") -> int:
        """Remove every callback equal to ``fn`` that has not been scheduled; return how many there were."""
        doomed = [waiter for waiter in self._waiters.copy() if getattr(waiter, "fn", None) == fn]  # see Callback
        for waiter in doomed:
            self._drop_waiter(waiter)
        return len(doomed)

    def __await__(self) -> Generator[Any, None, T]:
        task = self._local_task()
        if task is not None:
            self._watched = True
            return task.__await__()  # a task of this same loop: asyncio does it all
        return self._await_away()

    # Waiting

    def _await_away(self) -> Generator[Any, None, T]:
        """Wait from another loop. The awaiter's cancellation goes to the task; the awaiter then waits for its end."""
        passed_on: asyncio.CancelledError | None = None
        while not self._done:
            try:
                yield from self._wait()
            except asyncio.CancelledError as exc:
                if not self.cancel(*exc.args[:1]):
                    raise  # the task ended first, and the awaiter is cancelled all the same
                passed_on = exc
        if passed_on is not None and self._cancels:
            raise passed_on  # the task ended before the request reached it
        if self._exception is None:
            return cast("T", self._result)
        return self._outcome()

    def _make_cancelled_error(self) -> BaseException:
        """For asyncio.gather: the exception of a cancelled task."""
        return self._exception_for_me() or asyncio.CancelledError()

    def _mark_retrieved(self) -> None:
        unseen = self._unseen
        if unseen is not None:
            unseen.exc = None
            self._unseen = None

    # For the owner's thread

    def _local_task(self) -> "asyncio.Task[T] | None":
        """The task, if it runs on the calling thread: ``_task`` is not for other threads.

        The port is read twice. 1. This thread sees its own port: the handle waits in its queue. 2. Another worker
        steals it, which sets the port, and starts it, which sets the task. 3. This thread sees that task. The second
        look tells.
        """
        mine = here.port
        if self._port is not mine:
            return None
        task = self._task
        return task if self._port is mine else None

    def _start(self, port: Port) -> None:
        """Start the task on ``port``, whose thread calls this after taking the handle out of a queue.

        The task takes its first step at once: the caller is on another thread or has given the handle away, so nobody
        can tell it from a step at the next tick, and a task that ends in its first step costs half.
        """
        self._port = port
        if self._cancels:
            self._coro.close()  # it has not begun, so there is nothing to clean up in it
            self._fail(asyncio.CancelledError(*[msg for msg in self._cancels[-1:] if msg is not None]))
            return
        if self._shares_context and not self._can_enter():
            return
        if port.plain_tasks and not self._shares_context:
            self._step_now(port)
        else:
            self._create(port)
        if self._cancels:
            self._deliver_cancels()

    def _can_enter(self) -> bool:
        """Fail a task whose context another thread is in: its steps would be lost, one by one, with nobody told."""
        assert self._context is not None
        try:
            self._context.run(_nothing)
        except RuntimeError as exc:
            self._refuse(exc)
            return False
        return True

    def _step_now(self, port: Port) -> None:
        live = port.live
        live.add(self)
        try:
            task = asyncio.Task(self._coro, loop=port.loop, name=self._name, context=self._context, eager_start=True)
        except BaseException as exc:
            # The first step raised SystemExit or KeyboardInterrupt, which asyncio lets out of the loop; or the task
            # could not be made.
            self._coro.close()
            if self in live:
                live.discard(self)
                self._fail(exc)
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise
            return
        self._task = task
        if task.done():
            self._finish(task)
        else:
            task.add_done_callback(self._finish, context=port.context)

    def _start_here(self, port: Port) -> None:
        """Start the task on the loop of the caller; it takes its first step at a later tick, as asyncio's do."""
        self._create(port)
        if self._cancels:  # of a group that was aborted meanwhile, on another loop
            self._deliver_cancels()

    def _create(self, port: Port) -> None:
        """Create the task. By the thread of ``port``."""
        self._port = port
        try:
            if port.plain_tasks:
                task = asyncio.Task(self._coro, loop=port.loop, name=self._name, context=self._context)
            else:
                task = port.new_task(self._coro, self._name, self._context)
        except BaseException as exc:
            self._coro.close()
            self._fail(exc)
            return
        self._task = task
        port.live.add(self)
        task.add_done_callback(self._finish, context=port.context)

    def _deliver_cancels(self) -> None:
        """Hand the requests to the task. On the thread of the port that the canceller saw."""
        port = self._port
        if not port.is_current():  # stolen since: its thief has it, or will have looked at the requests
            port.post(self._deliver_cancels)
            return
        task = self._task
        if task is None:  # done, or not started: _start looks at the requests
            return
        with _cancel_lock:
            requests, self._cancels = self._cancels, ()
        for msg in requests:
            if not task.cancel(msg):  # it ended first: an awaiter that passed the request on wants to know
                self._cancels = requests

    def _finish(self, task: "asyncio.Task[T]") -> None:
        """The task is done: publish its outcome and drop it, on its own thread."""
        self._task = None
        try:
            self._port.live.remove(self)  # atomic: whoever takes a handle out of live completes it
        except KeyError:
            return  # forsaken by a worker that died
        try:
            exc = task.exception()  # not result(), which gives the traceback away to whoever asks first
        except asyncio.CancelledError as cancelled:
            if self._watched and cancelled.args:
                # Of a cancellation, the object with the message is given away once too: the awaiter gets another.
                with contextlib.suppress(AttributeError):
                    task._cancel_message = cancelled.args[0]  # type: ignore[attr-defined]
            # This frame is in the traceback now, which is no news to anybody.
            exc = cancelled.with_traceback(cancelled.__traceback__.tb_next if cancelled.__traceback__ else None)
        if exc is not None:
            if self._watched:  # asyncio raises this very object in those who await the task on its own loop
                self.__dict__["_raiser"] = _prims.get_ident()
            self._fail(exc)
            return
        self._result = task.result()
        self._done = True  # as _publish does; this is the path of every task
        waiters = self._waiters
        waiters.append(MARK)
        if len(waiters) > 1:
            self._wake_all()
        group = self._group
        if group is not None:
            group._child_ended(self)

    # For whoever took it out of its queue for good

    def _fail(self, exc: BaseException) -> None:
        """Complete with ``exc``; the coroutine must be closed or finished."""
        if self._group is None and not self._watched and not isinstance(exc, asyncio.CancelledError):
            self._unseen = _UnseenError(self.name, self._port, exc)
        self._complete(None, exc)
        if self._group is not None:
            self._group._child_ended(self)

    def _drop(self) -> None:
        """Close the coroutine of a handle that nobody will see. Before it is placed."""
        self._coro.close()

    def _refuse(self, exc: BaseException) -> None:
        """Complete a handle that will never start. Any thread that popped it."""
        self._coro.close()
        self._fail(exc)


def _nothing() -> None:
    """What a context is entered for to see whether that works."""


class _UnseenError:
    """Reports, when it is dropped, an exception that nobody has looked at."""

    __slots__ = ("_name", "_port", "exc")

    def __init__(self, name: str, port: Port, exc: BaseException) -> None:
        self._name = name
        self._port = port
        self.exc: BaseException | None = exc  # cleared when somebody looks

    def __del__(self) -> None:
        if self.exc is None:
            return
        message = f"polyloop: the exception of task {self._name!r} was never retrieved"
        if self._port.mailbox.closed or self._port.loop.is_closed():
            logger.error(message, exc_info=self.exc)
        else:
            self._port.post(self._port.loop.call_exception_handler, {"message": message, "exception": self.exc})

"""A task as the loop that owns it sees it: started, finished and cancelled there.

The task itself (``asyncio.Task``) is created, run, finished and dropped on one loop's thread; nobody else touches it
(invariant 1 of docs/design.md). The handle is what everybody else holds.

States, and who may change them::

    unstarted --_start--> running --_finish--> done
        |                     |                 ^
        +--- _refuse ---------+--- _fail -------+

An unstarted handle is in exactly one queue, and whoever pops it there is the only one who may start it, put it into
another worker's queue, or refuse it. A running one is in ``port.live``, and whoever removes it there completes it:
``_finish`` on its own thread, or the one who finds its loop dead. So every handle is completed, once.

Cancellation before the start. The canceller lists its request and *then* reads ``_port``; a starter sets ``_port`` and
``_task`` and *then* looks for requests. So the starter sees the request, or the canceller posts to the port where the
task runs. In detail: the first request makes the list and sets it, with itself in it, on the handle, as the starter
sets the port on the handle, and the handle's own lock orders the two. Further ones are appended to that list, and the
list's lock orders them with the starter, who pops. Each request is popped once, as ``Task.cancelling`` counts them. No
lock is held, so ``cancel`` may be called in signal handlers and in forked children.
"""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from polyloop._core import _prims
from polyloop._core._completion import LOOK, Completion, set_once
from polyloop._core._context import here
from polyloop._core._context_owner import claim_context
from polyloop._core._port import NOWHERE, Port
from polyloop._core._unseen import UnseenError

if TYPE_CHECKING:
    from polyloop._core._handle import TaskHandle

_Task: Any = asyncio.Task  # looked up for each task


class Group(Protocol):
    """What a handle tells of its end, besides its waiters."""

    def _child_ended(self, handle: Any, /) -> None:
        """``handle`` is done. Called once, on the thread that completed it; must not block or raise."""
        ...


class OwnedTask[T](Completion[T]):
    """What ``TaskHandle`` is to ports and workers."""

    _port: Port = NOWHERE  # set by whoever places it; final from _start on
    _task: "asyncio.Task[T] | None" = None  # owner thread only: others must not even hold a reference
    _name: str | None = None
    _context: contextvars.Context | None = None
    _shares_context = False  # the context was given by the user: another thread may be in it at any time
    _group: "Group | None" = None  # set before start
    _cancels: deque[Any] | None = None  # messages of requests not yet delivered; appended by any thread, see above
    _missed_cancel = False  # a request found the task done; owner thread, before the outcome is published
    _watched = False  # somebody on the owner's loop awaits the task itself and will see its exception
    _unseen: UnseenError | None = None

    def __init__(
        self, coro: Coroutine[Any, Any, T], name: str | None = None, context: contextvars.Context | None = None
    ) -> None:
        # Not super().__init__(): a handle is made for every task, and the call is a tenth of its price.
        self._waiters = {}
        self._coro = coro
        if name is not None:
            self._name = name
        if context is not None:
            self._context = context
            self._shares_context = True

    def _label(self) -> str:
        name = self._name  # not to be set here: another thread may be giving it one
        return str(getattr(self._coro, "__qualname__", "task")) if name is None else name

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
        requests = self._cancels
        if requests is not None:
            self._coro.close()  # it has not begun, so there is nothing to clean up in it
            msg = requests[-1]
            self._fail(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
            return
        if self._shares_context and not self._can_enter(port):
            return
        if port.plain_tasks and not self._shares_context:
            self._step_now(port)
        else:
            self._create(port)
        if self._cancels is not None:
            self._deliver_cancels()

    def _can_enter(self, port: Port) -> bool:
        """Pass a task on whose context belongs to another loop, and fail one whose context another thread is in."""
        assert self._context is not None
        owner = claim_context(self._context, port)
        if owner is not port:  # whoever placed it here knows, so it was stolen
            owner.admit(cast("TaskHandle[T]", self), False)
            return False
        try:
            self._context.run(_nothing)
        except RuntimeError as exc:
            self._refuse(exc)
            return False
        return True

    def _claim_context(self, port: Port) -> None:
        """Bind a context that the user gave to the loop of ``port``, before the task is queued or made there.

        Raises:
            RuntimeError: the context belongs to another loop; the coroutine was closed.
        """
        if not self._shares_context:
            return
        assert self._context is not None
        owner = claim_context(self._context, port)
        if owner is not port:
            self._coro.close()
            raise RuntimeError(
                f"cannot start {self._label()!r} on {port.name}: its context is that of tasks on {owner.name}, and one "
                "thread at a time can be in a context; start it there, or give it a copy (context.copy())"
            )

    def _step_now(self, port: Port) -> None:
        live: set[Any] = port.live
        live.add(self)
        # Made in two steps, so that it is at hand when its first step or a signal handler raises, and so that it hears
        # of a cancellation in its first step.
        task: asyncio.Task[T] = _Task.__new__(_Task)
        self._task = task
        try:
            _Task.__init__(task, self._coro, loop=port.loop, name=self._name, context=self._context, eager_start=True)
            if not task.done():
                task.add_done_callback(self._finish, context=port.context)
                return
        except BaseException as exc:
            self._resume_start(port, task, exc)
            return
        self._finish(task)

    def _resume_start(self, port: Port, task: "asyncio.Task[T]", exc: BaseException) -> None:
        """``exc`` came out of the first step, or of a signal handler beside it: go on as if not, and raise it."""
        if task.done():  # asyncio lets SystemExit and KeyboardInterrupt out of the loop
            set_once(self, "_raiser", _prims.get_ident())
            self._finish(task)
            raise exc
        if task.get_coro() is not None:  # it lives on; to be told of its end twice does no harm
            self._keep(port, task)
            raise exc
        live: set[Any] = port.live
        live.discard(self)
        self._fail_to_start(exc)

    def _start_here(self, port: Port) -> None:
        """Start the task on the loop of the caller; it takes its first step at a later tick, as asyncio's do.

        Raises:
            RuntimeError: as ``_claim_context``.
        """
        self._claim_context(port)
        self._create(port)
        if self._cancels is not None:  # of a group that was aborted meanwhile, on another loop
            self._deliver_cancels()

    def _create(self, port: Port) -> None:
        """Create the task. By the thread of ``port``."""
        self._port = port
        try:
            if self._shares_context:
                self._claim_context(port)
            if port.plain_tasks:
                task = asyncio.Task(self._coro, loop=port.loop, name=self._name, context=self._context)
            else:
                task = port.new_task(self._coro, self._name, self._context)
        except BaseException as exc:
            found = self._find_task(port)
            if found is None:
                self._fail_to_start(exc)
                return
            self._keep(port, found)  # it was made, and then a signal handler raised
            raise
        self._task = task  # the lines of _keep, without its call
        live: set[Any] = port.live
        live.add(self)
        task.add_done_callback(self._finish, context=port.context)

    def _keep(self, port: Port, task: "asyncio.Task[T]") -> None:
        self._task = task
        live: set[Any] = port.live
        live.add(self)
        task.add_done_callback(self._finish, context=port.context)

    def _find_task(self, port: Port) -> "asyncio.Task[T] | None":
        """The task that runs our coroutine, if there is one that is not done. Owner thread."""
        for task in asyncio.all_tasks(port.loop):
            if task.get_coro() is self._coro:
                return task
        return None

    def _fail_to_start(self, exc: BaseException) -> None:
        """There is no task: ``exc`` is the outcome; what is meant to end the loop goes on too."""
        self._task = None
        self._coro.close()
        set_once(self, "_raiser", _prims.get_ident())
        self._fail(exc)
        if isinstance(exc, (SystemExit, KeyboardInterrupt)):
            raise exc

    def _rename(self) -> None:
        task = self._local_task()
        if task is not None:
            task.set_name(self._label())

    def _request_cancel(self, msg: Any) -> None:
        """Cancel the task, wherever it is and whether it has started. Any thread; see the theory above."""
        mine = deque((msg,))
        requests = set_once(self, "_cancels", mine)
        if requests is not mine:
            requests.append(msg)
        self._port.post(self._deliver_cancels)  # the port is read after the request is listed

    def _missed_one(self) -> bool:
        """Whether a request for its cancellation has not reached it, now that it is done."""
        return bool(self._cancels or self._missed_cancel)

    def _cancel_requests(self) -> Sequence[Any] | None:
        """The messages of those that were made before it was started, if there are any."""
        return self._cancels

    def _deliver_cancels(self) -> None:
        """Hand the requests to the task. On the thread of the port that the canceller saw."""
        port = self._port
        if not port.is_current():  # stolen since: its thief has it, or will have looked at the requests
            port.post(self._deliver_cancels)
            return
        task, requests = self._task, self._cancels
        if task is None or requests is None:  # done, or not started: _start looks at the requests
            return
        with contextlib.suppress(IndexError):
            while True:
                msg = requests.popleft()  # atomic: each request is delivered once
                if not task.cancel(msg):  # it ended first: an awaiter that passed the request on wants to know
                    self._missed_cancel = True

    def _finish(self, task: "asyncio.Task[T]") -> None:
        """The task is done: publish its outcome and drop it, on its own thread."""
        self._task = None
        live: set[Any] = self._port.live
        try:
            live.remove(self)  # atomic: whoever takes a handle out of live completes it
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
        waiters.pop(LOOK, None)
        try:
            if waiters:
                self._wake_all()
        finally:
            group = self._group
            if group is not None:
                group._child_ended(self)

    # For whoever took it out of its queue for good

    def _fail(self, exc: BaseException) -> None:
        """Complete with ``exc``; the coroutine must be closed or finished."""
        if self._group is None and not self._watched and not isinstance(exc, asyncio.CancelledError):
            self._unseen = UnseenError(self._label(), self._port, exc)
        try:
            self._complete(None, exc)
        finally:
            if self._group is not None:
                self._group._child_ended(self)

    def _drop(self) -> None:
        """Close the coroutine of a handle that nobody will see. Before it is placed."""
        self._coro.close()

    def _refuse(self, exc: BaseException) -> None:
        """Complete a handle that will never start. Any thread that popped it."""
        self._coro.close()
        self._fail(exc)

    def _mark_retrieved(self) -> None:
        unseen = self._unseen
        if unseen is not None:
            unseen.exc = None
            self._unseen = None


def _nothing() -> None:
    """What a context is entered for to see whether that works."""

"""``TaskGroup``: asyncio's, with children on every loop.

A group has a home: the loop on which it was entered. All its decisions are taken there, on one thread, with asyncio's
own rules. Three things come from other threads. A child's end is posted home, and so is ``cancel``, once the group has
a home. A new child may be created by any thread.

A thread that adds a child adds it to ``_tasks`` and *then* reads the flags, while home sets a flag and *then* copies
the set, so that one of the two sees the other (``set.add`` and ``set.copy`` are critical sections of the set, which
orders them). ``cancel`` and the entry meet in the same way: each sets its flag, copies the set, and reads the
other's.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from types import CoroutineType, TracebackType
from typing import Any, Self

from polyloop._core._context import here
from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port, current_port
from polyloop._core._worker import Worker
from polyloop.runtime._current import running_runtime
from polyloop.runtime._placement import policy_for
from polyloop.runtime._routing import On
from polyloop.runtime._runtime import Runtime


class TaskGroup:
    """``asyncio.TaskGroup`` whose children run on all loops of the runtime.

    The semantics are asyncio's: leaving the block waits for all children; the first that fails cancels its siblings and
    the block; the failures are raised together as an ``ExceptionGroup``; a cancelled parent cancels its children.
    What differs: two children may run at the same instant, on two loops, so state that they share needs a lock, a
    queue, or ``on="here"``.

    On a thread whose loop polyloop does not run, and with no runtime open in the process, the children run on that
    loop.

    Thread safety: ``create_task``, ``start_soon`` and ``cancel`` may be called from any child on any loop, and from any
    thread while the group is open. Enter and leave it in one task.

    .. versionadded:: 0.1
    """

    def __init__(self) -> None:
        # Home, while a child created there starts there: no other loop to choose, nothing to refuse. Written at home.
        self._direct: Port | None = None
        self._entered = False
        self._exiting = False
        self._aborting = False
        self._finished = False
        self._cancel_on_entry = False
        self._home: Port
        self._runtime: Runtime | None = None
        self._parent: asyncio.Task[Any] | None = None
        self._parent_cancel_requested = False
        self._tasks: set[TaskHandle[Any]] = set()  # added to by any thread, all else at home
        self._aborted: set[TaskHandle[Any]] | None = None  # the children that _abort has cancelled
        self._cancelled: BaseException | None = None  # the cancellation of the block that goes on outside
        self._last_cancelled: BaseException | None = None  # the last one that came while the group was waiting
        self._errors: list[BaseException] = []
        self._base_error: BaseException | None = None
        self._all_ended: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        info = [""]
        if self._tasks:
            info.append(f"tasks={len(self._tasks)}")
        if self._errors:
            info.append(f"errors={len(self._errors)}")
        if self._aborting:
            info.append("cancelling")
        elif self._entered:
            info.append("entered")
        return f"<TaskGroup{' '.join(info)}>"

    # For any thread

    def create_task[T](
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        on: On | None = None,
        key: Hashable | None = None,
        eager_start: bool | None = None,
    ) -> TaskHandle[T]:
        """Start a child and return its handle; ``asyncio.TaskGroup.create_task`` with a choice of the loop.

        Args:
            name: Label of the task; the qualified name of the coroutine by default.
            context: The context to run in; a copy of the caller's by default. One thread at a time can be in a context,
                so a child that is given one stays on the caller's loop, unless ``on`` or ``key`` say otherwise.
            on: Where to run it, as in ``Runtime.spawn``; ``"here"`` keeps it on the caller's loop.
            key: Tasks of one key run on the same worker; instead of ``on``. Without a runtime there is one loop to
                choose from; what makes no sense is refused all the same.
            eager_start: Accepted as asyncio's, but not ``True``: the caller cannot run the first step of a task of
                another loop. (A child on another loop takes it as soon as that loop has it.)
        Raises:
            TypeError: ``coro`` is not a coroutine, or ``eager_start`` is true; ``coro`` was closed.
            ValueError: ``on`` or ``key`` make no sense; ``coro`` was closed.
            RuntimeError: the group was not entered, is being cancelled, or has finished; ``coro`` was closed.
            RuntimeClosedError: the runtime is closing.
        Cancellation: waits for nothing.
        Thread safety: any thread; see the class.
        """
        kind = type(coro)
        if kind is not CoroutineType and not asyncio.iscoroutine(coro):
            raise TypeError(f"a coroutine was expected, got {coro!r}")
        if eager_start:
            coro.close()
            raise TypeError("a child may run on another loop, where its creator cannot step it: leave out eager_start")
        port = here.port
        if port is not self._direct or on is not None or key is not None or port is None:
            return self._create(coro, name, context, on, key)
        handle = TaskHandle(coro, name, context)
        handle._group = self
        self._tasks.add(handle)
        handle._create(port)
        try:
            return handle
        finally:
            del handle  # no reference cycle through the traceback of an eager child's exception

    def _create[T](
        self,
        coro: Coroutine[Any, Any, T],
        name: str | None,
        context: contextvars.Context | None,
        on: On | None,
        key: Hashable | None,
    ) -> TaskHandle[T]:
        """``create_task`` where there is a choice of loops, or another thread may decide at the same time."""
        closed = self._why_closed()
        if closed is not None:
            coro.close()
            raise RuntimeError(f"TaskGroup {self!r} {closed}")
        handle = TaskHandle(coro, name, context)
        handle._group = self
        self._tasks.add(handle)
        if self._finished:  # the group was left between the look above and the add
            self._tasks.discard(handle)
            self._home.post(self._look_again)
            coro.close()
            raise RuntimeError(f"TaskGroup {self!r} is finished")
        try:
            self._place(handle, on, key)
        except BaseException:
            self._tasks.discard(handle)
            self._home.post(self._look_again)
            raise
        if self._aborting:  # it was aborted between the look above and the add, or by the child itself
            self._home.post(self._cancel_late, handle)
        try:
            return handle
        finally:
            del handle  # as in create_task

    def start_soon[*Ts](
        self,
        fn: Callable[[*Ts], Coroutine[Any, Any, object]],
        *args: *Ts,
        name: str | None = None,
        context: contextvars.Context | None = None,
        on: On | None = None,
        key: Hashable | None = None,
    ) -> None:
        """Start ``fn(*args)`` as a child and return nothing; the spelling of anyio and trio.

        Raises:
            RuntimeError: as ``create_task``; ``fn`` was not called.
        Thread safety: any thread; see the class.
        """
        closed = self._why_closed()
        if closed is not None:
            raise RuntimeError(f"TaskGroup {self!r} {closed}")
        self.create_task(fn(*args), name=name, context=context, on=on, key=key)

    def cancel(self) -> None:
        """Cancel the children and the block; the group is then left without an exception.

        The ``TaskGroup.cancel`` of Python 3.15, for any thread; called off the group's own loop, it is a message to
        that loop. Cancelling twice, or a group that has ended, does nothing; cancelling a group before it is entered
        cancels it as soon as it is.
        """
        if not self._entered:
            self._cancel_on_entry = True
            self._tasks.copy()  # for its critical section: see the module's theory
            if not self._entered:
                return
        if self._home.is_current():
            self._cancel_here()
        else:
            self._home.post(self._cancel_here)

    def _why_closed(self) -> str | None:
        if not self._entered:
            return "has not been entered"
        if self._finished or (self._exiting and not self._tasks):
            return "is finished"
        return "is shutting down" if self._aborting else None

    def _place(self, handle: TaskHandle[Any], on: On | None, key: Hashable | None) -> None:
        if self._runtime is not None:
            self._runtime.place(handle, on, key)
            return
        try:
            _check_choice(on, key)
        except BaseException:
            handle._drop()
            raise
        if self._home.is_current():
            handle._start_here(self._home)
        else:
            handle._context = handle._context or contextvars.copy_context()
            handle._claim_context(self._home)
            self._home.admit(handle, False)

    def _child_ended(self, handle: TaskHandle[Any]) -> None:
        """A child is done. On whatever thread completed it; the rest happens at home."""
        home = self._home
        if home is not here.port:
            home.post(partial(self._child_ended, handle))
            return
        self._tasks.discard(handle)
        if self._all_ended is not None:
            self._look_again()
        if handle._exception is not None and not handle._cancelled:
            self._child_failed(handle)

    # At home

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError(f"TaskGroup {self!r} has already been entered")
        self._home = current_port()
        self._runtime = running_runtime()
        self._parent = asyncio.current_task()
        if self._parent is None:
            raise RuntimeError(f"TaskGroup {self!r} cannot determine the parent task")
        if self._runtime is None or self._runtime._solo is self._home:
            self._direct = self._home
        self._entered = True
        self._tasks.copy()  # for its critical section: see the module's theory
        if self._cancel_on_entry:
            self._cancel_here()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:  # plain bool would tell type checkers that names bound in the block may be unbound after it
        del kind, trace
        try:
            return await self._leave(exc)
        finally:
            # Exceptions keep frames alive, and those this group: break the cycles.
            self._parent = self._aborted = None
            self._errors = []
            self._base_error = self._cancelled = self._last_cancelled = None
            exc = None

    async def _leave(self, exc: BaseException | None) -> bool:
        """The rules of asyncio's TaskGroup, those of the newest version (3.15) where versions differ."""
        self._exiting = True
        self._direct = None
        if isinstance(exc, asyncio.CancelledError):
            self._cancelled = exc
        elif exc is not None and _is_base_error(exc) and self._base_error is None:
            self._base_error = exc
        if exc is not None and not self._aborting:
            self._abort()
        await self._wait_children()
        try:
            if self._base_error is not None:
                self._report_errors()
                raise self._base_error
            self._take_back_cancel()
            if self._cancelled is not None and not self._errors:
                raise self._cancelled
            if exc is not None and not isinstance(exc, asyncio.CancelledError):
                self._errors.append(exc)
            if self._errors:
                self._raise_errors(lone=isinstance(exc, GeneratorExit) and len(self._errors) == 1)
            return True  # what had to be raised was: what is left is the cancellation that this group asked for
        finally:
            exc = None

    async def _wait_children(self) -> None:
        """Wait until no child is left; note the cancellations of the parent that come meanwhile."""
        while True:
            # A loop, because the parent may be cancelled several times while it waits.
            while self._tasks:
                self._all_ended = self._home.loop.create_future()
                try:
                    await self._all_ended
                except asyncio.CancelledError as exc:
                    self._last_cancelled = exc
                    if not self._aborting:
                        self._cancelled = exc
                        self._abort()
                self._all_ended = None
            self._finished = True
            if not self._tasks.copy():  # a copy, for its critical section: see the module's theory
                return
            self._finished = False

    def _take_back_cancel(self) -> None:
        """Undo this group's cancellation of its parent; what is left then came from outside, and goes on."""
        if not self._parent_cancel_requested:
            return
        assert self._parent is not None
        if self._parent.uncancel() == 0:
            self._cancelled = None
        elif self._cancelled is None:
            self._cancelled = self._last_cancelled

    def _raise_errors(self, lone: bool) -> None:
        assert self._parent is not None
        # A parent that was also cancelled from outside keeps its count, and is cancelled again at its next wait.
        if self._parent.cancelling():
            self._parent.uncancel()
            self._parent.cancel()
        if lone:  # the close of an asynchronous generator around the block, which must not become a group
            raise self._errors[0]
        raise BaseExceptionGroup("unhandled errors in a TaskGroup", self._errors) from None

    def _report_errors(self) -> None:
        """Hand the errors to the loop's handler: a SystemExit or KeyboardInterrupt leaves the block without them."""
        for exc in self._errors:
            if exc is not self._base_error:
                message = f"an exception of a child of {self!r} gave way to {self._base_error!r}"
                self._home.loop.call_exception_handler({"message": message, "exception": exc, "task_group": self})

    def _child_failed(self, handle: TaskHandle[Any]) -> None:
        exc = handle._exception_for_me()
        assert exc is not None
        self._errors.append(exc)
        if _is_base_error(exc) and self._base_error is None:
            self._base_error = exc
        parent = self._parent
        if parent is None or parent.done():
            message = f"{handle!r} has failed but the parent task of its group is already completed"
            self._home.loop.call_exception_handler({"message": message, "exception": exc})
            return
        if not self._aborting and not self._parent_cancel_requested:
            self._abort()
            self._cancel_parent()

    def _look_again(self) -> None:
        waiting = self._all_ended
        if waiting is not None and not self._tasks and not waiting.done():
            waiting.set_result(None)

    def _cancel_here(self) -> None:
        if self._aborting or (self._exiting and not self._tasks):
            return
        self._abort()
        if not self._parent_cancel_requested:
            self._cancel_parent()

    def _cancel_parent(self) -> None:
        """Interrupt the block; ``_leave`` takes this cancellation back, so it never shows outside."""
        assert self._parent is not None
        self._parent_cancel_requested = True
        self._parent.cancel()

    def _abort(self) -> None:
        self._aborting = True
        self._direct = None
        self._aborted = self._tasks.copy()
        for child in self._aborted:
            child.cancel()

    def _cancel_late(self, child: TaskHandle[Any]) -> None:
        """Cancel a child that was added around the abort, unless the abort has: a task counts its cancellations."""
        if self._aborted is None or child not in self._aborted:
            child.cancel()


def _check_choice(on: On | None, key: Hashable | None) -> None:
    """Refuse without a runtime what one would refuse."""
    if on is None:
        return
    if key is not None:
        raise ValueError(f"both on={on!r} and key={key!r} say where to run; give one")
    if isinstance(on, Worker):
        raise ValueError(f"{on!r} cannot be chosen: this group was entered where no runtime is open")
    policy_for(on)


def _is_base_error(exc: BaseException) -> bool:
    return isinstance(exc, (SystemExit, KeyboardInterrupt))

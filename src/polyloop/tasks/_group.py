"""``TaskGroup``: asyncio's, with children on every loop.

A group has a home: the loop on which it was entered. All its decisions are taken there, on one thread, with asyncio's
own rules. Three things come from other threads. A child's end is posted home, and so is ``cancel``, once the group has
a home. A new child may be created by any thread.

A thread that adds a child adds it to ``_tasks`` and *then* reads the flags, while home sets a flag and *then* copies
the set, so that one of the two sees the other (``set.add`` and ``set.copy`` are critical sections of the set, which
orders them). ``cancel`` and the entry meet in the same way: each sets its flag, copies the set, and reads the
other's.

Most children that migrate are in ``_migrants`` instead, to which all of this applies. Each ends by being taken out of
there, by whoever completes it. About one that ends well there is nothing to decide, so home hears of it only when it
was the last. One that ends elsewhere, or badly, is in ``_away`` from *before* it is taken out until it is done, and
home has heard of what is bad: so nobody leaves the group, and finds that a child is not done.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine, Hashable
from types import CoroutineType
from typing import Any

from polyloop._core._context import here, runs_a_loop
from polyloop._core._handle import TaskHandle
from polyloop._core._migrant import MigratableTask
from polyloop._core._worker import Worker
from polyloop.offload._call import OnCancel, check_policy
from polyloop.offload._to_thread import on_pool
from polyloop.runtime._routing import On
from polyloop.sync._capacity import CapacityLimiter
from polyloop.tasks._group_home import GroupHome
from polyloop.tasks._start import place
from polyloop.tasks._turns import Waiting, WaitingHandle, WaitingMigrant

_new: Any = object.__new__
_copy_context = contextvars.copy_context  # run for each child: a global is read faster than the attribute of a module


class TaskGroup(GroupHome):
    """``asyncio.TaskGroup`` whose children run on all loops of the runtime.

    The semantics are asyncio's: leaving the block waits for all children; the first that fails cancels its siblings and
    the block; the failures are raised together as an ``ExceptionGroup``; a cancelled parent cancels its children.
    What differs: two children may run at the same instant, on two loops, so state that they share needs a lock, a
    queue, or ``on="here"``.

    On a thread whose loop polyloop does not run, and with no runtime open in the process, the children run on that
    loop.

    Args:
        limit: Most children that run at once. The others wait for their turn, in the order in which they were created;
            they can be cancelled, and those of a group that is aborted never begin. A child that waits for one that it
            has created itself keeps its turn meanwhile: with nested children, leave some to spare.
        migratable: Whether the children migrate that say nothing themselves; by default as the runtime was told. (A
            parent that migrates stays on its loop inside the block.)
    Raises:
        ValueError: ``limit`` is below 1; on entry, ``migratable`` and the loops are not polyloop's own.
    Thread safety: ``create_task``, ``start_soon``, ``start_thread`` and ``cancel`` may be called from any child on any
    loop, and from any thread while the group is open. Enter and leave it in one task.

    .. versionadded:: 0.1
    """

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
        migratable: bool | None = None,
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
            migratable: Whether the child may go on on another worker each time it has waited for something of polyloop;
                see ``Runtime.spawn``. By default as the group was told, or the runtime, unless ``on``, ``key`` or
                ``context`` are given. Without a runtime there is nowhere to go.
        Raises:
            TypeError: ``coro`` is not a coroutine, or ``eager_start`` is true; ``coro`` was closed.
            ValueError: ``on`` or ``key`` make no sense, or ``migratable``; ``coro`` was closed.
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
        port: Any = here.port
        if migratable is None:
            migratable = self._children_migrate and on is None and key is None and context is None
        if migratable:
            crew = self._crew
            if crew is None or key is not None or context is not None or port is None or port.crew is not crew:
                return self._create(coro, name, context, on, key, True)
            # Most children that migrate: made on a worker, for an unlimited group that is open.
            if on is not None and (type(on) is not Worker or on.crew is not crew):
                return self._create(coro, name, context, on, key, True)
            task: MigratableTask[T] = _new(MigratableTask)  # the lines of its __init__, without the call
            task._waiters = {}
            task._coro = coro
            task._done = False
            task._context = _copy_context()
            task._group = self
            task._port = port if on is None else on
            if name is not None:
                task._name = name
            if kind is not CoroutineType:
                task._special = True
            task._live = migrants = self._migrants
            migrants.add(task)
            if self._crew is None:  # it is being left, or was aborted: that takes a closer look
                return self._create_late(task, coro, name, on)
            if on is None:
                port.runnable.append(task)  # as Crew.begin does, without a wake-up: this worker is awake
                if crew.sleeping:
                    crew.overseer.call()
                if crew.ending:
                    crew.start_late(task)
            else:
                crew.begin(task, on, True)
            return task
        if port is not self._direct or on is not None or key is not None or port is None:
            return self._create(coro, name, context, on, key, False)
        handle = TaskHandle(coro, name, context)
        handle._group = self
        self._tasks.add(handle)
        handle._create(port)
        try:
            return handle
        finally:
            del handle  # no reference cycle through the traceback of an eager child's exception

    def _create_late[T](
        self, task: MigratableTask[T], coro: Coroutine[Any, Any, T], name: str | None, on: On | None
    ) -> TaskHandle[T]:
        """``create_task`` for a child that was added after home has set a flag."""
        try:
            self._migrants.remove(task)
        except KeyError:  # the runtime has ended meanwhile, and has completed it
            coro.close()
            return task
        if task._port.crew.ending:
            task._port.crew.gone(task)  # it may have been counted
        self._last_ended()
        return self._create(coro, name, None, on, None, True)

    def _create[T](
        self,
        coro: Coroutine[Any, Any, T],
        name: str | None,
        context: contextvars.Context | None,
        on: On | None,
        key: Hashable | None,
        migratable: bool,
    ) -> TaskHandle[T]:
        """``create_task`` where there is a choice of loops, or another thread may decide at the same time."""
        closed = self._why_closed()
        if closed is not None:
            coro.close()
            raise RuntimeError(f"TaskGroup {self!r} {closed}")
        handle = self._new_handle(coro, name, context, migratable)
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

    def _new_handle[T](
        self, coro: Coroutine[Any, Any, T], name: str | None, context: contextvars.Context | None, migratable: bool
    ) -> TaskHandle[T]:
        runtime = self._runtime
        if migratable and runtime is not None:
            try:
                runtime.check_migratable(migratable)
            except ValueError:
                coro.close()
                raise
            if self._turns is not None:
                return WaitingMigrant(coro, name, context)
            if self._home is here.port:
                self._meet_crew()  # for the next
            return MigratableTask(coro, name, context)
        return (TaskHandle if self._turns is None else WaitingHandle)(coro, name, context)

    def start_soon[*Ts](
        self,
        fn: Callable[[*Ts], Coroutine[Any, Any, object]],
        *args: *Ts,
        name: str | None = None,
        context: contextvars.Context | None = None,
        on: On | None = None,
        key: Hashable | None = None,
        migratable: bool | None = None,
    ) -> None:
        """Start ``fn(*args)`` as a child and return nothing; the spelling of anyio and trio.

        Raises:
            RuntimeError: as ``create_task``; ``fn`` was not called.
        Thread safety: any thread; see the class.
        """
        closed = self._why_closed()
        if closed is not None:
            raise RuntimeError(f"TaskGroup {self!r} {closed}")
        self.create_task(fn(*args), name=name, context=context, on=on, key=key, migratable=migratable)

    def start_thread[*Ts, T](
        self,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        name: str | None = None,
        limiter: CapacityLimiter | None = None,
        on_cancel: OnCancel = "wait",
    ) -> TaskHandle[T]:
        """Start ``fn(*args)`` on a thread, as a child like any other, and return its handle.

        Its failure cancels the siblings; their failure, or the end of the block, cancels it, and the group waits for
        it. A sync function hears of that where it waits on polyloop, or asks (``from_thread.check_cancelled``).

        Args:
            name: Label of the child; the qualified name of ``fn`` by default.
            limiter: Limits how many of its calls run at once, over all loops, besides the limit of the group.
            on_cancel: What a cancelled child does whose function runs already; see ``to_thread``.
        Raises:
            TypeError: ``fn`` is an async function.
            ValueError: ``on_cancel`` is no policy.
            RuntimeError: as ``create_task``; ``fn`` is not called.
        Thread safety: any thread; see the class.

        .. versionadded:: 0.3
        """
        check_policy(on_cancel)
        if inspect.iscoroutinefunction(fn):
            raise TypeError(f"start_thread() needs a sync function, and {fn!r} is async; use create_task(fn(...))")
        closed = self._why_closed()
        if closed is not None:
            raise RuntimeError(f"TaskGroup {self!r} {closed}")
        label = str(getattr(fn, "__qualname__", fn)) if name is None else name
        on: On | None = "here" if runs_a_loop() else None  # its task only waits: that needs no other loop
        return self.create_task(on_pool(fn, args, {}, limiter, on_cancel), name=label, on=on)

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
        if self._finished or (self._exiting and not self._has_children()):
            return "is finished"
        return "is shutting down" if self._aborting else None

    def _place(self, handle: TaskHandle[Any], on: On | None, key: Hashable | None) -> None:
        if isinstance(handle, Waiting):
            assert self._turns is not None
            self._turns.enter(handle, on, key)
        else:
            place(handle, self._runtime, self._home, on, key)

"""The half of a ``TaskGroup`` that lives at home: entry, the ends of children, the exit. asyncio's rules."""

import asyncio
import contextlib
from collections import deque
from functools import partial
from types import TracebackType
from typing import Any, Self

from polyloop._core._context import here
from polyloop._core._crew import Crew
from polyloop._core._handle import TaskHandle
from polyloop._core._migrant import MigratableTask
from polyloop._core._port import Port, current_port
from polyloop.runtime._current import running_runtime
from polyloop.runtime._migrate import pin
from polyloop.runtime._runtime import Runtime
from polyloop.tasks._start import checked_limit
from polyloop.tasks._turns import Turns


class GroupHome:
    """The state of a group, and what happens to it on its own loop. The theory is in ``_group.py``."""

    def __init__(self, *, limit: int | None = None, migratable: bool | None = None) -> None:
        self._limit = checked_limit(limit)
        self._migratable = migratable  # what was said; the next is what follows from it
        self._children_migrate = False
        # Of the runtime, while children that migrate are made without a second look. Written at home.
        self._crew: Crew | None = None
        self._pinned: MigratableTask[Any] | None = None  # the parent, if it is one: it stays at home
        self._turns: Turns | None = None  # of the children of a limited group; made on entry
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
        # The children are in one of these. Added to by any thread; all else is done at home, but for ``_migrants``.
        self._tasks: set[TaskHandle[Any]] = set()
        self._migrants: set[MigratableTask[Any]] = set()
        self._away: deque[MigratableTask[Any]] = deque()  # see ``Brood``
        self._aborted: set[TaskHandle[Any]] | None = None  # the children that _abort has cancelled
        self._cancelled: BaseException | None = None  # the cancellation of the block that goes on outside
        self._last_cancelled: BaseException | None = None  # the last one that came while the group was waiting
        self._errors: list[BaseException] = []
        self._base_error: BaseException | None = None
        self._all_ended: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        info = [""]
        if self._has_children():
            info.append(f"tasks={len(self._tasks) + len(self._migrants) + len(self._away)}")
        if self._errors:
            info.append(f"errors={len(self._errors)}")
        if self._aborting:
            info.append("cancelling")
        elif self._entered:
            info.append("entered")
        return f"<TaskGroup{' '.join(info)}>"

    def _has_children(self) -> bool:
        return bool(self._tasks or self._migrants or self._away)

    def _child_ended(self, handle: TaskHandle[Any]) -> None:
        """A child is done. On whatever thread completed it; the rest happens at home."""
        home = self._home
        if home is not here.port:
            if self._parent is None:
                self._forget()
            home.post(partial(self._child_ended, handle))
            return
        tasks = self._tasks
        tasks.discard(handle)
        if self._away:
            with contextlib.suppress(ValueError):
                self._away.remove(handle)  # type: ignore[arg-type] # it may be another child
        if self._turns is not None:
            self._turns.ended(handle)
        if not tasks and self._all_ended is not None:
            self._look_again()
        if handle._exception is not None and not handle._cancelled:
            self._child_failed(handle)

    def _last_ended(self) -> None:
        """No child is left in ``_migrants``, for the moment. On whatever thread has found that."""
        self._forget()
        if self._home is here.port:
            self._look_again()
        else:  # whether home waits cannot be seen from here
            self._home.post(self._look_again)

    def _forget(self) -> None:
        """Leave the crew's list, if the block is over and no child is left. Any thread.

        A parent that is closed leaves its block before its children: the last of them sees that, or it sees the last.
        """
        if self._parent is None and self._runtime is not None and not self._migrants.copy():
            self._runtime._crew.broods.discard(self)

    def _meet_crew(self) -> None:
        """Let children that migrate be made without a second look, unless they have to wait for their turn. At home."""
        runtime = self._runtime
        if runtime is None or runtime._loop_factory is not None or self._limit is not None:
            return
        if not self._exiting and not self._aborting:
            runtime._crew.broods.add(self)
            self._crew = runtime._crew  # after that: its children are born from here on, on any worker

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError(f"TaskGroup {self!r} has already been entered")
        self._home = current_port()
        self._runtime = running_runtime()
        self._parent = asyncio.current_task()
        if self._parent is None:
            raise RuntimeError(f"TaskGroup {self!r} cannot determine the parent task")
        if self._runtime is not None and self._migratable is not False:
            self._children_migrate = self._runtime.check_migratable(self._migratable)
        self._pinned = pin()
        if self._limit is not None:
            self._turns = Turns(self._limit, self._home, self._runtime)
        elif self._runtime is None or self._runtime._solo is self._home:
            self._direct = self._home
        if self._children_migrate:
            self._meet_crew()
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
            if self._pinned is not None:
                self._pinned.detach()
            self._parent = self._aborted = self._pinned = None
            self._errors = []
            self._base_error = self._cancelled = self._last_cancelled = None
            exc = None
            self._forget()

    async def _leave(self, exc: BaseException | None) -> bool:
        """The rules of asyncio's TaskGroup, those of the newest version (3.15) where versions differ."""
        self._exiting = True
        self._direct = self._crew = None
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
            while self._has_children():
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
            # Copies, for their critical sections: see the module's theory. In ``_away`` they are before they go.
            if not (self._tasks.copy() or self._migrants.copy() or self._away):
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
        if waiting is not None and not self._has_children() and not waiting.done():
            waiting.set_result(None)

    def _cancel_here(self) -> None:
        if self._aborting or (self._exiting and not self._has_children()):
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
        self._direct = self._crew = None
        if self._turns is not None:
            self._turns.close()
        self._aborted = self._tasks.copy() | self._migrants.copy()
        for child in self._aborted:
            child.cancel()

    def _cancel_late(self, child: TaskHandle[Any]) -> None:
        """Cancel a child that was added around the abort, unless the abort has: a task counts its cancellations."""
        if self._aborted is None or child not in self._aborted:
            child.cancel()


def _is_base_error(exc: BaseException) -> bool:
    return isinstance(exc, (SystemExit, KeyboardInterrupt))

"""Migratable tasks: coroutines that any worker of a runtime may continue, one at a time.

``MigratableTask`` is both: what the user holds, and what ``asyncio.current_task()`` returns inside. Workers drive it
(``_crew``).

Theory. A suspended task waits for one thing, its *token*: a ``MigrantWaiter``, where it is parked on a primitive, or an
asyncio future. The token is a key of ``_waiters``, beside those who wait for the task: one dict is all that a task has
to make. Whoever pops the token goes on with the task, so a task is in one pair of hands at any time: suspended (the
token lies there), queued (in one run queue), or being stepped. A waiter is popped by whoever wakes it, or by a
canceller; a future by the thread of its loop alone, when it is done; either by whoever closes the task. Everybody takes
the token that he means, and no other: a waker may be late, and find one of a later wait.

Why no wake-up is lost. Who suspends the task puts its token down and *then* looks whether it was woken, or cancelled,
meanwhile; who wakes it says so, in the waiter or in the list of cancellations, and *then* looks for the token. Both use
the same dict, whose lock orders them (see ``_completion``): one of the two sees the other.

Who is alive. Each task that was started is in one set, ``_live``: of its group, or of its crew. Whoever takes it out of
there completes it.

What is bound to a loop. While it awaits an asyncio future, the task is resumed on that loop's thread. While something
that it has left with the loop is pending, a timer or an asyncio task, it is *attached*, and goes on nowhere else; so is
it inside ``pinned`` and inside a task group. Attached and detached on that loop's thread only.
"""

import asyncio
import contextlib
import contextvars
import sys
from asyncio import base_tasks as _base_tasks
from collections.abc import Callable, Coroutine, Generator, Iterable
from types import CoroutineType, FrameType
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from polyloop._core._completion import LOOK, set_once
from polyloop._core._context import here
from polyloop._core._handle import TaskHandle
from polyloop._core._parking import Migrant, running_migrant
from polyloop._core._port import NOWHERE

_new: Any = object.__new__
_copy_context = contextvars.copy_context  # run for each task: a global is read faster than the attribute of a module
base_tasks: Any = _base_tasks

if TYPE_CHECKING:
    from polyloop._core._crew import Brood
    from polyloop._core._task import Group
    from polyloop._core._worker import Worker

#: The value of a token in ``_waiters``: none that is true, so nobody takes it for somebody who waits for the task.
_TOKEN: Final = False

#: The token while the task awaits a future, which need not be hashable: that is ``_fut_waiter``.
_AWAITS: Final = "awaits"


def swap_task_by_turns(loop: asyncio.AbstractEventLoop, task: object) -> None:
    current: Any = asyncio.current_task(loop)
    if current is not None:
        asyncio._leave_task(loop, current)
    if task is not None:
        new: Any = task  # typed as if there were no other tasks than asyncio's own
        asyncio._enter_task(loop, new)


#: Makes a task, or ``None``, the current one of a loop. One call instead of two, where asyncio has it (3.12 to 3.15).
swap_task: Callable[[asyncio.AbstractEventLoop, object], object] = getattr(
    asyncio.tasks, "_swap_current_task", swap_task_by_turns
)


class MigrantWaiter:
    """One park of one migratable task on a primitive; see ``AsyncWaiter``. Made by ``MigratableTask.waiter``."""

    __slots__ = ("task", "woken")

    task: "MigratableTask[Any]"
    woken: bool

    def __await__(self) -> Generator[Any]:
        yield self

    def wake(self) -> bool:
        """Let the task go on. Any thread."""
        self.woken = True  # before the look for the token
        task = self.task
        if task._waiters.pop(self, None) is not None:  # else it is being stepped, or was cancelled
            task._enqueue()
        return True

    __call__ = wake

    def forsaken(self) -> bool:
        """Never: a task that is closed passes on by itself what it was woken for."""
        return False


class _Checkpoint:
    """What a task yields that only lets others go first."""

    __slots__ = ()

    def __await__(self) -> Generator[Any]:
        yield self


CHECKPOINT: Final = _Checkpoint()


class MigratableTask[T](TaskHandle[T], Migrant):
    """A task that may continue on another worker each time it has waited for something of polyloop.

    Everything of ``TaskHandle``; and, for the task itself, what ``asyncio.Task`` has: ``cancelling``, ``uncancel``,
    ``get_stack`` and ``print_stack``.

    Thread safety: any thread, but for ``uncancel``, which is for the task itself.

    .. versionadded:: 0.5
    """

    # What is set for each task. All else is in the __dict__ that the bases have, which is made at need.
    __slots__ = ("_context", "_coro", "_done", "_group", "_live", "_port", "_result", "_waiters")

    _port: "Worker"  # pyright: ignore[reportIncompatibleVariableOverride] - where it is queued, runs, or ran last
    _group: "Group | None"  # pyright: ignore[reportIncompatibleVariableOverride]
    _live: "set[MigratableTask[Any]]"  # see the module's theory; set when it is started

    _home: "Worker | None" = None  # the only worker that may step it, while it is attached
    _attached = 0
    # Whether a step has to look closer: one of what follows was ever set, or no driver may step it. Set before it is
    # queued, never unset.
    _special = False
    _throw: BaseException | None = None  # the outcome of the future that it awaited
    _log: list[Any] | None = None  # messages of all cancellations; appended by any thread
    _delivered = 0  # how many of them the task has seen
    _uncancelled = 0
    _driver: object = None  # the driver that it waits in: to be kept (see _driver.py)

    # Names that others look for in asyncio's tasks (anyio).
    # The future that it awaits: set before its token is put down, unset when that was taken, by the thread of its loop.
    _fut_waiter: "asyncio.Future[Any] | None" = None

    def __init__(
        self, coro: Coroutine[Any, Any, T], name: str | None = None, context: contextvars.Context | None = None
    ) -> None:
        # Not super().__init__(): see there. (TaskGroup.create_task has these lines, too, for most tasks.)
        self._waiters: dict[Any, Any] = {}
        self._coro = coro
        self._done = False
        self._port = cast("Worker", NOWHERE)  # pyright: ignore[reportIncompatibleVariableOverride]
        self._group = None
        self._context = _copy_context() if context is None else context
        if name is not None:
            self._name = name
        if context is not None:
            self._shares_context = True
        if type(coro) is not CoroutineType:  # a driver could not step it
            self._special = True

    # For everybody

    def cancelling(self) -> int:
        """How many cancellations were asked for that have not been undone; see ``asyncio.Task.cancelling``."""
        port = self._port
        if port is here.port and port.stepping and running_migrant() is self:  # else it is being closed, by anybody
            # Those who ask begin a block that may cancel this task, as asyncio.timeout does, perhaps at the next tick.
            self.attach()
            self._port.loop.call_soon(self._port.loop.call_soon, self.detach, context=self._port.context)
        return self._cancelling()

    def _cancelling(self) -> int:
        return 0 if self._log is None else len(self._log) - self._uncancelled

    def uncancel(self) -> int:
        """Undo one of them; see ``asyncio.Task.uncancel``. For the task itself."""
        if self._cancelling() > 0:
            self._uncancelled += 1
        left = self._cancelling()
        if not left and self._log is not None:
            self._delivered = len(self._log)
        return left

    @property
    def _must_cancel(self) -> bool:
        return self._is_cancel_due()

    def get_context(self) -> contextvars.Context:
        """The context that the task runs in."""
        assert self._context is not None
        return self._context

    def set_name(self, value: object) -> None:
        """Change the name. Any thread."""
        self._name = str(value)

    def get_stack(self, *, limit: int | None = None) -> list[FrameType]:
        """The frame where it is suspended, or those of its exception; see ``asyncio.Task.get_stack``.

        Thread safety: of a task that runs at this moment on another thread, the frame may move.
        """
        frames: list[FrameType] = base_tasks._task_get_stack(self, limit)
        return frames

    def print_stack(self, *, limit: int | None = None, file: TextIO | None = None) -> None:
        """Print ``get_stack``, or the traceback of its exception; see ``asyncio.Task.print_stack``."""
        base_tasks._task_print_stack(self, limit, sys.stderr if file is None else file)

    def __await__(self) -> Generator[Any, None, T]:
        if self._done and self._exception is None:
            return cast("T", self._result)
        if running_migrant() is self:
            raise RuntimeError(f"Task cannot await on itself: {self!r}")
        return (yield from self._await_away())

    # Waiting and waking

    def waiter(self) -> MigrantWaiter:
        """For one park of this task, which runs."""
        waiter = MigrantWaiter()
        waiter.task = self  # not in an __init__, which would double the price
        waiter.woken = False
        return waiter

    def _park_on(self, waiter: MigrantWaiter) -> None:
        """Suspend the task until its waiter is woken. Whoever has the task."""
        waiters = self._waiters
        waiters[waiter] = _TOKEN
        # Else whoever has it goes on.
        if (waiter.woken or (self._special and self._is_cancel_due())) and waiters.pop(waiter, None) is not None:
            self._enqueue()

    def _await(self, future: "asyncio.Future[Any]") -> None:
        """Suspend the task until a future of this loop is done. The thread that has stepped it."""
        self._fut_waiter = future
        self._waiters[_AWAITS] = _TOKEN
        future.add_done_callback(self._future_done, context=self._port.context)
        if self._is_cancel_due():
            self._cancel_future(future)

    def _enqueue(self) -> None:
        """Have the task stepped. Whoever has it; any thread."""
        home = self._home
        if home is not None:
            home.crew_member.bind(self)
            return
        port: Any = here.port
        crew = self._port.crew
        if port is not None and port.crew is crew:
            port.crew_member.take_in(self)
        else:
            crew.take_in(self)

    def _token(self) -> Any:
        """What it is suspended on now, a ``MigrantWaiter`` or a future; ``None`` if it is not. Any thread."""
        for key, value in self._waiters.copy().items():
            if value is _TOKEN:
                return self._fut_waiter if key is _AWAITS else key
        return None

    def _seize(self) -> bool:
        """Take the task, if it is suspended, to close it. Any thread."""
        token = self._token()
        return self._waiters.pop(token if type(token) is MigrantWaiter else _AWAITS, None) is not None

    # Steps

    def _step(self) -> Any:
        """Take one step of a task that is ``_special``; what it yields. In its context, whoever steps it."""
        throw = self._take_cancel() if self._is_cancel_due() else self._throw
        self._throw = None
        context: Any = self._context
        try:
            if throw is None:
                return context.run(self._coro.send, None)
            return context.run(self._coro.throw, throw)
        finally:
            throw = None  # no cycle through its traceback

    # Cancellation

    def _is_cancel_due(self) -> bool:
        log = self._log
        return log is not None and len(log) > self._delivered

    def _missed_one(self) -> bool:
        return self._is_cancel_due()

    def _cancel_requests(self) -> list[Any] | None:
        return None if self._log is None else self._log[self._delivered :] or None

    def _request_cancel(self, msg: Any) -> None:
        self._special = True  # before the request is listed
        mine = [msg]
        log = self.__dict__.setdefault("_log", mine)
        if log is not mine:
            log.append(msg)
        token = self._token()  # after the request is listed
        if token is None:  # it looks before it waits again
            return
        if type(token) is not MigrantWaiter:  # a future, which only its own thread may touch
            self._port.post(self._cancel_future, token)
        elif self._waiters.pop(token, None) is None:  # it was woken meanwhile, and looks, too
            return
        elif self._is_cancel_due():
            self._enqueue()
        else:  # it has seen the request already, and this is a later wait
            self._park_on(token)

    def cancel_for_good(self) -> None:
        """Cancel the task since its runtime ends: once, whoever says so; a second would cut its cleanup short."""
        mine = object()
        if set_once(self, "_ended_by", mine) is mine:
            self.cancel()

    def _take_cancel(self) -> asyncio.CancelledError:
        """The cancellation that is due, which the task is about to see."""
        assert self._log is not None
        self._delivered = len(self._log)
        msg = self._log[-1]
        return asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)

    def _future_done(self, future: "asyncio.Future[Any]") -> None:
        """What it awaited is there. On the thread of that loop, as a callback of the future's."""
        if self._waiters.pop(_AWAITS, None) is None:  # whoever has it closes the task
            return
        self._fut_waiter = None
        try:
            future.result()
        except BaseException as exc:
            self._throw = exc
            self._special = True
        port = here.port
        assert port is not None
        port.stepping = True
        try:
            port.crew_member.step(self)
        finally:
            port.stepping = False

    def _cancel_future(self, future: "asyncio.Future[Any]") -> None:
        """Cancel what it awaits. On the thread of that loop; of no use if the task has gone on meanwhile."""
        if self._fut_waiter is not future or not self._is_cancel_due():
            return
        assert self._log is not None
        seen = len(self._log)
        if future.cancel(msg=self._log[-1]):  # else it is done, and what it brings gives way to the cancellation
            self._delivered = seen

    # What is bound to a loop: on that loop's thread

    def attach(self) -> None:
        """Let nobody but the worker that steps it now do so until ``detach``. May be nested."""
        self._attached += 1
        self._home = self._port

    def detach(self, *_: object) -> None:
        """Undo one ``attach``."""
        self._attached -= 1
        if not self._attached:
            self._home = None

    # The end

    def _end(self, value: T) -> None:
        """The coroutine has returned. The thread that has stepped it; ``Member._run_some`` has most of this, too."""
        if self._is_cancel_due():
            self._end_with(self._take_cancel())
            return
        if not self._claim():
            return
        self._result = value
        self._done = True  # as _publish does
        self._waiters.pop(LOOK, None)
        self._tell(away=True)

    def _brood(self) -> "Brood | None":
        """Its group, if ``_live`` is that of the group."""
        return None if self._live is self._port.crew.live else cast("Brood", self._group)

    def _claim(self) -> bool:
        """Take it out of its set, to complete it; ``False`` if somebody else has: it was forsaken, its runtime over.

        Its group might go on at once, and find that it is not done; so it is ``_away`` until it is.
        """
        brood = self._brood()
        if brood is not None:
            brood._away.append(self)
        try:
            self._live.remove(self)  # atomic
        except KeyError:
            if brood is not None:
                self._come_home(brood)
            return False
        return True

    def _come_home(self, brood: "Brood") -> None:
        brood._away.remove(self)
        if not self._live and not brood._away:
            brood._last_ended()

    def _tell(self, away: bool) -> None:
        """It has ended well: tell those who wait for it, and those who count."""
        crew = self._port.crew
        try:
            if self._waiters:
                self._wake_all()
        finally:
            brood = self._brood()
            if brood is None:
                if self._group is not None:
                    self._group._child_ended(self)
            elif away:
                self._come_home(brood)
            elif not self._live:
                brood._last_ended()
            if crew.ending:
                crew.gone(self)

    def _end_with(self, exc: BaseException) -> None:
        """The coroutine has raised; or it is closed, and this is why. The thread that has it."""
        if not self._claim():
            return
        crew = self._port.crew
        try:
            self._fail(exc)
        finally:
            if crew.ending:
                crew.gone(self)

    def _refuse(self, exc: BaseException) -> None:
        """Complete a task that nobody will step any more. Whoever has it."""
        if self._port is NOWHERE:  # it was never started, and nobody of the crew knows it
            self._coro.close()
            self._fail(exc)
            return
        self._close_coro()
        self._end_with(exc)

    def _close_coro(self) -> None:
        """Close the coroutine, in its context and as the current task, so that it can give back what it holds."""
        loop = asyncio._get_running_loop()
        runs_none = loop is None
        try:
            if loop is None:
                loop = self._port.loop
                asyncio._set_running_loop(loop)
            self._close_as_current(loop)
        except BaseException as exc:  # what its finally blocks raise, or a complaint that they wait
            self._port.crew.report(self, exc)
            with contextlib.suppress(BaseException):  # its context could not be entered
                self._coro.close()
        finally:
            if runs_none:
                asyncio._set_running_loop(None)

    def _close_as_current(self, loop: asyncio.AbstractEventLoop) -> None:
        context: Any = self._context
        if asyncio.current_task(loop) is not None:  # of whoever closes it
            context.run(self._coro.close)
            return
        swap_task(loop, self)
        try:
            context.run(self._coro.close)
        finally:
            swap_task(loop, None)

    def _drop(self) -> None:
        self._coro.close()


def new_tasks(
    coros: Iterable[Coroutine[Any, Any, Any]], group: "Group", live: set[MigratableTask[Any]], port: "Worker"
) -> list[MigratableTask[Any]]:
    """Tasks of native coroutines, to be entered into ``live``, a set of ``group``, and then queued on ``port``."""
    tasks: list[MigratableTask[Any]] = []
    for coro in coros:
        task: MigratableTask[Any] = _new(MigratableTask)  # the lines of its __init__, without the call
        task._waiters = {}
        task._coro = coro
        task._done = False
        task._context = _copy_context()
        task._group = group
        task._port = port
        task._live = live
        tasks.append(task)
    return tasks

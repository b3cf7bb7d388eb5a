"""The scheduler of migratable tasks: who of a runtime's workers steps which task, and when.

Each worker has a *member* with two run queues. ``runnable`` is what any worker may step: its owner takes from the left,
and so does a thief, so the task that has waited longest goes first. ``bound`` is what only this worker may step: tasks
that are attached to its loop, and those that have let others go first without leaving it. A deque's ``popleft`` is
atomic, so a task is stepped by exactly one worker at a time. An append is atomic too, whoever makes it, so there is no
queue for what comes from outside the crew: a task that a plain thread wakes goes to the worker where it ran last.

A worker steps its tasks in slices, between two ticks of its loop, so neither starves the other. It steals when it would
sleep otherwise, and only what is worth moving (``_balance``).

Every task that is not done is in one set: the children of a group in that group's, which is one of ``crew.broods``, all
others in ``crew.live``. So the ends of children meet in a lock of their group, not in one of the process.

How a crew finds that nobody is left. Once it is ending, all that are alive are counted, into ``_left``: who counts a
task enters it there and *then* looks whether it is still in its set; who ends is taken out of that set, and *then* out
of ``_left``. The lock of ``_left`` orders them, so nobody stays there who has ended. Tasks that come later are counted
by those who start them; a task that starts others is itself there meanwhile.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat, starmap
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from polyloop._core import _prims
from polyloop._core._balance import SLICE_NS, Pace, steal_count, worth_moving
from polyloop._core._completion import LOOK, Completion
from polyloop._core._driver import DRIVER_CODE, ENDED, Ended, new_driver
from polyloop._core._ending import Stuck, task_stack
from polyloop._core._errors import ForeignLoopError, copy_exception
from polyloop._core._migrant import CHECKPOINT, MigrantWaiter, MigratableTask, swap_task
from polyloop._core._overseer import Overseer
from polyloop._core._port import logger

if TYPE_CHECKING:
    from polyloop._core._port import Port
    from polyloop._core._worker import Worker

_clock = _prims.monotonic_ns

type _Task = MigratableTask[Any]


#: How many steps in a row have to end their tasks before the next is taken by a driver.
_ENDS_TO_DRIVE = 4

#: Seconds that tasks get to end though the deadline has passed, so that they are not taken for stuck without a step.
_LEAST_WAIT = 0.05


class Brood(Protocol):
    """A group, as its children see it."""

    _migrants: set[_Task]  #: those of them that end by being taken out of here, by any thread
    _away: deque[_Task]  #: of these, who is about to leave: the group waits for them, too

    @property
    def _home(self) -> "Port":
        """Where the group waits."""
        ...

    def _child_ended(self, handle: Any, /) -> None:
        """A child is done that is not of ``_migrants``, or has ended badly. On the thread that completed it."""
        ...

    def _last_ended(self) -> None:
        """``_migrants`` was empty, just now. Any thread."""
        ...


class Crew:
    """The workers of one runtime, as far as they share tasks.

    Attributes:
        live: The tasks that are not done, without those of ``broods``. Added to, and removed from, by any thread.
        broods: The groups that are open, and may have children of their own.
        ending: Whether nothing new is taken in, and everybody was cancelled.
        empty: Done when no task is left of a crew that is ending.
    """

    def __init__(self, workers: "Sequence[Worker]") -> None:
        self.workers = workers
        self.live: set[_Task] = set()
        self.broods: set[Brood] = set()
        self.ending = False
        self._left: set[_Task] = set()  # the tasks that are not done, once it is ending
        self._counted = False  # whether they are all there
        self.empty = Completion[None]()
        self.overseer = Overseer(workers)
        self.sleeping = self.overseer.asleep  # filled while it sleeps, so that it has to be called
        self._refused: deque[tuple[_Task, BaseException]] = deque()
        self._refusers = deque((None,))  # popped by the one thread that refuses them
        self._ends = deque((None,))  # popped by whoever completes ``empty``
        self._refusal: BaseException | None = None

    # Any thread

    def start(self, task: _Task, worker: "Worker", stays: bool = False) -> None:
        """Take in a new task that is of no brood.

        Args:
            worker: Who is to step it first.
            stays: Whether it belongs to that worker for good.
        """
        task._port = worker
        task._live = self.live
        self.live.add(task)
        self.begin(task, worker, stays)

    def begin(self, task: _Task, worker: "Worker", stays: bool) -> None:
        """Queue a new task that is in its set, and has its port."""
        if stays:
            task._attached, task._home = 1, worker
            worker.crew_member.bind(task)
        else:
            worker.crew_member.take_in(task)
        if self.ending:
            self.start_late(task)

    def start_late(self, task: _Task) -> None:
        """A task has come to a crew that is ending, after the look."""
        if self._refusal is not None:  # read after the add, and set before the sweep: one of the two sees the other
            self.forsake(self._refusal)
        else:
            self._count(task)
            task.cancel_for_good()

    def take_in(self, task: _Task) -> None:
        """Queue a task that was woken by somebody who is not of the crew: where it ran last."""
        worker: Any = task._port
        if worker.crew_member.closed:
            worker = next((each for each in self.workers if not each.crew_member.closed), worker)
        worker.crew_member.take_in(task)

    def tasks(self) -> set[_Task]:
        """A snapshot of all that are not done."""
        found = self.live.copy()
        for brood in self.broods.copy():
            found |= brood._migrants.copy()
        return found

    def end(self) -> None:
        """Cancel everybody; ``empty`` follows. Every worker that winds down says this."""
        self.ending = True
        for task in self.tasks():
            self._count(task)
        self._counted = True
        for task in self._left.copy():
            task.cancel_for_good()
        self._look_empty()

    def _count(self, task: _Task) -> None:
        self._left.add(task)
        if task not in task._live:  # it has ended meanwhile, perhaps before it was counted
            self.gone(task)

    def gone(self, task: _Task) -> None:
        """A task has left a crew that is ending."""
        self._left.discard(task)
        self._look_empty()

    def _look_empty(self) -> None:
        if self._counted and not self._left:
            try:
                self._ends.pop()
            except IndexError:
                return
            self.empty._complete(None)

    async def wait_empty(self, deadline: float) -> list[Stuck]:
        """Wait until nobody is left, at most until ``deadline``.

        Returns:
            Who is left then, for the first worker that asks; they are forsaken.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(_LEAST_WAIT, deadline - _prims.monotonic())):
                await self.empty
        try:
            self._ends.pop()
        except IndexError:  # it is empty, or a peer has this
            return []
        stuck = [Stuck("task", task.name, task._port.name, task_stack(task)) for task in self.tasks()]
        self.empty._complete(None)
        return stuck

    def forsake(self, refusal: BaseException) -> None:
        """Complete what is left: no worker will step anything any more."""
        self._refusal = refusal
        self.ending = True
        for task in self.tasks():
            if not task._seize() and not self._unqueue(task):  # on a thread that does not come back
                task._end_with(copy_exception(refusal))
                continue
            task._watched = True  # that a close cuts tasks short is no news to the log
            self.refuse(task, copy_exception(refusal))

    def refuse(self, task: _Task, exc: BaseException) -> None:
        """Complete a task that nobody will step any more. Whoever has it; any thread.

        One after the other: what is closed may wake another, which is refused, too, and so on.
        """
        self._refused.append((task, exc))
        while self._refused:
            try:
                self._refusers.pop()
            except IndexError:  # whoever has it goes on until there are no more
                return
            try:
                while self._refused:
                    task, exc = self._refused.popleft()  # nobody else pops
                    task._refuse(exc)
            finally:
                self._refusers.append(None)

    def _unqueue(self, task: _Task) -> bool:
        for worker in self.workers:
            for queue in (worker.crew_member.runnable, worker.crew_member.bound):
                try:
                    queue.remove(task)
                except ValueError:
                    continue
                return True
        return False

    def report(self, task: _Task, exc: BaseException) -> None:
        """An exception has nowhere to go."""
        logger.error("polyloop: %r raised while it was closed", task, exc_info=exc)


class Member:
    """One worker's part of a crew. Its loop's thread, except where it says otherwise.

    Attributes:
        runnable: What any worker may step; see the module's theory.
        bound: What only this one may step.
        pace: How long steps take here.
        steps: How many were taken; read by any thread.
    """

    def __init__(self, worker: "Worker", crew: Crew) -> None:
        self.worker = worker
        self.mailbox = worker.mailbox
        self.overseer, self._sleeping = crew.overseer, crew.sleeping
        self.loop: asyncio.AbstractEventLoop  # set with the worker's
        self.crew = crew
        self.runnable: deque[_Task] = deque()
        self.bound: deque[_Task] = deque()
        self._aside: list[_Task] = []  # for the next tick
        self._hand: deque[_Task] = deque()  # what is stepped without having been queued
        self._drive: Callable[[Any], Any] | None = None  # a driver, while steps end their tasks
        self._ends = 0  # how many of them have, in a row
        self.pace = Pace()
        self.steps = 0
        self.stolen = 0
        self.sleepers: set[MigrantWaiter] = set()  # woken by a timer of this loop; single operations of any thread
        self.closed = False
        self._refusal: BaseException | None = None

    @property
    def load(self) -> int:
        """How many tasks wait to be stepped here. Any thread."""
        return len(self.runnable) + len(self.bound)

    # Any thread

    def take_in(self, task: _Task) -> None:
        """Queue a task that anybody may step."""
        task._port = self.worker
        runnable = self.runnable
        runnable.append(task)
        mailbox = self.mailbox
        if not (mailbox.tokens and mailbox.signal()):
            waiting = len(runnable)
            # At each power of two: this is run for each task that is made or woken.
            if waiting > 1 and not waiting & (waiting - 1) and worth_moving(waiting - 1, self.pace.step_ns, 0):
                self.worker._call_a_thief()
        if self._sleeping:
            self.overseer.call()
        if self.closed:  # read after the append, and set before the sweep: one of the two sees the other
            self._hand_over()

    def bind(self, task: _Task) -> None:
        """Queue a task that only this worker may step."""
        self.bound.append(task)
        mailbox = self.mailbox
        if mailbox.tokens:
            mailbox.signal()
        if self.closed:
            self._hand_over()

    def close(self, refusal: BaseException) -> None:
        """Take no steps any more: this worker's loop is over. Any thread, once it is."""
        self._refusal = refusal
        self.closed = True
        self._hand_over()
        for task in self.crew.tasks():
            # What is attached to the loop, or awaits a future of it, would wait for ever.
            if (
                task._home is self.worker or (task._fut_waiter is not None and task._port is self.worker)
            ) and task._seize():
                self.crew.refuse(task, copy_exception(refusal))
        for waiter in self.sleepers.copy():  # they go on with their sleep elsewhere
            waiter.wake()

    def _hand_over(self) -> None:
        """What anybody may step goes to another worker, the rest fails. Any thread that finds this closed."""
        refusal = self._refusal
        assert refusal is not None
        others = [each.crew_member for each in self.crew.workers if not each.crew_member.closed]
        for queue in (self.runnable, self.bound):
            while True:
                try:
                    task = queue.popleft()
                except IndexError:
                    break
                if others and task._home is None and task._fut_waiter is None:
                    others[0].take_in(task)
                else:
                    self.crew.refuse(task, copy_exception(refusal))

    # Stepping

    def run(self) -> None:
        """Step what waits, and what becomes of that, until the slice is over."""
        pace, worker = self.pace, self.worker
        pace.behind_ns = 0
        pace.began_ns = began = now = _clock()
        if self._sleeping:
            self.overseer.call()
        bound, runnable = self.bound, self.runnable
        count = 0
        worker.stepping = True
        try:
            while (bound or runnable) and now - began < SLICE_NS:
                if bound:
                    count += self._run_some(bound, pace.stride)
                count += self._run_some(runnable, pace.stride)
                now = _clock()
        finally:
            if self._aside:
                bound.extend(self._aside)
                self._aside.clear()
            pace.began_ns = 0
            worker.stepping = False
            self.steps += count
            pace.note(count, now - began)
        if runnable and worth_moving(len(runnable), pace.step_ns, 0):
            worker._call_a_thief()

    def step(self, task: _Task) -> None:
        """Take one step of a task that this thread has."""
        self._hand.append(task)
        try:
            self._run_some(self._hand, 1)
        finally:
            self._hand.clear()

    def _run_some(self, queue: deque[_Task], most: int) -> int:
        """Take up to ``most`` steps; how many."""
        # Local names, and no calls: this is what a step costs.
        worker, loop, crew, pop = self.worker, self.loop, self.crew, queue.popleft
        swap, look = swap_task, LOOK
        waiter_type, checkpoint, ended, nothing = MigrantWaiter, CHECKPOINT, Ended, ENDED
        drive, ends = self._drive, self._ends
        at_home: object = None  # the set of children whose group is here
        group: Any
        try:
            for count in range(most):
                try:
                    task = pop()
                except IndexError:  # there are no more, or a thief was faster
                    return count
                swap(loop, task)
                special = task._special
                try:
                    if special:
                        result = task._step()
                    else:
                        context: Any = task._context
                        coro = task._coro
                        result = context.run(coro.send, None) if drive is None else context.run(drive, coro)
                except StopIteration as stop:
                    swap(loop, None)
                    task._end(stop.value)
                    ends += 1
                    if ends >= _ENDS_TO_DRIVE and drive is None:
                        drive = new_driver()
                    continue
                except BaseException as exc:
                    swap(loop, None)
                    drive, ends = None, 0  # spent, if it was used
                    self._raised(task, exc)
                    continue
                if result is nothing or type(result) is ended:
                    # What follows is what _end does, for a task without a group, or whose group waits here.
                    if task._special:  # perhaps it was cancelled
                        swap(loop, None)
                        task._end(result.take())
                        continue
                    live = task._live
                    if live is not at_home:
                        group = task._group
                        if group is not None:
                            if live is crew.live or group._home is not worker:
                                swap(loop, None)
                                task._end(result.take())
                                continue
                            at_home = live
                    try:
                        live.remove(task)
                    except KeyError:
                        continue
                    task._result = None if result is nothing else result.take()
                    task._done = True
                    waiters = task._waiters
                    waiters.pop(look, None)
                    if waiters or not live or crew.ending:
                        swap(loop, None)
                        task._tell(away=False)
                    continue
                ends = 0
                if drive is not None and not special:
                    task._driver, drive = drive, None
                    task._special = True  # it is not for a second driver
                if result is checkpoint:
                    (self.runnable if task._home is None else self.bound).append(task)
                elif type(result) is waiter_type and result.task is task:
                    task._park_on(result)
                else:
                    self._suspended(task, result)
                result = None  # not kept through the next step
            return most
        except BaseException:
            drive = None  # a signal handler's, perhaps, and it may be in the middle of a coroutine
            raise
        finally:
            swap(loop, None)
            self._drive, self._ends = drive, ends

    def _raised(self, task: _Task, exc: BaseException) -> None:
        """A step has raised."""
        try:
            if getattr(task._coro, "cr_frame", None) is not None:  # its context could not be entered
                task._close_coro()
            task._end_with(exc.with_traceback(_beyond_us(exc.__traceback__)))
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise exc
        finally:
            del exc  # no cycle through its traceback

    def _suspended(self, task: _Task, result: Any) -> None:
        """A task has yielded something else than its waiter."""
        if result is None:  # asyncio.sleep(0), which lets the loop's callbacks go first
            (self._aside if self.pace.began_ns else self.bound).append(task)
        elif getattr(result, "_asyncio_future_blocking", None):
            self._await(task, result)
        else:
            task._throw = RuntimeError(f"{task!r} awaits something that is no future and not of polyloop: {result!r}")
            task._special = True
            self.bound.append(task)

    def _await(self, task: _Task, future: "asyncio.Future[Any]") -> None:
        worker = self.worker
        if future.get_loop() is not worker.loop:
            future._asyncio_future_blocking = False
            owner = next((each.name for each in self.crew.workers if each.loop is future.get_loop()), "another loop")
            task._throw = ForeignLoopError(
                f"{task!r} awaits {future!r}, which belongs to {owner!r}, and has moved to {worker.name!r} since;"
                " keep it where it is with 'async with polyloop.pinned():'"
            )
            task._special = True
            self.bound.append(task)
            return
        future._asyncio_future_blocking = False
        task._await(future)

    # Stealing

    def steal(self) -> bool:
        """Nothing to do here: take tasks from a peer, if that is worth it. Must not raise."""
        workers = self.crew.workers
        now = 0
        for step in range(1, len(workers)):
            victim = workers[(self.worker.index + step) % len(workers)].crew_member
            waiting = len(victim.runnable)
            if waiting and not self.closed:
                now = now or _clock()
                count = steal_count(waiting, victim.pace.step_ns, victim.pace.stuck_ns(now))
                if count and self._take_from(victim, count):
                    return True
        return False

    def _take_from(self, victim: "Member", count: int) -> int:
        # As in Worker._take_from: each way of the tasks is one call, so that they are always known.
        taken: deque[_Task] = deque()
        try:
            with contextlib.suppress(IndexError):
                taken.extend(starmap(victim.runnable.popleft, repeat((), count)))
            for task in taken:
                task._port = self.worker
        finally:
            self.runnable.extend(taken)
        self.stolen += len(taken)
        return len(taken)


#: What stands between a worker's loop and the task, in a traceback.
_OURS: Final = (Member._run_some.__code__, MigratableTask[Any]._step.__code__, DRIVER_CODE)


def _beyond_us(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that is news to the user."""
    while trace is not None and trace.tb_frame.f_code in _OURS:
        trace = trace.tb_next
    return trace

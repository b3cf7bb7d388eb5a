"""The scheduler of migratable tasks: who of a runtime's workers steps which task, and when.

Each worker has a *member* with two run queues. ``runnable`` is what any worker may step: its owner takes from the left,
and so does a thief, so the task that has waited longest goes first. ``bound`` is what only this worker may step: tasks
that are attached to its loop, and those that have let others go first without leaving it. A deque's ``popleft`` is
atomic, so a task is stepped by exactly one worker at a time.

A worker steps its tasks in slices, between two ticks of its loop, so neither starves the other. It steals when it would
sleep otherwise, and only what is worth moving (``_balance``).

``crew.live`` has every task that is not done: whoever takes a task out of there completes it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any

from polyloop._core import _prims
from polyloop._core._balance import SLICE_NS, Pace, steal_count, worth_moving
from polyloop._core._completion import Completion
from polyloop._core._ending import Stuck, task_stack
from polyloop._core._errors import ForeignLoopError, copy_exception
from polyloop._core._migrant import CHECKPOINT, MigrantWaiter, MigratableTask
from polyloop._core._overseer import Overseer
from polyloop._core._port import logger

if TYPE_CHECKING:
    from polyloop._core._worker import Worker

_enter_task: Any = asyncio._enter_task  # typed as if there were no other tasks than asyncio's own
_leave_task: Any = asyncio._leave_task
_clock = _prims.monotonic_ns

type _Task = MigratableTask[Any]

#: Seconds that tasks get to end though the deadline has passed, so that they are not taken for stuck without a step.
_LEAST_WAIT = 0.05


class Crew:
    """The workers of one runtime, as far as they share tasks.

    Attributes:
        live: The tasks that are not done. Added to, and removed from, by any thread.
        ending: Whether nothing new is taken in, and everybody was cancelled.
        empty: Done when no task is left of a crew that is ending.
    """

    def __init__(self, workers: "Sequence[Worker]") -> None:
        self.workers = workers
        self.live: set[_Task] = set()
        self.ending = False
        self.empty = Completion[None]()
        self.overseer = Overseer(workers)
        self.sleeping = self.overseer.asleep  # filled while it sleeps, so that it has to be called
        self._refused: deque[tuple[_Task, BaseException]] = deque()
        self._refusers = deque((None,))  # popped by the one thread that refuses them
        self._ends = deque((None,))  # popped by whoever completes ``empty``
        self._refusal: BaseException | None = None

    # Any thread

    def start(self, task: _Task, worker: "Worker", stays: bool = False) -> None:
        """Take in a new task.

        Args:
            worker: Who is to step it first.
            stays: Whether it belongs to that worker for good.
        """
        task._port = worker
        self.live.add(task)
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
            task.cancel_for_good()

    def take_in(self, task: _Task) -> None:
        """Queue a task that was woken by somebody who is not of the crew: where it ran last."""
        worker: Any = task._port
        if worker.crew_member.closed:
            worker = next((each for each in self.workers if not each.crew_member.closed), worker)
        worker.crew_member.take_in(task)

    def end(self) -> None:
        """Cancel everybody; ``empty`` follows. Every worker that winds down says this."""
        self.ending = True
        for task in self.live.copy():
            task.cancel_for_good()
        self.look_empty()

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
        left = self.live.copy()
        stuck = [Stuck("task", task.name, task._port.name, task_stack(task)) for task in left]
        self.empty._complete(None)
        return stuck

    def look_empty(self) -> None:
        """Somebody has left a crew that is ending."""
        if not self.live.copy():  # a copy, for its critical section
            try:
                self._ends.pop()
            except IndexError:
                return
            self.empty._complete(None)

    def forsake(self, refusal: BaseException) -> None:
        """Complete what is left: no worker will step anything any more."""
        self._refusal = refusal
        self.ending = True
        for task in self.live.copy():
            try:
                task._idle.pop()
            except IndexError:
                if not self._unqueue(task):  # on a thread that does not come back
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
        for task in self.crew.live.copy():
            # What is attached to the loop, or awaits a future of it, would wait for ever.
            if task._home is self.worker or (task._fut_waiter is not None and task._port is self.worker):
                try:
                    task._idle.pop()
                except IndexError:
                    continue
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
        worker, loop = self.worker, self.loop
        enter, leave, waiter_type, checkpoint = _enter_task, _leave_task, MigrantWaiter, CHECKPOINT
        throw: BaseException | None
        for count in range(most):
            try:
                task = queue.popleft()
            except IndexError:  # there are no more, or a thief was faster
                return count
            throw = None
            if task._news:
                throw = task._take_cancel() if task._is_cancel_due() else task._throw
                task._throw = None
            context: Any = task._context
            task._port = worker
            enter(loop, task)
            try:
                try:
                    if throw is None:
                        result = context.run(task._coro.send, None)
                    else:
                        result = context.run(task._coro.throw, throw)
                finally:
                    leave(loop, task)
            except StopIteration as stop:
                if task._log is not None and task._is_cancel_due():
                    task._end_with(task._take_cancel())
                else:
                    task._end(stop.value)
            except BaseException as exc:
                throw = None  # no cycle through its traceback
                if getattr(task._coro, "cr_frame", None) is not None:  # its context could not be entered
                    task._close_coro()
                # This frame is in the traceback, which is no news to anybody.
                task._end_with(exc.with_traceback(exc.__traceback__.tb_next if exc.__traceback__ else None))
                if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                    raise
            else:
                throw = None
                if result is checkpoint:
                    (self.runnable if task._home is None else self.bound).append(task)
                elif type(result) is waiter_type and result.task is task:
                    task._park_on(result)
                else:
                    self._suspended(task, result)
                result = None  # not kept through the next step
        return most

    def _suspended(self, task: _Task, result: Any) -> None:
        """A task has yielded something else than its waiter."""
        if result is None:  # asyncio.sleep(0), which lets the loop's callbacks go first
            (self._aside if self.pace.began_ns else self.bound).append(task)
        elif getattr(result, "_asyncio_future_blocking", None):
            self._await(task, result)
        else:
            task._throw = RuntimeError(f"{task!r} awaits something that is no future and not of polyloop: {result!r}")
            task._news = True
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
            task._news = True
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
        finally:
            self.runnable.extend(taken)
        self.stolen += len(taken)
        return len(taken)

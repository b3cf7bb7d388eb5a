"""The overseer of a crew: a thread that sees what the workers cannot, since one of them is busy and the others sleep.

While any worker steps tasks that migrate, it looks at all of them every few milliseconds. Behind a step that goes on
for long it wakes a sleeping worker, which takes what waits there; and it names in the log a task that keeps its worker
for a second. When nobody steps anything it sleeps, and costs nothing.

Why it does not sleep beside work. The overseer puts its token down and *then* looks at the run queues a last time; who
queues a task appends it and *then* looks for the token. Both are deques, as in a mailbox. (What a worker steps without
its having been queued, after a future, is short of that; the next task that is queued anywhere tells.)
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polyloop._core import _prims
from polyloop._core._balance import STUCK_NS
from polyloop._core._ending import thread_stack
from polyloop._core._parking import Migrant, ThreadWaiter
from polyloop._core._port import logger

if TYPE_CHECKING:
    from polyloop._core._worker import Worker

#: How long a task may keep its worker before it is named, in nanoseconds. A guess: ten times what asyncio finds slow.
LONG_NS = 1_000_000_000

#: What stands between a worker's loop and the task, in a stack: module and function.
_STEPPERS = (("_crew", "_run_some"), ("_migrant", "_step"), ("_driver", "_drive"))

#: Looks in a row that find nobody at work before the overseer goes to sleep.
_IDLE_LOOKS = 100


class Overseer:
    """Looks at workers while they step tasks. ``call`` is for their threads, the rest for its own."""

    def __init__(self, workers: "Sequence[Worker]") -> None:
        self._workers = workers
        self.asleep = deque((None,))  # a token while it sleeps, or has not been started; whoever takes it wakes it
        self._thread: _prims.Thread | None = None
        self._waiter = ThreadWaiter()
        self._stopped = False
        self._named: dict[int, int] = {}  # by index of a worker: the slice whose task was named
        self._seen: dict[int, int] = {}  # by index of a worker: its steps when tasks waited there

    def call(self) -> None:
        """There is work, and ``asleep`` was not empty. Any thread."""
        try:
            self.asleep.pop()
        except IndexError:
            return
        if self._thread is None and not self._stopped:
            self._thread = _prims.start_thread(self._watch, f"{self._workers[0].name}-overseer")
        else:
            self._waiter.wake()

    def stop(self, timeout: float) -> None:
        """End the thread. Any other thread; once no worker steps anything."""
        self._stopped = True
        self.call()
        if self._thread is not None:
            self._thread.join(timeout)

    def _watch(self) -> None:
        idle = 0
        while not self._stopped:
            _prims.sleep(STUCK_NS / 1e9)
            idle = 0 if self.look(_prims.monotonic_ns()) else idle + 1
            if idle >= _IDLE_LOOKS:
                idle = 0
                self._sleep()

    def _sleep(self) -> None:
        self._waiter = ThreadWaiter()
        self.asleep.append(None)
        if self._stopped or self.look(_prims.monotonic_ns()):
            try:
                self.asleep.pop()
            except IndexError:  # somebody has called meanwhile
                self._waiter.park()
            return
        self._waiter.park()

    def look(self, now_ns: int) -> bool:
        """Look at every worker once; whether any of them is at work."""
        at_work = False
        for worker in self._workers:
            member, pace = worker.crew_member, worker.crew_member.pace
            began = pace.began_ns
            if member.runnable and not began:  # behind a callback, or a task of asyncio
                if self._seen.get(worker.index) == member.steps:
                    pace.behind_ns = pace.behind_ns or now_ns - STUCK_NS
                self._seen[worker.index] = member.steps
            if not began and not member.runnable:
                self._seen.pop(worker.index, None)
                continue
            at_work = True
            stuck = pace.stuck_ns(now_ns)
            if stuck >= STUCK_NS and member.runnable:
                worker._call_a_thief()
            if began and stuck >= LONG_NS and self._named.get(worker.index) != began:
                self._named[worker.index] = began
                self._name(worker, stuck)
        return at_work

    def _name(self, worker: "Worker", stuck_ns: int) -> None:
        task: object = asyncio.current_task(worker.loop)
        if isinstance(task, Migrant):
            who = repr(task)
        elif isinstance(task, asyncio.Task):  # it took its first step in one that migrates
            who = f"task {task.get_name()!r}"  # best effort: no more is to be read of another thread's task
        else:
            who = "a callback"  # of a task that has ended
        del task
        frames = thread_stack(worker.ident)
        ours = max((place for place, frame in enumerate(frames) if _is_stepper(frame)), default=-1)
        stack = "".join(f"\n    {frame}" for frame in frames[ours + 1 :])
        logger.warning(
            "polyloop: %s has kept %r for %.1f s without waiting for anything; others wait behind it. Put 'await"
            " polyloop.checkpoint()' into long loops, or give the work to polyloop.to_thread. It is at%s",
            who,
            worker.name,
            stuck_ns / 1e9,
            stack,
        )


def _is_stepper(frame: str) -> bool:
    """Whether it and what comes before it in a stack is no news to anybody."""
    for module, function in _STEPPERS:
        if frame.startswith(__file__.replace("_overseer", module)) and frame.endswith(f" in {function}"):
            return True
    return False

"""One repetition of a scenario: its threads take turns under a plan.

Theory. One thread runs at a time: the one that has the baton, which is a lock of its own that somebody released. So
nothing here needs a lock: all state is touched by the thread with the baton, and by the exploring thread before the
first and after the last of them. At each *step* (a switch point, an operation of a lock of the model, a thread that
must wait or has ended) the running thread looks who could run, asks the plan, and hands the baton over if the answer
is somebody else. A thread that waits has a predicate; a thread that waits for a limited time can also be resumed by a
timeout, and time is virtual: it moves when a timeout is chosen.

Resuming another while the running thread could go on, or a timeout while anybody could run, is a *preemption*. If no
thread can run and no timeout is left, and one has not ended, they wait for ever: the run has failed. After a failure
the others are resumed one after the other with an exception that unwinds them.
"""

import contextvars
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

from polyloop._core._ending import thread_stack
from polyloop.testing._explore_plans import Choice, Deviation, Place, Plan
from polyloop.testing._explore_worker import RealLock, Worker, real_monotonic, settle

#: The files of the explorer, whose frames nobody wants to see.
OWN_FILES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_explore")

#: Functions at the end of a stack that say nothing.
_HIDDEN = tuple(f" in {name}" for name in ("thread_stack", "acquire", "wait", "__enter__", "_acquire_restore"))

#: And at the beginning: of the module threading.
_THREAD_START = tuple(f" in {name}" for name in ("_bootstrap", "_bootstrap_inner", "run"))

#: A timeout from here on is none: a day. (asyncio itself never sleeps longer.)
NEVER = 24 * 3600.0

#: Seconds without a step after which a thread is taken to block outside of the model. Real time.
PATIENCE = 10.0

#: Steps that a thread may take to clean up after the run has failed.
_LAST_STEPS = 2000


class Abandoned(BaseException):
    """Ends the other threads of a run that has failed."""


class Switch(NamedTuple):
    """An entry of the story of a run: what happened to a thread, and where it stood."""

    thread: int
    event: str
    where: Place | None


class Failure(NamedTuple):
    """Why a run failed."""

    text: str
    cause: BaseException | None
    stacks: list[tuple[str, str, list[str]]]  # name, state and stack of each thread that had not ended
    stuck: bool = False  # a thread cannot be had back


class Actor:
    """A thread of the scenario in one run."""

    __slots__ = (
        "deadline", "done", "fn", "fresh", "name", "number", "quiet", "ready", "started", "timed_out", "told", "what",
        "where", "worker",
    )  # fmt: skip

    def __init__(self, number: int, name: str, fn: Callable[[], object]) -> None:
        self.number = number
        self.name = name
        self.fn = fn
        self.worker: Worker
        self.where: Place | None = None
        self.ready: Callable[[], bool] | None = None  # while it waits: whether it can go on
        self.what = ""  # what it waits for
        self.deadline: float | None = None  # while it waits
        self.timed_out = False
        self.fresh = True  # it has done nothing yet
        self.started = False
        self.done = False
        self.quiet = 0  # no switch points
        self.told = False  # that the run has failed

    def can_run(self) -> bool:
        """Whether it could go on now."""
        return not self.done and (self.ready is None or self.ready())


class Run:
    """One repetition."""

    def __init__(self, plan: Plan, max_steps: int) -> None:
        self._plan = plan
        self._max_steps = max_steps
        self.actors: list[Actor] = []
        self.steps = 0
        self.now = 1000.0  # virtual; an arbitrary start that is not zero
        self.running = 0  # identity of the thread that has the baton
        self._current: Actor
        self.failure: Failure | None = None
        self.over = False  # the threads are being unwound
        self._last_steps = 0  # since then
        self.deviations: list[Deviation] = []
        self.story: list[Switch] = []
        self._ended = RealLock()
        self._ended.acquire()

    def add(self, name: str, fn: Callable[[], object]) -> Actor:
        """Add a thread; before the run, or by one of its threads."""
        actor = Actor(len(self.actors), name, fn)
        self.actors.append(actor)
        return actor

    # Called by the exploring thread

    def go(self, workers: list[Worker]) -> None:
        """Run all threads to their end, or to a failure."""
        while len(workers) < len(self.actors):
            workers.append(Worker(len(workers)))
        for actor, worker in zip(self.actors, workers, strict=False):
            actor.worker = worker
        if not self.actors:
            return
        try:
            self._resume(self._choose(None, self._choices(None)))
            self._wait()
        except BaseException as exc:
            if self.failure is None:
                self.failure = Failure(f"interrupted by {exc!r}", exc, [])
            self.over = True
            self._ended.acquire(timeout=1.0)
            raise
        finally:
            self.running = 0

    def _wait(self) -> None:
        seen, since = -1, real_monotonic()
        while not self._ended.acquire(timeout=0.5):
            if seen != self.steps:
                seen, since = self.steps, real_monotonic()
            elif real_monotonic() - since > PATIENCE:
                self._fail_stuck()
                return

    def _fail_stuck(self) -> None:
        name = self._current.name
        text = (
            f"thread {name!r} blocks outside of the model: on a lock that was made before the scenario, a socket, or "
            f"another thread (no step for {PATIENCE:.0f} s)"
        )
        self.failure = Failure(text, None, self._stacks(), stuck=True)
        self.over = True

    # Called by the thread that has the baton

    @property
    def current(self) -> Actor:
        """The thread that runs."""
        return self._current

    def point(self, where: Place) -> None:
        """Stop before something that another thread might see, and let the plan decide who does it."""
        actor = self._current
        if actor.quiet:
            return
        actor.where = where
        if self.over:
            self._clean_up_step(actor)
            return
        if actor.fresh:  # nothing was done since the choice to start it
            actor.fresh = False
            return
        self.steps += 1
        if self.steps > self._max_steps:
            self.fail(f"the threads did not end within {self._max_steps} steps: do they wait in a loop?", None)
            raise Abandoned
        if self._plan.idle:
            return
        choices = self._choices(actor)
        if len(choices) > 1:
            self._switch(actor, choices, "is stopped")

    def operation(self, what: str) -> None:
        """``point`` for an operation of the model itself, which finds out where it was called."""
        self.point(place(sys._getframe(2), what))

    def block(self, ready: Callable[[], bool], timeout: float | None, what: str) -> bool:
        """Wait until ``ready()``; return ``False`` when the timeout came first."""
        actor = self._current
        if self.over:
            raise Abandoned
        actor.where = place(sys._getframe(2), what)
        actor.fresh = False
        actor.ready, actor.what = ready, what
        actor.deadline = None if timeout is None or timeout >= NEVER else self.now + max(timeout, 0.0)
        actor.timed_out = False
        self.steps += 1
        self._switch(actor, self._choices(actor), "waits")
        return not actor.timed_out

    def _switch(self, actor: Actor, choices: list[Choice], event: str) -> None:
        chosen = self._choose(actor, choices)
        if chosen.thread == actor.number:
            self._unblock(actor, chosen.timeout)
            return
        self.story.append(Switch(actor.number, event, actor.where))
        self._resume(chosen)
        actor.worker.baton.acquire()
        settle()
        self.running = actor.worker.ident
        if self.over:
            actor.told = True
            raise Abandoned

    def _choices(self, actor: Actor | None) -> list[Choice]:
        """Who could go on: the running thread, the others in their order, the next timeouts."""
        choices: list[Choice] = []
        cost = 0
        if actor is not None and actor.can_run():
            choices.append(Choice(actor.number, False, 0))
            cost = 1
        due: list[Actor] | None = None
        for other in self.actors:
            if other.done or (other is actor and cost):
                continue
            if other.ready is None or other.ready():
                choices.append(Choice(other.number, False, cost))
            elif other.deadline is not None:
                due = [other] if due is None else [*due, other]
        if due is not None:
            cost = int(bool(choices))
            first = min(other.deadline or 0.0 for other in due)
            choices += [Choice(other.number, True, cost) for other in due if other.deadline == first]
        return choices

    def _choose(self, actor: Actor | None, choices: list[Choice]) -> Choice:
        if not choices:
            self.fail("all threads wait for ever: a deadlock, or a wake-up was lost", None)
            raise Abandoned
        try:
            index = self._plan.choose(self.steps, choices, actor.where if actor is not None else None)
        except Exception as exc:
            self.fail(str(exc), exc)
            raise Abandoned from None
        chosen = choices[index]
        if index:
            self.deviations.append(Deviation(self.steps, chosen.thread, chosen.timeout))
        return chosen

    def _unblock(self, actor: Actor, timeout: bool) -> None:
        if timeout and actor.deadline is not None:
            self.now = max(self.now, actor.deadline)
            actor.timed_out = True
            self.story.append(Switch(actor.number, "goes on: the timeout has passed", actor.where))
        actor.ready = actor.deadline = None

    def _resume(self, chosen: Choice) -> None:
        actor = self.actors[chosen.thread]
        self._unblock(actor, chosen.timeout)
        self._give(actor)

    def _give(self, actor: Actor) -> None:
        worker = actor.worker
        self._current = actor
        if not actor.started:
            actor.started = True
            worker.job = lambda: self._work(actor)
            self.story.append(Switch(actor.number, "starts", None))
        self.running = 0  # until the other one is there
        worker.give()

    def _work(self, actor: Actor) -> None:
        """The life of a thread."""
        self.running = actor.worker.ident
        try:
            contextvars.Context().run(actor.fn)  # as a new thread; this one has had others before
        except Abandoned:
            pass
        except BaseException as exc:
            if not self.over:
                self.fail(f"thread {actor.name!r} raised {raised(exc)}", exc)
        self.running = 0
        actor.done = True
        if not self.over:
            self.story.append(Switch(actor.number, "ends", actor.where))
        self._pass_on(actor)

    def _pass_on(self, actor: Actor) -> None:
        """A thread has ended: the next goes on."""
        if not self.over and not all(other.done for other in self.actors):
            self.steps += 1
            try:
                self._resume(self._choose(actor, self._choices(actor)))
                return
            except Abandoned:
                pass
        left = next((other for other in self.actors if other.started and not other.done), None)
        if left is None:
            self._ended.release()
        else:
            self._give(left)

    def _clean_up_step(self, actor: Actor) -> None:
        """Unwind; what a thread does to clean up happens without switches, and not for ever."""
        self._last_steps += 1
        if not actor.told or self._last_steps > _LAST_STEPS:
            actor.told = True
            raise Abandoned

    def fail(self, text: str, cause: BaseException | None) -> None:
        """Note the failure of the run; the first one counts."""
        if self.failure is None:
            running, self.running = self.running, 0  # what looks at the stacks is no part of the run
            self.failure = Failure(text, cause, self._stacks() if cause is None else [])
            self.running = running
        self.over = True

    def _stacks(self) -> list[tuple[str, str, list[str]]]:
        found: list[tuple[str, str, list[str]]] = []
        for actor in self.actors:
            if actor.started and not actor.done:
                state = f"waits: {actor.what}" if actor.ready is not None else "runs"
                stack = thread_stack(actor.worker.ident)
                found.append((actor.name, state, [line for line in stack if _is_interesting(line)]))
        return found

    def clear(self) -> None:
        """Let go of the scenario's objects: this run is part of cycles, and the collector is off."""
        for actor in self.actors:
            actor.fn = actor.ready = None  # type: ignore[assignment]
        self.actors = []


def _is_interesting(line: str) -> bool:
    """Whether a line of a stack is more than the machinery around the code under test."""
    if line.startswith(OWN_FILES) or line.endswith(_HIDDEN):
        return False
    return not ("threading.py:" in line and line.endswith(_THREAD_START))


def raised(exc: BaseException) -> str:
    """An exception on one line."""
    text = str(exc).partition("\n")[0]
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


class State:
    """What is explored at this moment; one exploration at a time.

    Attributes:
        run: The run that is being built, made or checked.
        explorer: Identity of the thread that explores, while it builds the scenario or checks its end.
    """

    run: Run | None = None
    explorer = 0


def place(frame: FrameType | None, what: str) -> Place:
    """Where the nearest frame is that is not of the explorer or of ``threading`` and ``queue``."""
    last = frame
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(OWN_FILES) and not file.endswith(("threading.py", "queue.py", "contextlib.py")):
            break
        frame = frame.f_back
    frame = frame or last
    assert frame is not None
    return frame.f_code, frame.f_lasti, what

"""``explore``: runs the threads of a scenario in every order that matters.

The threads are real and run unmodified code, but one at a time; see ``_explore_run`` for how they take turns,
``_explore_points`` for where they may be stopped, ``_explore_model`` and ``_explore_loop`` for what waits, and
``_explore_plans`` for the search.
"""

import contextlib
import gc
import random
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from types import ModuleType

from polyloop.testing._explore_errors import ExplorationError, ScheduleError
from polyloop.testing._explore_model import STATE, Patches
from polyloop.testing._explore_plans import Item, Plan, Random, Replay, Systematic
from polyloop.testing._explore_points import Points, chosen_trace, default_trace
from polyloop.testing._explore_report import describe, read_schedule, write_schedule
from polyloop.testing._explore_run import Failure, Run, raised
from polyloop.testing._explore_scenario import Interleaving
from polyloop.testing._explore_worker import RealLock, Worker, get_ident, real_monotonic

#: Runs between two collections of garbage, which happens at no other time. A guess.
_COLLECT_EVERY = 500

#: How often the search starts again because more code than before was found to be under test.
_MOST_RESTARTS = 10

_exploring = RealLock()  # one exploration at a time: it replaces what all threads share


@dataclass(frozen=True, slots=True)
class Explored:
    """What an exploration without a failure has covered.

    Attributes:
        schedules: Number of interleavings that were run.
        exhaustive: Whether they were all that there are with so many preemptions.
        preemptions: The bound: all schedules with fewer were run too.
        steps: Switch points, and waits, of the longest run.
        seed: The seed of a random search.

    .. versionadded:: 0.2
    """

    schedules: int
    exhaustive: bool
    preemptions: int
    steps: int
    seed: int | None = None


class _Exploration:
    """Runs of one scenario with the same workers, points and patches."""

    def __init__(self, scenario: Callable[[Interleaving], object], points: Points, max_steps: int) -> None:
        self._scenario = scenario
        self._points = points
        self._max_steps = max_steps
        self.workers: list[Worker] = []
        self.count = 0
        self.steps = 0  # of the longest run

    def run(self, plan: Plan, how: str) -> Run:
        """Run the scenario once.

        Raises:
            ExplorationError: it failed.
        """
        self.count += 1
        if self.count % _COLLECT_EVERY == 0:
            gc.collect()
        run = STATE.run = Run(plan, self._max_steps)
        scene = Interleaving(run)
        try:
            with _in_the_model():
                self._scenario(scene)
            run.go(self.workers)
            if run.failure is None:
                self._check(run, scene)
            self.steps = max(self.steps, run.steps)
            if run.failure is not None and (run.failure.stuck or not self._points.changed):
                raise _error(run, run.failure, how)
        finally:
            scene._close()
            run.clear()
            STATE.run = None
        return run

    def _check(self, run: Run, scene: Interleaving) -> None:
        try:
            with _in_the_model():
                scene._verify()
        except Exception as exc:
            run.failure = Failure(f"the check raised {raised(exc)}", exc, [])

    def warm_up(self) -> None:
        """Run without switches until all code that is reached was seen."""
        for _ in range(_MOST_RESTARTS):
            self._points.changed = False
            self.run(Replay([]), "without a preemption")
            if not self._points.changed:
                break
        self.count = 0

    def systematic(self, preemptions: int, most: int, until: float) -> Explored:
        """Run everything within the bound."""
        ended = False
        for _ in range(_MOST_RESTARTS):
            self.warm_up()
            levels = [deque[Item]() for _ in range(preemptions + 1)]
            levels[0].append(Item((), 0, None))
            ended = self._sweep(levels, most, until)
            if not self._points.changed:
                break
        return Explored(self.count, ended, preemptions, self.steps)

    def _sweep(self, levels: list[deque[Item]], most: int, until: float) -> bool:
        for bound, level in enumerate(levels):
            while level:
                if self.count >= most or real_monotonic() > until:
                    return False
                plan = Systematic(level.popleft(), levels)
                self.run(plan, f"with {_times(bound)}, in schedule {self.count + 1}")
                if self._points.changed:
                    return False
                if not plan.finished():
                    raise ScheduleError("the scenario ended earlier than before with the same choices")
        return True

    def random(self, seed: int, changes: int, most: int, until: float) -> Explored:
        """Run random schedules."""
        self.warm_up()
        while self.count < most and real_monotonic() <= until:
            number = self.count
            rng = random.Random(f"{seed}/{number}")
            self.run(Random(rng, changes, self.steps), f"by chance with seed {seed}, in schedule {number + 1}")
            self._points.changed = False
        return Explored(self.count, False, changes, self.steps, seed)

    def replay(self, text: str) -> Explored:
        """Run one schedule."""
        deviations, steps = read_schedule(text)
        self.warm_up()
        plan = Replay(deviations)
        run = self.run(plan, "by a replay")
        if not plan.finished() or run.steps != steps:
            raise ScheduleError(f"the replay took {run.steps} steps and the schedule has {steps}: the code has changed")
        return Explored(1, False, len(deviations), run.steps)

    def end(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.end()


@contextlib.contextmanager
def _in_the_model() -> Generator[None]:
    """What this thread makes meanwhile belongs to the run."""
    STATE.explorer = get_ident()
    try:
        yield
    finally:
        STATE.explorer = 0


def _times(count: int) -> str:
    return "1 preemption" if count == 1 else f"{count} preemptions"


def _error(run: Run, failure: Failure, how: str) -> Exception:
    if isinstance(failure.cause, ScheduleError):
        return failure.cause
    schedule = write_schedule(run.deviations, run.steps)
    error = ExplorationError(describe(failure, how, schedule, run.actors, run.story))
    error.schedule = schedule
    error.__cause__ = failure.cause
    return error


@contextlib.contextmanager
def _prepared(
    scenario: Callable[[Interleaving], object], wanted: Callable[[str, str], bool], max_steps: int
) -> Generator[_Exploration]:
    """Replace, watch and disable what has to be, and put it back."""
    if not _exploring.acquire(blocking=False):
        raise RuntimeError("an exploration runs already; one at a time, and not one in another")
    with contextlib.ExitStack() as stack:
        stack.callback(_exploring.release)
        points = Points(wanted, STATE)
        exploration = _Exploration(scenario, points, max_steps)
        stack.callback(exploration.end)
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        stack.callback(points.stop)
        points.start()
        patches = Patches()
        stack.callback(patches.undo)
        patches.apply(wanted)
        yield exploration


def explore(
    scenario: Callable[[Interleaving], object],
    *,
    preemptions: int = 2,
    schedules: int | None = None,
    time_limit: float = 60.0,
    seed: int | None = None,
    replay: str | None = None,
    trace: Iterable[str | ModuleType] | None = None,
    max_steps: int = 20_000,
) -> Explored:
    """Run the threads of ``scenario`` in every order that matters, or in many random ones; raise for one that fails.

    For example::

        def scenario(it):
            box = Box()
            it.thread(box.increment)
            it.thread(box.increment)
            it.check(lambda: check_equal(box.value, 2))

        explore(scenario)

    The code under test is not modified. Its threads run one at a time and are stopped before bytecodes that can touch
    what threads share; locks, conditions, queues, ``time.sleep`` and the primitives of polyloop wait in the model, with
    virtual time. A run fails by an exception of a thread or a check, when all threads wait for ever, or when they do
    not come to an end. See the page *Testing* for what the model is and what it is not.

    Args:
        scenario: Called once for each schedule, with an ``Interleaving``: makes fresh state, and adds threads and
            checks. It must do the same each time.
        preemptions: How often a thread that could go on is stopped for another, or a timeout comes early, in one
            schedule. Most races need one or two; each more multiplies the number of schedules by that of the steps.
        schedules: Stop after so many schedules; by default 1000 for a random search, otherwise without limit.
        time_limit: Stop after so many seconds.
        seed: Search at random instead, with this seed: for scenarios with too many schedules.
        replay: Run this one schedule, from the message of an ``ExplorationError``.
        trace: Modules and packages whose code may be stopped. By default all but the standard library and tools for
            tests.
        max_steps: A run that takes more steps has failed: its threads wait in a loop.
    Returns:
        What was covered. If ``exhaustive`` is false, a limit came first.
    Raises:
        ExplorationError: a schedule failed; the message shows it, and how to replay it.
        ScheduleError: the scenario is not deterministic, or ``replay`` is of other code.
        ValueError: ``replay`` is no schedule, or a number is negative.
        RuntimeError: another exploration runs in this process, or ``sys.monitoring`` has no free tool.
    Thread safety: a plain thread, one exploration at a time in a process. Other threads go on undisturbed; what they
        share with the scenario is outside of the model.
    Source: Musuvathi and Qadeer, "Iterative context bounding" (PLDI 2007); Burckhardt and others, "A randomized
        scheduler with probabilistic guarantees of finding bugs" (ASPLOS 2010); tokio's loom.

    .. versionadded:: 0.2
    """
    if preemptions < 0 or max_steps < 1 or (schedules is not None and schedules < 1):
        raise ValueError("preemptions must not be negative; schedules and max_steps must be positive")
    if replay is not None:
        read_schedule(replay)
    wanted = default_trace if trace is None else chosen_trace(trace)
    until = real_monotonic() + time_limit
    with _prepared(scenario, wanted, max_steps) as exploration:
        if replay is not None:
            return exploration.replay(replay)
        if seed is not None:
            return exploration.random(seed, preemptions, schedules or 1000, until)
        return exploration.systematic(preemptions, schedules or 10**9, until)

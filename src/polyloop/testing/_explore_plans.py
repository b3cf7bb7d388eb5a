"""Plans: who runs next, in the systematic search, in the random one, and in a replay.

The search is that of CHESS: a run is a list of choices, the first of which is always to go on without a switch. Each
run notes what else could have been chosen, with the number of preemptions that it costs, and what costs least is run
first; every list of choices within the bound is run once. The random search is PCT: threads get random priorities, the
highest that can run runs, and at a few random steps the running thread becomes the lowest.
"""

import random
from collections import deque
from types import CodeType
from typing import NamedTuple, Protocol

from polyloop.testing._explore_errors import ScheduleError

#: A place in the code of a thread: the code, the offset, and what is called there, if it is a call. A plain tuple, for
#: one is made at each step.
type Place = tuple[CodeType, int, object]


def same_place(one: Place | None, other: Place | None) -> bool:
    """Whether they are the same, whatever objects the codes are."""
    if one is None or other is None:
        return one is other
    return one[1] == other[1] and one[0].co_qualname == other[0].co_qualname


class Choice(NamedTuple):
    """A thread to go on with; its timed wait ends by the timeout; whether that is a preemption."""

    thread: int
    timeout: bool
    cost: int


class Deviation(NamedTuple):
    """At this step, not the first choice but this one."""

    step: int
    thread: int
    timeout: bool


class Plan(Protocol):
    """Decides who runs.

    Attributes:
        idle: From now on it will never stop a thread that can go on.
    """

    idle: bool

    def choose(self, step: int, choices: list[Choice], where: Place | None) -> int:
        """Choose one of several; the first is to go on without a switch where that can be."""
        ...


class Item(NamedTuple):
    """A run to be made: choices, their price, and where the thread stood that the last one stops."""

    deviations: tuple[Deviation, ...]
    cost: int
    where: Place | None


class Systematic:
    """Follows an item, then goes on without a switch, and notes what else could be done."""

    def __init__(self, item: Item, levels: list[deque[Item]]) -> None:
        self._item = item
        self._levels = levels
        self._next = 0
        self._full = item.cost >= len(levels) - 1  # no preemption is left
        self.idle = self._full and not item.deviations

    def choose(self, step: int, choices: list[Choice], where: Place | None) -> int:
        deviations = self._item.deviations
        if self._next < len(deviations):
            wanted = deviations[self._next]
            if wanted.step > step:
                return 0
            self._next += 1
            if self._next == len(deviations):
                self._compare(step, where)
                self.idle = self._full
            return _find(wanted, step, choices)
        for index in range(1, len(choices)):
            thread, timeout, cost = choices[index]
            cost += self._item.cost
            if cost < len(self._levels):
                self._levels[cost].append(Item((*deviations, Deviation(step, thread, timeout)), cost, where))
        return 0

    def _compare(self, step: int, where: Place | None) -> None:
        expected = self._item.where
        if expected is not None and not same_place(expected, where):
            raise ScheduleError(
                f"the scenario did not do the same with the same choices: at step {step} a thread stood in "
                f"{expected[0].co_qualname} before, and now in {where[0].co_qualname if where else 'none'}; "
                "it must not depend on time, randomness, hashes, or on what earlier runs left behind"
            )

    def finished(self) -> bool:
        """Whether all choices could be made."""
        return self._next == len(self._item.deviations)


class Replay(Systematic):
    """Follows a schedule once."""

    def __init__(self, deviations: list[Deviation]) -> None:
        super().__init__(Item(tuple(deviations), 0, None), [])


class Random:
    """Priorities with change points (PCT)."""

    idle = False

    def __init__(self, rng: random.Random, changes: int, steps: int) -> None:
        self._rng = rng
        self._priorities: dict[int, float] = {}
        self._changes = {rng.randrange(1, max(steps, 2)) for _ in range(changes)}
        self._low = 0.0

    def choose(self, step: int, choices: list[Choice], where: Place | None) -> int:
        due = {change for change in self._changes if change <= step}
        if due:
            self._changes -= due
            late = [index for index, choice in enumerate(choices) if choice.timeout]
            if late and self._rng.random() < 0.5:
                return self._rng.choice(late)
            self._low -= 1.0
            self._priorities[choices[0].thread] = self._low
        free = [index for index, choice in enumerate(choices) if not choice.timeout] or range(len(choices))
        return max(free, key=lambda index: self._priority(choices[index].thread))

    def _priority(self, thread: int) -> float:
        if thread not in self._priorities:
            self._priorities[thread] = self._rng.random()
        return self._priorities[thread]


def _find(wanted: Deviation, step: int, choices: list[Choice]) -> int:
    if wanted.step == step:
        for index, choice in enumerate(choices):
            if choice.thread == wanted.thread and choice.timeout == wanted.timeout:
                return index
    raise ScheduleError(
        f"the schedule goes on with thread {wanted.thread} at step {wanted.step}, which cannot be chosen now: the "
        "scenario did not do the same with the same choices, or its code has changed since"
    )

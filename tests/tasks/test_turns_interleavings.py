"""Every order of a limit: a turn given back, a child added, a child cancelled, the end of them all.

Proved: a handle is started or refused, once; a turn is never lost and never given twice; nobody waits beside a free
turn; a cancellation is delivered, whenever it comes; a closed line starts nobody.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from tests.helpers import equal, explore_for_longer

from polyloop._core._port import Port
from polyloop.tasks._turns import Turns, Waiting, WaitingHandle
from polyloop.testing import Interleaving, explore

SCHEDULES = 400


class Home:
    """The loop of the group: what is posted there is done at once, by whoever posts."""

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        fn(*args)


class Line(Turns):
    """A limit of one whose tasks are only noted when they start, and whose first turn is taken."""

    def __init__(self) -> None:
        super().__init__(1, cast("Port", Home()), None)
        self.started: list[Any] = []
        self.first = self.new()
        self.enter(self.first, None, None)

    def new(self) -> WaitingHandle[None]:
        handle = WaitingHandle[None](nothing())
        handle._group = self
        return handle

    def _start(self, handle: Waiting[Any]) -> None:
        handle._has_turn = True
        self.started.append(handle)

    def _child_ended(self, handle: Any) -> None:
        self.ended(handle)

    def end(self, handle: WaitingHandle[None]) -> None:
        """A task that runs has ended."""
        handle._coro.close()
        self.ended(handle)

    def close_all(self) -> None:
        for handle in self.started:
            handle._coro.close()

    def free(self) -> int:
        return self._free.count


async def nothing() -> None: ...


def fate(line: Line, handle: WaitingHandle[None]) -> str:
    """What has become of a handle: one thing."""
    started, refused = line.started.count(handle), handle.done()
    assert started + refused == 1, (started, refused)
    return "started" if started else "cancelled"


def a_turn_and_a_child(it: Interleaving) -> None:
    """The turn that is given back goes to the child that is added at that moment."""
    line = Line()
    second = line.new()
    it.thread(line.end, line.first)
    it.thread(line.enter, second, None, None)

    def check() -> None:
        equal(fate(line, second), "started")
        equal(line.free(), 0)
        line.close_all()

    it.check(check)


def a_turn_and_a_cancellation(it: Interleaving) -> None:
    """The child is started or cancelled; if it is cancelled the next one has the turn."""
    line = Line()
    second, third = line.new(), line.new()
    line.enter(second, None, None)
    line.enter(third, None, None)
    it.thread(line.end, line.first)
    it.thread(second.cancel)

    def check() -> None:
        if fate(line, second) == "started":
            assert second._cancels  # it will find it when it starts
            equal(line.started, [line.first, second])
        else:
            equal(fate(line, third), "started")
        equal(line.free(), 0)
        line.close_all()
        third._coro.close()

    it.check(check)


def a_child_cancelled_on_its_way_into_the_line(it: Interleaving) -> None:
    """By a group that is aborted while another thread adds to it: no turn is free, and it is refused at once."""
    line = Line()
    second = line.new()
    it.thread(line.enter, second, None, None)
    it.thread(second.cancel)

    def check() -> None:
        equal(fate(line, second), "cancelled")
        line.close_all()

    it.check(check)


def two_turns_and_two_children(it: Interleaving) -> None:
    """Each child gets one turn, in whatever order."""
    line = Line()
    line._free.free.append(None)
    other = line.new()
    line.enter(other, None, None)
    late = [line.new(), line.new()]

    def add() -> None:
        for handle in late:
            line.enter(handle, None, None)

    it.thread(line.end, line.first)
    it.thread(line.end, other)
    it.thread(add)

    def check() -> None:
        equal([fate(line, handle) for handle in late], ["started"] * 2)
        equal(line.free(), 0)
        line.close_all()

    it.check(check)


def an_aborted_group(it: Interleaving) -> None:
    """It closes the line and cancels; a turn that comes back meanwhile starts nobody after that."""
    line = Line()
    second = line.new()
    line.enter(second, None, None)
    started_before: list[int] = []

    def abort() -> None:
        line.close()
        second.cancel()
        started_before.append(len(line.started))

    it.thread(abort)
    it.thread(line.end, line.first)

    def check() -> None:
        if fate(line, second) == "started":
            assert second._cancels
        line.close_all()

    it.check(check)


SCENARIOS = {
    fn.__name__: fn
    for fn in (
        a_turn_and_a_child,
        a_turn_and_a_cancellation,
        a_child_cancelled_on_its_way_into_the_line,
        two_turns_and_two_children,
        an_aborted_group,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_order_of_turns_ends_well(name: str) -> None:
    """All orders with two preemptions, as far as they are few."""
    assert explore(SCENARIOS[name], preemptions=2, schedules=SCHEDULES).schedules > 1
    assert explore(SCENARIOS[name], preemptions=3, seed=1, schedules=SCHEDULES).schedules == SCHEDULES


def test_a_cancelled_handle_says_so() -> None:
    """The model above cancels as users do."""
    line = Line()
    second = line.new()
    line.enter(second, None, None)
    second.cancel("why")
    with pytest.raises(asyncio.CancelledError, match="why"):
        second.result()
    line.close_all()


@pytest.mark.stress
def test_every_order_of_turns_ends_well_for_longer(seed: int, seconds: float) -> None:
    """Two preemptions in all orders as far as time allows, and many at random."""
    explore_for_longer(SCENARIOS, seed, seconds)

"""Every order of the ends of children that migrate, on two workers, and of those who count them.

The groups, the ``gather`` and the workers are the real ones, but for the loops: see ``test_migrant_interleavings``. A
child that was forgotten shows as a parent that is not done when nothing is left to do anywhere.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests._core.test_migrant_interleavings import Scene, Spot, refusal
from tests._core.test_migrant_interleavings import timeless as timeless  # the fixture, for each test here, too
from tests.helpers import explore_for_longer

import polyloop
from polyloop import Runtime, RuntimeClosedError, TaskGroup
from polyloop._core._migrant import CHECKPOINT, MigratableTask
from polyloop.testing import Interleaving, explore

#: Schedules in a test that is run all the time. The stress test runs on, and without drivers, too.
SCHEDULES = 600


class Place(Spot):
    """A spot of whoever comes to it."""

    async def stay(self) -> None:
        task: Any = asyncio.current_task()
        self.of(task)
        await self.wait()


class InOrder(dict[Any, None]):
    """A set whose order is the same each time."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    def copy(self) -> "InOrder":
        return InOrder(self)


class Family(Scene):
    """A parent, on the left, and its children. Two of them wait, each at its place.

    Args:
        driven: Whether the next step, on either worker, is taken by a driver.
    """

    def __init__(self, driven: bool) -> None:
        super().__init__()
        self.driven = driven
        self.first, self.second, self.third = Place(), Place(), Place()
        self.runtime = Runtime.__new__(Runtime)
        self.runtime._state = "running"
        self.runtime._crew = self.crew
        self.runtime._migratable = True
        self.runtime._loop_factory = self.runtime._solo = None
        for worker in self.workers:
            worker.runtime = self.runtime
        self.group = TaskGroup()
        for owner, names in ((self.group, ("_tasks", "_migrants")), (self.crew, ("live", "_left"))):
            for name in names:
                setattr(owner, name, InOrder())

    def begin(self, body: Callable[[], Any]) -> MigratableTask[Any]:
        """Run the parent until nothing is left to do on the left; it waits then, and so do its children."""
        parent = self.parked(body())
        if self.driven:
            self.left.drive()
            self.right.drive()
        return parent

    async def child(self, place: Place, end: Callable[[], object] = lambda: None) -> object:
        """Waits, and then ends as told."""
        await place.stay()
        self.log.append("child")
        return end()

    async def in_group(self, *ends: Callable[[], object]) -> None:
        """Has as many children as there are ends, and notes what it has heard of them."""
        places = (self.first, self.second)
        children: list[Any] = []
        try:
            async with self.group as group:
                children += [
                    group.create_task(self.child(place, end)) for place, end in zip(places, ends, strict=False)
                ]
        except BaseExceptionGroup as failures:
            self.log.append(f"heard of {len(failures.exceptions)}")
        self.log.append("left" if all(child.done() for child in children) else "left one behind")

    def on_the_left(self) -> None:
        """The first child goes on, at home."""
        with self.left.held():
            self.first.wake()
        self.left.work()

    def on_the_right(self) -> None:
        """The second, elsewhere."""
        with self.right.held():
            self.second.wake()
        self.right.work()

    def over(self, *logs: str) -> None:
        """The parent has ended, and nobody is left."""
        self.check(*logs)
        assert not self.crew.broods, "a group has been left, and is still counted"
        assert not self.group._away


def returns() -> None:
    """How a child ends: well."""


def fails() -> None:
    """Badly."""
    raise ValueError("a child")


type Scenario = Callable[[Interleaving, bool], None]


def the_last_two_end_at_once(it: Interleaving, driven: bool) -> None:
    """One at home, where nobody tells anybody, and one elsewhere, which does if it finds itself the last."""
    scene = Family(driven)
    scene.begin(lambda: scene.in_group(returns, returns))
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.check(lambda: scene.over("child child left"))


def one_ends_and_one_fails_elsewhere(it: Interleaving, driven: bool) -> None:
    """The parent hears of the failure, though the set is empty before that has come home; or cancels the other."""
    scene = Family(driven)
    scene.begin(lambda: scene.in_group(returns, fails))
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.check(lambda: scene.over("child child heard of 1 left", "child heard of 1 left"))


def both_fail(it: Interleaving, driven: bool) -> None:
    """The second that fails is cancelled, or heard of, too."""
    scene = Family(driven)
    scene.begin(lambda: scene.in_group(fails, fails))
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.check(lambda: scene.over("child child heard of 2 left", "child child heard of 1 left", "child heard of 1 left"))


def a_child_makes_another_as_its_sibling_ends(it: Interleaving, driven: bool) -> None:
    """Elsewhere: its parent waits for that one, too."""
    scene = Family(driven)

    async def grandchild() -> None:
        scene.log.append("grandchild")

    def makes_one() -> None:
        scene.group.create_task(grandchild())

    scene.begin(lambda: scene.in_group(returns, makes_one))
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.check(lambda: scene.over("child child grandchild left", "child grandchild child left"))


def a_stranger_adds_a_child_as_the_last_one_ends(it: Interleaving, driven: bool) -> None:
    """A task that is no child: its child is refused, or waited for."""
    scene = Family(driven)

    async def added() -> None:
        scene.log.append("added")

    async def stranger() -> None:
        await scene.second.stay()
        try:
            scene.group.create_task(added())
        except RuntimeError:
            scene.log.append("refused")

    scene.begin(lambda: scene.in_group(returns))
    scene.parked(stranger())
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    orders = ("child added left", "added child left", "child left refused", "child refused left", "refused child left")
    it.check(lambda: scene.over(*orders))


def a_stranger_adds_a_child_as_the_group_is_aborted(it: Interleaving, driven: bool) -> None:
    """By a child that fails: it is refused, or cancelled, once."""
    scene = Family(driven)
    made: list[Any] = []

    async def added() -> None:
        try:
            await CHECKPOINT
            await CHECKPOINT
        except asyncio.CancelledError:
            scene.log.append("cancelled")
            raise

    async def stranger() -> None:
        await scene.second.stay()
        try:
            made.append(scene.group.create_task(added()))
        except RuntimeError:
            scene.log.append("refused")

    def check() -> None:
        scene.over()
        assert "heard of 1" in scene.log
        assert scene.log.count("cancelled") <= 1
        for task in made:
            assert task.done()
            assert task.cancelling() <= 1

    scene.begin(lambda: scene.in_group(fails))
    scene.parked(stranger())
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.check(check)


def the_crew_ends_as_children_end(it: Interleaving, driven: bool) -> None:
    """Each is counted and gone, in whatever order; who finds nobody left says so, once."""
    scene = Family(driven)
    scene.begin(lambda: scene.in_group(returns, returns))
    told: list[bool] = []
    scene.crew.empty._add_waiter(lambda: told.append(not scene.crew.tasks()))

    def check() -> None:
        scene.over()
        assert scene.crew.empty.done()
        assert told == [True], "it was told twice, or while somebody was there"
        assert not scene.crew._left

    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.thread(scene.crew.end)
    it.check(check)


def the_crew_ends_as_a_child_makes_another(it: Interleaving, driven: bool) -> None:
    """That one is cancelled with the others, or by its maker; nobody is said to be the last while it lives."""
    scene = Family(driven)
    made: list[Any] = []

    forgotten: list[object] = []

    async def grandchild() -> None:
        try:
            await CHECKPOINT
        finally:
            if scene.crew.empty.done():
                forgotten.append("the grandchild")

    def makes_one() -> None:
        made.append(scene.group.create_task(grandchild()))

    def check() -> None:
        scene.over()
        assert scene.crew.empty.done()
        assert not forgotten
        assert all(task.done() and (task.cancelled() or task.exception() is None) for task in made)

    scene.begin(lambda: scene.in_group(makes_one))
    it.thread(scene.on_the_left)
    it.thread(scene.crew.end)
    it.check(check)


def the_crew_is_forsaken_as_a_child_ends(it: Interleaving, driven: bool) -> None:
    """On a thread that was taken for stuck: either completes it, and the other finds that out."""
    scene = Family(driven)
    ended: list[Any] = []

    async def parent() -> None:
        async with scene.group as group:
            ended.append(group.create_task(scene.child(scene.first, returns)))
            ended.append(group.create_task(scene.child(scene.second, fails)))

    scene.begin(parent)
    heard: list[Any] = []
    for worker in scene.workers:  # of what a child raises whose parent is over
        setattr(worker.hands, "call_exception_handler", heard.append)  # noqa: B010 - of another type
    with scene.left.held():
        scene.first.wake()
    with scene.right.held():
        scene.second.wake()

    def check() -> None:
        scene.settle()
        assert scene.tasks[0].done()
        kinds: list[type[Any]] = [type(None), ValueError]
        for task, own in zip(ended, kinds, strict=True):
            assert task.done()
            assert task.cancelled() or isinstance(task.exception(), (own, RuntimeClosedError))
        assert not scene.crew.tasks()
        assert not scene.group._away

    it.thread(scene.left.work)
    it.thread(scene.right.work)
    it.thread(scene.crew.forsake, refusal())
    it.check(check)


def a_stranger_adds_a_child_as_everything_ends(it: Interleaving, driven: bool) -> None:
    """The group is aborted and the crew ends: a child that was made and taken back has not been counted for good."""
    scene = Family(driven)

    async def stranger() -> None:
        await scene.second.stay()
        try:
            scene.group.create_task(scene.child(scene.second))
        except RuntimeError:
            scene.log.append("refused")

    def check() -> None:
        scene.over()
        assert scene.crew.empty.done()
        assert not scene.crew._left

    scene.begin(lambda: scene.in_group(fails))
    scene.parked(stranger())
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.thread(scene.crew.end)
    it.check(check)


def gathered_ones_end_at_once(it: Interleaving, driven: bool) -> None:
    """The last of them has the future done, at home."""
    scene = Family(driven)

    async def parent() -> None:
        got = await polyloop.gather(
            scene.child(scene.first, lambda: 1), scene.child(scene.second, lambda: None), return_exceptions=True
        )
        scene.log.append(str(got))

    scene.begin(parent)
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.check(lambda: scene.over("child child [1, None]"))


def one_of_the_gathered_fails_elsewhere(it: Interleaving, driven: bool) -> None:
    """That is what comes of it, once, and no result before."""
    scene = Family(driven)

    async def parent() -> None:
        try:
            await polyloop.gather(scene.child(scene.first, returns), scene.child(scene.second, fails))
        except ValueError:
            scene.log.append("heard")

    scene.begin(parent)
    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.check(lambda: scene.over("child child heard", "child heard child"))


def a_gathering_is_cancelled_as_its_children_end(it: Interleaving, driven: bool) -> None:
    """Its awaiter, that is: it hears of that, or it has the results."""
    scene = Family(driven)

    async def parent() -> None:
        try:
            got = await polyloop.gather(scene.child(scene.first, lambda: 1), scene.child(scene.second, lambda: 2))
        except asyncio.CancelledError:
            scene.log.append("cancelled")
        else:
            scene.log.append(str(got))

    task = scene.begin(parent)

    def check() -> None:
        scene.over()
        assert scene.log[-1] in ("cancelled", "[1, 2]") or scene.log.count("cancelled") == 1, scene.log

    it.thread(scene.on_the_left)
    it.thread(scene.on_the_right)
    it.thread(task.cancel)
    it.check(check)


class Hooked(InOrder):
    """Lets something happen on another worker around an entry."""

    def __init__(self, before: Callable[[], object], after: Callable[[], object]) -> None:
        super().__init__()
        self._before, self._after = before, after

    def add(self, item: Any) -> None:
        self._before()
        super().add(item)
        self._after()


@pytest.mark.parametrize("late", [False, True])
def test_a_child_that_is_made_while_the_group_is_aborted_and_the_crew_ends(late: bool) -> None:
    """Whether it is entered before that or after: it is refused, and not counted for good."""
    scene = Family(False)

    def happens() -> None:
        scene.on_the_left()  # the first child fails
        scene.crew.end()

    async def stranger() -> None:
        await scene.second.stay()
        scene.group._migrants = hooked
        hooked.update(entered)
        with pytest.raises(RuntimeError, match=r"is (shutting down|finished)"):
            scene.group.create_task(scene.child(scene.second))
        scene.log.append("refused")

    async def parent() -> None:
        with pytest.raises(ExceptionGroup):
            async with scene.group as group:
                child = group.create_task(scene.child(scene.first, fails))
                entered.add(child)
                await scene.third.stay()

    entered = InOrder()
    hooked: Any = Hooked(happens if late else returns, returns if late else happens)
    scene.begin(parent)
    scene.parked(stranger())
    (child,) = entered
    child._live = hooked
    scene.on_the_right()
    scene.over()
    assert "refused" in scene.log
    assert scene.crew.empty.done()
    assert not scene.crew._left


def test_nobody_is_the_last_before_all_are_counted() -> None:
    """A task ends when the crew has begun to end, and has counted nobody yet."""
    scene = Family(False)
    scene.begin(lambda: scene.in_group(returns, returns))
    scene.crew.ending = True
    scene.on_the_left()
    assert not scene.crew.empty.done()
    scene.crew.end()
    scene.over()
    assert scene.crew.empty.done()


def test_nobody_is_the_last_who_has_started_another() -> None:
    """In its cleanup: that one is counted when it is started, and cancelled."""
    scene = Family(False)
    late: list[MigratableTask[Any]] = []

    async def body() -> None:
        try:
            await scene.first.stay()
        finally:
            late.append(scene.task(scene.child(scene.second)))

    task = scene.begin(body)
    scene.crew.end()
    with scene.left.held():
        member = scene.left.crew_member
        assert member._run_some(member.runnable, 1) == 1
    assert task.cancelled()
    assert not late[0].done()
    assert not scene.crew.empty.done()
    scene.over()
    assert scene.crew.empty.done()


SCENARIOS: list[Scenario] = [
    the_last_two_end_at_once,
    one_ends_and_one_fails_elsewhere,
    both_fail,
    a_child_makes_another_as_its_sibling_ends,
    a_stranger_adds_a_child_as_the_last_one_ends,
    a_stranger_adds_a_child_as_the_group_is_aborted,
    the_crew_ends_as_children_end,
    the_crew_ends_as_a_child_makes_another,
    the_crew_is_forsaken_as_a_child_ends,
    a_stranger_adds_a_child_as_everything_ends,
    gathered_ones_end_at_once,
    one_of_the_gathered_fails_elsewhere,
    a_gathering_is_cancelled_as_its_children_end,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_end_is_lost(scenario: Scenario) -> None:
    """In every order with one preemption, or the first of them where three threads have many."""
    result = explore(of(scenario, True), preemptions=1, schedules=SCHEDULES)
    print(result)
    assert result.schedules > 100


@pytest.mark.stress
def test_no_end_is_lost_in_many_more_orders(seed: int, seconds: float) -> None:
    """The same, systematically and then at random, for as long as asked."""
    explore_for_longer({f"{s.__name__}-{how}": of(s, how) for s in SCENARIOS for how in (False, True)}, seed, seconds)


def of(scenario: Scenario, driven: bool) -> Callable[[Interleaving], None]:
    """The scenario in one of its two ways."""
    return lambda it: scenario(it, driven)

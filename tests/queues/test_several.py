"""One who waits in several lines: step by step, and in every order of a few wakers."""

from collections import deque
from collections.abc import Callable

import pytest
from tests.helpers import equal

from polyloop._core._waiting import NOTHING, Line, Nothing, block_until, wake_all, wake_next
from polyloop.queues._several import Crowd, Standing, block_until_any, until_any
from polyloop.testing import Interleaving, explore


def new_line() -> Line:
    return deque()


class Woken:
    """A waiter that notes it."""

    def __init__(self) -> None:
        self.times = 0

    def wake(self) -> bool:
        self.times += 1
        return True


def standing_in(*lines: Line) -> tuple[Standing, Woken]:
    standing, waiter = Standing(lines), Woken()
    standing.enter(waiter)
    return standing, waiter


# Step by step


def test_one_line_wakes_and_the_others_go_on_to_the_next() -> None:
    """It takes one wake-up only."""
    left, right = new_line(), new_line()
    standing, waiter = standing_in(left, right)
    other = Woken()
    right.append(other)
    assert wake_next(left)
    assert wake_next(right)
    assert (waiter.times, other.times) == (1, 1)
    assert not wake_next(right)
    standing.leave()


def test_who_leaves_is_in_no_line_and_is_not_woken() -> None:
    """Not by a waker either that has taken its place out of a line at that moment."""
    left, right = new_line(), new_line()
    standing, waiter = standing_in(left, right)
    place = left.popleft()
    standing.leave()
    assert not left
    assert not right
    assert not place.wake()
    assert waiter.times == 0


@pytest.mark.parametrize("used", ["left", "right", "none"])
def test_a_wake_up_is_passed_on_unless_it_was_used(used: str) -> None:
    """To the next in the line that it came from."""
    lines = {"left": new_line(), "right": new_line()}
    standing, _ = standing_in(*lines.values())
    behind = {name: Woken() for name in lines}
    for name, line in lines.items():
        line.append(behind[name])
    wake_next(lines["left"])
    standing.leave([lines[used]] if used in lines else [])
    assert (behind["left"].times, behind["right"].times) == (int(used != "left"), 0)


def test_in_a_crowd_nothing_is_passed_on() -> None:
    """All are woken at once."""
    crowd = Crowd()
    standing, _ = standing_in(crowd)
    behind = Woken()
    wake_next(crowd)
    crowd.append(behind)
    standing.leave()
    assert behind.times == 0


def test_who_was_woken_in_vain_goes_back_to_the_head_and_in_a_crowd_to_the_end() -> None:
    """And stays where it was in the lines that did not wake it; it can be woken again."""
    line, crowd, still = new_line(), Crowd(), new_line()
    standing, first = standing_in(line, crowd, still)
    behind = [Woken(), Woken(), Woken()]
    for each, one in zip((line, crowd, still), behind, strict=True):
        each.append(one)
    wake_next(line)
    crowd.popleft().wake()
    standing.enter(second := Woken())
    assert line[1] is behind[0]
    assert crowd[0] is behind[1]
    assert still[1] is behind[2]
    assert [len(each) for each in (line, crowd, still)] == [2, 2, 2]
    wake_all(crowd)
    wake_next(still)
    assert (first.times, second.times) == (1, 1)
    assert [one.times for one in behind] == [0, 1, 1]
    standing.leave()


def test_who_gave_up_is_not_woken() -> None:
    """The waker goes on to the next; unless it was faster."""
    line = new_line()
    standing, waiter = standing_in(line)
    behind = Woken()
    line.append(behind)
    assert standing.give_up()
    wake_next(line)
    assert (waiter.times, behind.times) == (0, 1)
    standing.leave()
    standing, waiter = standing_in(line)
    wake_next(line)
    assert not standing.give_up()
    standing.leave()


@pytest.mark.parametrize("woken_by", ["the line", "another", "nobody"])
def test_a_line_that_is_left_for_good_is_told_of_it_if_need_be(woken_by: str) -> None:
    """If the place was out of the line when it was left, another may have been meant."""
    line, other = new_line(), new_line()
    standing, _ = standing_in(line, other)
    behind = Woken()
    line.append(behind)
    if woken_by != "nobody":
        wake_next(line if woken_by == "the line" else other)
    standing.drop([line])
    assert behind.times == (woken_by == "the line")
    standing.enter(Woken())
    assert list(line) == ([] if woken_by == "the line" else [behind])
    assert len(other) == 1
    standing.leave()


def test_a_late_wake_up_from_a_line_that_was_left_for_good_is_passed_on() -> None:
    """Its waker has taken the place out, and is slow; meanwhile the place was taken again, and the line left."""
    line, other = new_line(), new_line()
    standing, _ = standing_in(line, other)
    place = line.popleft()
    place.out = True  # type: ignore[attr-defined]
    wake_next(other)
    standing.enter(second := Woken())
    line.append(behind := Woken())
    standing.drop([line])
    assert place.wake()
    assert (second.times, behind.times) == (1, 0)
    standing.enter(Woken())
    assert behind.times == 1
    standing.leave()


def test_nobody_keeps_a_standing_alive() -> None:
    """It is freed without the garbage collector, also after it was woken."""
    line = new_line()
    standing, _ = standing_in(line)
    place = line[0]
    wake_next(line)
    standing.leave(standing.used)
    assert not standing._places
    assert standing._fate == {None: None}
    assert not place.wake()


# In every order


class Source:
    """Items and those who wait for them."""

    def __init__(self) -> None:
        self.items: deque[int] = deque()
        self.line: Line = deque()

    def put(self, item: int) -> None:
        self.items.append(item)
        if self.line:
            wake_next(self.line)

    def take(self) -> int | Nothing:
        try:
            return self.items.popleft()
        except IndexError:
            return NOTHING

    def get(self) -> int | Nothing:
        return block_until(self.line, self.take, None)


class Chooser:
    """Who takes from the first of two that has something."""

    def __init__(self, *sources: Source) -> None:
        self.sources = sources
        self.standing = Standing([source.line for source in sources])

    def take(self) -> int | Nothing:
        for source in self.sources:
            if (item := source.take()) is not NOTHING:
                self.standing.used = [source.line]
                return item
        return NOTHING

    def get(self, timeout: float | None = None) -> int | Nothing:
        return block_until_any(self.standing, self.take, timeout)

    async def wait(self) -> int:
        return await until_any(self.standing, self.take)


def woken_twice_in_vain(it: Interleaving) -> None:
    """By both lines, while it goes back into them; then something comes."""
    left, right = Source(), Source()
    chooser = it.thread(Chooser(left, right).get)

    def wake() -> None:
        wake_next(left.line)
        wake_next(right.line)
        right.put(1)

    it.thread(wake)
    it.check(lambda: equal(chooser.result(), 1))


def woken_twice_by_one_line_in_vain(it: Interleaving) -> None:
    """The second time while it goes back into it."""
    left, right = Source(), Source()
    chooser = it.coroutine(Chooser(left, right).wait)

    def wake() -> None:
        wake_next(left.line)
        wake_next(left.line)
        left.put(1)

    it.thread(wake)
    it.check(lambda: equal(chooser.result(), 1))


def two_wakers_at_once(it: Interleaving) -> None:
    """Something comes to both; it takes one, and another gets the other."""
    left, right = Source(), Source()
    chooser = it.thread(Chooser(left, right).get, name="chooser")
    it.thread(left.put, 1, name="left")
    it.thread(right.put, 2, name="right")

    def check() -> None:
        assert sorted([chooser.result(), *left.items, *right.items]) == [1, 2]  # type: ignore[type-var]

    it.check(check)


def one_behind_it_in_the_other_line(it: Interleaving) -> None:
    """It is woken from the line in which somebody stands behind it, and takes what is in the other line."""
    left, right = Source(), Source()
    chooser = it.thread(Chooser(left, right).get, name="chooser")
    behind = it.thread(right.get, name="behind")

    def feed() -> None:
        for source, item in ((right, 1), (left, 2), (right, 3)):
            source.put(item)

    it.thread(feed)

    def check() -> None:
        taken = [chooser.result(), behind.result(), *left.items, *right.items]
        assert sorted(taken) == [1, 2, 3]  # type: ignore[type-var]

    it.check(check)


def it_gives_up_at_the_end_of_its_time(it: Interleaving, timeout: float = 1) -> None:
    """And puts back what it has got, so that the one item must reach who stands behind it."""
    left, right = Source(), Source()

    def impatient() -> None:
        item = Chooser(left, right).get(timeout)
        if isinstance(item, int):
            right.put(item)

    it.thread(impatient)
    behind = it.thread(right.get, name="behind")
    it.thread(right.put, 1)
    it.check(lambda: equal(behind.result(), 1))


def it_has_no_time(it: Interleaving) -> None:
    """The same for one that gives up at once."""
    it_gives_up_at_the_end_of_its_time(it, timeout=0)


def it_is_cancelled(it: Interleaving) -> None:
    """And puts back what it has got before, so that the one item must reach who stands behind it."""
    left, right = Source(), Source()

    async def doomed() -> None:
        right.put(await Chooser(left, right).wait())

    task = it.coroutine(doomed)
    behind = it.thread(right.get, name="behind")

    def feed() -> None:
        right.put(1)
        task.cancel()

    it.thread(feed)
    it.check(lambda: equal(behind.result(), 1))


def some_in_a_crowd_come_back(it: Interleaving) -> None:
    """Who comes back while all are being woken does not take the turn of one who stands there still."""
    crowd = Crowd()
    news: deque[None] = deque()

    def follow() -> None:
        standing = Standing([crowd])
        block_until_any(standing, lambda: None if news else NOTHING, None)

    for name in ("one", "two"):
        it.thread(follow, name=name)

    def tell() -> None:
        wake_next(crowd)
        news.append(None)
        wake_all(crowd)

    it.thread(tell)


SCENARIOS: dict[str, Callable[[Interleaving], None]] = {
    fn.__name__.replace("_", " "): fn
    for fn in (
        woken_twice_in_vain,
        woken_twice_by_one_line_in_vain,
        two_wakers_at_once,
        one_behind_it_in_the_other_line,
        it_gives_up_at_the_end_of_its_time,
        it_has_no_time,
        it_is_cancelled,
        some_in_a_crowd_come_back,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_wake_up_is_lost_in_any_order(name: str) -> None:
    """All orders with one preemption, some with two."""
    assert explore(SCENARIOS[name], preemptions=1).exhaustive
    assert explore(SCENARIOS[name], preemptions=2, schedules=400).schedules > 1

"""The policy of a pool, by itself: every sequence of events on two or three loops, and long random ones.

``World`` does with a ``Ledger`` what the desks do, without loops: it keeps what each desk has, and serves whom it says.
"""

import copy
import random
from collections.abc import Callable, Iterator

import pytest

from polyloop.pools._ledger import Ledger

PATIENCE = 10.0


class Desk:
    """What one loop has of the pool."""

    def __init__(self) -> None:
        self.line: list[tuple[int, float]] = []  # tickets that wait, with their times
        self.doomed: set[int] = set()  # those of them that are cancelled, and do not know it yet
        self.idle: list[float] = []  # since when each idle resource is here
        self.lent = 0
        self.making = 0
        self.closing = 0

    def key(self, now: float) -> object:
        """What matters of it, without names and absolute times."""
        line = tuple((now - at, ticket in self.doomed) for ticket, at in self.line)
        return line, tuple(now - at for at in self.idle), self.lent, self.making, self.closing


class World:
    """Some desks and their ledger; ``moves`` says whether resources may change desks as they are."""

    def __init__(self, desks: int, permits: int, moves: bool = False) -> None:
        self.ledger = Ledger[int, int](permits, None if moves else PATIENCE)
        self.desks = [Desk() for _ in range(desks)]
        self.moves = moves
        self.now = 0.0
        self.number = 0
        self.overtaken: list[str] = []

    # Events

    def arrive(self, name: int) -> None:
        self.number += 1
        self.desks[name].line.append((self.number, self.now))
        self.ledger.apply(name, self.number, self.now)
        self._grant()
        for other in range(len(self.desks)):
            self._balance(other)
        self._balance(name)

    def doom(self, name: int, place: int) -> None:
        """A waiter is cancelled; it leaves the line a little later."""
        self.desks[name].doomed.add(self.desks[name].line[place][0])

    def give_up(self, name: int, place: int) -> None:
        ticket, _ = self.desks[name].line.pop(place)
        self.desks[name].doomed.discard(ticket)
        self.ledger.leave(name, ticket)
        self._grant()

    def give_back(self, name: int) -> None:
        self.desks[name].lent -= 1
        self.desks[name].idle.append(self.now)
        self._balance(name)

    def lose_resource(self, name: int) -> None:
        """One on loan turns out to be broken."""
        self.desks[name].lent -= 1
        self._close(name)

    def made(self, name: int) -> None:
        desk = self.desks[name]
        desk.making -= 1
        first = self._first(name)
        self.ledger.fulfil(name, None if first is None else first[0])
        if first is not None:
            desk.line.remove(first)
            desk.lent += 1
        else:
            desk.idle.append(self.now)
            self._balance(name)

    def not_made(self, name: int) -> None:
        desk = self.desks[name]
        desk.making -= 1
        first = self._first(name)
        self.ledger.fulfil(name, None if first is None else first[0])
        if first is not None:
            desk.line.remove(first)
        self.ledger.freed(name, closing=False)
        self._grant()

    def closed(self, name: int) -> None:
        self.desks[name].closing -= 1
        self.ledger.freed(name, closing=True)
        self._grant()

    def pass_time(self) -> None:
        """The patience of everybody is at its end; each desk looks again, as its timer has it do."""
        self.now += PATIENCE
        for name in range(len(self.desks)):
            self._balance(name)

    def lose_desk(self, name: int) -> None:
        held = self.ledger.lose(name)
        desk = self.desks[name]
        assert held == desk.lent + len(desk.idle) + desk.making + desk.closing
        self.desks[name] = Desk()
        self._grant()

    # What desks do

    def _first(self, name: int) -> tuple[int, float] | None:
        """Who is served next; those before it that are cancelled leave hereby."""
        line = self.desks[name].line
        while line and line[0][0] in self.desks[name].doomed:
            self.give_up(name, 0)
        return line[0] if line else None

    def _grant(self) -> None:
        for name in self.ledger.grants(self.now):
            self.desks[name].making += 1

    def _close(self, name: int) -> None:
        self.ledger.close(name)
        self.desks[name].closing += 1

    def _balance(self, name: int) -> None:
        desk = self.desks[name]
        while desk.idle and (desk.line or self.ledger.crowded):
            first = self._first(name)
            if not desk.line and not self.ledger.crowded:
                return
            what, _ = self.ledger.verdict(name, None if first is None else first[1], desk.idle[0], self.now)
            if what == "serve":
                assert first is not None
                desk.line.remove(first)
                self._judge(name, first[1])
                self.ledger.leave(name, first[0])
                desk.idle.pop()
                desk.lent += 1
            elif what == "keep":
                return
            else:
                desk.idle.pop(0)
                to = self.ledger.move(name, self.now) if self.moves else None
                if to is None:
                    self._close(name)
                else:
                    self.desks[to].making += 1
                    self.made(to)
            self._grant()

    def _judge(self, name: int, served_at: float) -> None:
        """Whoever is served from a free list came at most the patience later than anybody who is overtaken by it.

        But for those for whose desk something is on its way; with what moves at once, they are not excepted.
        """
        coming = sum(desk.closing for desk in self.desks)
        waiting = sorted(
            (at, other)
            for other, desk in enumerate(self.desks)
            for ticket, at in desk.line
            if self._applied(other, ticket)
        )
        expecting = {other for _, other in waiting[:coming]} | {n for n, desk in enumerate(self.desks) if desk.making}
        accounts = self.ledger._accounts.items()
        hanging = {n for n, it in accounts if it.granted == 1 and self.now - it.granted_at > PATIENCE}
        expecting -= hanging - {other for _, other in waiting[:coming]}
        for at, other in waiting[coming:]:
            if (
                other != name
                and served_at - at > (0.0 if self.moves else PATIENCE)
                and (self.moves or other not in expecting)
            ):
                self.overtaken.append(f"one of {at} on {other} by one of {served_at} on {name}")

    # What must hold

    def check(self) -> None:
        ledger = self.ledger
        assert not self.overtaken
        has = [desk.lent + len(desk.idle) + desk.making + desk.closing for desk in self.desks]
        assert [ledger.held(name) for name in range(len(self.desks))] == has
        assert ledger.free + sum(has) == ledger.permits
        assert ledger.free >= 0
        assert not (ledger.crowded and ledger.free)
        assert ledger.waiting == sum(len(desk.line) for desk in self.desks)
        assert ledger.uncovered == sum(len(ledger.applications(name)) for name in range(len(self.desks)))
        assert set(ledger._applying) == {name for name in range(len(self.desks)) if ledger.applications(name)}
        for name, desk in enumerate(self.desks):
            applied = list(ledger.applications(name))
            living = sum(ticket not in desk.doomed for ticket, _ in desk.line)
            assert set(applied) <= {ticket for ticket, _ in desk.line}, "nobody applies who does not wait"
            assert living <= len(applied) + desk.making + len(desk.idle), (
                "something is on its way for each, or applied for"
            )
            assert len(applied) <= max(0, len(desk.line) - desk.making), "and for nobody twice"

    def _applied(self, name: int, ticket: int) -> bool:
        return ticket in self.ledger.applications(name)

    def settle(self) -> None:
        """Who is cancelled leaves, everybody gives back, and all that was begun ends: nobody may be left waiting."""
        for name, desk in enumerate(self.desks):
            for place in reversed(range(len(desk.line))):
                if desk.line[place][0] in desk.doomed:
                    self.give_up(name, place)
        while ending := list(self._endings()):
            ending[0]()
            self.check()
        self.pass_time()
        while ending := list(self._endings()):
            ending[0]()
            self.check()
        assert all(not desk.line for desk in self.desks), "somebody waits for ever"
        assert self.ledger.waiting == 0
        assert not self.ledger.crowded

    def _endings(self) -> Iterator[Callable[[], None]]:
        for name, desk in enumerate(self.desks):
            if desk.making:
                yield lambda name=name: self.made(name)  # type: ignore[misc]
            if desk.closing:
                yield lambda name=name: self.closed(name)  # type: ignore[misc]
            if desk.lent:
                yield lambda name=name: self.give_back(name)  # type: ignore[misc]

    def events(self) -> Iterator[Callable[[], None]]:
        """All that can happen next."""
        yield from self._endings()
        yield self.pass_time
        for name, desk in enumerate(self.desks):
            yield lambda name=name: self.arrive(name)  # type: ignore[misc]
            for place, (ticket, _) in enumerate(desk.line):
                yield lambda name=name, place=place: self.give_up(name, place)  # type: ignore[misc]
                if ticket not in desk.doomed:
                    yield lambda name=name, place=place: self.doom(name, place)  # type: ignore[misc]
            if desk.making:
                yield lambda name=name: self.not_made(name)  # type: ignore[misc]
            if desk.lent:
                yield lambda name=name: self.lose_resource(name)  # type: ignore[misc]
            if desk.lent or desk.idle or desk.making or desk.closing or desk.line:
                yield lambda name=name: self.lose_desk(name)  # type: ignore[misc]

    def key(self) -> object:
        return tuple(desk.key(self.now) for desk in self.desks)


@pytest.mark.parametrize("moves", [False, True], ids=["loop-bound", "moving"])
@pytest.mark.parametrize(("desks", "permits", "depth"), [(2, 1, 6), (2, 2, 5), (3, 2, 4)])
def test_every_sequence_of_events_in_every_order(desks: int, permits: int, depth: int, moves: bool) -> None:
    """Permits add up, the order is kept to within the patience, and nobody waits for ever, whatever happens."""
    seen: set[object] = set()
    worlds = [World(desks, permits, moves)]
    for _ in range(depth):
        following: list[World] = []
        for world in worlds:
            for number in range(len(list(world.events()))):
                after = copy.deepcopy(world)
                list(after.events())[number]()
                after.check()
                if after.key() not in seen:
                    seen.add(after.key())
                    following.append(after)
        worlds = following
    assert len(seen) > 300
    for world in worlds[::7]:
        world.settle()


@pytest.mark.parametrize("moves", [False, True], ids=["loop-bound", "moving"])
def test_long_random_sequences_of_events(rng: random.Random, moves: bool) -> None:
    """The same for many desks and waiters."""
    for _ in range(60):
        world = World(rng.randrange(1, 6), rng.randrange(1, 8), moves)
        for _ in range(300):
            events = list(world.events())
            rng.choice(events)()
            world.now += rng.random() * 2
            world.check()
        world.settle()


def test_a_desk_serves_its_own_within_the_patience_only() -> None:
    """A waiter of another desk is overtaken by one that came up to the patience later, and by no later one."""
    ledger = Ledger[str, str](1, PATIENCE)
    ledger.apply("here", "first", 0.0)
    assert ledger.grants(0.0) == ["here"]
    ledger.fulfil("here", "first")
    ledger.apply("there", "rival", 1.0)
    assert ledger.verdict("here", 1.0 + PATIENCE, 0.0, 50.0).what == "serve"
    assert ledger.verdict("here", 1.1 + PATIENCE, 0.0, 50.0).what == "give"


def test_a_desk_that_has_nothing_comes_first() -> None:
    """If its waiter came first, and the giver keeps something; it need not wait until the patience is over."""
    ledger = Ledger[str, str](2, PATIENCE)
    ledger.take("here")
    ledger.take("here")
    ledger.apply("there", "rival", 5.0)
    assert ledger.verdict("here", 4.0, 0.0, 6.0).what == "serve"
    assert ledger.verdict("here", 5.5, 0.0, 6.0).what == "give"
    assert ledger.verdict("here", None, 5.9, 6.0).what == "give"
    ledger.close("here")
    ledger.freed("here", closing=True)
    assert ledger.grants(0.0) == ["there"]
    ledger.apply("there", "another", 5.1)
    assert ledger.verdict("here", 5.5, 0.0, 6.0).what == "serve"  # one is on its way there, and this is the last here


def test_one_at_a_time_is_given_to_a_desk_for_the_sake_of_the_order() -> None:
    """What is on its way will serve more than one there."""
    ledger = Ledger[str, str](3, PATIENCE)
    for _ in range(3):
        ledger.take("here")
    ledger.apply("there", "rival", 0.0)
    ledger.apply("there", "another", 0.0)
    assert ledger.verdict("here", 50.0, 0.0, 50.0).what == "give"
    ledger.close("here")
    assert ledger.verdict("here", 50.0, 0.0, 50.0).what == "serve"
    assert ledger.verdict("here", None, 0.0, 50.0).what == "give"  # what nobody needs here goes at once


def test_an_idle_resource_is_given_up_at_once_unless_it_is_young() -> None:
    """One that was made less than the patience ago waits for the rest of it, or for that of who waits."""
    ledger = Ledger[str, str](1, PATIENCE)
    ledger.take("here")
    ledger.apply("there", "rival", 5.0)
    assert ledger.verdict("here", None, 0.0, 5.0) == ("keep", PATIENCE)
    assert ledger.verdict("here", None, 0.0, PATIENCE) == ("give", None)
    assert ledger.verdict("here", None, 9.0, 14.0) == ("keep", 15.0)
    assert ledger.verdict("here", None, -PATIENCE, 5.0) == ("give", None)


def test_what_is_being_closed_is_counted_for_the_oldest_who_wait() -> None:
    """A second resource is not given up for somebody for whom one is on its way."""
    ledger = Ledger[str, str](2, PATIENCE)
    for _ in range(2):
        assert ledger.take("here")
    ledger.apply("there", "rival", 0.0)
    assert ledger.verdict("here", None, -50.0, 1.0).what == "give"
    ledger.close("here")
    assert ledger.verdict("here", None, -50.0, 1.0).what == "keep"
    ledger.freed("here", closing=True)
    assert ledger.grants(0.0) == ["there"]


def test_nobody_takes_a_permit_for_later_while_somebody_waits() -> None:
    """What is to lie ready comes last."""
    ledger = Ledger[str, str](1, PATIENCE)
    assert ledger.take("here")
    assert not ledger.take("here")
    ledger.apply("there", "rival", 0.0)
    ledger.freed("here", closing=False)
    assert not ledger.take("here")
    assert ledger.grants(0.0) == ["there"]


def test_where_making_takes_long_the_patience_is_longer() -> None:
    """Ten times as long, as it was lately, up to two seconds; it is never shorter than it was said to be."""
    ledger = Ledger[str, str](1, PATIENCE)
    ledger.made(0.5)
    assert ledger.patience == PATIENCE
    ledger = Ledger[str, str](1, 0.5)
    for _ in range(100):
        ledger.made(0.1)
    assert ledger.patience == pytest.approx(1.0, rel=0.01)
    for _ in range(100):
        ledger.made(60.0)
    assert ledger.patience == 2.0
    for _ in range(100):
        ledger.made(0.01)
    assert ledger.patience == 0.5
    strict = Ledger[str, str](1, None)
    strict.made(3.0)
    assert strict.patience is None


def test_one_that_hangs_on_its_way_does_not_count_for_ever() -> None:
    """After the patience, the desk that expects it is given another."""
    ledger = Ledger[str, str](2, PATIENCE)
    ledger.take("here")
    ledger.apply("there", "covered", 0.0)
    assert ledger.grants(0.0) == ["there"]
    ledger.apply("there", "rival", 0.0)
    assert ledger.verdict("here", PATIENCE - 1, 0.0, PATIENCE - 1).what == "serve"
    assert ledger.verdict("here", 20.0, 0.0, 20.0).what == "give"


def test_who_is_covered_at_once_need_not_wait() -> None:
    """There is a permit, or something that was on its way to somebody who left."""
    ledger = Ledger[str, str](1, PATIENCE)
    assert not ledger.would_wait("here")
    ledger.apply("here", "first", 0.0)
    assert ledger.grants(0.0) == ["here"]
    assert ledger.would_wait("here")
    ledger.leave("here", "first")
    assert not ledger.would_wait("here")
    assert ledger.would_wait("there")


def test_a_lost_desk_that_comes_back_takes_nothing_with_it() -> None:
    """A thread that was given up may return and do what it was about to: nobody is covered by that."""
    ledger = Ledger[str, str](1, None)
    ledger.take("lost")
    ledger.apply("there", "first", 1.0)
    ledger.apply("there", "second", 2.0)
    ledger.lose("lost")
    assert ledger.grants(3.0) == ["there"]
    assert ledger.move("lost", 4.0) is None
    ledger.close("lost")
    ledger.freed("lost", closing=True)
    assert ledger.applications("there") == {"second": 2.0}
    assert (ledger.free, ledger.uncovered, ledger.waiting) == (0, 1, 2)


def test_a_ticket_from_before_the_loss_is_nobodys() -> None:
    """What comes for it goes to nobody, and the counts stay right."""
    ledger = Ledger[str, str](2, None)
    ledger.apply("lost", "before", 1.0)
    ledger.grants(1.0)
    ledger.lose("lost")
    ledger.apply("lost", "after", 2.0)
    ledger.grants(2.0)
    ledger.fulfil("lost", "before")
    assert ledger.uncovered == 1
    ledger.leave("lost", "after")
    assert (ledger.uncovered, ledger.waiting) == (0, 0)


def test_of_many_desks_those_with_nothing_are_forgotten() -> None:
    """A crawler talks to ten thousand servers, and never to most of them again."""
    ledger = Ledger[int, int](1, PATIENCE)
    ledger.take(-1)
    for desk in range(10_000):
        ledger.apply(desk, 0, 0.0)
    assert len(ledger.desks()) == 10_001
    for desk in range(10_000):
        ledger.leave(desk, 0)
    assert -1 in ledger.desks()
    assert len(ledger.desks()) < 100

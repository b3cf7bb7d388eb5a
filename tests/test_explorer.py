"""The explorer finds what it is there to find: otherwise the proofs made with it prove nothing."""

import pytest
from tests.explorer import Deque, List, Run, explore, stepped


def test_it_runs_every_interleaving_once() -> None:
    """Two threads of three steps each can be interleaved in 6! / (3! 3!) ways."""
    seen: list[tuple[str, ...]] = []

    def scenario(run: Run) -> None:
        order: list[str] = []

        def thread(name: str) -> None:
            for _ in range(3):
                run.step(name)
                order.append(name)

        run.thread(lambda: thread("a"))
        run.thread(lambda: thread("b"))
        run.check(lambda: seen.append(tuple(order)))

    explore(scenario)
    assert len(set(seen)) == 20
    assert all(sorted(order) == list("aaabbb") for order in seen)


class Counter:
    value = 0


def test_it_finds_a_lost_update() -> None:
    """Reading and writing back are two operations, so an update can be lost."""

    def scenario(run: Run) -> None:
        counter = stepped(Counter, "value")()
        counter.value = 0
        counter.run = run

        def add() -> None:
            counter.value += 1

        def check() -> None:
            assert counter.value == 2

        run.thread(add)
        run.thread(add)
        run.check(check)

    with pytest.raises(AssertionError, match=r"assert 1 == 2|assert \(?1") as failure:
        explore(scenario)
    assert "read value" in failure.value.__notes__[0]


def sleeper_and_poster(run: Run, announce_first: bool) -> None:
    items, tokens, wakes = Deque[int](run, "items"), Deque[None](run, "tokens"), List[None](run, "wakes")

    def sleep() -> None:
        if announce_first:
            tokens.append(None)
        if items:
            return
        if not announce_first:
            tokens.append(None)
        run.wait_until(lambda: list.__len__(wakes) > 0, "asleep")

    def post() -> None:
        items.append(1)
        if tokens:
            tokens.pop()
            wakes.append(None)

    run.thread(sleep)
    run.thread(post)


def test_it_finds_a_lost_wake_up() -> None:
    """A sleeper that looks before it announces its sleep misses a post in between; the other order is safe."""
    with pytest.raises(AssertionError, match="a wake-up was lost"):
        explore(lambda run: sleeper_and_poster(run, announce_first=False))
    assert explore(lambda run: sleeper_and_poster(run, announce_first=True)) > 5


def test_it_finds_the_lost_wake_up_within_one_preemption() -> None:
    """Few preemptions are enough for most races, which is what makes longer scenarios affordable."""
    with pytest.raises(AssertionError, match="a wake-up was lost"):
        explore(lambda run: sleeper_and_poster(run, announce_first=False), preemptions=1)


def test_an_error_of_a_thread_is_shown_with_the_interleaving() -> None:
    """What a thread raises fails the exploration."""

    def scenario(run: Run) -> None:
        items = Deque[int](run, "items")
        run.thread(lambda: items.append(1))
        run.thread(items.popleft)

    with pytest.raises(IndexError) as failure:
        explore(scenario)
    assert "items.popleft" in failure.value.__notes__[0]

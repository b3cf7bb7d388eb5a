"""The policy of who gets the next connection: every history of a small server."""

import itertools
from collections.abc import Iterator

import pytest

from polyloop.serve._balance import Balance

type State = tuple[tuple[int, ...], tuple[bool, ...], tuple[bool, ...], int]


def test_the_loop_with_the_fewest_gets_the_next() -> None:
    """Among equals it goes round."""
    balance = Balance(3)
    given = []
    for _ in range(6):
        index = balance.choose()
        assert index is not None
        balance.take(index)
        given.append(index)
    assert given == [0, 1, 2, 0, 1, 2]
    balance.left(1)
    assert balance.choose() == 1


def test_short_connections_reach_every_loop() -> None:
    """Also where each has gone when the next one comes."""
    balance = Balance(4)
    given = []
    for _ in range(8):
        index = balance.choose()
        assert index is not None
        balance.take(index)
        balance.left(index)
        given.append(index)
    assert given == [0, 1, 2, 3] * 2


def test_a_loop_with_long_connections_gets_fewer() -> None:
    """It is the number of open connections that counts, not whose turn it is."""
    balance = Balance(2)
    for _ in range(10):
        balance.take(0)
    for _ in range(9):
        assert balance.choose() == 1
        balance.take(1)
    assert balance.open == [10, 9]


def state(balance: Balance) -> State:
    return tuple(balance.open), tuple(balance._out), tuple(balance._gone), balance._next % len(balance.open)


def restored(at: State, most: int | None, most_each: int | None) -> Balance:
    balance = Balance(len(at[0]), most=most, most_each=most_each)
    balance.open, balance._out, balance._gone = list(at[0]), list(at[1]), list(at[2])
    balance.total, balance._next = sum(at[0]), at[3]
    return balance


def successors(at: State, most: int | None, most_each: int | None) -> Iterator[Balance]:
    """Everything that may happen next."""
    balance = restored(at, most, most_each)
    index = balance.choose()
    if index is not None and balance.total < 6:
        balance.take(index)
        yield balance
    for number, count in enumerate(at[0]):
        for event in ("left", "take_out", "put_back", "remove"):
            if event != "left" or count or at[2][number]:
                balance = restored(at, most, most_each)
                getattr(balance, event)(number)
                yield balance


def check(balance: Balance, most: int | None, most_each: int | None) -> None:
    """What holds in every state."""
    assert balance.total == sum(balance.open)
    assert all(count >= 0 for count in balance.open)
    assert not any(count for count, gone in zip(balance.open, balance._gone, strict=True) if gone)
    usable = [
        number
        for number, count in enumerate(balance.open)
        if not balance._out[number] and not balance._gone[number] and (most_each is None or count < most_each)
    ]
    over = most is not None and balance.total >= most
    index = balance.choose()
    if over or not usable:
        assert index is None
        serving = [n for n in range(len(balance.open)) if not balance._out[n] and not balance._gone[n]]
        assert balance.full == (over or bool(serving))
    else:
        assert index in usable
        assert balance.open[index] == min(balance.open[number] for number in usable)
        assert not balance.full


@pytest.mark.parametrize(("most", "most_each"), [*itertools.product((None, 1, 3), (None, 1, 2))])
def test_every_history_of_three_loops(most: int | None, most_each: int | None) -> None:
    """All states that can be reached with up to six connections: the sums are right, and so is each choice."""
    first = state(Balance(3, most=most, most_each=most_each))
    seen, new = {first}, [first]
    while new:
        for balance in successors(new.pop(), most, most_each):
            check(balance, most, most_each)
            found = state(balance)
            if found not in seen:
                seen.add(found)
                new.append(found)
    assert len(seen) > 100

"""The window, alone."""

import random

from polyloop.distributed._window import Window


def test_items_go_out_in_order_as_far_as_there_is_room() -> None:
    """First come, first out; a removed one makes room."""
    window: Window[int] = Window(2)
    for item in range(4):
        window.add(item)
    assert [window.next(), window.next(), window.next()] == [0, 1, None]
    assert (window.out, window.waiting, len(window)) == (2, 2, 4)
    assert window.remove(1)
    assert window.next() == 2


def test_an_item_that_is_removed_while_it_waits_never_goes_out() -> None:
    """And ``remove`` says that it was not."""
    window: Window[int] = Window(1)
    for item in range(3):
        window.add(item)
    window.next()
    assert not window.remove(1)
    assert window.remove(0)
    assert (window.next(), window.next()) == (2, None)


def test_no_order_of_steps_lets_more_out_than_the_window_holds(rng: random.Random) -> None:
    """Nor loses an item."""
    window: Window[int] = Window(3)
    added, gone = 0, set[int]()
    for _ in range(2000):
        match rng.randrange(3):
            case 0:
                window.add(added)
                added += 1
            case 1:
                window.next()
            case _:
                if len(window):
                    item = rng.choice(window.all())
                    window.remove(item)
                    gone.add(item)
        assert window.out <= 3
        assert sorted(window.all()) == sorted(set(range(added)) - gone)

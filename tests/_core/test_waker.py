"""Both kinds of waker count exactly what has landed."""

import os
import select
from collections.abc import Callable

import pytest

from polyloop._core._waker import EventfdWaker, SocketWaker, Waker, new_waker
from polyloop.testing import TestThread

KINDS: list[Callable[[], Waker]] = [SocketWaker]
if hasattr(os, "eventfd"):
    KINDS.append(EventfdWaker)


def readable(waker: Waker) -> bool:
    return bool(select.select([waker.fileno()], [], [], 0)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_wake_makes_it_readable_until_it_is_drained(kind: Callable[[], Waker]) -> None:
    """The descriptor is ready exactly while wakes have landed that were not counted yet."""
    waker = kind()
    try:
        assert not readable(waker)
        assert waker.drain() == 0
        waker.wake()
        assert readable(waker)
        assert waker.drain() == 1
        assert not readable(waker)
    finally:
        waker.close()


@pytest.mark.parametrize("kind", KINDS)
def test_wakes_of_many_threads_are_all_counted(kind: Callable[[], Waker]) -> None:
    """The count is exact: the selector closes the descriptor when it has seen as many wakes as it is owed."""
    waker = kind()
    try:

        def wake() -> None:
            for _ in range(50):
                waker.wake()

        threads = [TestThread(wake) for _ in range(4)]
        for thread in threads:
            thread.result()
        assert waker.drain() == 200
        assert waker.drain() == 0
    finally:
        waker.close()


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="eventfd is Linux's")
def test_linux_gets_the_cheap_one() -> None:
    """One descriptor instead of two."""
    waker = new_waker()
    assert isinstance(waker, EventfdWaker)
    waker.close()

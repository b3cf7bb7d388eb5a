"""The mailbox when a signal handler raises in the middle of it."""

from collections.abc import Iterator

import pytest

from polyloop._core._mailbox import Mailbox


def waking(*outcomes: type[BaseException] | None) -> tuple[Mailbox, list[type[BaseException] | None]]:
    """A mailbox whose consumer sleeps, and what each of its wakes will come to; the list has those that came."""
    left: Iterator[type[BaseException] | None] = iter(outcomes)
    came: list[type[BaseException] | None] = []

    def wake() -> None:
        came.append(next(left))
        if came[-1] is not None:
            raise came[-1]

    mailbox = Mailbox(wake, lambda exc: None)
    mailbox.tokens.append(None)
    return mailbox, came


def ring(mailbox: Mailbox) -> None:
    mailbox.post(str)


def test_an_interrupted_wake_is_made_up_for() -> None:
    """The token is gone, so nobody else would end the sleep."""
    mailbox, came = waking(KeyboardInterrupt, None)
    with pytest.raises(KeyboardInterrupt):
        ring(mailbox)
    assert came == [KeyboardInterrupt, None]
    assert not mailbox.tokens


def test_an_interrupt_is_not_replaced_by_the_error_of_a_waker_that_has_gone() -> None:
    """The first write had been done, the loop woke and ended, and the second finds its descriptor closed."""
    mailbox, _ = waking(KeyboardInterrupt, OSError)
    with pytest.raises(KeyboardInterrupt):
        ring(mailbox)


def test_without_a_token_nobody_is_woken() -> None:
    """Not even when a closed mailbox had one: it stays for those who come later."""
    mailbox, came = waking()
    mailbox.tokens.clear()
    assert not mailbox.signal()
    mailbox.close()
    assert not mailbox.signal()
    ring(mailbox)
    assert (len(mailbox.tokens), len(mailbox.items), came) == (1, 0, [])

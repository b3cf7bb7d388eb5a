"""Every interleaving of posters and a consumer, over the real mailbox and the real selector.

Proved, for the number of threads of each test: no wake-up is lost, no item is lost or run twice, the items of one
poster run in their order, no token outlives its sleep, and no waker is written to after its close.
"""

from collections import deque
from collections.abc import Callable

import pytest
from tests._core.models import Consumer
from tests.explorer import Deque, Run, explore

type Model = Callable[[Run], None]


def serve_until(consumer: Consumer, done: list[str], count: int) -> None:
    """What a loop does, until ``count`` items have run."""
    while len(done) < count:
        consumer.selector.select(None)


def scenario(run: Run, model: Model, posters: dict[str, int], spin_ns: int = 0) -> None:
    model(run)
    consumer = Consumer(run, spin_ns)
    done: list[str] = []

    def post(name: str, count: int) -> None:
        for number in range(count):
            consumer.mailbox.post(done.append, f"{name}{number}")

    def check() -> None:
        for name, count in posters.items():
            assert [item for item in done if item[0] == name] == [f"{name}{number}" for number in range(count)]
        consumer.check()

    run.thread(lambda: serve_until(consumer, done, sum(posters.values())))
    for name, count in posters.items():
        run.thread(lambda name=name, count=count: post(name, count))  # type: ignore[misc]
    run.check(check)


def test_one_post_ends_the_sleep_in_every_interleaving(model: Model) -> None:
    """One poster, one post: the wake protocol in full."""
    assert explore(lambda run: scenario(run, model, {"a": 1})) > 100


@pytest.mark.parametrize(
    ("posters", "preemptions"), [({"a": 2}, 4), ({"a": 1, "b": 1}, 3), ({"a": 2, "b": 2}, 2)], ids=str
)
def test_posts_are_served_once_and_in_order(model: Model, posters: dict[str, int], preemptions: int) -> None:
    """Several posts, from one thread or two, with bounded preemptions: the consumer sleeps and wakes in between."""
    assert explore(lambda run: scenario(run, model, posters), preemptions=preemptions) > 500


def test_a_spinning_consumer_loses_nothing(model: Model) -> None:
    """The same with a spin before each sleep: a hit, or a miss and then the sleep."""
    assert explore(lambda run: scenario(run, model, {"a": 1, "b": 1}, spin_ns=25_000), preemptions=2) > 100


def test_the_selector_closes_after_the_last_wake(model: Model) -> None:
    """A poster that took the token writes before the waker is closed, however long it is held up in between."""

    def closing(run: Run) -> None:
        model(run)
        consumer = Consumer(run)
        done: list[str] = []

        def serve_and_close() -> None:
            serve_until(consumer, done, 1)
            consumer.selector.close()
            consumer.mailbox.close()

        run.thread(serve_and_close)
        run.thread(lambda: consumer.mailbox.post(done.append, "a0"))

    assert explore(closing) > 100


def test_nothing_is_kept_in_a_closed_mailbox(model: Model) -> None:
    """Posts that race with the close run or are dropped; none stays, and nobody is woken after it."""

    def closing(run: Run) -> None:
        model(run)
        consumer = Consumer(run)
        done: list[str] = []

        def close() -> None:
            consumer.selector.select(0)
            consumer.selector.close()
            consumer.mailbox.close()

        def check() -> None:
            assert done in ([], ["a0"], ["a0", "a1"])
            assert deque.__len__(consumer.mailbox.items) == 0

        def post() -> None:
            consumer.mailbox.post(done.append, "a0")
            consumer.mailbox.post(done.append, "a1")

        run.thread(close)
        run.thread(post)
        run.check(check)

    assert explore(closing, preemptions=3) > 100


# The same protocol as a bare model, with as many threads as its states allow, and with its steps swapped


def bare(run: Run, posters: int, *, token_first: bool, append_first: bool) -> None:
    items, tokens = Deque[int](run, "items"), Deque[None](run, "tokens")
    writes: list[None] = []

    def announce() -> None:
        tokens.append(None)

    def sleep() -> None:
        seen = 0
        while seen < posters:
            if token_first:
                announce()
            if len(items) > seen:
                seen = len(items)
                if token_first:
                    try:
                        tokens.pop()
                    except IndexError:
                        run.wait_until(lambda: bool(writes), "owed")
                        writes.pop()
                continue
            if not token_first:
                announce()
            run.wait_until(lambda: bool(writes), "woken")
            writes.pop()

    def wake() -> None:
        if tokens:
            try:
                tokens.pop()
            except IndexError:
                return
            writes.append(None)

    def post() -> None:
        if append_first:
            items.append(1)
            wake()
        else:
            wake()
            items.append(1)

    run.thread(sleep)
    for _ in range(posters):
        run.thread(post)


def test_the_wake_protocol_needs_both_orders() -> None:
    """Token before the last look, item before the look at the tokens: with either swapped, a wake-up can be lost."""
    assert explore(lambda run: bare(run, 1, token_first=True, append_first=True)) > 10
    for token_first, append_first in [(False, True), (True, False), (False, False)]:
        with pytest.raises(AssertionError, match="a wake-up was lost"):
            explore(lambda run, t=token_first, a=append_first: bare(run, 1, token_first=t, append_first=a))  # type: ignore[misc]


def test_two_posters_share_one_wake() -> None:
    """The bare protocol with two posters and up to three preemptions."""
    assert explore(lambda run: bare(run, 2, token_first=True, append_first=True), preemptions=3) > 1000

"""Every interleaving of a completion with those who wait for it, over the real class.

Proved, for the number of threads of each test: every waiter is woken exactly once, whether it comes before or after
the end, and nobody is woken before the outcome can be read; one that gives up is woken at most once and takes nobody
with it.
"""

import pytest
from tests.explorer import Dict, List, Run, explore, stepped

from polyloop._core._completion import AllDone, Completion


def stepped_completion(run: Run, name: str = "waiters") -> Completion[int]:
    """A completion whose every access to shared state is a step."""
    made: Completion[int] = stepped(Completion, "_done")()
    made._waiters = Dict(run, name)
    made.__dict__["stepped__done"] = False
    made.run = run  # type: ignore[attr-defined]
    return made


class Counter:
    """A waiter that counts its wakes and looks at the outcome."""

    def __init__(self, completion: Completion[int]) -> None:
        self.completion = completion
        self.woken = 0

    def __call__(self) -> None:
        assert self.completion._result == 7, "woken before the outcome was there"
        self.woken += 1


@pytest.mark.parametrize(("waiters", "preemptions"), [(1, None), (2, 3), (3, 2)])
def test_each_waiter_is_woken_once(waiters: int, preemptions: int | None) -> None:
    """Waiters on threads of their own, that come before, during and after the completion."""

    def scenario(run: Run) -> None:
        completion = stepped_completion(run)
        counters = [Counter(completion) for _ in range(waiters)]

        def check() -> None:
            assert [counter.woken for counter in counters] == [1] * waiters

        run.thread(lambda: completion._complete(7))
        for counter in counters:
            run.thread(lambda counter=counter: completion._add_waiter(counter))  # type: ignore[misc]
        run.check(check)

    assert explore(scenario, preemptions=preemptions) > 10


def test_a_waiter_that_gives_up_takes_nobody_with_it() -> None:
    """One adds itself and drops itself, as after a timeout; another stays."""

    def scenario(run: Run) -> None:
        completion = stepped_completion(run)
        leaves, stays = Counter(completion), Counter(completion)

        def come_and_go() -> None:
            completion._add_waiter(leaves)
            completion._drop_waiter(leaves)

        def check() -> None:
            assert leaves.woken <= 1
            assert stays.woken == 1

        run.thread(lambda: completion._complete(7))
        run.thread(come_and_go)
        run.thread(lambda: completion._add_waiter(stays))
        run.check(check)

    assert explore(scenario, preemptions=3) > 100


def test_the_last_of_several_completes_all() -> None:
    """Two completions end on two threads at once; their common waiter completes its target exactly once."""

    def scenario(run: Run) -> None:
        parts = [stepped_completion(run, f"waiters of {name}") for name in "ab"]
        ended: list[int] = []
        target = Completion[None]()
        target._add_waiter(lambda: ended.append(sum(part._done for part in parts)))
        both = AllDone(target, 2)
        both._left = List(run, "left")
        list.extend(both._left, [0, 1])
        run.thread(lambda: parts[0]._complete(7))
        run.thread(lambda: parts[1]._complete(7))
        run.thread(lambda: list(map(Completion._add_waiter, parts, [both, both])))
        run.check(lambda: ended == [2] or pytest.fail(f"completed {len(ended)} times, seeing {ended}"))

    assert explore(scenario, preemptions=2) > 100


def test_the_two_orders_are_both_needed() -> None:
    """A waiter that looks before it lists itself misses the end: the explorer would tell."""

    def scenario(run: Run) -> None:
        completion = stepped_completion(run)
        counter = Counter(completion)

        def add_the_wrong_way() -> None:
            if completion._done:
                counter()
            else:
                completion._waiters[counter] = True

        run.thread(lambda: completion._complete(7))
        run.thread(add_the_wrong_way)
        run.check(lambda: counter.woken == 1 or pytest.fail("never woken"))

    with pytest.raises(pytest.fail.Exception, match="never woken"):
        explore(scenario)

"""``explore``: what it finds, what it covers, and that a failure comes again."""

import gc
import queue
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from polyloop import PolyloopError
from polyloop.testing import ExplorationError, Explored, Interleaving, ScheduleError, explore


class Box:
    """Counts without a lock."""

    def __init__(self) -> None:
        self.n = 0

    def increment(self) -> None:
        before = self.n
        self.n = before + 1


def equal(left: object, right: object) -> None:
    assert left == right


def lost_update(it: Interleaving) -> None:
    box = Box()
    it.thread(box.increment, name="left")
    it.thread(box.increment, name="right")
    it.check(lambda: equal(box.n, 2))


def locks_in_opposite_order(it: Interleaving) -> None:
    a, b = threading.Lock(), threading.Lock()

    def one_way() -> None:
        with a, b:
            pass

    def other_way() -> None:
        with b, a:
            pass

    it.thread(one_way)
    it.thread(other_way)


def counted_under_a_lock(it: Interleaving) -> None:
    box, lock = Box(), threading.Lock()

    def increment() -> None:
        with lock:
            box.increment()

    for _ in range(3):
        it.thread(increment)
    it.check(lambda: equal(box.n, 3))


def failure_of(scenario: Callable[[Interleaving], object], **options: Any) -> ExplorationError:
    with pytest.raises(ExplorationError) as caught:
        explore(scenario, time_limit=30, **options)
    return caught.value


# What it finds


def test_a_lost_update_is_found_at_one_preemption() -> None:
    """And not without one. The message shows where the thread was stopped, and the cause is the check's."""
    assert explore(lost_update, preemptions=0) == Explored(2, True, 0, 3)
    failure = failure_of(lost_update)
    assert isinstance(failure, PolyloopError)
    assert isinstance(failure.__cause__, AssertionError)
    assert "found with 1 preemption" in str(failure)
    assert "self.n = before + 1  [STORE_ATTR n]" in str(failure)


def test_locks_in_opposite_order_are_a_deadlock() -> None:
    """The message has the stack of each thread that waits."""
    failure = failure_of(locks_in_opposite_order)
    assert "all threads wait for ever" in str(failure)
    assert "one_way waits: lock.acquire()" in str(failure)
    assert "other_way waits: lock.acquire()" in str(failure)
    assert "in other_way" in str(failure)
    assert failure.__cause__ is None


def test_the_exception_of_a_thread_is_the_cause() -> None:
    """It ends the exploration, whatever it is."""

    def scenario(it: Interleaving) -> None:
        items = [1]
        it.thread(items.clear, name="clear")
        it.thread(lambda: items[0], name="read")

    failure = failure_of(scenario)
    assert "thread 'read' raised IndexError" in str(failure)
    assert isinstance(failure.__cause__, IndexError)


def test_check_then_act_on_a_dict_is_found() -> None:
    """Operations of containers are atomic each, and two of them are not."""

    def scenario(it: Interleaving) -> None:
        made: dict[str, object] = {}

        def get() -> object:
            if "it" not in made:
                made["it"] = object()
            return made["it"]

        first, second = it.thread(get), it.thread(get)
        it.check(lambda: equal(first.result(), second.result()))

    failure_of(scenario)


def test_a_changing_global_and_a_changing_closure_are_seen() -> None:
    """They are switch points although most globals and closures are none."""

    def scenario(it: Interleaving) -> None:
        count = 0

        def increment() -> None:
            nonlocal count
            before = count
            count = before + 1

        it.thread(increment)
        it.thread(increment)
        it.check(lambda: equal(count, 2))

    failure_of(scenario)
    failure_of(global_counter)


_count = 0


def global_counter(it: Interleaving) -> None:
    global _count
    _count = 0
    it.thread(increment_global)
    it.thread(increment_global)
    it.check(lambda: equal(_count, 2))


def increment_global() -> None:
    global _count
    before = _count
    _count = before + 1


def test_a_loop_that_waits_for_another_thread_is_a_failure() -> None:
    """It would go round for ever: nobody else runs until it is stopped."""

    def scenario(it: Interleaving) -> None:
        box = Box()

        def wait() -> None:
            while not box.n:
                pass

        it.thread(wait)
        it.thread(box.increment)

    assert "did not end within 500 steps" in str(failure_of(scenario, max_steps=500))


# What it covers


def test_a_correct_program_is_explored_in_full() -> None:
    """Every schedule of three threads that take a lock, within the bound."""
    small = explore(counted_under_a_lock, preemptions=1)
    large = explore(counted_under_a_lock, preemptions=2)
    assert small.exhaustive and large.exhaustive
    assert large.schedules > small.schedules > 6


def test_all_orders_of_the_steps_are_run_and_each_once() -> None:
    """Two threads of three appends each have 20 orders, all of which come about with enough preemptions."""
    orders: list[str] = []

    def scenario(it: Interleaving) -> None:
        order: list[str] = []

        def act(name: str) -> None:
            order.append(name)
            order.append(name)
            order.append(name)

        it.thread(act, "a")
        it.thread(act, "b")
        it.check(lambda: orders.append("".join(order)))

    done = explore(scenario, preemptions=6)
    found = orders[-done.schedules :]
    assert len(set(found)) == 20
    if sys.version_info < (3, 14):  # whose bytecode has one instruction for a look into a list and for arithmetic
        assert len(found) == 20


def test_a_limit_ends_the_search_and_the_result_says_so() -> None:
    """By the number of schedules or by time."""
    done = explore(counted_under_a_lock, schedules=7)
    assert (done.schedules, done.exhaustive) == (7, False)
    assert not explore(counted_under_a_lock, time_limit=0).exhaustive


def test_a_random_search_finds_the_same_again_by_its_seed() -> None:
    """The message names the seed; another run with it fails with the same schedule."""
    first, second = failure_of(lost_update, seed=5), failure_of(lost_update, seed=5)
    assert "with seed 5" in str(first)
    assert first.schedule == second.schedule
    assert explore(counted_under_a_lock, seed=1, schedules=20).schedules == 20


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_the_primitives_of_threading_wait_in_the_model(kind: str) -> None:
    """Locks, conditions, events, semaphores and queues made in the scenario."""

    def scenario(it: Interleaving) -> None:
        condition = threading.Condition(getattr(threading, kind)())
        ready, tickets = threading.Event(), threading.Semaphore(0)
        items: queue.Queue[int] = queue.Queue(1)
        simple: queue.SimpleQueue[int] = queue.SimpleQueue()
        state: list[str] = []

        def consume() -> int:
            ready.wait()
            tickets.acquire()
            with condition:
                condition.wait_for(lambda: state)
            return items.get() + simple.get()

        def produce() -> None:
            ready.set()
            tickets.release()
            with condition:
                state.append("set")
                condition.notify()
            items.put(1)
            simple.put(2)

        consumer = it.thread(consume)
        it.thread(produce)
        it.check(lambda: equal(consumer.result(), 3))

    assert explore(scenario, preemptions=1, time_limit=30).exhaustive


def test_a_timeout_may_come_before_or_after_what_was_waited_for() -> None:
    """Both are run; time is virtual."""
    seen: set[bool] = set()

    def scenario(it: Interleaving) -> None:
        event = threading.Event()
        waiter = it.thread(event.wait, 3600.0)
        it.thread(event.set)
        it.check(lambda: seen.add(waiter.result()))

    started = time.monotonic()
    assert explore(scenario, preemptions=1).exhaustive
    assert seen == {True, False}
    assert time.monotonic() - started < 60


def test_sleepers_wake_in_the_order_of_their_times() -> None:
    """When nobody else can run, which takes no real time."""

    def scenario(it: Interleaving) -> None:
        order: list[float] = []

        def sleep(seconds: float) -> None:
            began = time.monotonic()
            time.sleep(seconds)
            assert time.monotonic() - began >= seconds
            order.append(seconds)

        it.thread(sleep, 500.0)
        it.thread(sleep, 100.0)
        it.check(lambda: equal(order, [100.0, 500.0]))

    assert explore(scenario, preemptions=0).exhaustive


# A failure comes again


@pytest.mark.parametrize("scenario", [lost_update, locks_in_opposite_order])
def test_a_replay_fails_in_the_same_way(scenario: Callable[[Interleaving], object]) -> None:
    """The schedule of the message is all that it needs."""
    failure = failure_of(scenario)
    assert f"explore(scenario, replay={failure.schedule!r})" in str(failure)
    with pytest.raises(ExplorationError, match="found by a replay") as caught:
        explore(scenario, replay=failure.schedule)
    assert caught.value.schedule == failure.schedule
    assert str(caught.value).splitlines()[3:] == str(failure).splitlines()[3:]


def test_a_schedule_of_other_code_is_refused() -> None:
    """By its text, by a choice that cannot be made, and by its length."""
    with pytest.raises(ValueError, match="is no schedule"):
        explore(lost_update, replay="soon")
    with pytest.raises(ScheduleError, match="cannot be chosen"):
        explore(lost_update, replay="1-7.3")
    with pytest.raises(ScheduleError, match="steps"):
        explore(counted_under_a_lock, replay="3")


def test_a_scenario_that_depends_on_chance_is_refused() -> None:
    """What the first run did cannot be done again."""
    chance = random.Random(1)

    def scenario(it: Interleaving) -> None:
        box = Box()

        def act() -> None:
            for _ in range(chance.randrange(1, 9)):
                box.increment()

        it.thread(act)
        it.thread(act)

    with pytest.raises(ScheduleError, match=r"did not do the same|ended earlier"):
        explore(scenario)


# It leaves nothing behind


def test_what_was_replaced_is_put_back() -> None:
    """After success, failure, and an error of the scenario itself; what was made outside of it is real."""

    def broken(it: Interleaving) -> None:
        raise LookupError("no scenario")

    before = patched_things()
    assert explore(counted_under_a_lock, preemptions=0).exhaustive
    assert patched_things() == before
    failure_of(lost_update)
    assert patched_things() == before
    with pytest.raises(LookupError):
        explore(broken)
    assert patched_things() == before


def patched_things() -> list[object]:
    tools = [sys.monitoring.get_tool(number) for number in range(6)]
    names = {thread.name for thread in threading.enumerate()}
    factories = [threading.Lock, threading.RLock, queue.SimpleQueue, time.monotonic, time.sleep, threading.Thread.start]
    return [*factories, tools, names, gc.isenabled()]


def test_other_threads_get_real_locks_meanwhile() -> None:
    """And real time, and threads of their own."""
    made: list[object] = []
    outside: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    real = type(threading.Lock())

    def serve() -> None:
        while outside.get():
            answers.put(threading.Lock())

    thread = threading.Thread(target=serve)
    thread.start()

    def scenario(it: Interleaving) -> None:
        outside.put("a lock, please")
        made.append(answers.get())
        it.thread(lambda: None)

    explore(scenario)
    outside.put("")
    thread.join()
    assert {type(lock) for lock in made} == {real}


def test_a_thread_started_by_the_code_under_test_is_refused() -> None:
    """It would run outside of the model."""

    def scenario(it: Interleaving) -> None:
        it.thread(lambda: threading.Thread(target=print).start(), name="starter")

    assert "would run outside of the exploration" in str(failure_of(scenario))


def test_a_thread_that_blocks_outside_of_the_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that was made before the scenario is real."""
    monkeypatch.setattr("polyloop.testing._explore_run.PATIENCE", 0.2)
    lock = threading.Lock()
    lock.acquire()

    def scenario(it: Interleaving) -> None:
        it.thread(lock.acquire, name="blocked")

    try:
        failure = failure_of(scenario)
    finally:
        lock.release()
    assert "thread 'blocked' blocks outside of the model" in str(failure)


def test_explorations_do_not_nest() -> None:
    """They replace what all threads share."""

    def scenario(it: Interleaving) -> None:
        it.thread(lambda: None)
        explore(lost_update)

    with pytest.raises(RuntimeError, match="runs already"):
        explore(scenario)


def test_only_the_modules_named_are_stopped() -> None:
    """Code of others happens at once."""
    assert explore(lost_update, trace=["polyloop"]).exhaustive
    with pytest.raises(ExplorationError):
        explore(lost_update, trace=[sys.modules[__name__]])


def test_wrong_options_are_refused() -> None:
    """Before anything runs."""
    with pytest.raises(ValueError, match="preemptions"):
        explore(lost_update, preemptions=-1)
    with pytest.raises(ValueError, match="schedules"):
        explore(lost_update, schedules=0)


def test_an_item_taken_by_two_is_seen_by_a_check_of_length() -> None:
    """``if items: items.popleft()`` is two steps."""

    def scenario(it: Interleaving) -> None:
        items = deque([1])

        def take() -> None:
            if items:
                items.popleft()

        it.thread(take)
        it.thread(take)

    assert isinstance(failure_of(scenario).__cause__, IndexError)

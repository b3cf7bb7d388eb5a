"""Every interleaving of the pool's threads that retire or lend and of callers that submit: no call waits for ever.

The pool's lists and its lock stop before each access. Threads that the pool would start are only counted where they
retire, and are threads of the model where they lend.
"""

from collections.abc import Callable
from typing import Any

import pytest
from tests.explorer import Deque, Lock, Run, explore

from polyloop._core._context import here
from polyloop._core._pool import ThreadPool, _PoolThread


class Job:
    """A call that notes on which thread it ran."""

    def __init__(self, name: str, done: list[str]) -> None:
        self.name = name
        self.done = done

    def execute(self) -> None:
        self.done.append(self.name)

    def announce(self) -> None:
        pass


class CountedPool(ThreadPool):
    """A pool that notes what it would start a thread for, and runs that at once."""

    def __init__(self, run: Run, max_threads: int) -> None:
        super().__init__(max_threads, idle_timeout=1.0)
        self._lock: Any = Lock(run)
        self._idle: Any = Deque(run, "idle")
        self._backlog: Any = Deque(run, "backlog")
        self.started: list[str] = []

    def _start(self, job: Any) -> None:
        self.started.append(job.name)
        job.execute()


class Impatient(_PoolThread):
    """A thread of the pool whose idle time is over at every look; one that was taken out of the list sleeps on."""

    def __init__(self, run: Run, pool: ThreadPool) -> None:
        super().__init__(pool)
        self.run_of_model = run

    def _spin_a_while(self) -> bool:
        return False

    def _park(self) -> bool:
        self.run_of_model.wait_until(lambda: bool(self._inbox) or self in self._pool._idle, "sleeps")
        return bool(self._inbox)


def retiring_thread(run: Run, pool: CountedPool) -> Any:
    thread = Impatient(run, pool)
    pool._count = 1
    pool._idle.append(thread)
    return thread


def scenario(run: Run, names: tuple[str, ...], max_threads: int) -> None:
    pool = CountedPool(run, max_threads)
    thread = retiring_thread(run, pool)
    done: list[str] = []

    def live() -> None:
        while thread._wait():
            job = thread._inbox.popleft()
            job.execute()
            pool._idle.append(thread)
            job.announce()
            pool._serve_backlog()

    run.thread(live)
    for name in names:
        run.thread(lambda name=name: pool.submit(Job(name, done)))  # type: ignore[misc]

    def check() -> None:
        assert sorted(done) == sorted(names)
        assert not pool._backlog
        assert not pool._idle
        assert pool._count == len(pool.started) <= max_threads

    run.check(check)


def test_a_call_submitted_while_the_last_thread_retires_is_served() -> None:
    """By the thread that stays after all, or by a new one; and the places add up."""
    assert explore(lambda run: scenario(run, ("a",), 1), preemptions=4) > 50


def test_several_calls_submitted_while_the_last_thread_retires_are_served() -> None:
    """With room for another thread there is no backlog, yet nobody may be given to a thread that has gone."""
    assert explore(lambda run: scenario(run, ("a", "b"), 2), preemptions=3) > 100


class LivePool(CountedPool):
    """A pool whose threads live, each until it is idle."""

    def __init__(self, run: Run, max_threads: int) -> None:
        super().__init__(run, max_threads)
        self.run = run
        self.new: list[Any] = []  # the first job of each
        self.callers = 0  # who may still start a thread

    def _start(self, job: Any) -> None:
        self.started.append(job.name)
        self.new.append(job)

    def _has_too_many(self) -> bool:
        return False  # idle threads end at once here, be there too many or not

    def add_caller(self, fn: Callable[[], object]) -> None:
        def call() -> None:
            fn()
            self.callers -= 1

        self.callers += 1
        self.run.thread(call)

    def add_thread(self, number: int) -> None:
        """A thread that is the pool's when it starts one for the ``number``-th time."""

        def live() -> None:
            self.run.wait_until(lambda: len(self.new) > number or not self.callers, "is started, or never will be")
            if len(self.new) > number:
                self.be_thread(self.new[number])

        self.run.thread(live)

    def be_thread(self, job: Any) -> None:
        """Live as a thread that was started with ``job``, and has its place."""
        thread = Impatient(self.run, self)
        thread.give(job)
        try:
            thread.run()
        finally:
            here.pool = None


class LendingJob(Job):
    """A call that waits, as for a task, until ``ready``, and lends its thread's place meanwhile."""

    def __init__(self, name: str, done: list[str], pool: LivePool, ready: Callable[[], bool]) -> None:
        super().__init__(name, done)
        self.pool = pool
        self.ready = ready

    def execute(self) -> None:
        with self.pool.lending():
            self.pool.run.wait_until(self.ready, "waits for its task")
        super().execute()


def lending_scenario(run: Run, lenders: int, names: tuple[str, ...], needs: tuple[str, ...], max_threads: int) -> None:
    """``lenders`` are at work, and go on when the calls are done that they need; beside them others come."""
    pool = LivePool(run, max_threads)
    done: list[str] = []
    lending = [f"lender {number}" for number in range(lenders)]

    def ready() -> bool:
        return set(needs) <= set(done)

    def submit() -> None:
        for name in names:
            pool.submit(Job(name, done))

    for name in lending:
        pool._count += 1
        pool.add_caller(lambda name=name: pool.be_thread(LendingJob(name, done, pool, ready)))  # type: ignore[misc]
    pool.add_caller(submit)
    for number in range(len(names)):
        pool.add_thread(number)

    def check() -> None:
        assert sorted(done) == sorted([*names, *lending])
        assert (pool._count, pool._lent) == (0, 0)
        assert not (pool._backlog or pool._idle)

    run.check(check)


@pytest.mark.parametrize(
    ("lenders", "names", "needs", "max_threads", "preemptions"),
    [
        pytest.param(1, ("a",), ("a",), 1, 2, id="it waits for the call"),
        pytest.param(1, ("a", "b"), ("b",), 1, 1, id="it waits for the second call"),
        pytest.param(2, ("a",), ("a",), 2, 1, id="two wait for one call"),
        pytest.param(2, ("a",), (), 1, 1, id="two come back at once, and are too many"),
    ],
)
def test_nothing_waits_beside_a_place_that_is_lent(
    lenders: int, names: tuple[str, ...], needs: tuple[str, ...], max_threads: int, preemptions: int
) -> None:
    """Every call is served, also those that the lenders wait for; when all have retired, every place is free."""
    count = explore(lambda run: lending_scenario(run, lenders, names, needs, max_threads), preemptions=preemptions)
    assert count > 100

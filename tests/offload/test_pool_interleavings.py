"""Every interleaving of the pool's threads that retire and of callers that submit: no call waits for ever.

The pool's lists and its lock stop before each access; threads that the pool would start are only counted.
"""

from typing import Any

from tests.explorer import Deque, Lock, Run, explore

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


def retiring_thread(run: Run, pool: CountedPool) -> Any:
    """A thread of the pool whose idle time is over at every look; one that was taken out of the list sleeps on."""

    class Impatient(_PoolThread):
        def _spin_a_while(self) -> bool:
            return False

        def _park(self) -> bool:
            run.wait_until(lambda: bool(self._inbox) or self in pool._idle, "sleeps")
            return bool(self._inbox)

    thread = Impatient(pool)
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

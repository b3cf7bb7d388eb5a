"""The pool of threads: what its threads survive, how many they stay, and what happens when none can be started."""

import asyncio
import threading
from dataclasses import dataclass

import pytest
from tests.helpers import until

import polyloop
from polyloop import from_thread
from polyloop._core import _prims
from polyloop._core._pool import ThreadPool
from polyloop.testing import Gate, TestLoop


@dataclass(frozen=True)
class Frozen(Exception):
    """It refuses every attribute, ``__traceback__`` too."""


def cannot_start(*args: object) -> None:
    raise RuntimeError("can't start new thread")


def free_a_place_between_two_looks(pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a thread does that retires when a call, having found no place, has just joined the backlog."""
    serve, places = pool._serve_backlog, pool.max_threads + 1

    def serve_backlog() -> None:
        serve()
        pool.max_threads = places

    monkeypatch.setattr(pool, "_serve_backlog", serve_backlog)


# What a thread survives


def test_an_exception_that_refuses_attributes_reaches_the_awaiter(loop: TestLoop, pool: ThreadPool) -> None:
    """It cannot be copied, and the thread that raised it lives on."""

    def fail() -> None:
        raise Frozen

    with pytest.raises(Frozen):
        loop.run(polyloop.async_wrap(fail))
    assert loop.run(polyloop.async_wrap(lambda: "next")) == "next"
    assert pool.peak == 1


def test_a_job_whose_end_cannot_be_told_costs_no_thread(pool: ThreadPool, caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged, and the thread, which is listed as idle by then, takes the next job."""

    class Job:
        def __init__(self) -> None:
            self.done = threading.Event()

        def execute(self) -> None:
            pass

        def announce(self) -> None:
            self.done.set()

    class Odd(Job):
        def __repr__(self) -> str:
            return "<odd job>"

        def announce(self) -> None:
            super().announce()
            raise Frozen

    for job in (Odd(), Job()):
        pool.submit(job)
        assert job.done.wait(30)
        until(lambda: pool.idle == 1)
    assert pool.peak == 1
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("polyloop", "polyloop: the end of <odd job> could not be told")


# How many they are


def test_threads_that_are_too_many_end_although_there_is_a_backlog(loop: TestLoop, pool: ThreadPool) -> None:
    """Those that come back to the places they had lent: as many as there are places serve it."""
    pool.max_threads = 1
    released = loop.run(asyncio.Event)
    back, queued = Gate("back"), Gate("queued")

    def work() -> None:
        from_thread.run(released.wait)
        back.pause()

    calls = [loop.spawn(polyloop.async_wrap(work)) for _ in range(3)]
    until(lambda: pool._lent == 3)
    loop.run(released.set)
    back.reached(3)
    calls += [loop.spawn(polyloop.async_wrap(queued.pause)) for _ in range(5)]
    loop.wait_all_blocked()
    assert (pool.threads, pool.queued) == (3, 5)
    back.open()
    until(lambda: pool.threads == 1)
    queued.reached()
    assert pool.queued == 4
    queued.open()
    for call in calls:
        call.result(30)
    assert (pool._count, pool._lent) == (1, 0)


# No thread can be started


def test_a_call_in_the_backlog_does_not_fail_while_others_serve_it(
    loop: TestLoop, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread was to be started for it, and could not be: another comes by."""
    pool.max_threads = 1
    gate = Gate()
    calls = [loop.spawn(polyloop.async_wrap(gate.pause))]
    gate.reached()
    calls.append(loop.spawn(polyloop.async_wrap(lambda: None)))
    loop.wait_all_blocked()
    free_a_place_between_two_looks(pool, monkeypatch)
    monkeypatch.setattr(_prims, "start_thread", cannot_start)
    calls.append(loop.spawn(polyloop.async_wrap(lambda: None)))
    loop.wait_all_blocked()
    assert (pool.threads, pool.queued) == (1, 2)
    gate.open()
    for call in calls:
        call.result(30)


def test_a_call_in_the_backlog_fails_and_leaves_it_when_nobody_serves_it(
    loop: TestLoop, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller hears that there is no thread, so it may not be made later."""
    pool.max_threads = 0
    ran: list[int] = []
    free_a_place_between_two_looks(pool, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(_prims, "start_thread", cannot_start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            loop.run(polyloop.async_wrap(lambda: ran.append(1)))
    assert (pool.threads, pool.queued) == (0, 0)
    loop.run(polyloop.async_wrap(lambda: ran.append(2)))
    assert ran == [2]


def test_a_thread_that_lends_its_place_gets_no_error_of_the_backlog(
    loop: TestLoop, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread could be started for somebody else's call, which another thread comes to."""
    pool.max_threads = 2
    released = loop.run(asyncio.Event)
    asks, works = Gate("asks"), Gate("works")

    def ask() -> bool:
        asks.pause()
        return from_thread.run(released.wait)

    asking, working = loop.spawn(polyloop.async_wrap(ask)), loop.spawn(polyloop.async_wrap(works.pause))
    asks.reached()
    works.reached()
    queued = loop.spawn(polyloop.async_wrap(lambda: "done"))
    loop.wait_all_blocked()
    monkeypatch.setattr(_prims, "start_thread", cannot_start)
    asks.open()
    until(lambda: pool._lent == 1 or asking.done())
    loop.run(released.set)
    assert asking.result(30) is True
    works.open()
    working.result(30)
    assert queued.result(30) == "done"
    assert (pool._count, pool._lent) == (2, 0)


def test_a_place_that_cannot_be_lent_is_kept(loop: TestLoop, pool: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only thread would wait for a task that may need a thread: it is told, and the places add up."""
    pool.max_threads = 1
    gate = Gate()

    def lend() -> tuple[int, int]:
        gate.pause()
        with pytest.raises(RuntimeError, match="can't start new thread"), pool.lending():
            raise AssertionError("must not begin")
        return pool._count, pool._lent

    lending = loop.spawn(polyloop.async_wrap(lend))
    gate.reached()
    queued = loop.spawn(polyloop.async_wrap(lambda: "done"))
    loop.wait_all_blocked()
    monkeypatch.setattr(_prims, "start_thread", cannot_start)
    gate.open()
    assert lending.result(30) == (1, 0)
    assert queued.result(30) == "done"

"""The wake-up self-test refuses a loop that loses wake-ups, by name, and asks each kind of loop once."""

import asyncio
import itertools
from collections.abc import Callable
from contextvars import Context
from typing import ClassVar

import pytest

from polyloop import Runtime, UnreliableLoopError, run
from polyloop._core import _selftest
from polyloop._core._prims import start_thread
from polyloop._core._selftest import check_factory, check_wakeups
from polyloop.testing import TestLoop


class GoodLoop(asyncio.SelectorEventLoop):
    """asyncio's, and counted."""

    asked: ClassVar[list[None]] = []  # two threads append at once

    def call_soon_threadsafe[*Ts](
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        GoodLoop.asked.append(None)
        return super().call_soon_threadsafe(callback, *args, context=context)


class DropsWakeups(asyncio.SelectorEventLoop):
    """Forgets to wake itself at every 50th call, as a lost race does."""

    calls = itertools.count(1)  # two threads count at once

    def call_soon_threadsafe[*Ts](
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if next(DropsWakeups.calls) % 50:
            return super().call_soon_threadsafe(callback, *args, context=context)
        return asyncio.Handle(callback, args, self, context)  # in nobody's queue


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kind of loop has been tried yet, and a lost wake-up is noticed soon."""
    monkeypatch.setattr(_selftest, "_passed", set())
    monkeypatch.setattr(_selftest.check_wakeups, "__kwdefaults__", {"timeout": 0.2})
    monkeypatch.setattr(_selftest.check_factory, "__kwdefaults__", {"timeout": 0.2})
    monkeypatch.setattr(DropsWakeups, "calls", itertools.count(1))
    monkeypatch.setattr(GoodLoop, "asked", [])


def test_a_good_loop_passes_and_is_not_asked_again() -> None:
    """One pass for its class, whichever loop of it comes next."""
    with TestLoop(loop_factory=GoodLoop) as loop:
        before = len(GoodLoop.asked)
        check_wakeups(loop.loop)
        asked = len(GoodLoop.asked)
        check_wakeups(loop.loop)
        assert asked - before == 50 + 20 * 2 * 25
        assert len(GoodLoop.asked) == asked
    check_factory(GoodLoop)


def test_a_loop_that_loses_wakeups_is_refused_by_name() -> None:
    """The message has the class, the number of calls, and what to do."""
    loop = DropsWakeups()
    thread = start_thread(loop.run_forever, "dropping")
    with pytest.raises(UnreliableLoopError, match=r"DropsWakeups loses cross-thread wake-ups: of \d+ calls") as error:
        check_wakeups(loop)
    assert "use another loop_factory, or none for polyloop's own" in str(error.value)
    DropsWakeups.calls = itertools.count(1)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def test_a_machine_that_stood_still_refuses_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up that comes too late comes by itself; a lost one does not."""
    stalls = [None]
    real = _selftest._Pong._block

    def block(self: _selftest._Pong, timeout: float | None, call: str) -> None:
        if stalls:
            stalls.clear()
            raise TimeoutError
        real(self, timeout, call)

    monkeypatch.setattr(_selftest._Pong, "_block", block)
    check_factory(GoodLoop)
    assert GoodLoop in _selftest._passed


def test_uvloop_users_are_told_the_version() -> None:
    """The one loop known for this fault has a version without it."""
    kind = type("Loop", (), {"__module__": "uvloop"})
    assert "use uvloop 0.23 or newer" in _selftest._refusal(kind, 3, 2.0)


def test_a_runtime_refuses_such_a_loop_and_leaves_nothing_running() -> None:
    """``with Runtime`` never begins."""
    with pytest.raises(UnreliableLoopError), Runtime(loops=2, loop_factory=DropsWakeups, shutdown_timeout=0.2):
        raise AssertionError("started")


def test_run_refuses_such_a_loop_before_it_runs_anything() -> None:
    """With one loop as with several."""

    async def main() -> None:
        raise AssertionError("ran")

    with pytest.raises(UnreliableLoopError):
        run(main(), loops=1, loop_factory=DropsWakeups, shutdown_timeout=0.2)


def test_a_factory_that_raises_is_heard() -> None:
    """Its error is raised where the loop was asked for."""

    def broken() -> asyncio.AbstractEventLoop:
        raise OSError("no more descriptors")

    with pytest.raises(OSError, match="no more descriptors"):
        check_factory(broken)

"""Every interleaving of borrowers that are patient, run out of time, or are cancelled: the limiter's state machine.

The limiter's lock stops before it is taken, and its waiters before each look. Proved for the sizes below: never more
borrowed than there are tokens, no token lost or doubled, nobody left waiting beside a free one, an empty queue then.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import pytest
from tests.explorer import Lock, Run, explore

from polyloop import CapacityLimiter
from polyloop.sync import _capacity


class ModelWaiter:
    """A waiter that blocks within the model. One that is impatient gives up, at any moment, also after it was woken."""

    run: Run
    impatient: frozenset[str] = frozenset()  # names of the actors

    def __init__(self) -> None:
        self.unclaimed = True
        self.woken = False
        self.gives_up = NAMES.get(threading.get_ident(), "") in self.impatient

    def claim(self) -> bool:
        self.run.step("claim")
        won, self.unclaimed = self.unclaimed, False
        return won

    def wake(self) -> bool:
        self.run.step("wake")
        self.woken = True
        return True

    def park(self, timeout: float | None = None) -> bool:
        if self.gives_up:
            self.run.step("time is over")
            return self.woken
        self.run.wait_until(lambda: self.woken, "parked")
        return True

    def __await__(self) -> Generator[Any]:
        if self.gives_up:
            self.run.step("cancelled")
            raise asyncio.CancelledError
        self.run.wait_until(lambda: self.woken, "parked")
        return
        yield


class Model:
    """One limiter, and what its borrowers got."""

    def __init__(self, run: Run, tokens: int, impatient: set[str]) -> None:
        self.run = run
        self.limiter = CapacityLimiter(tokens)
        self.tokens = tokens
        lock: Any = TryLock(run)
        self.limiter._lock = lock
        returned: Any = Returned(run, lock)
        self.limiter._returned = returned
        self.got: list[str] = []
        self.missed: list[str] = []
        ModelWaiter.run = run
        ModelWaiter.impatient = frozenset(impatient)

    def sync(self, name: str) -> Callable[[], None]:
        """A thread that borrows through the face for threads, and returns."""

        def borrow() -> None:
            if self.limiter.sync.acquire(timeout=1 if name in ModelWaiter.impatient else -1):
                self.use(name)
                self.limiter.sync.release()
            else:
                self.missed.append(name)

        return self.named(name, borrow)

    def task(self, name: str) -> Callable[[], None]:
        """A task that borrows through the asynchronous face, and returns."""

        def borrow() -> None:
            coro = self.limiter.acquire_on_behalf_of(name)
            try:
                coro.send(None)
            except StopIteration:
                self.use(name)
                self.limiter.release_on_behalf_of(name)
            except asyncio.CancelledError:
                self.missed.append(name)

        return self.named(name, borrow)

    def named(self, name: str, fn: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            NAMES[threading.get_ident()] = name
            fn()

        return work

    def use(self, name: str) -> None:
        assert self.limiter.borrowed_tokens <= max(self.tokens, self.limiter.total_tokens)
        self.run.step("uses")
        self.got.append(name)

    def check(self, patient: set[str]) -> None:
        assert patient <= set(self.got)
        assert self.limiter.borrowed_tokens == 0
        assert not self.limiter._waiting


#: Which actor a thread of the explorer plays; written by that thread.
NAMES: dict[int, str] = {}


class Returned(deque[Any]):
    """Stops before each look that is taken without the lock: the others are ordered by it."""

    def __init__(self, run: Run, lock: "TryLock") -> None:
        super().__init__()
        self._run = run
        self._lock = lock

    def append(self, item: Any, /) -> None:
        self._run.step("return")
        super().append(item)

    def __bool__(self) -> bool:
        if not self._lock.mine():
            self._run.step("look at what was returned")
        return len(self) > 0


class TryLock(Lock):
    """One that may also be asked for without waiting."""

    _owner = 0

    def acquire(self, blocking: bool) -> bool:
        assert not blocking
        self._run.step("try lock")
        if self._held:
            return False
        self._held = True
        self._owner = threading.get_ident()
        return True

    def release(self) -> None:
        self._run.step("release lock")
        self._held = False

    def __enter__(self) -> None:
        super().__enter__()
        self._owner = threading.get_ident()

    def mine(self) -> bool:
        return self._held and self._owner == threading.get_ident()


@pytest.fixture(autouse=True)
def model_waiters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_capacity, "ThreadWaiter", ModelWaiter)
    monkeypatch.setattr(_capacity, "async_waiter", ModelWaiter)
    monkeypatch.setattr(_capacity, "refuse_on_loop_thread", lambda *args: None)


CASES = {
    "three patient, one token": (1, {"t:a", "t:b", "s:c"}, set()),
    "one cancelled between two": (1, {"t:a", "t:c"}, {"t:b"}),
    "one out of time between two": (1, {"s:a", "t:c"}, {"s:b"}),
    "one of each gives up": (1, {"t:a"}, {"t:b", "s:c"}),
    "two tokens, two give up": (2, {"t:a", "s:b"}, {"t:c", "s:d"}),
}


@pytest.mark.parametrize("case", CASES)
def test_no_token_is_lost_whoever_gives_up_when(case: str) -> None:
    """Borrowers that use a token for a moment: ``s:`` are threads, ``t:`` tasks; some give up at any moment."""
    tokens, patient, impatient = CASES[case]

    def scenario(run: Run) -> None:
        model = Model(run, tokens, set(impatient))
        for name in sorted(patient | impatient):
            run.thread(model.sync(name) if name.startswith("s:") else model.task(name))
        run.check(lambda: model.check(set(patient)))

    assert explore(scenario, preemptions=2 if len(patient | impatient) < 4 else 1) > 100


def test_raising_the_total_serves_those_who_wait() -> None:
    """A token that comes into being is handed over like one that is returned."""

    def scenario(run: Run) -> None:
        model = Model(run, 1, {"t:b"})
        model.limiter.acquire_on_behalf_of_nowait("held for ever")

        def raise_total() -> None:
            model.limiter.total_tokens = 2

        run.thread(model.task("t:a"))
        run.thread(model.task("t:b"))
        run.thread(raise_total)

        def check() -> None:
            assert "t:a" in model.got
            assert list(model.limiter._entries) == ["held for ever"]
            assert model.limiter.borrowed_tokens == 1
            assert not model.limiter._waiting

        run.check(check)

    assert explore(scenario, preemptions=2) > 100

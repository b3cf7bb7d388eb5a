"""The parts of ``_core`` where threads meet, built so that ``tests.explorer`` can stop before each shared access."""

import selectors
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.explorer import Deque, Run, stepped

from polyloop._core._mailbox import Mailbox, _poster
from polyloop._core._selector import WorkerSelector
from polyloop._core._spin import SpinPolicy
from polyloop._core._waker import new_waker


def no_report(exc: BaseException) -> None:
    raise exc


def stepped_mailbox(run: Run, wake: Callable[[], object]) -> Mailbox:
    """A mailbox whose every access to shared state is a step."""
    box: Any = stepped(Mailbox, "closed")(wake, no_report)
    box.items = Deque(run, "items")
    box.tokens = Deque(run, "tokens")
    box.post = _poster(box.items.append, box.tokens, box.signal)
    box.run = run
    mailbox: Mailbox = box
    return mailbox


class Waker:
    """Counts, as a waker does; a write after the close is an error, where the kernel would hit another file."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._real = new_waker()
        self.count = 0
        self.closed = False

    def fileno(self) -> int:
        return self._real.fileno()

    def wake(self) -> None:
        self._run.step("waker.wake")
        assert not self.closed, "a waker was written to after it was closed"
        self.count += 1

    def drain(self) -> int:
        self._run.step("waker.drain")
        count, self.count = self.count, 0
        return count

    def close(self) -> None:
        self._run.step("waker.close")
        self.closed = True
        self._real.close()


class Poll(selectors.DefaultSelector):
    """A poll that finds nothing but the waker, and blocks within the model."""

    run: Run
    _waker: Any
    _waker_key: selectors.SelectorKey

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            self.run.step("poll")
        else:
            self.run.wait_until(lambda: self._waker.count > 0, "woken")
        return [(self._waker_key, selectors.EVENT_READ)] if self._waker.count else []


class Selector(WorkerSelector, Poll):
    """The selector over that poll."""


class Consumer:
    """A loop without asyncio: a mailbox and its selector."""

    def __init__(self, run: Run, spin_ns: int = 0) -> None:
        self.mailbox = stepped_mailbox(run, self._wake)
        self.unstarted: deque[Any] = deque()
        self.runnable: deque[Any] = deque()
        self.bound: deque[Any] = deque()
        self.waker: Waker
        self.selector = Selector(SpinPolicy(spin_ns))
        self.selector.run = run
        waker: Any = self.selector._waker
        self.waker = waker
        self.selector.attach(self)
        run.check(self.check)

    def _wake(self) -> None:
        self.selector.wake()

    def serve(self) -> None:
        self.mailbox.drain()

    def on_idle(self) -> bool:
        return False

    def check(self) -> None:
        """What must hold after every interleaving; closes the selector if the scenario has not."""
        if not self.waker.closed:
            assert not deque.__len__(self.mailbox.tokens), "a token outlived the sleep"
            assert self.selector._wakes_owed <= self.waker.count, "a wake is owed that nobody will send"
            self.selector.close()

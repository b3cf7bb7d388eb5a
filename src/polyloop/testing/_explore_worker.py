"""The threads that an exploration keeps for its runs."""

import contextlib
from collections.abc import Callable

from polyloop._core import _prims
from polyloop._core._context import here
from polyloop._core._spin import SpinPolicy

#: What the explorer itself uses while the seam is replaced.
RealLock = _prims.Lock
real_monotonic = _prims.monotonic
get_ident = _prims.get_ident


#: Seconds that a thread gets to end; only one that is stuck needs them.
_END = 1.0


class Worker:
    """A thread that runs one job after the other: starting one for each run would take most of the time."""

    def __init__(self, number: int) -> None:
        self.baton = RealLock()
        self.baton.acquire()
        self.job: Callable[[], None] | None = None  # set before the baton is given
        self._thread = _prims.start_thread(self._work, f"explorer-{number}")
        assert self._thread.ident is not None
        self.ident = self._thread.ident

    def _work(self) -> None:
        while True:
            self.baton.acquire()
            job, self.job = self.job, None
            if job is None:
                return
            _forget_this_thread()
            job()
            del job

    def give(self) -> None:
        """Give it the baton. One that is stuck in the code under test may have been given it before."""
        with contextlib.suppress(RuntimeError):
            self.baton.release()

    def end(self) -> None:
        """End the thread; one that is stuck in the code under test is left behind, and ends when it comes back."""
        self.job = None
        self.give()
        self._thread.join(_END)


def _forget_this_thread() -> None:
    """What polyloop knows of a thread is as in a new one, but that it never spins: nothing happens meanwhile."""
    here.port = here.call_port = None
    here.guests = ()
    here.spin = SpinPolicy(0)


def settle() -> None:
    """Let the interpreter do what it owes this thread: free what others dropped meanwhile, and call its finalisers."""

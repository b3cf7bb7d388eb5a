"""Named pauses: to force one interleaving of several threads.

All state is guarded by the one condition of each object. Every wait has a limit, so that a wrong order fails the test
instead of hanging it, and a failed wait breaks the object for all others at once.
"""

import contextlib
from collections.abc import Generator

from polyloop._core import _prims

#: Seconds that a step waits for the one before it, unless the test says otherwise. A guess: long enough for a slow CI.
STEP_TIMEOUT = 30.0


class Gate:
    """A place where threads stop until the test lets them on.

    The thread under test calls ``pause``, usually from something that the test has put in its way (a ``__del__``, a
    container with a slow ``pop``, a callback). The test waits with ``reached`` until it stands there, does what is to
    happen at that moment, and calls ``open``.

    Args:
        name: Shown in errors.
        timeout: Seconds after which a wait gives up.

    .. versionadded:: 0.1
    """

    def __init__(self, name: str = "gate", *, timeout: float = STEP_TIMEOUT) -> None:
        self.name = name
        self._timeout = timeout
        self._changed = _prims.Condition()  # guards the two below
        self._arrived = 0
        self._open = False

    def __repr__(self) -> str:
        return f"<Gate {self.name!r} {'open' if self._open else 'closed'} arrived={self._arrived}>"

    def pause(self) -> None:
        """Stop here until the gate is open.

        Raises:
            TimeoutError: nobody opened it in time.
        Thread safety: any thread. On a loop's thread it holds the whole loop.
        """
        with self._changed:
            self._arrived += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._open, self._timeout):
                raise TimeoutError(f"{self!r} was not opened within {self._timeout} s")

    def reached(self, count: int = 1) -> None:
        """Wait until ``count`` threads have come to the gate, those included that have gone on since.

        Raises:
            TimeoutError: they did not come in time.
        Thread safety: any thread that may block.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._arrived >= count, self._timeout):
                raise TimeoutError(f"{self!r} was not reached by {count} within {self._timeout} s")

    def open(self) -> None:
        """Let everybody pass, from now on. Any thread."""
        with self._changed:
            self._open = True
            self._changed.notify_all()


class Sequencer:
    """Puts steps of several threads into one order.

    The steps are numbered blocks::

        step = Sequencer()

        def left():                    def right():
            with step(0):                  with step(1):
                queue.put("a")                 getter.cancel()
            with step(2):
                check()

    Step ``n`` begins when step ``n - 1`` has ended. The same idea as trio's, for threads.

    Args:
        timeout: Seconds that a step waits for the one before it.

    .. versionadded:: 0.1
    """

    def __init__(self, *, timeout: float = STEP_TIMEOUT) -> None:
        self._timeout = timeout
        self._changed = _prims.Condition()  # guards all below
        self._next = 0
        self._claimed: set[int] = set()
        self._broken: str | None = None

    @contextlib.contextmanager
    def __call__(self, position: int) -> Generator[None]:
        """Run the block as step ``position``.

        Raises:
            RuntimeError: the position was used before, or an earlier step failed.
            TimeoutError: the step before it did not end in time.
        Thread safety: any thread. On a loop's thread it holds the whole loop until it is its turn.
        """
        self._wait_for_turn(position)
        try:
            yield
        except BaseException as exc:
            self._break(f"step {position} failed with {exc!r}")
            raise
        with self._changed:
            self._next += 1
            self._changed.notify_all()

    def _wait_for_turn(self, position: int) -> None:
        with self._changed:
            if position in self._claimed:
                raise RuntimeError(f"step {position} was used before; number each step once")
            self._claimed.add(position)
            turn = self._changed.wait_for(lambda: self._broken or self._next == position, self._timeout)
            if self._broken:
                raise RuntimeError(f"step {position} cannot begin: {self._broken}")
            seen = self._next
        if not turn:
            self._break(f"step {seen} never ended")
            raise TimeoutError(f"step {position} waited {self._timeout} s for step {seen} to end")

    def _break(self, reason: str) -> None:
        with self._changed:
            self._broken = self._broken or reason
            self._changed.notify_all()

"""What ``map`` shares between the loop of its consumer and the threads that run the calls.

The consumer's loop (*home*) appends items to ``ready``; whoever runs a call takes one from there and appends what came
of it to ``arrived``. The consumer, if it has to wait, waits in ``line``.

Why the consumer does not miss what it waits for. It sets ``wanted``, enters ``line``, and *then* looks at ``arrived``;
whoever brings an outcome appends it to ``arrived`` and *then* reads ``wanted`` and ``line``. All looks at ``arrived``
are critical sections of that deque. So either the consumer finds the outcome, or its look came first, and then the
bringer sees what was set before it. In every order: ``tests/tasks/test_map_interleavings.py``.
"""

from collections import deque
from typing import Any, Protocol

from polyloop._core._port import Port
from polyloop._core._waiting import Line, wake_next

#: An item and its number.
type Item = tuple[int, Any]

#: What came of an item: its number, what the call returned, what it raised.
type Outcome = tuple[int, Any, BaseException | None]

#: What a consumer wants that takes the outcomes as they come.
ANY = -1

#: What a consumer wants that looks again by itself, a little later.
NOTHING_NOW = -2


class Board:
    """Items to be worked on, and what came of them.

    Args:
        stop_at_failure: Whether nothing new is to begin when a call has failed.

    Attributes:
        wanted: The number of the outcome that the consumer waits for, or ``ANY``, or ``NOTHING_NOW``; written at home.
        stopped: Nothing new is to begin. Set by any thread, for good.
    """

    __slots__ = ("_stop_at_failure", "arrived", "line", "ready", "stopped", "wanted")

    def __init__(self, stop_at_failure: bool) -> None:
        self._stop_at_failure = stop_at_failure
        self.ready: deque[Item] = deque()  # appended at home, popped by any thread
        self.arrived: deque[Outcome] = deque()  # appended by any thread, popped at home
        self.line: Line = deque()
        self.wanted = ANY
        self.stopped = False

    def bring(self, outcome: Outcome) -> None:
        """Hand an outcome to the consumer. Any thread."""
        if self._stop_at_failure and outcome[2] is not None:
            self.stopped = True
        self.arrived.append(outcome)
        wanted = self.wanted
        if (wanted == ANY or wanted == outcome[0]) and self.line:
            wake_next(self.line)

    def stop(self) -> None:
        """Begin nothing new. Any thread."""
        self.stopped = True
        self.ready.clear()


class InOrder:
    """Outcomes by the order of their items. Pure."""

    __slots__ = ("_kept", "next")

    def __init__(self) -> None:
        self._kept: dict[int, Outcome] = {}
        self.next = 0

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome until it is its turn."""
        self._kept[outcome[0]] = outcome

    def take(self) -> Outcome | None:
        """The outcome whose turn it is, if it has come."""
        outcome = self._kept.pop(self.next, None)
        if outcome is not None:
            self.next += 1
        return outcome

    def drain(self) -> list[Outcome]:
        """All that is left."""
        left = list(self._kept.values())
        self._kept.clear()
        return left


class AsTheyCome:
    """Outcomes by the order of their arrival. Pure."""

    __slots__ = ("_kept",)

    next = ANY

    def __init__(self) -> None:
        self._kept: deque[Outcome] = deque()

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self._kept.append(outcome)

    def take(self) -> Outcome | None:
        """The one that came first."""
        return self._kept.popleft() if self._kept else None

    def drain(self) -> list[Outcome]:
        """All that is left."""
        left = list(self._kept)
        self._kept.clear()
        return left


class Lane(Protocol):
    """Who runs the calls of a map. For home only, but for ``cancel_soon``.

    Attributes:
        ahead: How many items are to be ready beside those that run.
    """

    ahead: int

    def start(self, home: Port, board: Board) -> None:
        """Take up the work; before anything else."""
        ...

    def feed(self) -> None:
        """An item was added."""
        ...

    def starved(self) -> bool:
        """Whether more items should have been ready, since this was asked last."""
        ...

    def crowded(self) -> bool:
        """Whether waking the consumer takes a core from a call."""
        ...

    def idle(self) -> bool:
        """Whether nothing runs."""
        ...

    def cancel(self, *, abandoned: bool) -> None:
        """Cancel what runs, after the board was stopped; nobody waits for what is abandoned."""
        ...

    def cancel_soon(self) -> None:
        """Cancel what can be cancelled by any thread, in the middle of anything."""
        ...

    def forget(self) -> None:
        """Nothing runs any more: hold nothing that holds this."""
        ...

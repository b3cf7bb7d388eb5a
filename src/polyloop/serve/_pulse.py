"""Whether a loop is alive, from what the acceptor's thread can see of it: the policy, without threads or a clock."""

from typing import Literal

type Change = Literal["hangs", "recovers"] | None


class Pulse:
    """One loop's. A loop that has not answered a ping for ``patience`` seconds hangs, until it answers.

    A loop that sleeps is alive and is not woken: only one that is awake is pinged, which costs it next to nothing.

    That it has not answered takes two looks: of a process that was stopped (a signal, a laptop's lid), the thread that
    looks may be the first to go on, and finds a ping from long ago.

    Args:
        patience: Seconds.

    Attributes:
        hanging: Whether the loop hangs.
        since: When the ping was sent that it has not answered; ``None`` if there is none.
        answered: The last ping it answered; written by the loop's thread, everything else by the acceptor's.
    """

    def __init__(self, patience: float) -> None:
        self.hanging = False
        self.since: float | None = None
        self.answered = 0
        self._patience = patience
        self._sent = 0
        self._looks = 0  # since that ping

    def look(self, now: float, asleep: bool) -> Change:
        """Look at it; ``ping`` says afterwards whether it is to be pinged."""
        if asleep or self.answered == self._sent:
            self.since = None
            if self.hanging:
                self.hanging = False
                return "recovers"
            return None
        self._looks += 1
        due = self.due
        if due is not None and now >= due and self._looks > 1:
            self.hanging = True
            return "hangs"
        return None

    @property
    def due(self) -> float | None:
        """When it hangs, unless it answers before; ``None`` if nothing is asked of it, or if it hangs already."""
        return None if self.since is None or self.hanging else self.since + self._patience

    def ping(self, now: float, asleep: bool) -> int | None:
        """The number of the ping to send now, for ``pong``; ``None`` if none is due."""
        if asleep or self.since is not None:
            return None
        self._sent += 1
        self.since = now
        self._looks = 0
        return self._sent

    def pong(self, number: int) -> None:
        """Answer a ping. The loop's thread."""
        self.answered = number

"""The lookout: which loops of a server hang. Part of the acceptor's thread, but for what it says in the log.

What a hanging loop is busy with is looked up and logged by a thread of its own (see ``log_apart``).
"""

import asyncio
import contextlib
from collections.abc import Container, Sequence
from functools import partial

from polyloop._core._ending import thread_stack
from polyloop.serve._accepted import log_apart, logger
from polyloop.serve._balance import Balance
from polyloop.serve._station import Station

#: Seconds between two looks at the loops; a hang is noticed within this and the patience.
TICK = 0.2


class Lookout:
    """Pings the loops, takes those that hang out of the balance, and puts them back when they answer.

    Args:
        patience: Seconds until a loop that does not answer hangs; ``None`` for no such watch.

    Attributes:
        hanging: Numbers of the loops that hang; replaced by the acceptor's thread, read by anyone.
    """

    def __init__(self, balance: Balance, patience: float | None) -> None:
        self.hanging: frozenset[int] = frozenset()
        self._balance = balance
        self._tick = None if patience is None else min(TICK, patience / 2)
        self._next = 0.0

    def wait(self, now: float) -> float | None:
        """Seconds until the next look; ``None`` if there is none."""
        return None if self._tick is None else max(0.0, self._next - now)

    def look(self, stations: Sequence[Station], left: Container[int], now: float) -> None:
        """Look at the loops, but those of ``left``, if it is time for that."""
        if self._tick is None or now < self._next:
            return
        self._next = now + self._tick
        for station in stations:
            if station.index in left:
                continue
            self._look_at(station, now)
            due = station.pulse.due
            if due is not None and now < due:
                self._next = min(self._next, due)

    def _look_at(self, station: Station, now: float) -> None:
        pulse, asleep = station.pulse, station.asleep
        since = pulse.since or now
        change = pulse.look(now, asleep)
        if change == "hangs":
            self._balance.take_out(station.index)
            self.hanging = self.hanging | {station.index}
            log_apart(partial(_report, station, now - since))
        elif change == "recovers":
            self.put_back(station)
            log_apart(
                partial(logger.warning, "polyloop: %s answers again after %.1f s", station.port.name, now - since)
            )
        number = pulse.ping(now, asleep)
        if number is not None:
            station.port.post(pulse.pong, number)

    def put_back(self, station: Station) -> None:
        """It hangs no more: it answers, or has ended."""
        self._balance.put_back(station.index)
        self.hanging = self.hanging - {station.index}


def _report(station: Station, silent: float) -> None:
    """Say that a loop hangs, and what it does."""
    port = station.port
    task = None
    doing = ""
    with contextlib.suppress(Exception):  # best effort: another thread's task, and code of whoever runs it
        task = asyncio.current_task(port.loop)
        doing = "" if station.busy_with is None else station.busy_with(task)
    what = "no task" if task is None else f"task {task.get_name()!r}"
    # The kernel does not know that it hangs, so a loop with a listening socket of its own still gets its share.
    fate = "" if station.listeners else " and gets no connections until it does"
    stack = "".join(f"\n    {frame}" for frame in thread_stack(port.ident))
    logger.error(
        "polyloop: %s hangs: it has not answered for %.1f s%s. It runs %s%s:%s",
        port.name, silent, fate, what, f", {doing}" if doing else "", stack or " (no stack)",
    )  # fmt: skip

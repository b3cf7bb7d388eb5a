"""The acceptor: a thread that accepts connections and hands each to the loop with the fewest.

It also looks after the loops: one that does not answer is reported, with its stack and what it is busy with, and gets
no connections until it is back. It runs no code of the user's, so it cannot be held up by any.

Its life: *serving*; *closing*, when the doors are closed and the stations leave as their last connections do; *ended*.
All state is its own thread's. Everybody else gives it commands, and tells it of connections that ended. The wake-up
of a command is written under ``_lock``, which also guards the descriptor's end. Of a departure it hears when it looks,
and is woken only while the server is full: then it puts a token into ``_hungry`` *before* it looks at ``_departures``
a last time, and whoever departs appends *before* looking for a token, so one of the two sees the other (see
``_core/_mailbox``, which relies on the same).

Why it cannot hang: it waits in ``select`` only, for at most a tick while it serves.
"""

import asyncio
import contextlib
import selectors
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from polyloop._core import _prims
from polyloop._core._completion import Completion
from polyloop._core._ending import thread_stack
from polyloop._core._waker import new_waker
from polyloop.serve._accepted import AcceptedSocket, accept, logger
from polyloop.serve._balance import Balance
from polyloop.serve._listen import Listener
from polyloop.serve._station import RETRY, Station

#: Connections accepted in a row before it looks at its commands.
_BATCH = 64

#: Seconds between two looks at the loops; a hang is noticed within this and the patience.
TICK = 0.2

type WhenFull = Literal["wait", "refuse"]


class Acceptor:
    """The thread of one server.

    Args:
        balance: Which loop gets the next connection.
        when_full: ``"wait"`` leaves connections in the backlog while there is no room, ``"refuse"`` resets them.
        patience: Seconds until a loop that does not answer hangs; ``None`` for no such watch.

    Attributes:
        doors_closed: Done when the listening sockets are closed.
        ended: Done when the stations have ended too.
    """

    def __init__(self, name: str, balance: Balance, *, when_full: WhenFull, patience: float | None) -> None:
        self.name = name
        self.doors_closed = Completion[None]()
        self.ended = Completion[None]()
        self.hanging: frozenset[int] = frozenset()  # replaced by the acceptor's thread, read by anyone
        self.refused = 0
        self._balance = balance
        self._when_full: WhenFull = when_full
        self._watches = patience is not None
        self._listeners: list[Listener] = []  # replaced by the acceptor's thread
        self._stations: Sequence[Station] = ()
        self._left: set[int] = set()  # stations that have ended
        self._lock = _prims.Lock()  # guards _commands, _over and the waker's end
        self._commands: deque[Callable[[], object]] = deque()
        self._over = False
        self._waker = new_waker()
        self._departures: deque[int] = deque()  # appended by any thread, popped by the acceptor's
        self._hungry: deque[None] = deque()  # appended by the acceptor's thread, popped by whoever wakes it
        self._selector = selectors.DefaultSelector()
        self._open = False  # whether the listeners are in the selector
        self._retry_at: float | None = None

    def start(self, listeners: Sequence[Listener], stations: Sequence[Station]) -> None:
        """Begin to serve; once."""
        self._listeners = list(listeners)
        self._stations = stations
        _prims.start_thread(self._main, self.name)

    def abandon(self) -> None:
        """It was never started and never will be. Whoever closes the server."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self._waker.close()
        self._selector.close()
        self.doors_closed._complete(None)
        self.ended._complete(None)

    # Any thread

    def tell(self, command: Callable[[], object]) -> bool:
        """Have ``command`` called on the acceptor's thread; ``False`` if that has ended."""
        with self._lock:
            if self._over:
                return False
            self._commands.append(command)
            self._waker.wake()
        return True

    def close_doors(self, *, take_waiting: bool = True) -> None:
        """Accept no more; end when the last connection has gone.

        Args:
            take_waiting: Whether connections that the kernel has accepted already are served still. Not if somebody
                else goes on with the same listening sockets.
        """
        self.tell(lambda: self._close_doors(take_waiting))

    def departed(self, index: int) -> None:
        """A connection of station ``index`` has ended."""
        if not self._listeners:  # nothing is accepted here any more, or ever: nobody counts
            return
        self._departures.append(index)
        if self._hungry:
            with contextlib.suppress(IndexError):
                self._hungry.pop()
                self.tell(_look)

    def station_ended(self, index: int) -> Completion[None] | None:
        """A station's task is about to end; what it waits for if it is the last."""
        with self._lock:
            self._left.add(index)
            last = len(self._left) == len(self._stations)
        self.tell(lambda: self._balance.remove(index))
        return self.ended if last else None

    # The acceptor's thread

    def _main(self) -> None:
        try:
            self._selector.register(self._waker.fileno(), selectors.EVENT_READ)
            self._open_doors()
            while not self._finished():
                self._turn()
        except BaseException:
            logger.exception("polyloop: %s failed; the server accepts no more", self.name)
        finally:
            self._finish()

    def _finished(self) -> bool:
        return len(self._left) == len(self._stations)

    def _turn(self) -> None:
        events = self._selector.select(self._patience())
        for key, _ in events:
            if key.data is None:
                self._waker.drain()
        self._serve_others()
        for key, _ in events:
            if key.data is not None and self._open:
                self._accept_from(key.data)
        if self._watches:
            self._look_at_loops()
        self._open_doors()

    def _patience(self) -> float | None:
        if self._listeners and not self._open and self._hunger():
            return 0
        if self._watches:
            return TICK
        return None if self._retry_at is None else max(0.0, self._retry_at - _prims.monotonic())

    def _hunger(self) -> bool:
        """Ask to be woken by the next departure; say whether there was one already."""
        if not self._hungry:
            self._hungry.append(None)
        return bool(self._departures)

    def _serve_others(self) -> None:
        while self._commands:
            self._commands.popleft()()
        while True:
            try:
                self._balance.left(self._departures.popleft())
            except IndexError:
                return

    def _open_doors(self) -> None:
        """Look at the listening sockets, unless there is no room."""
        if self._open or not self._listeners:
            return
        now = _prims.monotonic()
        if self._retry_at is not None and now < self._retry_at:
            return
        self._retry_at = None
        if self._when_full == "wait" and self._balance.choose() is None:
            return
        for listener in self._listeners:
            self._selector.register(listener.sock, selectors.EVENT_READ, listener.sock)
        self._open = True
        self._hungry.clear()

    def _shut_doors(self) -> None:
        """Look away from the listening sockets, until there is room."""
        if self._open:
            self._open = False
            for listener in self._listeners:
                self._selector.unregister(listener.sock)

    def _accept_from(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            if not self._accept_one(listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        """Accept one connection; ``False`` if there is none, or no room for it."""
        index = self._balance.choose()
        if index is None and self._when_full == "wait":
            self._shut_doors()
            return False
        try:
            sock = accept(listener, _untold if index is None else self._stations[index].gone)
        except OSError:
            logger.exception("polyloop: %s cannot accept from %r; trying again in %g s", self.name, listener, RETRY)
            sock = "exhausted"
        if sock == "none":
            return False
        if sock == "exhausted":
            logger.error("polyloop: the system has no room for another connection; trying again in %g s", RETRY)
            self._retry_at = _prims.monotonic() + RETRY
            self._shut_doors()
            return False
        if index is None:
            self.refused += 1
            sock.abort()
        else:
            station = self._stations[index]
            self._balance.take(index)
            station.port.post(station.adopt, sock)
        return True

    def _close_doors(self, take_waiting: bool) -> None:
        listeners, self._listeners = self._listeners, []
        if self._open:
            self._open = False
            for listener in listeners:
                self._selector.unregister(listener.sock)
        for listener in listeners:
            while take_waiting and self._accept_one(listener.sock):
                pass
            listener.close()
        for station in self._stations:
            if station.listeners:
                station.port.post(station.close_listeners)
            station.port.post(station.leave)
        if not self.doors_closed.done():
            self.doors_closed._complete(None)

    def _finish(self) -> None:
        self._close_doors(take_waiting=False)
        with self._lock:
            self._over = True
            self._waker.close()
        self._selector.close()
        self._serve_others()
        self.ended._complete(None)

    # Loops that hang

    def _look_at_loops(self) -> None:
        now = _prims.monotonic()
        for station in self._stations:
            if station.index not in self._left:
                self._look_at(station, now)

    def _look_at(self, station: Station, now: float) -> None:
        pulse, asleep = station.pulse, station.asleep
        since = pulse.since
        change = pulse.look(now, asleep)
        if change == "hangs":
            self._balance.take_out(station.index)
            self.hanging |= {station.index}
            logger.error("polyloop: %s", _describe(station, now - (since or now)))
        elif change == "recovers":
            self._balance.put_back(station.index)
            self.hanging -= {station.index}
            logger.warning("polyloop: %s answers again and takes connections", station.port.name)
        number = pulse.ping(now, asleep)
        if number is not None:
            station.port.post(pulse.pong, number)


def _describe(station: Station, silent: float) -> str:
    """What is to be said of a loop that hangs."""
    port = station.port
    task = asyncio.current_task(port.loop)
    doing = "" if station.busy_with is None else station.busy_with(task)
    name = "no task" if task is None else f"task {task.get_name()!r}"
    stack = "".join(f"\n    {frame}" for frame in thread_stack(port.ident))
    return (
        f"{port.name} hangs: it has not answered for {silent:.1f} s and gets no connections until it does."
        f" It runs {name}{', ' + doing if doing else ''}:{stack}"
    )


def _untold(sock: AcceptedSocket) -> None:
    """Of a connection that was refused nobody hears."""


def _look() -> None:
    """A command that only wakes."""

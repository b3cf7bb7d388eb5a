"""The acceptor: a thread that accepts connections and hands each to the loop with the fewest.

It also looks after the loops (see ``_lookout``): one that hangs gets no connections until it is back. The thread runs
no code of the user's, log handlers included, so it cannot be held up by any.

Its life: *serving*; *closing*, when the doors are closed and the stations leave as their last connections do; *ended*.
All state is its own thread's. Everybody else gives it commands, and tells it of connections that ended. A command is
queued, and the wake-up written, under ``_lock``, which also guards the end of the waker's descriptor. It is reentrant,
since a garbage collection or a signal handler may come in between, and close a connection or the server. Of
departures the thread hears whenever it looks, and is woken by them only while there is no room (see ``_departures``).

Why it cannot hang: it waits in ``select`` only, and every command and every departure that it waits for ends that.
"""

import selectors
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from polyloop._core import _prims
from polyloop._core._completion import Completion
from polyloop._core._errors import copy_exception
from polyloop._core._waker import Waker, new_waker
from polyloop.serve._accepted import RETRY, AcceptedSocket, Trouble, accept, log_apart, logger
from polyloop.serve._balance import Balance
from polyloop.serve._departures import Departures
from polyloop.serve._listen import Listener
from polyloop.serve._lookout import Lookout
from polyloop.serve._station import MOST_WAITING, Station

#: Connections accepted in a row before it looks at its commands.
_BATCH = 64

type WhenFull = Literal["wait", "refuse"]


class Acceptor:
    """The thread of one server.

    Args:
        balance: Which loop gets the next connection.
        when_full: ``"wait"`` leaves connections in the backlog while there is no room, ``"refuse"`` resets them.
        patience: Seconds until a loop that does not answer hangs; ``None`` for no such watch.

    Attributes:
        stations: The loops' parts; set before any of them is started.
        doors_closed: Done when the listening sockets are closed.
        ended: Done when the stations have ended too.
        failed: Done, with nothing, when the thread has died from an error, just before the doors are closed for that;
            never otherwise.
        failure: That error, if so; written before ``failed`` and ``doors_closed`` are done.
    """

    def __init__(self, name: str, balance: Balance, *, when_full: WhenFull, patience: float | None) -> None:
        self.name = name
        self.stations: Sequence[Station] = ()
        self.doors_closed = Completion[None]()
        self.ended = Completion[None]()
        self.failed = Completion[None]()
        self.failure: BaseException | None = None
        self.refused = 0
        self._balance = balance
        self._lookout = Lookout(balance, patience)
        self._refuses = when_full == "refuse"
        self._listeners: Sequence[Listener] = ()  # set before the thread starts, emptied by it
        self._left: set[int] = set()  # stations that have ended; added by any thread
        self._lock = _prims.RLock()  # guards _commands, _over, and _waker from its making to its end
        self._commands: deque[Callable[[], object]] = deque()
        self._over = False
        self._waker: Waker | None = None
        self._departures = Departures(lambda: self.tell(_look))
        self._selector: selectors.BaseSelector
        self._open = False  # whether the listeners are in the selector
        self._retry_at: float | None = None
        self._trouble = Trouble()

    def start(self, listeners: Sequence[Listener]) -> None:
        """Begin to accept; once.

        Raises:
            OSError: no descriptor is left.
            RuntimeError: no thread can be had. Either way it may be abandoned then.
        """
        self._selector = selectors.DefaultSelector()
        try:
            with self._lock:
                self._waker = new_waker()
            self._selector.register(self._waker.fileno(), selectors.EVENT_READ)
            self._listeners = listeners
            _prims.start_thread(self._main, self.name)
        except BaseException:
            self._listeners = ()
            self._close_waker()
            raise

    def abandon(self) -> None:
        """It was never started and never will be. Whoever closes the server."""
        with self._lock:
            if self._over:
                return
            self._over = True
            self._commands.clear()
        self.doors_closed._complete(None)
        self.ended._complete(None)

    # Any thread

    @property
    def hanging(self) -> frozenset[int]:
        """Numbers of the loops that hang."""
        return self._lookout.hanging

    def tell(self, command: Callable[[], object]) -> bool:
        """Have ``command`` called on the acceptor's thread, perhaps once it is started; ``False`` if that has ended."""
        with self._lock:
            if self._over:
                return False
            self._commands.append(command)
            if self._waker is not None:
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
        if self._listeners:  # else nothing is accepted here any more, or ever: nobody counts
            self._departures.add(index)

    def station_ended(self, index: int) -> Completion[None] | None:
        """A station's task is about to end; what it waits for if it is the last."""
        with self._lock:
            self._left.add(index)
            last = len(self._left) == len(self.stations)
        self.tell(lambda: self._remove(index))
        return self.ended if last else None

    # The acceptor's thread

    def _main(self) -> None:
        try:
            self._serve_others()
            self._open_doors()
            while not self._finished():
                self._turn()
        except BaseException as exc:
            self._fail(exc)
        finally:
            self._finish()

    def _fail(self, exc: BaseException) -> None:
        self.failure = copy_exception(exc).with_traceback(None)  # its frames hold sockets
        self.failed._complete(None)
        log_apart(partial(logger.error, "polyloop: %s failed; the server accepts no more", self.name, exc_info=exc))

    def _finished(self) -> bool:
        return len(self._left) == len(self.stations)

    def _turn(self) -> None:
        events = self._selector.select(self._patience())
        assert self._waker is not None
        for key, _ in events:
            if key.data is None:
                self._waker.drain()
        self._serve_others()
        for key, _ in events:
            if key.data is not None and self._open:
                self._accept_from(key.data)
        self._lookout.look(self.stations, self._left, _prims.monotonic())
        self._open_doors()

    def _patience(self) -> float | None:
        """How long to sleep; ``None`` until it is woken."""
        if self._listeners and not self._open and not self._departures.wait():
            return 0.0
        now = _prims.monotonic()
        look = self._lookout.wait(now)
        retry = None if self._retry_at is None else max(0.0, self._retry_at - now)
        return min((wait for wait in (look, retry) if wait is not None), default=None)

    def _serve_others(self) -> None:
        self._hear_departures()
        while self._commands:
            self._commands.popleft()()

    def _hear_departures(self) -> None:
        while (index := self._departures.take()) is not None:
            self._balance.left(index)
            self._retry_at = None  # a descriptor is free again

    def _remove(self, index: int) -> None:
        self._balance.remove(index)
        self._lookout.put_back(self.stations[index])

    def _open_doors(self) -> None:
        """Look at the listening sockets, unless there is no room."""
        if self._open or not self._listeners:
            return
        if self._retry_at is not None and _prims.monotonic() < self._retry_at:
            return
        self._retry_at = None
        if not self._has_use_for_more():
            return
        for listener in self._listeners:
            self._selector.register(listener.sock, selectors.EVENT_READ, listener.sock)
        self._open = True
        self._departures.wait_no_more()

    def _has_use_for_more(self) -> bool:
        return self._balance.choose() is not None or (self._refuses and self._balance.full)

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
        if self._balance.choose() is None:
            self._hear_departures()
            if not self._has_use_for_more():
                self._shut_doors()
                return False
        index = self._balance.choose()
        try:
            sock = accept(listener, _untold if index is None else self.stations[index].gone)
        except OSError as exc:
            self._pause(exc)
            return False
        if isinstance(sock, str):
            if sock == "exhausted":
                self._pause()
            return False
        if index is None:
            self.refused += 1
            sock.drop()
        else:
            station = self.stations[index]
            self._balance.take(index)
            station.port.post(station.adopt, sock)
        return True

    def _pause(self, exc: OSError | None = None) -> None:
        """Nothing can be accepted: try again in a moment."""
        self._trouble.say(self.name, exc)
        self._retry_at = _prims.monotonic() + RETRY
        self._shut_doors()

    def _close_doors(self, take_waiting: bool) -> None:
        if self.doors_closed.done():
            return
        self._shut_doors()
        for listener in self._listeners:
            listener.remove_file()  # before the last look at the backlog: nobody comes in by it after that
        if take_waiting:
            self._take_waiting()
        for listener in self._listeners:
            listener.close()
        self._listeners = ()
        for station in self.stations:
            station.port.post(station.leave, take_waiting)
        self.doors_closed._complete(None)

    def _take_waiting(self) -> None:
        """Accept what the kernel has accepted, as far as there is room."""
        self._empty_backlogs()
        hanging = self._lookout.hanging
        if hanging:  # what is left there waits for those loops, as their other connections do
            for index in hanging:
                self._balance.put_back(index)  # still reported as hanging: it is
            self._empty_backlogs()

    def _empty_backlogs(self) -> None:
        for listener in self._listeners:
            for _ in range(MOST_WAITING):
                if not self._accept_one(listener.sock):
                    break

    def _finish(self) -> None:
        self._close_doors(take_waiting=False)
        with self._lock:
            self._over = True
            self._commands.clear()
        self._close_waker()
        self.ended._complete(None)

    def _close_waker(self) -> None:
        with self._lock:
            if self._waker is not None:
                self._waker.close()
                self._waker = None
        self._selector.close()


def _untold(sock: AcceptedSocket) -> None:
    """Of a connection that was refused nobody hears."""


def _look() -> None:
    """A command that only wakes."""

"""``Server``: what ``start_server`` returns; asyncio's, over all loops."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from polyloop._core import _prims
from polyloop._core._completion import Completion, all_done
from polyloop._core._handle import TaskHandle
from polyloop._core._port import Port
from polyloop.serve._acceptor import Acceptor, WhenFull
from polyloop.serve._balance import Balance
from polyloop.serve._listen import Listener, bind_again, listen, show_address
from polyloop.serve._places import start_on
from polyloop.serve._pulse import Pulse
from polyloop.serve._station import ProtocolFactory, Station, Tls


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server takes on, and how it watches its loops; see ``create_server``."""

    max_connections: int | None = None
    max_connections_per_loop: int | None = None
    when_full: WhenFull = "wait"
    hung_after: float | None = 0.7

    def __post_init__(self) -> None:
        for name in ("max_connections", "max_connections_per_loop"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number, at least 1, or None for no limit; got {value!r}")
        if self.when_full not in ("wait", "refuse"):
            raise ValueError(f"when_full must be 'wait' or 'refuse', got {self.when_full!r}")
        if self.hung_after is not None and not self.hung_after > 0:
            raise ValueError(f"hung_after must be seconds above 0, or None for no watch; got {self.hung_after!r}")


@dataclass(frozen=True, slots=True)
class LoopLoad:
    """What one loop of a server does.

    Attributes:
        loop: Name of its worker.
        connections: Open at this moment.
        accepted: Since the server was opened.
        hanging: Whether the loop does not answer, and gets no connections.
    """

    loop: str
    connections: int
    accepted: int
    hanging: bool


class Server:
    """A server over all loops of a runtime; it has the methods of ``asyncio.Server``.

    Not made by hand: ``start_server``, ``create_server`` and their like return it. Use it as a context manager, and it
    is closed at the end, when its connections have gone::

        async with await polyloop.start_server(handle, port=8888) as server:
            await server.serve_forever()

    Thread safety: everything may be called from any thread; what is awaited, on any loop.

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        ports: Sequence[Port],
        factories: Sequence[ProtocolFactory],
        listeners: Sequence[Listener],
        *,
        backlog: int,
        tls: Tls,
        limits: Limits,
        reuse_port: bool = False,
    ) -> None:
        self._listeners = tuple(listeners)
        self._backlog = backlog
        self._reuse_port = reuse_port
        self._name = ", ".join(_address(listener.sock) for listener in listeners)
        balance = Balance(len(ports), most=limits.max_connections, most_each=limits.max_connections_per_loop)
        self._acceptor = Acceptor(
            f"polyloop-acceptor-{self._name}", balance, when_full=limits.when_full, patience=limits.hung_after
        )
        self._stations = tuple(
            Station(
                index,
                port,
                factory,
                tls,
                Pulse(limits.hung_after or 0.0),
                self._acceptor,
                most=limits.max_connections_per_loop,
                refuses=limits.when_full == "refuse",
            )
            for index, (port, factory) in enumerate(zip(ports, factories, strict=True))
        )
        self._acceptor.stations = self._stations
        # Done, with nothing, when the acceptor has died from an error; never otherwise. Nothing is accepted any more
        # then, and ``is_serving()`` is false; connections go on.
        self._failed = self._acceptor.failed
        self._lock = (
            _prims.RLock()
        )  # guards _started, _closing and _forever; reentrant for signal handlers that close the server
        self._started = False
        self._closing = False
        self._start_over = Completion[None]()  # done when start_serving is, in whatever way
        self._forever: Completion[None] | None = None
        self._failed._add_waiter(self._note_failure)

    def __repr__(self) -> str:
        state = "closed" if self._closing else "serving" if self._started else "not serving yet"
        return f"<Server {self._name} {state} loops={len(self._stations)}>"

    # Life

    async def start_serving(self) -> None:
        """Begin to accept; does nothing if that has begun.

        Raises:
            RuntimeError: the server is closed.
            OSError: the socket cannot listen. The server is closed then.
            RuntimeClosedError: so has its runtime, or a loop of it. The server is closed then.
        Cancellation: the server is closed.
        """
        with self._lock:
            if self._closing:
                raise self._closed_error()
            begun, self._started = self._started, True
        if begun:
            await self._start_over
            return
        try:
            self._listen()
            self._start_stations()
            for station in self._stations:
                await station.ready
            self._acceptor.start(() if self._reuse_port else self._listeners)
        except BaseException as exc:
            self._give_up(exc)
            raise
        self._start_over._complete(None)

    def _listen(self) -> None:
        for listener in self._listeners:
            listen(listener.sock, self._backlog)
        if not self._reuse_port:
            return
        # Each loop gets a socket of its own on each address: the kernel deals out the connections.
        for number, station in enumerate(self._stations):
            for listener in self._listeners:
                station.listeners.append(listener.sock.dup() if number == 0 else bind_again(listener.sock))
                listen(station.listeners[-1], self._backlog)
        for listener in self._listeners:  # the copy of the first loop listens on
            listener.sock.close()

    def _start_stations(self) -> None:
        for station in self._stations:
            station.placed = True
            handle = start_on(station.port, station.run(), f"server {self._name}")
            # Also of a station that never began, since its runtime closes, or whose worker died.
            handle._add_waiter(partial(self._station_over, station, handle))

    def _station_over(self, station: Station, handle: TaskHandle[None]) -> None:
        """A station has ended, in whatever way. Any thread."""
        station.close_remains()
        self._acceptor.station_ended(station.index)
        station.never_ready(None if handle.cancelled() else handle._exception_for_me())

    def _give_up(self, exc: BaseException) -> None:
        """It could not start: leave nothing open. What runs on the loops already ends there."""
        with self._lock:
            self._closing = True
            forever = self._forever
        for listener in self._listeners:
            listener.close()
        for station in self._stations:
            if station.placed:
                station.port.post(station.quit)
            else:
                station.close_remains()
        self._acceptor.abandon()
        self._start_over._complete(None, exc)
        if forever is not None and not forever.done():
            forever._complete(None)

    def close(self) -> None:
        """Accept no more. Connections that the kernel has accepted are served still, and open ones are left alone.

        Of those that wait since the server is full, as many as there is room for; the others are reset.
        """
        self._close(take_waiting=True)

    def _close(self, *, take_waiting: bool) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
            started, forever = self._started, self._forever
        if started:
            self._acceptor.close_doors(take_waiting=take_waiting)
        else:
            for listener in self._listeners:
                listener.close()
            self._acceptor.abandon()
        if forever is not None:
            forever._complete(None)

    def _note_failure(self) -> None:
        """The acceptor has failed, and closes everything that listens. Its thread."""
        with self._lock:
            self._closing = True
            forever = self._forever
        if forever is not None:
            forever._complete(None)

    def close_clients(self) -> None:
        """Close the connections that are open, each when what was written to it has been sent."""
        for station in self._stations:
            station.port.post(station.close_clients)

    def abort_clients(self) -> None:
        """Cut the connections that are open."""
        for station in self._stations:
            station.port.post(station.abort)

    def _give_up_handshakes(self, patience: float) -> None:
        """Cut the connections that are still being made after so many seconds. Once the doors are closed."""
        for station in self._stations:
            station.port.post(station.give_up_handshakes, patience)

    async def wait_closed(self) -> None:
        """Wait until the server is closed and its connections have gone.

        Cancellation: the server is as it was.
        """
        await self._acceptor.ended

    async def serve_forever(self) -> None:
        """Serve until the server is closed by somebody, or this call is cancelled, which closes it and its connections.

        Raises:
            RuntimeError: the server is closed, or somebody else awaits this; or its acceptor has failed.
            CancelledError: it was cancelled; or the server was closed, as with asyncio's.
        """
        with self._lock:
            if self._forever is not None:
                raise RuntimeError(f"{self!r} is already being awaited on serve_forever()")
            if self._closing:
                raise self._closed_error()
            closed = self._forever = Completion[None]()
        try:
            await self.start_serving()
            await closed
            failure = self._acceptor.failure
            if failure is not None:
                raise RuntimeError(f"{self!r} accepts no more: its acceptor has failed; see the log") from failure
            raise asyncio.CancelledError("the server was closed")
        except asyncio.CancelledError:
            self.close()
            await self._doors_closed()  # so that what waited there is closed too
            self.close_clients()
            await self.wait_closed()
            raise
        finally:
            with self._lock:
                self._forever = None

    def _closed_error(self) -> RuntimeError:
        return RuntimeError(f"{self!r} is closed; open another")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()

    # Seen from outside

    def is_serving(self) -> bool:
        """Whether connections are accepted."""
        return self._started and not self._closing

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets: to be looked at (``getsockname()``), not closed. Empty when the server is closed.

        With ``reuse_port`` those of the first loop.
        """
        if self._closing:
            return ()
        own = self._stations[0].listeners
        return tuple(own or (listener.sock for listener in self._listeners))

    @property
    def loads(self) -> tuple[LoopLoad, ...]:
        """What each loop does, in the order of the workers; a snapshot."""
        hanging = self._acceptor.hanging
        return tuple(
            LoopLoad(station.port.name, station.connections, station.accepted, station.index in hanging)
            for station in self._stations
        )

    @property
    def refused(self) -> int:
        """Connections that were reset since the server was full (``when_full="refuse"``)."""
        return self._acceptor.refused + sum(station.refused for station in self._stations)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs on the calling thread: the server is at home on each.

        Raises:
            RuntimeError: no loop runs on this thread.
        """
        return asyncio.get_running_loop()

    def _say_what_is_busy(self, sayers: "Sequence[Callable[[asyncio.Task[Any] | None], str]]") -> None:
        """What each loop's part says of itself when it hangs; before the start."""
        for station, busy_with in zip(self._stations, sayers, strict=True):
            station.busy_with = busy_with

    def _connections_on(self, port: Port) -> Callable[[], int]:
        """What counts the connections of one loop. Any thread."""
        station = next(station for station in self._stations if station.port is port)
        return lambda: station.connections

    async def _doors_closed(self) -> None:
        """Wait until nothing is accepted any more."""
        await all_done([self._acceptor.doors_closed])


def _address(sock: socket.socket) -> str:
    with contextlib.suppress(OSError):
        return show_address(sock.getsockname())
    return "closed"

"""A station: the part of a server that lives on one loop, and owns the connections there.

It is one task, which ends when the acceptor says so and the last connection has gone, or when its runtime closes; then
it cuts the connections that are left. Everything here runs on the loop's own thread, but for what says otherwise.

Who closes a connection: its transport, from the moment the loop has been given the socket, also if that is to fail or
is cancelled, since its descriptor is in the selector until then. Before that moment, the station. It counts as open
until its socket is closed, of which the socket itself tells (see ``_accepted``), so nobody leaves before the last word.
"""

import asyncio
import contextlib
import contextvars
import socket
import ssl as ssl_module
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from polyloop._core._completion import Completion
from polyloop._core._errors import RuntimeClosedError, copy_exception
from polyloop._core._port import Port
from polyloop._core._worker import Worker
from polyloop.serve._accepted import RETRY, AcceptedSocket, Trouble, accept, logger
from polyloop.serve._pulse import Pulse

type ProtocolFactory = Callable[[], asyncio.BaseProtocol]

#: Connections that a loop accepts by itself before it looks at its other sockets; asyncio takes the whole backlog.
_BATCH = 16

#: Connections that are taken from one backlog at the close: more than any backlog holds, so that it ends in a flood.
MOST_WAITING = 65_536


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS as asyncio takes it; ``None`` everywhere without."""

    ssl: ssl_module.SSLContext | None = None
    ssl_handshake_timeout: float | None = None
    ssl_shutdown_timeout: float | None = None


class Chief(Protocol):
    """What a station tells of: the acceptor. Any thread."""

    def departed(self, index: int) -> None:
        """A connection has ended."""
        ...

    def station_ended(self, index: int) -> Completion[None] | None:
        """The station has ended; what to wait for, if it was the last."""
        ...


@dataclass(slots=True, eq=False)
class Station:
    """One loop's part of a server.

    Args:
        index: Its number in the server.
        port: Its loop.
        factory: Makes the protocol of a connection, on the loop.
        pulse: Whether the loop is alive.
        most: Most connections at once, where the loop accepts by itself.
        refuses: Whether it resets connections beyond that; else they wait in the backlog.
        listeners: What the loop accepts from by itself; with an acceptor none.
        busy_with: Says what a task of this loop does, for the report of a hang; any thread.
        placed: Whether its task was given to its loop; set by who starts the server.
    """

    index: int
    port: Port
    factory: ProtocolFactory
    tls: Tls
    pulse: Pulse
    chief: Chief
    most: int | None = None
    refuses: bool = False
    listeners: list[socket.socket] = field(default_factory=list[socket.socket])
    busy_with: "Callable[[asyncio.Task[Any] | None], str] | None" = None
    placed: bool = False
    ready: Completion[None] = field(default_factory=Completion[None])
    accepted: int = 0
    refused: int = 0
    # That of whoever made the server; each connection gets a copy, as with asyncio.
    _context: contextvars.Context = field(default_factory=contextvars.copy_context)
    # By the identity of their sockets, which end when nobody holds them: see below. Of a connection that is still being
    # made the transport is not known.
    _transports: "dict[int, asyncio.BaseTransport | None]" = field(
        default_factory=dict[int, "asyncio.BaseTransport | None"]
    )
    _connecting: "dict[asyncio.Task[None], AcceptedSocket]" = field(
        default_factory=dict["asyncio.Task[None]", AcceptedSocket]
    )
    _end: asyncio.Event = field(default_factory=asyncio.Event)
    _begun: bool = False
    _leaving: bool = False
    _ended: bool = False
    # Listeners that the loop looks at now, by their descriptors.
    _watched: dict[int, socket.socket] = field(default_factory=dict[int, socket.socket])
    _trouble: Trouble = field(default_factory=Trouble)

    async def run(self) -> None:
        """The station's task."""
        self._begun = True
        try:
            await _check_loop(self.port.loop)
            self._watch()
            self.ready._complete(None)
            await self._end.wait()
        finally:
            self._ended = True
            self.never_ready(sys.exception())
            self._close_listeners(take_waiting=False)
            self.abort()
            last = self.chief.station_ended(self.index)
            if last is not None:  # so that the listening sockets are closed when the tasks have ended
                await last

    def never_ready(self, exc: BaseException | None) -> None:
        """It has ended: tell who still waits for its start. On its loop, or any thread once that has let go of it."""
        if not self.ready.done():
            ended = RuntimeClosedError(f"{self.port.name} ended before it could serve")
            self.ready._complete(None, copy_exception(exc) if isinstance(exc, Exception) else ended)

    # Connections

    def adopt(self, sock: AcceptedSocket) -> None:
        """Take over a connection that the acceptor has given to this loop; posted."""
        if self._ended:
            sock.drop()
            return
        self.accepted += 1
        self._transports[id(sock)] = None
        coro = self._connect(sock)
        try:
            task = self.port.new_task(coro, None, self._context.copy())
        except BaseException:  # of a task factory
            coro.close()
            sock.drop()
            raise
        self._connecting[task] = sock
        task.add_done_callback(self._connected)

    async def _connect(self, sock: AcceptedSocket) -> None:
        loop, tls = self.port.loop, self.tls
        try:
            protocol = self.factory()
        except Exception as exc:
            message = f"polyloop: the protocol of a connection could not be made: {self.factory!r} raised"
            loop.call_exception_handler({"message": message, "exception": exc})
            return
        sock.held = True
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=tls.ssl,
                ssl_handshake_timeout=tls.ssl_handshake_timeout,
                ssl_shutdown_timeout=tls.ssl_shutdown_timeout,
            )
        except OSError as exc:  # of the handshake, or its timeout: the client's fault, or its absence
            logger.debug("polyloop: a connection failed before it was made: %r", exc)
        else:
            if id(sock) in self._transports:  # else it has gone already
                self._transports[id(sock)] = transport

    def _connected(self, task: "asyncio.Task[None]") -> None:
        """The connection is made, or never will be."""
        sock = self._connecting.pop(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            message = "polyloop: a connection could not be made"
            self.port.loop.call_exception_handler({"message": message, "exception": exc, "task": task})
        if self._transports.get(id(sock), task) is None:
            # If its transport was never made, it is closed now or when this last reference goes.
            sock.drop()

    def gone(self, sock: AcceptedSocket) -> None:
        """A connection was closed; called by the socket itself. Any thread, of one that never came here."""
        self.chief.departed(self.index)
        if self._transports.pop(id(sock), self) is self:
            return
        if self._leaving and not self._transports:
            self._end.set()
        elif len(self._watched) < len(self.listeners):
            self._watch()

    def leave(self, take_waiting: bool) -> None:
        """Accept no more, and end when the last connection has gone; posted, after all those that were accepted.

        Args:
            take_waiting: Whether what waits in the backlogs of its own is served still, as far as there is room.
        """
        self._close_listeners(take_waiting=take_waiting)
        self._leaving = True
        if not self._transports:
            self._end.set()

    def quit(self) -> None:
        """End at once, and cut the connections."""
        self._end.set()

    def close_clients(self) -> None:
        """Close every connection in good order; one that is still being made has nothing to lose."""
        for task in list(self._connecting):
            task.cancel()
        for transport in list(self._transports.values()):
            if transport is not None:
                transport.close()

    def give_up_handshakes(self, patience: float) -> None:
        """Cut the connections that are still being made after so many seconds; posted."""
        for task in self._connecting:
            self.port.loop.call_later(patience, task.cancel)

    def abort(self) -> None:
        """Cut every connection."""
        for task in list(self._connecting):
            task.cancel()
        for transport in list(self._transports.values()):
            if transport is not None:  # those of other loops have the method, and not the class
                cast("asyncio.WriteTransport", transport).abort()

    @property
    def connections(self) -> int:
        """Open connections. Any thread; a snapshot."""
        return len(self._transports)

    # The loop accepts by itself (reuse_port)

    def _full(self) -> bool:
        return self.most is not None and len(self._transports) >= self.most

    def _watch(self) -> None:
        if self._ended or (self._full() and not self.refuses):
            return
        for listener in self.listeners:
            fd = listener.fileno()
            if fd not in self._watched:
                self.port.loop.add_reader(fd, self._accept_from, listener)
                self._watched[fd] = listener

    def _unwatch(self) -> None:
        while self._watched:
            self.port.loop.remove_reader(self._watched.popitem()[0])

    def _accept_from(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            if not self._accept_one(listener):
                return

    def _accept_one(self, listener: socket.socket) -> bool:
        """Accept one connection; ``False`` if there is none, or no room for it."""
        full = self._full()
        if full and not self.refuses:
            self._unwatch()
            return False
        try:
            sock = accept(listener, self.gone)
        except OSError as exc:
            self._pause(exc)
            return False
        if isinstance(sock, str):
            if sock == "exhausted":
                self._pause()
            return False
        if full:
            self.refused += 1
            sock.drop()
        else:
            self.adopt(sock)
        return True

    def _pause(self, exc: OSError | None = None) -> None:
        """Nothing can be accepted: try again in a moment, or when a connection has gone."""
        self._trouble.say(self.port.name, exc)
        self._unwatch()
        self.port.loop.call_later(RETRY, self._watch)

    def _close_listeners(self, *, take_waiting: bool) -> None:
        listeners, self.listeners = self.listeners, []
        self._unwatch()
        for listener in listeners:
            for _ in range(MOST_WAITING if take_waiting else 0):
                if not self._accept_one(listener):
                    break
            listener.close()

    def close_remains(self) -> None:
        """Close what it left open if its task never began, was lost with its loop, or is stuck for good. Any thread."""
        self._hang_up()
        if self._begun and self.port.is_current():  # its task has closed it, or is about to
            return
        for listener in self.listeners:
            listener.close()

    def _hang_up(self) -> None:
        """Have the clients that are left hear of the end now, and not when the process ends.

        Their sockets are not closed: a loop that is stuck may go on some day, with their descriptors in its selector.
        """
        for transport in list(self._transports.values()):
            sock = None if transport is None else transport.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError, TypeError):  # closed already; uvloop's have no shutdown
                    sock.shutdown(socket.SHUT_RDWR)
        for sock in list(self._connecting.values()):
            if sock.held:
                sock.drop()

    # Seen by the acceptor's thread

    @property
    def asleep(self) -> bool:
        """Whether the loop sleeps, as far as that can be seen from outside. Any thread."""
        port = self.port
        return isinstance(port, Worker) and port.selector is not None and bool(port.mailbox.tokens)


async def _check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """See whether a loop of others can serve at all.

    Raises:
        NotImplementedError: it cannot (rloop 0.2).
    """
    if isinstance(loop, asyncio.BaseEventLoop):
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        try:
            await loop.connect_accepted_socket(asyncio.Protocol, wrong)
        except NotImplementedError:
            raise NotImplementedError(
                f"{loop!r} has no connect_accepted_socket(), which a server needs; use polyloop's own loop, asyncio's"
                " or uvloop"
            ) from None
        except ValueError:  # it is, for one that can, not a stream socket
            pass

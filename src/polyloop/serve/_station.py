"""A station: the part of a server that lives on one loop, and owns the connections there.

It is one task, which ends when the acceptor says so and the last connection has gone, or when its runtime closes; then
it cuts the connections that are left. Everything here runs on the loop's own thread, but for ``asleep`` and ``pulse``.
"""

import asyncio
import contextlib
import socket
import ssl as ssl_module
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyloop._core._completion import Completion
from polyloop._core._port import Port
from polyloop._core._worker import Worker
from polyloop.serve._accepted import AcceptedSocket, accept, logger
from polyloop.serve._pulse import Pulse

type ProtocolFactory = Callable[[], asyncio.BaseProtocol]

#: Connections that a loop accepts by itself before it looks at its other sockets; asyncio takes the whole backlog.
_BATCH = 16

#: Seconds until a loop that found the system out of descriptors looks again.
RETRY = 1.0


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
        most: Most connections at once, where the loop accepts by itself.
        pulse: Whether the loop is alive.
        listeners: What the loop accepts from by itself; with an acceptor none.
        busy_with: Says what a task of this loop does, for the report of a hang; any thread.
    """

    index: int
    port: Port
    factory: ProtocolFactory
    tls: Tls
    pulse: Pulse
    chief: Chief
    most: int | None = None
    listeners: list[socket.socket] = field(default_factory=list)
    busy_with: "Callable[[asyncio.Task[Any] | None], str] | None" = None
    ready: Completion[None] = field(default_factory=Completion)
    accepted: int = 0
    _transports: "dict[AcceptedSocket, asyncio.BaseTransport | None]" = field(default_factory=dict)
    _connecting: "set[asyncio.Task[None]]" = field(default_factory=set)
    _end: asyncio.Event = field(default_factory=asyncio.Event)
    _leaving: bool = False
    _ended: bool = False
    _watched: list[socket.socket] = field(default_factory=list)  # listeners that the loop looks at now

    async def run(self) -> None:
        """The station's task."""
        try:
            self._watch()
            self.ready._complete(None)
            await self._end.wait()
        finally:
            self._ended = True
            self.close_listeners(take_waiting=False)
            self.abort()
            last = self.chief.station_ended(self.index)
            if last is not None:  # so that the listening sockets are closed when the tasks have ended
                await last

    # Connections

    def adopt(self, sock: AcceptedSocket) -> None:
        """Take over a connection that the acceptor has given to this loop; posted."""
        if self._ended:
            sock.abort()
            return
        self.accepted += 1
        self._transports[sock] = None
        task = self.port.loop.create_task(self._connect(sock))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: AcceptedSocket) -> None:
        try:
            transport, _ = await self.port.loop.connect_accepted_socket(
                self.factory,
                sock,
                ssl=self.tls.ssl,
                ssl_handshake_timeout=self.tls.ssl_handshake_timeout,
                ssl_shutdown_timeout=self.tls.ssl_shutdown_timeout,
            )
        except (
            OSError,
            ssl_module.SSLError,
            ConnectionError,
            TimeoutError,
        ) as exc:  # the client's fault, or its absence
            logger.debug("polyloop: a connection failed before it was made: %r", exc)
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            if sock in self._transports:  # else it has gone already
                self._transports[sock] = transport

    def gone(self, sock: AcceptedSocket) -> None:
        """A connection was closed; called by the socket itself."""
        self._transports.pop(sock, None)
        self.chief.departed(self.index)
        if self._leaving and not self._transports:
            self._end.set()
        elif len(self._watched) < len(self.listeners):
            self._watch()

    def leave(self) -> None:
        """End when the last connection has gone; posted, after all those that were accepted."""
        self._leaving = True
        if not self._transports:
            self._end.set()

    def close_clients(self) -> None:
        """Close every connection in good order."""
        for transport in list(self._transports.values()):
            if transport is not None:
                transport.close()

    def abort(self) -> None:
        """Cut every connection."""
        for task in list(self._connecting):
            task.cancel()
        for transport in list(self._transports.values()):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()

    @property
    def connections(self) -> int:
        """Open connections. Any thread; a snapshot."""
        return len(self._transports)

    # The loop accepts by itself (reuse_port)

    def _watch(self) -> None:
        if self._ended or (self.most is not None and len(self._transports) >= self.most):
            return
        for listener in self.listeners:
            if listener not in self._watched:
                self._watched.append(listener)
                self.port.loop.add_reader(listener.fileno(), self._accept_from, listener)

    def _unwatch(self) -> None:
        for listener in self._watched:
            self.port.loop.remove_reader(listener.fileno())
        self._watched.clear()

    def _accept_from(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            if self.most is not None and len(self._transports) >= self.most:
                self._unwatch()
                return
            sock = accept(listener, self.gone)
            if sock == "none":
                return
            if sock == "exhausted":
                logger.error("polyloop: the system has no room for another connection; trying again in %g s", RETRY)
                self._unwatch()
                self.port.loop.call_later(RETRY, self._watch)
                return
            self.adopt(sock)

    def close_listeners(self, *, take_waiting: bool = True) -> None:
        """Stop accepting; what the kernel has accepted already is served still, unless the server is full."""
        listeners, self.listeners = self.listeners, []
        self._unwatch()
        for listener in listeners:
            while take_waiting and isinstance(sock := self._one_more(listener), AcceptedSocket):
                self.adopt(sock)
            listener.close()

    def _one_more(self, listener: socket.socket) -> object:
        if self.most is not None and len(self._transports) >= self.most:
            return None
        with contextlib.suppress(OSError):
            return accept(listener, self.gone)
        return None

    # Seen by the acceptor's thread

    @property
    def asleep(self) -> bool:
        """Whether the loop sleeps, as far as that can be seen from outside. Any thread."""
        port = self.port
        return isinstance(port, Worker) and port.selector is not None and bool(port.mailbox.tokens)

"""A connection of bytes over asyncio's transports, and how it is opened: one socket at a time."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

#: Seconds that each address of a name gets to answer, when it has several, before the next one is tried. Each round
#: over all of them takes twice as long as the one before. A guess: most answer in this time.
_FIRST_ROUND = 0.25

#: Rounds, after which the system's own limit is waited for.
_ROUNDS = 8

#: Bytes that are read ahead of whoever consumes them.
_READ_AHEAD = 256 * 1024

#: Turns of the loop that a transport which was aborted gets to close its socket. It needs one or two.
_TURNS = 16


class Opening(Protocol):
    """What is being opened: each attempt gets a wire of its own."""

    wire: "Wire"

    def new_wire(self) -> "Wire":
        """For the next attempt."""
        ...


async def open_tcp(host: str, port: int, local: tuple[str, int] | None, opening: Opening) -> None:
    """Connect to an address, or to the first address of a name that answers: one after the other.

    Addresses race elsewhere (RFC 8305). Here there is one socket for one permit, so they take turns, and those who do
    not answer are given up in time: one that is dead costs a quarter of a second, and not the whole timeout.
    """
    loop = asyncio.get_running_loop()
    addresses = await _addresses(host, port)
    limits = [_FIRST_ROUND * 2**number for number in range(_ROUNDS)] if len(addresses) > 1 else []
    last: OSError = OSError(f"{host!r} has no address")
    for limit in (*limits, None):
        for address in list(addresses):
            try:
                async with asyncio.timeout(limit):
                    await loop.create_connection(opening.new_wire, address, port, local_addr=local)
                return
            except TimeoutError as exc:
                last = exc
            except OSError as exc:
                last = exc
                addresses.remove(address)
            await opening.wire.abort()
    raise last


async def _addresses(host: str, port: int) -> list[str]:
    """The addresses of a host, in the system's order of preference."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def open_unix(path: str, opening: Opening) -> None:
    """Connect to a Unix socket."""
    await asyncio.get_running_loop().create_unix_connection(opening.new_wire, path)


class Wire(asyncio.Protocol):
    """Bytes of one connection, in order."""

    def __init__(self, on_end: Callable[[], object]) -> None:
        self.transport: asyncio.Transport | None = None
        self.chunks: deque[bytes] = deque()
        self.ended = False  # nothing more will come
        self._ahead = 0  # bytes in chunks
        self._on_end = on_end
        self._error: Exception | None = None
        self._lost = False
        self._socket: Any = None
        self._tls = False
        self._reader: asyncio.Future[None] | None = None
        self._full: asyncio.Future[None] | None = None  # while nothing may be written

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class
        self._socket = transport.get_extra_info("socket")

    def data_received(self, data: bytes) -> None:
        self.chunks.append(data)
        self._ahead += len(data)
        if self._ahead > _READ_AHEAD and self.transport is not None:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._over()
        return not self._tls  # the transport stays open for what is yet to be written, which TLS cannot do

    def connection_lost(self, exc: Exception | None) -> None:
        self._error, self._lost = exc, True
        self.resume_writing()
        self._over()

    def _over(self) -> None:
        self.ended = True
        self._wake()
        self._on_end()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def pause_writing(self) -> None:
        if self._full is None:
            self._full = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    async def read(self, most: int) -> bytes:
        """The next bytes; none at the end.

        Raises:
            OSError: the connection was broken.
        """
        while not self.chunks:
            if self._error is not None:
                raise _as_oserror(self._error)
            if self.ended:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self.chunks.popleft()
        if len(data) > most:
            self.chunks.appendleft(data[most:])
            data = data[:most]
        before, self._ahead = self._ahead, self._ahead - len(data)
        if before > _READ_AHEAD >= self._ahead and not self.ended and self.transport is not None:
            self.transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Write bytes, and wait until there is room for more.

        Raises:
            OSError: the connection was broken.
        """
        self._refuse_if_lost()
        assert self.transport is not None
        self.transport.write(data)
        while self._full is not None:
            await asyncio.shield(self._full)
            self._refuse_if_lost()

    def _refuse_if_lost(self) -> None:
        if self._error is not None:
            raise _as_oserror(self._error)
        if self._lost or self.transport is None or self.transport.is_closing():
            raise ConnectionResetError("the connection is closed")

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str | None) -> None:
        """Go on with TLS.

        Raises:
            OSError: the connection was broken, or the other side is not who it should be.
        """
        self._refuse_if_lost()
        assert self.transport is not None
        loop = asyncio.get_running_loop()
        self._tls = True
        transport = await loop.start_tls(self.transport, self, context, server_hostname=server_hostname)
        if transport is None:
            raise ConnectionResetError("the connection was closed during the TLS handshake")
        self.transport = transport

    def extra(self, name: str) -> Any:
        """See ``asyncio.BaseTransport.get_extra_info``."""
        if name == "socket":
            return self._socket
        return None if self.transport is None else self.transport.get_extra_info(name)

    async def abort(self) -> None:
        """End the connection, and wait until its socket is closed."""
        if self.transport is None:  # an attempt that was cut short at this moment may yet tell of its transport
            for _ in range(2):
                await asyncio.sleep(0)
        if self.transport is not None:
            self.transport.abort()
            for _ in range(_TURNS):
                if self._socket.fileno() == -1:
                    break
                await asyncio.sleep(0)


def _as_oserror(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else ConnectionResetError(repr(error))

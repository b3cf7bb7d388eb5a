"""An HTTP server that counts its open connections exactly, and does what a test tells it to."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tests.helpers import until

from polyloop.testing import TestLoop

#: The first byte of Linux's struct tcp_info: the connection is open on both sides.
_ESTABLISHED = 1


class Site:
    """A server on a loop of its own.

    Attributes:
        made: Connections so far.
        peak: The most that were open at a time. One that its client has closed is not open, read or not.
        requests: Paths of all requests, in order.
    """

    def __init__(
        self, tls: ssl.SSLContext | None = None, path: str | None = None, tunnel: ssl.SSLContext | None = None
    ) -> None:
        self.tunnel = tunnel
        self.made = self.peak = 0
        self.requests: list[str] = []
        self._tls = tls
        self._path = path
        self._peers: set[_Peer] = set()
        self._held: dict[str, list[_Peer]] = {}
        self._loop = TestLoop("site")
        self.port = 0
        self._loop.run(self._start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._loop.close()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """Connections at this moment."""
        return self._loop.run(self._count)

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._path is not None:
            self._server: Any = await loop.create_unix_server(lambda: _Peer(self), self._path)
            return
        self._server = await loop.create_server(lambda: _Peer(self), "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Close everything, and listen no more."""
        self._loop.run(self._stop)

    async def _stop(self) -> None:
        self._server.close()
        for peer in list(self._peers):
            peer.transport.abort()
        while self._peers:
            await asyncio.sleep(0)

    def restart(self) -> None:
        """Stop, and begin anew at the same port."""
        self.stop()
        self._loop.run(self._start)

    def hang_up(self) -> None:
        """Close all connections."""
        self._loop.run(self._hang_up)

    def _hang_up(self) -> None:
        for peer in list(self._peers):
            peer.transport.close()

    # Requests to /held/<name> are answered when the test says so.

    def wait_for_held(self, name: str, count: int) -> None:
        """Wait until so many requests are held there."""
        until(lambda: len(self._held.get(name, ())) == count)

    def let_go(self, name: str) -> None:
        """Answer what is held there."""
        self._loop.run(self._let_go, name)

    def _let_go(self, name: str) -> None:
        for peer in self._held.pop(name, ()):
            peer.answer(b"let go")

    # What peers say, on the site's loop

    def came(self, peer: "_Peer") -> None:
        self._peers.add(peer)
        self.made += 1
        self.peak = max(self.peak, self._count())

    def went(self, peer: "_Peer") -> None:
        self._peers.discard(peer)
        for held in self._held.values():
            if peer in held:
                held.remove(peer)

    def hold(self, name: str, peer: "_Peer") -> None:
        self._held.setdefault(name, []).append(peer)

    def _count(self) -> int:
        return sum(peer.is_open() for peer in self._peers)


class _Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._data = b""
        self._echo = False
        self._switching = False  # from the proxy's answer until TLS is spoken
        self._number = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._site.came(self)
        self._number = self._site.made

    def connection_lost(self, exc: Exception | None) -> None:
        self._site.went(self)

    def is_open(self) -> bool:
        sock: socket.socket | None = self.transport.get_extra_info("socket")
        if sock is None or sock.fileno() == -1:
            return False
        if sock.family == socket.AF_UNIX:
            return True
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED

    def data_received(self, data: bytes) -> None:
        if self._echo:
            self.transport.write(data)
            return
        self._data += data
        if not self._switching:
            self._take_requests()

    def _take_requests(self) -> None:
        while b"\r\n\r\n" in self._data:
            head, _, rest = self._data.partition(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(rest) < length:
                return
            body, self._data = rest[:length], rest[length:]
            self._handle(head, body)

    def _handle(self, head: bytes, body: bytes) -> None:
        method, target = head.split(b"\r\n")[0].decode().split(" ")[:2]
        self._site.requests.append(target)
        path = target.partition("://")[2].partition("/")[2] if "://" in target else target.lstrip("/")
        what, _, rest = path.partition("/")
        handler: Callable[..., None] | None = getattr(self, f"do_{what}", None)
        if method == "CONNECT":
            self._tunnel()
        elif handler is None:
            self.answer(f"{what} on {self._number}".encode())
        else:
            handler(rest, head, body)

    def answer(self, body: bytes, *headers: bytes, status: bytes = b"200 OK") -> None:
        lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", b""]
        self.transport.write(b"\r\n".join(lines) + body)

    def _tunnel(self) -> None:
        """A proxy that is itself where the tunnel ends."""
        self.transport.pause_reading()  # what comes now is for TLS
        self._switching = True
        self.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._task = asyncio.get_running_loop().create_task(self._end_tunnel())

    async def _end_tunnel(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._site.tunnel is not None
        transport = await loop.start_tls(self.transport, self, self._site.tunnel, server_side=True)
        if transport is not None:
            self.transport = transport
            self._switching = False
            self._take_requests()

    def do_held(self, name: str, head: bytes, body: bytes) -> None:
        self._site.hold(name, self)

    def do_soon(self, rest: str, head: bytes, body: bytes) -> None:
        asyncio.get_running_loop().call_later(0.001, self._soon)

    def _soon(self) -> None:
        if not self.transport.is_closing():
            self.answer(b"soon")

    def do_half(self, name: str, head: bytes, body: bytes) -> None:
        """Half a body, and the rest never."""
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ")

    def do_bye(self, rest: str, head: bytes, body: bytes) -> None:
        """An answer, and the end."""
        self.answer(b"bye", b"Connection: close")
        self.transport.close()

    def do_rude(self, rest: str, head: bytes, body: bytes) -> None:
        """An answer, and the end that nobody was told of."""
        self.answer(b"rude")
        self.transport.close()

    def do_drop(self, rest: str, head: bytes, body: bytes) -> None:
        """No answer."""
        self.transport.close()

    def do_cut(self, rest: str, head: bytes, body: bytes) -> None:
        """Half a body, and the end."""
        self.do_half(rest, head, body)
        self.transport.close()

    def do_large(self, size: str, head: bytes, body: bytes) -> None:
        self.answer(bytes(range(256)) * (int(size) // 256))

    def do_size(self, rest: str, head: bytes, body: bytes) -> None:
        self.answer(str(len(body)).encode())

    def do_cookie(self, name: str, head: bytes, body: bytes) -> None:
        self.answer(b"set", b"Set-Cookie: %s=%d; Path=/" % (name.encode(), self._number))

    def do_head(self, rest: str, head: bytes, body: bytes) -> None:
        self.answer(head)

    def do_go(self, rest: str, head: bytes, body: bytes) -> None:
        self.answer(b"", b"Location: /" + rest.encode(), status=b"302 Found")

    def do_upgrade(self, rest: str, head: bytes, body: bytes) -> None:
        self._echo = True
        self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")

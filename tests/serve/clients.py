"""What the tests of servers share: a server that says which loop it answers on, and clients of several kinds."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, Self

import polyloop
from polyloop.serve import Server

#: Seconds after which a wait for something that must happen counts as failed. Never waited out in a passing test.
PATIENCE = 30.0


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with the name of this thread and the line, until there are no more."""
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(f"{threading.current_thread().name} ".encode() + line)
            await writer.drain()
    writer.close()


class Answer(asyncio.Protocol):
    """``answer`` as a protocol."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(f"{threading.current_thread().name} ".encode() + data)


def address(server: Any) -> Any:
    """Where to connect to."""
    return server.sockets[0].getsockname()


class Client:
    """A connection to such a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, where: Any, tls: ssl.SSLContext | None = None) -> Self:
        """Connect to an address, of TCP or a unix socket."""
        if isinstance(where, str):
            return cls(*await asyncio.open_unix_connection(where))
        name = None if tls is None else "localhost"
        return cls(*await asyncio.open_connection(*where[:2], ssl=tls, server_hostname=name))

    async def ask(self, text: str = "hello") -> str:
        """Send a line, and return the name of the loop that answered."""
        self.writer.write(text.encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            loop, _, rest = (await self.reader.readline()).decode().partition(" ")
        assert rest == text + "\n", (loop, rest)
        return loop

    async def end(self) -> str:
        """Wait for the server to end the connection: ``"eof"`` or ``"reset"``."""
        async with asyncio.timeout(PATIENCE):
            try:
                assert await self.reader.read() == b""
            except ConnectionError:
                return "reset"
            return "eof"

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


async def refused(where: Any) -> bool:
    """Whether a connection is reset: perhaps so soon that the client never sees it."""
    try:
        client = await Client.to(where)
    except ConnectionError:
        return True
    async with client:
        return await client.end() == "reset"


async def connected(where: Any, count: int) -> list[Client]:
    """That many connections, one after the other, each answered."""
    clients = []
    for _ in range(count):
        clients.append(await Client.to(where))
        await clients[-1].ask()
    return clients


async def close_all(clients: Iterable[Client]) -> None:
    """Close them."""
    for client in clients:
        await client.close()


def on_loops[T](main: Callable[[], Coroutine[Any, Any, T]], loops: int = 4) -> T:
    """Run ``main()`` on a runtime of its own."""
    return polyloop.run(main(), loops=loops)


async def until(condition: Callable[[], object]) -> None:
    """Wait on a loop for what others do next."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.002)


def counts(server: Server) -> list[int]:
    """Open connections of each loop."""
    return [load.connections for load in server.loads]


def accepted(server: Server) -> list[int]:
    """Connections that each loop has had."""
    return [load.accepted for load in server.loads]


def plain(where: Any, text: bytes = b"hello\n") -> socket.socket:
    """A connection made on a plain thread, which has sent a line."""
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(where)
        sock.sendall(text)
    except BaseException:
        sock.close()
        raise
    return sock


def fate(sock: socket.socket) -> str:
    """What becomes of such a connection: ``"answered"``, ``"eof"`` or ``"reset"``."""
    try:
        return "answered" if sock.recv(1000).endswith(b"\n") else "eof"
    except ConnectionError:
        return "reset"


def tally(fates: Iterable[str]) -> dict[str, int]:
    """How many of each."""
    return dict(Counter(fates))


def may_bind(where: tuple[str, int]) -> bool:
    """Whether a TCP address is free, as for a server that restarts."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(where)
            sock.listen()
        except OSError:
            return False
        return True


@contextlib.asynccontextmanager
async def serving[S: Any](opening: Awaitable[S]) -> AsyncIterator[S]:
    """A server that is closed at the end, when its connections have gone; they are cut if the test has failed."""
    server = await opening
    try:
        yield server
    except BaseException:
        server.close()
        server.abort_clients()
        raise
    server.close()
    async with asyncio.timeout(PATIENCE):
        await server.wait_closed()

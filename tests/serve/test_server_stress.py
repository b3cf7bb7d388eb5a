"""Random clients of random servers, which close, hang for a moment and are opened again; every connection counted.

What it relies on and cannot prove by steps: the kernel's part in accepting and closing, asyncio's transports when they
are cut at any moment, and that nothing of all that is lost between threads. A lost wake-up shows as a client or a
server that does not end; a lost connection as a sum that does not add up; the rest as what a test left behind.
"""

import asyncio
import contextlib
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.serve.clients import PATIENCE, address, may_bind
from tests.serve.conftest import Certificates

from polyloop import Runtime, create_server, create_unix_server
from polyloop.serve import Server
from polyloop.testing import TestThread

CLIENTS = 6
LOOPS = 3
RESET = struct.pack("ii", 1, 0)


@dataclass
class Books:
    """What the servers' side of a round saw. Each deque-like counter is appended to by any loop."""

    made: list[None] = field(default_factory=list[None])
    lost: list[None] = field(default_factory=list[None])
    answered: list[None] = field(default_factory=list[None])


class Busy(asyncio.Protocol):
    """Answers lines; blocks its loop for a moment when it is asked to."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.books.made.append(None)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"block"):
            threading.Event().wait(0.15)
        if data.startswith(b"leave"):
            self.transport.close()
        elif data.startswith(b"cut"):
            self.transport.abort()
        elif data.endswith(b"\n"):
            self.books.answered.append(None)
            self.transport.write(b"answer\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.books.lost.append(None)


@dataclass
class Where:
    """How clients reach the server of a round."""

    name: Any
    tls: ssl.SSLContext | None

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX if isinstance(self.name, str) else socket.AF_INET)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(self.name)
            return sock if self.tls is None else self.tls.wrap_socket(sock, server_hostname="localhost")
        except BaseException:
            sock.close()
            raise


def visit(where: Where, rng: random.Random) -> str:
    """Be a client once, and say what came of it. A ``TimeoutError`` is the fault that the test looks for."""
    try:
        sock = where.connect()
    except TimeoutError:
        raise
    except OSError:
        return "refused"
    with sock:
        return behave(sock, rng)


def behave(sock: socket.socket, rng: random.Random) -> str:
    conduct = rng.choice(("ask", "ask", "ask", "block", "leave", "cut", "nothing", "half", "reset"))
    try:
        if conduct == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return "left"
        if conduct == "half":
            sock.sendall(b"he")
        if conduct in ("nothing", "half"):
            return "left"
        for _ in range(rng.randrange(1, 4)):
            sock.sendall(conduct.encode() + b"\n")
            if not sock.recv(100):
                return "ended"
        return "answered"
    except TimeoutError:
        raise
    except OSError:
        return "ended"


def keep_visiting(where: Where, rng: random.Random, stop: threading.Event) -> Counter[str]:
    fates: Counter[str] = Counter()
    while not stop.is_set():
        fates[visit(where, rng)] += 1
    return fates


async def open_one(rng: random.Random, books: Books, folder: Path, certificates: Certificates) -> tuple[Server, Where]:
    """A server of any kind, with any limits."""
    tls = rng.random() < 0.25
    options: dict[str, Any] = {"hung_after": rng.choice((None, 0.05, 0.7)), "backlog": rng.choice((1, 10, 100))}
    if tls:
        options |= {
            "ssl": certificates.for_server(),
            "ssl_handshake_timeout": rng.choice((0.05, 10)),
            "ssl_shutdown_timeout": 1,
        }
    options["when_full"] = rng.choice(("wait", "refuse"))
    options["max_connections_per_loop"] = rng.choice((None, 1, 2))
    shared = rng.random() < 0.3
    if not shared:
        options["max_connections"] = rng.choice((None, 1, 3))
    context = certificates.for_client() if tls else None

    def factory() -> Busy:
        return Busy(books)

    if not shared and rng.random() < 0.3:
        path = str(folder / "stress.sock")
        return await create_unix_server(factory, path, **options), Where(path, context)
    server = await create_server(factory, "127.0.0.1", 0, reuse_port=shared, **options)
    return server, Where(address(server), context)


async def close_one(server: Server, rng: random.Random) -> None:
    """In any of the ways."""
    how = rng.choice(("close", "forever", "twice", "clients", "abort"))
    if how == "forever":
        forever = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        forever.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await forever
    elif how == "clients":
        server.close_clients()
    elif how == "abort":
        server.abort_clients()
    server.close()
    if how == "twice":
        server.close()
    await server.wait_closed()


def one_round(runtime: Runtime, rng: random.Random, folder: Path, certificates: Certificates, last: bool) -> None:
    books = Books()
    server, where = runtime.run(open_one(rng, books, folder, certificates))
    stop = threading.Event()
    seeds = [rng.randrange(1 << 30) for _ in range(CLIENTS)]
    threads = [TestThread(keep_visiting, where, random.Random(seed), stop, timeout=PATIENCE) for seed in seeds]
    stop.wait(rng.random() * 0.3)
    if rng.random() < 0.3:
        server.abort_clients()
    if last:  # the runtime closes under it
        runtime.close()
        assert server._acceptor.ended._park(PATIENCE)
    else:
        runtime.run(close_one(server, rng))
    stop.set()
    fates: Counter[str] = sum((thread.result() for thread in threads), Counter())
    check(server, where, books, fates)


def check(server: Server, where: Where, books: Books, fates: Counter[str]) -> None:
    """What must add up when a server has ended."""
    accepted = sum(load.accepted for load in server.loads)
    assert [load.connections for load in server.loads] == [0] * LOOPS, server.loads
    assert len(books.made) == len(books.lost) <= accepted
    assert fates["answered"] <= len(books.answered)
    assert accepted + server.refused <= sum(fates.values())
    if isinstance(where.name, str):
        assert not os.path.exists(where.name)
    else:
        assert may_bind(where.name)


def storm(rng: random.Random, seconds: float, folder: Path, certificates: Certificates) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with Runtime(loops=LOOPS) as runtime:
            rounds = rng.randrange(1, 5)
            for number in range(rounds):
                one_round(runtime, rng, folder, certificates, number == rounds - 1 and rng.random() < 0.5)


def test_servers_in_a_storm(rng: random.Random, seconds: float, tmp_path: Path, certificates: Certificates) -> None:
    """For a moment: clients of all kinds, while servers come and go."""
    storm(rng, seconds, tmp_path, certificates)


@pytest.mark.stress
def test_servers_in_a_long_storm(
    rng: random.Random, seconds: float, tmp_path: Path, certificates: Certificates
) -> None:
    """The same for longer."""
    storm(rng, seconds, tmp_path, certificates)

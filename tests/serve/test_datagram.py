"""UDP on all loops: with real sockets."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.serve.clients import PATIENCE, on_loops

from polyloop import Runtime, create_datagram_server
from polyloop.serve import DatagramServer
from polyloop.testing import TestLoop


class Echo(asyncio.DatagramProtocol):
    """Answers with the name of its thread, and what came."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data == b"close":
            self.transport.close()
        else:
            self.transport.sendto(f"{threading.current_thread().name} ".encode() + data, addr)


@contextlib.contextmanager
def peers(server: DatagramServer, count: int) -> Iterator[list[socket.socket]]:
    """Sockets that talk to the server."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(server.sockets[0].family, socket.SOCK_DGRAM))
            sock.settimeout(PATIENCE)
            sock.connect(server.sockets[0].getsockname())
            made.append(sock)
        yield made


def ask(sock: socket.socket, text: bytes = b"hello") -> str:
    """Which loop answers."""
    sock.send(text)
    name, _, rest = sock.recv(1000).partition(b" ")
    assert rest == text
    return name.decode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_peers_are_spread_and_each_stays_on_its_loop(host: str) -> None:
    """200 peers reach every loop; what one sends is always answered by the same."""
    if host == "::1" and not socket.has_ipv6:
        pytest.skip("no IPv6")
    with Runtime(loops=4) as runtime:
        try:
            server = runtime.run(create_datagram_server(Echo, (host, 0)))
        except OSError as exc:
            pytest.skip(f"no {host} here: {exc}")
        assert len({sock.getsockname() for sock in server.sockets}) == 1
        with peers(server, 200) as socks:
            names = [ask(sock) for sock in socks]
            assert len(set(names)) == 4
            assert min(names.count(name) for name in set(names)) > 15
            for _ in range(3):
                assert [ask(sock) for sock in socks] == names
        server.close()
        runtime.run(server.wait_closed())
        assert server.sockets == ()


@pytest.mark.parametrize("reuse_port", [True, False])
def test_what_one_peer_sends_keeps_its_order(reuse_port: bool) -> None:
    """One loop receives it."""

    async def main() -> None:
        async with await create_datagram_server(Echo, ("127.0.0.1", 0), reuse_port=reuse_port) as server:
            where = server.sockets[0].getsockname()

            def talk() -> list[str]:
                with socket.socket(type=socket.SOCK_DGRAM) as sock:
                    sock.settimeout(PATIENCE)
                    sock.connect(where)
                    for number in range(50):
                        sock.send(str(number).encode())
                    return [sock.recv(100).decode().partition(" ")[2] for _ in range(50)]

            assert await asyncio.to_thread(talk) == [str(number) for number in range(50)]

    on_loops(main)


def test_one_loop_serves_without_reuse_port() -> None:
    """The caller's, if it is one of the runtime's."""
    with Runtime(loops=3) as runtime:
        worker = runtime.workers[2]
        opening = create_datagram_server(Echo, ("127.0.0.1", 0), reuse_port=False)
        server = runtime.submit(opening, on=worker).result(30)
        assert len(server.sockets) == 1
        with peers(server, 1) as [sock]:
            assert ask(sock) == worker.name
        server.close()
        runtime.run(server.wait_closed())


def test_without_a_runtime_the_callers_loop_serves() -> None:
    """A plain asyncio program."""

    async def main() -> None:
        async with await create_datagram_server(Echo, ("127.0.0.1", 0)) as server:
            assert len(server.sockets) == 1
            with peers(server, 1) as [sock]:
                assert await asyncio.to_thread(ask, sock) == "MainThread"

    asyncio.run(main())


@pytest.mark.parametrize("shared", [True, False])
def test_a_socket_of_the_users(shared: bool) -> None:
    """Bound before; to be shared it needs SO_REUSEPORT."""
    sock = socket.socket(type=socket.SOCK_DGRAM)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    with Runtime(loops=2) as runtime:
        if not shared:
            with pytest.raises(ValueError, match="SO_REUSEPORT set before it was bound"):
                runtime.run(create_datagram_server(Echo, sock=sock))
        server = runtime.run(create_datagram_server(Echo, sock=sock, reuse_port=shared))
        assert len(server.sockets) == 1 + shared
        with peers(server, 4) as socks:
            for one in socks:
                ask(one)
        server.close()
        runtime.run(server.wait_closed())


def test_messages_to_all() -> None:
    """``allow_broadcast`` is set on every socket."""

    async def main() -> None:
        async with await create_datagram_server(Echo, ("127.0.0.1", 0), allow_broadcast=True) as server:
            for sock in server.sockets:
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1

    on_loops(main)


def test_a_system_that_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do."""
    monkeypatch.delattr(socket, "SO_REUSEPORT")

    async def main() -> None:
        with pytest.raises(ValueError, match="need SO_REUSEPORT, which this system lacks; use reuse_port=False"):
            await create_datagram_server(Echo, ("127.0.0.1", 0))
        async with await create_datagram_server(Echo, ("127.0.0.1", 0), reuse_port=False):
            pass

    on_loops(main)


def test_bad_addresses() -> None:
    """Taken, or none; nothing stays open."""

    async def main() -> None:
        with pytest.raises(ValueError, match="one of local_addr and sock must say where to receive; got None and None"):
            await create_datagram_server(Echo)
        with socket.socket(type=socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: address already in use"):
                await create_datagram_server(Echo, ("127.0.0.1", port))

    on_loops(main)


def test_a_protocol_that_cannot_be_made() -> None:
    """On any loop: the error reaches the caller, and the address is free."""

    def factory() -> asyncio.DatagramProtocol:
        raise LookupError("no protocol")

    async def main() -> None:
        with pytest.raises(LookupError, match="no protocol"):
            await create_datagram_server(factory, ("127.0.0.1", 0))

    on_loops(main)


def test_the_runtime_closes_under_it(left: TestLoop) -> None:
    """The sockets are closed with their loops, and who waits is told."""
    with Runtime(loops=3) as runtime:
        server = runtime.run(create_datagram_server(Echo, ("127.0.0.1", 0)))
        waiting = left.spawn(server.wait_closed)
    waiting.result(30)


def test_a_worker_dies_under_it() -> None:
    """The others go on; the kernel gives them what was the dead one's."""
    with Runtime(loops=2) as runtime:
        server = runtime.run(create_datagram_server(Echo, ("127.0.0.1", 0)))
        dead = runtime.workers[0]
        dead.loop.call_soon_threadsafe(dead.loop.stop)
        with pytest.raises(TimeoutError):
            server._handles[1].result(0.01)
        with contextlib.suppress(Exception):
            server._handles[0].result(30)
        dead.ended._block(30, "")
        with peers(server, 20) as socks:
            assert {ask(sock) for sock in socks} == {"polyloop-1"}
        server.close()
        runtime.run(server.wait_closed())


def test_an_endpoint_that_its_protocol_closes() -> None:
    """It is one loop fewer; the server closes as any."""
    with Runtime(loops=1) as runtime:
        server = runtime.run(create_datagram_server(Echo, ("127.0.0.1", 0)))
        with peers(server, 1) as [sock]:
            sock.send(b"close")
            server._handles[0].result(30)
        server.close()
        runtime.run(server.wait_closed())

"""TCP servers over all loops: who gets a connection, and what a handler finds there."""

import asyncio
import contextlib
import contextvars
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import Flavour
from tests.serve.clients import (
    PATIENCE,
    Answer,
    Client,
    accepted,
    address,
    answer,
    close_all,
    connected,
    counts,
    fate,
    on_loops,
    plain,
    serving,
    until,
)

from polyloop import Runtime, create_server, start_server
from polyloop.testing import TestLoop, TestThread


def test_connections_are_spread_evenly_one_at_a_time() -> None:
    """400 over 4 loops: 100 each."""

    async def main() -> list[int]:
        async with serving(start_server(answer, "127.0.0.1", 0)) as server:
            clients = await connected(address(server), 400)
            spread = counts(server)
            await close_all(clients)
            return spread

    assert on_loops(main) == [100] * 4


def test_connections_are_spread_evenly_in_a_burst() -> None:
    """All at once, and held open; each is answered on the loop it was given to."""

    async def main() -> list[int]:
        async with serving(start_server(answer, "127.0.0.1", 0, backlog=500)) as server:
            clients = await asyncio.gather(*[Client.to(address(server)) for _ in range(400)])
            names = await asyncio.gather(*[client.ask() for client in clients])
            assert sorted({name: names.count(name) for name in names}.values()) == sorted(counts(server))
            spread = counts(server)
            await close_all(clients)
            return spread

    assert on_loops(main) == [100] * 4


def test_short_connections_are_spread_evenly() -> None:
    """Each has gone before the next one comes."""

    async def main() -> list[int]:
        async with serving(start_server(answer, "127.0.0.1", 0)) as server:
            for _ in range(400):
                async with await Client.to(address(server)) as client:
                    await client.ask()
                await until(lambda: not any(counts(server)))
            return accepted(server)

    assert all(abs(count - 100) <= 1 for count in on_loops(main))


def test_a_loop_with_long_connections_gets_fewer() -> None:
    """The fewest open ones, not whose turn it is: those of two loops leave, and these two get the next."""

    async def main() -> None:
        async with serving(start_server(answer, "127.0.0.1", 0)) as server:
            clients = [await Client.to(address(server)) for _ in range(80)]
            names = [await client.ask() for client in clients]
            leaving = sorted(set(names))[:2]
            await close_all(client for client, name in zip(clients, names, strict=True) if name in leaving)
            await until(lambda: sum(counts(server)) == 40)
            more = await connected(address(server), 40)
            assert counts(server) == [20] * 4
            await close_all([*clients, *more])

    on_loops(main)


@pytest.mark.parametrize("proto", [0, socket.IPPROTO_TCP])
def test_small_answers_are_not_held_back(proto: int) -> None:
    """TCP_NODELAY is set on each connection, also where the user's socket does not name its protocol."""

    async def main() -> None:
        def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sock = writer.get_extra_info("socket")
            nodelay.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        nodelay: list[int] = []
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, proto)
        sock.bind(("127.0.0.1", 0))
        async with serving(start_server(handle, sock=sock)) as server:
            for _ in range(4):
                async with await Client.to(address(server)) as client:
                    assert await client.end() == "eof"
        assert nodelay == [1] * 4

    on_loops(main)


def test_protocol_factories() -> None:
    """A protocol of each connection is made, and called, on one loop."""

    async def main() -> list[int]:
        async with serving(create_server(Answer, "127.0.0.1", 0)) as server:
            clients = await connected(address(server), 8)
            spread = counts(server)
            for _ in range(3):
                assert len({await client.ask() for client in clients}) == 4
            await close_all(clients)
            return spread

    assert on_loops(main) == [2] * 4


def test_a_factory_that_fails_is_reported_and_costs_one_connection() -> None:
    """Its error reaches the loop's exception handler, whatever its class; the client is reset; others are served."""
    reported: list[dict[str, Any]] = []
    fail = [True]

    def factory() -> Answer:
        if fail.pop() if fail else False:
            raise FileNotFoundError("no template")
        return Answer()

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
        async with serving(create_server(factory, "127.0.0.1", 0)) as server:
            async with await Client.to(address(server)) as client:
                assert await client.end() == "reset"
            async with await Client.to(address(server)) as client:
                await client.ask()

    on_loops(main, loops=1)
    assert [type(context["exception"]) for context in reported] == [FileNotFoundError]


number: contextvars.ContextVar[int] = contextvars.ContextVar("number")


def test_a_handler_has_the_variables_of_who_opened_the_server() -> None:
    """As with asyncio: a copy for each connection, on every loop."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(number.get()).encode())
        number.set(0)
        writer.close()

    async def ask(where: Any) -> bytes:
        client = await Client.to(where)
        async with asyncio.timeout(PATIENCE):
            text = await client.reader.read()
        await client.close()
        return text

    async def main() -> None:
        number.set(7)
        for start in (start_server, asyncio.start_server):
            for reuse_port in (False, True):
                server: Any = await start(handle, "127.0.0.1", 0, reuse_port=reuse_port)
                async with server:
                    number.set(8)
                    assert [await ask(address(server)) for _ in range(8)] == [b"7"] * 8
                    number.set(7)

    on_loops(main)


@contextlib.contextmanager
def if_it_can(flavour: Flavour) -> Iterator[None]:
    """One kind of loop cannot serve, and says so; nothing is left open then."""
    if flavour.name == "rloop":
        with pytest.raises(NotImplementedError, match="connect_accepted_socket"):
            yield
    else:
        yield


def test_without_a_runtime_the_callers_loop_serves(flavour: Flavour) -> None:
    """A plain asyncio program, on every kind of loop."""

    async def main() -> None:
        async with serving(start_server(answer, "127.0.0.1", 0)) as server:
            assert len(server.loads) == 1
            assert server.get_loop() is asyncio.get_running_loop()
            clients = await connected(address(server), 20)
            assert counts(server) == [20]
            assert {await client.ask() for client in clients} == {threading.current_thread().name}
            await close_all(clients)
            await until(lambda: counts(server) == [0])

    with asyncio.Runner(loop_factory=flavour.new) as runner, if_it_can(flavour):
        runner.run(main())


def test_on_every_kind_of_loop(flavour: Flavour) -> None:
    """Over three loops of a runtime, from a plain thread; the count is right when the clients have gone."""
    with Runtime(loops=3, loop_factory=flavour.new) as runtime, if_it_can(flavour):

        async def main() -> None:
            async with serving(start_server(answer, "127.0.0.1", 0)) as server:
                clients = await connected(address(server), 12)
                assert counts(server) == [4] * 3
                await close_all(clients)
                await until(lambda: counts(server) == [0] * 3)

        runtime.run(main())


def test_a_loop_of_others_serves_reuse_port(flavour: Flavour) -> None:
    """Each loop accepts by itself."""
    with Runtime(loops=2, loop_factory=flavour.new) as runtime, if_it_can(flavour):

        async def main() -> None:
            async with serving(start_server(answer, "127.0.0.1", 0, reuse_port=True)) as server:
                clients = await connected(address(server), 20)
                assert sum(counts(server)) == 20
                await close_all(clients)

        runtime.run(main())


def test_a_server_of_plain_threads() -> None:
    """Opened and closed through ``Runtime.run``, asked by blocking clients."""
    with Runtime(loops=2) as runtime:
        server = runtime.run(start_server(answer, "127.0.0.1", 0))
        threads = [TestThread(plain, address(server)) for _ in range(10)]
        socks = [thread.result() for thread in threads]
        assert [fate(sock) for sock in socks] == ["answered"] * 10
        assert counts(server) == [5, 5]
        for sock in socks:
            sock.close()
        server.close()
        runtime.run(server.wait_closed())
        assert server.sockets == ()


def test_a_server_on_the_loops_of_another_runtime(left: TestLoop) -> None:
    """``runtime=`` says whose; the caller is on a loop of its own."""
    with Runtime(loops=3, name="serving") as runtime:
        server = left.run(lambda: start_server(answer, "127.0.0.1", 0, runtime=runtime))
        assert [load.loop for load in server.loads] == [f"serving-{index}" for index in range(3)]

        async def use() -> None:
            async with await Client.to(address(server)) as client:
                assert (await client.ask()).startswith("serving-")
            server.close()
            await server.wait_closed()

        left.run(use)


def test_several_addresses() -> None:
    """One socket each; they share the loops' connections."""

    async def main() -> None:
        async with serving(start_server(answer, ["127.0.0.1", "127.0.0.2"], 0)) as server:
            assert [sock.getsockname()[0] for sock in server.sockets] == ["127.0.0.1", "127.0.0.2"]
            clients = []
            for sock in server.sockets:
                clients += await connected(sock.getsockname(), 4)
            assert counts(server) == [2] * 4
            await close_all(clients)

    on_loops(main)

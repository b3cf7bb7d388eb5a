"""The life of a server, side by side with asyncio's: the same program, and the same answers."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
from tests.serve.clients import Answer, Client, address, answer, close_all, may_bind, on_loops, until

import polyloop

type Start = Callable[..., Any]


@pytest.fixture(params=[polyloop.start_server, asyncio.start_server], ids=["polyloop", "asyncio"])
def start(request: pytest.FixtureRequest) -> Start:
    """Ours and asyncio's."""
    chosen: Start = request.param
    return chosen


@pytest.mark.parametrize("create", [polyloop.create_server, None], ids=["polyloop", "asyncio"])
def test_a_protocol_server(create: Any) -> None:
    """The methods of the loop's own."""

    async def main() -> None:
        make = create or asyncio.get_running_loop().create_server
        async with await make(Answer, "127.0.0.1", 0) as server, await Client.to(address(server)) as client:
            await client.ask()

    on_loops(main)


def test_a_server_serves_until_it_is_closed(start: Start) -> None:
    """``close`` may be called again; the address is free when that is seen through."""

    async def main() -> None:
        server = await start(answer, "127.0.0.1", 0)
        where = address(server)
        assert server.is_serving()
        async with await Client.to(where) as client:
            await client.ask()
        server.close()
        assert not server.is_serving()
        assert server.sockets == ()
        server.close()
        await server.wait_closed()
        await server.wait_closed()
        assert may_bind(where)
        with pytest.raises(ConnectionError):
            await Client.to(where)

    on_loops(main)


def test_one_that_does_not_serve_yet(start: Start) -> None:
    """``start_serving=False`` binds; ``start_serving`` begins, once."""

    async def main() -> None:
        server = await start(answer, "127.0.0.1", 0, start_serving=False)
        assert not server.is_serving()
        with pytest.raises(ConnectionError):
            await Client.to(address(server))
        await server.start_serving()
        assert server.is_serving()
        await server.start_serving()
        async with await Client.to(address(server)) as client:
            await client.ask()
        server.close()
        await server.wait_closed()

    on_loops(main)


def test_one_that_never_served_closes(start: Start) -> None:
    """Nothing is left of it."""

    async def main() -> None:
        server = await start(answer, "127.0.0.1", 0, start_serving=False)
        where = address(server)
        server.close()
        await server.wait_closed()
        assert may_bind(where)

    on_loops(main)


def test_open_connections_outlive_the_close(start: Start) -> None:
    """``wait_closed`` waits for them; an impatient waiter may give up."""

    async def main() -> None:
        server = await start(answer, "127.0.0.1", 0)
        clients = [await Client.to(address(server)) for _ in range(4)]
        for client in clients:
            await client.ask()
        server.close()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await server.wait_closed()
        for client in clients:
            await client.ask()
        waiting = asyncio.create_task(server.wait_closed())
        for client in clients:
            assert not waiting.done()
            await client.close()
        await waiting

    on_loops(main)


def test_wait_closed_waits_for_the_close(start: Start) -> None:
    """Also with no connection."""

    async def main() -> None:
        server = await start(answer, "127.0.0.1", 0)
        waiting = asyncio.create_task(server.wait_closed())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.shield(waiting)
        server.close()
        await waiting

    on_loops(main)


@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
def test_connections_are_closed_or_cut(start: Start, how: str) -> None:
    """The server serves on."""

    async def main() -> None:
        async with await start(answer, "127.0.0.1", 0) as server:
            clients = [await Client.to(address(server)) for _ in range(4)]
            for client in clients:
                await client.ask()
            getattr(server, how)()
            for client in clients:
                assert await client.end() in ("eof", "reset")
            async with await Client.to(address(server)) as client:
                await client.ask()
            await close_all(clients)

    on_loops(main)


def test_what_was_written_is_sent_before_a_close(start: Start) -> None:
    """``close_clients`` is in good order: a megabyte that a handler has written arrives."""
    size = 1 << 20

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * size)
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []  # one that is dropped closes

    async def main() -> None:
        async with await start(handle, "127.0.0.1", 0) as server:
            client = await Client.to(address(server))
            await until(lambda: writers)
            server.close_clients()
            assert len(await client.reader.read()) == size
            await client.close()

    on_loops(main)


def test_the_block_closes(start: Start) -> None:
    """``async with``, also when it is left by an error."""

    async def main() -> None:
        with contextlib.suppress(LookupError):
            async with await start(answer, "127.0.0.1", 0) as server:
                where = address(server)
                raise LookupError
        assert not server.is_serving()
        assert may_bind(where)

    on_loops(main)


@pytest.fixture
def ends_its_clients(start: Start) -> Start:
    """asyncio's own server left its clients alone before 3.13.1, and waited for them (gh-123720)."""
    if start is not polyloop.start_server and sys.version_info < (3, 13, 1):
        pytest.skip("asyncio's own serve_forever() waits for clients here")
    return start


@pytest.mark.parametrize("serving", [True, False])
def test_serve_forever_is_cancelled(ends_its_clients: Start, serving: bool) -> None:
    """It closes the server and its connections, and raises."""

    async def main() -> None:
        server = await ends_its_clients(answer, "127.0.0.1", 0, start_serving=serving)
        where = address(server)
        forever = asyncio.create_task(server.serve_forever())
        await until(server.is_serving)
        clients: list[Client] = []
        while len(clients) < 4:
            with contextlib.suppress(ConnectionError):
                clients.append(await Client.to(where))
                await clients[-1].ask()
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        for client in clients:
            assert await client.end() == "eof"
        await close_all(clients)
        assert may_bind(where)

    on_loops(main)


def test_serve_forever_ends_with_the_server(ends_its_clients: Start) -> None:
    """Somebody closes it: its connections are closed too, and it raises ``CancelledError``."""

    async def main() -> None:
        server = await ends_its_clients(answer, "127.0.0.1", 0)
        forever = asyncio.create_task(server.serve_forever())
        async with await Client.to(address(server)) as client:
            await client.ask()
            server.close()
            with pytest.raises(asyncio.CancelledError):
                await forever
            assert forever.cancelled()
            assert await client.end() == "eof"

    on_loops(main)


def test_serve_forever_is_for_one(start: Start) -> None:
    """And not for a server that is closed."""

    async def main() -> None:
        server = await start(answer, "127.0.0.1", 0)
        forever = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already being awaited"):
            await server.serve_forever()
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        with pytest.raises(RuntimeError, match="is closed"):
            await server.serve_forever()

    on_loops(main)


def test_serve_forever_closes_those_that_wait() -> None:
    """What the kernel has accepted when it ends is closed too, and not waited for."""

    async def main() -> None:
        server = await polyloop.start_server(answer, "127.0.0.1", 0)
        forever = asyncio.create_task(server.serve_forever())
        async with await Client.to(address(server)) as client:
            await client.ask()
        waiting = await asyncio.gather(*[Client.to(address(server)) for _ in range(50)])
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        for client in waiting:
            assert await client.end() in ("eof", "reset")
        await close_all(waiting)

    on_loops(main)


def test_a_closed_server_does_not_start() -> None:
    """asyncio's fails with a TypeError of its own parts."""

    async def main() -> None:
        server = await polyloop.start_server(answer, "127.0.0.1", 0, start_serving=False)
        server.close()
        with pytest.raises(RuntimeError, match=r"<Server 127.0.0.1:\d+ closed loops=2> is closed; open another"):
            await server.start_serving()
        await server.wait_closed()

    on_loops(main, loops=2)


def test_a_server_is_closed_from_everywhere() -> None:
    """By several threads and loops at once; all waiters see its end."""
    with polyloop.Runtime(loops=3) as runtime:
        server = runtime.run(polyloop.start_server(answer, "127.0.0.1", 0))

        async def close() -> None:
            server.close()
            await server.wait_closed()

        handles = [runtime.spawn(close, on=worker) for worker in runtime.workers]
        server.close()
        for handle in handles:
            handle.result(30)
        assert repr(server).endswith(" closed loops=3>")


def test_a_server_is_started_by_several_at_once() -> None:
    """It starts once, and each returns when it serves; one more that is closed meanwhile ends."""
    with polyloop.Runtime(loops=3) as runtime:
        for _ in range(20):
            server = runtime.run(polyloop.start_server(answer, "127.0.0.1", 0, start_serving=False))

            async def use() -> None:
                await server.start_serving()  # noqa: B023 - awaited within its turn
                async with await Client.to(address(server)) as client:  # noqa: B023
                    await client.ask()

            handles = [runtime.spawn(use, on=worker) for worker in runtime.workers]
            for handle in handles:
                handle.result(30)
            server.close()
            runtime.run(server.wait_closed())


def test_a_server_closed_while_it_starts() -> None:
    """Whatever comes first: it ends, and nothing is left open."""
    with polyloop.Runtime(loops=2) as runtime:
        for _ in range(50):
            server = runtime.run(polyloop.start_server(answer, "127.0.0.1", 0, start_serving=False))
            where = address(server)
            starting = runtime.submit(server.start_serving(), on=runtime.workers[0])
            server.close()
            with contextlib.suppress(RuntimeError):
                starting.result(30)
            runtime.run(server.wait_closed())
            assert may_bind(where)

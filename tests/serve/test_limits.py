"""How many connections a server takes on, and what becomes of those beyond."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.serve.clients import (
    Client,
    accepted,
    address,
    answer,
    close_all,
    connected,
    counts,
    on_loops,
    refused,
    serving,
    until,
)

from polyloop import start_server
from polyloop.serve import Server


async def turns(server: Server) -> int:
    """How often the acceptor looks within a quarter of a second in which nothing happens."""
    acceptor = server._acceptor
    count = 0
    select: Callable[..., Any] = acceptor._selector.select

    def counted(timeout: float | None = None) -> Any:
        nonlocal count
        count += 1
        return select(timeout)

    acceptor._selector.select = counted  # type: ignore[method-assign]
    await asyncio.sleep(0.25)  # not a wait for anything: the time over which is counted
    return count


@pytest.mark.parametrize("limits", [{"max_connections": 8}, {"max_connections_per_loop": 2}], ids=str)
@pytest.mark.parametrize("hung_after", [None, 0.7])
def test_those_beyond_the_limit_wait_in_the_backlog(limits: dict[str, Any], hung_after: float | None) -> None:
    """They are served when others have gone, in their order; the acceptor sleeps meanwhile."""

    async def main() -> None:
        async with serving(start_server(answer, "127.0.0.1", 0, hung_after=hung_after, **limits)) as server:
            inside = await connected(address(server), 8)
            assert counts(server) == [2] * 4
            waiting = [await Client.to(address(server)) for _ in range(12)]
            answers = [asyncio.create_task(client.ask()) for client in waiting]
            assert await turns(server) < 10
            assert not any(answer.done() for answer in answers)
            for left in range(8):
                await inside.pop().close()
                await answers[left]
                assert sum(counts(server)) == 8
            assert not any(answer.done() for answer in answers[8:])
            await close_all(waiting[:8])
            await asyncio.gather(*answers)
            await close_all(waiting[8:])
            assert sum(accepted(server)) == 20
            assert server.refused == 0

    on_loops(main)


@pytest.mark.parametrize("limits", [{"max_connections": 8}, {"max_connections_per_loop": 2}], ids=str)
def test_those_beyond_the_limit_are_refused(limits: dict[str, Any]) -> None:
    """By a reset, at once; when one has gone the next is served."""

    async def main() -> None:
        async with serving(start_server(answer, "127.0.0.1", 0, when_full="refuse", **limits)) as server:
            inside = await connected(address(server), 8)
            for _ in range(10):
                assert await refused(address(server))
            assert server.refused == 10
            await inside.pop().close()
            await until(lambda: sum(counts(server)) == 7)
            async with await Client.to(address(server)) as client:
                await client.ask()
            await close_all(inside)

    on_loops(main)


@pytest.mark.parametrize("when_full", ["wait", "refuse"])
def test_a_loop_that_accepts_by_itself_has_its_own_limit(when_full: Any) -> None:
    """With ``reuse_port`` on one loop: the kernel has no choice, and the loop counts."""

    async def main() -> None:
        async with serving(
            start_server(answer, "127.0.0.1", 0, reuse_port=True, max_connections_per_loop=2, when_full=when_full)
        ) as server:
            inside = await connected(address(server), 2)
            if when_full == "refuse":
                assert await refused(address(server))
                assert server.refused == 1
            else:
                async with await Client.to(address(server)) as third:
                    asked = asyncio.create_task(third.ask())
                    await (await Client.to(address(server))).close()  # nor does it lose one that gives up
                    assert not asked.done()
                    await inside.pop().close()
                    await asked
            await close_all(inside)

    on_loops(main, loops=1)


def test_a_limit_of_all_loops_cannot_be_kept_with_reuse_port() -> None:
    """Each loop counts its own."""

    async def main() -> None:
        with pytest.raises(ValueError, match="max_connections=8 cannot be counted with reuse_port=True"):
            await start_server(answer, "127.0.0.1", 0, reuse_port=True, max_connections=8)

    on_loops(main)


def test_reuse_port_gives_every_loop_its_share() -> None:
    """The kernel's hash is not even, but nobody gets nothing of 400."""

    async def main() -> None:
        async with serving(start_server(answer, "127.0.0.1", 0, reuse_port=True)) as server:
            assert len({sock.getsockname() for sock in server.sockets}) == 1
            clients = [await Client.to(address(server)) for _ in range(400)]
            names = [await client.ask() for client in clients]
            assert sorted(counts(server)) == sorted(names.count(name) for name in set(names))
            assert min(counts(server)) > 40
            await close_all(clients)

    on_loops(main)

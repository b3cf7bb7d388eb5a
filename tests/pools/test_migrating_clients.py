"""Real clients in tasks that migrate: what they await keeps the task on its loop, and between two uses it moves.

asyncpg and redis through their pools, aiohttp through a session for each loop, websockets pinned to the loop of its
connection. Every answer is checked, and counted.
"""

import asyncio
import importlib
import random
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from tests.pools.postgres_service import PostgresServer
from tests.pools.redis_service import RedisServer

import polyloop

LOOPS, TASKS, CAP = 3, 6, 4

type Use = Callable[[int], Awaitable[int]]


@contextmanager
def echo_servers() -> Iterator[tuple[str, str]]:
    """An HTTP and a WebSocket server on a loop of their own: their addresses."""
    web: Any = pytest.importorskip("aiohttp.web")
    server: Any = pytest.importorskip("websockets.asyncio.server")
    addresses: deque[tuple[str, str]] = deque()
    ready, over = threading.Event(), polyloop.Event()

    async def answer(request: Any) -> Any:
        return web.Response(text=request.query["number"])

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with server.serve(echo, "127.0.0.1", 0) as sockets:
            http = runner.addresses[0][1]
            ws = next(iter(sockets.sockets)).getsockname()[1]
            addresses.append((f"http://127.0.0.1:{http}/", f"ws://127.0.0.1:{ws}/"))
            ready.set()
            await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait()
    try:
        yield addresses[0]
    finally:
        over.set()
        thread.join()


@asynccontextmanager
async def clients(postgres: str, redis: str, http: str, ws: str) -> AsyncIterator[dict[str, Use]]:
    """How to have a number echoed through each client."""
    asyncpg: Any = importlib.import_module("polyloop.pools.asyncpg")
    redis_pool: Any = importlib.import_module("polyloop.pools.redis")
    aiohttp: Any = importlib.import_module("polyloop.pools.aiohttp")
    connect: Any = importlib.import_module("websockets.asyncio.client").connect
    async with (
        asyncpg.create_pool(postgres, max_size=CAP) as pool,
        redis_pool.from_url(redis, max_connections=CAP) as server,
        aiohttp.client_sessions(max_connections=CAP) as sessions,
    ):

        async def query(number: int) -> int:
            async with pool.acquire() as connection, connection.transaction():
                await polyloop.checkpoint()  # it has a connection of this loop in hand, and stays
                return int(await connection.fetchval("select $1::int", number))

        async def store(number: int) -> int:
            key = f"number {number}"
            await server.set(key, number)
            await polyloop.checkpoint()
            return int(await server.getdel(key))

        async def get(number: int) -> int:
            async with sessions().get(http, params={"number": number}) as response:
                return int(await response.text())

        async def exchange(number: int) -> int:
            async with polyloop.pinned(), connect(ws) as connection:
                for part in range(3):
                    await connection.send(str(number + part))
                    await polyloop.sleep(0)
                    assert int(await connection.recv()) == number + part
            return number

        yield {"asyncpg": query, "redis": store, "aiohttp": get, "websockets": exchange}


def use_all(rng: random.Random, seconds: float, postgres: PostgresServer, redis: RedisServer) -> None:
    """So many tasks with each client, on all loops, some of them cancelled: each answer is that of its own question."""
    asked: deque[str] = deque()
    answered: deque[str] = deque()
    given_up: deque[str] = deque()
    threads: deque[int] = deque(maxlen=10_000)
    until = time.monotonic() + seconds

    async def ask(name: str, use: Use, seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < until:
            number = dice.randrange(1_000_000_000)
            asked.append(name)
            try:
                async with asyncio.timeout(dice.choice([None, None, None, dice.random() * 0.02])):
                    assert await use(number) == number
            except TimeoutError:
                given_up.append(name)
            else:
                answered.append(name)
            sum(range(dice.randrange(20_000)))  # something that makes others wait
            await polyloop.checkpoint()
            threads.append(threading.get_ident())

    async def main(http: str, ws: str) -> None:
        async with clients(postgres.dsn, redis.url, http, ws) as uses, polyloop.TaskGroup(migratable=True) as tg:
            for name, use in uses.items():
                for _ in range(TASKS):
                    tg.create_task(ask(name, use, rng.randrange(2**32)))

    with echo_servers() as (http, ws):
        polyloop.run(main(http, ws), loops=LOOPS)
    assert len(set(threads)) == LOOPS, "they move"
    each = Counter(answered)
    assert set(each) == {"asyncpg", "redis", "aiohttp", "websockets"}
    assert min(each.values()) >= TASKS
    assert Counter(asked) == each + Counter(given_up)
    print(f"\n{dict(each)}, given up {dict(Counter(given_up))}")


@pytest.fixture(autouse=True)
def needed() -> None:
    """All of them are there."""
    for name in ("asyncpg", "redis", "aiohttp", "websockets"):
        pytest.importorskip(name)


def test_clients_in_tasks_that_migrate(rng: random.Random, postgres: PostgresServer, redis_server: RedisServer) -> None:
    """For a moment; see below."""
    use_all(rng, 1.0, postgres, redis_server)


@pytest.mark.stress
def test_clients_in_tasks_that_migrate_for_long(
    rng: random.Random, seconds: float, postgres: PostgresServer, redis_server: RedisServer
) -> None:
    """For as long as the stress lasts."""
    use_all(rng, seconds, postgres, redis_server)

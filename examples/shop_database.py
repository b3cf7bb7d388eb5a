"""A service on all loops over PostgreSQL, with ten connections for the whole process.

    python shop_database.py postgresql://user@host/database           # any database; it cleans up after itself

asyncpg's own pool belongs to one loop, so a service on eight loops needs eight of them: eight times the connections, or
an eighth of them each, where one loop waits beside the idle connections of another. Here one pool serves all loops: a
connection still belongs to a loop, and the pool to the process. Each purchase is a transaction, and computes a receipt
on the loop of its client's connection.
"""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import polyloop
from polyloop.pools import asyncpg

CAP = 10
CUSTOMERS, PURCHASES = 40, 5
_TABLE = "polyloop_example_stock"


async def buy(request: Request) -> JSONResponse:
    """One item less in stock, and a receipt."""
    item = int(request.path_params["item"])
    async with request.app.state.pool.acquire() as connection, connection.transaction():
        left = await connection.fetchval(f"update {_TABLE} set left_ = left_ - 1 where item = $1 returning left_", item)
    receipt = hashlib.pbkdf2_hmac("sha256", f"{item}/{left}".encode(), b"salt", 2000).hex()
    return JSONResponse({"left": left, "receipt": receipt})


def app_for(pool: asyncpg.Pool) -> Starlette:
    """One application for each loop; the pool is the same in all of them."""
    app = Starlette(routes=[Route("/buy/{item:int}", buy, methods=["POST"])])
    app.state.pool = pool
    return app


async def customer(client: httpx.AsyncClient, number: int) -> list[int]:
    """Buys several times; what was left each time."""
    answers = [(await client.post(f"/buy/{number % 3}")).raise_for_status() for _ in range(PURCHASES)]
    return [answer.json()["left"] for answer in answers]


@asynccontextmanager
async def stocked(pool: asyncpg.Pool) -> AsyncIterator[None]:
    """The table, for as long as the example runs."""
    await pool.execute(f"create table {_TABLE} (item int primary key, left_ int not null)")
    try:
        await pool.executemany(f"insert into {_TABLE} values ($1, $2)", [(item, 1000) for item in range(3)])
        yield
    finally:
        await pool.execute(f"drop table {_TABLE}")


async def main(dsn: str) -> None:
    settings = {"application_name": "polyloop example"}
    async with asyncpg.create_pool(dsn, max_size=CAP, server_settings=settings) as pool, stocked(pool):
        async with (
            httpx.AsyncClient() as client,  # its connections go to all loops
            polyloop.ASGIServer(lambda: app_for(pool), factory=True, port=0, access_log=False) as server,
        ):
            client.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            left: list[list[int]] = await asyncio.gather(*(customer(client, number) for number in range(CUSTOMERS)))
        connections = await pool.fetchval(
            "select count(*) from pg_stat_activity where application_name = $1", settings["application_name"]
        )
        sold: Any = await pool.fetchval(f"select sum(1000 - left_) from {_TABLE}")
        stats = pool.stats()
    assert sold == CUSTOMERS * PURCHASES
    assert len({(number % 3, each) for number, seen in enumerate(left) for each in seen}) == sold, "each was sold once"
    assert connections <= CAP
    assert stats.created - stats.closed <= CAP
    loops = len(polyloop.current_runtime().workers)
    print(f"{sold} sold on {loops} loops over {connections} connections, which were lent {stats.loans} times")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: shop_database.py postgresql://user@host/database")
    polyloop.run(main(sys.argv[1]), loops=4)

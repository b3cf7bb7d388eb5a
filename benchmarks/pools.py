"""Pools: what a loan costs, what several loops gain from one pool, and what they lose with a pool each.

``lending`` needs no server: resources that cost nothing to make, so that what is left is the pool. Its limit is the
price of a call to another loop, measured in the same run.

The others query a PostgreSQL server of their own on the same machine, through asyncpg. Its processes want the cores,
too; the CPU work per row is chosen so that they do not count for much.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import polyloop
from benchmarks._measure import Report, in_turn, medians
from polyloop.pools import ResourcePool

LOANS, HANDS = 20_000, 2_000

#: One pool's connections, and how many requests are at work at once on each loop.
CONNECTIONS, CLIENTS = 8, 16

#: Requests of one measurement, and the rows of each.
REQUESTS, ROWS = 600, 40

_TABLE = f"""
    create table orders as
    select number / {ROWS} as customer, number, repeat(md5(number::text), 2) as text, now() as at
    from generate_series(0, 100 * {ROWS} - 1) as number
"""
_INDEX = "create index on orders (customer)"
_QUERY = "select number, text, at from orders where customer = $1"

#: Skewed load: loops, connections for all of them, the seconds that the server sleeps for a request, and the share of
#: the requests that comes to one loop; which one changes after each part.
LOOPS, CAP, QUERY_SECONDS, SHARE, PARTS = 4, 8, 0.004, 0.85, 4
SKEWED_REQUESTS = 1600
SKEWED_CLIENTS = 48


# What a loan costs


class _Thing:
    """What is lent."""


async def _create() -> _Thing:
    return _Thing()


def _close(thing: _Thing) -> None:
    """Nothing to be done."""


def lending(rounds: int) -> Report:
    """Microseconds of a loan and its return from the own free list, and of a hand-over from loop to loop.

    Where two tasks take turns on each loop, a hand-over comes with two loans, and the other loop has to wait for longer
    than it spins: the system's wake-up is part of those figures.
    """
    report = Report("one loan and its return", "µs")
    with polyloop.Runtime(loops=2) as runtime:
        first, second = runtime.workers
        rivals: dict[str, Callable[[], float]] = {
            "own free list": lambda: float(runtime.spawn(_own, on=first).result()),
            "a call to another loop": lambda: float(runtime.spawn(_calls, second, on=first).result()),
            "from loop to loop, closed and made anew": lambda: _in_turns(runtime, tasks=1, loop_bound=True),
            "from loop to loop, as it is": lambda: _in_turns(runtime, tasks=1, loop_bound=False),
            "the same with two tasks each, closed and made anew": lambda: _in_turns(runtime, tasks=2, loop_bound=True),
            "the same with two tasks each, as it is": lambda: _in_turns(runtime, tasks=2, loop_bound=False),
        }
        report.figures = medians(rivals, rounds)
    call = report.figures["a call to another loop"]
    report.at_most("own free list, µs", report.figures["own free list"], 3.0)
    for case in ("closed and made anew", "as it is"):
        report.at_most(
            f"from loop to loop, {case}, against a call", report.figures[f"from loop to loop, {case}"] / call, 3
        )
    return report


async def _own() -> float:
    pool = ResourcePool(_create, _close, max_size=2)
    async with pool.acquire():
        pass
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(LOANS):
        async with pool.acquire():
            pass
    took = loop.time() - began
    await pool.close()
    return took / LOANS * 1e6


async def _noop() -> None:
    pass


async def _calls(other: polyloop.Worker) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(HANDS):
        await polyloop.spawn(_noop, on=other)
    return (loop.time() - began) / HANDS * 1e6


def _in_turns(runtime: polyloop.Runtime, *, tasks: int, loop_bound: bool) -> float:
    """So many tasks on each of two loops want the only one there is, in turn: µs of each hand-over."""
    pool = ResourcePool(_create, _close, max_size=1, patience=0.0, loop_bound=loop_bound)

    async def take() -> None:
        for _ in range(HANDS):
            async with pool.acquire():
                pass

    began = time.perf_counter()
    handles = [runtime.spawn(take, on=worker) for worker in runtime.workers * tasks]
    for handle in handles:
        handle.result()
    took = time.perf_counter() - began
    stats = pool.stats()
    runtime.spawn(pool.close).result()
    return took / (stats.moved + stats.reclaimed) * 1e6


# Against a server


@contextmanager
def _server(report: Report) -> Iterator[str | None]:
    """A PostgreSQL server's address; ``None``, with a note, where there is none."""
    try:
        import asyncpg  # noqa: F401
        from tests.pools.postgres_service import PostgresServer
        from tests.pools.services import Unavailable
    except ImportError as error:
        report.notes.append(f"left out: {error}")
        yield None
        return
    try:
        server = PostgresServer(max_connections=60)
    except Unavailable as error:
        report.notes.append(f"left out: {error}")
        yield None
        return
    with server:
        for statement in (_TABLE, _INDEX, "analyze orders", "grant select on orders to public"):
            server.execute(statement)
        yield server.dsn


@dataclass(slots=True)
class _Record:
    number: int
    title: str
    words: list[str]
    at: str


def _rendered(row: Any) -> str:
    """A row of a page: an object, counts of its words, and their text. Some 50 µs, most of it for what is allocated."""
    text = row["text"]
    record = _Record(row["number"], text.title(), [text[at : at + 4] for at in range(0, 40, 4)], row["at"].isoformat())
    cells: list[str] = []
    for column in range(6):
        counts: dict[str, int] = {}
        for word in record.words:
            key = f"{word}{column}"
            counts[key] = counts.get(key, 0) + len(word)
        cells.append("<td>" + ", ".join(f"{word}: {count}" for word, count in counts.items()) + "</td>")
    return f"<tr id={record.number} title={record.title!r} at={record.at}>{''.join(cells)}</tr>"


def _work(rows: list[Any]) -> int:
    """What a service does with a result."""
    return sum(len(_rendered(row)) for row in rows)


async def _clients(request: Callable[[], Awaitable[object]], clients: int, requests: int) -> float:
    """Requests a second of so many clients on this loop."""
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            await request()

    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(client() for _ in range(clients)))
    return loop.time() - began


def query(rounds: int) -> Report:
    """Requests a second: a query and work on its rows; one loop with asyncpg's pool, one and two loops with ours."""
    report = Report(f"a query of {ROWS} rows, and work on each row", "requests/s")
    with _server(report) as dsn:
        if dsn is None:
            return report
        theirs, one, two = "asyncpg's pool, 1 loop", "polyloop, 1 loop", "polyloop, 2 loops"
        rivals: dict[str, Callable[[], float]] = {
            theirs: lambda: asyncio.run(_with_their_pool(dsn)),
            one: lambda: _with_our_pool(dsn, 1),
            two: lambda: _with_our_pool(dsn, 2),
        }
        for rival in rivals.values():
            rival()
        report.figures = medians(rivals, rounds)
        report.at_least(
            "2 loops with one pool against one with asyncpg's", report.figures[two] / report.figures[theirs], 1.6
        )
    return report


async def _with_their_pool(dsn: str) -> float:
    import asyncpg

    async with asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
        customers = itertools.count()

        async def request() -> int:
            async with pool.acquire() as connection:
                rows = await connection.fetch(_QUERY, next(customers) % 100)
            return _work(rows)

        return REQUESTS / await _clients(request, 2 * CLIENTS, REQUESTS)


def _with_our_pool(dsn: str, loops: int) -> float:
    from polyloop.pools.asyncpg import create_pool

    async def main() -> float:
        async with create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            customers = itertools.count()

            async def request() -> int:
                async with pool.acquire() as connection:
                    rows = await connection.fetch(_QUERY, next(customers) % 100)
                return _work(rows)

            async def share() -> float:
                return await _clients(request, 2 * CLIENTS // loops, REQUESTS // loops)

            workers = polyloop.current_runtime().workers
            handles = [polyloop.spawn(share, on=worker) for worker in workers]
            return REQUESTS / max([await handle for handle in handles])

    return polyloop.run(main(), loops=loops)


# Skewed load


def skew(rounds: int) -> Report:
    """Requests a second and the 99th percentile of the wait: most requests come to one loop, and then to another."""
    report = Report(f"{SHARE:.0%} of the requests on one of {LOOPS} loops, {CAP} connections", "requests/s, ms")
    with _server(report) as dsn:
        if dsn is None:
            return report
        separate, shared = f"asyncpg, {LOOPS} pools of {CAP // LOOPS}", f"polyloop, one pool of {CAP}"
        rivals = {
            separate: lambda: polyloop.run(_skewed(_separate(dsn)), loops=LOOPS),
            shared: lambda: polyloop.run(_skewed(_shared(dsn)), loops=LOOPS),
        }
        seen = in_turn(rivals, rounds)
        for name, results in seen.items():
            report.figures[name] = statistics.median(rate for rate, _ in results)
            report.figures[f"p99 wait, ms: {name}"] = statistics.median(wait for _, wait in results)
        rate = report.figures[shared] / report.figures[separate]
        wait = report.figures[f"p99 wait, ms: {shared}"] / report.figures[f"p99 wait, ms: {separate}"]
        report.at_least("throughput of one pool against separate ones", rate, 1.5)
        report.at_most("p99 wait of one pool against separate ones", wait, 0.5)
    return report


type _Acquire = Callable[[], Any]


@asynccontextmanager
async def _separate(dsn: str) -> AsyncIterator[_Acquire]:
    """A pool of asyncpg's for each loop, as one has to without us."""
    import asyncpg

    async def make() -> Any:
        size = CAP // LOOPS
        return await asyncpg.create_pool(dsn, min_size=size, max_size=size)

    async with polyloop.pools.per_loop(make) as pools:

        @asynccontextmanager
        async def acquire() -> AsyncIterator[Any]:
            async with (await pools()).acquire() as connection:
                yield connection

        yield acquire


@asynccontextmanager
async def _shared(dsn: str) -> AsyncIterator[_Acquire]:
    from polyloop.pools.asyncpg import create_pool

    async with create_pool(dsn, min_size=CAP, max_size=CAP) as pool:
        yield pool.acquire


async def _skewed(opening: Any) -> tuple[float, float]:
    """Requests a second, and the 99th percentile of the wait for a connection in ms."""
    async with opening as acquire:
        workers = polyloop.current_runtime().workers
        await _part(acquire, workers, 0, 200)  # every loop has connections then
        loop = asyncio.get_running_loop()
        began = loop.time()
        waits: list[float] = []
        for part in range(PARTS):
            waits += await _part(acquire, workers, part % LOOPS, SKEWED_REQUESTS // PARTS)
        took = loop.time() - began
        return SKEWED_REQUESTS / took, statistics.quantiles(waits, n=100)[98] * 1e3


async def _part(acquire: _Acquire, workers: Any, busy: int, requests: int) -> list[float]:
    """Some requests by as many clients at once, most of them on one loop; how long each waited."""
    rng = random.Random(busy)
    left = [0] * len(workers)
    for _ in range(requests):
        left[busy if rng.random() < SHARE else rng.randrange(len(workers))] += 1
    clients = [max(1, round(SKEWED_CLIENTS * share / requests)) for share in left]
    handles = [
        polyloop.spawn(_waits, acquire, count, number, on=worker)
        for worker, count, number in zip(workers, clients, left, strict=True)
    ]
    return [wait for handle in handles for wait in await handle]


async def _waits(acquire: _Acquire, clients: int, requests: int) -> list[float]:
    loop = asyncio.get_running_loop()
    waits: list[float] = []

    async def request() -> None:
        began = loop.time()
        async with acquire() as connection:
            waits.append(loop.time() - began)
            await connection.execute(f"select pg_sleep({QUERY_SECONDS})")

    await _clients(request, clients, requests)
    return waits

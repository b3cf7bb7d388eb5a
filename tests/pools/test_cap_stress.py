"""Everything at once against real servers: 4 loops, a cap of 6, 100,000 queries, cancelled, failing and cut off.

The server itself counts: it never sees more connections than the cap. Every query is answered with its own number, or
ends with an error that the client documents, or is cancelled. Afterwards nothing is left, and the order in which
callers were served was kept to within the patience, as the pool itself decided it and as they saw it.
"""

import asyncio
import contextlib
import importlib
import random
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from tests.pools.postgres_service import PostgresServer
from tests.pools.redis_service import RedisServer

import polyloop
from polyloop.pools import ResourcePool
from polyloop.pools._ledger import Ledger

LOOPS, CAP, CLIENTS = 4, 6, 32
QUERIES = 100_000
PATIENCE = 0.1

#: What a wait may add to what is stated: to make a connection while other programs use the machine, in seconds.
CONNECTING = 5.0


class Contender:
    """One client: how to open its pool, ask, fail, and what it may raise when the server cuts a connection off."""

    gone: tuple[type[BaseException], ...]

    def opened(self) -> contextlib.AbstractAsyncContextManager[Any]:
        raise NotImplementedError

    def core(self, pool: Any) -> ResourcePool[Any]:
        """The pool underneath."""
        core: ResourcePool[Any] = pool
        return core

    async def echo(self, pool: Any, number: int, slow: bool) -> int:
        raise NotImplementedError

    async def fail(self, pool: Any) -> None:
        """A query that is refused, with the client's own error."""
        raise NotImplementedError


class Asyncpg(Contender):
    def __init__(self, server: PostgresServer) -> None:
        self.client: Any = pytest.importorskip("asyncpg")
        self.ours: Any = importlib.import_module("polyloop.pools.asyncpg")
        self.dsn = server.dsn
        client = self.client
        self.gone = (
            OSError, client.PostgresConnectionError, client.InterfaceError, client.OperatorInterventionError,
            client.InternalClientError,
        )  # fmt: skip

    def opened(self) -> Any:
        return self.ours.create_pool(self.dsn, max_size=CAP, patience=PATIENCE)

    async def echo(self, pool: Any, number: int, slow: bool) -> int:
        sleep = ", pg_sleep(0.005)" if slow else ""
        return int(await pool.fetchval(f"select $1::int{sleep}", number))

    async def fail(self, pool: Any) -> None:
        with pytest.raises(self.client.DivisionByZeroError):
            await pool.fetchval("select 1 / 0")


class Psycopg(Contender):
    def __init__(self, server: PostgresServer) -> None:
        self.client: Any = pytest.importorskip("psycopg")
        self.ours: Any = importlib.import_module("polyloop.pools.psycopg")
        self.dsn = server.dsn
        self.gone = (self.client.OperationalError, self.client.InterfaceError)

    def opened(self) -> Any:
        return self.ours.AsyncConnectionPool(self.dsn, max_size=CAP, patience=PATIENCE)

    async def echo(self, pool: Any, number: int, slow: bool) -> int:
        sleep = ", pg_sleep(0.005)" if slow else ""
        async with pool.connection() as connection:
            cursor = await connection.execute(f"select %s::int{sleep}", (number,))
            return int((await cursor.fetchone())[0])

    async def fail(self, pool: Any) -> None:
        with pytest.raises(self.client.errors.DivisionByZero):
            async with pool.connection() as connection:
                await connection.execute("select 1 / 0")


class Redis(Contender):
    def __init__(self, server: RedisServer) -> None:
        self.client: Any = pytest.importorskip("redis")
        self.ours: Any = importlib.import_module("polyloop.pools.redis")
        self.url = server.url
        self.gone = (OSError, self.client.ConnectionError)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        async with self.ours.from_url(self.url, max_connections=CAP, patience=PATIENCE) as client:
            yield client

    def core(self, pool: Any) -> ResourcePool[Any]:
        core: ResourcePool[Any] = pool.connection_pool._pool
        return core

    async def echo(self, pool: Any, number: int, slow: bool) -> int:
        if slow:
            return int(await pool.eval("for i = 1, 3000 do end return ARGV[1]", 0, number))
        return int(await pool.echo(str(number)))

    async def fail(self, pool: Any) -> None:
        with pytest.raises(self.client.ResponseError):
            await pool.execute_command("NO-SUCH-COMMAND")


@contextmanager
def judged(pool: ResourcePool[Any]) -> Iterator[list[float]]:
    """Look over the ledger's shoulder: by how much each caller that it serves came later than one that it passes over.

    Less what is added to the patience where connecting takes long. Under the pool's lock, so what is seen there is what
    was decided upon.
    """
    judged_one: Any = pool._shared._ledger
    verdict = Ledger.verdict
    overtaken: list[float] = []

    def judge(ledger: Any, desk: Any, own: float | None, since: float, now: float) -> Any:
        decided = verdict(ledger, desk, own, since, now)
        if ledger is judged_one and decided.what == "serve" and own is not None:
            _, expecting = ledger._pending(desk)
            excepted = {desk, *expecting, *(other for other, account in ledger._accounts.items() if account.granted)}
            passed_over = [
                at for other in ledger._accounts if other not in excepted for at in ledger.applications(other).values()
            ]
            if passed_over:
                overtaken.append(own - min(passed_over) - (ledger.patience - PATIENCE))
        return decided

    Ledger.verdict = judge  # type: ignore[method-assign,assignment]
    try:
        yield overtaken
    finally:
        Ledger.verdict = verdict  # type: ignore[method-assign]


class Progress:
    """What became of the queries, counted by any thread."""

    def __init__(self) -> None:
        self.ends: deque[str] = deque()
        self.waits: deque[float] = deque()
        self._more = threading.Condition()

    def note(self, end: str) -> None:
        self.ends.append(end)
        if not len(self.ends) % 50:
            with self._more:
                self._more.notify_all()

    def wait_for(self, count: int) -> bool:
        """Until so many have ended."""
        with self._more:
            return self._more.wait_for(lambda: len(self.ends) >= count, timeout=60)


async def query(contender: Contender, pool: Any, number: int, rng: random.Random) -> str:
    """One query; how it ended."""
    dice = rng.random()
    try:
        if dice < 0.02:
            await contender.fail(pool)
            return "failed"
        limit = rng.random() * 0.01 if dice < 0.1 else None
        async with asyncio.timeout(limit):
            assert await contender.echo(pool, number, slow=dice < 0.06) == number
    except TimeoutError:
        return "cancelled"
    except contender.gone:
        return "cut off"
    return "answered"


async def client(contender: Contender, pool: Any, numbers: Iterator[int], seed: int, progress: Progress) -> None:
    """One query after the other; sometimes a task that is cancelled from outside."""
    rng = random.Random(seed)
    for number in numbers:
        task = asyncio.create_task(query(contender, pool, number, rng))
        if rng.random() < 0.03:
            await asyncio.sleep(rng.random() * 0.002)
            task.cancel()
        try:
            progress.note(await task)
        except asyncio.CancelledError:
            progress.note("cancelled")


async def all_clients(contender: Contender, count: int, seed: int, progress: Progress) -> ResourcePool[Any]:
    numbers = iter(deque(range(count)))
    taken = threading.Lock()

    def shared() -> Iterator[int]:
        while True:
            with taken:
                number = next(numbers, None)
            if number is None:
                return
            yield number

    async with contender.opened() as pool:
        core = contender.core(pool)
        with judged(core) as overtaken:
            workers = polyloop.current_runtime().workers
            handles = [
                polyloop.spawn(client, contender, pool, shared(), seed + number, progress, on=workers[number % LOOPS])
                for number in range(CLIENTS)
            ]
            for handle in handles:
                await handle
        assert max(overtaken, default=0.0) <= PATIENCE
        stats = core.stats()
        assert (stats.in_use, stats.waiting) == (0, 0)
        assert stats.waits.longest <= PATIENCE + CONNECTING
        print(f"\n{stats.loans} loans, {stats.created} made, {stats.reclaimed} reclaimed, {stats.broken} broken")
        print(f"longest wait {stats.waits.longest:.3f} s; overtaken by up to {max(overtaken, default=0):.3f} s")
        return core


def run_it(contender: Contender, cut_off: Callable[[], object], count: int, seed: int) -> Counter[str]:
    """All of them, while connections are cut off from outside; how the queries ended."""
    progress = Progress()
    began = time.monotonic()
    with polyloop.Runtime(loops=LOOPS) as runtime:
        handle = runtime.submit(all_clients(contender, count, seed, progress))
        for reached in range(300, count, 1000):
            if not progress.wait_for(reached) or handle.done():
                break
            with contextlib.suppress(AssertionError):  # nobody was connected at that moment
                cut_off()
        core = handle.result(300)
    ends = Counter(progress.ends)
    print(f"{dict(ends)} in {time.monotonic() - began:.1f} s")
    assert sum(ends.values()) == count
    assert ends["answered"] > count * 0.6
    assert ends["cancelled"]
    stats = core.stats()
    assert (stats.size, stats.created, stats.lost) == (0, stats.closed, 0)
    return ends


def how_many(seconds: float) -> int:
    """All of them in a minute or more, fewer in a shorter test."""
    return int(QUERIES * min(1.0, seconds / 60)) or 1


@pytest.mark.stress
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", [Asyncpg, Psycopg])
def test_postgres_never_sees_more_than_the_cap(postgres: PostgresServer, kind: Any, seed: int, seconds: float) -> None:
    """Whatever happens to queries and connections."""
    with postgres.peak() as peak:
        ends = run_it(kind(postgres), postgres.terminate_one, how_many(seconds), seed)
    postgres.wait_for_connections(0)
    print(f"most connections: {peak.highest}, in {peak.samples} samples")
    assert 1 <= peak.highest <= CAP
    assert ends["failed"]


@pytest.mark.stress
@pytest.mark.timeout(0)
def test_redis_never_sees_more_than_the_cap(redis_server: RedisServer, seed: int, seconds: float) -> None:
    """Whatever happens to commands and connections."""
    with redis_server.peak() as peak:
        run_it(Redis(redis_server), redis_server.kill_one, how_many(seconds), seed)
    redis_server.wait_for_connections(0)
    print(f"most connections: {peak.highest}, in {peak.samples} samples")
    assert 1 <= peak.highest <= CAP

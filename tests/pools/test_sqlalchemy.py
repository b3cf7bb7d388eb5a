"""SQLAlchemy's engines on all loops, on a real server: the cap, errors, cancellation, its pools' promises, the end."""

import asyncio
import collections
import contextlib
import gc
import importlib
import random
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from tests.conftest import FREE_THREADED, Flavour
from tests.pools.postgres_service import PostgresServer

import polyloop
from polyloop.pools import ForeignLoopError, PoolBusyError, PoolClosedError
from polyloop.testing import TestLoop, TestThread

if FREE_THREADED:  # where it is not installed on 3.13; builds with a GIL have it
    pytest.importorskip("greenlet", reason="SQLAlchemy needs greenlet, which switches the GIL on in free-threaded 3.13")

sqlalchemy: Any = importlib.import_module("sqlalchemy")
sa: Any = importlib.import_module("sqlalchemy.ext.asyncio")
asyncpg: Any = importlib.import_module("asyncpg")
ours: Any = importlib.import_module("polyloop.pools.sqlalchemy")

CAP = 6

#: What SQLAlchemy makes of a server that goes away, is away, or is coming back; it lets some errors through,
#: asyncpg's for a farewell that comes between the messages of one query, for example.
GONE = (
    OSError,
    sqlalchemy.exc.DBAPIError,
    sqlalchemy.exc.PendingRollbackError,
    asyncpg.InternalClientError,
    asyncpg.PostgresError,  # of connecting, which older versions of SQLAlchemy do not translate
)


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, postgres: PostgresServer) -> str:
    """Where the server is, by each driver in turn."""
    return postgres.dsn.replace("postgresql:", f"postgresql+{request.param}:")


async def on_all_loops(count: int, job: Callable[[int], Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of ``job`` for each number, run by the tasks of a group."""
    async with polyloop.TaskGroup() as group:
        handles = [group.create_task(job(number)) for number in range(count)]
    return [await handle for handle in handles]


async def ask(connection: Any, query: str, **values: object) -> Any:
    return (await connection.execute(sqlalchemy.text(query), values)).scalar_one()


async def echo(source: Any, number: int) -> int:
    """A query that says whose it was, by an engine or by that of the running loop."""
    engine = source() if callable(source) else source
    async with engine.connect() as connection:
        answer: int = await ask(connection, "select cast(:number as integer)", number=number)
        return answer


async def take_all(engine: Any, size: int) -> set[int]:
    """Borrow all connections at once and use them; which processes serve them."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(engine.connect()) for _ in range(size)]
        return set(await asyncio.gather(*(ask(one, "select pg_backend_pid()") for one in connections)))


def sleeps(postgres: PostgresServer) -> bool:
    """Whether the server is in the middle of ``pg_sleep``."""
    return bool(postgres.execute("select 1 from pg_stat_activity where wait_event = 'PgSleep'"))


@contextlib.asynccontextmanager
async def cut_short(postgres: PostgresServer, connection: Any) -> AsyncIterator[None]:
    """A query that is running in the block and is cancelled at its end."""
    task = asyncio.create_task(ask(connection, "select pg_sleep(60)"))
    while not sleeps(postgres):
        await asyncio.sleep(0)
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def run[T](main: Callable[[], Coroutine[Any, Any, T]], loops: int = 4) -> T:
    return polyloop.run(main(), loops=loops)


# The cap


def test_four_loops_never_have_more_connections_than_the_cap(postgres: PostgresServer, url: str) -> None:
    """Every query is answered, and the server sees the cap, exactly."""

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=CAP) as engines:
            for _ in range(3):
                assert await on_all_loops(60, lambda number: echo(engines, number)) == list(range(60))
            assert engines.stats().loans == 180
            assert len(engines._instances) > 1

    with postgres.peak() as seen:
        run(main)
    assert seen.highest == CAP


def test_a_wait_that_is_too_long_is_sqlalchemys_error(url: str, postgres: PostgresServer) -> None:
    """``pool_timeout`` raises what its own pool does; ``max_waiting`` refuses at once."""

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=1, max_waiting=1, name="small") as engines:
            async with engines().connect():
                engines._timeout = 0.01
                with pytest.raises(sqlalchemy.exc.TimeoutError, match=r"within 0\.01 s.*'small'"):
                    await echo(engines(), 1)
                engines._timeout = None
                waiting = asyncio.create_task(echo(engines(), 1))
                while not engines.stats().waiting:
                    await asyncio.sleep(0)
                with pytest.raises(PoolBusyError, match="max_waiting=1"):
                    await echo(engines(), 2)
                assert "1 waiting" in engines().sync_engine.pool.status()
            assert await waiting == 1

    run(main, 1)


# Its own loop only


async def connected(engine: Any) -> Any:
    connection = await engine.connect()
    assert await ask(connection, "select 1") == 1
    await connection.commit()
    return connection


async def begun(engine: Any) -> Any:
    connection = await engine.connect()
    assert await ask(connection, "select 1") == 1
    return connection


async def session(engine: Any) -> Any:
    made = sa.AsyncSession(engine)
    assert await ask(made, "select 1") == 1
    return made


MISUSES: dict[str, tuple[Callable[[Any], Coroutine[Any, Any, Any]], Callable[[Any], Any]]] = {
    "execute": (connected, lambda connection: ask(connection, "select 2")),
    "commit": (begun, lambda connection: connection.commit()),
    "rollback": (begun, lambda connection: connection.rollback()),
    "session": (session, lambda made: ask(made, "select 2")),
    "flush": (session, lambda made: made.commit()),
}


@pytest.mark.parametrize("kind", MISUSES)
def test_use_on_another_loop_names_both_loops_and_the_line(
    url: str, left: TestLoop, right: TestLoop, kind: str
) -> None:
    """The error says where it belongs, where it was used, and where it was borrowed; its driver is not touched."""
    begin, use = MISUSES[kind]
    engines = ours.create_async_engine(url, max_size=1)

    async def start() -> Any:
        return await begin(engines())

    async def misuse(holder: Any) -> None:
        await use(holder)

    async def close(holder: Any) -> None:
        await holder.close()

    holder = left.run(start)
    with pytest.raises(ForeignLoopError) as caught:
        right.run(misuse, holder)
    assert repr(left.worker.name) in str(caught.value) and repr(right.worker.name) in str(caught.value)
    where = "ask" if begin is session else begin.__name__  # a session borrows when it is used
    assert re.search(rf"made at .*test_sqlalchemy\.py:\d+ in {where}\b", str(caught.value))
    assert (caught.value.owner, caught.value.user) == (left.worker.name, right.worker.name)
    left.run(close, holder)
    assert engines.stats().in_use == 0
    right.run(engines.aclose)


def test_an_engine_is_refused_on_another_loop(url: str, left: TestLoop, right: TestLoop) -> None:
    """It goes on working on its own."""
    engines = ours.create_async_engine(url, max_size=1)

    async def mine() -> Any:
        return engines()

    async def dispose(engine: Any) -> None:
        await engine.dispose()

    engine = left.run(mine)
    assert left.run(echo, engine, 1) == 1
    for misuse, arguments in ((echo, (engine, 2)), (dispose, (engine,))):
        with pytest.raises(ForeignLoopError, match=r"an AsyncEngine belongs to 'left' \(made at .*test_sqlalchemy\.py"):
            right.run(misuse, *arguments)
    assert left.run(echo, engine, 3) == 3
    assert engines.stats().created == 1
    left.run(engines.aclose)


def test_what_is_closed_on_another_loop_is_dropped(
    url: str, left: TestLoop, right: TestLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused, and its own loop closes it: nobody knows what was done with it."""
    engines = ours.create_async_engine(url, max_size=1)

    async def start() -> Any:
        return await connected(engines())

    async def close(connection: Any) -> None:
        await connection.close()

    connection = left.run(start)
    with pytest.raises(ForeignLoopError, match="belongs to 'left'"):
        right.run(close, connection)
    assert "Exception during reset" in caplog.text

    async def other() -> int:
        return await echo(engines(), 7)

    assert right.run(other) == 7
    assert engines.stats().broken == 1
    left.run(engines.aclose)


# Cancellation


def test_cancelled_queries_leave_all_connections_usable(postgres: PostgresServer, url: str, rng: random.Random) -> None:
    """However they are cut short: no answer is mixed up, no place lost, and the cap holds."""
    delays = [rng.uniform(0, 0.02) for _ in range(120)]

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=CAP) as engines:

            async def one(number: int) -> int:
                try:
                    async with asyncio.timeout(delays[number]):
                        return await echo(engines, number)
                except TimeoutError:
                    return number

            assert await on_all_loops(120, one) == list(range(120))
            assert await on_all_loops(60, lambda number: echo(engines, number)) == list(range(60))
            assert len(await take_all(engines(), CAP)) == CAP
            assert engines.stats().in_use == 0

    with postgres.peak() as seen:
        run(main)
    assert seen.highest <= CAP


def test_a_query_that_is_cancelled_gives_its_place_back(postgres: PostgresServer, url: str) -> None:
    """When the server has let go of it, as far as SQLAlchemy drops the connection."""

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=1) as engines:
            for number in range(4):
                async with engines().connect() as connection, cut_short(postgres, connection):
                    pass
                assert await echo(engines(), number) == number

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1
    assert not sleeps(postgres)


def test_a_connect_that_is_cancelled_keeps_its_place(postgres: PostgresServer, url: str, rng: random.Random) -> None:
    """A loan that connects anew and is cut short: the next one waits until the server has let go of what was begun."""
    delays = [rng.uniform(0, 0.02) for _ in range(60)]

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=1, pool_recycle=0) as engines:
            for number, delay in enumerate(delays):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        assert await echo(engines, number) == number
            assert await echo(engines, 7) == 7

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


# What breaks


def test_a_connection_that_the_server_ends_is_replaced(postgres: PostgresServer, url: str) -> None:
    """SQLAlchemy's error and a new one; with ``pool_pre_ping`` not even that. It is the same place at all times."""

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=1) as engines:
            await echo(engines(), 1)
            postgres.terminate_one()
            with pytest.raises(sqlalchemy.exc.DBAPIError) as caught:
                await echo(engines(), 2)
            assert caught.value.connection_invalidated
            assert await echo(engines(), 3) == 3
            async with engines().connect() as connection:
                task = asyncio.create_task(ask(connection, "select pg_sleep(60)"))
                while not sleeps(postgres):
                    await asyncio.sleep(0)
                postgres.terminate_one()
                with pytest.raises(GONE):
                    await task
            assert await echo(engines(), 4) == 4
        async with ours.create_async_engine(url, max_size=1, pool_pre_ping=True) as engines:
            for number in range(4):
                assert await echo(engines(), number) == number
                postgres.terminate_one()
            assert engines.stats().created == 1  # the record; SQLAlchemy connects it again

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


def test_connections_made_anew_in_their_place_wait_for_the_server(postgres: PostgresServer, url: str) -> None:
    """``invalidate`` and ``pool_recycle`` close and connect again in one loan: the server sees one after the other."""

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=1) as engines:
            pids = set()
            async with engines().connect() as connection:
                for _ in range(5):
                    pids.add(await ask(connection, "select pg_backend_pid()"))
                    await connection.invalidate()
                    await connection.rollback()
            assert len(pids) == 5
            assert engines.stats().in_use == 0
        async with ours.create_async_engine(url, max_size=1, pool_recycle=0) as engines:
            pids = set()
            for _ in range(5):
                pids |= await take_all(engines(), 1)
            assert len(pids) == 5

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_is_survived(postgres: PostgresServer, url: str, mode: str) -> None:
    """Queries fail with SQLAlchemy's errors as long as it is away, and work again when it is there."""

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=CAP) as engines:

            async def one(number: int) -> int:
                try:
                    return await echo(engines, number)
                except GONE:
                    return -1

            assert await on_all_loops(20, one) == list(range(20))
            restart = asyncio.create_task(polyloop.to_thread(postgres.restart, mode))
            while not restart.done():
                await on_all_loops(10, one)
            await restart
            while -1 in await on_all_loops(20, one):
                pass
            assert engines.stats().in_use == 0

    run(main)


def test_a_server_that_is_down_is_an_error_at_once(postgres: PostgresServer, url: str) -> None:
    """Nobody waits for a connection that cannot be made, and no place is lost."""
    postgres.stop()

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=2) as engines:

            async def one(number: int) -> None:
                with pytest.raises(GONE):
                    await echo(engines(), number)

            await on_all_loops(10, one)
            assert engines.stats().size == 0
            postgres.start()
            assert await echo(engines(), 1) == 1

    run(main)


# What SQLAlchemy's pools promise


def test_a_transaction_that_was_left_open_is_rolled_back(postgres: PostgresServer, url: str) -> None:
    """``pool_reset_on_return`` is SQLAlchemy's."""

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=1) as engines:
            raw = await engines().raw_connection()
            cursor = await sqlalchemy.util.greenlet_spawn(raw.cursor)
            await sqlalchemy.util.greenlet_spawn(cursor.execute, "create table left_open (number int)")
            await sqlalchemy.util.greenlet_spawn(raw.close)
            assert not postgres.execute("select 1 from pg_tables where tablename = 'left_open'")
            assert await echo(engines(), 1) == 1
            assert engines.stats().created == 1

    run(main, 1)


def test_events_and_other_engines_options(url: str, postgres: PostgresServer) -> None:
    """``configure`` sees each loop's engine; its pool's events come as always."""
    seen: collections.Counter[str] = collections.Counter()
    configured: list[Any] = []

    def configure(engine: Any) -> None:
        configured.append(engine)
        for name in ("connect", "checkout", "checkin", "close"):
            sqlalchemy.event.listen(engine.sync_engine, name, lambda *_, name=name: seen.update([name]))

    async def main() -> None:
        async with ours.create_async_engine(
            url, max_size=1, configure=configure, isolation_level="SERIALIZABLE"
        ) as engines:
            for _ in range(2):
                async with engines().connect() as connection:
                    assert await ask(connection, "show transaction_isolation") == "serializable"
            assert engines() is engines() and configured == [engines()]

    run(main, 1)
    assert seen == {"connect": 1, "checkout": 2, "checkin": 2, "close": 1}


def test_dispose_closes_what_the_loop_has(postgres: PostgresServer, url: str, left: TestLoop, right: TestLoop) -> None:
    """What lies idle at once, what is lent when it comes back; the engine works on, and others are not touched."""
    engines = ours.create_async_engine(url, max_size=3)

    async def take_here(size: int) -> set[int]:
        return await take_all(engines(), size)

    async def main(other: set[int]) -> None:
        before = await take_here(2)
        connection = await engines().connect()
        kept = await ask(connection, "select pg_backend_pid()")
        await engines().dispose()
        assert set(postgres.pids()) == other | {kept}
        await connection.close()
        assert len(before & await take_here(2)) == 0
        assert engines.stats().in_use == 0

    there = right.run(take_here, 1)
    left.run(main, there)
    assert right.run(take_here, 1) == there
    right.run(engines.aclose)


def test_a_detached_connection_counts_until_it_is_closed(postgres: PostgresServer, url: str) -> None:
    """Its place is free when the server has let go of it. What SQLAlchemy would never close is refused, and closed."""

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=1) as engines:
            raw = await engines().raw_connection()
            if not engines().dialect.has_terminate:
                with pytest.raises(sqlalchemy.exc.InvalidRequestError, match="'psycopg' cannot be detached"):
                    await sqlalchemy.util.greenlet_spawn(raw.detach)
                assert await echo(engines(), 1) == 1
                return
            await sqlalchemy.util.greenlet_spawn(raw.detach)
            waiting = asyncio.create_task(echo(engines(), 1))
            while not engines.stats().waiting:
                await asyncio.sleep(0)
            assert engines.stats().size == 1
            await sqlalchemy.util.greenlet_spawn(raw.close)
            assert await waiting == 1
            assert engines.stats().created == 2

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_a_forgotten_connection_gives_its_place_back(postgres: PostgresServer, url: str, where: str) -> None:
    """SQLAlchemy warns and ends it, wherever it is collected; another is made when the server has let go of it."""

    def forget(held: list[Any]) -> None:
        with pytest.warns(sqlalchemy.exc.SAWarning, match="garbage collector is trying to clean up"):  # noqa: PT031
            held.clear()
            gc.collect()

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=1) as engines:
            held = [await engines().connect()]
            if where == "here":
                forget(held)
            else:
                await polyloop.to_thread(forget, held)
            assert await echo(engines(), 1) == 1
            stats = engines.stats()
            assert (stats.created, stats.broken, stats.in_use) == (2, 1, 0)

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


def test_sessions_of_the_orm_on_all_loops(postgres: PostgresServer, url: str) -> None:
    """A session maker for each loop; what is committed on one is seen on all."""
    orm: Any = importlib.import_module("sqlalchemy.orm")
    base: Any = orm.declarative_base()

    class Shop(base):  # type: ignore[misc]
        __tablename__ = "orm_shop"
        id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)
        town = sqlalchemy.Column(sqlalchemy.String)

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=CAP) as engines:
            sessions = polyloop.per_loop(lambda: sa.async_sessionmaker(engines(), expire_on_commit=False))
            async with engines().begin() as connection:
                await connection.run_sync(base.metadata.create_all)

            async def add(number: int) -> str:
                async with sessions()() as session, session.begin():
                    session.add(Shop(id=number, town=f"town {number}"))
                async with sessions()() as session:
                    shop = await session.get(Shop, number)
                    return str(shop.town)

            assert await on_all_loops(40, add) == [f"town {number}" for number in range(40)]
            async with sessions()() as session:
                count = sqlalchemy.select(sqlalchemy.func.count()).select_from(Shop)
                assert (await session.execute(count)).scalar_one() == 40
            async with engines().begin() as connection:
                await connection.run_sync(base.metadata.drop_all)

    with postgres.peak() as seen:
        run(main)
    assert seen.highest <= CAP


def test_options_of_the_pools_that_it_replaces_are_refused() -> None:
    """The cap is one for all loops."""
    for option in ("poolclass", "pool", "pool_size", "max_overflow"):
        with pytest.raises(TypeError, match=f"takes no {option}; give max_size="):
            ours.create_async_engine("postgresql+asyncpg://", **{option: 3})
    with pytest.raises(ValueError, match="max_size must be"):
        ours.create_async_engine("postgresql+asyncpg://", max_size=0)


# The end


@pytest.mark.parametrize("runner", ["asyncio", "polyloop"])
def test_engines_that_nobody_closes_end_with_their_loops(postgres: PostgresServer, url: str, runner: str) -> None:
    """The server sees all connections end, one that something still holds as well."""
    kept: list[Any] = []

    async def main() -> None:
        engines = ours.create_async_engine(url, max_size=4)
        kept.append(engines)
        if runner == "asyncio":
            assert await asyncio.gather(*(echo(engines, number) for number in range(8))) == list(range(8))
        else:
            assert await on_all_loops(8, lambda number: echo(engines, number)) == list(range(8))
        kept.append(await connected(engines()))

    if runner == "asyncio":
        asyncio.run(main())
    else:
        run(main)
    assert postgres.connections() == 0
    assert (kept[0].stats().size, kept[0].stats().lost) == (0, 0)


def test_closed_engines_are_made_no_more(postgres: PostgresServer, url: str) -> None:
    """And a query that runs when the time is up ends with SQLAlchemy's error, at the server too."""

    async def main() -> None:
        engines = ours.create_async_engine(url, max_size=1)
        engine = engines()
        connection = await engine.connect()
        task = asyncio.create_task(ask(connection, "select pg_sleep(60)"))
        while not sleeps(postgres):
            await asyncio.sleep(0)
        await engines.aclose(timeout=0)
        assert postgres.connections() == 0
        with pytest.raises(GONE):
            await task
        with contextlib.suppress(*GONE):
            await connection.close()
        with pytest.raises(PoolClosedError):
            await echo(engine, 1)
        with pytest.raises(PoolClosedError):
            engines()

    run(main, 1)


# Every kind of loop


def skip_what_cannot_connect(flavour: Flavour, url: str) -> None:
    """asyncpg does not work on rloop by itself: its transports write no memoryviews."""
    if flavour.name == "rloop" and "asyncpg" in url:
        pytest.skip("asyncpg cannot connect on rloop")


def test_each_kind_of_loop(postgres: PostgresServer, url: str, flavour: Flavour, any_loop: TestLoop) -> None:
    """Queries, a cancelled one, one that the server ends, and the end."""
    skip_what_cannot_connect(flavour, url)

    async def main() -> None:
        async with ours.create_async_engine(url, max_size=3) as engines:
            engine = engines()
            assert await asyncio.gather(*(echo(engine, number) for number in range(20))) == list(range(20))
            async with engine.connect() as connection, cut_short(postgres, connection):
                pass
            assert len(await take_all(engine, 3)) == 3
            async with engine.connect() as connection:
                with pytest.raises(GONE):
                    await ask(connection, "select pg_terminate_backend(pg_backend_pid())")
            assert await echo(engine, 1) == 1

    with postgres.peak() as seen:
        any_loop.run(main)
    assert seen.highest == 3


def test_threads_with_loops_of_their_own(postgres: PostgresServer, url: str, flavour: Flavour) -> None:
    """No runtime is needed: each loop gives up what it has idle when another needs it."""
    if flavour.name == "rloop":
        pytest.skip("rloop closes descriptors of others when loops end in several threads")
    engines = ours.create_async_engine(url, max_size=2)

    async def main() -> list[int]:
        return [await echo(engines, number) for number in range(20)]

    def thread() -> list[int]:
        with asyncio.Runner(loop_factory=flavour.new) as runner:
            return runner.run(main())

    with postgres.peak() as seen:
        threads = [TestThread(thread) for _ in range(4)]
        assert [each.result() for each in threads] == [list(range(20))] * 4
    assert seen.highest <= 2


# What is missing


def test_without_sqlalchemy_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra, as for pip."""
    monkeypatch.setitem(sys.modules, "greenlet", None)
    monkeypatch.delitem(sys.modules, "polyloop.pools.sqlalchemy")
    with pytest.raises(ImportError, match=re.escape("pip install 'polyloop[sqlalchemy]'")):
        importlib.import_module("polyloop.pools.sqlalchemy")


# A race


async def use(engine: Any, dice: random.Random) -> None:
    """One use of a connection: it answers, fails, or loses it."""
    kind, number = dice.random(), dice.randrange(1000)
    async with engine.connect() as connection:
        if kind < 0.1:
            with pytest.raises(sqlalchemy.exc.DBAPIError, match="division by zero"):
                await ask(connection, "select 1 / 0")
            await connection.rollback()
        elif kind < 0.2:
            await ask(connection, "select 1")
            await connection.commit()
        elif kind < 0.22:
            await connection.invalidate()
        elif kind < 0.24:
            await ask(connection, "select pg_terminate_backend(pg_backend_pid())")
        elif kind < 0.25 and engine.dialect.has_terminate:
            raw = await connection.get_raw_connection()
            await sqlalchemy.util.greenlet_spawn(raw.detach)
        else:
            query = "select cast(:number as integer) from pg_sleep(0.0005)"
            assert await ask(connection, query, number=number) == number


async def race(url: str, rng: random.Random, seconds: float) -> collections.Counter[str]:
    """Queries on all loops, some of which are cancelled; how they ended."""
    until = time.monotonic() + seconds

    async def one(seed: int) -> collections.Counter[str]:
        dice, ends = random.Random(seed), collections.Counter[str]()
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(dice.uniform(0, 0.05) if dice.random() < 0.3 else 20):
                    await use(engines(), dice)
                ends["answered"] += 1
            except TimeoutError:
                ends["cancelled"] += 1
            except GONE:
                ends["lost"] += 1
            if dice.random() < 0.01:
                await engines().dispose()
        return ends

    seeds = [rng.randrange(1 << 32) for _ in range(16)]
    async with ours.create_async_engine(url, max_size=CAP) as engines:
        ends = await on_all_loops(16, lambda number: one(seeds[number]))
        gc.collect()  # connections that were cancelled while they were being closed
        assert len(await take_all(engines(), CAP)) == CAP
        stats = engines.stats()
        assert (stats.in_use, stats.waiting) == (0, 0)
    assert engines.stats().size == 0
    return sum(ends, collections.Counter[str]())


def go_through(postgres: PostgresServer, url: str, rng: random.Random, seconds: float) -> None:
    with postgres.peak() as seen:
        ends = polyloop.run(race(url, rng, seconds), loops=4)
    assert seen.highest <= CAP and postgres.connections() == 0
    assert ends["answered"]
    print(dict(ends), "peak", seen.highest, "in", seen.samples, "samples")


def test_a_race_of_everything(postgres: PostgresServer, url: str, rng: random.Random, seconds: float) -> None:
    """Whatever happens to queries on four loops, the cap holds and no place is lost."""
    go_through(postgres, url, rng, seconds)


@pytest.mark.stress
def test_a_long_race_of_everything(postgres: PostgresServer, url: str, rng: random.Random, seconds: float) -> None:
    """As above, for long."""
    go_through(postgres, url, rng, seconds)

"""psycopg's connections in a pool for all loops, on a real server: the cap, transactions, errors, cancellation."""

import asyncio
import collections
import contextlib
import importlib
import random
import re
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.conftest import Flavour
from tests.pools.postgres_service import PostgresServer

import polyloop
from polyloop.pools import ForeignLoopError, PoolBusyError, PoolClosedError
from polyloop.pools._hang_up import has_hung_up, spare, until_hung_up
from polyloop.testing import TestLoop, TestThread

try:
    psycopg: Any = importlib.import_module("psycopg")
    ours: Any = importlib.import_module("polyloop.pools.psycopg")
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

CAP = 6

#: What psycopg raises when a server goes away, is away, or is coming back.
GONE = psycopg.OperationalError


def make_pool(postgres: PostgresServer, max_size: int = CAP, **options: Any) -> Any:
    return ours.AsyncConnectionPool(postgres.dsn, max_size=max_size, open=False, **options)


async def on_all_loops(count: int, job: Callable[[int], Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of ``job`` for each number, run by the tasks of a group."""
    async with polyloop.TaskGroup() as group:
        handles = [group.create_task(job(number)) for number in range(count)]
    return [await handle for handle in handles]


async def value(connection: Any, query: str, *parameters: object) -> Any:
    """The first value of the first row."""
    row = await (await connection.execute(query, parameters or None)).fetchone()
    return row[0]


async def ask(pool: Any, query: str, *parameters: object) -> Any:
    """The same, on a connection of the pool's."""
    async with pool.connection() as connection:
        return await value(connection, query, *parameters)


async def echo(pool: Any, number: int) -> Any:
    """A query that says whose it was."""
    return await ask(pool, "select %s::int", number)


async def take_all(pool: Any, size: int) -> set[int]:
    """Borrow all connections at once and use them; which processes serve them."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(pool.connection()) for _ in range(size)]
        return set(await asyncio.gather(*(value(one, "select pg_backend_pid()") for one in connections)))


def sleeps(postgres: PostgresServer) -> bool:
    """Whether the server is in the middle of ``pg_sleep``."""
    return bool(postgres.execute("select 1 from pg_stat_activity where wait_event = 'PgSleep'"))


def run[T](main: Callable[[], Coroutine[Any, Any, T]], loops: int = 4) -> T:
    return polyloop.run(main(), loops=loops)


# The cap


def test_four_loops_never_have_more_connections_than_the_cap(postgres: PostgresServer) -> None:
    """Every query is answered, and the server sees the cap, exactly."""

    async def main() -> None:
        async with make_pool(postgres) as pool:
            for _ in range(3):
                assert await on_all_loops(100, lambda number: echo(pool, number)) == list(range(100))
            assert pool.stats().loans == 300

    with postgres.peak() as seen:
        run(main)
    assert seen.highest == CAP


def test_a_connection_keeps_its_place_until_the_server_knows_of_its_end(postgres: PostgresServer) -> None:
    """Closing one takes the server a while, above all amid a query; it is replaced after that."""

    async def one(pool: Any) -> None:
        async with pool.connection() as connection:
            task = asyncio.create_task(connection.execute("select pg_sleep(0.3)"))  # psycopg looks after 0.1
            while not sleeps(postgres):
                await asyncio.sleep(0)
            await connection.close()
            with pytest.raises(GONE):
                await task

    async def main() -> None:
        async with make_pool(postgres, 1) as pool:
            for _ in range(2):
                await one(pool)
            await ask(pool, "select pg_sleep(0.02)")
            assert (pool.stats().created, pool.stats().broken) == (3, 2)

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


def test_the_unix_socket_counts_as_well(postgres: PostgresServer) -> None:
    """How the server is reached makes no difference."""

    async def main() -> None:
        async with ours.AsyncConnectionPool(postgres.socket_dsn, max_size=2) as pool:
            assert await on_all_loops(50, lambda number: echo(pool, number)) == list(range(50))

    with postgres.peak() as seen:
        run(main)
    assert seen.highest <= 2


# The wait for the other side


def test_the_wait_ends_with_the_other_side(left: TestLoop) -> None:
    """Data that still comes is passed over; the socket is closed."""
    near, far = socket.socketpair()
    waiting = spare(near.fileno())
    near.close()

    async def main() -> None:
        task = asyncio.create_task(until_hung_up(waiting, 30))
        reached = await polyloop.to_thread(far.recv, 10)
        assert reached == b"" and not task.done()
        far.send(b"late")
        far.close()
        assert await task

    assert not has_hung_up(waiting)
    left.run(main)
    assert waiting.fileno() == -1


def test_a_dead_server_is_not_waited_for(left: TestLoop) -> None:
    """There is a limit, and the socket is not left behind."""
    near, far = socket.socketpair()
    waiting = spare(near.fileno())

    async def main() -> None:
        assert not await until_hung_up(waiting, 0.01)

    with near, far:
        left.run(main)
        assert waiting.fileno() == -1


def test_the_wait_outlasts_its_cancellation(left: TestLoop) -> None:
    """The place of a connection must not be free before the server knows; the caller is cancelled after that."""
    near, far = socket.socketpair()
    waiting = spare(near.fileno())

    async def main() -> None:
        task = asyncio.create_task(until_hung_up(waiting, 30))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        far.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    with near:
        left.run(main)
        assert waiting.fileno() == -1


def test_what_a_socket_says_of_its_other_side() -> None:
    """It is over at its end, at a farewell, and when it is reset; other news do not count, and are not taken away."""
    near, far = socket.socketpair()
    with near, spare(near.fileno()) as looking:
        assert not has_hung_up(looking, b"E")
        far.send(b"A")
        assert not has_hung_up(looking, b"E")
        assert near.recv(1) == b"A"
        far.send(b"E")
        assert has_hung_up(looking, b"E") and not has_hung_up(looking)
        assert near.recv(1) == b"E"
        far.close()
        assert has_hung_up(looking)


# Its own loop only


def test_use_on_another_loop_names_both_loops_and_the_line(
    postgres: PostgresServer, left: TestLoop, right: TestLoop
) -> None:
    """The error says where it belongs, where it was used, and where it was made; the connection goes on working."""
    pool = make_pool(postgres, 1)

    async def borrow() -> Any:
        return await pool.getconn()

    async def use(connection: Any) -> Any:
        return await value(connection, "select 7")

    async def begin(connection: Any) -> Any:
        async with connection.transaction():
            raise AssertionError("it began")

    async def give_back(connection: Any) -> None:
        await pool.putconn(connection)

    connection = left.run(borrow)
    for misuse in (use, begin, give_back):
        with pytest.raises(ForeignLoopError) as caught:
            right.run(misuse, connection)
        assert repr(left.worker.name) in str(caught.value) and repr(right.worker.name) in str(caught.value)
        assert re.search(r"made at .*test_psycopg\.py:\d+ in .*borrow\b", str(caught.value))
        assert (caught.value.owner, caught.value.user) == (left.worker.name, right.worker.name)
    assert left.run(use, connection) == 7
    left.run(give_back, connection)
    right.run(pool.close)


@pytest.mark.parametrize("name", ["", "on_the_server"])
def test_a_cursor_belongs_to_the_loop_of_its_connection(
    postgres: PostgresServer, left: TestLoop, right: TestLoop, name: str
) -> None:
    """Of either kind; also while that loop uses it, where psycopg's would wait for ever."""
    pool = make_pool(postgres, 1)

    async def borrow() -> Any:
        connection = await pool.getconn()
        cursor = connection.cursor(name) if name else connection.cursor()
        await cursor.execute("select * from generate_series(1, 3)")
        return connection, cursor

    async def fetch(cursor: Any) -> Any:
        return await cursor.fetchone()

    async def iterate(cursor: Any) -> Any:
        return [row async for row in cursor]

    async def give_back(connection: Any, cursor: Any) -> None:
        await cursor.close()
        await pool.putconn(connection)

    connection, cursor = left.run(borrow)
    for misuse in (fetch, iterate):
        with pytest.raises(ForeignLoopError, match=r"Cursor\.(fetchone|__anext__)\(\) belongs to 'left'"):
            right.run(misuse, cursor)
    assert left.run(fetch, cursor) == (1,)
    assert left.run(iterate, cursor) == [(2,), (3,)]
    left.run(give_back, connection, cursor)
    left.run(pool.close)


def test_classes_of_the_users_are_guarded_too(postgres: PostgresServer, left: TestLoop, right: TestLoop) -> None:
    """``connection_class`` and ``cursor_factory`` are subclassed; what they add works."""

    class Own(psycopg.AsyncConnection):  # type: ignore[misc]
        async def seven(self) -> Any:
            return await value(self, "select 7")

    class OwnCursor(psycopg.AsyncClientCursor):  # type: ignore[misc]
        pass

    pool = make_pool(postgres, 1, connection_class=Own, kwargs={"cursor_factory": OwnCursor, "autocommit": True})

    async def borrow() -> Any:
        return await pool.getconn()

    async def use(connection: Any) -> Any:
        assert isinstance(connection, Own) and isinstance(connection.cursor(), OwnCursor) and connection.autocommit
        return await connection.seven()

    connection = left.run(borrow)
    assert left.run(use, connection) == 7
    with pytest.raises(ForeignLoopError, match=r"Own\.cursor\(\)"):
        right.run(use, connection)
    left.run(pool.putconn, connection)
    left.run(pool.close)


# Transactions


def test_a_block_commits_or_rolls_back(postgres: PostgresServer) -> None:
    """At its end, by how it ends."""

    async def main() -> None:
        async with make_pool(postgres) as pool:
            async with pool.connection() as connection:
                await connection.execute("drop table if exists blocks")
                await connection.execute("create table blocks (n int)")
            async with pool.connection() as connection:
                await connection.execute("insert into blocks values (1)")
            with pytest.raises(ValueError, match="the caller's"):
                async with pool.connection() as connection:
                    await connection.execute("insert into blocks values (2)")
                    raise ValueError("the caller's")
            with pytest.raises(psycopg.errors.DivisionByZero):
                async with pool.connection() as connection:
                    await connection.execute("insert into blocks values (3)")
                    await connection.execute("select 1/0")
            connection = await pool.getconn()
            await connection.execute("insert into blocks values (4)")
            await pool.putconn(connection)
            async with pool.connection() as connection:
                await connection.execute("insert into blocks values (5)")
                await connection.close()
            assert await ask(pool, "select array_agg(n) from blocks") == [1]
            async with pool.connection() as connection:
                await connection.execute("drop table blocks")

    run(main, 1)


def test_a_commit_that_fails_is_told(postgres: PostgresServer) -> None:
    """The block's end raises psycopg's error, and the connection is lent again, or dropped."""

    async def main() -> None:
        async with make_pool(postgres, 1) as pool:
            with pytest.raises(psycopg.errors.UniqueViolation):
                async with pool.connection() as connection:
                    await connection.execute("create temporary table t (n int unique deferrable initially deferred)")
                    await connection.execute("insert into t values (1), (1)")
            with pytest.raises(GONE):
                async with pool.connection() as connection:
                    await connection.execute("select 1")
                    postgres.terminate_one()
            assert await echo(pool, 1) == 1
            assert (pool.stats().created, pool.stats().broken) == (2, 1)

    run(main, 1)


# Cancellation


def test_cancelled_queries_leave_all_connections_usable(postgres: PostgresServer, rng: random.Random) -> None:
    """Whenever the cancellation comes, the pool has all of its connections afterwards, and not one too many."""
    moments = [rng.uniform(0, 0.02) for _ in range(60)]
    ends: collections.Counter[str] = collections.Counter()

    async def one(pool: Any, number: int) -> str:
        try:
            async with asyncio.timeout(moments[number]):
                await ask(pool, "select pg_sleep(0.01)")
        except TimeoutError:
            return "cancelled"
        return "answered"

    async def main() -> None:
        async with make_pool(postgres) as pool:
            await take_all(pool, CAP)
            ends.update(await on_all_loops(60, lambda number: one(pool, number)))
            assert len(await take_all(pool, CAP)) == CAP
            assert (pool.stats().in_use, pool.stats().idle, pool.stats().size) == (0, CAP, CAP)

    with postgres.peak() as seen:
        run(main)
    assert seen.highest == CAP and ends.total() == 60


def test_a_cancelled_query_ends_and_its_connection_stays(postgres: PostgresServer) -> None:
    """psycopg asks the server to stop it; the transaction is rolled back."""

    async def main() -> None:
        async with make_pool(postgres, 1) as pool:
            task = asyncio.create_task(ask(pool, "select pg_sleep(60)"))
            while not sleeps(postgres):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert postgres.execute("select state from pg_stat_activity where usename = 'polyloop'") == [("idle",)]
            assert await echo(pool, 1) == 1
            assert pool.stats().created == 1

    run(main, 1)


def test_cancelled_twice(postgres: PostgresServer) -> None:
    """Then psycopg gives the connection up, and its place is kept until the server has ended the query."""

    async def main() -> None:
        async with make_pool(postgres, 1) as pool:
            task = asyncio.create_task(ask(pool, "select pg_sleep(0.2)"))
            while not sleeps(postgres):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await echo(pool, 1) == 1
            await seen.look()

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


def test_a_query_that_goes_on_without_its_client_is_stopped(postgres: PostgresServer) -> None:
    """A cancellation may come before its query and be lost; then the pool asks again when it closes the connection."""

    async def main() -> None:
        async with make_pool(postgres, 1, upkeep_timeout=1) as pool:
            connection = await pool.getconn()
            task = asyncio.create_task(connection.execute("select pg_sleep(60)"))
            while not sleeps(postgres):
                await asyncio.sleep(0)
            connection.pgconn.finish()  # as psycopg does when the server does not stop
            with pytest.raises(GONE):
                await task
            await pool.putconn(connection)
            assert await echo(pool, 1) == 1
            await seen.look()

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


# The server's part


def test_a_connection_that_the_server_ends_is_dropped(postgres: PostgresServer) -> None:
    """Whoever uses it gets psycopg's error; who comes next gets another one. One that lies idle is never lent."""

    async def main() -> None:
        async with make_pool(postgres, 2) as pool:
            task = asyncio.create_task(ask(pool, "select pg_sleep(60)"))
            while not sleeps(postgres):
                await asyncio.sleep(0)
            postgres.terminate_one()
            with pytest.raises(GONE):
                await task
            assert await echo(pool, 1) == 1
            assert postgres.terminate_all() == 1
            assert await echo(pool, 2) == 2
            assert (pool.stats().broken, pool.stats().created) == (2, 3)

    run(main, 1)


def test_news_for_an_idle_connection_are_not_its_end(postgres: PostgresServer) -> None:
    """What a server says without being asked can be told from its farewell."""

    async def main() -> None:
        async with make_pool(postgres, 1) as pool:
            await ask(pool, "select 1 from (select pg_sleep(0)) as nothing")
            async with pool.connection() as connection:
                await connection.execute("listen news")
            postgres.execute("notify news")
            assert await echo(pool, 1) == 1
            assert pool.stats().created == 1

    run(main, 1)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_is_survived(postgres: PostgresServer, mode: str) -> None:
    """While it is away callers get psycopg's errors of connections; then all is well without anybody's doing."""
    answers = [0] * 12  # each counted by one task

    async def one(pool: Any, stop: polyloop.Event, number: int) -> None:
        while not stop.is_set():
            try:
                assert await ask(pool, "select 3") == 3
                answers[number] += 1
            except GONE:
                await asyncio.sleep(0)

    async def main() -> None:
        stop = polyloop.Event()
        async with make_pool(postgres) as pool:
            async with polyloop.TaskGroup() as group:
                for number in range(len(answers)):
                    group.create_task(one(pool, stop, number))
                await polyloop.to_thread(postgres.restart, mode)
                answered = sum(answers)
                while sum(answers) < answered + 50:
                    await asyncio.sleep(0)
                stop.set()
            assert await on_all_loops(50, lambda number: echo(pool, number)) == list(range(50))

    with postgres.peak() as seen:
        run(main)
    assert seen.highest <= CAP


def test_a_server_that_is_down_is_an_error_at_once(postgres: PostgresServer) -> None:
    """It is psycopg's own, and ``async with`` shows it early where connections are to be ready."""
    postgres.stop()

    async def main() -> None:
        pool = make_pool(postgres)
        with pytest.raises(GONE, match="refused"):
            await ask(pool, "select 1")
        with pytest.raises(GONE, match="refused"):
            async with make_pool(postgres, min_size=1):
                raise AssertionError("it opened")
        postgres.start()
        assert await echo(pool, 1) == 1
        await pool.close()

    run(main, 2)


# What is returned, and hooks


def test_what_a_session_has_set_is_gone_with_reset_connection(postgres: PostgresServer) -> None:
    """Variables, channels and locks end with the loan where ``reset`` says so; by default they stay."""

    async def main(kept: bool, **options: Any) -> None:
        async with make_pool(postgres, 1, **options) as pool:
            async with pool.connection() as connection:
                pid = connection.info.backend_pid
                await connection.execute("set search_path to nowhere")
                await connection.execute("listen news")
                await connection.execute("select pg_advisory_lock(1)")
            async with pool.connection() as connection:
                assert connection.info.backend_pid == pid
                assert await value(connection, "show search_path") == ("nowhere" if kept else '"$user", public')
                assert await value(connection, "select count(*) from pg_listening_channels()") == kept
                locks = "select count(*) from pg_locks where locktype = 'advisory'"
                assert await value(connection, locks) == kept

    asyncio.run(main(True))
    asyncio.run(main(False, reset=ours.AsyncConnectionPool.reset_connection))


def test_a_reset_that_fails_or_leaves_a_transaction_drops_the_connection(postgres: PostgresServer) -> None:
    """Nobody gets such a connection."""
    way = "fails"

    async def reset(connection: Any) -> None:
        if way == "fails":
            raise ValueError(way)
        await connection.execute("select 1")

    async def main() -> None:
        nonlocal way
        async with make_pool(postgres, 1, reset=reset) as pool:
            pids = [await ask(pool, "select pg_backend_pid()") for way in ("fails", "leaves a transaction", "again")]
            assert len(set(pids)) == 3

    run(main, 1)


def test_configure_is_called_once(postgres: PostgresServer) -> None:
    """With each new connection, on its loop."""
    calls = 0

    async def configure(connection: Any) -> None:
        nonlocal calls
        calls += 1
        await connection.execute("set application_name to 'configured'")
        await connection.commit()

    async def main() -> None:
        async with make_pool(postgres, 1, configure=configure) as pool:
            for _ in range(3):
                assert await ask(pool, "show application_name") == "configured"
        assert calls == 1

    run(main, 1)


def test_an_error_of_configure_closes_the_connection(postgres: PostgresServer) -> None:
    """The caller gets it, and its place is free; leaving a transaction open is such an error."""

    async def fail(connection: Any) -> None:
        raise ValueError("configure")

    async def forget(connection: Any) -> None:
        await connection.execute("select 1")

    async def main() -> None:
        async with make_pool(postgres, 1, configure=fail) as pool:
            for _ in range(3):
                with pytest.raises(ValueError, match="configure"):
                    await ask(pool, "select 1")
        async with make_pool(postgres, 1, configure=forget) as pool:
            with pytest.raises(psycopg.ProgrammingError, match="left in status INTRANS by configure"):
                await ask(pool, "select 1")

    with postgres.peak() as seen:
        run(main, 2)
    assert seen.highest <= 1


def test_check_is_called_before_each_loan_but_the_first(postgres: PostgresServer) -> None:
    """An exception drops the connection, and the next is tried; psycopg_pool's own check is there."""
    checked: list[int] = []

    async def check(connection: Any) -> None:
        checked.append(connection.info.backend_pid)
        await ours.AsyncConnectionPool.check_connection(connection)
        if len(checked) == 1:
            raise ValueError

    async def main() -> None:
        async with make_pool(postgres, 1, check=check) as pool:
            first = await ask(pool, "select pg_backend_pid()")
            second = await ask(pool, "select pg_backend_pid()")
            assert await ask(pool, "select pg_backend_pid()") == second != first
            assert checked == [first, second]

    run(main, 1)


def test_psycopg_pools_names(postgres: PostgresServer) -> None:
    """A program for psycopg_pool's pool runs: opening and closing, waiting with a limit, too many who wait."""

    async def main() -> None:
        pool = make_pool(postgres, 1, min_size=1, timeout=0.01, max_waiting=1, name="shop", max_idle=5, max_lifetime=9)
        await pool.open(wait=True, timeout=10)
        assert pool.name == "shop" and pool.stats().idle == 1
        async with pool.connection(timeout=5):
            with pytest.raises(ours.PoolTimeout, match=r"within 0\.01 s: <AsyncConnectionPool 'shop' open, 1/1 made"):
                await pool.getconn()
            with pytest.raises(psycopg.OperationalError):
                async with pool.connection():
                    raise AssertionError("a second")
            with pytest.raises(TimeoutError):
                await pool.getconn(timeout=0.02)
            waiting = asyncio.create_task(pool.getconn(timeout=20))
            await asyncio.sleep(0)
            with pytest.raises(PoolBusyError):
                await pool.getconn()
        await pool.putconn(await waiting)
        await pool.close(timeout=5)
        with pytest.raises(PoolClosedError):
            await pool.getconn()

    run(main, 1)


# The end


@pytest.mark.parametrize("runner", ["asyncio", "polyloop"])
def test_a_pool_that_nobody_closes_ends_with_its_loops(postgres: PostgresServer, runner: str) -> None:
    """The server sees all connections end."""
    pool = make_pool(postgres, 4)

    async def main() -> None:
        assert await on_all_loops(8, lambda number: echo(pool, number)) == list(range(8))

    async def alone() -> None:
        assert await asyncio.gather(*(echo(pool, number) for number in range(8))) == list(range(8))

    if runner == "asyncio":
        asyncio.run(alone())
    else:
        run(main)
    postgres.wait_for_connections(0, timeout=5)  # perhaps one was being made still
    assert pool.stats().size == 0 and pool.stats().lost == 0


def test_a_loop_that_ends_amid_connecting_leaves_nothing_behind(postgres: PostgresServer) -> None:
    """What psycopg was making is closed at once, and its place is free."""
    pool = make_pool(postgres, 4)

    async def main() -> None:
        tasks = [asyncio.create_task(echo(pool, number)) for number in range(4)]
        while not pool.stats().size:
            await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    asyncio.run(main())
    assert pool.stats().size == 0 and pool.stats().lost == 0


@pytest.mark.parametrize("what", ["query", "notifies"])
def test_closing_ends_what_still_runs(postgres: PostgresServer, what: str) -> None:
    """When the time for it is up: the borrower gets psycopg's error, and the server is done with it."""

    async def use(connection: Any) -> None:
        if what == "query":
            await connection.execute("select pg_sleep(60)")
        async for news in connection.notifies():
            raise AssertionError(news)

    async def main() -> None:
        pool = make_pool(postgres, 1)
        used = asyncio.create_task(use(await pool.getconn()))
        await asyncio.sleep(0)
        while what == "query" and not sleeps(postgres):
            await asyncio.sleep(0)
        await pool.close(timeout=0)
        assert postgres.connections() == 0
        with pytest.raises(GONE):
            await used

    run(main, 2)


# Every kind of loop


def test_each_kind_of_loop(postgres: PostgresServer, any_loop: TestLoop) -> None:
    """Queries, a cancelled one, one that the server ends, and the end."""

    async def main() -> None:
        async with make_pool(postgres, 3) as pool:
            assert await asyncio.gather(*(echo(pool, number) for number in range(20))) == list(range(20))
            task = asyncio.create_task(ask(pool, "select pg_sleep(60)"))
            while not sleeps(postgres):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(await take_all(pool, 3)) == 3
            async with pool.connection() as connection:
                await connection.close()
            with pytest.raises(GONE):
                await ask(pool, "select pg_terminate_backend(pg_backend_pid())")
            assert await echo(pool, 1) == 1

    with postgres.peak() as seen:
        any_loop.run(main)
    assert seen.highest <= 3


def test_threads_with_loops_of_their_own(postgres: PostgresServer, flavour: Flavour) -> None:
    """No runtime is needed: each loop gives up what it has idle when another needs it."""
    if flavour.name == "rloop":
        pytest.skip("rloop closes descriptors of others when loops end in several threads")
    pool = make_pool(postgres, 2)

    async def main() -> list[Any]:
        return [await echo(pool, number) for number in range(20)]

    def thread() -> list[Any]:
        with asyncio.Runner(loop_factory=flavour.new) as runner:
            return runner.run(main())

    with postgres.peak() as seen:
        threads = [TestThread(thread) for _ in range(4)]
        assert [each.result() for each in threads] == [list(range(20))] * 4
    assert seen.highest <= 2


# What is missing


def test_without_psycopg_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra, as for pip."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "polyloop.pools.psycopg")
    with pytest.raises(ImportError, match=re.escape("pip install 'polyloop[psycopg]'")):
        importlib.import_module("polyloop.pools.psycopg")


# A race


async def query(pool: Any, dice: random.Random) -> None:
    """One use of a connection: it answers, fails, or loses it."""
    kind, number = dice.random(), dice.randrange(1000)
    if kind < 0.1:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await ask(pool, "select 1/0")
    elif kind < 0.2:
        async with pool.connection() as connection:
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                async with connection.transaction():
                    await value(connection, "select 1 / %s::int", number % 2)
            assert await value(connection, "select 2") == 2
    elif kind < 0.22:
        async with pool.connection() as connection:
            await connection.close()
    elif kind < 0.24:
        await ask(pool, "select pg_terminate_backend(pg_backend_pid())")
    else:
        assert await ask(pool, "select %s::int from pg_sleep(0.0005)", number) == number


async def race(postgres: PostgresServer, rng: random.Random, seconds: float) -> collections.Counter[str]:
    """Queries on all loops, some of which are cancelled; how they ended."""
    until = time.monotonic() + seconds

    async def one(seed: int) -> collections.Counter[str]:
        dice, ends = random.Random(seed), collections.Counter[str]()
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(dice.uniform(0, 0.05) if dice.random() < 0.3 else 20):
                    await query(pool, dice)
                ends["answered"] += 1
            except TimeoutError:
                ends["cancelled"] += 1
            except GONE:
                ends["lost"] += 1
        return ends

    seeds = [rng.randrange(1 << 32) for _ in range(16)]
    async with make_pool(postgres) as pool:
        ends = await on_all_loops(16, lambda number: one(seeds[number]))
        assert len(await take_all(pool, CAP)) == CAP
        stats = pool.stats()
        assert (stats.in_use, stats.idle, stats.size, stats.waiting) == (0, CAP, CAP, 0)
    assert pool.stats().size == 0
    return sum(ends, collections.Counter[str]())


def go_through(postgres: PostgresServer, rng: random.Random, seconds: float) -> None:
    with postgres.peak() as seen:
        ends = polyloop.run(race(postgres, rng, seconds), loops=4)
    assert seen.highest <= CAP and postgres.connections() == 0
    assert ends["answered"]
    print(dict(ends), "peak", seen.highest, "in", seen.samples, "samples")


def test_a_race_of_everything(postgres: PostgresServer, rng: random.Random, seconds: float) -> None:
    """Whatever happens to queries on four loops, the cap holds and no place is lost."""
    go_through(postgres, rng, seconds)


@pytest.mark.stress
def test_a_long_race_of_everything(postgres: PostgresServer, rng: random.Random, seconds: float) -> None:
    """As above, for long."""
    go_through(postgres, rng, seconds)


def test_the_end_is_seen_behind_a_notification_that_nobody_has_read(postgres: PostgresServer) -> None:
    """What lies before the server's farewell is kept, and does not hide it."""

    async def main() -> None:
        async with ours.AsyncConnectionPool(postgres.dsn, max_size=1, kwargs={"autocommit": True}) as pool:
            async with pool.connection() as connection:
                await connection.execute("listen news")
                pid = connection.info.backend_pid
            postgres.execute("notify news")
            postgres.terminate_one()
            async with pool.connection() as connection:
                await connection.execute("select 1")
                assert connection.info.backend_pid != pid
            assert pool.stats().broken == 1

    polyloop.run(main(), loops=1)


def test_a_notification_is_not_lost_to_the_look_at_its_connection(postgres: PostgresServer) -> None:
    """libpq keeps what it has read."""

    async def main() -> None:
        async with ours.AsyncConnectionPool(postgres.dsn, max_size=1, kwargs={"autocommit": True}) as pool:
            async with pool.connection() as connection:
                await connection.execute("listen news")
            postgres.execute("notify news, 'hello'")
            async with pool.connection() as connection:
                heard = [notice.payload async for notice in connection.notifies(timeout=20, stop_after=1)]
                assert heard == ["hello"]

    polyloop.run(main(), loops=1)


def test_drain_replaces_the_connections_as_psycopg_pools_does(postgres: PostgresServer) -> None:
    """Idle ones at once, the others when they are returned; the pool stays open."""

    async def main() -> None:
        async with ours.AsyncConnectionPool(postgres.dsn, max_size=2) as pool:
            async with pool.connection() as lent:
                async with pool.connection():
                    pass
                await pool.drain()
                await lent.execute("select 1")
                assert pool.stats().size == 1
            async with pool.connection() as connection:
                await connection.execute("select 1")
            assert pool.stats().created == 3

    polyloop.run(main(), loops=1)


def test_sizes_and_options_of_psycopg_pool(postgres: PostgresServer) -> None:
    """``max_size`` is at least ``min_size``; what cannot be had is named."""
    assert ours.AsyncConnectionPool(postgres.dsn, min_size=20).max_size == 20
    assert ours.AsyncConnectionPool(postgres.dsn, min_size=3, max_size=None).max_size == 3
    with pytest.raises(TypeError, match="kwargs must be a mapping here"):
        ours.AsyncConnectionPool(postgres.dsn, kwargs=dict)


def test_the_client_can_be_had_from_the_same_import() -> None:
    """Its errors and types stand beside the pool."""
    assert ours.OperationalError is importlib.import_module("psycopg").OperationalError
    with pytest.raises(AttributeError):
        ours.no_such_name  # noqa: B018

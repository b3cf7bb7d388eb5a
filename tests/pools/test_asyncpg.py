"""asyncpg's connections in a pool for all loops, on a real server: the cap, errors, cancellation, what is returned."""

import asyncio
import collections
import contextlib
import importlib
import random
import re
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.conftest import Flavour
from tests.pools.postgres_service import PostgresServer

import polyloop
from polyloop.pools import ForeignLoopError, PoolClosedError
from polyloop.testing import TestLoop, TestThread

asyncpg: Any = pytest.importorskip("asyncpg")
ours: Any = importlib.import_module("polyloop.pools.asyncpg")

CAP = 6

#: What asyncpg raises when a server goes away, is away, or is coming back. The last is what it says when the server's
#: farewell comes between the two messages of one query.
GONE = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.InternalClientError,
)


async def on_all_loops(count: int, job: Callable[[int], Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of ``job`` for each number, run by the tasks of a group."""
    async with polyloop.TaskGroup() as group:
        handles = [group.create_task(job(number)) for number in range(count)]
    return [await handle for handle in handles]


async def echo(pool: Any, number: int) -> int:
    """A query that says whose it was."""
    answer: int = await pool.fetchval("select $1::int", number)
    return answer


async def take_all(pool: Any, size: int) -> set[int]:
    """Borrow all connections at once and use them; which processes serve them."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(pool.acquire()) for _ in range(size)]
        return set(await asyncio.gather(*(one.fetchval("select pg_backend_pid()") for one in connections)))


def sleeps(postgres: PostgresServer, pid: int | None = None) -> bool:
    """Whether the server is in the middle of ``pg_sleep``, for that connection or any."""
    rows = postgres.execute("select pid from pg_stat_activity where wait_event = 'PgSleep'")
    return bool(rows) and (pid is None or (pid,) in rows)


def run[T](main: Callable[[], Coroutine[Any, Any, T]], loops: int = 4) -> T:
    return polyloop.run(main(), loops=loops)


# The cap


def test_four_loops_never_have_more_connections_than_the_cap(postgres: PostgresServer) -> None:
    """Every query is answered, and the server sees the cap, exactly."""

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=CAP) as pool:
            for _ in range(3):
                assert await on_all_loops(100, lambda number: echo(pool, number)) == list(range(100))
            assert pool.stats().loans == 300

    with postgres.peak() as seen:
        run(main)
    assert seen.highest == CAP


def test_connections_that_are_aborted_keep_their_place_until_the_server_knows(postgres: PostgresServer) -> None:
    """What a borrower ended by ``terminate``, amid a query too, is replaced when the server has let go of it."""

    async def one(pool: Any) -> None:
        async with pool.acquire() as connection:
            task = asyncio.create_task(connection.execute("select pg_sleep(0.05)"))
            while not sleeps(postgres, connection.get_server_pid()):
                await asyncio.sleep(0)
            connection.terminate()
            with pytest.raises(GONE):
                await task

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=1) as pool:
            for _ in range(4):
                await one(pool)
            await pool.fetchval("select pg_sleep(0.02)")
            assert (pool.stats().created, pool.stats().broken) == (5, 4)

    with postgres.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


def test_the_unix_socket_counts_as_well(postgres: PostgresServer) -> None:
    """How the server is reached makes no difference."""

    async def main() -> None:
        async with ours.create_pool(postgres.socket_dsn, max_size=2) as pool:
            assert await on_all_loops(50, lambda number: echo(pool, number)) == list(range(50))

    with postgres.peak() as seen:
        run(main)
    assert seen.highest <= 2


# Its own loop only


def test_use_on_another_loop_names_both_loops_and_the_line(
    postgres: PostgresServer, left: TestLoop, right: TestLoop
) -> None:
    """The error says where it belongs, where it was used, and where it was made; the connection goes on working."""
    pool = ours.create_pool(postgres.dsn, max_size=1)

    async def borrow() -> Any:
        return await pool.acquire()

    async def use(connection: Any) -> Any:
        return await connection.fetchval("select 7")

    async def give_back(connection: Any) -> None:
        await pool.release(connection)

    connection = left.run(borrow)
    for misuse in (use, give_back):
        with pytest.raises(ForeignLoopError) as caught:
            right.run(misuse, connection)
        assert repr(left.worker.name) in str(caught.value) and repr(right.worker.name) in str(caught.value)
        assert re.search(r"made at .*test_asyncpg\.py:\d+ in .*borrow\b", str(caught.value))
        assert (caught.value.owner, caught.value.user) == (left.worker.name, right.worker.name)
    assert left.run(use, connection) == 7
    left.run(give_back, connection)
    right.run(pool.close)


def test_a_class_of_the_users_is_guarded_too(postgres: PostgresServer, left: TestLoop, right: TestLoop) -> None:
    """``connection_class`` is subclassed; what it adds works."""

    class Own(asyncpg.Connection):  # type: ignore[misc]
        async def seven(self) -> int:
            seven: int = await self.fetchval("select 7")
            return seven

    pool = ours.create_pool(postgres.dsn, max_size=1, connection_class=Own)

    async def borrow() -> Any:
        return await pool.acquire()

    async def use(connection: Any) -> int:
        assert isinstance(connection, Own)
        return await connection.seven()

    connection = left.run(borrow)
    assert left.run(use, connection) == 7
    with pytest.raises(ForeignLoopError, match=r"Own\.fetchval\(\)"):
        right.run(use, connection)
    left.run(pool.release, connection)
    left.run(pool.close)


def test_a_pool_takes_no_loop(postgres: PostgresServer) -> None:
    """asyncpg's argument would bind all connections to one."""
    with pytest.raises(TypeError, match="takes no loop"):
        ours.create_pool(postgres.dsn, loop=object())


# Cancellation


def test_cancelled_queries_leave_all_connections_usable(postgres: PostgresServer, rng: random.Random) -> None:
    """Whenever the cancellation comes, the pool has all of its connections afterwards, and not one too many."""
    moments = [rng.uniform(0, 0.02) for _ in range(60)]
    ends: collections.Counter[str] = collections.Counter()

    async def one(pool: Any, number: int) -> str:
        try:
            async with asyncio.timeout(moments[number]):
                await pool.fetchval("select pg_sleep(0.01)")
        except TimeoutError:
            return "cancelled"
        return "answered"

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=CAP) as pool:
            await take_all(pool, CAP)
            ends.update(await on_all_loops(60, lambda number: one(pool, number)))
            assert len(await take_all(pool, CAP)) == CAP
            assert (pool.stats().in_use, pool.stats().idle, pool.stats().size) == (0, CAP, CAP)

    with postgres.peak() as seen:
        run(main)
    assert seen.highest == CAP and ends.total() == 60


async def cancel_a_loan(pool: Any, query: str, sent: Callable[[int], bool]) -> None:
    """Cancel a task that runs a query, when the server is where ``sent`` says, and the client has heard of nothing."""
    borrowed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def borrow() -> None:
        async with pool.acquire() as connection:
            borrowed.set_result(connection.get_server_pid())
            await connection.execute(query)

    task = asyncio.create_task(borrow())
    pid = await borrowed
    await asyncio.sleep(0)
    while not sent(pid):  # the loop stands still
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("query", ["select pg_sleep(60)", "begin", "begin; select pg_sleep(60)"])
def test_a_query_that_is_cancelled_leaves_no_transaction_open(postgres: PostgresServer, query: str) -> None:
    """Also if asyncpg knows of none, for it began within what was cancelled."""
    state = "idle in transaction" if query == "begin" else "active"

    def state_of(pid: int) -> object:
        return postgres.execute("select state from pg_stat_activity where pid = %s and query = %s", pid, query)

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=1) as pool:
            await cancel_a_loan(pool, query, lambda pid: state_of(pid) == [(state,)])
            assert postgres.execute("select state from pg_stat_activity where usename = 'polyloop'") == [("idle",)]
            assert await pool.fetchval("select pg_backend_pid()") in postgres.pids()
            assert pool.stats().created == 1

    asyncio.run(quietly(main))


# The server's part


def test_a_connection_that_the_server_ends_is_dropped(postgres: PostgresServer) -> None:
    """Whoever uses it gets asyncpg's error; who comes next gets another one. One that lies idle is never lent."""

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=2) as pool:
            async with pool.acquire() as connection:
                pid = connection.get_server_pid()
                task = asyncio.create_task(connection.fetchval("select pg_sleep(60)"))
                while not sleeps(postgres, pid):
                    await asyncio.sleep(0)
                assert postgres.terminate_one() == pid
                with pytest.raises(GONE):
                    await task
            assert await echo(pool, 1) == 1
            assert postgres.terminate_all() == 1
            assert await echo(pool, 2) == 2
            assert (pool.stats().broken, pool.stats().created) == (2, 3)

    run(main, 1)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_is_survived(postgres: PostgresServer, mode: str) -> None:
    """While it is away callers get asyncpg's errors of connections; then all is well without anybody's doing."""
    answers = [0] * 12  # each counted by one task

    async def one(pool: Any, stop: polyloop.Event, number: int) -> None:
        while not stop.is_set():
            try:
                assert await pool.fetchval("select 3") == 3
                answers[number] += 1
            except GONE:
                await asyncio.sleep(0)

    async def main() -> None:
        stop = polyloop.Event()
        async with ours.create_pool(postgres.dsn, max_size=CAP) as pool:
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
    """It is asyncpg's own, and ``async with`` shows it early where connections are to be ready."""
    postgres.stop()

    async def main() -> None:
        pool = ours.create_pool(postgres.dsn)
        with pytest.raises(ConnectionRefusedError):
            await pool.fetchval("select 1")
        with pytest.raises(ConnectionRefusedError):
            async with ours.create_pool(postgres.dsn, min_size=1):
                raise AssertionError("it opened")
        with pytest.raises(ConnectionRefusedError):
            await ours.create_pool(postgres.dsn, min_size=1)
        postgres.start()
        assert await echo(pool, 1) == 1
        await pool.close()

    run(main, 2)


# What is returned, and hooks


def test_what_a_session_has_set_is_gone_when_it_is_returned(postgres: PostgresServer) -> None:
    """Variables, channels, locks and open transactions end with the loan."""

    async def main() -> None:
        heard: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # told of the open transaction
        async with ours.create_pool(postgres.dsn, max_size=1) as pool:
            async with pool.acquire() as connection:
                pid = connection.get_server_pid()
                await connection.execute("set search_path to nowhere")
                await connection.add_listener("news", lambda *news: heard.append(news))
                await connection.execute("select pg_advisory_lock(1)")
                await connection.execute("begin")
            async with pool.acquire() as connection:
                assert connection.get_server_pid() == pid and not connection.is_in_transaction()
                assert await connection.fetchval("show search_path") == '"$user", public'
                assert await connection.fetch("select pg_listening_channels()") == []
                assert await connection.fetchval("select count(*) from pg_locks where locktype = 'advisory'") == 0
                postgres.execute("notify news")
                await connection.fetchval("select 1")
        assert heard == []

    run(main, 1)


def test_a_reset_of_ones_own_comes_in_place_of_asyncpgs_query(postgres: PostgresServer) -> None:
    """A transaction is rolled back before; if it raises, the connection is closed."""
    fails = False

    async def reset(connection: Any) -> None:
        assert not connection.is_in_transaction()
        if fails:
            raise ValueError

    async def main() -> None:
        nonlocal fails
        async with ours.create_pool(postgres.dsn, max_size=1, reset=reset) as pool:
            async with pool.acquire() as connection:
                assert "RESET ALL" in connection.get_reset_query()
                await connection.execute("set search_path to nowhere")
                await connection.execute("begin")
            assert await pool.fetchval("show search_path") == "nowhere"
            fails = True
            pid = await pool.fetchval("select pg_backend_pid()")
            fails = False
            assert pid != await pool.fetchval("select pg_backend_pid()")

    asyncio.run(quietly(main))


async def quietly(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Without what asyncpg tells the loop's handler of transactions that were left open."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    await main()


def test_init_is_called_once_and_setup_each_time(postgres: PostgresServer) -> None:
    """With the connection, on its loop."""
    calls: collections.Counter[str] = collections.Counter()

    async def init(connection: Any) -> None:
        calls["init"] += 1
        await connection.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=lambda text: f"<{text}>")

    async def setup(connection: Any) -> None:
        calls["setup"] += 1
        await connection.execute("set application_name to 'setup'")

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=1, init=init, setup=setup) as pool:
            for _ in range(3):
                assert await pool.fetchrow("select '1'::json, current_setting('application_name')") == ("<1>", "setup")
            connection = await pool.acquire()
            await pool.release(connection)
        assert calls == {"init": 1, "setup": 4}

    run(main, 1)


@pytest.mark.parametrize("hook", ["init", "setup"])
def test_an_error_of_a_hook_closes_the_connection(postgres: PostgresServer, hook: str) -> None:
    """The caller gets it; nobody gets that connection, and its place is free."""

    async def fail(connection: Any) -> None:
        raise ValueError(hook)

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=1, **{hook: fail}) as pool:
            for _ in range(3):
                with pytest.raises(ValueError, match=hook):
                    await pool.fetchval("select 1")

    with postgres.peak() as seen:
        run(main, 2)
    assert seen.highest <= 1


def test_asyncpgs_names(postgres: PostgresServer) -> None:
    """A program for asyncpg's pool runs: ``await create_pool``, the shortcuts, ``acquire`` and ``release``, limits."""

    async def main() -> None:
        pool = await ours.create_pool(dsn=postgres.dsn, min_size=1, max_size=2, command_timeout=60)
        assert pool.stats().idle == 1
        assert await pool.execute("create temporary table t (n int)") == "CREATE TABLE"
        await pool.execute("create table if not exists asyncpgs_names (n int)")
        await pool.executemany("insert into asyncpgs_names values ($1)", [(1,), (2,)])
        assert [row["n"] for row in await pool.fetch("select n from asyncpgs_names order by n")] == [1, 2]
        assert tuple(await pool.fetchrow("select 1, 2")) == (1, 2)
        assert await pool.fetchval("select 1, 2", column=1) == 2
        assert await pool.fetchrow("select 1 where false") is None
        await pool.execute("drop table asyncpgs_names")
        with pytest.raises(TimeoutError):
            await pool.fetchval("select pg_sleep(1)", timeout=0.01)
        one, other = await pool.acquire(), await pool.acquire(timeout=5)
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.01)
        with pytest.raises(TimeoutError):
            async with pool.acquire(timeout=0.01):
                raise AssertionError("a third")
        await pool.release(one)
        await pool.release(other, timeout=5)
        await pool.close()
        with pytest.raises(PoolClosedError):
            await pool.fetchval("select 1")

    run(main, 1)


# The end


@pytest.mark.parametrize("runner", ["asyncio", "polyloop"])
def test_a_pool_that_nobody_closes_ends_with_its_loops(postgres: PostgresServer, runner: str) -> None:
    """The server sees all connections end."""
    pools = []

    async def main() -> None:
        pool = ours.create_pool(postgres.dsn, max_size=4)
        pools.append(pool)
        assert await on_all_loops(8, lambda number: echo(pool, number)) == list(range(8))

    async def alone() -> None:
        pool = ours.create_pool(postgres.dsn, max_size=4)
        pools.append(pool)
        assert await asyncio.gather(*(echo(pool, number) for number in range(8))) == list(range(8))

    if runner == "asyncio":
        asyncio.run(alone())
    else:
        run(main)
    postgres.wait_for_connections(0, timeout=5)  # perhaps one was being made still
    assert pools[0].stats().size == 0 and pools[0].stats().lost == 0


def test_closing_ends_a_query_that_still_runs(postgres: PostgresServer) -> None:
    """When the time for it is up: the borrower gets asyncpg's error, and the server stops working on it."""

    async def main() -> None:
        pool = ours.create_pool(postgres.dsn, max_size=1)
        async with pool.acquire() as connection:
            task = asyncio.create_task(connection.fetchval("select pg_sleep(60)"))
            while not sleeps(postgres):
                await asyncio.sleep(0)
            await pool.close(timeout=0)
            assert postgres.connections() == 0
            with pytest.raises((*GONE, asyncpg.QueryCanceledError)):
                await task

    run(main, 2)


# Every kind of loop


def skip_rloop(flavour: Flavour) -> None:
    """asyncpg does not work there by itself: rloop's transports write no memoryviews."""
    if flavour.name == "rloop":
        pytest.skip("asyncpg cannot connect on rloop")


def test_each_kind_of_loop(postgres: PostgresServer, flavour: Flavour, any_loop: TestLoop) -> None:
    """Queries, a cancelled one, one that the server ends, and the end."""
    skip_rloop(flavour)

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=3) as pool:
            assert await asyncio.gather(*(echo(pool, number) for number in range(20))) == list(range(20))
            task = asyncio.create_task(pool.fetchval("select pg_sleep(60)"))
            while not sleeps(postgres):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(await take_all(pool, 3)) == 3
            async with pool.acquire() as connection:
                connection.terminate()
            async with pool.acquire() as connection:
                with pytest.raises(GONE):
                    await connection.fetchval("select pg_terminate_backend(pg_backend_pid())")
            assert await echo(pool, 1) == 1

    with postgres.peak() as seen:
        any_loop.run(main)
    assert seen.highest <= 3


def test_threads_with_loops_of_their_own(postgres: PostgresServer, flavour: Flavour) -> None:
    """No runtime is needed: each loop gives up what it has idle when another needs it."""
    skip_rloop(flavour)
    pool = ours.create_pool(postgres.dsn, max_size=2)

    async def main() -> list[int]:
        return [await echo(pool, number) for number in range(20)]

    def thread() -> list[int]:
        with asyncio.Runner(loop_factory=flavour.new) as runner:
            return runner.run(main())

    with postgres.peak() as seen:
        threads = [TestThread(thread) for _ in range(4)]
        assert [each.result() for each in threads] == [list(range(20))] * 4
    assert seen.highest <= 2


# What is missing


def test_without_asyncpg_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra, as for pip."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "polyloop.pools.asyncpg")
    with pytest.raises(ImportError, match=re.escape("pip install 'polyloop[asyncpg]'")):
        importlib.import_module("polyloop.pools.asyncpg")


# A race


async def query(pool: Any, dice: random.Random) -> None:
    """One use of a connection: it answers, fails, or loses it."""
    kind, number = dice.random(), dice.randrange(1000)
    async with pool.acquire() as connection:
        if kind < 0.1:
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("select 1 / 0")
        elif kind < 0.2:
            with contextlib.suppress(asyncpg.DivisionByZeroError):
                async with connection.transaction():
                    await connection.fetchval("select 1 / $1::int", number % 2)
        elif kind < 0.22:
            connection.terminate()
        elif kind < 0.24:
            await connection.fetchval("select pg_terminate_backend(pg_backend_pid())")
        else:
            assert await connection.fetchval("select $1::int from pg_sleep(0.0005)", number) == number


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
    async with ours.create_pool(postgres.dsn, max_size=CAP) as pool:
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


def test_the_client_can_be_had_from_the_same_import() -> None:
    """``except asyncpg.UniqueViolationError`` works with either."""
    assert ours.UniqueViolationError is asyncpg.UniqueViolationError
    with pytest.raises(AttributeError):
        ours.no_such_name  # noqa: B018


def test_options_of_asyncpgs_pool_that_cannot_be_had_are_named(postgres: PostgresServer) -> None:
    """When the pool is made, not at the first connection."""
    with pytest.raises(TypeError, match=r"takes no 'max_queries' here: give max_lifetime="):
        ours.create_pool(postgres.dsn, max_queries=50)


def test_connections_that_expire_are_replaced(postgres: PostgresServer) -> None:
    """Idle ones at once, the others when they are returned."""

    async def main() -> None:
        async with ours.create_pool(postgres.dsn, max_size=1) as pool:
            async with pool.acquire() as connection:
                pid = await connection.fetchval("select pg_backend_pid()")
                await pool.expire_connections()
                assert await connection.fetchval("select pg_backend_pid()") == pid
            assert await pool.fetchval("select pg_backend_pid()") != pid

    polyloop.run(main(), loops=1)

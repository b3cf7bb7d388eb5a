"""redis-py's client on all loops, on a real server: the cap, what holds a connection, errors, cancellation, the end."""

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
from tests.pools.redis_service import RedisServer

import polyloop
from polyloop.pools import ForeignLoopError, PoolClosedError
from polyloop.testing import TestLoop, TestThread

client_module: Any = pytest.importorskip("redis.asyncio")
exceptions: Any = importlib.import_module("redis.exceptions")
ours: Any = importlib.import_module("polyloop.pools.redis")

CAP = 6

#: What redis-py raises when the server goes away, is away, or ends a connection.
GONE = (exceptions.ConnectionError, exceptions.TimeoutError)

#: Before 8, redis-py sees no answers that nobody has read, and loses connections of what is cancelled while it closes.
LATEST = hasattr(client_module.Connection, "can_read")


async def on_all_loops(count: int, job: Callable[[int], Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of ``job`` for each number, run by the tasks of a group."""
    async with polyloop.TaskGroup() as group:
        handles = [group.create_task(job(number)) for number in range(count)]
    return [await handle for handle in handles]


async def echo(client: Any, number: int) -> int:
    """A command that says whose it was."""
    return int(await client.echo(str(number)))


def run[T](main: Callable[[], Coroutine[Any, Any, T]], loops: int = 4) -> T:
    return polyloop.run(main(), loops=loops)


def blocked(server: RedisServer) -> int:
    """How many connections wait in a blocking command."""
    return sum("b" in each["flags"] for each in server.client_list())


async def until_blocked(server: RedisServer, count: int = 1) -> None:
    while blocked(server) < count:
        await asyncio.sleep(0)


def retries(count: int, pause: float = 0) -> dict[str, Any]:
    """Options that make redis-py try again."""
    kind, backoff = importlib.import_module("redis.asyncio.retry").Retry, importlib.import_module("redis.backoff")
    return {"retry": kind(backoff.ConstantBackoff(pause), count), "retry_on_error": [*GONE]}


async def hold(client: Any, server: RedisServer) -> "asyncio.Task[Any]":
    """A command that has been sent and is not answered."""
    task = asyncio.create_task(client.blpop("nothing", 0))
    await until_blocked(server)
    return task


# The cap


def test_four_loops_never_have_more_connections_than_the_cap(redis_server: RedisServer) -> None:
    """One client for all loops: every command gets its own answer, and the server sees the cap, exactly."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=CAP) as client:
            for _ in range(3):
                assert await on_all_loops(100, lambda number: echo(client, number)) == list(range(100))
            assert client.connection_pool.stats().loans == 300

    with redis_server.peak() as seen:
        run(main)
    assert seen.highest == CAP


def test_the_unix_socket_counts_as_well(redis_server: RedisServer) -> None:
    """How the server is reached makes no difference."""

    async def main() -> None:
        async with ours.from_url(redis_server.socket_url, max_connections=2) as client:
            assert await on_all_loops(50, lambda number: echo(client, number)) == list(range(50))

    with redis_server.peak() as seen:
        run(main)
    assert seen.highest <= 2


def test_what_redis_py_connects_again_is_the_same_place(redis_server: RedisServer) -> None:
    """A retry disconnects and connects by itself: the new connection waits until the server has let go of the old."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=1, socket_timeout=0.01, **retries(3)) as client:
            for _ in range(5):
                with pytest.raises(exceptions.TimeoutError):
                    await client.blpop("nothing", 0)
            assert await echo(client, 1) == 1

    with redis_server.peak() as seen:
        run(main, 1)
    assert seen.highest == 1
    assert redis_server.connections() == 0


def test_a_wait_that_is_too_long_is_the_clients_error(redis_server: RedisServer) -> None:
    """``timeout`` and ``max_waiting`` raise what redis-py's blocking pool and its other one do."""

    async def main() -> None:
        url = redis_server.url
        async with ours.from_url(url, max_connections=1, max_waiting=1, name="small") as client:
            async with client.pubsub() as listener:
                await listener.subscribe("news")
                client.connection_pool.timeout = 0.01
                with pytest.raises(
                    exceptions.ConnectionError, match=r"No connection available within 0\.01 s.*'small'"
                ):
                    await client.ping()
                client.connection_pool.timeout = None
                waiting = asyncio.create_task(client.ping())
                while not client.connection_pool.stats().waiting:
                    await asyncio.sleep(0)
                with pytest.raises(exceptions.MaxConnectionsError, match="max_waiting=1"):
                    await client.ping()
                assert not client.connection_pool.can_get_connection()
            assert await waiting
            assert client.connection_pool.can_get_connection()

    run(main, 1)


# What holds a connection


async def watching(client: Any) -> Any:
    pipeline = client.pipeline()
    await pipeline.watch("key")
    return pipeline


async def subscribed(client: Any) -> Any:
    listener = client.pubsub()
    await listener.subscribe("news")
    return listener


async def single(client: Any) -> Any:
    return await client.client()


HOLDERS: dict[str, tuple[Callable[[Any], Coroutine[Any, Any, Any]], Callable[[Any], Any]]] = {
    "pipeline": (watching, lambda pipeline: pipeline.get("key")),
    "pubsub": (subscribed, lambda listener: listener.get_message(timeout=1)),
    "subscribe": (subscribed, lambda listener: listener.subscribe("more")),
    "pubsub close": (subscribed, lambda listener: listener.aclose()),
    "single": (single, lambda alone: alone.get("key")),
    "single close": (single, lambda alone: alone.aclose()),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_use_on_another_loop_names_both_loops_and_the_line(
    redis_server: RedisServer, left: TestLoop, right: TestLoop, kind: str
) -> None:
    """The error says where it belongs, where it was used, and where it was begun; it goes on working there."""
    begin, use = HOLDERS[kind]
    client = ours.from_url(redis_server.url, max_connections=1)

    async def misuse(holder: Any) -> None:
        await use(holder)

    async def go_on(holder: Any) -> None:
        await use(holder)
        await (getattr(holder, "aclose", None) or holder.reset)()

    holder = left.run(begin, client)
    with pytest.raises(ForeignLoopError) as caught:
        right.run(misuse, holder)
    assert repr(left.worker.name) in str(caught.value) and repr(right.worker.name) in str(caught.value)
    assert re.search(rf"made at .*test_redis\.py:\d+ in {begin.__name__}\b", str(caught.value))
    assert (caught.value.owner, caught.value.user) == (left.worker.name, right.worker.name)
    left.run(go_on, holder)
    assert right.run(echo, client, 7) == 7
    right.run(client.aclose)


def test_what_is_returned_on_another_loop_is_dropped(
    redis_server: RedisServer, left: TestLoop, right: TestLoop
) -> None:
    """Nobody knows what was done with it; its place is free again."""
    client = ours.from_url(redis_server.url, max_connections=1)
    pipeline = left.run(watching, client)
    with pytest.raises(ForeignLoopError, match="belongs to 'left'"):
        right.run(pipeline.reset)
    left.run(pipeline.reset)
    assert right.run(echo, client, 7) == 7
    assert client.connection_pool.stats().broken == 1 or not LATEST
    left.run(client.aclose)


def test_pipelines_transactions_and_scripts_on_all_loops(redis_server: RedisServer) -> None:
    """Watched keys are counted up by all loops without losing one; a pipeline may be filled here and run there."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=CAP, decode_responses=True) as client:
            await client.delete("sum", "total")
            double = client.register_script("return 2 * redis.call('incr', KEYS[1])")

            async def add(pipeline: Any) -> None:
                value = int(await pipeline.get("sum") or 0)
                pipeline.multi()
                pipeline.set("sum", value + 1)

            async def count(number: int) -> Any:
                await client.transaction(add, "sum")
                async with client.pipeline(transaction=bool(number % 2)) as pipeline:
                    return await pipeline.echo(str(number)).incr("total").echo("end").execute()

            results = await on_all_loops(40, count)
            assert [each[0] for each in results] == [str(number) for number in range(40)]
            assert sorted(each[1] for each in results) == list(range(1, 41))
            assert await client.get("sum") == "40"
            assert sorted(await on_all_loops(10, lambda _: double(keys=["total"]))) == list(range(82, 102, 2))

            filled = client.pipeline().echo("filled here")
            assert await polyloop.spawn(filled.execute) == ["filled here"]

    run(main)


def test_messages_between_loops(redis_server: RedisServer) -> None:
    """Listeners on all loops hear what any of them publishes; each holds one connection until it is closed."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=CAP, decode_responses=True) as client:
            listening = polyloop.Semaphore(0)

            async def listen(number: int) -> list[str]:
                async with client.pubsub(ignore_subscribe_messages=True) as listener:
                    await listener.subscribe("news")
                    await listener.psubscribe(f"to-{number}*")
                    listening.release()
                    heard: list[str] = []
                    async for message in listener.listen():
                        heard.append(message["data"])
                        if len(heard) == 3:
                            return heard
                    raise AssertionError("it ended")

            async with polyloop.TaskGroup() as group:
                handles = [group.create_task(listen(number)) for number in range(4)]
                for _ in range(4):
                    await listening.acquire()
                assert client.connection_pool.stats().in_use == 4
                await client.publish("news", "one")
                for number in range(4):
                    await polyloop.spawn(client.publish, f"to-{number}-x", str(number))
                await client.publish("news", "two")
            assert [sorted(await handle) for handle in handles] == [sorted([str(n), "one", "two"]) for n in range(4)]
            assert await on_all_loops(50, lambda number: echo(client, number)) == list(range(50))

    with redis_server.peak() as seen:
        run(main)
    assert seen.highest <= CAP


def test_locks_of_the_server_on_all_loops(redis_server: RedisServer) -> None:
    """redis-py's ``Lock`` excludes the tasks of other loops; a token not of the thread may be released anywhere."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=CAP) as client:
            inside: list[int] = []

            async def one(number: int) -> None:
                async with client.lock("lock", sleep=0.001):
                    assert not inside
                    inside.append(number)
                    await client.ping()
                    inside.pop()

            await on_all_loops(12, one)
            lock = client.lock("lock", thread_local=False)
            assert await lock.acquire()
            await polyloop.spawn(lock.release)

    run(main)


def test_blocking_commands_and_monitors(redis_server: RedisServer) -> None:
    """A blocking command has its connection to itself; a monitor's is not used again."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=3, decode_responses=True) as client:
            async with client.monitor() as monitor:
                waiting = await hold(client, redis_server)
                assert await polyloop.spawn(client.rpush, "nothing", "something") == 1
                assert list(await waiting) == ["nothing", "something"]
                while "BLPOP" not in (await monitor.next_command())["command"]:
                    pass
            stats = client.connection_pool.stats()
            assert (stats.in_use, stats.broken) == (0, 1)

    run(main, 2)


def test_commands_of_a_single_connection_take_turns(redis_server: RedisServer) -> None:
    """``client.client()`` has one connection, in whose order its commands are answered."""

    async def main() -> None:
        client = ours.from_url(redis_server.url, max_connections=2)
        async with client.client() as alone:
            assert len(set(await asyncio.gather(*(alone.client_id() for _ in range(5))))) == 1
        assert await echo(client, 1) == 1
        assert client.connection_pool.stats().created == 1
        await client.aclose()

    run(main, 1)


# Cancellation


def test_cancelled_commands_mix_up_no_answers(redis_server: RedisServer, rng: random.Random) -> None:
    """A command that is cut short takes its connection with it, whose place is free when the server knows."""
    delays = [rng.uniform(0, 0.01) for _ in range(200)]

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=CAP) as client:

            async def one(number: int) -> int:
                try:
                    async with asyncio.timeout(delays[number]):
                        if number % 3:
                            return await echo(client, number)
                        async with client.pipeline() as pipeline:
                            return int((await pipeline.echo(str(number)).ping().execute())[0])
                except TimeoutError:
                    return number

            assert await on_all_loops(200, one) == list(range(200))
            assert await on_all_loops(100, lambda number: echo(client, number)) == list(range(100))
            assert client.connection_pool.stats().in_use == 0

    with redis_server.peak() as seen:
        run(main)
    assert seen.highest <= CAP


def test_what_is_returned_amid_a_command_is_dropped(redis_server: RedisServer) -> None:
    """A task that was left behind goes on reading: its answer is not for the next."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=1) as client:
            async with client.client() as alone:
                task = await hold(alone, redis_server)
            assert await echo(client, 3) == 3
            with pytest.raises(exceptions.ConnectionError):
                await task
            assert client.connection_pool.stats().broken == 1

    run(main, 1)


def test_a_command_that_is_cancelled_is_ended_at_the_server(redis_server: RedisServer) -> None:
    """The next one gets a connection when the server has dropped the first."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=1) as client:
            for number in range(5):
                task = await hold(client, redis_server)
                task.cancel()
                assert await echo(client, number) == number
                assert task.cancelled()
            assert client.connection_pool.stats().broken == 5

    with redis_server.peak() as seen:
        run(main, 1)
    assert seen.highest == 1


# What breaks


def test_a_connection_that_the_server_ends_is_replaced(redis_server: RedisServer) -> None:
    """Idle, nobody notices; amid a command, it is redis-py's error, and the next one works."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=1) as client:
            await client.ping()
            redis_server.kill_one()
            while True:  # until this loop has heard of it, which a command that comes before is told
                with contextlib.suppress(exceptions.ConnectionError):
                    assert await echo(client, 1) == 1
                    break
            task = await hold(client, redis_server)
            redis_server.kill_one()
            with pytest.raises(exceptions.ConnectionError, match="closed by server"):
                await task
            assert await echo(client, 2) == 2

    run(main, 1)


@pytest.mark.skipif(not LATEST, reason="redis-py sees them from 8 on")
def test_answers_that_nobody_has_read_are_not_for_the_next(redis_server: RedisServer) -> None:
    """A connection that was returned with one is dropped, as redis-py does."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=1) as client:
            pool = client.connection_pool
            connection = await pool.get_connection()
            await connection.send_command("ECHO", "stale")
            while not await connection.can_read():
                await asyncio.sleep(0)
            await pool.release(connection)
            assert await echo(client, 3) == 3
            assert pool.stats().broken == 1

    run(main, 1)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_is_survived(redis_server: RedisServer, mode: str) -> None:
    """Commands fail with redis-py's errors as long as it is away, and work again when it is there."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=CAP) as client:
            assert await on_all_loops(50, lambda number: echo(client, number)) == list(range(50))
            restart = asyncio.create_task(polyloop.to_thread(redis_server.restart, mode))

            async def one(number: int) -> int:
                try:
                    return await echo(client, number)
                except GONE:
                    return -1

            while not restart.done():
                await on_all_loops(10, one)
            await restart
            while -1 in await on_all_loops(10, one):
                pass
            assert await on_all_loops(50, lambda number: echo(client, number)) == list(range(50))

    run(main)


def test_a_listener_survives_a_restart(redis_server: RedisServer) -> None:
    """A ``PubSub`` connects and subscribes again by itself, as redis-py's own does, with the place that it has."""

    async def main() -> None:
        client = ours.from_url(redis_server.url, max_connections=2, **retries(1000, 0.01))
        async with client, client.pubsub() as listener:
            await listener.subscribe("news")
            assert (await listener.get_message(timeout=5))["type"] == "subscribe"
            await polyloop.to_thread(redis_server.restart)
            while (await listener.get_message(timeout=5) or {}).get("type") != "subscribe":
                pass
            assert await client.publish("news", "again") == 1
            assert (await listener.get_message(timeout=5))["data"] == b"again"

    with redis_server.peak() as seen:
        run(main, 2)
    assert seen.highest <= 2


def test_a_server_that_is_down_is_an_error_at_once(redis_server: RedisServer) -> None:
    """Nobody waits for a connection that cannot be made, and no place is lost."""
    redis_server.stop()

    async def main() -> None:
        client = ours.from_url(redis_server.url, max_connections=2)

        async def one(_: int) -> None:
            with pytest.raises(exceptions.ConnectionError, match="Connect"):
                await client.ping()

        await on_all_loops(10, one)
        assert client.connection_pool.stats().size == 0
        redis_server.start()
        assert await echo(client, 1) == 1
        await client.aclose()

    run(main)


# redis-py's names


def test_names_of_redis_pys_pool(redis_server: RedisServer) -> None:
    """``from_url`` of the pool, ``disconnect``, ``reset``, ``set_retry``, several clients of one pool."""

    async def main() -> None:
        url = f"{redis_server.url}?max_connections=3&timeout=5&decode_responses=1"
        async with ours.ConnectionPool.from_url(url) as pool:
            assert (pool.max_connections, pool.timeout, pool.stats().max_size) == (3, 5.0, 3)
            assert "127.0.0.1" not in repr(pool) and "3" in repr(pool)
            first, second = ours.Redis(connection_pool=pool), client_module.Redis(connection_pool=pool)
            assert await on_all_loops(9, lambda number: echo((first, second)[number % 2], number)) == list(range(9))
            await first.aclose()
            await pool.disconnect()
            assert pool.stats().size == 0 and redis_server.connections() == 0
            held = await pool.get_connection()
            await pool.disconnect(inuse_connections=False)
            await held.send_command("PING")
            assert await held.read_response() in (b"PONG", "PONG")
            pool.reset()
            await pool.release(held)
            await pool.release(held)  # redis-py's clients do, in some cases
            assert pool.stats().size <= 1
            retry = retries(3)["retry"]
            second.set_retry(retry)
            held = await pool.get_connection()
            assert held.retry is not retry and held.retry._retries == 3
            await pool.release(held)
            if hasattr(client_module.ConnectionPool, "get_connection_count"):
                assert [count for count, _ in pool.get_connection_count()] == [1, 0]
            with pytest.raises(RuntimeError, match="await get_connection"):
                pool.get_available_connection()
        with pytest.raises(PoolClosedError):
            await second.ping()

    run(main)


def test_what_reaches_over_to_other_loops_is_refused() -> None:
    """Each with the reason, when the client is made."""
    credentials = importlib.import_module("redis.credentials")
    if hasattr(credentials, "StreamingCredentialProvider"):

        class Streaming(credentials.StreamingCredentialProvider):  # type: ignore[misc,name-defined]
            def get_credentials(self) -> tuple[str]:
                return ("",)

            async def get_credentials_async(self) -> tuple[str]:
                return ("",)

            def on_next(self, callback: object) -> None: ...
            def on_error(self, callback: object) -> None: ...
            def is_streaming(self) -> bool:
                return True

        with pytest.raises(ValueError, match="StreamingCredentialProvider authenticates connections of all loops"):
            ours.from_url("redis://", credential_provider=Streaming())
    with contextlib.suppress(ImportError):
        config = importlib.import_module("redis.maint_notifications").MaintNotificationsConfig(enabled=True)
        with pytest.raises(ValueError, match="maintenance notifications change connections of all loops"):
            ours.from_url("redis://", maint_notifications_config=config)
    with pytest.raises(TypeError, match=re.escape("client.client()")):
        ours.from_url("redis://", single_connection_client=True)
    with pytest.raises(ValueError, match="max_size must be"):
        ours.from_url("redis://", max_connections=0)


def test_blocks_on_several_loops_share_a_client(redis_server: RedisServer) -> None:
    """The last ``async with client`` to end closes it, on whichever loop that is."""
    client = ours.from_url(redis_server.url, max_connections=CAP)
    began, go_on = polyloop.Semaphore(0), polyloop.Event()

    async def block(number: int) -> None:
        async with client:
            assert await echo(client, number) == number
            began.release()
            await go_on.wait()
            assert await echo(client, number) == number

    async def main() -> None:
        async with polyloop.TaskGroup() as group:
            for number in range(8):
                group.create_task(block(number))
            for _ in range(8):
                await began.acquire()
            go_on.set()
        with pytest.raises(PoolClosedError):
            await client.ping()

    run(main)
    assert redis_server.connections() == 0


# The end


@pytest.mark.parametrize("runner", ["asyncio", "polyloop"])
def test_a_client_that_nobody_closes_ends_with_its_loops(redis_server: RedisServer, runner: str) -> None:
    """The server sees all connections end, those that something still holds as well."""
    clients = []

    async def main() -> None:
        client = ours.from_url(redis_server.url, max_connections=4)
        clients.append(client)
        assert await on_all_loops(8, lambda number: echo(client, number)) == list(range(8))
        clients.append(await subscribed(client))

    async def alone() -> None:
        client = ours.from_url(redis_server.url, max_connections=4)
        clients.append(client)
        assert await asyncio.gather(*(echo(client, number) for number in range(8))) == list(range(8))
        clients.append(await subscribed(client))

    if runner == "asyncio":
        asyncio.run(alone())
    else:
        run(main)
    assert redis_server.connections() == 0
    stats = clients[0].connection_pool.stats()
    assert (stats.size, stats.lost) == (0, 0)


def test_closing_ends_a_command_that_still_runs(redis_server: RedisServer) -> None:
    """Its connection is not connected again, not even by a retry."""

    async def main() -> None:
        client = ours.from_url(redis_server.url, max_connections=2, **retries(3))
        task = await hold(client, redis_server)
        await client.connection_pool.aclose(timeout=0)
        assert redis_server.connections() == 0
        with pytest.raises(exceptions.ConnectionError, match="closed with its pool"):
            await task

    run(main, 2)


# Every kind of loop


def test_each_kind_of_loop(redis_server: RedisServer, any_loop: TestLoop) -> None:
    """Commands, a cancelled one, one that the server ends, a listener, and the end."""

    async def main() -> None:
        async with ours.from_url(redis_server.url, max_connections=3) as client:
            assert await asyncio.gather(*(echo(client, number) for number in range(20))) == list(range(20))
            task = await hold(client, redis_server)
            task.cancel()
            assert await asyncio.gather(*(echo(client, number) for number in range(20))) == list(range(20))
            async with client.pubsub(ignore_subscribe_messages=True) as listener:
                await listener.subscribe("news")
                await client.publish("news", "one")
                while (message := await listener.get_message(timeout=5)) is None:
                    pass
                assert message["data"] == b"one"
            await client.connection_pool.disconnect()
            task = await hold(client, redis_server)
            redis_server.kill_one()
            with pytest.raises(exceptions.ConnectionError):
                await task
            assert await echo(client, 1) == 1

    with redis_server.peak() as seen:
        any_loop.run(main)
    assert seen.highest == 3


def test_threads_with_loops_of_their_own(redis_server: RedisServer, flavour: Flavour) -> None:
    """No runtime is needed: each loop gives up what it has idle when another needs it."""
    if flavour.name == "rloop":
        pytest.skip("rloop closes descriptors of others when loops end in several threads")
    client = ours.from_url(redis_server.url, max_connections=2)

    async def main() -> list[int]:
        return [await echo(client, number) for number in range(20)]

    def thread() -> list[int]:
        with asyncio.Runner(loop_factory=flavour.new) as runner:
            return runner.run(main())

    with redis_server.peak() as seen:
        threads = [TestThread(thread) for _ in range(4)]
        assert [each.result() for each in threads] == [list(range(20))] * 4
    assert seen.highest <= 2


# What is missing


def test_without_redis_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra, as for pip."""
    monkeypatch.setitem(sys.modules, "redis", None)
    for name in ("redis.asyncio", "polyloop.pools.redis"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=re.escape("pip install 'polyloop[redis]'")):
        importlib.import_module("polyloop.pools.redis")


# A race


async def use(client: Any, dice: random.Random) -> None:
    """One use of a connection: it answers, fails, holds it for a while or loses it."""
    kind, number = dice.random(), dice.randrange(1000)
    if kind < 0.1:
        with pytest.raises(exceptions.ResponseError):
            await client.execute_command("NO SUCH COMMAND")
    elif kind < 0.3:
        async with client.pipeline(transaction=number % 2) as pipeline:
            if number % 3 == 0:
                await pipeline.watch("key")
                await pipeline.get("key")
                pipeline.multi()
            assert (await pipeline.echo(str(number)).ping().execute())[0] == str(number)
    elif kind < 0.35:
        async with client.pubsub() as listener:
            await listener.subscribe(f"channel-{number}")
            await listener.get_message(timeout=0.01)
    elif kind < 0.4:
        async with client.client() as alone:
            assert await asyncio.gather(*(echo(alone, each) for each in (number, 2))) == [number, 2]
    elif kind < 0.43:
        await client.client_kill_filter(_id=await client.client_id(), skipme=False)
    elif kind < 0.5:
        await client.blpop("nothing", 0.01)
    else:
        assert await echo(client, number) == number


async def race(server: RedisServer, rng: random.Random, seconds: float) -> collections.Counter[str]:
    """Commands on all loops, some of which are cancelled; how they ended."""
    until = time.monotonic() + seconds

    async def one(seed: int) -> collections.Counter[str]:
        dice, ends = random.Random(seed), collections.Counter[str]()
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(dice.uniform(0, 0.05) if dice.random() < 0.3 else 20):
                    await use(client, dice)
                ends["answered"] += 1
            except TimeoutError:
                ends["cancelled"] += 1
            except (*GONE, exceptions.WatchError):
                ends["lost"] += 1
        return ends

    seeds = [rng.randrange(1 << 32) for _ in range(16)]
    async with ours.from_url(server.url, max_connections=CAP, decode_responses=True) as client:
        ends = await on_all_loops(16, lambda number: one(seeds[number]))
        await client.connection_pool.disconnect()  # one may lie there that the server has ended at this moment
        if LATEST:
            assert await on_all_loops(100, lambda number: echo(client, number)) == list(range(100))
            stats = client.connection_pool.stats()
            assert (stats.in_use, stats.waiting) == (0, 0)
    assert client.connection_pool.stats().size == 0
    return sum(ends, collections.Counter[str]())


def go_through(server: RedisServer, rng: random.Random, seconds: float) -> None:
    with server.peak() as seen:
        ends = polyloop.run(race(server, rng, seconds), loops=4)
    assert seen.highest <= CAP and server.connections() == 0
    assert ends["answered"]
    print(dict(ends), "peak", seen.highest, "in", seen.samples, "samples")


def test_a_race_of_everything(redis_server: RedisServer, rng: random.Random, seconds: float) -> None:
    """Whatever happens to commands on four loops, the cap holds and no place is lost."""
    go_through(redis_server, rng, seconds)


@pytest.mark.stress
def test_a_long_race_of_everything(redis_server: RedisServer, rng: random.Random, seconds: float) -> None:
    """As above, for long."""
    go_through(redis_server, rng, seconds)


def test_a_client_that_would_have_a_pool_of_one_loop_is_refused(redis_server: RedisServer) -> None:
    """Neither ``Redis(host=...)`` nor ``Redis.from_url`` gives redis-py's own pool."""
    with pytest.raises(TypeError, match=r"polyloop\.pools\.redis\.from_url"):
        ours.Redis(host="127.0.0.1")
    assert isinstance(ours.Redis.from_url(redis_server.url).connection_pool, ours.ConnectionPool)

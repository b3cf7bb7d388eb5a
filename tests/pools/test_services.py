"""The servers that other tests run against: what they count is exact, and they end with whoever started them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.pools import conftest, services
from tests.pools.postgres_service import PostgresServer
from tests.pools.redis_service import RedisServer
from tests.pools.services import Server, Unavailable

ROOT = Path(__file__).resolve().parents[2]


def postgres_client(server: PostgresServer, dsn: str | None = None, name: str = "") -> Any:
    """An open connection of psycopg's, that commits each statement."""
    import psycopg

    return psycopg.connect(dsn or server.dsn, autocommit=True, application_name=name)


def redis_client(server: RedisServer, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A connection that Redis has answered on."""
    made = socket.socket(family)
    made.connect(("127.0.0.1", server.port) if family == socket.AF_INET else str(server.socket_path))
    made.sendall(b"PING\r\n")
    assert made.recv(100) == b"+PONG\r\n"
    return made


def open_one(server: Server) -> Any:
    """A connection to either server."""
    return postgres_client(server) if isinstance(server, PostgresServer) else redis_client(as_redis(server))


def as_redis(server: Server) -> RedisServer:
    assert isinstance(server, RedisServer)
    return server


def is_over(client: Any) -> bool:
    """Whether the server has ended the connection: what is asked on it fails, or gets no answer."""
    if isinstance(client, socket.socket):
        with contextlib.suppress(ConnectionError):
            client.sendall(b"PING\r\n")
            return client.recv(100) == b""
        return True
    import psycopg

    with contextlib.suppress(psycopg.OperationalError):
        client.execute("select 1")
        return False
    return True


@pytest.fixture(params=["PostgreSQL", "Redis"])
def server(request: pytest.FixtureRequest, postgres: PostgresServer, redis_server: RedisServer) -> Server:
    """Each server in turn."""
    return {"PostgreSQL": postgres, "Redis": redis_server}[request.param]


def test_connections_are_counted_exactly(server: Server) -> None:
    """Three that are open count three, none of them the server's observers, and none once they are closed."""
    assert server.connections() == 0
    with contextlib.ExitStack() as clients:
        for count in (1, 2, 3):
            clients.enter_context(open_one(server))
            assert server.connections() == count
    server.wait_for_connections(0)


def test_connections_that_were_closed_count_as_opened(server: Server) -> None:
    """How often a server was connected to is counted as well, over its restarts too."""
    before = server.opened()
    for _ in range(3):
        open_one(server).close()
    assert server.opened() == before + 3
    server.stop()
    server.start()
    open_one(server).close()
    assert server.opened() == before + 4


def test_clients_reach_it_over_tcp_and_a_unix_socket(postgres: PostgresServer, redis_server: RedisServer) -> None:
    """Both ways lead to the same server."""
    for dsn in (postgres.dsn, postgres.socket_dsn):
        with postgres_client(postgres, dsn, "by name") as client:
            assert client.execute("select current_user, current_setting('is_superuser')").fetchone() == (
                "polyloop",
                "off",
            )
            assert (postgres.connections(), postgres.connections("by name"), postgres.connections("other")) == (1, 1, 0)
        postgres.wait_for_connections(0)
    for family in (socket.AF_INET, socket.AF_UNIX):
        with redis_client(redis_server, family):
            assert redis_server.connections() == 1
        redis_server.wait_for_connections(0)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_ends_connections_and_takes_new_ones_at_the_same_place(server: Server, mode: str) -> None:
    """A client of before the restart sees its end; one of after it is served under the same address."""
    with open_one(server) as old:
        server.stop(mode)
        assert is_over(old)
        server.start()
        assert server.connections() == 0
        with open_one(server) as new:
            assert server.connections() == 1 and not is_over(new)


def test_a_stopped_server_refuses_and_is_started_again_for_the_next_test(server: Server) -> None:
    """Nobody listens on the port in between; what the test leaves stopped is started after it."""
    server.stop()
    assert not server.running
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port)):
        pass


def test_it_runs_after_a_test_that_left_it_stopped(server: Server) -> None:
    """The next test finds it as it was."""
    assert server.running and server.connections() == 0


def test_one_or_all_connections_can_be_ended(server: Server) -> None:
    """The oldest goes first; those that are observed are gone when the call returns."""
    postgres = server if isinstance(server, PostgresServer) else None
    end_one = postgres.terminate_one if postgres else as_redis(server).kill_one
    end_all = postgres.terminate_all if postgres else as_redis(server).kill_all
    with contextlib.ExitStack() as clients:
        first, *others = [clients.enter_context(open_one(server)) for _ in range(4)]
        end_one()
        assert is_over(first)
        assert server.connections() == 3
        assert end_all() == 3
        assert all(is_over(client) for client in others)
        assert server.connections() == 0


def test_the_peak_is_seen_after_connections_are_gone(server: Server) -> None:
    """A sampler keeps the highest count of a block, while the server restarts too."""
    with server.peak() as seen:
        with contextlib.ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(open_one(server))
            one_more_sample(seen)
        server.wait_for_connections(0)
        server.stop()
        server.start()
        one_more_sample(seen)
    assert seen.highest == 5


def one_more_sample(seen: services.Peak) -> None:
    """Return when one sample at least was begun and ended since the call."""
    target = seen.samples + 2
    while seen.samples < target:
        os.sched_yield()


@pytest.mark.usefixtures("postgres")
def test_there_is_room_for_so_many_clients_and_for_the_observers() -> None:
    """One client more than the limit is refused, and can still be seen to be."""
    import psycopg

    with PostgresServer(max_connections=2) as small, contextlib.ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(postgres_client(small))
        with pytest.raises(psycopg.OperationalError, match="remaining connection slots"):
            postgres_client(small)
        assert small.connections() == 2
        clients.close()
        small.restart(max_connections=3)
        for _ in range(3):
            clients.enter_context(postgres_client(small))
        assert small.connections() == 3


@pytest.mark.usefixtures("redis_server")
def test_redis_has_room_for_so_many_clients() -> None:
    """The client above the limit hears so."""
    with RedisServer(max_clients=1) as small, redis_client(small):
        with socket.create_connection(("127.0.0.1", small.port)) as refused:
            assert refused.recv(100).startswith(b"-ERR max number of clients")
        assert small.connections() == 1


@pytest.mark.parametrize(("module", "kind"), [("postgres_service", "PostgresServer"), ("redis_service", "RedisServer")])
@pytest.mark.usefixtures("postgres", "redis_server")
def test_a_server_ends_with_a_process_that_is_killed(module: str, kind: str) -> None:
    """Nobody needs to clean up: the server and its folder are gone, whatever became of the tests."""
    program = f"""
import os, signal
from tests.pools.{module} import {kind}
server = {kind}()
print(server.port, server.folder, flush=True)
input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        port, folder = owner.stdout.readline().split()
        with socket.create_connection(("127.0.0.1", int(port))) as client:
            os.kill(owner.pid, signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        assert owner.stdout.read() == ""  # the watchdog has it open until its own end
    assert not Path(folder).exists()


def test_a_server_that_cannot_start_says_why(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the server's own words, and nothing stays behind."""
    monkeypatch.setattr(services, "_free_port", lambda: redis_server.port)
    with pytest.raises(RuntimeError, match="Address already in use"):
        RedisServer()


def test_a_missing_server_is_named_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is for whoever reads the summary of a test run."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="apt-get install redis-server"):
        RedisServer()


@pytest.mark.parametrize(("ci", "expected"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_what_is_missing_is_skipped_here_and_fails_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, expected: type[BaseException]
) -> None:
    """A test run that says nothing of its gaps would prove less than it seems to; CI has no gaps."""
    monkeypatch.setenv("CI", ci)

    def make() -> Server:
        raise Unavailable("there is none here")

    with pytest.raises(expected, match="there is none here"):
        conftest.start_or_skip(pytest.Stash(), make)

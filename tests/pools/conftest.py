"""Fixtures of tests against real servers, and a notice that is hard to overlook where those cannot be had."""

import os
from collections.abc import Callable, Iterator

import pytest
from tests.pools.postgres_service import PostgresServer
from tests.pools.redis_service import RedisServer
from tests.pools.services import Server, Unavailable

#: The fixtures that start a server. A test that uses one is marked ``services``.
SERVICES = ("postgres", "redis_server")

_missing = pytest.StashKey[dict[str, None]]()  # what could not be started, in the order of the first attempts


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not set(SERVICES).isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.services)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, and how to have it."""
    reasons = config.stash.get(_missing, {})
    if reasons:
        terminalreporter.section("SKIPPED: tests against real servers", sep="*", yellow=True, bold=True)
        for reason in reasons:
            terminalreporter.line(f"* {reason}", yellow=True)


def start_or_skip[S: Server](stash: pytest.Stash, make: Callable[[], S]) -> S:
    """A running server. Where it cannot be had, the test is skipped with a notice at the end; in CI it fails."""
    try:
        return make()
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"in CI these tests must run: {error}", pytrace=False)
        stash.setdefault(_missing, {})[str(error)] = None
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """A PostgreSQL, one for all tests."""
    with start_or_skip(pytestconfig.stash, PostgresServer) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[RedisServer]:
    """A Redis, one for all tests."""
    with start_or_skip(pytestconfig.stash, RedisServer) as server:
        yield server


@pytest.fixture(autouse=True)
def servers_as_they_were(request: pytest.FixtureRequest, nothing_left_behind: None) -> Iterator[None]:
    """After each test its servers run, with as many connections as before; one that was left open fails the test."""
    servers: list[Server] = [request.getfixturevalue(name) for name in SERVICES if name in request.fixturenames]
    before = [server.connections() for server in servers]
    yield
    for server, count in zip(servers, before, strict=True):
        if not server.running:
            server.start()
        server.wait_for_connections(count, or_fewer=True, timeout=5)

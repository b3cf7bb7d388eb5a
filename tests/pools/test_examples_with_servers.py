"""The examples that need a server."""

import pytest
from tests.pools.postgres_service import PostgresServer
from tests.test_examples import EXAMPLES, WITH_DATABASE, run


@pytest.mark.parametrize("name", sorted(WITH_DATABASE))
def test_an_example_runs_with_a_database(name: str, postgres: PostgresServer) -> None:
    """With PostgreSQL's address; it ends by itself, and leaves no connection and no table behind."""
    pytest.importorskip("asyncpg")
    assert run(str(EXAMPLES / name), postgres.dsn).strip()
    postgres.wait_for_connections(0)
    assert not postgres.execute("select tablename from pg_tables where tablename like 'polyloop%'")

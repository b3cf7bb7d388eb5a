"""A PostgreSQL for tests."""

import contextlib
import os
import pwd
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

from tests import leaks
from tests.pools.services import PATIENCE, Server, Unavailable


class PostgresServer(Server):
    """A PostgreSQL with room for exactly ``max_connections`` clients: user ``polyloop``, without a password.

    Attributes:
        dsn: How clients reach it over TCP.
        socket_dsn: How they reach it over its unix socket.
    """

    name = "PostgreSQL"
    _stop_signals: ClassVar = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

    def __init__(self, *, max_connections: int = 100) -> None:
        self.max_connections = max_connections
        self._observer: Any = None
        self._sampler: Any = None
        try:
            import psycopg
        except ImportError as error:
            raise Unavailable(
                f"psycopg cannot be imported ({str(error).splitlines()[0]}); install it with `make setup`, and the "
                "library that it loads with: apt-get install libpq5"
            ) from error
        self._psycopg = psycopg
        super().__init__(_postgres_programs() / "postgres", _unprivileged_account())
        self.dsn = f"postgresql://polyloop@127.0.0.1:{self.port}/postgres"
        self.socket_dsn = f"postgresql://polyloop@/postgres?host={self.folder}&port={self.port}"

    def stop(self, mode: str = "fast") -> None:
        """End the server: ``fast`` tells its clients, ``immediate`` drops them, ``smart`` waits until they go."""
        super().stop(mode)

    def restart(self, mode: str = "fast", *, max_connections: int = 0) -> None:
        """Stop and start again, perhaps with room for another number of clients."""
        self.stop(mode)
        self.max_connections = max_connections or self.max_connections
        self.start()

    def execute(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement as a superuser, in a transaction of its own, and return its rows."""
        assert self._observer is not None, "PostgreSQL is not running"
        return _rows(self._observer, query, parameters)

    def connections(self, application_name: str | None = None) -> int:
        """How many clients are connected now: all, or those that call themselves so."""
        return len(self.pids(application_name))

    def pids(self, application_name: str | None = None) -> list[int]:
        """The server's processes that serve a client, the oldest first."""
        rows = self.execute(_CLIENTS)
        return [pid for pid, name, _, _ in rows if application_name is None or application_name == name]

    def opened(self) -> int:
        return len(re.findall(r"connection authorized: user=polyloop\b", self.log))

    def terminate_one(self) -> int:
        """End the oldest connection, and return the process that served it when it is gone."""
        pids = self.pids()
        assert pids, "nobody is connected"
        self._terminate(pids[:1])
        return pids[0]

    def terminate_all(self) -> int:
        """End all connections that there are now; return how many, when they are gone."""
        pids = self.pids()
        self._terminate(pids)
        return len(pids)

    def _terminate(self, pids: list[int]) -> None:
        self.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) as pid", pids)
        deadline = time.monotonic() + PATIENCE
        while set(pids) & set(self.pids()):
            assert time.monotonic() < deadline, f"did not end: {self._who()}"

    def _prepare(self) -> None:
        options = ["--auth=trust", "--username=observer", "--no-locale", "--encoding=UTF8", "--wal-segsize=1"]
        command = [str(self._program.with_name("initdb")), "-D", str(self.folder / "data"), "--no-sync", *options]
        with open(self.folder / "log", "ab") as log:
            code = self._spawn(command, log).wait(6 * PATIENCE)
        if code:
            raise RuntimeError(f"initdb failed; it said:\n{self.log[-2000:]}")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            # We are two, and some places are kept free for superusers.
            "max_connections": self.max_connections + 2 + 3,
            "superuser_reserved_connections": 3,
            "shared_buffers": "16MB",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "jit": "off",
            "wal_level": "minimal",
            "max_wal_senders": 0,
            "log_connections": "on",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self._program), "-D", str(self.folder / "data"), *words]

    def _try_to_observe(self) -> bool:
        try:
            self._observer = self._connection()
            self._sampler = self._connection()
        except self._psycopg.OperationalError:
            self._end_observation()
            return False
        if not self.execute("select 1 from pg_roles where rolname = 'polyloop'"):
            self.execute("create role polyloop login")
            self.execute("grant all on database postgres to polyloop")
            self.execute("grant all on schema public to polyloop")
        return True

    def _connection(self) -> Any:
        made = self._psycopg.connect(
            host=str(self.folder), port=self.port, user="observer", dbname="postgres", autocommit=True
        )
        leaks.keep(made.fileno())
        return made

    def _end_observation(self) -> None:
        for connection in (self._observer, self._sampler):
            if connection is not None:
                connection.close()
        self._observer = self._sampler = None

    def _sample(self) -> int:
        return len(_rows(self._sampler, _CLIENTS, ()))

    def _who(self) -> object:
        return self.execute(_CLIENTS)


#: Who has not told its name yet has a place all the same.
_CLIENTS = """
    select pid, application_name, state, query from pg_stat_activity
    where backend_type = 'client backend' and usename is distinct from 'observer' order by backend_start, pid
"""


def _rows(connection: Any, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
    cursor = connection.execute(query, parameters or None)
    return list(cursor.fetchall()) if cursor.description else []


def _postgres_programs() -> Path:
    """The folder that holds ``initdb`` and ``postgres``: Debian keeps them off the path, one folder per version."""
    on_path = shutil.which("postgres")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    for folder in [*([Path(on_path).resolve().parent] if on_path else []), *versions]:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise Unavailable("there is no PostgreSQL server here; install it with: apt-get install postgresql")


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Whom to run as where we are root, for PostgreSQL refuses that."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Unavailable("PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody' here")

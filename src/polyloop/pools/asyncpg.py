"""Connections of asyncpg's, shared by all loops under one cap: ``create_pool`` with asyncpg's names.

::

    from polyloop.pools import asyncpg

    async with asyncpg.create_pool(dsn, max_size=10) as pool:      # ten for the process, however many loops
        rows = await pool.fetch("select * from shops where town = $1", town)     # on any loop

asyncpg's own pool belongs to the loop that made it. Here a connection does, and the pool to all of them.
"""

import asyncio
import contextlib
import functools
import importlib
import socket
import types
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import Any, Self

from polyloop.pools._hang_up import FAREWELL, has_hung_up, spare, until_hung_up
from polyloop.pools._loan import Loan
from polyloop.pools._pool import ResourcePool
from polyloop.pools._where import adopt, guarded

try:
    _client: Any = importlib.import_module("asyncpg")  # which comes without types for its connections
except ImportError as error:
    raise ImportError(
        f"polyloop.pools.asyncpg needs asyncpg, which cannot be imported ({error}); "
        "install it with: pip install 'polyloop[asyncpg]'"
    ) from error

__all__ = ("Pool", "create_pool")

type _Connection = Any
type _Hook = Callable[[_Connection], Awaitable[object]]

#: Public methods that use the connection, in all versions; those that a version lacks are left out.
_METHODS = (
    "add_listener",
    "add_log_listener",
    "close",
    "copy_from_query",
    "copy_from_table",
    "copy_records_to_table",
    "copy_to_table",
    "cursor",
    "execute",
    "executemany",
    "fetch",
    "fetchmany",
    "fetchrow",
    "fetchval",
    "prepare",
    "reload_schema_state",
    "remove_listener",
    "remove_log_listener",
    "reset",
    "reset_type_codec",
    "set_builtin_type_codec",
    "set_type_codec",
    "terminate",
    "transaction",
)

#: Options of asyncpg's pool that this has not, and what to do instead.
_REFUSED = {
    "max_queries": "give max_lifetime=, in seconds",
    "connect": "give what asyncpg.connect takes, or a ResourcePool with a create() of your own",
}

#: Of the time for closing a connection: what each of the two steps may take.
_SHARE = 0.4

_ADVICE = "acquire one on the loop that uses it: 'async with pool.acquire()'"


class _Pooled:
    """What a pool needs of its connections beyond what asyncpg's have. Bases are given when a class is made of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wires = [each for each in (*args, *kwargs.values()) if hasattr(each, "get_extra_info")]
        self._spare: socket.socket | None = None
        self._terse = False  # whether ``reset`` leaves the variables of the session alone

    def get_reset_query(self) -> str:
        of_client: Callable[[], str] = getattr(super(), "get_reset_query")  # noqa: B009 - mypy sees no base
        return "" if self._terse else of_client()

    def keep_spare(self) -> None:
        """Make what ``until_hung_up`` needs, from the transport, which asyncpg shows to a subclass when it is made."""
        wires, self._wires = self._wires, []
        with contextlib.suppress(OSError):  # too many files are open: the wait is for exactness only
            for wire in wires:
                self._spare = spare(wire.get_extra_info("socket").fileno())

    def has_hung_up(self) -> bool:
        """Whether the server has ended the session, though the loop has not looked yet."""
        return self._spare is not None and has_hung_up(self._spare, FAREWELL)

    def take_spare(self) -> socket.socket | None:
        """Hand it over."""
        sock, self._spare = self._spare, None
        return sock


@functools.cache
def _class_for(base: Any) -> Any:
    """A subclass of a connection class that refuses to be used on another loop than that it was made on."""
    bases, members = (_Pooled, base), {"__module__": base.__module__, "__doc__": base.__doc__}
    pooled = types.new_class(base.__name__, bases, exec_body=lambda space: space.update(members))
    return guarded(pooled, tuple(name for name in _METHODS if hasattr(base, name)), _ADVICE)


class _Connector:
    """Makes, cleans and closes the connections of one pool."""

    def __init__(
        self, dsn: str | None, init: _Hook | None, reset: _Hook | None, options: dict[str, Any], upkeep_timeout: float
    ) -> None:
        base = options.pop("connection_class", _client.Connection)
        self._dsn = dsn
        self._init = init
        self._reset = reset
        self._options = {**options, "connection_class": _class_for(base)}
        self._limit = upkeep_timeout * _SHARE

    async def connect(self) -> _Connection:
        connection = await _client.connect(self._dsn, **self._options)
        adopt(connection)
        connection.keep_spare()
        if self._init is not None:
            try:
                await self._init(connection)
            except BaseException:
                await self.close(connection)
                raise
        return connection

    def is_closed(self, connection: _Connection) -> bool:
        closed: bool = connection.is_closed() or connection.has_hung_up()
        return closed

    async def reset(self, connection: _Connection) -> None:
        try:
            await self._reset_once(connection)
            again = connection.is_in_transaction()
        except _client.InFailedSQLTransactionError:
            again = True
        if again:
            # asyncpg looks for a transaction before it waits for a query that is being cancelled, and that may have
            # begun one. Now it knows.
            await self._reset_once(connection)

    async def _reset_once(self, connection: _Connection) -> None:
        if self._reset is None:
            await connection.reset()
            return
        connection._terse = True
        try:
            await connection.reset()
        finally:
            connection._terse = False
        await self._reset(connection)

    async def close(self, connection: _Connection) -> None:
        sock = connection.take_spare()
        try:
            # Cancels what runs, and returns when the server has hung up. If that takes too long it aborts.
            await connection.close(timeout=self._limit)
        finally:
            if sock is not None:
                await until_hung_up(sock, self._limit)


class Pool(ResourcePool[_Connection]):
    """A ``ResourcePool`` of asyncpg's connections, with the everyday methods of asyncpg's pool; see ``create_pool``.

    What it lends are asyncpg's own connections (of a subclass that raises ``ForeignLoopError`` on another loop than
    their own), not proxies of them: after it was returned, do not use one again.

    .. versionadded:: 0.4
    """

    def __init__(self, connector: _Connector, setup: _Hook | None, **rules: Any) -> None:
        super().__init__(
            connector.connect, connector.close, reset=connector.reset, is_closed=connector.is_closed, **rules
        )
        self._setup = setup

    def __await__(self) -> Generator[Any, Any, Self]:
        return self.open().__await__()

    def acquire(self, *, timeout: float | None = None) -> "Loan[_Connection]":
        """Borrow a connection: ``async with pool.acquire() as connection``, or ``await`` it and ``release`` it later.

        Args:
            timeout: The most seconds to wait; by default as long as it takes.
        Returns:
            A loan, for one use; see ``ResourcePool.acquire``, also for errors, cancellation and thread safety.
        Raises:
            TimeoutError: the time was up.
            Exception: what asyncpg raised when it could not connect, or what ``setup`` raised.
        """
        if timeout is None and self._setup is None:
            return super().acquire()
        return _PreparedLoan(self, self._setup, timeout)

    async def release(self, resource: _Connection, *, timeout: float | None = None) -> None:
        """Return what ``await pool.acquire()`` gave; see ``ResourcePool.release``.

        Args:
            timeout: The most seconds that cleaning it up may take, at most ``upkeep_timeout``; then it is dropped.
        Raises:
            TimeoutError: the time was up.
        """
        if timeout is None:
            await super().release(resource)
            return
        async with asyncio.timeout(timeout):
            await super().release(resource)

    async def expire_connections(self) -> None:
        """Replace all connections; see ``ResourcePool.refresh``."""
        await self.refresh()

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """``Connection.execute`` on a connection of its own.

        Args:
            args: Values for ``$1``, ``$2`` and so on.
            timeout: Seconds for the query.
        Returns:
            The status of the last statement.
        Raises:
            Exception: as ``acquire`` and asyncpg's method.
        """
        async with self.acquire() as connection:
            status: str = await connection.execute(query, *args, timeout=timeout)
            return status

    async def executemany(self, command: str, args: Iterable[Any], *, timeout: float | None = None) -> None:
        """``Connection.executemany`` on a connection of its own; see ``execute``."""
        async with self.acquire() as connection:
            await connection.executemany(command, args, timeout=timeout)

    async def fetch(
        self, query: str, *args: Any, timeout: float | None = None, record_class: type[Any] | None = None
    ) -> list[Any]:
        """``Connection.fetch`` on a connection of its own: all rows; see ``execute``."""
        async with self.acquire() as connection:
            rows: list[Any] = await connection.fetch(query, *args, timeout=timeout, record_class=record_class)
            return rows

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """``Connection.fetchval`` on a connection of its own: one value of the first row; see ``execute``."""
        async with self.acquire() as connection:
            return await connection.fetchval(query, *args, column=column, timeout=timeout)

    async def fetchrow(
        self, query: str, *args: Any, timeout: float | None = None, record_class: type[Any] | None = None
    ) -> Any:
        """``Connection.fetchrow`` on a connection of its own: the first row, or ``None``; see ``execute``."""
        async with self.acquire() as connection:
            return await connection.fetchrow(query, *args, timeout=timeout, record_class=record_class)


class _PreparedLoan(Loan[_Connection]):
    """A loan with a limit of time, or a function that is called with what is lent."""

    __slots__ = ("_pool", "_setup", "_timeout")

    def __init__(self, pool: Pool, setup: _Hook | None, timeout: float | None) -> None:
        super().__init__(pool._desk())
        self._pool = pool
        self._setup = setup
        self._timeout = timeout

    async def __aenter__(self) -> _Connection:
        async with asyncio.timeout(self._timeout):
            connection = await super().__aenter__()
            if self._setup is not None:
                try:
                    await self._setup(connection)
                except BaseException:
                    self._pool.discard(connection)
                    raise
        return connection


def create_pool(
    dsn: str | None = None,
    *,
    max_size: int = 10,
    min_size: int = 0,
    max_inactive_connection_lifetime: float = 300.0,
    max_lifetime: float | None = 3600.0,
    max_waiting: int | None = None,
    patience: float = 0.25,
    upkeep_timeout: float = 5.0,
    init: _Hook | None = None,
    setup: _Hook | None = None,
    reset: _Hook | None = None,
    timeout: float = 60.0,
    name: str | None = None,
    **connect_kwargs: Any,
) -> Pool:
    """Make a pool of asyncpg's connections for all loops of the process.

    Use it in ``async with create_pool(dsn) as pool``, or await it as asyncpg's, or use it as it is: then whoever asks
    first waits for the first connection.

    Args:
        dsn: Where to connect to, as for ``asyncpg.connect``.
        max_size: The most connections that the process may have, over all loops.
        min_size: How many are kept ready; ``async with`` makes them, and fails if it cannot.
        max_inactive_connection_lifetime: Seconds that one may lie idle before it is closed; 0: as long as it likes.
        max_lifetime: Seconds after which one is replaced; ``None``: never.
        max_waiting: The most callers that may wait for one; ``None``: any number.
        patience: Seconds by which a caller may be overtaken by one of another loop; see ``ResourcePool``.
        upkeep_timeout: Seconds that cleaning up or closing one may take; then it is dropped.
        init: Called with each new connection, once.
        setup: Called with a connection each time it is lent; if it raises, that connection is closed.
        reset: Called with a connection that was returned, instead of the query of ``Connection.get_reset_query``, which
            forgets what the session has set, listens to and has locked. Listeners are removed, and a transaction that
            was left open is rolled back, in any case. If it raises, the connection is closed.
        timeout: Seconds that making a connection may take.
        name: Shown in errors and logs; by default ``asyncpg``.
        connect_kwargs: Other arguments of ``asyncpg.connect``. A ``connection_class`` is subclassed.
    Raises:
        TypeError: ``loop`` was given, since connections belong to the loops that borrow them; or an option of asyncpg's
            pool that this has not.
        ValueError: a number is out of range.
    Thread safety: any thread.

    .. versionadded:: 0.4
    """
    if connect_kwargs.pop("loop", None) is not None:
        raise TypeError(
            "create_pool() takes no loop: each connection belongs to the loop that borrows it; leave it out"
        )
    for option, instead in _REFUSED.items():
        if option in connect_kwargs:
            raise TypeError(f"create_pool() takes no {option!r} here: {instead}")
    return Pool(
        _Connector(dsn, init, reset, {**connect_kwargs, "timeout": timeout}, upkeep_timeout),
        setup,
        max_size=max_size,
        min_idle=min_size,
        max_idle_time=max_inactive_connection_lifetime or None,
        max_lifetime=max_lifetime,
        max_waiting=max_waiting,
        patience=patience,
        upkeep_timeout=upkeep_timeout,
        name=name or "asyncpg",
    )


def __getattr__(name: str) -> Any:
    """What this module has not is asyncpg's own: its errors and types, so that one import is enough."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_client, name)

"""Connections of psycopg's, shared by all loops under one cap: ``AsyncConnectionPool`` with psycopg_pool's names.

::

    from polyloop.pools.psycopg import AsyncConnectionPool

    async with AsyncConnectionPool(conninfo, max_size=10) as pool:      # ten for the process, however many loops
        async with pool.connection() as connection:                     # on any loop; commits, or rolls back
            await connection.execute("update shops set town = %s", [town])

psycopg_pool's pool belongs to the loop that opened it. Here a connection does, and the pool to all of them.
"""

import asyncio
import contextlib
import functools
import socket
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Self

from polyloop._core._port import logger
from polyloop.pools._hang_up import FAREWELL, has_hung_up, is_readable, spare, until_hung_up
from polyloop.pools._pool import ResourcePool
from polyloop.pools._where import adopt, guarded

try:
    import psycopg
    from psycopg import AsyncConnection, ProgrammingError
    from psycopg.pq import TransactionStatus
except ImportError as error:  # of the library that psycopg loads, perhaps
    raise ImportError(
        f"polyloop.pools.psycopg needs psycopg, which cannot be imported ({str(error).splitlines()[0]}); "
        "install it with: pip install 'polyloop[psycopg]'"
    ) from error

__all__ = ("AsyncConnectionPool", "PoolTimeout")

type _Connection = AsyncConnection[Any]
type _Hook = Callable[[_Connection], Awaitable[object]]

#: Public methods that use the connection. ``cancel`` may be called anywhere, and is for that.
_CONNECTION_METHODS = (
    "close",
    "commit",
    "cursor",
    "execute",
    "notifies",
    "pipeline",
    "rollback",
    "set_autocommit",
    "set_deferrable",
    "set_isolation_level",
    "set_read_only",
    "tpc_begin",
    "tpc_commit",
    "tpc_prepare",
    "tpc_recover",
    "tpc_rollback",
    "transaction",
    "wait",  # everything that talks to the server goes through it: transactions, copies
)

_CURSOR_METHODS = (
    "__anext__",
    "close",
    "copy",
    "execute",
    "executemany",
    "fetchall",
    "fetchmany",
    "fetchone",
    "results",
    "scroll",
    "set_result",
    "stream",
)

_ADVICE = "take one on the loop that uses it: 'async with pool.connection()'"

#: Of the time for closing a connection: what each of the steps may take.
_SHARE = 0.3

#: How much of what lies before the end of an idle connection is looked at: reads of libpq's, bytes. There is little.
_READS, _PEEK = 8, 16384

_ACTIVE, _IDLE = TransactionStatus.ACTIVE, TransactionStatus.IDLE

#: What asyncpg runs as well. Prepared statements stay, for psycopg knows of them.
_FORGET = "select pg_catalog.pg_advisory_unlock_all(); close all; unlisten *; reset all"


class PoolTimeout(psycopg.OperationalError, TimeoutError):
    """No connection came free in time. Nothing was taken.

    .. versionadded:: 0.4
    """


class _Pooled:
    """What a pool keeps with each of its connections."""

    polyloop_spare: socket.socket | None = None  # for looking at the connection, and for waiting until it is over
    polyloop_cancel: Callable[[], None] | None = None  # stops the server's work, also when the client has forgotten it


@functools.cache
def _connection_class(base: Any) -> Any:
    """A subclass of a connection class that refuses to be used on another loop than that it was made on."""
    members = {"__module__": base.__module__, "__doc__": base.__doc__}
    pooled = types.new_class(base.__name__, (_Pooled, base), exec_body=lambda space: space.update(members))
    return guarded(pooled, tuple(name for name in _CONNECTION_METHODS if hasattr(base, name)), _ADVICE)


@functools.cache
def _cursor_class(base: Any) -> Any:
    """A subclass of a cursor class that refuses to be used on another loop than its connection."""
    guard = guarded(base, tuple(name for name in _CURSOR_METHODS if hasattr(base, name)), _ADVICE)
    setattr(guard, "_polyloop_home", property(_home_of_connection))  # noqa: B010 - the class is known as Any only
    return guard


def _home_of_connection(cursor: Any) -> Any:
    return getattr(cursor.connection, "_polyloop_home", None)


class _Connector:
    """Makes, cleans, looks at and closes the connections of one pool."""

    def __init__(
        self,
        conninfo: str,
        connection_class: type[_Connection],
        options: Mapping[str, Any],
        configure: _Hook | None,
        reset: _Hook | None,
        upkeep_timeout: float,
    ) -> None:
        self._conninfo = conninfo
        base: Any = connection_class
        self._class = _connection_class(base)
        self._options = dict(options)
        self._configure = configure
        self._reset = reset
        self._limit = upkeep_timeout * _SHARE

    async def connect(self) -> _Connection:
        try:
            connection: Any = await self._class.connect(self._conninfo, **self._options)
        except asyncio.CancelledError as error:
            # psycopg leaves the half-made connection to its last reference, which is in the frames of the traceback.
            raise error.with_traceback(None) from None
        adopt(connection)
        connection.cursor_factory = _cursor_class(connection.cursor_factory)
        connection.server_cursor_factory = _cursor_class(connection.server_cursor_factory)
        with contextlib.suppress(OSError):  # too many files are open: the wait is for exactness only
            connection.polyloop_spare = spare(connection.fileno())
            connection.polyloop_cancel = connection.pgconn.get_cancel().cancel
        if self._configure is not None:
            try:
                await self._configure(connection)
                _check_idle(connection, "configure", self._configure)
            except BaseException:
                await self.close(connection)
                raise
        return connection  # type: ignore[no-any-return]

    def is_closed(self, connection: Any) -> bool:
        # psycopg learns of the end at the next query; the socket knows at once.
        sock = connection.polyloop_spare
        if connection.closed or sock is None:
            return bool(connection.closed)
        return has_hung_up(sock, FAREWELL) or (is_readable(sock) and _has_ended(connection, sock))

    async def reset(self, connection: _Connection) -> None:
        status = connection.pgconn.transaction_status
        if status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
            await connection.rollback()
        else:
            _check_idle(connection, "its borrower", "")  # in the middle of something, or over
        if self._reset is not None:
            await self._reset(connection)
            _check_idle(connection, "reset", self._reset)

    async def close(self, connection: Any) -> None:
        sock, connection.polyloop_spare = connection.polyloop_spare, None
        try:
            await self._interrupt(connection, sock)
        finally:
            await connection.close()  # waits for nothing
            if sock is not None:
                await self._see_off(sock, connection.polyloop_cancel)

    async def _interrupt(self, connection: Any, sock: socket.socket | None) -> None:
        """Make whoever uses the connection stop.

        Nobody may wait for a descriptor that is closed under him: its number may soon be that of another connection.
        """
        try:
            if connection.pgconn.transaction_status == _ACTIVE:
                await connection.cancel_safe(timeout=self._limit)
                await self._until_unused(connection)
        except (psycopg.Error, TimeoutError) as error:
            logger.debug("polyloop: a query could not be cancelled: %r", error)
        if connection.lock.locked() and sock is not None:
            with contextlib.suppress(OSError, TimeoutError):
                sock.shutdown(socket.SHUT_WR)  # the server hangs up, which whoever waits for news hears
                await self._until_unused(connection)

    async def _see_off(self, sock: socket.socket, cancel: Callable[[], None]) -> None:
        """Wait until the server has let go.

        A cancellation that reaches a server before its query does is lost, and psycopg drops a connection whose query
        does not end. The server goes on with that unless somebody asks again.
        """
        try:
            second = spare(sock.fileno())
        except OSError:  # too many files are open
            await until_hung_up(sock, self._limit)
            return
        with second:
            if await until_hung_up(sock, self._limit):
                return
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(self._limit):
                    await asyncio.to_thread(cancel)
            await until_hung_up(second, self._limit)

    async def _until_unused(self, connection: Any) -> None:
        async with asyncio.timeout(self._limit), connection.lock:
            pass


def _check_idle(connection: _Connection, who: str, what: object) -> None:
    status = connection.pgconn.transaction_status
    if status != _IDLE:
        name = TransactionStatus(status).name
        raise ProgrammingError(f"connection left in status {name} by {who} {what}".rstrip() + ": it is dropped")


class AsyncConnectionPool(ResourcePool[_Connection]):
    """A ``ResourcePool`` of psycopg's connections, with the names of psycopg_pool's.

    It needs no opening: without it, whoever asks first waits for the first connection. A connection that fails to be
    made raises psycopg's error in whoever waited for it; nothing is tried again behind the scenes.

    Args:
        conninfo: Where to connect to, as for ``psycopg.AsyncConnection.connect``.
        connection_class: What to make; it is subclassed, so that a connection and its cursors raise
            ``ForeignLoopError`` on another loop than their own.
        kwargs: Other arguments of ``connect``.
        min_size: How many connections are kept ready; ``async with pool`` makes them, and fails if it cannot.
        max_size: The most that the process may have, over all loops; at least ``min_size``. ``None``: as many as that.
        open: Accepted since programs for psycopg_pool have it; it means nothing here.
        configure: Called with each new connection, once. It must leave no transaction open.
        check: Called with a connection that is to be lent again; if it raises, it is dropped, and the next is tried.
            ``AsyncConnectionPool.check_connection`` asks the server. One that the server has ended while it lay idle
            is noticed without.
        check_after: Seconds that one must have lain idle to be checked. psycopg_pool's pool checks always.
        reset: Called with a connection that was returned, after an open transaction was rolled back. By default what
            the session has set or listens to stays as it is; ``AsyncConnectionPool.reset_connection`` forgets it.
        name: Shown in errors and logs; by default ``psycopg``.
        timeout: Seconds that callers wait for a connection, where they do not say.
        max_waiting: The most callers that may wait; 0: any number.
        max_lifetime: Seconds after which a connection is replaced.
        max_idle: Seconds that one may lie idle before it is closed.
        patience: Seconds by which a caller may be overtaken by one of another loop; see ``ResourcePool``.
        upkeep_timeout: Seconds that cleaning up or closing a connection may take; then it is dropped.
    Raises:
        ValueError: a number is out of range.
    Thread safety: see ``ResourcePool``.

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        conninfo: str = "",
        *,
        connection_class: type[_Connection] = AsyncConnection,
        kwargs: Mapping[str, Any] | None = None,
        min_size: int = 0,
        max_size: int | None = 10,
        open: bool | None = None,  # noqa: A002 - psycopg_pool's name
        configure: _Hook | None = None,
        check: _Hook | None = None,
        check_after: float = 0.0,
        reset: _Hook | None = None,
        name: str | None = None,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float | None = 3600.0,
        max_idle: float | None = 600.0,
        patience: float = 0.25,
        upkeep_timeout: float = 5.0,
    ) -> None:
        if callable(kwargs):
            raise TypeError(f"kwargs must be a mapping here, not a function, got {kwargs!r}; pass what it returns")
        connector = _Connector(conninfo, connection_class, kwargs or {}, configure, reset, upkeep_timeout)
        super().__init__(
            connector.connect,
            connector.close,
            check=None if check is None else functools.partial(_passes, check),
            reset=connector.reset,
            is_closed=connector.is_closed,
            max_size=max(min_size, 1 if max_size is None else max_size),
            min_idle=min_size,
            max_idle_time=max_idle,
            max_lifetime=max_lifetime,
            max_waiting=max_waiting or None,
            check_after=check_after,
            patience=patience,
            upkeep_timeout=upkeep_timeout,
            name=name or "psycopg",
        )
        self._timeout = timeout

    @contextlib.asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncGenerator[_Connection]:
        """Borrow a connection for a block: commit at its end, or roll back if it ends by an exception.

        Args:
            timeout: Seconds to wait for one; by default those of the pool.
        Raises:
            PoolTimeout: the time was up.
            psycopg.Error: it could not be made, or the transaction not be committed.
            Exception: as ``ResourcePool.acquire``.
        Cancellation: rolls back.
        """
        connection = await self.getconn(timeout)
        try:
            try:
                yield connection
            except GeneratorExit:  # it is being closed, and may wait for nothing: the pool drops the connection
                raise
            except BaseException:
                await _roll_back(connection)
                raise
            if not connection.closed:
                await connection.commit()
        finally:
            await self.putconn(connection)

    async def getconn(self, timeout: float | None = None) -> _Connection:
        """Borrow a connection, to return it by ``putconn``; see ``connection``.

        Raises:
            PoolTimeout: the time was up.
            Exception: as ``ResourcePool.acquire``.
        """
        seconds = self._timeout if timeout is None else timeout
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await self.acquire()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise PoolTimeout(f"no connection came free within {seconds!r} s: {self!r}") from error

    async def putconn(self, conn: _Connection) -> None:
        """Return what ``getconn`` gave; see ``ResourcePool.release``. A transaction that is open is rolled back."""
        await self.release(conn)

    async def open(self, wait: bool = True, timeout: float = 30.0) -> Self:
        """Make ``min_size`` connections and wait for them; ``async with pool`` does this.

        Args:
            wait: Accepted since psycopg_pool's has it. It always waits, so that a server that is down shows here.
            timeout: The most seconds to wait.
        Raises:
            PoolTimeout: the time was up.
            psycopg.Error: one could not be made.
        """
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await super().open()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise PoolTimeout(f"the first connections were not made within {timeout!r} s: {self!r}") from error

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until ``min_size`` connections are ready, as ``open`` does."""
        await self.open(timeout=timeout)

    async def drain(self) -> None:
        """Replace all connections, as psycopg_pool's does: idle ones now, the others when they are returned.

        (``ResourcePool.drain`` ends a pool. Here, ``close`` does.)
        """
        await self.refresh()

    @staticmethod
    async def check_connection(conn: _Connection) -> None:
        """Ask the server whether a connection works; for ``check``.

        Raises:
            psycopg.Error: it does not.
        """
        await _execute_outside(conn, "")

    @staticmethod
    async def reset_connection(conn: _Connection) -> None:
        """Make the server forget what a session has set, listens to and has locked; for ``reset``.

        What ``configure`` has set by ``SET`` is forgotten as well: say it in ``kwargs={"options": "-c name=value"}``.

        Raises:
            psycopg.Error: it could not.
        """
        await _execute_outside(conn, _FORGET)


def _has_ended(connection: _Connection, sock: socket.socket) -> bool:
    """Whether the end follows what lies there to be read: notifications, say, or records of TLS."""
    if not connection.pgconn.ssl_in_use:
        return FAREWELL in _messages(sock)
    try:  # libpq reads, and keeps what it has read; a notification then comes with the next answer
        for _ in range(_READS):
            if not is_readable(sock):
                break
            connection.pgconn.consume_input()
    except psycopg.Error:
        return True
    return connection.closed


def _messages(sock: socket.socket) -> list[bytes]:
    """The kinds of the messages that lie there, which stay there: a letter and a length each."""
    kinds: list[bytes] = []
    try:
        seen = sock.recv(_PEEK, socket.MSG_PEEK)
    except OSError:
        return kinds
    at = 0
    while at + 5 <= len(seen):
        kinds.append(seen[at : at + 1])
        at += 1 + int.from_bytes(seen[at + 1 : at + 5])
    return kinds


async def _passes(check: _Hook, connection: _Connection) -> None:
    """Only an exception says no."""
    await check(connection)


async def _execute_outside(connection: _Connection, query: str) -> None:
    """Run it without beginning a transaction."""
    if connection.autocommit:
        await connection.execute(query.encode())
        return
    await connection.set_autocommit(True)
    try:
        await connection.execute(query.encode())
    finally:
        with contextlib.suppress(psycopg.Error):  # it is over, which the query has said
            await connection.set_autocommit(False)


async def _roll_back(connection: _Connection) -> None:
    """After an exception, which must not be replaced by another."""
    if not connection.closed:
        try:
            await connection.rollback()
        except Exception as error:
            logger.warning("polyloop: a transaction could not be rolled back on %s: %r", connection, error)


def __getattr__(name: str) -> Any:
    """What this module has not is psycopg's own: its errors and types, so that one import is enough."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(psycopg, name)

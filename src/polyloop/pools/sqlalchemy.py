"""SQLAlchemy's engines for all loops under one cap: ``create_async_engine`` with its name and its options.

::

    from polyloop.pools.sqlalchemy import create_async_engine

    engines = create_async_engine("postgresql+asyncpg://localhost/shops", max_size=10)     # ten for the process

    async def towns():                                       # on any loop
        async with engines().connect() as connection:        # the engine of this loop
            return (await connection.execute(text("select town from shops"))).scalars().all()

    sessions = polyloop.per_loop(lambda: async_sessionmaker(engines()))                    # for the ORM
    async with sessions()() as session:
        ...

An ``AsyncEngine`` belongs to a loop, with the pool of its own that it usually has. Here each loop has an engine, and
what those have in common is the cap: a connection that one loop does not need is closed, so that another may have one.
Each engine also has its own cache of compiled statements and its own listeners; ``configure=`` is called with each.

What a connection goes through is SQLAlchemy's: ``pool_pre_ping``, ``pool_recycle``, ``pool_reset_on_return``,
invalidation and the events of pools. One that was detached counts towards the cap until it is closed.

SQLAlchemy's asyncio part needs greenlet, which switches the GIL on in free-threaded 3.13; 3.14t and newer have a
greenlet that keeps it off.
"""

import asyncio
import contextlib
import functools
import importlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

from polyloop._core._errors import ForeignLoopError
from polyloop._core._port import current_port
from polyloop.pools._hang_up import spare, until_hung_up
from polyloop.pools._per_loop import PerLoop
from polyloop.pools._pool import ResourcePool
from polyloop.pools._stats import PoolStats
from polyloop.pools._where import Home, call_site
from polyloop.sync import Event

try:
    _greenlet: Any = importlib.import_module("greenlet")  # some versions come without types
    import sqlalchemy.exc
    from sqlalchemy import URL, event
    from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolResetState
    from sqlalchemy.util import await_only, greenlet_spawn
    from sqlalchemy.util.concurrency import in_greenlet
except ImportError as error:  # of greenlet, perhaps
    raise ImportError(
        f"polyloop.pools.sqlalchemy needs SQLAlchemy and greenlet, of which one cannot be imported ({error}); "
        "install them with: pip install 'polyloop[sqlalchemy]'"
    ) from error

__all__ = ("Engines", "create_async_engine")

#: What a record of a connection is used for here, in its ``record_info``.
_LENT = "polyloop.lent"  # a Home: the loop, and where it was borrowed
_MADE = "polyloop.made"  # the connection that it had last
_FORGOTTEN = "polyloop.forgotten"  # whether it is being collected as garbage
_REFUSED = "polyloop.refused"  # the error for being closed on another loop
_SPARE = "polyloop.spare"  # a second descriptor of that, for waiting until the server has let go of it
_LEFT = "polyloop.left"  # a task that waits until the server has let go of one

#: Seconds for a server to end a query. A guess.
_CANCEL = 2.0

#: Seconds that another thread may take to write a warning. A guess.
_WARNED = 0.1

_ADVICE = "use an engine, and its connections and sessions, on its own loop: engines()"

#: Options of SQLAlchemy's pools that this takes the place of.
_REPLACED = ("pool", "poolclass", "pool_size", "max_overflow", "pool_use_lifo")

#: Methods of a dialect by which all goes that an engine sends. Listening to its events would cost each loan 50 µs more.
_SENDING = ("do_commit", "do_execute", "do_execute_no_params", "do_executemany", "do_rollback")


class _LoopPool(Pool):
    """The pool of one engine, that is of one loop: it borrows from what all have in common. Loop thread, if not said.

    SQLAlchemy calls it in a greenlet, where ``await_only`` waits; its garbage collection calls it in any thread.
    """

    def __init__(self, creator: Any, engines: "Engines", **options: Any) -> None:
        super().__init__(creator, **options)
        self._engines = engines
        self._home = Home.of_this_loop()
        self._disposed = False
        # By this, records connect, also again; it is the creator, called with a record whether that takes one or not.
        self._invoke_creator = functools.partial(self._connect, self._invoke_creator)
        if "_dispatch" not in options:  # else the listeners were copied from the pool before
            event.listen(self, "connect", engines._connected)
            event.listen(self, "reset", _refuse_to_reset)

    def _connect(self, creator: Any, record: ConnectionPoolEntry) -> Any:
        # A task, since a borrower that is cancelled would leave a connection to the server that nobody knows of.
        connecting = self._home.port.loop.create_task(greenlet_spawn(creator, record), name="connect for SQLAlchemy")
        try:
            return await_only(asyncio.shield(connecting))
        except asyncio.CancelledError:
            _info(record)[_LEFT] = self._engines._start(self._close_when_made(connecting))
            raise

    async def _close_when_made(self, connecting: "asyncio.Task[Any]") -> None:
        with contextlib.suppress(Exception):
            connection = await connecting
            sock = _spare_of(self._dialect.get_driver_connection(connection))
            await greenlet_spawn(super()._close_connection, connection, terminate=True)
            if sock is not None:
                await until_hung_up(sock)

    def _do_get(self) -> ConnectionPoolEntry:
        if not self._home.port.is_current():
            raise self._home.refuse("an AsyncEngine", _ADVICE)
        engines = self._engines
        slot = engines._pool._desk().borrow_nowait(engines)
        record = await_only(engines._borrow()) if slot is None else slot.resource
        # Our own frames are the greenlet's, those of the user its parent's.
        _info(record)[_LENT] = Home(self._home.port, call_site(_greenlet.getcurrent().parent.gr_frame))
        return record

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        port = self._home.port
        if _info(record).get(_FORGOTTEN):
            # Not here, for a finaliser may interrupt anything, and not yet, for it is going to describe what it found.
            port.post(port.loop.call_later, _WARNED, self._give_back, record)
        elif port.is_current():
            self._give_back(record)
            return
        else:
            port.post(self._give_back, record)
        refusal: ForeignLoopError | None = _info(record).pop(_REFUSED, None)
        if refusal is not None:
            raise refusal

    def _give_back(self, record: ConnectionPoolEntry) -> None:
        engines = self._engines
        if record.dbapi_connection is None and id(_info(record).get(_MADE)) in engines._open:
            self._detached(record)
            return
        desk = engines._pool._desks.get(self._home.port)
        slot = None if desk is None else desk.lent(record)
        if desk is None or slot is None:  # closed with its loop or with the pool
            return
        if self._disposed or record.dbapi_connection is None:
            desk.drop(slot)
        else:
            desk.give_back(slot)

    def _detached(self, record: ConnectionPoolEntry) -> None:
        """It was taken from its record, and is open: that keeps its place until it is closed."""
        forgotten = _info(record).pop(_FORGOTTEN, False)
        if self._dialect.has_terminate:
            return
        # SQLAlchemy never closes it, then; psycopg's, for example.
        connection = _info(record)[_MADE]
        self._close_soon(connection, self._engines._open.pop(id(connection), None))
        if not forgotten:
            driver = getattr(self._dialect, "driver", "")
            raise sqlalchemy.exc.InvalidRequestError(
                f"connections of {driver!r} cannot be detached, for SQLAlchemy would never close them; it was closed"
            )

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        record = self._engines._open.pop(id(connection), None)
        forgotten = record is not None and _FORGOTTEN in _info(record)
        if self._home.port.is_current() and not forgotten:
            self._close_here(connection, record, terminate)
        else:  # collected as garbage, or closed where it was refused
            self._home.port.post(self._close_soon, connection, record)

    def _close_soon(self, connection: Any, record: ConnectionPoolEntry | None) -> None:
        """In a greenlet, since not all drivers can close without."""
        task = self._engines._start(greenlet_spawn(self._close_here, connection, record, True))
        if record is not None:
            _info(record)[_LEFT] = task

    def _close_here(self, connection: Any, record: ConnectionPoolEntry | None, terminate: bool) -> None:
        try:
            super()._close_connection(connection, terminate=terminate)
        finally:
            self._wait_for_the_server(record)
            if record is not None and record.dbapi_connection is not connection:  # it was detached
                self._give_back(record)

    def _wait_for_the_server(self, record: ConnectionPoolEntry | None) -> None:
        sock: socket.socket | None = None if record is None else _info(record).pop(_SPARE, None)
        if record is None or sock is None:
            return
        if self._home.port not in self._engines._pool._desks:
            sock.close()
            return
        waiting = _info(record)[_LEFT] = self._engines._start(until_hung_up(sock))
        if in_greenlet():  # and is perhaps about to connect again
            await_only(asyncio.shield(waiting))

    def recreate(self) -> Pool:
        self.logger.info("Pool recreating")
        made = self.__class__(
            self._creator,
            self._engines,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            pre_ping=self._pre_ping,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )
        made._home = self._home  # from inside a greenlet it cannot be told where that was
        return made

    def dispose(self) -> None:
        """Close what lies idle on this loop, and what is lent when it comes back."""
        if not self._home.port.is_current():
            raise self._home.refuse("an AsyncEngine", _ADVICE)
        self._disposed = True
        await_only(self._engines._close_idle_here())

    def status(self) -> str:
        return repr(self._engines._pool)


class Engines(PerLoop[AsyncEngine]):
    """One engine for each loop, with one cap for all; made by ``create_async_engine``. Call it for that of this loop.

    What calling it raises, and its thread safety, are those of ``PerLoop``.

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        url: str | URL,
        options: dict[str, Any],
        timeout: float | None,
        configure: Callable[[AsyncEngine], object] | None,
        **rules: Any,
    ) -> None:
        self._url = url
        self._options = options
        self._timeout = timeout
        self._configure = configure
        # Connections that SQLAlchemy has not closed, by identity, with their records. Single operations of any thread.
        self._open: dict[int, ConnectionPoolEntry] = {}
        self._closing: set[asyncio.Task[Any]] = set()  # each is added and removed by its own loop
        self._pool: ResourcePool[ConnectionPoolEntry] = ResourcePool(self._create, self._close_record, **rules)
        super().__init__(self._make_engine, AsyncEngine.dispose)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._pool!r}>"

    def stats(self) -> PoolStats:
        """What the connections of all engines are doing and have done. Any thread."""
        return self._pool.stats()

    async def aclose(self, timeout: float = 10.0) -> None:
        """Close all connections and engines, each on its loop, and make no more. Bounded.

        Args:
            timeout: Seconds to wait for connections to be returned; then they are closed under their borrowers.
        Cancellation: the loops go on closing what is not lent.
        Thread safety: any loop.
        """
        await self._pool.close(timeout)
        await super().aclose()

    def _make_engine(self) -> AsyncEngine:
        engine = sqlalchemy_asyncio.create_async_engine(self._url, poolclass=_LoopPool, engines=self, **self._options)
        _guard_dialect(engine.dialect, Home.of_this_loop())
        if self._configure is not None:
            self._configure(engine)
        return engine

    async def _borrow(self) -> ConnectionPoolEntry:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await self._pool.acquire()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise sqlalchemy.exc.TimeoutError(
                f"no connection came free within {self._timeout!r} s from {self._pool!r}; "
                "raise max_size= or pool_timeout="
            ) from error

    def _start(self, closing: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Close something that is in nobody's hands any more. Loop thread."""
        task = asyncio.create_task(closing, name=f"close a connection of {self._pool.name!r}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _close_idle_here(self) -> None:
        desk = self._pool._desks.get(current_port())
        if desk is not None:
            done = Event()
            desk.close_idle(done)
            await done.wait()

    # What the ResourcePool calls, on the loop of the connection

    async def _create(self) -> ConnectionPoolEntry:
        await _leave_greenlet()
        return await greenlet_spawn(self().sync_engine.pool._create_connection)

    async def _close_record(self, record: ConnectionPoolEntry) -> None:
        await _leave_greenlet()
        if record.in_use:  # closed under its borrower, perhaps amid a query, which an ordinary close cannot end
            await _cancel_query(record.driver_connection)
            await greenlet_spawn(record.invalidate)
        else:
            await greenlet_spawn(record.close)
        left: asyncio.Task[Any] | None = _info(record).get(_LEFT)
        if left is not None:
            await asyncio.wait([left])

    def _connected(self, connection: Any, record: ConnectionPoolEntry) -> None:
        info = _info(record)
        info[_MADE] = connection
        # Now, for a driver may end a connection by itself, as psycopg does with one whose query cannot be cancelled.
        info[_SPARE] = _spare_of(record.driver_connection)
        self._open[id(connection)] = record


def _refuse_to_reset(connection: Any, record: ConnectionPoolEntry | None, state: PoolResetState) -> None:
    """Before a connection is cleaned up: if this raises, SQLAlchemy drops it, and would leave it at a line in a log."""
    if record is None:  # it was detached
        return
    if not state.asyncio_safe:
        _info(record)[_FORGOTTEN] = True
        return
    home: Home | None = _info(record).get(_LENT)
    if home is not None and not home.port.is_current():
        refusal = _info(record)[_REFUSED] = home.refuse("a connection of SQLAlchemy's", _ADVICE)
        raise refusal


async def _leave_greenlet() -> None:
    """Go on in the loop's own greenlet: a task of the pool's begins in that of whoever gave something back."""
    if in_greenlet():
        await asyncio.sleep(0)


def _info(record: ConnectionPoolEntry) -> dict[Any, Any]:
    return cast("dict[Any, Any]", record.record_info)


def _guard_dialect(dialect: Any, home: Home) -> None:
    """Have an engine's dialect refuse to send anything on another loop."""

    def checked(send: Callable[..., Any], target: Any, *args: Any) -> Any:
        if not home.port.is_current():
            # A connection, or a cursor and at last its context; what is detached has no record any more.
            lender = args[-1].root_connection.connection if args else target
            info: dict[Any, Any] = getattr(lender, "record_info", None) or {}
            raise cast("Home", info.get(_LENT, home)).refuse("a connection of SQLAlchemy's", _ADVICE)
        return send(target, *args)

    for name in _SENDING:
        setattr(dialect, name, functools.partial(checked, getattr(dialect, name)))


async def _cancel_query(driver: Any) -> None:
    """End what runs, where closing does not: a server goes on with a query though nobody wants its answer."""
    cancel = getattr(driver, "cancel_safe", None)  # psycopg's
    if cancel is not None:
        with contextlib.suppress(Exception):
            await cancel(timeout=_CANCEL)


def _spare_of(driver: Any) -> socket.socket | None:
    """For ``until_hung_up``; ``None`` for drivers without a socket, or that do not show it."""
    with contextlib.suppress(Exception):  # too many files are open: the wait is for exactness only
        if hasattr(driver, "fileno"):  # psycopg
            return spare(driver.fileno())
        return spare(driver._transport.get_extra_info("socket").fileno())  # asyncpg has nothing that is public
    return None


def create_async_engine(
    url: str | URL,
    *,
    max_size: int = 10,
    pool_timeout: float | None = 30.0,
    max_waiting: int | None = None,
    max_idle_time: float | None = 300.0,
    max_lifetime: float | None = 3600.0,
    patience: float = 0.25,
    upkeep_timeout: float = 5.0,
    name: str = "sqlalchemy",
    configure: Callable[[AsyncEngine], object] | None = None,
    **engine_kwargs: Any,
) -> Engines:
    """Make engines for all loops of the process: ``engines()`` is that of the running loop.

    ``async with create_async_engine(...) as engines`` closes them all at its end; what a loop has is closed with it.

    Args:
        url: As for ``sqlalchemy.ext.asyncio.create_async_engine``; tried with asyncpg and with psycopg.
        max_size: The most connections that the process may have, over all loops.
        pool_timeout: Seconds to wait for a connection; ``None``: as long as it takes.
        max_waiting: The most callers that may wait for one; one more gets ``PoolBusyError``. ``None``: any number.
        max_idle_time: Seconds that one may lie idle before it is closed; ``None``: as long as it likes.
        max_lifetime: Seconds after which one is replaced; ``None``: never.
        patience: Seconds by which a caller may be overtaken by one of another loop; see ``ResourcePool``.
        upkeep_timeout: Seconds that closing one may take; then it is dropped.
        name: Shown in errors and logs.
        configure: Called with each engine when it is made, on its loop; to listen to its events, for example.
        engine_kwargs: Other arguments of SQLAlchemy's function, for each engine.
    Returns:
        Engines; call them. Waiting for a connection raises ``sqlalchemy.exc.TimeoutError`` when its time is up.
    Raises:
        TypeError: an option was given of the pools that this takes the place of.
        ValueError: a number is out of range.
    Thread safety: any thread.

    .. versionadded:: 0.4
    """
    replaced = [option for option in _REPLACED if option in engine_kwargs]
    if replaced:
        raise TypeError(f"create_async_engine() has one pool for all loops, and takes no {replaced[0]}; give max_size=")
    return Engines(
        url,
        engine_kwargs,
        pool_timeout,
        configure,
        max_size=max_size,
        max_waiting=max_waiting,
        max_idle_time=max_idle_time,
        max_lifetime=max_lifetime,
        patience=patience,
        upkeep_timeout=upkeep_timeout,
        name=name,
    )

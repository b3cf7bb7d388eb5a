"""Connections of redis-py's, shared by all loops under one cap: ``from_url`` and ``ConnectionPool`` with its names.

::

    from polyloop.pools import redis

    async with redis.from_url("redis://localhost", max_connections=10) as client:    # ten for the process
        await client.set("town", "Ulm")                                              # on any loop

The client is a ``redis.asyncio.Redis``: one object for all loops. Its own pool belongs to the loop that used it first;
here a connection does, and the pool to all of them. A command borrows a connection for as long as it runs; a pipeline
while it executes or watches, a ``PubSub``, a ``Monitor`` and ``client.client()`` until they are closed: these count
towards the cap all that time, and are used on one loop.

Of redis-py this leaves out what changes the connections of other loops from one of them, and refuses it: maintenance
notifications (their nodes are seen to go away instead), and credentials that stream. Clusters and sentinels have pools
of another kind. A lock that is taken on one loop and released on another needs ``thread_local=False``.
"""

import asyncio
import contextlib
import copy
import functools
import importlib
import select
import socket
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, cast

from polyloop._core import _prims
from polyloop._core._errors import ForeignLoopError, PoolBusyError
from polyloop.pools._hang_up import spare, until_hung_up
from polyloop.pools._loan import Loan
from polyloop.pools._pool import ResourcePool
from polyloop.pools._stats import PoolStats
from polyloop.pools._where import Home, adopt, guarded

try:
    import redis.asyncio
    from redis.asyncio.connection import AbstractConnection
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import MaxConnectionsError
except ImportError as error:
    raise ImportError(
        f"polyloop.pools.redis needs redis, which cannot be imported ({error}); "
        "install it with: pip install 'polyloop[redis]'"
    ) from error

__all__ = ("ConnectionPool", "Redis", "from_url")

#: Public methods that use the socket, in all versions; those that a version lacks are left out.
_METHODS = (
    "can_read",
    "can_read_destructive",
    "check_health",
    "connect",
    "connect_check_health",
    "disconnect",
    "read_response",
    "send_packed_command",
)

_ADVICE = "use what holds a connection (a PubSub, a watching pipeline, client.client()) on the loop that began it"

#: How long ``aclose`` waits for commands that run, in seconds; redis-py cuts them off at once. A guess.
_FAREWELL = 1.0


class _Pooled(AbstractConnection):
    """What a pool needs of its connections beyond what redis-py's have. A class is made of it and of one of those.

    redis-py connects a connection again that it has disconnected, whoever has it. Until the server has let go of the
    old one it would count both, so the new one waits for that.
    """

    __slots__ = ()

    # Written on the loop of the connection, except what says otherwise.
    loan: Loan[Any] | None = None
    era: object = None  # of the pool, when it was made; set before it is lent
    busy = 0  # calls that are sending or receiving
    retired = False  # the pool has closed it
    retry_of: object = None  # what its ``retry`` is a copy of
    _polyloop_home: Home | None
    _left: socket.socket | None = None  # a spare of what was disconnected, until the server has hung up
    _connecting: "asyncio.Task[None] | None" = None

    @property
    def ready(self) -> bool:
        """Whether it is connected, and nobody is in the middle of something: perhaps a task that was left behind."""
        return self.is_connected and not self.busy and (self._connecting is None or self._connecting.done())

    async def connect(self) -> None:
        await self._connect_once(super().connect)

    async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        # By this, later versions connect again; "connect" calls it as well.
        await self._connect_once(functools.partial(super().connect_check_health, *args, **kwargs))

    async def _connect_once(self, connect: Callable[[], Awaitable[None]]) -> None:
        if self.is_connected or asyncio.current_task() is self._connecting:
            await connect()
            return
        if self.retired:
            raise RedisConnectionError("this connection was closed with its pool; make another client")
        if self._connecting is None or self._connecting.done():
            # A task, since a caller that is cancelled would leave a socket to the server that nobody knows of.
            self._connecting = asyncio.create_task(self._connect_anew(connect), name=f"connect {type(self).__name__}")
        await asyncio.shield(self._connecting)

    async def _connect_anew(self, connect: Callable[[], Awaitable[None]]) -> None:
        await self.until_gone()
        await connect()

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        self.busy += 1
        try:
            await super().send_packed_command(*args, **kwargs)
        finally:
            self.busy -= 1

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        self.busy += 1
        try:
            return cast("Any", await super().read_response(*args, **kwargs))
        finally:
            self.busy -= 1

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        writer: asyncio.StreamWriter | None = getattr(self, "_writer", None)
        if writer is not None:
            with contextlib.suppress(OSError, ValueError):  # too many files are open, or it is closed already
                self._left = spare(writer.get_extra_info("socket").fileno())
        try:
            await super().disconnect(*args, **kwargs)
        finally:
            if self._left is not None:
                with contextlib.suppress(OSError):
                    self._left.shutdown(socket.SHUT_WR)  # as long as there is a spare, closing says nothing

    async def until_gone(self) -> None:
        """Wait until the server has let go of what was disconnected. Bounded."""
        sock, self._left = self._left, None
        if sock is not None:
            await until_hung_up(sock)

    async def end(self) -> None:
        """Disconnect for good."""
        try:
            if self._connecting is not None:
                try:
                    await asyncio.wait([self._connecting])
                finally:
                    self._connecting.cancel()
            await self.disconnect()
        finally:
            await self.until_gone()


@functools.cache
def _class_for(base: Any) -> type[_Pooled]:
    """A subclass of a connection class that refuses to be used on another loop than that it was made on."""
    members = {"__module__": base.__module__, "__doc__": base.__doc__, "__slots__": ()}
    pooled = types.new_class(base.__name__, (_Pooled, base), exec_body=lambda space: space.update(members))
    return guarded(cast("type[_Pooled]", pooled), tuple(name for name in _METHODS if hasattr(base, name)), _ADVICE)


class ConnectionPool(redis.asyncio.ConnectionPool):
    """A pool for redis-py's clients, of connections for all loops; takes the place of ``BlockingConnectionPool``.

    Give it to ``polyloop.pools.redis.Redis`` (which ``from_url`` does), or to several of them.

    Args:
        connection_class: redis-py's, for TCP, TLS or a unix socket, or a subclass of one; it is subclassed.
        max_connections: The most connections that the process may have, over all loops.
        timeout: Seconds that a command may wait for a connection; ``None``: as long as it takes.
        max_waiting: The most callers that may wait for one; ``None``: any number.
        max_idle_time: Seconds that a connection may lie idle before it is closed; ``None``: as long as it likes.
        max_lifetime: Seconds after which one is replaced; ``None``: never.
        patience: Seconds by which a caller may be overtaken by one of another loop; see ``ResourcePool``.
        upkeep_timeout: Seconds that closing one may take; then it is dropped.
        name: Shown in errors and logs.
        connection_kwargs: For ``connection_class``. A ``credential_provider`` is asked on each loop.
    Raises:
        ValueError: a number is out of range, or an option would change connections of other loops.
    Thread safety: any loop. Closed with each loop is what it has there; to close all of it, ``aclose``.

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        connection_class: type[AbstractConnection] = redis.asyncio.Connection,
        max_connections: int = 10,
        timeout: float | None = 20.0,
        *,
        max_waiting: int | None = None,
        max_idle_time: float | None = 300.0,
        max_lifetime: float | None = 3600.0,
        patience: float = 0.25,
        upkeep_timeout: float = 5.0,
        name: str = "redis",
        **connection_kwargs: Any,
    ) -> None:
        _refuse_streaming(connection_kwargs.get("credential_provider"))
        connection_kwargs.update(_without_notifications(connection_kwargs.pop("maint_notifications_config", None)))
        self._pool: ResourcePool[_Pooled] = ResourcePool(
            self._create,
            self._close,
            max_size=max_connections,
            is_closed=self._is_spent,
            max_idle_time=max_idle_time,
            max_lifetime=max_lifetime,
            max_waiting=max_waiting,
            patience=patience,
            upkeep_timeout=upkeep_timeout,
            name=name,
        )
        self.timeout = timeout
        self._era = object()  # connections of an earlier one are closed when they come back; any thread
        self._retry: Any = None  # what set_retry was told; any thread
        pooled = _class_for(cast("Any", connection_class))
        super().__init__(pooled, max_connections, **connection_kwargs)  # pyright: ignore[reportUnknownMemberType]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.connection_class.__name__}: {self._pool!r}>"

    def stats(self) -> PoolStats:
        """What the pool has and has done. Any thread."""
        return self._pool.stats()

    # What redis-py's clients call

    async def get_connection(self, command_name: object = None, *keys: Any, **options: Any) -> Any:
        """Borrow a connection that is ready for a command; ``release`` it on the same loop.

        Args:
            command_name: Not used, as ``keys`` and ``options``; older versions of redis-py give them.
        Raises:
            redis.ConnectionError: none came free within ``timeout``, or the server cannot be reached.
            redis.MaxConnectionsError: ``max_waiting`` callers wait already.
            PoolClosedError: the pool is closed.
        Cancellation: nothing is taken.
        Thread safety: any loop.
        """
        loan = self._pool.acquire()
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                connection = await loan
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise RedisConnectionError(
                f"No connection available within {self.timeout!r} s from {self._pool!r}; "
                "raise max_connections= or timeout="
            ) from error
        except PoolBusyError as error:
            raise MaxConnectionsError(str(error)) from error
        connection.loan = loan
        adopt(connection)  # again, for where it was borrowed
        if self._retry is not connection.retry_of:
            connection.retry, connection.retry_of = copy.deepcopy(self._retry), self._retry
        return connection

    async def release(self, connection: Any) -> None:
        """Return a connection; it is closed, if it was disconnected or its command cut short.

        Raises:
            ForeignLoopError: it was borrowed on another loop, which closes it.
        """
        loan, connection.loan = connection.loan, None
        if loan is None:  # it was returned before
            return
        try:
            await loan.__aexit__(None, None, None)
        except ForeignLoopError:
            raise connection._polyloop_home.refuse("a Redis connection", _ADVICE) from None

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections that lie idle, on all loops; the pool stays open.

        Args:
            inuse_connections: Whether those that are on loan are closed too, when they are returned. (redis-py cuts
                them off.)
        Cancellation: the loops go on closing.
        Thread safety: any loop.
        """
        if inuse_connections:
            self.reset()
        await self._pool.close_idle()

    def reset(self) -> None:
        """Lend none of the present connections again; each is closed when its turn comes. Any thread."""
        self._era = object()

    async def update_active_connections_for_reconnect(self) -> None:
        """As ``reset``."""
        self.reset()

    async def aclose(self, timeout: float = _FAREWELL) -> None:
        """Close the pool for good: lend nothing more, and close all connections, each on its loop. Bounded.

        Args:
            timeout: Seconds for commands that run; what is on loan then is closed under its borrower.
        Cancellation: the pool goes on closing what is not on loan.
        Thread safety: any loop.
        """
        await self._pool.close(timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def can_get_connection(self) -> bool:
        """Whether ``get_connection`` would find one without waiting for others, as far as one can say."""
        stats = self.stats()
        return bool(stats.idle) or stats.size < stats.max_size

    def get_available_connection(self) -> Any:
        """Not for this pool: a connection has to be waited for.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"{self!r} gives no connection that is not connected; await get_connection()")

    def get_connection_count(self) -> list[tuple[int, dict[str, Any]]]:
        """How many connections are idle and in use, with attributes for OpenTelemetry; from redis-py 7 on."""
        stats = self.stats()
        of_client = cast("Any", super().get_connection_count())  # pyright: ignore[reportUnknownMemberType]
        return [(n, about) for n, (_, about) in zip((stats.idle, stats.in_use), of_client, strict=True)]

    def set_retry(self, retry: Any) -> None:
        """Use a copy of this ``Retry`` for each loan from now on. Any thread."""
        self._retry = retry

    async def re_auth_callback(self, token: Any) -> None:
        """Not for this pool; see ``ConnectionPool``.

        Raises:
            ValueError: always.
        """
        raise ValueError(_STREAMING)

    async def update_maint_notifications_config(
        self, maint_notifications_config: Any, oss_cluster_maint_notifications_handler: Any = None
    ) -> None:
        """Not for this pool; see ``ConnectionPool``.

        Raises:
            ValueError: they are to be enabled.
        """
        _without_notifications(maint_notifications_config)

    # What the ResourcePool calls, on the loop of the connection

    async def _create(self) -> _Pooled:
        make: Callable[[], Any] = self.make_connection
        connection: _Pooled = make()
        connection.era = self._era
        connection.retry_of = self._retry
        adopt(connection)
        try:
            await connection.connect()
        except BaseException:
            await connection.end()
            raise
        return connection

    def _close(self, connection: _Pooled) -> Awaitable[None]:
        connection.retired = True  # at once: its borrower may be about to connect it again
        return connection.end()

    def _is_spent(self, connection: _Pooled) -> bool:
        return not connection.ready or connection.era is not self._era or _has_something_to_say(connection)


def _has_something_to_say(connection: _Pooled) -> bool:
    """Whether the server has hung up, or sent what nobody has read; also if the loop has not heard of it yet."""
    writer: asyncio.StreamWriter | None = getattr(connection, "_writer", None)
    if writer is not None and _is_readable(writer.get_extra_info("socket").fileno()):
        return True
    can_read: Callable[[], Coroutine[Any, Any, bool]] = getattr(connection, "can_read", connection.can_read_destructive)
    looking = can_read()
    try:
        looking.send(None)
    except StopIteration as answer:
        return bool(answer.value)
    except Exception:  # what redis-py makes of a closed connection
        return True
    looking.close()  # it waits for more, as no version does
    return True


def _is_readable(descriptor: int) -> bool:
    if sys.platform == "win32":
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()  # which takes any descriptor
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


_STREAMING = (
    "a StreamingCredentialProvider authenticates connections of all loops from one of them; give a CredentialProvider, "
    "which is asked when a connection is made, and a max_lifetime= below that of its tokens"
)


def _refuse_streaming(provider: object) -> None:
    kind = getattr(importlib.import_module("redis.credentials"), "StreamingCredentialProvider", ())  # from 5.3 on
    if isinstance(provider, kind):
        raise ValueError(_STREAMING)


def _without_notifications(config: Any) -> dict[str, Any]:
    """The option that turns maintenance notifications off, which are on by default from redis-py 8 on."""
    if config is not None and config.enabled:
        raise ValueError(
            "maintenance notifications change connections of all loops from one of them; leave them out: a node that "
            "goes away is seen by its connections"
        )
    try:
        notifications: Any = importlib.import_module("redis.maint_notifications")
    except ImportError:
        return {}
    return {"maint_notifications_config": notifications.MaintNotificationsConfig(enabled=False)}


class Redis(redis.asyncio.Redis):
    """redis-py's client, with those few parts of it made safe for several loops that were not. See ``from_url``.

    Thread safety: any loop. One that has a single connection (``client.client()``) belongs to the loop that used it
    first.

    .. versionadded:: 0.4
    """

    _home: Home | None = None  # of one with a single connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # pyright: ignore[reportUnknownMemberType]
        if not isinstance(self.connection_pool, ConnectionPool):
            raise TypeError(
                "this client is for polyloop's pool, which redis-py's own, of one loop, would stand in for: call"
                " polyloop.pools.redis.from_url(url, max_connections=10), or give connection_pool=ConnectionPool(...)"
            )
        self._users = 0  # blocks that use it; under the lock
        self._users_lock = _prims.Lock()

    @classmethod
    def from_url(cls, url: str, *args: Any, **kwargs: Any) -> "Redis":
        """``polyloop.pools.redis.from_url``."""
        return from_url(url, *args, **kwargs)

    async def initialize(self) -> Self:
        """Called by each command; takes the connection of a client with a single one.

        Raises:
            ForeignLoopError: that belongs to another loop.
        """
        if self.single_connection_client:
            self._check_loop()
        await super().initialize()
        return self

    def _check_loop(self) -> None:
        # One step: of two loops that come at once, one is refused.
        home: Home = self._home or self.__dict__.setdefault("_home", Home.of_this_loop())
        if not home.port.is_current():
            raise home.refuse("a Redis client with a single connection", "make one for each loop: client.client()")

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the client: return its single connection, or close its pool, if that was made with it.

        Args:
            close_connection_pool: Whether to close the pool; by default, only if it was made by ``from_url``.
        Raises:
            ForeignLoopError: its single connection belongs to another loop.
        """
        if self.connection is not None:
            self._check_loop()
        await super().aclose(close_connection_pool)
        if self.auto_close_connection_pool if close_connection_pool is None else close_connection_pool:
            await self.connection_pool.aclose()  # which older versions only disconnect

    async def __aenter__(self) -> Self:
        with self._users_lock:
            self._users += 1
        try:
            return await self.initialize()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._leave():
            await asyncio.shield(self.aclose())

    def _leave(self) -> int:
        with self._users_lock:
            self._users -= 1
            return self._users


def from_url(
    url: str,
    *,
    max_connections: int = 10,
    timeout: float | None = 20.0,
    max_waiting: int | None = None,
    max_idle_time: float | None = 300.0,
    max_lifetime: float | None = 3600.0,
    patience: float = 0.25,
    upkeep_timeout: float = 5.0,
    name: str = "redis",
    **kwargs: Any,
) -> Redis:
    """Make a client for all loops of the process.

    Use it in ``async with from_url(url) as client``, or as it is. The last such block to end closes it, and so does
    ``aclose``; what it has on a loop is closed with that loop.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as for ``redis.asyncio.from_url``; options in it win.
        max_connections: The most connections that the process may have, over all loops. A command waits for one.
        timeout: Seconds that it may wait; ``None``: as long as it takes.
        max_waiting: The most callers that may wait; ``None``: any number.
        max_idle_time: Seconds that a connection may lie idle before it is closed; ``None``: as long as it likes.
        max_lifetime: Seconds after which one is replaced; ``None``: never.
        patience: Seconds by which a caller may be overtaken by one of another loop; see ``ResourcePool``.
        upkeep_timeout: Seconds that closing one may take; then it is dropped.
        name: Shown in errors and logs.
        kwargs: Other arguments of redis-py's connections, such as ``decode_responses`` or ``socket_timeout``.
    Returns:
        A client; its ``connection_pool`` has ``stats``.
    Raises:
        TypeError: ``single_connection_client`` was given; ``await client.client()`` makes such a one.
        ValueError: see ``ConnectionPool``.
    Thread safety: any thread.

    .. versionadded:: 0.4
    """
    if kwargs.pop("single_connection_client", False):
        raise TypeError("a client for all loops has no single connection; make one of those with client.client()")
    pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        max_connections=max_connections,
        timeout=timeout,
        max_waiting=max_waiting,
        max_idle_time=max_idle_time,
        max_lifetime=max_lifetime,
        patience=patience,
        upkeep_timeout=upkeep_timeout,
        name=name,
        **kwargs,
    )
    return cast("Redis", Redis.from_pool(pool))


def __getattr__(name: str) -> Any:
    """What this module has not is redis-py's own: its errors and types, so that one import is enough."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(redis, name)

"""httpcore's pool of one loop, whose connections take their permits from a ``ConnectionCap``.

By httpcore's public names only: a pool makes its connections in ``create_connection``, which here wraps them; a
connection that cannot serve a request after all raises ``ConnectionNotAvailable``, and the pool chooses again; and what
opens and closes sockets is a network backend. The pool itself knows no limit: who waits, waits for the cap, so that one
line holds all loops.

A permit is taken before a connection is opened, and given back when its socket is closed, not when that was asked for.
Connections are closed by tasks of their own, which a caller that is cancelled does not interrupt.
"""

import asyncio
import contextlib
import contextvars
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, cast

import httpcore

from polyloop._core import _prims
from polyloop._core._port import logger
from polyloop.pools._cap import ConnectionCap, Seat
from polyloop.pools._desk import finalising
from polyloop.pools._where import Home
from polyloop.pools._wire import Wire, open_tcp, open_unix

_ADVICE = "read and close a response on the loop that made the request"

#: The connection whose attempt to connect runs in this task.
_current: contextvars.ContextVar["Connection | None"] = contextvars.ContextVar("connection", default=None)


class Request(httpcore.Request):
    """A request that knows when it came, on the monotonic clock."""

    came_at = 0.0
    waited = False


class LoopPool(httpcore.AsyncConnectionPool):
    """The pool of one loop.

    Args:
        contexts: By the context that httpcore is given here, the one that all loops use. httpcore writes to its own at
            each connect, which must not be while another thread reads it.
    """

    def __init__(self, cap: ConnectionCap, contexts: dict[ssl.SSLContext, ssl.SSLContext], **options: Any) -> None:
        super().__init__(max_connections=None, max_keepalive_connections=None, network_backend=_Backend(), **options)
        self.seat = Seat[Connection](cap, self._idle)
        self.home = Home(self.seat.port, "")
        self.contexts = contexts
        self.open: dict[Connection, None] = {}  # those with a socket, the oldest first
        self._tasks: set[asyncio.Task[None]] = set()

    def create_connection(self, origin: httpcore.Origin) -> "Connection":
        """A connection that has yet to get its permit, and to be opened."""
        return Connection(self, super().create_connection(origin), origin)

    def _idle(self) -> list["Connection"]:
        return [connection for connection in self.open if connection.is_idle()]

    def start(self, coro: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run a task that nobody's cancellation ends, its first step at once."""
        task = asyncio.Task(
            coro, loop=self.seat.port.loop, name="close a connection", context=contextvars.Context(), eager_start=True
        )
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Close everything here. Loop thread."""
        self.seat.shut()
        await super().aclose()
        for connection in list(self.open):  # what httpcore has forgotten, or is about to connect
            connection.force()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.seat.leave()


class Connection(httpcore.AsyncConnectionInterface):
    """A connection of httpcore's with its permit. Loop thread."""

    def __init__(self, pool: LoopPool, inner: httpcore.AsyncConnectionInterface, origin: httpcore.Origin) -> None:
        self.key = (origin.scheme, origin.host, origin.port)
        self.since = 0.0
        self.pool = pool
        self._inner = inner
        self._stream: Stream | None = None  # from the attempt to connect until the socket is closed
        self._permit = False
        self._lent = False
        self._ordered = False  # whether it is closed for somebody who waits
        self._over = False
        self._requests = 0  # until their responses are closed
        self._sending = 0  # until those have begun
        self.took = 0.0  # seconds of connecting that the cap was not told of

    # What httpcore's pool asks

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        """Whether it goes there."""
        return self._inner.can_handle_request(origin)

    def is_available(self) -> bool:
        """Whether another request may be sent on it."""
        if not self._permit or self._lent or self._over:
            return False
        if not self._requests:
            return self._inner.is_available()
        # HTTP/2, which serves several at a time; but httpcore takes any for idle until a request has got a lock or two.
        return self._inner.is_available() and not self._inner.is_idle() and not self.pool.seat.wanted(self)

    def has_expired(self) -> bool:
        """Whether it has lain idle for too long, or the server has closed it."""
        return self._inner.has_expired()

    def is_idle(self) -> bool:
        """Whether it is open, and nobody uses it or is about to."""
        free = not self._requests and not self._lent and not self._over
        return free and self._stream is not None and self._inner.is_idle()

    def is_closed(self) -> bool:
        """Whether the pool may forget it."""
        return self._over or self._inner.is_closed()

    def info(self) -> str:
        """For ``repr``."""
        return self._inner.info()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request on it, after its permit and its socket were got.

        Raises:
            httpcore.ConnectionNotAvailable: another connection came free first.
            httpcore.PoolTimeout: none did in time.
        """
        if not self._permit:
            await self._enter(request)
        self._requests += 1
        try:
            response = await self._send(request)
        except BaseException:
            self.over()
            raise
        extensions = cast("Any", response).extensions
        return httpcore.Response(
            response.status, headers=response.headers, content=_Body(response, self), extensions=extensions
        )

    async def _send(self, request: httpcore.Request) -> httpcore.Response:
        token = _current.set(self)
        self._sending += 1
        try:
            response = await self._inner.handle_async_request(request)
        finally:
            self._sending -= 1
            with contextlib.suppress(ValueError):  # closed with its coroutine, in the context of somebody else
                _current.reset(token)
        if self.took:
            self.pool.seat.cap.made(self.took)
            self.took = 0.0
        self._share()
        return response

    async def aclose(self) -> None:
        """Close it. Cancelled, it is closed none the less."""
        self._over = True
        await asyncio.shield(self.pool.start(self._inner.aclose()))

    # The permit

    async def _enter(self, request: httpcore.Request) -> None:
        """Get the permit, or say that it is not needed any more."""
        if not isinstance(request, Request):
            raise TypeError(f"expected a request of polyloop's transport, got {request!r}")
        extensions = cast("Any", request).extensions
        limit: float | None = extensions.get("timeout", {}).get("pool")
        until = None if limit is None else max(0.0, request.came_at + limit - _prims.monotonic())
        again, request.waited = request.waited, True
        try:
            async with asyncio.timeout(until):
                other = await self.pool.seat.take(self.key, request.came_at, again=again)
        except TimeoutError:
            self._over = True
            cap = self.pool.seat.cap
            raise httpcore.PoolTimeout(
                f"none of {cap.limit} connections came free within {limit} s, and {cap.waiting} others wait"
            ) from None
        except BaseException:
            self._over = True
            raise
        if other is not None:
            self._over = True
            other.unlend()  # and until it is chosen nothing else runs here
            raise httpcore.ConnectionNotAvailable
        self._permit = True

    def _give_back(self) -> None:
        if self._permit:
            self._permit = False
            self.pool.seat.closed(self.key, ordered=self._ordered)

    def lend(self) -> None:
        """See ``Pooled``."""
        self._lent = True

    def unlend(self) -> None:
        """See ``Pooled``."""
        self._lent = False

    def give_up(self) -> None:
        """See ``Pooled``."""
        self._ordered = True
        self.force()

    def force(self) -> None:
        """Close it, whatever httpcore thinks of its state."""
        self._over = True
        self.pool.start(self._inner.aclose())
        if self._stream is not None:
            self._stream.close_soon()

    def over(self) -> None:
        """A request on it is over. Any thread, finalisers included, should its coroutine be closed with its loop."""
        port = self.pool.seat.port
        if finalising() or not port.is_current():
            port.post(self._done)
        else:
            self._done()

    def _done(self) -> None:
        """It lies idle, is being closed, or is to be; or there are others on it."""
        self._requests -= 1
        if self._requests:
            self._share()
            return
        if self._stream is None:  # the socket was closed before, or never opened
            self._over = True
            self._give_back()
        elif self._inner.is_closed():
            self._stream.close_soon()
        elif not self._inner.is_idle() or self._stream.ended:
            self.force()  # httpcore was interrupted while it closed it, or the server has closed it
        elif self.pool.seat.cap.crowded:
            self.pool.seat.look()

    def _share(self) -> None:
        """Those who wait on this loop may use it, too, if it speaks HTTP/2."""
        if self.pool.seat.waits(self.key) and self.is_available():
            self.pool.seat.share(self)

    def stream_ended(self) -> None:
        """The server has closed it; if nobody uses it, its permit can go."""
        if self.is_idle():
            self.force()

    # The socket

    async def connect(
        self,
        connect: Callable[["Stream"], Awaitable[object]],
        timeout: float | None,
        socket_options: Iterable[Any] | None,
    ) -> "Stream":
        """Open its socket."""
        if self._stream is not None:  # of the attempt before this
            await self._stream.aclose()
        stream = self._stream = Stream(self)
        async with stream.opening(timeout):
            await connect(stream)
            for option in socket_options or ():
                stream.get_extra_info("socket").setsockopt(*option)
            if self._over:
                raise ConnectionAbortedError("the client was closed meanwhile")
        self.since = _prims.monotonic()
        self.pool.open[self] = None
        return stream

    def stream_closed(self, stream: "Stream") -> None:
        """Its socket is closed."""
        if self._stream is stream:
            self._stream = None
        self.pool.open.pop(self, None)
        if not self._sending:  # else httpcore may try once more, and it ends with the request
            self._give_back()


class _Body:
    """The body of a response: when it is closed, its connection is free or closed."""

    def __init__(self, response: httpcore.Response, connection: Connection) -> None:
        self._stream: Any = response.stream
        self._connection = connection
        self._closed = False

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                await self._stream.aclose()
            finally:
                self._connection.over()


class _Backend(httpcore.AsyncNetworkBackend):
    """Opens the sockets of the connection that asks for one."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        local = None if local_address is None else (local_address, 0)
        return await _asking().connect(partial(open_tcp, host, port, local), timeout, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        return await _asking().connect(partial(open_unix, path), timeout, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _asking() -> Connection:
    connection = _current.get()
    assert connection is not None
    return connection


class Stream(httpcore.AsyncNetworkStream):
    """A socket of a connection, TLS included; its loop's."""

    def __init__(self, connection: Connection) -> None:
        self.wire = Wire(self._end)
        self._connection = connection
        self._closing: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the server has closed it, or has sent what nobody asked for."""
        return self.wire.ended or bool(self.wire.chunks)

    def new_wire(self) -> "Wire":
        """For an attempt to connect."""
        self.wire = Wire(self._end)
        return self.wire

    def _end(self) -> None:
        self._connection.stream_ended()

    def _check(self) -> None:
        home = self._connection.pool.home
        if not home.port.is_current():
            raise home.refuse("a connection of an HTTP client", _ADVICE)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See ``httpcore.AsyncNetworkStream``."""
        self._check()
        try:
            async with asyncio.timeout(timeout):
                return await self.wire.read(max_bytes)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See ``httpcore.AsyncNetworkStream``."""
        self._check()
        try:
            async with asyncio.timeout(timeout):
                await self.wire.write(buffer)
        except TimeoutError as exc:
            raise httpcore.WriteTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore.WriteError(str(exc)) from exc

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """See ``httpcore.AsyncNetworkStream``."""
        self._check()
        context = self._connection.pool.contexts.get(ssl_context, ssl_context)
        async with self.opening(timeout):
            await self.wire.start_tls(context, server_hostname)
        return self

    @contextlib.asynccontextmanager
    async def opening(self, timeout: float | None) -> AsyncGenerator[None]:
        """A step of connecting: what ends it early closes the socket."""
        began = _prims.monotonic()
        try:
            async with asyncio.timeout(timeout):
                yield
        except BaseException as exc:
            if finalising():
                self._connection.pool.seat.port.post(self.close_soon)
            else:
                self.close_soon()
            if isinstance(exc, TimeoutError):  # an OSError, too, as are those of ssl
                raise httpcore.ConnectTimeout(str(exc)) from exc
            if isinstance(exc, OSError):
                raise httpcore.ConnectError(str(exc)) from exc
            raise
        self._connection.took += _prims.monotonic() - began

    def get_extra_info(self, info: str) -> Any:
        """See ``httpcore.AsyncNetworkStream``."""
        if info == "is_readable":
            return self.ended
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self.wire.extra(names.get(info, info))

    async def aclose(self) -> None:
        """Close it, and wait until the socket is closed. Cancelled, it is closed none the less."""
        self._check()
        await asyncio.shield(self.close_soon())

    def close_soon(self) -> "asyncio.Task[None]":
        """Close it."""
        if self._closing is None:
            self._closing = self._connection.pool.start(self._close())
        return self._closing

    async def _close(self) -> None:
        try:
            await self.wire.abort()
        except Exception as exc:
            logger.warning("polyloop: a connection could not be closed: %r", exc)
        finally:
            self._connection.stream_closed(self)

"""``aiohttp.ClientSession`` on every loop: a session for each, with one cap on open connections for all.

::

    import polyloop.pools.aiohttp

    sessions = polyloop.pools.aiohttp.client_sessions(max_connections=10)     # made anywhere

    async def fetch(url):                                                     # on any loop
        async with sessions().get(url) as response:
            return await response.text()

By aiohttp's public names only. A connector's ``connect`` is where a permit is taken, unless the loop has an idle
connection to the server; its ``socket_factory`` makes sockets that tell when they are closed, which gives the permit
back; and a connection tells by ``add_callback`` that it has been released. A signal of a ``TraceConfig`` runs just
before a connection is made: it is the gate that nobody passes without a permit, should aiohttp find none of its idle
connections usable.
"""

import asyncio
import contextlib
import contextvars
import socket
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, cast

from polyloop._core import _prims
from polyloop.pools._cap import ConnectionCap, Seat
from polyloop.pools._per_loop import PerLoop
from polyloop.pools._where import Home, adopt, guarded
from polyloop.sync import Semaphore

try:
    import aiohttp
except ImportError as exc:
    raise ImportError("polyloop.pools.aiohttp needs aiohttp: pip install 'polyloop[aiohttp]'") from exc

if tuple(int(part) for part in aiohttp.__version__.split(".")[:2]) < (3, 12):
    raise ImportError(
        f"polyloop.pools.aiohttp needs aiohttp 3.12 or later, this is {aiohttp.__version__}: pip install -U aiohttp"
    )

__all__ = ("client_sessions",)

#: Options of ``client_sessions`` that are its connectors'; all others are its sessions'.
_OF_CONNECTORS = frozenset({
    "enable_cleanup_closed", "family", "fingerprint", "force_close", "happy_eyeballs_delay", "interleave",
    "keepalive_timeout", "local_addr", "resolver", "socket_factory", "ssl", "ssl_shutdown_timeout",
    "timeout_ceil_threshold", "ttl_dns_cache", "use_dns_cache", "dns_cache_max_size",
})  # fmt: skip

#: What would tie all sessions to one loop, or make a second cap.
_REFUSED = {
    "connector": "its options can be given here",
    "connector_owner": "each session owns its connector",
    "limit": "use max_connections",
    "limit_per_host": "use max_connections_per_host",
    "loop": "each session is made on its loop",
    "response_class": "the one used here knows its loop",
    "ws_response_class": "the one used here knows its loop",
}

_ADVICE = "call client_sessions(...)() on the loop that uses it"
_RESPONSE_ADVICE = "read and close it on the loop that made the request"

_link: contextvars.ContextVar["_Link | None"] = contextvars.ContextVar("link", default=None)


def client_sessions(
    *, max_connections: int = 100, max_connections_per_host: int = 0, **options: Any
) -> PerLoop[aiohttp.ClientSession]:
    """One ``aiohttp.ClientSession`` for each loop, with one cap on the connections of all.

    Each session is made at the first call on its loop, and closed at the loop's end, after its tasks. When a connection
    is wanted and all permits are taken, a loop with an idle one closes that. Who waits is served in the order in which
    they came, over all loops, to within a tenth of a second, or ten times what connecting takes: for that long a loop
    may go on to use a connection that it has for requests to the same server. The wait counts for the ``connect`` and
    ``total`` timeouts of aiohttp.

    Args:
        max_connections: The most connections that are open, or being opened, in the process, at least 1. (aiohttp's own
            ``limit`` counts those in use.)
        max_connections_per_host: The most that are in use at a time to one host, port and kind of encryption, in the
            process; 0: as many as there are.
        options: Options of ``aiohttp.TCPConnector`` (``ssl``, ``keepalive_timeout``, ``family``, ...) and of
            ``aiohttp.ClientSession`` (``headers``, ``timeout``, ``base_url``, ...). ``cookie_jar`` and ``resolver``
            belong to a loop, so they are functions here that make one. Each loop has cookies of its own.
    Returns:
        Call it for the session of the running loop, and do not close that: ``aclose`` this to close all. (One that was
        closed all the same, by ``async with sessions() as session``, is replaced at the next call.)
    Raises:
        TypeError: an option would tie all sessions to one loop.
        ValueError: a number is out of range.
    Cancellation: a request that is cancelled while it waits for a connection takes none. Later, its connection is
    closed, and counts until its socket is.
    Thread safety: as ``PerLoop``. A session or response that is used on another loop than its own raises
    ``ForeignLoopError``. While a name with several addresses is being connected to, the attempt for one permit may have
    two sockets for a moment; ``happy_eyeballs_delay=None`` tries one address after the other.

    .. versionadded:: 0.4
    """
    for name, instead in _REFUSED.items():
        if name in options:
            raise TypeError(f"client_sessions() takes no {name!r}: {instead}")
    for name in ("cookie_jar", "resolver"):
        if options.get(name) is not None and not callable(options[name]):
            raise TypeError(f"{name} belongs to a loop; give a function that makes one, not {options[name]!r}")
    return _Sessions(_Makers(max_connections, max_connections_per_host, options).make)


class _Sessions(PerLoop[aiohttp.ClientSession]):
    """Makes a new session for a loop whose own was closed, by an ``async with`` that was there before."""

    def __call__(self) -> aiohttp.ClientSession:
        session = super().__call__()
        return self._anew() if session.closed else session


class _Makers:
    """What the sessions of all loops share."""

    def __init__(self, most: int, most_per_host: int, options: dict[str, Any]) -> None:
        self.cap = ConnectionCap(most, "the HTTP client")
        self.hosts = _Hosts(most_per_host) if most_per_host else None
        self._connector = {name: value for name, value in options.items() if name in _OF_CONNECTORS}
        self._session = {name: value for name, value in options.items() if name not in _OF_CONNECTORS}
        self._traces = list(self._session.pop("trace_configs", None) or ())

    def make(self) -> aiohttp.ClientSession:
        """A session for the running loop."""
        connector_options, session_options = dict(self._connector), dict(self._session)
        for options, name in ((connector_options, "resolver"), (session_options, "cookie_jar")):
            if options.get(name) is not None:
                options[name] = options[name]()
        connector = _Connector(self.cap, self.hosts, connector_options)
        return aiohttp.ClientSession(
            connector=connector,
            trace_configs=[connector.gate(), *self._traces],
            response_class=_Response,
            ws_response_class=cast("Any", _web_socket),
            **session_options,
        )


class _Hosts:
    """A semaphore for each server: who waits or has a place there holds it, and it goes with the last of them."""

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"max_connections_per_host must be at least 0, got {most!r}")
        self._most = most
        self._lock = _prims.Lock()  # so that a server has one; never taken by a finaliser
        self._rooms: weakref.WeakValueDictionary[Hashable, Semaphore] = weakref.WeakValueDictionary()

    async def enter(self, key: Hashable) -> Callable[[], None]:
        """Wait for a place; call what is returned, once or more, to leave."""
        with self._lock:
            room = self._rooms.get(key)
            if room is None:
                room = self._rooms[key] = Semaphore(self._most)
        await room.acquire()
        once = deque([room])

        def leave() -> None:
            with contextlib.suppress(IndexError):
                once.pop().release()

        return leave


class _Link:
    """A connection, or the attempt to make one, and its permit. Loop thread, but for the end of its sockets."""

    def __init__(self, connector: "_Connector", key: Hashable) -> None:
        self.key = key
        self.since = 0.0
        self.seat = connector.seat
        self._connector = connector
        self._protocol: Any = None
        self._pending = True  # while the attempt lasts
        self._permit: deque[None] = deque()  # a token for the permit: who pops it gives it back
        self._sockets: deque[None] = deque()  # one for each that is open; popped by any thread
        self._ordered = False
        self._lent = False
        self._free = False

    # The attempt

    def got_permit(self) -> None:
        """It may be made."""
        self.since = _prims.monotonic()
        self._permit.append(None)
        self._connector.links[self] = None

    @property
    def permitted(self) -> bool:
        """Whether it has a permit."""
        return bool(self._permit)

    def socket_opened(self) -> None:
        """A socket was made for it."""
        self._sockets.append(None)

    def socket_closed(self) -> None:
        """One of its sockets is closed. Any thread, finalisers included."""
        self._sockets.pop()
        self._give_back_if_over()

    def end_attempt(self) -> None:
        """It is made, or will not be."""
        self._pending = False
        self._give_back_if_over()

    def _give_back_if_over(self) -> None:
        if not self._pending and not self._sockets:
            with contextlib.suppress(IndexError):
                self._permit.pop()
                self.seat.closed(self.key, ordered=self._ordered)
                self._connector.links.pop(self, None)
                self._connector.by_protocol.pop(self._protocol, None)

    # The connection

    def use(self, protocol: Any) -> None:
        """A request gets it."""
        if self._protocol is None:
            self._protocol = protocol
            self.since = _prims.monotonic()
        self._free = False

    def released(self) -> None:
        """The request is done with it; aiohttp is about to keep or to close it."""
        self._free = True
        if self.seat.cap.crowded:
            self.seat.port.post(self.seat.look)

    @property
    def idle(self) -> bool:
        """Whether it lies idle, for anybody."""
        return self._free and not self._lent and bool(self._protocol.is_connected())

    def lend(self) -> None:
        """See ``Pooled``."""
        self._lent = True

    def unlend(self) -> None:
        """See ``Pooled``."""
        self._lent = False

    def give_up(self) -> None:
        """See ``Pooled``."""
        self._ordered = True
        self._free = False
        self._protocol.transport.abort()


class _Again(Exception):
    """A connection came free while its attempt waited at the gate."""


class _Connector(aiohttp.TCPConnector):
    """The connector of one loop."""

    def __init__(self, cap: ConnectionCap, hosts: _Hosts | None, options: dict[str, Any]) -> None:
        self.seat = Seat[_Link](cap, self._idle)
        self.home = Home.of_this_loop()
        self._hosts = hosts
        # Those with a permit, the oldest first, and those that are made. Entered here, removed by any thread.
        self.links: dict[_Link, None] = {}
        self.by_protocol: dict[Any, _Link] = {}
        self._make_inner: Callable[[Any], socket.socket] | None = options.pop("socket_factory", None)
        self._own_resolver: Any = options.get("resolver")
        given: dict[str, Any] = {**options, "limit": 0, "socket_factory": self._make_socket}
        cast("Any", aiohttp.TCPConnector).__init__(self, **given)

    # aiohttp asks for this before it touches anything of the session's loop.
    @property
    def allowed_protocol_schema_set(self) -> frozenset[str]:  # type: ignore[override]
        """See ``aiohttp.BaseConnector``; here it is also the first look at where a session is used."""
        self.check()
        return aiohttp.TCPConnector.allowed_protocol_schema_set

    def check(self) -> None:
        """Refuse to be used on another loop.

        Raises:
            ForeignLoopError: this is not the session's loop.
        """
        if not self.home.port.is_current():
            raise self.home.refuse("a session of aiohttp", _ADVICE)

    def gate(self) -> aiohttp.TraceConfig:
        """What runs before aiohttp makes a connection, and before each request."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._check_at_start)
        trace.on_connection_create_start.append(self._pass_gate)
        return trace

    async def _check_at_start(self, *_: object) -> None:
        self.check()

    async def _pass_gate(self, *_: object) -> None:
        link = _link.get()
        if link is not None and not link.permitted:
            other = await self.seat.take(link.key, _prims.monotonic(), again=True)
            if other is not None:
                other.unlend()
                raise _Again
            link.got_permit()

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        """See ``aiohttp.BaseConnector``.

        Raises:
            TimeoutError: no connection could be had within the ``connect`` timeout.
            PoolClosedError: the session was closed while this waited.
        """
        if self.closed:  # as aiohttp says it; a request whose connection was closed under it tries once more
            raise aiohttp.ClientConnectionError("Connector is closed.")
        key = req.connection_key
        async with asyncio.timeout(timeout.connect or None):
            leave = None if self._hosts is None else await self._hosts.enter(key)
            try:
                connection = await self._connect(key, req, traces, timeout)
            except BaseException:
                if leave is not None:
                    leave()
                raise
        if leave is not None:
            connection.add_callback(leave)
        return connection

    async def _connect(self, key: Hashable, req: Any, traces: Any, timeout: Any) -> Any:
        at, again = _prims.monotonic(), False
        while True:
            link = _Link(self, key)
            try:
                await self._enter(link, at, again)
                connection = await self._attempt(link, req, traces, timeout)
            except _Again:
                again = True
                continue
            finally:
                link.end_attempt()
            used = self.by_protocol.get(connection.protocol)
            if used is None:
                used = self.by_protocol[connection.protocol] = link
                self.seat.cap.made(_prims.monotonic() - link.since)
            used.use(connection.protocol)
            connection.add_callback(used.released)
            return connection

    async def _enter(self, link: _Link, at: float, again: bool) -> None:
        """Get a permit, unless there is an idle connection."""
        seat, key = self.seat, link.key
        if not seat.waits(key) and any(other.key == key and other.idle for other in list(self.links)):
            return
        other = await seat.take(key, at, again=again)
        if other is None:
            link.got_permit()
        else:
            other.unlend()  # and aiohttp takes it before anybody else runs here

    async def _attempt(self, link: _Link, req: Any, traces: Any, timeout: Any) -> Any:
        token = _link.set(link)
        try:
            return await super().connect(req, traces, timeout)
        finally:
            with contextlib.suppress(ValueError):  # closed with its coroutine, in the context of somebody else
                _link.reset(token)

    def _idle(self) -> list[_Link]:
        return [link for link in list(self.links) if link.idle]

    def _make_socket(self, address: Any) -> socket.socket:
        link = _link.get()
        if self._make_inner is not None:
            inner = self._make_inner(address)
            return _Socket(link, inner.family, inner.type, inner.proto, inner.detach())
        family, kind, proto = address[:3]
        return _Socket(link, family, kind, proto)

    async def close(self, **options: Any) -> None:
        """See ``aiohttp.TCPConnector``."""
        self.check()
        self.seat.shut()
        await super().close(**options)
        await asyncio.sleep(0)  # the transports close their sockets after they have told their protocols
        if self._own_resolver is not None:
            await self._own_resolver.close()
        self.seat.leave()


class _Socket(socket.socket):
    """A socket that tells its link, once, that it is closed."""

    def __init__(self, link: _Link | None, family: int, kind: int, proto: int, fileno: int | None = None) -> None:
        super().__init__(family, kind, proto, fileno=fileno)
        self._tell: deque[Callable[[], None]] = deque()
        if link is not None:
            link.socket_opened()
            self._tell.append(link.socket_closed)

    def close(self) -> None:
        super().close()
        self._say()

    def detach(self) -> int:
        descriptor = super().detach()
        self._say()
        return descriptor

    def _say(self) -> None:
        try:
            tell = self._tell.pop()
        except IndexError:
            return
        tell()

    def __del__(self) -> None:
        if getattr(self, "_tell", None):
            self.close()


class _Response(aiohttp.ClientResponse):
    """A response for the loop of its request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._polyloop_home = Home.of_this_loop()
        self._polyloop_content: Any = None
        super().__init__(*args, **kwargs)

    def _refuse_elsewhere(self, close: Callable[[], object] | None = None) -> None:
        home = self._polyloop_home
        if not home.port.is_current():
            if close is not None:
                home.port.post(close)
            raise home.refuse("a response of aiohttp", _RESPONSE_ADVICE)

    async def read(self) -> bytes:
        """See ``aiohttp.ClientResponse``."""
        self._refuse_elsewhere()  # before aiohttp closes it for a failed read
        return await super().read()

    @property
    def content(self) -> Any:
        """See ``aiohttp.ClientResponse``."""
        self._refuse_elsewhere()
        return self._polyloop_content

    @content.setter
    def content(self, value: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._polyloop_content = value

    def close(self) -> None:
        """See ``aiohttp.ClientResponse``."""
        self._refuse_elsewhere(super().close)
        super().close()

    def release(self) -> Any:
        """See ``aiohttp.ClientResponse``."""
        self._refuse_elsewhere(super().close)
        return super().release()


_GuardedWebSocket = guarded(
    aiohttp.ClientWebSocketResponse,
    ("ping", "pong", "send_frame", "send_str", "send_bytes", "send_json", "close", "receive"),
    "use a WebSocket on the loop that opened it",
)


def _web_socket(*args: Any, **kwargs: Any) -> aiohttp.ClientWebSocketResponse:
    socket = _GuardedWebSocket(*args, **kwargs)
    adopt(socket)
    return socket


def __getattr__(name: str) -> Any:
    """What this module has not is aiohttp's own: its errors and types, so that one import is enough."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(aiohttp, name)

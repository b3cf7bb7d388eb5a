"""``httpx`` on every loop: one client for the process, one pool of connections for each loop, one cap for all.

::

    import polyloop.pools.httpx

    client = polyloop.pools.httpx.AsyncClient(max_connections=10)     # made anywhere, used on any loop

    async def fetch(url):
        return (await client.get(url)).text
"""

import ssl
from collections.abc import AsyncIterator, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

from polyloop._core import _prims
from polyloop.pools._cap import ConnectionCap
from polyloop.pools._per_loop import per_loop
from polyloop.pools._where import Home

try:
    import httpx
except ImportError as exc:
    raise ImportError("polyloop.pools.httpx needs httpx: pip install 'polyloop[httpx]'") from exc

import httpcore

from polyloop.pools._httpcore import LoopPool, Request

__all__ = ("AsyncClient", "AsyncHTTPTransport")

#: What httpcore raises, and what httpx makes of it; a class stands before its bases.
_ERRORS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.WriteTimeout, httpx.WriteTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.TimeoutException, httpx.TimeoutException),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.ReadError, httpx.ReadError),
    (httpcore.WriteError, httpx.WriteError),
    (httpcore.NetworkError, httpx.NetworkError),
    (httpcore.ProxyError, httpx.ProxyError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
    (httpcore.LocalProtocolError, httpx.LocalProtocolError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.ProtocolError, httpx.ProtocolError),
)

_ADVICE = "read and close a response on the loop that made the request"


@contextmanager
def _as_httpx() -> Generator[None]:
    try:
        yield
    except Exception as exc:
        for theirs, ours in _ERRORS:
            if isinstance(exc, theirs):
                raise ours(str(exc)) from exc
        raise


class AsyncHTTPTransport(httpx.AsyncBaseTransport):
    """A transport for an ``httpx.AsyncClient`` that is used on several loops, with one cap on open connections.

    Each loop keeps connections of its own, made at its first request and closed at its end, after its tasks. When a
    connection is wanted and all permits are taken, a loop with an idle one closes that. Who waits is served in the
    order in which they came, over all loops, to within a tenth of a second, or ten times what connecting takes: for
    that long a loop may go on to use a connection that it has for requests to the same server, so that not every
    request costs a new one.

    Args:
        max_connections: The most connections that are open, or being opened, in the process, at least 1.
        keepalive_expiry: Seconds after which an idle connection is not used again; ``None``: as long as the server
            keeps it.
        verify: As in ``httpx``: ``True``, ``False``, or an ``ssl.SSLContext``, which all loops then use.
        cert: As in ``httpx``.
        trust_env: As in ``httpx``: whether the environment says which certificates to trust. It says nothing of
            proxies here, see ``proxy``.
        http1: Whether HTTP/1.1 may be spoken.
        http2: Whether HTTP/2 may be spoken; needs ``httpx[http2]``.
        retries: How often an attempt to connect is repeated.
        proxy: A proxy for all requests: its URL, or an ``httpx.Proxy``.
        uds: Path of a Unix socket to connect to, whatever the host.
        local_address: Address to connect from.
        socket_options: As in ``httpx``.
    Raises:
        ValueError: ``max_connections`` is below 1.
    Cancellation: a request that is cancelled while it waits for a connection takes none. Later, its connection is
    closed, and counts until its socket is.
    Thread safety: any loop of asyncio's kind; not trio. A response is read and closed on the loop of its request, else
    ``ForeignLoopError`` is raised. Of a name with several addresses one after the other is tried, each for a moment
    and then for longer, so that an attempt to connect is one socket.

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        *,
        max_connections: int = 100,
        keepalive_expiry: float | None = 5.0,
        verify: ssl.SSLContext | str | bool = True,
        cert: Any = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        proxy: httpx.Proxy | httpx.URL | str | None = None,
        uds: str | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> None:
        self._cap = ConnectionCap(max_connections, "the HTTP client")
        self._context = httpx.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        self._context.set_alpn_protocols(["http/1.1", "h2"] if http2 else ["http/1.1"])
        self._proxy = httpx.Proxy(proxy) if isinstance(proxy, (str, httpx.URL)) else proxy
        self._proxy_context: ssl.SSLContext | None = None
        if self._proxy is not None:
            self._proxy_context = self._proxy.ssl_context or httpx.create_ssl_context(trust_env=trust_env)
            self._proxy_context.set_alpn_protocols(["http/1.1"])
        self._options: dict[str, Any] = {
            "keepalive_expiry": keepalive_expiry,
            "http1": http1,
            "http2": http2,
            "retries": retries,
            "uds": uds,
            "local_address": local_address,
            "socket_options": None if socket_options is None else list(socket_options),
        }
        self._pools = per_loop(self._make_pool)

    def __repr__(self) -> str:
        cap = self._cap
        return f"<{type(self).__name__} {cap.size}/{cap.limit} connections, {cap.waiting} requests waiting>"

    @property
    def max_connections(self) -> int:
        """The most connections that may be open."""
        return self._cap.limit

    @property
    def connections(self) -> int:
        """How many connections there are: open, being opened or closed. Any thread."""
        return self._cap.size

    @property
    def waiting(self) -> int:
        """How many requests wait for a connection. Any thread."""
        return self._cap.waiting

    def _make_pool(self) -> LoopPool:
        stand_in = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        contexts = {stand_in: self._context}
        options = dict(self._options)
        if self._proxy is not None and self._proxy_context is not None:
            url, behind = self._proxy.url, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            contexts[behind] = self._proxy_context
            options["proxy"] = httpcore.Proxy(
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                auth=self._proxy.raw_auth,
                headers=self._proxy.headers.raw,
                ssl_context=behind if url.scheme == "https" else None,
            )
        return LoopPool(self._cap, contexts, ssl_context=stand_in, **options)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on a connection of the running loop; see ``httpx.AsyncBaseTransport``.

        Raises:
            httpx.PoolTimeout: no connection came free within the ``pool`` timeout.
            httpx.TransportError: what else went wrong on the way.
            PoolClosedError: the transport was closed, before or while this waited.
            RuntimeClosedError: the running loop is ending.
        Cancellation: see the class.
        """
        pool = self._pools()
        url = request.url
        sent = Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        sent.came_at = _prims.monotonic()
        with _as_httpx():
            response = await pool.handle_async_request(sent)
        extensions = cast("Any", response).extensions
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response.stream, Home.of_this_loop()),
            extensions=extensions,
        )

    async def aclose(self) -> None:
        """Close the connections of all loops, each on its loop; requests that are under way there fail.

        Cancellation: the loops go on closing them.
        Thread safety: any loop.
        """
        await self._pools.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of a response, for the loop of its request."""

    def __init__(self, stream: Any, home: Home) -> None:
        self._stream = stream
        self._home = home

    def _refuse_elsewhere(self) -> None:
        if not self._home.port.is_current():
            raise self._home.refuse("an HTTP response", _ADVICE)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._refuse_elsewhere()
        with _as_httpx():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        port = self._home.port
        if not port.is_current():
            port.post(self._close_at_home)  # whoever closes it twice closes it once
        self._refuse_elsewhere()
        await self._stream.aclose()

    def _close_at_home(self) -> None:
        self._closing = self._home.port.loop.create_task(self._stream.aclose(), name="close an HTTP response")


class AsyncClient(httpx.AsyncClient):
    """An ``httpx.AsyncClient`` for all loops: with an ``AsyncHTTPTransport``.

    Its cookies are shared by all loops: the jar has a lock. Not shared safely are an ``auth`` that keeps state between
    requests (``httpx.DigestAuth`` may then ask the server once more), locks of asyncio in ``auth`` or ``event_hooks``
    (use ``polyloop.Lock``), transports of httpx in ``mounts`` (use ``AsyncHTTPTransport`` there, too), and changes to
    the ``headers``, ``params`` or ``auth`` of the client while requests are made: say such things when it is made, or
    with each request.

    Args:
        max_connections: See ``AsyncHTTPTransport``, as all up to ``proxy``.
        options: What else ``httpx.AsyncClient`` takes, other than ``transport`` and ``limits``.
    Thread safety: as ``AsyncHTTPTransport``. ``aclose`` may be awaited on any loop.

    .. versionadded:: 0.4
    """

    def __init__(
        self,
        *,
        max_connections: int = 100,
        keepalive_expiry: float | None = 5.0,
        verify: ssl.SSLContext | str | bool = True,
        cert: Any = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        proxy: httpx.Proxy | httpx.URL | str | None = None,
        **options: Any,
    ) -> None:
        for name in ("transport", "limits"):
            if name in options:
                raise TypeError(
                    f"AsyncClient() takes no {name!r}; use httpx.AsyncClient(transport=...), or max_connections"
                )
        transport = AsyncHTTPTransport(
            max_connections=max_connections,
            keepalive_expiry=keepalive_expiry,
            verify=verify,
            cert=cert,
            trust_env=trust_env,
            http1=http1,
            http2=http2,
            retries=retries,
            proxy=proxy,
        )
        super().__init__(transport=transport, trust_env=trust_env, **options)
        self.transport = transport


def __getattr__(name: str) -> Any:
    """What this module has not is httpx's own: its errors and types, so that one import is enough."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(httpx, name)

"""``start_server`` and its like: asyncio's functions, over all loops of the caller's runtime."""

import asyncio
import os
import socket
import ssl as ssl_module
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from polyloop._core._port import Port
from polyloop.runtime._runtime import Runtime
from polyloop.serve._acceptor import WhenFull
from polyloop.serve._listen import Host, Listener, bind_tcp, bind_unix, check_listener, with_file
from polyloop.serve._places import places
from polyloop.serve._server import Limits, Server
from polyloop.serve._station import ProtocolFactory, Tls

type ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

#: asyncio's limit for ``StreamReader``: 64 KiB.
_LIMIT = 2**16


async def start_server(
    client_connected_cb: ClientConnected,
    host: Host = None,
    port: int | None = None,
    *,
    limit: int = _LIMIT,
    family: int = socket.AF_UNSPEC,
    flags: int = socket.AI_PASSIVE,
    sock: socket.socket | None = None,
    backlog: int = 100,
    ssl: ssl_module.SSLContext | None = None,
    reuse_address: bool | None = None,
    reuse_port: bool = False,
    keep_alive: bool | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    max_connections: int | None = None,
    max_connections_per_loop: int | None = None,
    when_full: WhenFull = "wait",
    hung_after: float | None = 0.7,
    runtime: Runtime | None = None,
) -> Server:
    """``asyncio.start_server`` over all loops: each connection is served on the loop that has the fewest.

    ``client_connected_cb(reader, writer)`` runs on that loop, as a task there if it is an async function, and so does
    all that it does with the two. Several of them run in parallel: what they share needs polyloop's locks and queues.

    Args:
        limit: Bytes that the reader buffers; 64 KiB by default.
        host, port, family, flags, sock, backlog: Where to listen, as for ``asyncio.start_server``.
        reuse_address, keep_alive, start_serving: As there.
        ssl, ssl_handshake_timeout, ssl_shutdown_timeout: TLS, as there.
        reuse_port: Give each loop a listening socket of its own and let the kernel deal out the connections: for more
            than some ten thousand new connections a second. The balance is that of a hash.
        max_connections, max_connections_per_loop, when_full, hung_after, runtime: See ``create_server``.
    Returns:
        A running server. Without a runtime it serves on the caller's loop alone.
    Raises:
        OSError: an address cannot be had.
        TypeError, ValueError: an argument makes no sense.
        RuntimeClosedError: the runtime is closing.
        NotImplementedError: the loops are of a kind that cannot take over accepted connections (rloop 0.2).
    Cancellation: nothing is left open.
    Thread safety: any loop.

    .. versionadded:: 0.4
    """

    def factory_for(home: Port) -> ProtocolFactory:
        loop = home.loop

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(
                asyncio.StreamReader(limit=limit, loop=loop), client_connected_cb, loop=loop
            )

        return protocol

    return await _open_tcp(
        factory_for,
        host,
        port,
        family=family,
        flags=flags,
        sock=sock,
        backlog=backlog,
        tls=_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout),
        reuse_address=reuse_address,
        reuse_port=reuse_port,
        keep_alive=keep_alive,
        start_serving=start_serving,
        limits=Limits(max_connections, max_connections_per_loop, when_full, hung_after),
        runtime=runtime,
    )


async def create_server(
    protocol_factory: ProtocolFactory,
    host: Host = None,
    port: int | None = None,
    *,
    family: int = socket.AF_UNSPEC,
    flags: int = socket.AI_PASSIVE,
    sock: socket.socket | None = None,
    backlog: int = 100,
    ssl: ssl_module.SSLContext | None = None,
    reuse_address: bool | None = None,
    reuse_port: bool = False,
    keep_alive: bool | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    max_connections: int | None = None,
    max_connections_per_loop: int | None = None,
    when_full: WhenFull = "wait",
    hung_after: float | None = 0.7,
    runtime: Runtime | None = None,
) -> Server:
    """``loop.create_server`` over all loops: each connection's protocol is made, and lives, on one of them.

    Args:
        protocol_factory: Called on the connection's loop; several loops call it at once.
        host, port, family, flags, sock, backlog: Where to listen, as for ``loop.create_server``. ``sock`` is the
            server's own then.
        reuse_address, keep_alive, start_serving: As there.
        ssl, ssl_handshake_timeout, ssl_shutdown_timeout: TLS, as there.
        reuse_port: See ``start_server``; has no ``max_connections``, since the loops do not count together.
        max_connections: Most connections at once in all; ``None`` for no limit.
        max_connections_per_loop: Most connections at once on one loop.
        when_full: ``"wait"`` leaves further connections in the kernel's backlog until one has gone, ``"refuse"``
            resets them.
        hung_after: Seconds until a loop that does not answer is reported, with its stack, and gets no more connections
            until it answers; ``None`` for no such watch.
        runtime: Whose loops; the caller's by default.
    Returns, Raises, Cancellation, Thread safety: See ``start_server``.

    .. versionadded:: 0.4
    """
    return await _open_tcp(
        lambda home: protocol_factory,
        host,
        port,
        family=family,
        flags=flags,
        sock=sock,
        backlog=backlog,
        tls=_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout),
        reuse_address=reuse_address,
        reuse_port=reuse_port,
        keep_alive=keep_alive,
        start_serving=start_serving,
        limits=Limits(max_connections, max_connections_per_loop, when_full, hung_after),
        runtime=runtime,
    )


async def start_unix_server(
    client_connected_cb: ClientConnected,
    path: str | os.PathLike[str] | None = None,
    *,
    limit: int = _LIMIT,
    sock: socket.socket | None = None,
    backlog: int = 100,
    ssl: ssl_module.SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    cleanup_socket: bool = True,
    max_connections: int | None = None,
    max_connections_per_loop: int | None = None,
    when_full: WhenFull = "wait",
    hung_after: float | None = 0.7,
    runtime: Runtime | None = None,
) -> Server:
    """``asyncio.start_unix_server`` over all loops; see ``start_server``.

    Args:
        path: Where the socket's file is made. One that nobody listens on any more is replaced.
        cleanup_socket: Remove the file when the server closes.
    Raises:
        OSError: the file cannot be made, or somebody listens there.

    .. versionadded:: 0.4
    """

    def factory_for(home: Port) -> ProtocolFactory:
        loop = home.loop
        return lambda: asyncio.StreamReaderProtocol(
            asyncio.StreamReader(limit=limit, loop=loop), client_connected_cb, loop=loop
        )

    return await _open_unix(
        factory_for,
        path,
        sock=sock,
        backlog=backlog,
        tls=_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout),
        start_serving=start_serving,
        cleanup_socket=cleanup_socket,
        limits=Limits(max_connections, max_connections_per_loop, when_full, hung_after),
        runtime=runtime,
    )


async def create_unix_server(
    protocol_factory: ProtocolFactory,
    path: str | os.PathLike[str] | None = None,
    *,
    sock: socket.socket | None = None,
    backlog: int = 100,
    ssl: ssl_module.SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    cleanup_socket: bool = True,
    max_connections: int | None = None,
    max_connections_per_loop: int | None = None,
    when_full: WhenFull = "wait",
    hung_after: float | None = 0.7,
    runtime: Runtime | None = None,
) -> Server:
    """``loop.create_unix_server`` over all loops; see ``create_server`` and ``start_unix_server``.

    .. versionadded:: 0.4
    """
    return await _open_unix(
        lambda home: protocol_factory,
        path,
        sock=sock,
        backlog=backlog,
        tls=_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout),
        start_serving=start_serving,
        cleanup_socket=cleanup_socket,
        limits=Limits(max_connections, max_connections_per_loop, when_full, hung_after),
        runtime=runtime,
    )


async def _open_tcp(
    factory_for: Callable[[Port], ProtocolFactory],
    host: Host,
    port: int | None,
    *,
    family: int,
    flags: int,
    sock: socket.socket | None,
    backlog: int,
    tls: Tls,
    reuse_address: bool | None,
    reuse_port: bool,
    keep_alive: bool | None,
    start_serving: bool,
    limits: Limits,
    runtime: Runtime | None,
) -> Server:
    if reuse_port and limits.max_connections is not None:
        raise ValueError(
            f"max_connections={limits.max_connections} cannot be counted with reuse_port=True, where each loop accepts"
            " by itself; use max_connections_per_loop"
        )
    if sock is None:
        if host is None and port is None:
            raise ValueError("neither host/port nor sock says where to listen; give port=, or host= and port=")
        sockets = await bind_tcp(
            host,
            port,
            family=family,
            flags=flags,
            backlog=backlog,
            reuse_address=reuse_address,
            reuse_port=reuse_port,
            keep_alive=keep_alive,
        )
    elif host is not None or port is not None:
        raise ValueError("host/port and sock both say where to listen; give one")
    else:
        sockets = [check_listener(sock, shared=reuse_port)]
    return await open_server(
        factory_for,
        [Listener(one) for one in sockets],
        backlog=backlog,
        tls=tls,
        limits=limits,
        reuse_port=reuse_port,
        start_serving=start_serving,
        runtime=runtime,
    )


async def _open_unix(
    factory_for: Callable[[Port], ProtocolFactory],
    path: str | os.PathLike[str] | None,
    *,
    sock: socket.socket | None,
    backlog: int,
    tls: Tls,
    start_serving: bool,
    cleanup_socket: bool,
    limits: Limits,
    runtime: Runtime | None,
) -> Server:
    if (path is None) == (sock is None):
        raise ValueError(f"one of path and sock must say where to listen; got path={path!r} and sock={sock!r}")
    if path is not None:
        listener = bind_unix(path)
    else:
        assert sock is not None
        listener = with_file(check_listener(sock, family=socket.AF_UNIX))
    if not cleanup_socket:
        listener.keep_file()
    return await open_server(
        factory_for,
        [listener],
        backlog=backlog,
        tls=tls,
        limits=limits,
        start_serving=start_serving,
        runtime=runtime,
    )


async def open_server(
    factory_for: Callable[[Port], ProtocolFactory],
    listeners: Sequence[Listener],
    *,
    backlog: int,
    tls: Tls,
    limits: Limits,
    start_serving: bool,
    runtime: Runtime | None,
    reuse_port: bool = False,
) -> Server:
    """A server on these sockets, which are its own from now on."""
    try:
        ports = places(runtime)
        server = Server(
            ports,
            [factory_for(port) for port in ports],
            listeners,
            backlog=backlog,
            tls=tls,
            limits=limits,
            reuse_port=reuse_port,
        )
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    if start_serving:
        await server.start_serving()
    return server


def _tls(context: Any, handshake: float | None, shutdown: float | None) -> Tls:
    timeouts = {"ssl_handshake_timeout": handshake, "ssl_shutdown_timeout": shutdown}
    for name, value in timeouts.items():
        if value is not None and context is None:
            raise ValueError(f"{name}={value!r} is only meaningful with ssl; give the SSLContext, or leave it out")
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be seconds above 0, got {value!r}")
    check_tls(context)
    return Tls(context, handshake, shutdown)


def check_tls(context: Any) -> None:
    """Refuse what is no context for a server.

    Raises:
        TypeError, ValueError: it is something else, or a client's.
    """
    if context is not None and not isinstance(context, ssl_module.SSLContext):
        raise TypeError(f"ssl must be an SSLContext or None, got {context!r}; see ssl.create_default_context()")
    if context is not None and context.protocol == ssl_module.PROTOCOL_TLS_CLIENT:
        raise ValueError(
            f"ssl={context!r} is a client's; make it with ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
        )

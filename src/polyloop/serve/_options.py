"""The options that all web servers of polyloop have, with their defaults and checks."""

import os
import socket
import ssl as ssl_module
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypedDict

from polyloop.runtime._runtime import Runtime
from polyloop.serve._acceptor import WhenFull
from polyloop.serve._open import check_tls
from polyloop.serve._server import Limits

type Hook = Callable[[], Awaitable[object] | object]


class ServeOptions(TypedDict, total=False):
    """The keyword options of ``serve``, ``serve_aiohttp`` and of the classes under them.

    Attributes:
        host: Address to listen on; ``"127.0.0.1"`` by default, ``"0.0.0.0"`` for all of IPv4, a sequence for several.
        port: 8000 by default; 0 lets the system choose.
        uds: Path of a unix socket, instead of ``host`` and ``port``.
        sockets: Sockets to listen on, instead of both; the server's own from then on.
        backlog: Connections that the kernel keeps until they are accepted; 2048 by default.
        ssl: TLS.
        ssl_handshake_timeout: Seconds that a client has to complete TLS's handshake; 20 by default.
        reuse_port, max_connections, max_connections_per_loop, when_full, hung_after: See ``create_server``.
        head_timeout: Seconds that a client has to send the head of a request, from the connection's beginning or from
            its first byte on; then the connection is closed. 20 by default, ``None`` for no limit. It is looked at
            once a second. (aiohttp: of a connection's first request; see its ``keepalive_timeout`` for the others.)
        graceful_timeout: Seconds that requests get to end when the server stops; then they are cancelled. 30 by
            default.
        lifespan_timeout: Seconds that the applications then get to shut down; 10 by default.
        on_start: Called once, before the first application starts; awaited if it is async.
        on_stop: Called once, when the last application has shut down; also where one did not start, if ``on_start``
            had succeeded. Awaited if it is async.
        health: Path of a health endpoint, such as ``"/health"``: ``/health/live`` answers 200 as long as any loop
            does, ``/health`` and ``/health/ready`` 200 while requests are welcome, else 503. None by default.
        access_log: ``True``, the default, for standard output, a path for a file, ``False`` for none.
        runtime: Whose loops serve; the caller's by default. Not for ``serve``, which makes its own.

    .. versionadded:: 0.4
    """

    host: str | Sequence[str]
    port: int
    uds: str | os.PathLike[str] | None
    sockets: Sequence[socket.socket]
    backlog: int
    ssl: ssl_module.SSLContext | None
    ssl_handshake_timeout: float | None
    reuse_port: bool
    max_connections: int | None
    max_connections_per_loop: int | None
    when_full: WhenFull
    hung_after: float | None
    head_timeout: float | None
    graceful_timeout: float
    lifespan_timeout: float
    on_start: Hook | None
    on_stop: Hook | None
    health: str | None
    access_log: bool | str | os.PathLike[str]
    runtime: Runtime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``ServeOptions`` with their defaults, checked.

    Raises:
        TypeError: there is no such option.
        ValueError: a value makes no sense.
    """

    host: str | Sequence[str] = "127.0.0.1"
    port: int = 8000
    uds: str | os.PathLike[str] | None = None
    sockets: Sequence[socket.socket] = ()
    backlog: int = 2048
    ssl: ssl_module.SSLContext | None = None
    ssl_handshake_timeout: float | None = 20.0
    reuse_port: bool = False
    max_connections: int | None = None
    max_connections_per_loop: int | None = None
    when_full: WhenFull = "wait"
    hung_after: float | None = 0.7
    head_timeout: float | None = 20.0
    graceful_timeout: float = 30.0
    lifespan_timeout: float = 10.0
    on_start: Hook | None = None
    on_stop: Hook | None = None
    health: str | None = None
    access_log: bool | str | os.PathLike[str] = True
    runtime: Runtime | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.port, int) or not 0 <= self.port <= 65535:  # type: ignore[redundant-expr]
            raise ValueError(f"port must be a whole number from 0 to 65535, got {self.port!r}")
        if self.health is not None and not str(self.health).startswith("/"):
            raise ValueError(f"health must be a path that begins with '/', got {self.health!r}")
        if not isinstance(self.backlog, int) or self.backlog < 1:  # type: ignore[redundant-expr]
            raise ValueError(f"backlog must be a whole number, at least 1; got {self.backlog!r}")
        for name in ("graceful_timeout", "lifespan_timeout"):
            if not _is_seconds(getattr(self, name)):
                raise ValueError(f"{name} must be seconds, at least 0, got {getattr(self, name)!r}")
        for name in ("head_timeout", "ssl_handshake_timeout", "hung_after"):
            value = getattr(self, name)
            if value is not None and not (_is_seconds(value) and value > 0):
                raise ValueError(f"{name} must be seconds above 0, or None for no limit; got {value!r}")
        for sock in self.sockets:
            if not isinstance(sock, socket.socket):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"sockets must be listening sockets, got {sock!r}")
        if self.reuse_port and (self.uds is not None or self.sockets):
            raise ValueError("reuse_port=True needs host and port: each loop binds a socket of its own there")
        if self.reuse_port and self.max_connections is not None:
            raise ValueError(
                f"max_connections={self.max_connections} cannot be counted with reuse_port=True, where each loop"
                " accepts by itself; use max_connections_per_loop"
            )
        check_tls(self.ssl)
        _ = self.limits

    @property
    def limits(self) -> Limits:
        """The limits of the server."""
        return Limits(self.max_connections, self.max_connections_per_loop, self.when_full, self.hung_after)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def checked(options: ServeOptions) -> Options:
    """The options with their defaults.

    Raises:
        TypeError, ValueError: see ``Options``.
    """
    known = {field.name for field in fields(Options)}
    for name in options:
        if name not in known:
            raise TypeError(f"there is no option {name!r}; the options are {', '.join(sorted(known))}")
    return Options(**options)

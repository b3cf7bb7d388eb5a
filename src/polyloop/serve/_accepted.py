"""Accepting: from a listening socket to a connection that says when it is closed."""

import errno
import logging
import socket
from collections.abc import Callable
from typing import Literal

logger = logging.getLogger("polyloop.serve")

#: The system has run out of something: try again in a moment, or when a connection has been closed.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class AcceptedSocket(socket.socket):
    """A connection that calls ``on_close`` once when it is closed, whoever does that: a transport, as a rule.

    A transport closes its socket as its last act, after the protocol's ``connection_lost``, so this one word serves
    every protocol, TLS included, without a wrapper around any of them.
    """

    def __init__(
        self, listener: socket.socket, connection: socket.socket, on_close: "Callable[[AcceptedSocket], object]"
    ) -> None:
        # asyncio sets TCP_NODELAY only where the socket names its protocol; without it each small answer that is
        # written in two parts waits 40 ms for the client's acknowledgement of the first.
        proto = connection.proto or _protocol_of(listener)
        super().__init__(connection.family, connection.type, proto, fileno=connection.detach())
        self._tell: Callable[[AcceptedSocket], object] | None = on_close

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self._said_once()

    def detach(self) -> int:
        """Give the descriptor away; to the server it counts as closed."""
        fd = super().detach()
        self._said_once()
        return fd

    def abort(self) -> None:
        """Close at once, so that the client is told of a reset rather than of an orderly end."""
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        except OSError:  # closed by the other side, or no such option on this kind of socket
            pass
        self.close()

    def _said_once(self) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(self)

    def __del__(self) -> None:
        if getattr(self, "_tell", None) is not None:  # it was on its way to a loop that has ended
            self.close()


_LINGER_NOT = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger { on, 0 s }


def _protocol_of(listener: socket.socket) -> int:
    is_tcp = listener.family in (socket.AF_INET, socket.AF_INET6) and listener.type == socket.SOCK_STREAM
    return socket.IPPROTO_TCP if is_tcp else 0


def accept(
    listener: socket.socket, on_close: Callable[[AcceptedSocket], object]
) -> "AcceptedSocket | Literal['none', 'exhausted']":
    """Take one connection from a listening socket that does not block.

    Returns:
        The connection, not blocking; ``"none"`` if nobody waits; ``"exhausted"`` if the system has no room for more.
    Raises:
        OSError: the listening socket is beyond use.
    """
    while True:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return "none"
        except ConnectionError:  # it went while it waited
            continue
        except OSError as exc:
            if exc.errno in _EXHAUSTED:
                return "exhausted"
            if exc.errno in (errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH):
                continue  # Linux reports errors of the new connection here: see accept(2)
            raise
        accepted = AcceptedSocket(listener, connection, on_close)
        accepted.setblocking(False)
        return accepted

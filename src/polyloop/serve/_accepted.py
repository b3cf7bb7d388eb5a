"""Accepting: from a listening socket to a connection that says when it is closed."""

import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Literal

from polyloop._core import _prims

logger = logging.getLogger("polyloop.serve")

#: Seconds until one that could not accept, since the system has run out of something, tries again.
RETRY = 1.0

#: Seconds between two complaints about the same trouble. A guess: it is to be noticed, and not to fill a disk.
_COMPLAIN_EVERY = 10.0

#: The system has run out of something: try again in a moment, or when a connection has been closed.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

#: Linux reports errors of the new connection in accept(2), whose page says to go on with the next one.
_OF_THE_CONNECTION = frozenset({
    errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN,
    errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ETIMEDOUT,
})  # fmt: skip

#: struct linger {on, 0 s}: closing resets the connection.
_LINGER_NOT = struct.pack("ii", 1, 0)


class AcceptedSocket(socket.socket):
    """A connection that calls ``on_close`` once when it is closed, whoever does that: a transport, as a rule.

    A transport closes its socket as its last act, after the protocol's ``connection_lost``, so this one word serves
    every protocol, TLS included, without a wrapper around any of them.

    Args:
        connection: Whose descriptor this takes over.
        proto: Its protocol, where the socket does not say.
        on_close: Called on the thread that closes it; of one that nobody holds any more, on any.

    Attributes:
        held: Whether it was given to a transport, which alone may close it from then on: its descriptor is in the
            loop's selector.
    """

    def __init__(
        self, connection: socket.socket, on_close: "Callable[[AcceptedSocket], object]", *, proto: int = 0
    ) -> None:
        family, kind, proto = connection.family, connection.type, connection.proto or proto
        super().__init__(family, kind, proto, fileno=connection.detach())
        self.held = False
        self._tell: Callable[[AcceptedSocket], object] | None = on_close

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self._say_once()

    def detach(self) -> int:
        """Give the descriptor away; to the server it counts as closed."""
        fd = super().detach()
        self._say_once()
        return fd

    def drop(self) -> None:
        """End the connection: by a reset, or, if a transport holds it, by what makes that close it."""
        try:
            if self.held:
                self.shutdown(socket.SHUT_RDWR)
            else:
                self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        except OSError:  # closed by the other side, or no such option on this kind of socket
            pass
        if not self.held:
            self.close()

    def _say_once(self) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(self)

    def __del__(self) -> None:
        if getattr(self, "_tell", None) is not None:  # it was on its way to a loop that has ended
            self.close()


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
            if exc.errno in _OF_THE_CONNECTION:
                continue
            raise
        # asyncio sets TCP_NODELAY only where the socket names its protocol; without it each small answer that is
        # written in two parts waits 40 ms for the client's acknowledgement of the first.
        accepted = AcceptedSocket(connection, on_close, proto=_protocol_of(listener))
        accepted.setblocking(False)
        return accepted


def _protocol_of(listener: socket.socket) -> int:
    is_tcp = listener.family in (socket.AF_INET, socket.AF_INET6) and listener.type == socket.SOCK_STREAM
    return socket.IPPROTO_TCP if is_tcp else 0


def log_apart(report: Callable[[], None]) -> None:
    """Have something logged by a thread of its own.

    A log handler or filter is the user's code: it may fail, or be the very thing that a loop hangs in, with its lock
    held. Neither may cost the thread that accepts.
    """
    try:
        _prims.start_thread(report, "polyloop-report")
    except RuntimeError:  # no thread can be had: better late than never said
        with contextlib.suppress(Exception):
            report()


class Trouble:
    """Why nothing can be accepted for a moment: said, but not at every attempt. One thread's own."""

    def __init__(self) -> None:
        self._quiet_until: float | None = None

    def say(self, who: str, exc: OSError | None = None) -> None:
        """Log it, unless that was done lately."""
        now = _prims.monotonic()
        if self._quiet_until is not None and now < self._quiet_until:
            return
        self._quiet_until = now + _COMPLAIN_EVERY
        why = "the system has no room for another connection (descriptors, see 'ulimit -n', or memory)"
        log_apart(
            partial(logger.error, "polyloop: %s cannot accept: %s; it tries again every %g s", who, exc or why, RETRY)
        )

"""Listening sockets: made, taken over, and closed in the end. The thread that opens the server; later the acceptor's."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from polyloop.serve._accepted import logger

type Host = str | Sequence[str] | None


@dataclass(slots=True, eq=False)
class Listener:
    """A socket that listens, and the file that goes with it.

    Attributes:
        path: Of a unix socket that we made; removed at the end, if it is still ours.
    """

    sock: socket.socket
    path: str | None = None
    _inode: int | None = None

    def close(self) -> None:
        """Close it, and remove its file."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                if os.stat(self.path).st_ino == self._inode:
                    os.unlink(self.path)
        self.sock.close()

    def keep_file(self) -> None:
        """Leave the file of a unix socket to whoever goes on with it."""
        self.path = None


async def bind_tcp(
    host: Host,
    port: int | None,
    *,
    family: int = socket.AF_UNSPEC,
    flags: int = socket.AI_PASSIVE,
    backlog: int = 100,
    reuse_address: bool | None = None,
    reuse_port: bool = False,
    keep_alive: bool | None = None,
) -> list[socket.socket]:
    """Bind as ``loop.create_server`` does, one socket for each address of ``host``.

    Raises:
        OSError: an address cannot be had; the message says which, why, and what to do.
    """
    loop = asyncio.get_running_loop()
    options: dict[str, bool] = {} if keep_alive is None else {"keep_alive": keep_alive}
    try:
        server = await loop.create_server(
            asyncio.Protocol,
            host,
            port,
            family=family,
            flags=flags,
            backlog=backlog,
            reuse_address=reuse_address,
            reuse_port=reuse_port or None,
            start_serving=False,
            **options,
        )
    except OSError as exc:
        raise _explained(exc, f"{host or '*'}:{port}") from exc
    try:
        # The loop's own server only bound them. Its sockets go with it, so ours are copies.
        return [socket.socket(fileno=os.dup(sock.fileno())) for sock in server.sockets]
    finally:
        server.close()


def bind_again(sock: socket.socket) -> socket.socket:
    """Another socket on the same address, for ``SO_REUSEPORT``."""
    twin = socket.socket(sock.family, sock.type, sock.proto)
    try:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        set_reuse_port(twin)
        if sock.family == socket.AF_INET6:
            twin.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        twin.bind(sock.getsockname())
    except BaseException:
        twin.close()
        raise
    return twin


def set_reuse_port(sock: socket.socket) -> None:
    """Let several sockets have one address.

    Raises:
        ValueError: the system cannot.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError("reuse_port=True needs SO_REUSEPORT, which this system lacks; leave it out")
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as exc:
        raise ValueError(f"reuse_port=True needs SO_REUSEPORT, which {sock!r} does not take: {exc}") from exc


def bind_unix(path: str | os.PathLike[str] | bytes, mode: int | None = None) -> Listener:
    """Bind a unix socket; a socket file that nobody listens on any more is replaced.

    Args:
        mode: Permissions of the file; by default what the umask leaves.
    Raises:
        OSError: the address cannot be had; somebody may listen there.
    """
    name = os.fsdecode(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if name.startswith("\0"):
            sock.bind(name)
            return Listener(sock)
        _remove_stale(name)
        sock.bind(name)
        if mode is not None:
            os.chmod(name, mode)
        return Listener(sock, name, os.stat(name).st_ino)
    except BaseException as exc:
        sock.close()
        raise _explained(exc, name) if isinstance(exc, OSError) else exc


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except BlockingIOError:  # its backlog is full: somebody listens
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    logger.debug("polyloop: %s is left over from a server that has ended; it is replaced", path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def check_listener(sock: socket.socket) -> socket.socket:
    """A socket of the user's that is to be served, and is ours from now on.

    Raises:
        TypeError: it is a TLS socket; those cannot be accepted from by several loops.
        ValueError: it is not a stream socket.
    """
    import ssl  # noqa: PLC0415 - 10 ms that a program without TLS need not pay

    if isinstance(sock, ssl.SSLSocket):
        raise TypeError(f"{sock!r} is a TLS socket; give the plain one, and the SSLContext as ssl=")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"a server needs a stream socket, got {sock!r}")
    return sock


def listen(sock: socket.socket, backlog: int) -> None:
    """Begin to listen, without ever blocking."""
    sock.setblocking(False)
    sock.listen(backlog)


def _explained(exc: OSError, address: str) -> OSError:
    """The same error with the address, and the next step."""
    advice = {
        errno.EADDRINUSE: "somebody else listens there; stop that, or choose another",
        errno.EACCES: "you may not; ports below 1024 need a privilege (CAP_NET_BIND_SERVICE), files a folder you may"
        " write to",
        errno.EADDRNOTAVAIL: "no such address on this machine",
        errno.ENOENT: "there is no such folder",
    }.get(exc.errno or 0)
    if advice is None:
        return exc
    return OSError(exc.errno, f"cannot listen on {address}: {os.strerror(exc.errno or 0).lower()}; {advice}")

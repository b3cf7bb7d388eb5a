"""Listening sockets: made, taken over, and closed in the end. First the opener's thread's, later the acceptor's."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyloop.serve._accepted import logger

type Host = str | Sequence[str] | None


@dataclass(slots=True, eq=False)
class Listener:
    """A socket that listens, and the file that goes with it.

    Attributes:
        path: Of a unix socket whose file is ours; removed at the end, if it is still the same.
    """

    sock: socket.socket
    path: str | None = None
    _inode: tuple[int, int] | None = None

    def close(self) -> None:
        """Close it, and remove its file."""
        self.remove_file()
        self.sock.close()

    def remove_file(self) -> None:
        """Remove its file: nobody comes in any more, and who has come in stays."""
        path, self.path = self.path, None
        if path is not None:
            # No other file can have this inode: it lives as long as our socket, which is open still.
            with contextlib.suppress(OSError):
                if _inode(path) == self._inode:
                    os.unlink(path)

    def keep_file(self) -> None:
        """Leave the file of a unix socket to whoever goes on with it."""
        self.path = None


def with_file(sock: socket.socket) -> Listener:
    """The listener of a unix socket that was bound by somebody else, and whose file is ours now."""
    name = sock.getsockname()
    if not isinstance(name, str) or not name:  # bytes: not in the file system
        return Listener(sock)
    try:
        return Listener(sock, name, _inode(name))
    except OSError:  # removed, or not to be seen from here
        return Listener(sock)


def _inode(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


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
    """Bind as ``loop.create_server`` does, one socket for each address of ``host``. They do not listen yet.

    Raises:
        OSError: an address cannot be had; the message says which, why, and what to do.
        ValueError: the system lacks ``SO_REUSEPORT``.
    """
    options: list[tuple[int, int]] = []
    if os.name == "posix" if reuse_address is None else reuse_address:
        options.append((socket.SOL_SOCKET, socket.SO_REUSEADDR))
    if keep_alive:
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    hosts = [host or None] if host is None or isinstance(host, str) else host
    found: dict[Address, None] = {}
    for name in hosts:
        found.update(dict.fromkeys(await resolve(name, port, socket.SOCK_STREAM, family=family, flags=flags)))
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for address in found:
            try:
                sockets.append(_bind(address, options, reuse_port))
            except OSError as exc:
                # A name may stand for an address of IPv6 on a machine that has none, or cannot make such sockets.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or len(found) == 1:
                    raise
                absent = exc
        if absent is not None and not sockets:
            raise absent
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


#: What ``getaddrinfo`` gives: family, type, protocol, canonical name, address.
type Address = tuple[int, int, int, str, Any]


async def resolve(
    host: str | None, port: int | None, kind: socket.SocketKind, *, family: int, flags: int = socket.AI_PASSIVE
) -> Sequence[Address]:
    """The addresses of a name; of a number, without a thread.

    Raises:
        OSError: it has none.
        ValueError: the port is none.
    """
    if isinstance(port, int) and not 0 <= port <= 65535:  # the resolver would take it, modulo 65536
        raise ValueError(f"port must be a number from 0 to 65535, got {port!r}")
    with contextlib.suppress(OSError):
        return socket.getaddrinfo(host, port, family, kind, 0, flags | socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    try:
        return await loop.getaddrinfo(host, port, family=family, type=kind, flags=flags)
    except OSError as exc:
        raise explained(exc, f"{host}:{port or 0}") from exc


def _bind(address: Address, options: Sequence[tuple[int, int]], reuse_port: bool) -> socket.socket:
    family, kind, proto, _, where = address
    sock = socket.socket(family, kind, proto)
    try:
        for level, option in options:
            sock.setsockopt(level, option, 1)
        if reuse_port:
            set_reuse_port(sock)
        if family == socket.AF_INET6:  # so that IPv4 can have the same port, as asyncio does it
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
    except OSError as exc:
        sock.close()
        raise explained(exc, show_address(where)) from exc
    except BaseException:
        sock.close()
        raise
    return sock


def show_address(name: Any) -> str:
    """The address of a socket, for people."""
    if isinstance(name, (str, bytes)):
        return str(name)
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def bind_again(sock: socket.socket) -> socket.socket:
    """Another socket on the same address, for ``SO_REUSEPORT``."""
    twin = socket.socket(sock.family, sock.type, sock.proto)
    try:
        if sock.type == socket.SOCK_STREAM:  # for datagrams it means something else: that anybody may share the port
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        set_reuse_port(twin)
        if sock.family == socket.AF_INET6:
            only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            twin.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
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


def bind_unix(path: str | os.PathLike[str] | bytes, mode: int | None = None, *, backlog: int = 100) -> Listener:
    """Bind a unix socket, and listen; a socket file that nobody listens on any more is replaced.

    It listens at once, though nobody accepts yet: a file that nobody listens on is one that the next server removes.

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
        return _with_new_file(sock, name, mode, backlog)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, OSError):
            raise explained(exc, name) from exc
        raise


def _with_new_file(sock: socket.socket, path: str, mode: int | None, backlog: int) -> Listener:
    """Listen on a socket that has just been bound; without it, its file goes too."""
    try:
        if mode is not None:
            os.chmod(path, mode)  # before it listens: nobody comes in by the umask
        sock.setblocking(False)
        sock.listen(backlog)
        return Listener(sock, path, _inode(path))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _remove_stale(path: str) -> None:
    try:
        found = os.stat(path)
        if not stat.S_ISSOCK(found.st_mode):
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
        if _same_file(found, os.stat(path)):  # else another server has replaced it just now, and binding will fail
            os.unlink(path)


def _same_file(one: os.stat_result, other: os.stat_result) -> bool:
    # With the time, since a new file may get the number of one that was just removed.
    return (one.st_dev, one.st_ino, one.st_mtime_ns) == (other.st_dev, other.st_ino, other.st_mtime_ns)


def check_listener(sock: socket.socket, *, family: int | None = None, shared: bool = False) -> socket.socket:
    """A socket of the user's that is to be served, and is ours from now on.

    Args:
        family: What it must be of; by default any.
        shared: Whether other sockets are to have its address too.
    Raises:
        TypeError: it is no socket, or a TLS socket; those cannot be accepted from by several loops.
        ValueError: it is closed, not a stream socket, or not of that family, or its address cannot be shared.
    """
    checked = check_socket(sock, socket.SOCK_STREAM, "a server needs a stream socket (SOCK_STREAM)", shared=shared)
    if family is not None and checked.family != family:
        raise ValueError(f"a unix server needs a socket of AF_UNIX, got {sock!r}; use start_server() for this one")
    return checked


def check_socket(sock: object, kind: int, need: str, *, shared: bool) -> socket.socket:
    """A socket of the user's, if it is of the type ``kind``; see ``check_listener``."""
    if isinstance(sock, ssl.SSLSocket):
        raise TypeError(f"{sock!r} is a TLS socket; give the plain one, and the SSLContext as ssl=")
    if not isinstance(sock, socket.socket):
        raise TypeError(f"sock must be a socket.socket, got {sock!r}")
    if sock.fileno() < 0:
        raise ValueError(f"{sock!r} is closed; give an open socket")
    if sock.type != kind:
        raise ValueError(f"{need}, got {sock!r}")
    if shared and not (hasattr(socket, "SO_REUSEPORT") and sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)):
        raise ValueError(f"reuse_port=True needs a socket with SO_REUSEPORT set before it was bound, got {sock!r}")
    return sock


def listen(sock: socket.socket, backlog: int) -> None:
    """Begin to listen, without ever blocking.

    Raises:
        OSError: it cannot, for instance since another socket that was bound to the same port listens already; the
            message says where, why, and what to do.
    """
    sock.setblocking(False)
    try:
        sock.listen(backlog)
    except OSError as exc:
        raise explained(exc, show_address(sock.getsockname())) from exc


def explained(exc: OSError, address: str) -> OSError:
    """An error with the address, and the next step."""
    number = exc.errno or 0
    advice = {
        errno.EADDRINUSE: "somebody else listens there; stop that, or choose another",
        errno.EACCES: "you may not; ports below 1024 need a privilege (CAP_NET_BIND_SERVICE), files a folder you may"
        " write to",
        errno.EADDRNOTAVAIL: "no such address on this machine",
        errno.ENOENT: "there is no such folder",
    }.get(number)
    if advice is None:  # of the resolver, for instance, whose numbers are others
        return type(exc)(*exc.args[:1], f"cannot listen on {address}: {exc.strerror or exc}")
    return OSError(number, f"cannot listen on {address}: {os.strerror(number).lower()}; {advice}")

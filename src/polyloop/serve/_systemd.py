"""systemd's side of a service: ``sd_notify(3)`` and ``sd_listen_fds(3)``, without its library.

Under anything else than systemd all of it does nothing.
"""

import os
import socket
from collections.abc import Mapping

from polyloop._core import _prims

#: The first descriptor that is handed over; sd_listen_fds(3).
_FIRST = 3


def notify(*states: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell the service manager: ``notify("READY=1", "STATUS=serving on 8 loops")``.

    ``READY=1`` when it serves, ``STOPPING=1`` when it begins to stop, ``STATUS=…`` for people, ``MAINPID=…`` when
    another process is the service from now on, ``WATCHDOG=1`` as a sign of life, ``reloading()`` for a reload.

    Returns:
        Whether it was sent: ``False`` where no manager listens (``NOTIFY_SOCKET``). Never raises, never waits.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(states).encode(), f"\0{address[1:]}" if address[0] == "@" else address)
    except OSError:
        return False
    return True


def reloading() -> str:
    """The state for the begin of a reload, which ends with ``READY=1``."""
    return f"RELOADING=1\nMONOTONIC_USEC={_prims.monotonic_ns() // 1000}"


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two ``WATCHDOG=1``, half of what the manager allows; ``None`` if it does not watch us."""
    allowed, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if not allowed.isdecimal() or int(allowed) == 0 or pid not in (None, "", str(os.getpid())):
        return None
    return int(allowed) / 2_000_000


def inherited_sockets() -> list[socket.socket]:
    """The listening sockets that systemd has opened for this process (a ``.socket`` unit); ours from now on.

    The variables are removed, so that no process of ours takes the sockets for its own.

    Returns:
        As many as there are, in the order of the unit; none if the process was not started by socket activation.
    Raises:
        ValueError: the variables make no sense, or a descriptor is no listening stream socket.
    Thread safety: once, at the start.
    """
    given = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if not given["LISTEN_FDS"] or given["LISTEN_PID"] != str(os.getpid()):
        _check_pid(given["LISTEN_PID"])
        return []
    if not given["LISTEN_FDS"].isdecimal():
        raise ValueError(f"LISTEN_FDS={given['LISTEN_FDS']!r} is not a number of sockets; unset it, or correct it")
    count = int(given["LISTEN_FDS"])
    names = given["LISTEN_FDNAMES"].split(":") if given["LISTEN_FDNAMES"] else []
    taken: list[socket.socket] = []
    try:
        for index in range(count):
            name = f" ({names[index]})" if index < len(names) else ""
            taken.append(take_listener(_FIRST + index, f"LISTEN_FDS={count}{name}"))
    except ValueError:
        for sock in taken:
            sock.detach()  # not ours to close: the caller may say something, and ends
        raise
    return taken


def _check_pid(pid: str) -> None:
    if pid and not pid.isdecimal():
        raise ValueError(f"LISTEN_PID={pid!r} is not a process; unset it, or correct it")


def take_listener(fd: int, origin: str) -> socket.socket:
    """The listening socket with that descriptor, ours from now on; programs that we start do not inherit it.

    Args:
        origin: Who gave it, for errors.
    Raises:
        ValueError: it is no listening stream socket; it is left open.
    """
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, ValueError, OverflowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ValueError(f"{origin}: descriptor {fd} is no socket: {reason.lower()}") from exc
    wrong = _what_is_wrong(sock)
    if wrong is not None:
        sock.detach()
        raise ValueError(f"{origin}: descriptor {fd} {wrong}; give a stream socket that listens")
    sock.set_inheritable(False)
    return sock


def _what_is_wrong(sock: socket.socket) -> str | None:
    if sock.type != socket.SOCK_STREAM:
        return "is a datagram socket" if sock.type == socket.SOCK_DGRAM else f"is a socket of type {sock.type!r}"
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:  # macOS has the option, but does not tell
        return None
    return None if listens else "does not listen"

"""Waiting until the other side has let go of a connection, so that it never counts more than a pool may have.

A client that closes its socket is done at once; the server learns of it a little later, and until then has the old
connection beside the one that was made in its place. So whoever gives a permit up waits for the end of the server's
half. The client's own socket is closed by then, so a second descriptor of it, made before, does the waiting: ``spare``.

As long as there is a second descriptor, closing the first tells the server nothing. ``until_hung_up`` therefore ends
our half of the connection by itself.
"""

import asyncio
import contextlib
import os
import select
import socket

#: How long a server may take to let go, in seconds; for one that is dead or busy with a long query. A guess.
LIMIT = 3.0

#: The first letter of the message by which PostgreSQL ends a session: an error that no query has caused.
FAREWELL = b"E"

_CHUNK = 65536


def spare(descriptor: int) -> socket.socket:
    """A second descriptor of a client's socket, which is non-blocking and outlives the first.

    Args:
        descriptor: What the client uses; it must be open.
    Returns:
        A socket that the caller has to close, or to hand to ``until_hung_up``.
    Raises:
        OSError: there is no such socket, or the process has too many.
    """
    copy = os.dup(descriptor)  # closed when a new program is started, as Python's descriptors are
    try:
        made = socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise
    made.setblocking(False)
    return made


def has_hung_up(sock: socket.socket, farewell: bytes = b"") -> bool:
    """Whether the other side has ended the connection; waits for nothing and reads nothing.

    Args:
        sock: A spare of a connection that lies idle.
        farewell: First bytes of messages that announce the end, each a letter of this, if the connection is not
            encrypted.
    """
    try:
        seen = sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not seen or seen in farewell


def is_readable(sock: socket.socket) -> bool:
    """Whether there is something to read, the other side's end included; waits for nothing."""
    if not hasattr(select, "poll"):  # pragma: no cover - Windows
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()  # which takes any descriptor
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


async def until_hung_up(sock: socket.socket, limit: float = LIMIT) -> bool:
    """Say goodbye, wait until the other side has hung up, and close the socket.

    Args:
        sock: A spare of a connection that its client has closed, so that nobody else reads from it.
        limit: The most seconds to wait.
    Returns:
        Whether it has; ``False`` if the time was up.
    Cancellation: is raised when the wait is over. A loop that ends cancels what still closes its connections, and
        their places must not be free before they are.
    Thread safety: any loop, but one call for each socket.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[bool] = loop.create_future()
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)

    def end(hung_up: bool) -> None:
        if not over.done():
            over.set_result(hung_up)

    def look() -> None:
        if _is_at_end(sock):
            end(True)

    timer = loop.call_later(limit, end, False)
    loop.add_reader(sock.fileno(), look)  # and not sock_recv, which cannot be given up on every kind of loop
    try:
        await _outlast(over)
    finally:
        loop.remove_reader(sock.fileno())
        timer.cancel()
        sock.close()
    return over.result()


def _is_at_end(sock: socket.socket) -> bool:
    """Whether nothing comes any more; what came is dropped."""
    try:
        while sock.recv(_CHUNK):
            pass
    except BlockingIOError:
        return False
    except OSError:  # a reset is an end as well
        return True
    return True


async def _outlast(over: asyncio.Future[bool]) -> None:
    cancelled: asyncio.CancelledError | None = None
    while not over.done():
        try:
            await asyncio.wait([over])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled

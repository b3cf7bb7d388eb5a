"""File descriptors that end a selector's sleep from another thread.

A waker belongs to one selector and is read by its thread only; ``wake`` may be called by any thread. Both kinds
*count*: the number of ``wake`` calls that have landed can be read exactly. The selector uses the count to know
when no thread is still between "decided to wake" and "wrote": only then may the descriptor be closed, because a
late write would land in whatever file the kernel gave the same number to.
"""

import os
import socket
from typing import Protocol


class Waker(Protocol):
    """A readable descriptor that any thread can make ready."""

    def fileno(self) -> int:
        """The descriptor to register for reading."""
        ...

    def wake(self) -> None:
        """Make the descriptor readable. Any thread; never blocks."""
        ...

    def drain(self) -> int:
        """Return how many ``wake`` calls have landed since the last drain. Owner thread only; never blocks."""
        ...

    def close(self) -> None:
        """Release the descriptor. Owner thread only, once no ``wake`` can be in flight."""
        ...


class EventfdWaker:
    """A Linux eventfd: one descriptor, the kernel keeps the count."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def wake(self) -> None:
        os.eventfd_write(self._fd, 1)

    def drain(self) -> int:
        try:
            return os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        os.close(self._fd)


class SocketWaker:
    """A socket pair, for systems without eventfd: one byte per wake."""

    __slots__ = ("_reader", "_writer")

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        # At most one wake per sleep is sent, so the buffer cannot fill up.
        self._writer.send(b"\0")

    def drain(self) -> int:
        try:
            return len(self._reader.recv(4096))
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def new_waker() -> Waker:
    """The cheapest waker of this platform."""
    return EventfdWaker() if hasattr(os, "eventfd") else SocketWaker()

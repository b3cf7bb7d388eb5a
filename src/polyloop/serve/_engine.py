"""What a web server needs of the library that speaks HTTP: one engine on each loop."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from polyloop.serve._station import ProtocolFactory


class Engine(Protocol):
    """One loop's part of a web server. Everything is called on that loop, but for ``busy_with``.

    Its life: ``start``; then, once, ``begin_drain`` and ``drain``, perhaps ``cut``, and ``stop``. One that could not
    start is not stopped.
    """

    async def start(self) -> ProtocolFactory:
        """Start the application, and return what makes the protocol of a connection.

        Raises:
            ServerStartError: the application cannot be made, or refuses to start.
        """
        ...

    def begin_drain(self) -> None:
        """Finish what is in flight, and let connections go as soon as no answer can be lost by that."""
        ...

    async def drain(self, connections: Callable[[], int]) -> None:
        """Return when all that was begun is finished and every connection has gone. Cancelled at the deadline.

        Args:
            connections: How many are left; also of those whose protocol is not made yet.
        """
        ...

    def cut(self) -> list[str]:
        """Cancel what is still in flight, and say what that is."""
        ...

    async def stop(self) -> str | None:
        """Stop the application, and say what was wrong with that, if anything."""
        ...

    def busy_with(self, task: "asyncio.Task[Any] | None") -> str:
        """Say which request a task of this loop answers; any thread, while the loop hangs."""
        ...

    @property
    def requests(self) -> int:
        """Requests that were answered. Any thread."""
        ...

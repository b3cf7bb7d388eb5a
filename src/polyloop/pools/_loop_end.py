"""The end of a loop, for those who have something there that must be closed on it.

asyncio has one public promise that something runs on a loop before it is closed: ``loop.shutdown_asyncgens()``, called
by ``asyncio.run``, ``Runner`` and a ``Runtime`` once all tasks are cancelled, closes the asynchronous generators that
were begun on it. So an asynchronous generator that waits at a ``yield`` is a hook into the end of any loop. A loop that
ends without that promise (a bare ``loop.close()``, a loop that died) is gone with all it had; its port says so.
"""

import contextlib
import weakref
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol

from polyloop._core._port import Port, current_port


class Resident(Protocol):
    """Whoever has something on a loop."""

    async def loop_ends(self) -> None:
        """Close it; nothing else runs on the loop any more. Loop thread."""
        ...

    def loop_lost(self) -> None:
        """The loop is gone, whatever was closed there. Any thread, finalisers included: waits for nothing."""
        ...


class LoopEnd:
    """Tells a resident of the end of the running loop. Made, and dismissed, on that loop.

    Attributes:
        port: The way into the loop.
        passed: Whether the loop has told of its end, so that nothing new may begin on it.
    """

    def __init__(self, resident: Resident) -> None:
        self.port: Port = current_port()
        self.passed = False
        self._dismissed = False
        self._resident = resident
        self._mourner = _Mourner(resident, self.port)
        self._generator = self._wait()
        _drive(self._generator.__anext__())
        self.port.when_ended(self._mourner)

    async def _wait(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self.passed = True
            if not self._dismissed:
                await self._resident.loop_ends()

    def dismiss(self) -> None:
        """The resident has nothing there any more. Loop thread."""
        self._dismissed = True
        self.port.forget(self._mourner)
        if not self.passed:
            _drive(self._generator.aclose())


class _Mourner:
    """What the port keeps: not the resident. One that everybody has forgotten is closed by its generator."""

    __slots__ = ("_resident",)

    def __init__(self, resident: Resident, port: Port) -> None:
        self._resident = weakref.ref(resident, lambda _: port.forget(self))

    def __call__(self) -> None:
        resident = self._resident()
        if resident is not None:
            resident.loop_lost()


def _drive(step: "Coroutine[Any, Any, None] | Any") -> None:
    """Run one step of a generator that waits for nothing."""
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        step.send(None)

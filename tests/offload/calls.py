"""What the tests of calls share: one to look into, and a look at what stays alive after others."""

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator, Sized
from typing import Any

import pytest
from tests.helpers import until

import polyloop
from polyloop._core._context import here
from polyloop._core._scope import Scope
from polyloop.testing import TestLoop


class Offloaded:
    """A call of ``fn`` that was made on a loop, and what happens in it.

    Attributes:
        scope: That of the call, once it runs.
        raised: What ended it.
    """

    def __init__(self, loop: TestLoop, fn: Callable[[], object], **options: Any) -> None:
        self.scope: Scope | None = None
        self.raised: BaseException | None = None
        self.returned: object = None

        def run() -> object:
            self.scope = here.scope
            try:
                self.returned = fn()
            except BaseException as exc:
                self.raised = exc
                raise
            return self.returned

        async def call() -> object:
            return await polyloop.to_thread(run, **options)

        self.handle = loop.spawn(call)

    def asleep(self) -> bool:
        """Whether its thread waits, or is about to."""
        return self.scope is not None and bool(self.scope._parked)

    def cancel(self) -> asyncio.CancelledError:
        """Cancel its caller, and wait for that to end."""
        self.handle.cancel("enough")
        with pytest.raises(asyncio.CancelledError) as caught:
            self.handle.result(30)
        assert caught.value.args == ("enough",)
        return caught.value


@contextlib.contextmanager
def freed_without_the_collector(alive: Sized) -> Iterator[None]:
    """What offloaded calls in this block leave in ``alive``, a weak set, is freed by the end of its references alone.

    What a thread has made and others have dropped is freed when that thread runs next, and what hangs on it by another
    thread in its turn: so the pool's thread gets further calls meanwhile.
    """
    gc.collect()
    gc.disable()
    try:
        yield
        until(lambda: asyncio.run(polyloop.to_thread(lambda: True)) and not alive)
    finally:
        gc.enable()

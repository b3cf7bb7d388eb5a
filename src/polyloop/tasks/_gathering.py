"""``gather`` of coroutines that become tasks which migrate: made in one go, and told of by the last one.

The future is the group of its children (``Brood`` in ``_crew``): of those that end well only the last says so. The
rules are those of ``asyncio.gather``.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial
from types import CoroutineType
from typing import Any

from polyloop._core._context import here
from polyloop._core._migrant import MigratableTask, new_tasks
from polyloop._core._worker import Worker
from polyloop.runtime._current import running_runtime


def gather_migrants(aws: Sequence[Any], return_exceptions: bool) -> "Gathering | None":
    """Start ``aws``, if they are coroutines, each given once, and all become tasks that migrate; else ``None``.

    On a thread that runs a loop.
    """
    worker: Any = here.port
    runtime = running_runtime()
    if (
        runtime is None
        or not runtime.check_migratable(None)
        or worker is None
        or worker.crew is not runtime._crew
        or set(map(type, aws)) != {CoroutineType}
        or len(set(aws)) < len(aws)
    ):
        return None
    gathering = Gathering(worker, return_exceptions)
    gathering._start(aws)
    return gathering


class Gathering(asyncio.Future[list[Any]]):
    """The list of results, on the loop of ``home``; that thread, except where it says otherwise."""

    def __init__(self, home: Worker, return_exceptions: bool) -> None:
        super().__init__(loop=home.loop)
        self._home = home
        self._return_exceptions = return_exceptions
        self._children: list[MigratableTask[Any]] = []
        self._migrants: set[MigratableTask[Any]] = set()  # see ``Brood``, also for the next
        self._away: deque[MigratableTask[Any]] = deque()
        self._has_failed = False
        self._was_cancelled = False  # and that has reached a child
        self._message: tuple[Any, ...] = ()  # of the cancellation that the last of the children has passed on

    def _start(self, coros: Sequence[Coroutine[Any, Any, Any]]) -> None:
        home, crew = self._home, self._home.crew
        children = self._children = new_tasks(coros, self, self._migrants, home)
        crew.broods.add(self)
        self._migrants.update(children)
        home.runnable.extend(children)  # without a wake-up: this worker is awake
        if crew.sleeping:
            crew.overseer.call()
        if crew.ending:
            for child in children:
                crew.start_late(child)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the children that are not done; see ``asyncio.gather``."""
        if self.done():
            return False
        reached = [child.cancel(msg) for child in self._children]
        if any(reached):
            self._was_cancelled = True
        return any(reached)

    def _child_ended(self, child: MigratableTask[Any]) -> None:
        """A child has ended badly. On whatever thread completed it; the rest happens at home."""
        home = self._home
        if home is not here.port:
            self._forget()
            home.post(partial(self._child_ended, child))
            return
        self._away.remove(child)
        self._has_failed = True
        exc = child._exception_for_me()
        assert exc is not None
        if isinstance(exc, asyncio.CancelledError):
            self._message = exc.args
        if not self._return_exceptions and not self.done():
            self.set_exception(exc)
        self._look()

    def _last_ended(self) -> None:
        """No child is left. Any thread."""
        if self._home is here.port:
            self._look()
        else:
            self._forget()
            self._home.post(self._look)

    def _forget(self) -> None:
        """Nobody is born later, so the crew may forget this with the last. Any thread: home may be dead."""
        if not self._migrants:
            self._home.crew.broods.discard(self)

    def _look(self) -> None:
        # A copy, once it is empty, for its critical section: who was taken out before that is seen to be away.
        if self._migrants or self._migrants.copy() or self._away:
            return
        self._forget()
        children, self._children = self._children, []  # which hold this
        if self.done():
            return
        if self._was_cancelled:
            self.set_exception(asyncio.CancelledError(*self._message))
        elif self._has_failed:
            self.set_result([child._result if child._exception is None else _returned(child) for child in children])
        else:
            self.set_result([child._result for child in children])


def _returned(child: MigratableTask[Any]) -> BaseException:
    """The exception of a child, for the list."""
    exc = child._exception_for_me()
    assert exc is not None
    if isinstance(exc, asyncio.CancelledError):
        return asyncio.CancelledError(*exc.args)  # without what it has been through, as asyncio's
    return exc

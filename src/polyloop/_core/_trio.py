"""What the primitives need of trio: to park one of its tasks and to wake it from any thread.

trio is never imported from here. A thread that runs it has imported it.
"""

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Any


def runs_this() -> bool:
    """Whether the calling code is run by trio (in guest mode, by one of its tasks)."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task() or (trio.lowlevel.in_trio_run() and not _hosted()))


def _hosted() -> bool:
    """Whether trio runs as a guest of asyncio here: code outside its tasks is then the host's."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def current_task() -> Any:
    """The running trio task; ``None`` if there is none."""
    trio = sys.modules.get("trio")
    return trio.lowlevel.current_task() if trio is not None and trio.lowlevel.in_trio_task() else None


def shield() -> AbstractContextManager[object]:
    """A block of a trio task that its cancellation does not reach."""
    scope: AbstractContextManager[object] = sys.modules["trio"].CancelScope(shield=True)
    return scope


class TrioWaiter:
    """One park of one trio task. Everything but ``wake`` runs on the thread of its trio."""

    __slots__ = ("_lowlevel", "_parked", "_run_finished", "_task", "_token", "_woken")

    def __init__(self) -> None:
        trio = sys.modules["trio"]
        self._lowlevel: Any = trio.lowlevel
        self._run_finished: type[BaseException] = trio.RunFinishedError
        self._task: Any = trio.lowlevel.current_task()
        self._token: Any = trio.lowlevel.current_trio_token()
        self._parked = False
        self._woken = False

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._woken:
            return
        self._parked = True
        yield from self._lowlevel.wait_task_rescheduled(self._abort).__await__()

    def _abort(self, raise_cancel: object) -> Any:
        self._parked = False
        return self._lowlevel.Abort.SUCCEEDED

    def wake(self) -> bool:
        try:
            self._token.run_sync_soon(self)
        except self._run_finished:
            return False
        return True

    def forsaken(self) -> bool:
        """No task outlives its trio."""
        return False

    def __call__(self) -> None:
        """Let the task go on, on its thread."""
        self._woken = True
        if self._parked:  # else it was cancelled, or has not parked yet
            self._parked = False
            self._lowlevel.reschedule(self._task)

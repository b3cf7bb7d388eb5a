"""What a scenario sees: the interleaving it adds its threads to, and what it gets for each."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from polyloop.testing._explore_loop import LoopThread
from polyloop.testing._explore_run import Run


class InterleavedThread[T]:
    """A thread of a scenario: what ``Interleaving.thread`` returns.

    Attributes:
        name: Its name in reports.
    Thread safety: threads and checks of the same scenario.

    .. versionadded:: 0.2
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._done = False
        self._value: T | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {'done' if self._done else 'not done'}>"

    def done(self) -> bool:
        """Whether it has ended."""
        return self._done

    def result(self) -> T:
        """What the function returned; what it raises ends the exploration.

        Raises:
            RuntimeError: it has not ended.
        """
        if not self._done:
            raise RuntimeError(f"{self!r} has no result yet; ask in a function given to 'check'")
        return cast("T", self._value)

    def _run(self, fn: Callable[[], T]) -> None:
        self._value = fn()
        self._done = True


class InterleavedTask[T](InterleavedThread[T]):
    """A coroutine of a scenario on a loop of its own: what ``Interleaving.coroutine`` returns.

    .. versionadded:: 0.2
    """

    def __init__(self, name: str, start: Callable[[], Coroutine[Any, Any, T]]) -> None:
        super().__init__(name)
        self._cancelled: asyncio.CancelledError | None = None
        self._loop_thread = LoopThread(start)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Its event loop; other threads may use ``call_soon_threadsafe``."""
        return self._loop_thread.loop

    def cancel(self) -> None:
        """Cancel the task from any thread of the scenario: its loop is told, and does it when it comes to it.

        A task that has not begun never will. Does nothing to one that has ended.
        """
        self._loop_thread.cancel_soon()

    def cancelled(self) -> bool:
        """Whether it ended by its cancellation, which is no failure of the scenario."""
        return self._cancelled is not None

    def result(self) -> T:
        """What the coroutine returned; what it raises ends the exploration.

        Raises:
            RuntimeError: it has not ended.
            CancelledError: it was cancelled.
        """
        if self._cancelled is not None:
            raise asyncio.CancelledError(*self._cancelled.args)
        return super().result()

    def _live(self) -> None:
        try:
            self._run(self._loop_thread.run)
        except asyncio.CancelledError as exc:
            self._cancelled = exc
            self._done = True


class Interleaving:
    """One run of a scenario: ``explore`` makes it, the scenario adds its threads and checks.

    Thread safety: to be used while the scenario is built, by the function given to ``explore``.

    .. versionadded:: 0.2
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._checks: list[Callable[[], object]] = []
        self._loops: list[asyncio.AbstractEventLoop] = []

    def thread[*Ts, T](self, fn: Callable[[*Ts], T], /, *args: *Ts, name: str | None = None) -> InterleavedThread[T]:
        """Add a thread that calls ``fn(*args)``. What it raises is a failure.

        Args:
            name: Its name in reports; by default that of the function.
        Returns:
            What holds the result, for a check.
        """
        added = InterleavedThread[T](self._name(fn, name))
        self._run.add(added.name, lambda: added._run(lambda: fn(*args)))
        return added

    def coroutine[*Ts, T](
        self, fn: Callable[[*Ts], Coroutine[Any, Any, T]], /, *args: *Ts, name: str | None = None
    ) -> InterleavedTask[T]:
        """Add a thread that runs the coroutine ``fn(*args)`` on an event loop of its own.

        The loop is asyncio's, without sockets, executors or real time. What the coroutine raises is a failure, but its
        cancellation is not.

        Args:
            name: Its name in reports; by default that of the function.
        Returns:
            What holds the result, for a check, and cancels the task from any thread of the scenario.
        """
        added = InterleavedTask[T](self._name(fn, name), lambda: fn(*args))
        self._loops.append(added.loop)
        self._run.add(added.name, added._live)
        return added

    def check[*Ts](self, fn: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Call ``fn(*args)`` when all threads have ended. What it raises is a failure."""
        self._checks.append(lambda: fn(*args))

    def _name(self, fn: Callable[..., object], name: str | None) -> str:
        wanted = name or str(getattr(fn, "__name__", type(fn).__name__))
        if wanted == "<lambda>":
            wanted = f"thread-{len(self._run.actors)}"
        taken = {actor.name for actor in self._run.actors}
        if wanted not in taken:
            return wanted
        return next(f"{wanted}-{n}" for n in range(2, len(taken) + 3) if f"{wanted}-{n}" not in taken)

    def _verify(self) -> None:
        for check in self._checks:
            check()

    def _close(self) -> None:
        for loop in self._loops:
            if not loop.is_closed():
                loop.close()

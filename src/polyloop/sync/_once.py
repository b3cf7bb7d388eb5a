"""``Once``: a value that is computed when it is first wanted, once over all loops and threads.

The right to compute is one thing that lies in ``_right`` until somebody takes it, and is put back if that fails; the
value is put into ``_value`` before those who wait are woken. See *trying again* in ``_core._waiting``.
"""

import functools
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, overload

from polyloop._core._context import who
from polyloop._core._errors import DeadlockError
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._waiting import NOTHING, Line, Nothing, block_until, until, wake_all, wake_next
from polyloop.sync._face import Face


class _Right:
    """What an attempt returns whose caller is to compute."""

    __slots__ = ()


_RIGHT: Final = _Right()


class Once[T]:
    """A value that ``fn`` computes when it is first asked for, once over all loops and threads.

    Use ``await once()`` in a task, and ``once.sync()`` in a plain thread. While one computes it, the others wait. Once
    it is there, it is returned without waiting. It can decorate a function::

        @Once
        async def config() -> Config:
            return parse(await fetch(URL))

        (await config()).name

    What ``fn`` raises is raised to the one that called it; of the others, who has waited longest tries again.

    Args:
        fn: Computes the value: a coroutine function, which runs on the loop of the first that asks, or a function,
            which runs on the thread of the first that asks and must not block a loop.
    Cancellation: if the one that computes is cancelled, so is ``fn``, and who has waited longest tries again.
    Thread safety: any loop and any thread.

    .. versionadded:: 0.2
    """

    __wrapped__: Callable[[], Any]

    @overload
    def __init__(self, fn: Callable[[], Coroutine[Any, Any, T]]) -> None: ...
    @overload
    def __init__(self, fn: Callable[[], T]) -> None: ...
    def __init__(self, fn: Callable[[], Any]) -> None:
        functools.update_wrapper(self, fn)  # first: it takes over the attributes of ``fn``
        self._fn = fn
        self._line: Line = deque()
        self._right: deque[_Right] = deque([_RIGHT])  # popped by who computes, appended again if that fails
        self._value: deque[T] = deque(maxlen=1)  # appended once
        self._computing: object = None  # who has the right; written by who has it
        functools.update_wrapper(self, fn)

    def __repr__(self) -> str:
        state = "done" if self._value else "not done" if self._right else "being done"
        return f"<Once of {self._fn!r} [{state}]>"

    def done(self) -> bool:
        """Whether the value is there."""
        return len(self._value) > 0

    async def __call__(self) -> T:
        """Return the value; compute it, or wait for it, if it is not there.

        Raises:
            DeadlockError: ``fn`` itself asks for the value.
            BaseException: what ``fn`` raised, if this call has called it.
        """
        if not self._value:
            self._refuse_itself()
            if await until(self._line, self._attempt) is _RIGHT:
                try:
                    self._computing = who()
                    value = self._fn()
                    self._keep(await value if inspect.isawaitable(value) else value)
                except BaseException:
                    self._give_back()
                    raise
        return self._value[0]

    @property
    def sync(self) -> "SyncOnce[T]":
        """The same value for plain threads: ``once.sync()``."""
        return SyncOnce(self)

    def _attempt(self) -> _Right | T | Nothing:
        """Find the value, or take the right to compute it."""
        if self._value:
            return self._value[0]
        try:
            return self._right.pop()
        except IndexError:
            # Somebody computes it. If that has ended meanwhile, those in the line are being woken.
            return NOTHING

    def _keep(self, value: T) -> None:
        self._value.append(value)
        self._computing = None
        wake_all(self._line)

    def _give_back(self) -> None:
        self._computing = None
        self._right.append(_RIGHT)
        wake_next(self._line)

    def _refuse_itself(self) -> None:
        if self._computing is not None and self._computing == who():
            raise DeadlockError(f"{self._fn!r} asks for the value that it is to compute, and would wait for itself")


class SyncOnce[T](Face[Once[T]]):
    """The face of a ``Once`` for plain threads.

    Thread safety: any thread; on one that runs a loop, a call that would have to wait raises ``BlockingCallError``.

    .. versionadded:: 0.2
    """

    __slots__ = ("__weakref__", "_primitive")

    def __call__(self, timeout: float | None = None) -> T:
        """Return the value; compute it, or wait for it, if it is not there.

        Args:
            timeout: Seconds to wait at most while another computes; ``None`` waits as long as it takes.
        Raises:
            BlockingCallError: another computes it, and this thread runs a loop.
            DeadlockError: ``fn`` itself asks for the value.
            TimeoutError: the time was over first.
            TypeError: the value is not there, and only a loop can compute it: ``fn`` is a coroutine function.
            BaseException: what ``fn`` raised, if this call has called it.
        """
        once = self._primitive
        found = once._attempt()
        if found is NOTHING:
            once._refuse_itself()
            refuse_on_loop_thread("once.sync()", "await once()")
            found = block_until(once._line, once._attempt, timeout)
            if found is NOTHING:
                raise TimeoutError(f"{once!r} was not computed within {timeout!r} s")
        if found is _RIGHT:
            self._compute()
        return once._value[0]

    def _compute(self) -> None:
        once = self._primitive
        try:
            once._computing = who()
            if inspect.iscoroutinefunction(once._fn):
                raise TypeError(f"{once._fn!r} is a coroutine function; use 'await once()' on a loop first")
            value = once._fn()
            if inspect.isawaitable(value):
                if inspect.iscoroutine(value):
                    value.close()
                raise TypeError(f"{once._fn!r} returned {value!r}; use 'await once()' on a loop first")
            once._keep(value)
        except BaseException:
            once._give_back()
            raise

"""``select``: the first of several queues and receivers that has something.

Who selects stands in the lines of all of them at once; see ``_several`` for what that means to the others there.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, cast, overload

from polyloop._core import _prims
from polyloop._core._errors import ChannelClosed, QueueEmpty, QueueShutDown
from polyloop._core._parking import refuse_on_loop_thread
from polyloop._core._waiting import NOTHING, Line, Nothing
from polyloop.queues._ends import ReceivingEnd
from polyloop.queues._queue import Queue
from polyloop.queues._several import Standing, block_until_any, until_any
from polyloop.queues._simple import SimpleQueue
from polyloop.queues._sync import check_timeout


class Source[T](Protocol):
    """What can be selected from: a queue, or a receiver of a channel."""

    def _try_get(self) -> T | Nothing: ...


class Selected[T](NamedTuple):
    """What ``select`` has taken.

    Attributes:
        source: The queue or receiver that it comes from.
        item: The item.

    .. versionadded:: 0.2
    """

    source: Source[T]
    item: T


class _Dice(_prims.local):
    """Random enough to be fair, and shared by nobody."""

    state = 1

    def throw(self, sides: int) -> int:
        self.state = (self.state * 1103515245 + 12345) & 0x7FFFFFFF  # ANSI C's example of rand()
        return (self.state >> 16) % sides


_dice = _Dice()


class _Selection[T]:
    """One call of ``select``."""

    __slots__ = ("_sources", "_standing")

    def __init__(self, sources: tuple[Source[T], ...]) -> None:
        if not sources:
            raise ValueError("select() needs at least one queue or receiver to wait for")
        first = _dice.throw(len(sources))
        self._sources = [*sources[first:], *sources[:first]]  # less those that have ended
        self._standing: Standing | None = None
        for source in sources:
            _lines_of(source)

    def attempt(self) -> Selected[T] | Nothing:
        """Take an item from the first source that has one.

        Raises:
            ChannelClosed: all have ended.
        """
        for source in tuple(self._sources):
            try:
                item = source._try_get()
            except QueueShutDown:
                self._drop(source)
                continue
            if item is not NOTHING:
                if self._standing is not None:
                    self._standing.used = _lines_of(source)
                return Selected(source, cast("T", item))
        if not self._sources:
            raise ChannelClosed("all that select() was to wait for have ended")
        return NOTHING

    def _drop(self, source: Source[T]) -> None:
        self._sources.remove(source)
        if self._standing is not None:
            self._standing.drop(_lines_of(source))

    def stand(self) -> Standing:
        """Get ready to wait."""
        self._standing = Standing([line for source in self._sources for line in _lines_of(source)])
        return self._standing


def _lines_of(source: Source[object]) -> Iterable[Line]:
    """Where who waits for an item of it stands."""
    if isinstance(source, ReceivingEnd):
        return source._lines
    if isinstance(source, (Queue, SimpleQueue)):
        return (source._getters,)
    raise TypeError(f"select() waits for queues and receivers, not for {source!r}")


@overload
async def select[A, B](first: Source[A], second: Source[B], /) -> Selected[A] | Selected[B]: ...
@overload
async def select[A, B, C](
    first: Source[A], second: Source[B], third: Source[C], /
) -> Selected[A] | Selected[B] | Selected[C]: ...
@overload
async def select[T](*sources: Source[T]) -> Selected[T]: ...
async def select(*sources: Source[Any]) -> Selected[Any]:
    """Wait for the first of several queues and receivers that has something, and take one item from it.

    If several have something, each may be the one. What has ended (a queue that was shut down, a channel whose senders
    are closed) is left out, as long as there are others.

    Args:
        sources: Queues of any kind, and receivers of ``channel``, ``broadcast``, ``watch`` (a newer value) and
            ``oneshot``.
    Returns:
        The source and the item; nothing was taken from the others.
    Raises:
        ChannelClosed: all sources have ended.
        ClosedEndError: one of the receivers was closed, before or meanwhile.
        Lagged: a receiver of a ``broadcast`` has missed values.
        TypeError: something else is among the sources.
        ValueError: there are none.
    Cancellation: nothing was taken.
    Thread safety: tasks of any loop; others may use the sources at the same time.

    .. versionadded:: 0.2
    """
    selection = _Selection(sources)
    selected = selection.attempt()
    if selected is NOTHING:
        selected = await until_any(selection.stand(), selection.attempt)
    return cast("Selected[Any]", selected)


@overload
def select_sync[A, B](
    first: Source[A], second: Source[B], /, *, timeout: float | None = None
) -> Selected[A] | Selected[B]: ...
@overload
def select_sync[A, B, C](
    first: Source[A], second: Source[B], third: Source[C], /, *, timeout: float | None = None
) -> Selected[A] | Selected[B] | Selected[C]: ...
@overload
def select_sync[T](*sources: Source[T], timeout: float | None = None) -> Selected[T]: ...
def select_sync(*sources: Source[Any], timeout: float | None = None) -> Selected[Any]:
    """``select`` for plain threads.

    Args:
        sources: As of ``select``.
        timeout: Seconds to wait at most; ``None`` waits as long as it takes.
    Returns:
        The source and the item; nothing was taken from the others.
    Raises:
        BlockingCallError: none has anything, and this thread runs a loop.
        QueueEmpty: none had anything in time.
        ChannelClosed, ClosedEndError, Lagged, TypeError: as ``select``.
        ValueError: there are no sources, or a ``timeout`` below 0.
    Thread safety: any plain thread.

    .. versionadded:: 0.2
    """
    selection = _Selection(sources)
    selected = selection.attempt()
    if selected is NOTHING:
        check_timeout(timeout)
        refuse_on_loop_thread("select_sync()", "await select()", timeout)
        selected = block_until_any(selection.stand(), selection.attempt, timeout)
    if selected is NOTHING:
        raise QueueEmpty(f"none of the {len(sources)} sources had anything within {timeout} s")
    return cast("Selected[Any]", selected)

"""``map``: a function over many items, on every core, as many at once as you say."""

# ruff: noqa: A001 - it is called map everywhere

import contextvars
import functools
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sized
from concurrent.futures import Executor
from typing import Any, Literal, get_args, overload

from polyloop._core import _prims
from polyloop._core._pool import shared
from polyloop._core._worker import Worker
from polyloop.offload._targets import OffloadTo, Target, resolve
from polyloop.runtime._placement import PlacementName, policy_for
from polyloop.runtime._routing import On
from polyloop.tasks._map_board import Lane
from polyloop.tasks._map_executor import ExecutorLane
from polyloop.tasks._map_pumps import PumpLane
from polyloop.tasks._map_results import MapResults
from polyloop.tasks._map_stream import Stream
from polyloop.tasks._map_tasks import TaskLane
from polyloop.tasks._progress import ProgressHook, Tally
from polyloop.tasks._start import checked_limit

#: Most tasks at once, unless the caller says otherwise. A guess: few sites like more connections from one client.
TASKS = 100

#: Most calls under way for each worker of an executor: one that runs and one that waits there already.
CALLS_A_WORKER = 2

_PLACEMENTS = get_args(PlacementName.__value__)
_TARGETS = ("threads", "cpu", "processes", "interpreters")

#: Where ``map`` runs the calls: as ``Runtime.spawn`` for an async function, as ``offload`` for a sync one.
type MapOn = On | OffloadTo


@overload
def map[A, R](
    fn: Callable[[A], Coroutine[Any, Any, R]],
    items: Iterable[A] | AsyncIterable[A],
    /,
    *,
    limit: int | None = None,
    ordered: bool = True,
    on: MapOn | None = None,
    return_exceptions: Literal[False] = False,
    progress: ProgressHook | None = None,
) -> MapResults[R]: ...
@overload
def map[A, R](
    fn: Callable[[A], R],
    items: Iterable[A] | AsyncIterable[A],
    /,
    *,
    limit: int | None = None,
    ordered: bool = True,
    on: MapOn | None = None,
    return_exceptions: Literal[False] = False,
    progress: ProgressHook | None = None,
) -> MapResults[R]: ...
@overload
def map[A, R](
    fn: Callable[[A], Coroutine[Any, Any, R]],
    items: Iterable[A] | AsyncIterable[A],
    /,
    *,
    limit: int | None = None,
    ordered: bool = True,
    on: MapOn | None = None,
    return_exceptions: bool,
    progress: ProgressHook | None = None,
) -> MapResults[R | BaseException]: ...
@overload
def map[A, R](
    fn: Callable[[A], R],
    items: Iterable[A] | AsyncIterable[A],
    /,
    *,
    limit: int | None = None,
    ordered: bool = True,
    on: MapOn | None = None,
    return_exceptions: bool,
    progress: ProgressHook | None = None,
) -> MapResults[R | BaseException]: ...
def map(
    fn: Callable[[Any], Any],
    items: Iterable[Any] | AsyncIterable[Any],
    /,
    *,
    limit: int | None = None,
    ordered: bool = True,
    on: MapOn | None = None,
    return_exceptions: bool = False,
    progress: ProgressHook | None = None,
) -> MapResults[Any]:
    """Call ``fn(item)`` for each item, several at once, and iterate over the results as they are ready.

    An async ``fn`` becomes tasks on the runtime's loops, on this loop if there is no runtime. A sync one runs on
    threads, which without the GIL means on every core; or wherever ``on`` says. ::

        async for page in polyloop.map(fetch, urls, limit=20):
            ...

    Items are taken from the source as results are taken from here, so it may be endless: at most ``limit`` calls run,
    and at most 256 more items, or ``limit`` if that is more, wait beside them or have results that nobody has taken.
    Nothing begins before the first result is asked for.

    Args:
        items: An iterable, which is read on this loop and should not block; or an asynchronous iterable.
        limit: Most calls at once. By default 100 for an async function, one per usable core for a sync one on threads
            (raise it for code that waits), and two per worker of an executor.
        ordered: Whether results come in the order of the items; else as they come.
        on: For an async function a placement, as in ``Runtime.spawn``. For a sync one as in ``offload``: ``"threads"``,
            ``"cpu"``, ``"processes"``, ``"interpreters"``, the address of a cluster, or an executor; by default what
            the environment variable ``POLYLOOP_OFFLOAD`` says, else threads. An executor that runs coroutines, such as
            that of a cluster, takes an async function too.
        return_exceptions: Whether what calls raise is yielded in place of a result, instead of ending the map.
        progress: Called with a ``Progress`` on this loop, as often as a call has ended; what it raises ends the map.
    Returns:
        An asynchronous iterator, to be used on one loop.
    Raises:
        TypeError: at once, if ``fn`` is an async generator, ``items`` no iterable, or ``on`` of no use for ``fn``.
        ValueError: at once, if ``limit`` is below 1, or ``on`` unknown.
        BaseException: from the iterator: what a call raised, when the results before it (in the order, if ``ordered``)
            have been yielded. From the moment it failed nothing new has begun; what runs is cancelled and waited for.
            What the source raised comes after the results of all that it gave. Further failures go to the loop's
            exception handler.
    Cancellation: cancelling the task that waits for a result cancels all calls and waits for them. Leaving the ``async
    for`` early cancels them too, without waiting; with ``async with polyloop.map(…) as results`` around it, leaving
    that block waits. A sync function hears of it as in ``to_thread(on_cancel="wait")``.
    Thread safety: call it anywhere; iterate in one task at a time. Each call runs in a copy of the context in which
    ``map`` was called.

    .. versionadded:: 0.3
    """
    checked_limit(limit)
    context = contextvars.copy_context()
    if inspect.isasyncgenfunction(fn) or not callable(fn):
        raise TypeError(f"map() needs a function, sync or async, got {fn!r}")
    if is_async(fn) and not _names_a_target(on):
        lane, limit = _tasks(fn, context, limit, on)
    else:
        lane, limit = _calls(fn, context, limit, on)
    tally = None if progress is None else Tally(progress, len(items) if isinstance(items, Sized) else None)
    return MapResults(Stream(_source(items), lane, limit, context, ordered, return_exceptions, tally))


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling ``fn`` makes a coroutine: an async function, also under ``partial``, or an object with one."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def _names_a_target(on: Any) -> bool:
    """Whether ``on`` says where sync functions go, rather than on which loop."""
    return isinstance(on, Executor) or (isinstance(on, str) and (on in _TARGETS or ":" in on))


def _tasks(fn: Callable[[Any], Any], context: contextvars.Context, limit: int | None, on: Any) -> tuple[Lane, int]:
    if on is not None and not isinstance(on, Worker):
        policy_for(on)
    limit = limit or TASKS
    return TaskLane(fn, context, limit, on), limit


def _calls(fn: Callable[[Any], Any], context: contextvars.Context, limit: int | None, on: Any) -> tuple[Lane, int]:
    if isinstance(on, Worker) or (isinstance(on, str) and on in _PLACEMENTS) or hasattr(on, "choose"):
        raise TypeError(f"on={on!r} says on which loop to run, and {fn!r} is a sync function: it runs on threads")
    target: Target = resolve(on)
    if is_async(fn) and not target.coroutines:
        raise TypeError(f"{fn!r} is an async function, and on={on!r} does not run those; leave out on, or name a loop")
    if target.executor is None:
        wanted = target.width if target.limiter is not None else _prims.usable_cores()
        limit = limit or wanted
        return PumpLane(fn, context, limit, target.limiter, shared.pool), limit
    limit = limit or CALLS_A_WORKER * target.width
    return ExecutorLane(fn, context, limit, target.executor, target.coroutines and is_async(fn)), limit


def _source(items: Iterable[Any] | AsyncIterable[Any]) -> Iterator[Any] | AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        return aiter(items)
    try:
        return iter(items)
    except TypeError:
        raise TypeError(f"map() needs an iterable or an asynchronous iterable, got {items!r}") from None

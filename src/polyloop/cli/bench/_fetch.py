"""``bench fetch``: a list of URLs one by one, in threads, with asyncio on one loop, and on all loops."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import cast

import aiohttp
import httpx

import polyloop
from polyloop.cli.bench._measure import CheckFailedError, Size, Step, Timing, check, interleave, same
from polyloop.cli.bench._site import Site

URLS = 100
LATENCY = 0.02
THREADS = 16
_PARAGRAPHS = 8
_TIMEOUT = 30.0
_FETCH_ERRORS = (httpx.HTTPError, aiohttp.ClientError, TimeoutError)

ONE_BY_ONE = "one by one"
IN_THREADS = f"{THREADS} threads"
ONE_LOOP = "asyncio, one loop"


class CannotFetchError(CheckFailedError):
    """A page could not be fetched."""

    hint = "check the address; every URL must answer with a page"


@dataclass(frozen=True, slots=True)
class FetchPoint:
    """One way to fetch the list."""

    way: str
    timing: Timing
    speedup: float
    """Over fetching one by one, as the median of the rounds."""


@dataclass(frozen=True, slots=True)
class FetchResult:
    """All of ``bench fetch``."""

    urls: int
    received_bytes: int
    latency: float | None
    """Seconds that the embedded site held each answer back; None for the user's own URLs."""
    points: tuple[FetchPoint, ...]


def steps(size: Size) -> int:
    """Return how often :func:`measure` will call ``step``."""
    return 4 * size.rounds


def measure(size: Size, step: Step, urls: Sequence[str] = ()) -> FetchResult:
    """Fetch the list in each way, in turn.

    Args:
        urls: Real ones, fetched in their order. Those of an embedded local site if empty.
    """
    if urls:
        return _measure(urls, size, step, latency=None)
    with Site(size.scaled(URLS, least=4), paragraphs=_PARAGRAPHS, latency=LATENCY) as site:
        return _measure(site.urls(), size, step, latency=LATENCY)


def _measure(urls: Sequence[str], size: Size, step: Step, latency: float | None) -> FetchResult:
    ways: dict[str, Callable[[], list[int]]] = {
        ONE_BY_ONE: lambda: fetch_one_by_one(urls),
        IN_THREADS: lambda: fetch_in_threads(urls),
        ONE_LOOP: lambda: asyncio.run(_fetch_on_this_loop(urls)),
        f"polyloop, {size.workers} loop{'s' * (size.workers > 1)}": lambda: fetch_on_loops(urls, size.workers),
    }
    runs = interleave({way: partial(_time, fetch) for way, fetch in ways.items()}, size.rounds, step)
    lengths = [run[1] for way in runs.values() for run in way]
    # A real site may answer a little differently each time; the embedded one may not.
    check(latency is None or same(lengths), "the ways of fetching did not receive the same pages")
    timings = {way: Timing.of(seconds for seconds, _ in results) for way, results in runs.items()}
    points = (FetchPoint(way, timing, timing.speedup_over(timings[ONE_BY_ONE])) for way, timing in timings.items())
    return FetchResult(len(urls), sum(lengths[0]), latency, tuple(points))


def fetch_one_by_one(urls: Sequence[str]) -> list[int]:
    """Return the lengths of the pages, fetched in order with a sync client."""
    with httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
        return [_length(client, url) for url in urls]


def fetch_in_threads(urls: Sequence[str]) -> list[int]:
    """Return the lengths of the pages, fetched with one sync client in threads."""
    with httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client, ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(partial(_length, client), urls))


def fetch_on_loops(urls: Sequence[str], loops: int) -> list[int]:
    """Return the lengths of the pages, fetched on ``loops`` loops with one session on each."""
    return polyloop.run(_fetch_on_all_loops(urls, loops), loops=loops)


def _time(fetch: Callable[[], list[int]]) -> tuple[float, list[int]]:
    started = time.perf_counter()
    try:
        lengths = fetch()
    except (*_FETCH_ERRORS, ExceptionGroup) as exc:
        cause = _first(exc)
        if not isinstance(cause, _FETCH_ERRORS):
            raise
        raise CannotFetchError(f"cannot fetch: {type(cause).__name__}: {cause}") from exc
    return time.perf_counter() - started, lengths


def _first(error: Exception) -> Exception:
    """Return the first error that is no group."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def _length(client: httpx.Client, url: str) -> int:
    return len(client.get(url).raise_for_status().content)


async def _fetch_on_this_loop(urls: Sequence[str]) -> list[int]:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    async with aiohttp.ClientSession(raise_for_status=True, timeout=timeout) as session, asyncio.TaskGroup() as group:
        tasks = [group.create_task(_fetch(session, url)) for url in urls]
    return [task.result() for task in tasks]


async def _fetch_on_all_loops(urls: Sequence[str], loops: int) -> list[int]:
    async with polyloop.TaskGroup() as group:
        handles = [
            group.create_task(_fetch_on_this_loop(urls[index::loops]), on=worker)
            for index, worker in enumerate(polyloop.current_runtime().workers)
        ]
    lengths = [0] * len(urls)
    for index, handle in enumerate(handles):
        lengths[index::loops] = await handle
    return lengths


async def _fetch(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as response:
        return len(await response.read())

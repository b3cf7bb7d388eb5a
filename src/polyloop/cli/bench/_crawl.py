"""``bench crawl``: a whole site fetched, parsed, indexed and stored, on one loop and on more."""

import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polyloop
from polyloop.cli.bench._crawl_store import summarise
from polyloop.cli.bench._crawler import crawl
from polyloop.cli.bench._measure import Size, Step, Timing, check, interleave, same
from polyloop.cli.bench._site import Site

PAGES = 2000
_PARAGRAPHS = 24


@dataclass(frozen=True, slots=True)
class CrawlPoint:
    """One number of loops."""

    loops: int
    timing: Timing
    cpu_seconds: float
    """Median of the CPU time; where it grows with the loops, they got in each other's way."""
    pages_per_second: float
    speedup: float
    """Over one loop, as the median of the rounds."""


@dataclass(frozen=True, slots=True)
class CrawlResult:
    """All of ``bench crawl``."""

    pages: int
    terms: int
    digest: str
    """Of the stored results; the same after every crawl, else the benchmark fails."""
    site_share: float
    """CPU time of the site over that of the crawls; the site runs on the same cores."""
    points: tuple[CrawlPoint, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    seconds: float
    cpu_seconds: float
    summary: tuple[int, int, str]


def steps(size: Size) -> int:
    """Return how often :func:`measure` will call ``step``."""
    return size.rounds * len(loop_counts(size.workers)) + 1


def loop_counts(most: int) -> tuple[int, ...]:
    """Return 1, then the powers of two below ``most``, then ``most``."""
    doubled = (2**power for power in range(most.bit_length()) if 2**power < most)
    return (*doubled, most)


def measure(size: Size, step: Step) -> CrawlResult:
    """Crawl the embedded site with each number of loops, in turn, and compare what was stored."""
    counts = loop_counts(size.workers)
    with Site(size.scaled(PAGES, least=20), paragraphs=_PARAGRAPHS) as site, tempfile.TemporaryDirectory() as folder:
        _crawl_once(site, counts[-1], Path(folder))  # fills caches, imports lazily loaded modules, starts threads
        step()
        before = site.stats().cpu_seconds
        cases = {loops: partial(_crawl_once, site, loops, Path(folder)) for loops in counts}
        with _frozen_heap():
            runs = interleave(cases, size.rounds, step)
        site_seconds = site.stats().cpu_seconds - before
        everything = [run for results in runs.values() for run in results]
        pages, terms, digest = _check_summaries([run.summary for run in everything], site.pages)
    share = site_seconds / sum(run.cpu_seconds for run in everything)
    return CrawlResult(pages, terms, digest, share, _points(runs, pages))


@contextlib.contextmanager
def _frozen_heap() -> Generator[None]:
    """Keep what was loaded so far out of the garbage collections, as a service would do after its start.

    Without the GIL each collection stops all threads and looks at every object, so less to see is time won.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _crawl_once(site: Site, loops: int, folder: Path) -> _Run:
    database = Path(tempfile.mkdtemp(dir=folder)) / "crawl.sqlite"
    gc.collect()
    started, cpu = time.perf_counter(), time.process_time()
    polyloop.run(crawl(site.address, "/page/0", database), loops=loops)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    return _Run(seconds, cpu_seconds, summarise(database))


def _check_summaries(summaries: list[tuple[int, int, str]], expected: int) -> tuple[int, int, str]:
    for pages, _, _ in summaries:
        check(pages == expected, f"a crawl stored {pages} of {expected} pages")
    check(same(summaries), "two crawls of the same site stored different results")
    return summaries[0]


def _points(runs: dict[int, tuple[_Run, ...]], pages: int) -> tuple[CrawlPoint, ...]:
    timings = {loops: Timing.of(run.seconds for run in results) for loops, results in runs.items()}
    return tuple(
        CrawlPoint(
            loops,
            timing,
            statistics.median(run.cpu_seconds for run in runs[loops]),
            pages / timing.median,
            timing.speedup_over(timings[1]),
        )
        for loops, timing in timings.items()
    )

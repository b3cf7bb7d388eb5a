"""What each benchmark's result looks like: a table for the terminal, a panel for the chart. Draws nothing itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from polyloop.cli.bench._cpu import CpuResult
from polyloop.cli.bench._crawl import CrawlResult
from polyloop.cli.bench._fetch import FetchResult
from polyloop.cli.bench._threads import ThreadsResult

type Result = CpuResult | FetchResult | ThreadsResult | CrawlResult


@dataclass(frozen=True, slots=True)
class Text:
    """A table: a title, the column heads, the rows, and a line below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


@dataclass(frozen=True, slots=True)
class Series:
    """One line or one set of bars; a value for each label of its panel."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram."""

    kind: str
    """``"line"`` or ``"bar"``."""
    title: str
    x_title: str
    y_title: str
    labels: tuple[str, ...]
    series: tuple[Series, ...]
    decimals: int = 2


def text_of(result: Result) -> Text:
    """Return the table of a result."""
    match result:
        case CpuResult():
            return _cpu_text(result)
        case FetchResult():
            return _fetch_text(result)
        case ThreadsResult():
            return _threads_text(result)
        case CrawlResult():
            return _crawl_text(result)


def panel_of(result: Result) -> Panel:
    """Return the diagram of a result."""
    match result:
        case CpuResult():
            return _cpu_panel(result)
        case FetchResult():
            return _fetch_panel(result)
        case ThreadsResult():
            return _threads_panel(result)
        case CrawlResult():
            return _crawl_panel(result)


def _cpu_text(result: CpuResult) -> Text:
    rows = ((str(p.threads), f"{p.timing.median:.2f} s", f"{p.speedup:.2f}x", f"{p.ideal:.2f}x") for p in result.points)
    caption = f"{result.tasks} tasks, each adds up {result.numbers:,} squares, through TaskGroup and to_thread"
    return Text("cpu: sums of squares", ("threads", "median time", "speed-up", "ideal"), tuple(rows), caption)


def _cpu_panel(result: CpuResult) -> Panel:
    measured = Series("measured", tuple(point.speedup for point in result.points))
    ideal = Series("ideal", tuple(point.ideal for point in result.points))
    title = f"CPU work: {result.tasks} tasks × {result.numbers:,} squares"
    labels = tuple(str(point.threads) for point in result.points)
    return Panel("line", title, "threads", "speed-up (times)", labels, (ideal, measured))


def _fetch_text(result: FetchResult) -> Text:
    rows = tuple(
        (p.way, f"{p.timing.median:.3f} s", f"{result.urls / p.timing.median:,.0f}", f"{p.speedup:.2f}x")
        for p in result.points
    )
    source = "given URLs" if result.latency is None else f"embedded site, {result.latency * 1000:.0f} ms latency"
    return Text(
        f"fetch: {result.urls} URLs", ("way", "median time", "URLs/s", "speed-up"), rows, f"{source}, {_size(result)}"
    )


def _size(result: FetchResult) -> str:
    return f"{result.received_bytes / 1e6:.2f} MB"


def _fetch_panel(result: FetchResult) -> Panel:
    values = Series("URLs per second", tuple(result.urls / point.timing.median for point in result.points))
    latency = "" if result.latency is None else f", {result.latency * 1000:.0f} ms latency"
    labels = tuple(point.way for point in result.points)
    return Panel(
        "bar", f"Fetch: {result.urls} URLs{latency}", "way of fetching", "URLs per second", labels, (values,), 0
    )


def _threads_text(result: ThreadsResult) -> Text:
    rows = ((str(point.calls), str(point.unlimited), str(point.limited)) for point in result.points)
    columns = ("concurrent calls", "threads, no limit", f"threads, limit={result.limit}")
    return Text(
        "threads: of a function under async_wrap", columns, tuple(rows), "distinct threads that served the calls"
    )


def _threads_panel(result: ThreadsResult) -> Panel:
    unlimited = Series("no limit", tuple(float(point.unlimited) for point in result.points))
    limited = Series(f"limit={result.limit}", tuple(float(point.limited) for point in result.points))
    labels = tuple(str(point.calls) for point in result.points)
    title = "Threads used by wrapped sync calls"
    return Panel("bar", title, "concurrent calls", "distinct threads", labels, (unlimited, limited), 0)


def _crawl_text(result: CrawlResult) -> Text:
    rows = (
        (
            str(p.loops),
            f"{p.timing.median:.2f} s",
            f"{p.cpu_seconds:.2f} s",
            f"{p.pages_per_second:,.0f}",
            f"{p.speedup:.2f}x",
        )
        for p in result.points
    )
    caption = (
        f"{result.pages:,} pages fetched, parsed, indexed ({result.terms:,} terms), stored; every run stored the same; "
        f"the site's own CPU time was {result.site_share:.1%} of the crawler's"
    )
    return Text(
        "crawl: a whole site", ("loops", "median time", "CPU time", "pages/s", "speed-up"), tuple(rows), caption
    )


def _crawl_panel(result: CrawlResult) -> Panel:
    values = Series("pages per second", tuple(point.pages_per_second for point in result.points))
    labels = tuple(f"{_loops(point.loops)} ({point.speedup:.2f}x)" for point in result.points)
    title = f"Crawl: {result.pages:,} pages fetched, parsed, indexed, stored"
    return Panel("bar", title, "event loops", "pages per second", labels, (values,), 0)


def _loops(count: int) -> str:
    return "1 loop" if count == 1 else f"{count} loops"


def speedups(result: Result) -> Sequence[float]:
    """Return the speed-ups that a result claims, for judging whether the machine kept up."""
    match result:
        case ThreadsResult():
            return ()
        case _:
            return [point.speedup for point in result.points]

"""Tables and charts of the queue and sync benchmarks, as files that the documentation includes.

A topic's table is ``queues.txt``: Markdown, but no page of its own; its chart is ``queues.svg``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import http, maps, offload, queues, sync
from benchmarks._contenders import AIOLOGIC, ASYNCIO, CULSANS, FED, JANUS, PEERS, QUEUE, SIMPLE
from benchmarks._measure import Report, environment
from polyloop.cli.bench._chart import write_chart
from polyloop.cli.bench._panels import Panel, Series

type Reports = Mapping[str, Report]

TOPICS = {
    "queues": ("queue-", "Queues between threads and loops"),
    "sync": ("sync-", "Locks, semaphores, events, conditions"),
    "offload": ("offload", "Calls off the loops"),
    "map": ("map-", "Many calls at once"),
    "http": ("http", "Web servers"),
}
BEST = "best of the others"


def write(folder: Path, reports: Reports, rounds: int) -> list[Path]:
    """Write a table and a chart for each topic of which something was measured; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for topic, (prefix, title) in TOPICS.items():
        mine = {name: report for name, report in reports.items() if name.startswith(prefix) and report.figures}
        if not mine:
            continue
        table = folder / f"{topic}.txt"
        table.write_text(_page(mine, rounds), encoding="utf-8")
        written.append(table)
        if panels := _panels(topic, mine):
            chart = folder / f"{topic}.svg"
            write_chart(chart, title, _conditions(rounds), panels)
            written.append(chart)
    return written


def _panels(topic: str, reports: Reports) -> list[Panel]:
    draw = {"queues": _queue_panels, "sync": _sync_panels, "offload": _offload_panels, "map": _map_panels}
    draw["http"] = _http_panels
    return draw[topic](reports)


def _conditions(rounds: int) -> str:
    found = environment()
    build = "free-threaded" if found["free_threaded"] else "with the GIL"
    return f"CPython {found['python']} ({build}), {found['cores']} cores, {found['system']}; medians of {rounds} rounds"


# Tables


def _page(reports: Reports, rounds: int) -> str:
    parts = [_conditions(rounds) + "."]
    for name, report in reports.items():
        parts.append(f"**{report.title[0].upper()}{report.title[1:]}** ({report.unit}; `python -m benchmarks {name}`)")
        parts.append(_table(report))
        parts += [f"({note}.)" for note in report.notes]
        parts.append(_goals(report))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(report: Report) -> str:
    """Cases one way and contenders the other, the fewer as columns."""
    cells: dict[tuple[str, str], float] = {}
    for label, value in report.figures.items():
        case, _, name = label.rpartition(": ")
        cells[case or report.unit, name] = value
    cases, names = (list(dict.fromkeys(key[side] for key in cells)) for side in (0, 1))
    if len(names) >= len(cases):
        rows = [[name, *(_text(cells.get((case, name))) for case in cases)] for name in names]
        return _markdown(["", *cases], rows)
    return _markdown(["", *names], [[case, *(_text(cells.get((case, name))) for name in names)] for case in cases])


def _goals(report: Report) -> str:
    rows = [
        [goal.text, f"{goal.ratio:.2f}", f"{'≥' if goal.at_least else '≤'} {goal.bound:g}", "yes" if goal.met else "no"]
        for goal in report.goals
    ]
    return _markdown(["", "ratio", "goal", "met"], rows) if rows else ""


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Charts. Of each benchmark the figures that its goals are about; the tables have all.


def _queue_panels(reports: Reports) -> list[Panel]:
    panels: list[Panel] = []
    if report := reports.get("queue-throughput"):
        three = (_best(report, PEERS), _rates(report, QUEUE), _rates(report, SIMPLE))
        panels.append(_bars("No bound", "items per ms", _cases(report), three))
    if report := reports.get("queue-bounded"):
        two = (_best(report, PEERS), _rates(report, QUEUE))
        panels.append(_bars(f"Room for {queues.BOUND} items", "items per ms", _cases(report), two))
    if report := reports.get("queue-mpmc"):
        short = [case.replace("8 tasks on 2 loops", "tasks").replace("8 threads", "threads") for case in _cases(report)]
        two = (_best(report, PEERS), _rates(report, QUEUE))
        panels.append(_bars("Four producers, four consumers", "items per ms", short, two))
    if report := reports.get("queue-latency"):
        names = {
            "pipes": queues.PIPES_APART if f"median: {queues.PIPES_APART}" in report.figures else queues.PIPES,
            "culsans": CULSANS,
            "aiologic": AIOLOGIC,
            "polyloop": QUEUE,
            "on a Runtime": QUEUE + queues.ON_RUNTIME,
        }
        values = tuple(report.figures[f"median: {name}"] for name in names.values())
        panels.append(_bars("To and fro between two loops", "µs", list(names), (Series("µs", values),), 1))
    if report := reports.get("queue-local"):
        times = [Series(name, _values(report, name)) for name in (ASYNCIO, QUEUE)]
        panels.append(_bars("Within one loop", "µs", _cases(report), times))
    if report := reports.get("queue-arrival"):
        names = {"threadsafe": FED, "culsans": CULSANS, "janus": JANUS, "polyloop": QUEUE}
        names |= {"on a Runtime": QUEUE + queues.ON_RUNTIME}
        values = tuple(report.figures[name] for name in names.values())
        title = f"From put to get (the polling of asyncio's guide: {report.figures[queues.GUIDE]:,.0f} µs)"
        panels.append(_bars(title, "µs", list(names), (Series("µs", values),), 1))
    return panels


def _sync_panels(reports: Reports) -> list[Panel]:
    """Rates, aiologic's being 1: a lock and a lap to another thread differ too much for one scale."""
    panels: list[Panel] = []
    if report := reports.get("sync-uncontended"):
        kinds = list(sync.KINDS)
        alone = [
            Series(place.strip(), _against(report, [kind + place for kind in kinds], sync.OURS))
            for place in (sync.IN_TASK, sync.IN_THREAD)
        ]
        panels.append(_bars("Uncontended: rate, aiologic's is 1", "times", kinds, alone))
    if report := reports.get("sync-contended"):
        kinds = ["Lock", "Semaphore", *sync.PAIRS]
        by_loops, by_threads = ([kind + place for kind in kinds] for place in (sync.BY_LOOPS, sync.BY_THREADS))
        together = (
            Series("2 threads", _against(report, by_threads, sync.OURS)),
            Series("2 loops", _against(report, by_loops, sync.OURS)),
            Series("2 loops of a Runtime", _against(report, by_loops, sync.ON_RUNTIME)),
        )
        panels.append(_bars("Contended: rate, aiologic's is 1", "times", kinds, together))
    if report := reports.get("sync-local"):
        cases = [case for case in _cases(report) if f"{case}: {sync.ASYNCIO}" in report.figures]
        short = [case.replace(", alone", "").replace(", to and fro", " lap").split(",")[0] for case in cases]
        short = ["Lock line" if case == sync.IN_LINE else name for case, name in zip(cases, short, strict=True)]
        found = tuple(report.figures[f"{c}: {sync.OURS}"] / report.figures[f"{c}: {sync.ASYNCIO}"] for c in cases)
        panels.append(_bars("Within one loop: time, asyncio's is 1", "times", short, (Series(sync.OURS, found),)))
    return panels


def _offload_panels(reports: Reports) -> list[Panel]:
    panels: list[Panel] = []
    if report := reports.get("offload-limited"):
        names = {
            name.replace(".to_thread", "").replace(".run_sync", ""): value for name, value in report.figures.items()
        }
        values = tuple(names.values())
        panels.append(_bars("One call at a time, with a limiter", "µs", list(names), (Series("µs", values),), 1))
    if report := reports.get("offload-places"):
        alone = {case: report.figures[f"{case}: {offload.ONE_LOOP}"] for case in _cases(report)}
        for case in (offload.LONG_CASE, offload.SHORT_CASE):
            names = {name: report.figures[f"{case}: {name}"] for name in (offload.LOOPS, *offload.PLACES)}
            rates = tuple(alone[case] / value for value in names.values())
            panels.append(
                _bars(f"A task {case}: rate, one loop's is 1", "times", list(names), (Series("rate", rates),))
            )
    return panels


def _map_panels(reports: Reports) -> list[Panel]:
    panels: list[Panel] = []
    if report := reports.get("map-cpu"):
        names = {"bare": maps.BARE, "map": maps.ORDERED, "unordered": maps.UNORDERED, "on asyncio": maps.ON_ASYNCIO}
        names |= {"executor": maps.EXECUTOR, "asyncio": maps.ASYNCIO}
        rates = tuple(report.figures[maps.BARE] / report.figures[name] for name in names.values())
        panels.append(
            _bars("CPU tasks of 1 ms: rate, bare threads' is 1", "times", list(names), (Series("rate", rates),))
        )
    if report := reports.get("map-calls"):
        names = {"map": maps.ORDERED, "executor": maps.EXECUTOR, "asyncio": maps.ASYNCIO}
        names |= {"map, async": maps.TASKS, "gather": maps.GATHER}
        values = tuple(report.figures[name] for name in names.values())
        panels.append(_bars("A call that does nothing", "µs", list(names), (Series("µs", values),), 1))
    return panels


def _http_panels(reports: Reports) -> list[Panel]:
    report = reports["http"]
    names = {"1 loop": http.ONE_LOOP, "2 loops": http.LOOPS, "uvicorn": "uvicorn", "2 workers": http.WORKERS}
    names |= {"twice": http.TWICE, "granian": http.GRANIAN}
    panels: list[Panel] = []
    for case, title, unit in (
        (http.COMPUTES, "Requests that compute for 1 ms", "requests/s"),
        (http.GREETS, "Requests that only greet", "requests/s"),
        (http.WEIGHT, "Memory of all processes", "MiB"),
    ):
        values = {name: report.figures.get(f"{case}: {full}") for name, full in names.items()}
        found = {name: value for name, value in values.items() if value is not None}
        if found:
            panels.append(_bars(title, unit, list(found), (Series(unit, tuple(found.values())),)))
    return panels


def _cases(report: Report) -> list[str]:
    return list(dict.fromkeys(label.rpartition(": ")[0] for label in report.figures))


def _values(report: Report, name: str) -> tuple[float, ...]:
    return tuple(report.figures[f"{case}: {name}"] for case in _cases(report))


def _rates(report: Report, name: str) -> Series:
    return Series(name, tuple(1000 / value for value in _values(report, name)))


def _best(report: Report, names: Sequence[str]) -> Series:
    best = (
        min(report.figures[f"{case}: {name}"] for name in names if f"{case}: {name}" in report.figures)
        for case in _cases(report)
    )
    return Series(BEST, tuple(1000 / value for value in best))


def _against(report: Report, cases: Sequence[str], ours: str) -> tuple[float, ...]:
    return tuple(report.figures[f"{case}: {sync.AIOLOGIC}"] / report.figures[f"{case}: {ours}"] for case in cases)


def _bars(title: str, unit: str, labels: Sequence[str], series: Sequence[Series], decimals: int = 2) -> Panel:
    large = max(value for one in series for value in one.values) >= 100
    return Panel("bar", title, "", unit, tuple(labels), tuple(series), 0 if large else decimals)

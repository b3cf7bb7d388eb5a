"""The benchmarks run, say what they measured, and know their goals; the figures themselves are nobody's test."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks import __main__ as benchmarks_main
from benchmarks import _figures, _http_load, _http_servers, _measure, http, maps, offload, queues, sync
from benchmarks.__main__ import BENCHMARKS
from benchmarks._contenders import CONTENDERS
from benchmarks._measure import Report, medians
from benchmarks._streams import arrivals, ping_pong, serves, stream

from polyloop.offload import _processes, _targets
from polyloop.offload._processes import SharedProcesses

ROOT = Path(__file__).parent.parent
BETWEEN_LOOPS = [name for name in BENCHMARKS if name.startswith(("queue-", "sync-"))]


@pytest.fixture(autouse=True)
def no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the turns a benchmark collects its garbage: here that of all tests before, some hundred times."""
    monkeypatch.setattr(_measure, "gc", SimpleNamespace(collect=lambda: 0))


def test_medians_take_turns_and_ignore_one_slow_round() -> None:
    """Each once a round, not always in the same order; the median of an odd number of rounds is one of the figures."""
    order: list[str] = []
    slow = iter([1.0, 9.0, 2.0, 9.0, 1.5, 1.0, 9.0, 2.0, 2.5])

    def first() -> float:
        order.append("first")
        return next(slow)

    def second() -> float:
        order.append("second")
        return 5.0

    assert medians({"first": first, "second": second}, 9) == {"first": 2.0, "second": 5.0}
    rounds = [tuple(order[at : at + 2]) for at in range(0, 18, 2)]
    assert set(rounds) == {("first", "second"), ("second", "first")}


@pytest.mark.parametrize(("ratio", "least", "most"), [(8.0, True, True), (7.9, False, True), (8.1, True, False)])
def test_goals_include_their_bound(ratio: float, least: bool, most: bool) -> None:
    """A goal is met at its bound, and missed on the wrong side of it."""
    report = Report("title", "unit")
    report.at_least("rate", ratio, 8)
    report.at_most("time", ratio, 8)
    assert [goal.met for goal in report.goals] == [least, most]


def test_a_benchmark_prints_its_figures_and_writes_them(tmp_path: Path) -> None:
    """One short round of one benchmark, through the command line."""
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "post", "--rounds", "1", "--json", str(file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "post: one-way post from a thread to a loop" in ended.stdout
    found = json.loads(file.read_text())
    figures = found["benchmarks"]["post"]["figures"]
    assert set(figures) == {"polyloop post", "asyncio call_soon_threadsafe"}
    assert all(value > 0 for value in figures.values())
    assert found["environment"]["cores"] >= 1


def test_an_unknown_benchmark_is_named_with_the_known_ones() -> None:
    """The error tells what to type instead."""
    ended = subprocess.run([sys.executable, "-m", "benchmarks", "nope"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "no benchmark is called 'nope'; choose from post, calls" in ended.stderr


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little to do that all is over at once; the figures mean nothing."""
    for module, sizes in (
        (queues, {"COUNT": 64, "COUNT_BOUNDED": 64, "LAPS": 16, "ARRIVALS": 3, "GAP": 0.0005, "POLL": 0.005}),
        (sync, {"COUNT": 64, "COUNT_CONTENDED": 64, "COUNT_HELD": 64, "LAPS": 16}),
    ):
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("name", BETWEEN_LOOPS)
@pytest.mark.usefixtures("tiny")
def test_queues_and_locks_are_measured_beside_their_peers(name: str) -> None:
    """Each line has a figure of ours and of others, and there are goals."""
    report = BENCHMARKS[name](1)
    assert all(value > 0 for value in report.figures.values())
    assert any("polyloop" in label for label in report.figures)
    assert any("polyloop" not in label for label in report.figures)
    assert report.goals
    assert all(goal.ratio > 0 for goal in report.goals)


@pytest.fixture
def few_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hardly any, and pools that end with the test."""
    for name in ("COUNT", "LONG", "SHORT", "WAITS"):
        monkeypatch.setattr(offload, name, 4)
    processes, own = SharedProcesses(), _targets._Own()
    monkeypatch.setattr(_processes.shared, "processes", processes)
    monkeypatch.setattr(_targets, "_own", own)
    yield
    processes.end(30)
    own.end_interpreters(wait=True)


def test_maps_are_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against bare threads and others; and the memory of an endless one."""
    for name, size in {"COUNT": 80, "EMPTY": 64, "FIRST": 100, "LAST": 200}.items():
        monkeypatch.setattr(maps, name, size)
    reports = {name: BENCHMARKS[name](1) for name in BENCHMARKS if name.startswith("map-")}
    assert len(reports) == 3
    assert all(report.goals for report in reports.values())
    written = _figures.write(tmp_path, reports, 1)
    assert [path.name for path in written] == ["map.txt", "map.svg"]


@pytest.mark.usefixtures("few_calls")
def test_calls_off_the_loops_are_measured_and_drawn(tmp_path: Path) -> None:
    """Against others, and by place; the page has a table and a chart of it."""
    reports = {name: BENCHMARKS[name](1) for name in BENCHMARKS if name.startswith("offload")}
    assert len(reports) == 3
    for report in reports.values():
        assert all(value > 0 for value in report.figures.values())
        assert report.goals
    table, chart = _figures.write(tmp_path, reports, 1)
    assert (table.name, chart.name) == ("offload.txt", "offload.svg")
    assert "| processes |" in table.read_text()


ANSWERS = {http.COMPUTES: b'{"custom', http.GREETS: b"Hello, b", http.RAW: b"Hello, w"}


@pytest.mark.parametrize("name", _http_servers.SERVERS)
def test_every_web_server_answers_all_routes_and_ends(name: str) -> None:
    """The same answers from each; and none of its processes is left."""
    pytest.importorskip("granian" if name == http.GRANIAN else "httptools")
    with _http_load.serving(name) as running:
        for route, path in http.ROUTES.items():
            with urllib.request.urlopen(running.base + path, timeout=20) as answer:
                assert answer.read(8) == ANSWERS[route]
        assert running.pss() > 5
    assert running.pids() == []


def test_web_servers_are_compared_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each route has its rates, and the goals are there; without the servers."""
    turn = http.Turn(dict.fromkeys(http.ROUTES, _http_load.Load(1000, 1.5, 3.0)), 50)
    monkeypatch.setattr(http, "wrk_missing", lambda: None)
    monkeypatch.setattr(http, "_turn", lambda name: turn)
    report = BENCHMARKS["http"](1)
    assert report.figures[f"{http.COMPUTES}: {http.LOOPS}"] == 1000
    assert len(report.goals) == 4
    table, chart = _figures.write(tmp_path, {"http": report}, 1)
    assert (table.name, chart.name) == ("http.txt", "http.svg")
    assert f"| {http.TWICE} |" in table.read_text()


@pytest.mark.skipif(_http_load.wrk_missing() is not None, reason="needs wrk")
def test_a_web_server_is_loaded_and_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn of one server, by wrk."""
    pytest.importorskip("httptools")
    monkeypatch.setattr(http, "SECONDS", 1)
    monkeypatch.setattr(http, "ROUTES", {http.COMPUTES: http.ROUTES[http.COMPUTES]})
    turn = http._turn(http.LOOPS)
    assert turn.loads[http.COMPUTES].rate > 1
    assert turn.mebibytes > 5


def test_without_wrk_the_report_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has neither figures nor goals, and the other benchmarks of a run are not lost."""
    monkeypatch.setattr(http, "wrk_missing", lambda: "needs wrk: apt-get install wrk")
    report = BENCHMARKS["http"](1)
    assert (report.figures, report.goals) == ({}, [])
    assert report.notes == ["needs wrk: apt-get install wrk"]
    benchmarks_main.show("http", report)
    assert _figures.write(tmp_path, {"http": report}, 1) == []


WRK_SAYS = """
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    13.94ms    1.02ms  19.83ms   89.32%
  Latency Distribution
     50%  820.00us
     75%    1.09ms
     90%    3.00ms
     99%    1.20s
  2270 requests in 2.00s, 17.07MB read
Requests/sec:   1133.68
"""


def test_what_wrk_prints_is_read_in_milliseconds() -> None:
    """Whatever unit it chose for each time."""
    load = _http_load.read_wrk(WRK_SAYS)
    assert (load.rate, load.p50, load.p99) == pytest.approx((1133.68, 0.82, 1200.0))


@pytest.mark.parametrize("wrong", ["Non-2xx or 3xx responses: 7", "Socket errors: connect 0, read 3"])
def test_answers_that_are_no_answers_end_a_measurement(wrong: str) -> None:
    """Rather than that errors are counted as requests."""
    with pytest.raises(_http_load.LoadError):
        _http_load.read_wrk(f"{WRK_SAYS}  {wrong}")
    with pytest.raises(_http_load.LoadError):
        _http_load.read_wrk("")


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_carries_all_items_wherever_it_can(name: str) -> None:
    """In all four directions, with several ends, and with a bound where it can have one."""
    contender = CONTENDERS[name]
    directions = [ends for ends in queues.DIRECTIONS.values() if serves(contender, *ends)]
    assert directions
    for source, sink in directions:
        assert stream(contender, source, sink, 40, bound=4 if contender.bounded else 0, ends=4) > 0
    if ("loop", "loop") in directions:
        assert len(ping_pong(contender, 5)) == 5
    if ("thread", "loop") in directions:
        assert len(arrivals(contender, 3, 0.0)) == 3


@pytest.mark.usefixtures("tiny")
def test_figures_for_the_docs_need_nothing_from_elsewhere(tmp_path: Path) -> None:
    """A table and a chart for each topic; the chart names no host but in the names of its format."""
    reports = {name: BENCHMARKS[name](1) for name in BETWEEN_LOOPS}
    written = _figures.write(tmp_path / "new", reports, 1)
    assert [path.name for path in written] == ["queues.txt", "queues.svg", "sync.txt", "sync.svg"]
    for path in written:
        text = path.read_text()
        assert set(re.findall(r"\w+://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg"}
        assert "<script" not in text
    tables = written[0].read_text()
    assert "| polyloop.Queue |" in tables
    assert all(f"`python -m benchmarks {name}`" in tables for name in BETWEEN_LOOPS if name.startswith("queue-"))


def test_a_table_puts_the_fewer_names_on_top() -> None:
    """What is missing stays empty."""
    report = Report("title", "µs", {"a: x": 1.0, "a: y": 2.0, "a: z": 1234.5, "b: x": 3.14159})
    assert _figures._table(report).splitlines() == [
        "|  | a | b |",
        "| --- | --: | --: |",
        "| x | 1 | 3.14 |",
        "| y | 2 |  |",
        "| z | 1,234 |  |",
    ]

"""``polyloop bench`` as a user starts it: tables, JSON, chart, errors. Small sizes; the figures mean nothing here."""

import json
import re
import socket
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("httpx")
pytest.importorskip("pygal")

from polyloop.cli.bench._site import Site

if TYPE_CHECKING:
    from tests.cli.conftest import Polyloop

POINTS = {
    "cpu": {"threads", "timing", "speedup", "ideal"},
    "fetch": {"way", "timing", "speedup"},
    "threads": {"calls", "unlimited", "limited"},
    "crawl": {"loops", "timing", "cpu_seconds", "pages_per_second", "speedup"},
}
NAMESPACE = "http://www.w3.org/2000/svg"


def assert_self_contained(text: str) -> None:
    """No address of anything, no script, nothing imported."""
    text = text.replace(f'xmlns="{NAMESPACE}"', "")
    assert re.findall(r"https?://[^\s\"'<]*|[\"'(]//\w[^\s\"'<]*", text) == []
    assert re.findall(r"<script|@import|xlink:href|<link|<iframe|url\(", text) == []


def test_all_writes_tables_json_and_a_chart(polyloop: "Polyloop", tmp_path: Path) -> None:
    """One command does everything, and says where the chart is."""
    done = polyloop("bench", "all", "--quick", "--loops", "2", "--json", "figures.json")
    assert done.returncode == 0, done.stderr
    for title in ("cpu: sums of squares", "fetch: 4 URLs", "threads: of a function", "crawl: a whole site"):
        assert title in done.stdout
    chart = tmp_path / "out" / "polyloop-bench.html"
    assert f"chart: {chart}" in done.stdout
    page = chart.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 4
    assert_self_contained(page)
    check_figures(json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")))


def check_figures(figures: dict[str, Any]) -> None:
    """The JSON has the documented shape, and what must be exact is exact."""
    assert set(figures) == {"schema", "environment", "sizes", "results"}
    assert figures["schema"] == "polyloop-bench/1"
    assert set(figures["environment"]) == {"interpreter", "cores", "machine"}
    results = figures["results"]
    assert {name: set(result["points"][0]) for name, result in results.items()} == POINTS
    assert [point["threads"] for point in results["cpu"]["points"]] == [1, 2]
    assert [point["loops"] for point in results["crawl"]["points"]] == [1, 2]
    assert results["crawl"]["pages"] == 20
    threads = [(point["calls"], point["unlimited"], point["limited"]) for point in results["threads"]["points"]]
    assert threads == [(1, 1, 1), (5, 5, 2), (9, 9, 2), (13, 13, 2), (17, 17, 2)]
    assert all(set(point["timing"]) == {"seconds", "median"} for point in results["crawl"]["points"])


@pytest.mark.parametrize("which", ["cpu", "threads", "crawl"])
def test_a_chart_of_one_benchmark_is_a_self_contained_svg(polyloop: "Polyloop", tmp_path: Path, which: str) -> None:
    """It parses as XML, has a title and axis titles, and refers to nothing."""
    done = polyloop("bench", which, "--quick", "--loops", "2", "--chart", "deep/chart.svg")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "deep" / "chart.svg").read_text(encoding="utf-8")
    assert_self_contained(text)
    root = ET.fromstring(text)
    assert root.tag == f"{{{NAMESPACE}}}svg"
    words = [element.text for element in root.iter(f"{{{NAMESPACE}}}text")]
    axes = {"cpu": "speed-up (times)", "threads": "distinct threads", "crawl": "pages per second"}
    assert f"polyloop bench {which}" in words
    assert axes[which] in words


def test_json_on_standard_output_is_alone_there(polyloop: "Polyloop") -> None:
    """The tables go to standard error then."""
    done = polyloop("bench", "threads", "--json", "-")
    assert set(json.loads(done.stdout)["results"]) == {"threads"}
    assert "concurrent calls" in done.stderr


def test_given_urls_are_fetched_in_every_way(polyloop: "Polyloop") -> None:
    """``--url`` replaces the embedded site; here it is a site of the test."""
    with Site(3, paragraphs=1) as site:
        options = [word for url in site.urls() for word in ("--url", url)]
        done = polyloop("bench", "fetch", "--quick", "--loops", "2", "--json", "-", *options)
        served = site.stats().served
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["results"]["fetch"]
    assert (result["urls"], result["latency"]) == (3, None)
    ways = [point["way"] for point in result["points"]]
    assert ways == ["one by one", "16 threads", "asyncio, one loop", "polyloop, 2 loops"]
    assert served == 3 * 4


def test_a_url_that_cannot_be_fetched_is_told_on_one_line(polyloop: "Polyloop") -> None:
    """Code 1: the command line was right, the site was not there."""
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        done = polyloop("bench", "fetch", "--quick", "--url", f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert (done.returncode, done.stdout) == (1, "")
    hint = "check the address; every URL must answer with a page"
    assert re.fullmatch(rf"error: cannot fetch: \w+: .+\. hint: {hint}\n", done.stderr)


def test_a_page_that_is_missing_is_told_on_one_line(polyloop: "Polyloop") -> None:
    """A status of 404 is no page."""
    with Site(1, paragraphs=1) as site:
        done = polyloop("bench", "fetch", "--quick", "--url", f"{site.address}/page/7")
    assert (done.returncode, done.stdout) == (1, "")
    assert "404" in done.stderr.splitlines()[0]

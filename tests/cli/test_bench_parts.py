"""The pieces of the benchmarks: what they measure must be right before how fast it is means anything."""

import http.client
import json
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("httpx")

import polyloop
from polyloop.cli.bench import _cpu, _crawl, _site_server
from polyloop.cli.bench._crawl_store import Store, TermIndex, summarise
from polyloop.cli.bench._crawler import Frontier, crawl
from polyloop.cli.bench._measure import CheckFailedError, Size, Timing, interleave, worker_counts
from polyloop.cli.bench._page_text import fingerprint, read_page, split_words
from polyloop.cli.bench._site import Site
from polyloop.cli.bench._suite import Outcome
from polyloop.cli.bench._threads import count_threads


def nothing() -> None:
    """No progress to show."""


def test_repeats_are_taken_forwards_and_backwards_by_turns() -> None:
    """So that a machine that slows down slows all cases."""
    calls: list[str] = []

    def call(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = interleave({name: partial(call, name) for name in "abc"}, 2, nothing)
    assert calls == list("abccba")
    assert results == {"a": (1, 6), "b": (2, 5), "c": (3, 4)}


def test_a_speed_up_is_the_median_of_the_ratios_of_neighbours() -> None:
    """Not the ratio of medians, which compares runs of different minutes."""
    assert Timing.of([1.0, 2.0, 4.0]).speedup_over(Timing.of([2.0, 4.0, 4.0])) == 2.0


@pytest.mark.parametrize(
    ("most", "counts"),
    [(1, (1,)), (4, (1, 2, 3, 4)), (12, (1, 2, 4, 6, 8, 12)), (64, (1, 2, 4, 6, 8, 16, 32, 64))],
)
def test_many_cores_are_not_all_measured(most: int, counts: tuple[int, ...]) -> None:
    """All up to 8, then by doubling."""
    assert worker_counts(most) == counts


@pytest.mark.parametrize(("most", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_crawls_run_on_powers_of_two(most: int, counts: tuple[int, ...]) -> None:
    """And on all loops in any case."""
    assert _crawl.loop_counts(most) == counts


@pytest.mark.parametrize(("threads", "ideal"), [(1, 1.0), (2, 2.0), (4, 10 / 3), (10, 10.0), (16, 10.0)])
def test_ten_equal_tasks_bound_the_speed_up(threads: int, ideal: float) -> None:
    """They take whole turns."""
    assert _cpu.ideal(threads) == pytest.approx(ideal)


def test_sums_are_checked_against_the_formula() -> None:
    """The time of a wrong result would mean nothing."""
    assert _cpu.sum_of_squares(1000) == 332_833_500
    assert _cpu.time_once(2, 1000) > 0


@pytest.mark.parametrize(("calls", "limit", "threads"), [(1, None, 1), (17, None, 17), (17, 2, 2), (1, 2, 1)])
def test_threads_are_counted_exactly(calls: int, limit: int | None, threads: int) -> None:
    """As many as there are calls, or as many as the limit allows."""
    assert count_threads(calls, limit) == threads


def test_a_page_is_read_completely() -> None:
    """Title, links and words in order; the title is no text."""
    page = read_page(
        b"<title>A page</title><p>One &amp; two, <a href='/x'>Two</a>!</p><a name=no>end.</a><a href=/y>One</a>"
    )
    assert (page.title, page.links, page.words) == ("A page", ("/x", "/y"), 6)
    assert page.terms == {"one": [0, 5], "&": [1], "two": [2, 3], "end": [4]}


def test_words_lose_case_and_punctuation() -> None:
    """What is left of a word that was all punctuation is no word."""
    assert split_words("Straße, (x) ... A.b;") == ["strasse", "(x)", "a.b"]


def test_a_fingerprint_depends_on_the_sequence() -> None:
    """It is made of groups of three."""
    assert fingerprint(["a", "b"]) == 0
    assert fingerprint(["a", "b", "c"]) == fingerprint(["a", "b", "c"])
    assert fingerprint(["a", "b", "c"]) != fingerprint(["c", "b", "a"])


def test_merged_indexes_hold_what_one_would() -> None:
    """Per-loop indexes are only a way to keep threads apart."""
    left, right = TermIndex(), TermIndex()
    left.add(1, {"a": [0, 4], "b": [2]})
    right.add(2, {"a": [7], "c": [1]})
    left.merge(right)
    rows = {
        term: (pages, occurrences, memoryview(ids).cast("I").tolist()) for term, pages, occurrences, ids in left.rows()
    }
    assert rows == {"a": (2, 3, [1, 2]), "b": (1, 1, [1]), "c": (1, 1, [2])}


def test_the_summary_does_not_depend_on_ids(tmp_path: Path) -> None:
    """Two crawls that find pages in another order stored the same."""
    summaries: list[tuple[int, int, str]] = []
    for name, (first, second) in {"x": (0, 1), "y": (1, 0)}.items():
        store = Store(tmp_path / name)
        store.add_pages([(first, "/a", "A", 3, 1, 9), (second, "/b", "B", 2, 0, 8)])
        index = TermIndex()
        index.add(first, {"t": [0]})
        index.add(second, {"t": [0, 1]})
        store.add_terms(index)
        store.close()
        summaries.append(summarise(tmp_path / name))
    assert summaries[0] == summaries[1]
    assert summaries[0][:2] == (2, 1)


def test_a_path_is_claimed_once() -> None:
    """Whoever asks first fetches it."""
    frontier = Frontier()
    assert frontier.claim(["/a", "/b", "/a"]) == [(0, "/a"), (1, "/b")]
    assert frontier.claim(["/b", "/c"]) == [(2, "/c")]


@pytest.mark.parametrize("loops", [1, 3])
def test_a_crawl_stores_every_page_once(tmp_path: Path, loops: int) -> None:
    """Compared with the pages as the site makes them."""
    database = tmp_path / "crawl.sqlite"
    with Site(150, paragraphs=2) as site:
        polyloop.run(crawl(site.address, "/page/0", database), loops=loops)
        assert site.stats().served == 150
    expected = {
        path.decode(): read_page(response.partition(b"\r\n\r\n")[2])
        for path, response in _site_server.make_pages(150, 2).items()
    }
    connection = sqlite3.connect(database)
    stored = {path: (title, words) for path, title, words in connection.execute("SELECT path, title, words FROM pages")}
    occurrences = connection.execute("SELECT SUM(occurrences) FROM terms").fetchone()[0]
    connection.close()
    assert stored == {path: (page.title, page.words) for path, page in expected.items()}
    assert occurrences == sum(page.words for page in expected.values())


def test_a_crawl_of_a_site_that_is_gone_fails(tmp_path: Path) -> None:
    """With the client's own error in a group, and the database closed."""
    with Site(2, paragraphs=1) as site:
        address = site.address
    with pytest.raises(ExceptionGroup) as caught:
        polyloop.run(crawl(address, "/page/0", tmp_path / "x"), loops=2)
    assert caught.group_contains(OSError)


def test_a_crawl_that_lost_pages_fails_the_benchmark() -> None:
    """Its time would be a fake."""
    with pytest.raises(CheckFailedError, match="a crawl stored 3 of 4 pages"):
        _crawl._check_summaries([(4, 1, "x"), (3, 1, "x")], 4)
    with pytest.raises(CheckFailedError, match="different results"):
        _crawl._check_summaries([(4, 1, "x"), (4, 1, "y")], 4)


def test_the_site_keeps_connections_and_knows_its_pages() -> None:
    """Two requests on one connection, a missing page, the statistics."""
    with Site(2, paragraphs=1) as site:
        client = http.client.HTTPConnection(site.address.removeprefix("http://"))
        statuses: list[int] = []
        for path in ("/page/1", "/page/2"):
            client.request("GET", path)
            response = client.getresponse()
            response.read()
            statuses.append(response.status)
        client.close()
        assert statuses == [200, 404]
        assert site.stats().served == 1


def test_the_site_holds_its_answers_back() -> None:
    """By the latency that was set."""
    with Site(1, paragraphs=1, latency=0.05) as site:
        started = time.perf_counter()
        client = http.client.HTTPConnection(site.address.removeprefix("http://"))
        client.request("GET", "/page/0")
        client.getresponse().read()
        client.close()
        assert time.perf_counter() - started >= 0.05


def test_the_site_ends_when_its_starter_dies() -> None:
    """Its standard input closes then."""
    server = Path(_site_server.__file__)
    settings = json.dumps({"pages": 1, "paragraphs": 1, "latency": 0})
    process = subprocess.Popen(
        [sys.executable, "-I", str(server), settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert int(process.stdout.readline()) > 0
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()


def test_the_same_pages_are_made_every_time() -> None:
    """Figures of two days are figures of the same work. All pages can be reached from the first."""
    pages = _site_server.make_pages(30, 2)
    assert pages == _site_server.make_pages(30, 2)
    reached, waiting = set[str](), ["/page/0"]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(read_page(pages[path.encode()].partition(b"\r\n\r\n")[2]).links)
    assert reached == {path.decode() for path in pages}


def test_a_gil_build_is_told_why_nothing_is_gained() -> None:
    """Before a reader wonders."""
    from polyloop.cli._environment import Cores, Interpreter

    gil = Interpreter("3.13.1", "CPython", "GIL", gil_enabled=True, gil_setting=None)
    outcome = Outcome(gil, Cores(2, 2, None, 2), {"cpu": Size(1.0, 1, 2)}, 1.9, {})
    why = "this is a GIL build, and only one thread at a time runs Python code"
    assert list(outcome.remarks()) == [
        f"no gain from threads is to be expected: {why}",
        "meanwhile the machine ran two processes 1.90x as fast as one",
    ]

"""The benchmarks run, say what they measured, and know their goals; the figures themselves are nobody's test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks._measure import Report, medians

ROOT = Path(__file__).parent.parent


def test_medians_take_turns_and_ignore_one_slow_round() -> None:
    """Rivals alternate within each round, and the median of an odd number of rounds is one of the figures."""
    order: list[str] = []
    slow = iter([1.0, 9.0, 2.0])

    def first() -> float:
        order.append("first")
        return next(slow)

    def second() -> float:
        order.append("second")
        return 5.0

    assert medians({"first": first, "second": second}, 3) == {"first": 2.0, "second": 5.0}
    assert order == ["first", "second"] * 3


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

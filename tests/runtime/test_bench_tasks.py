"""The benchmarks of tasks run, and say what they measured; the figures themselves are nobody's test."""

import pytest
from benchmarks import _tonio, tasks
from benchmarks.__main__ import BENCHMARKS
from benchmarks._tailed import LEAST, MOST, PARTS, sizes

NAMES = [name for name in BENCHMARKS if name.startswith("tasks-")]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few of everything that all is over at once."""
    small = {"TASKS": 20, "BATCHES": 2, "STEPPERS": 3, "STEPS": 20, "LAPS": 20, "TAILED": 6, "ALIVE": 2000}
    for name, number in small.items():
        monkeypatch.setattr(tasks, name, number)


@pytest.mark.parametrize("name", NAMES)
def test_tasks_are_measured_beside_their_peers(name: str) -> None:
    """One short round has a figure of ours and of others, and goals; where tonio is not installed, a note says so."""
    report = BENCHMARKS[name](1)
    assert report.goals
    assert all(value > 0 for value in report.figures.values())
    for who in ("polyloop", "asyncio" if name != "tasks-skew" else "bare threads"):
        assert any(who in label for label in report.figures)
    assert any("tonio" in label for label in report.figures) is not _tonio.is_missing()
    assert any("tonio" in note for note in report.notes) is _tonio.is_missing()


@pytest.mark.parametrize("name", NAMES)
def test_without_tonio_the_others_are_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note tells what is left out."""
    monkeypatch.setattr(_tonio, "is_missing", lambda: True)
    report = BENCHMARKS[name](1)
    assert "left out: tonio, which is not installed" in report.notes
    assert report.figures
    assert not any("tonio" in label for label in report.figures)


def test_sizes_have_a_heavy_tail_and_are_the_same_each_time() -> None:
    """Between the bounds, with much of the work in few of them."""
    per_ms = 10_000
    found = sizes(500, per_ms)
    assert found == sizes(500, per_ms)
    least, most = (seconds * 1000 * per_ms / PARTS for seconds in (LEAST, MOST))
    assert least <= min(found) <= max(found) <= most
    assert sum(sorted(found)[-50:]) > sum(found) / 2


def test_the_ideal_split_knows_the_sizes() -> None:
    """Each task has a place, and the loops' work differs by one task at most, less than if dealt in turn."""
    found = sizes(500, 10_000)

    def loads(places: list[int]) -> list[int]:
        assert len(places) == len(found)
        return [sum(size for size, place in zip(found, places, strict=True) if place == loop) for loop in (0, 1)]

    assert sum(loads(tasks._deal_by_size(found))) == sum(loads(tasks._deal_blindly(found))) == sum(found)
    ideal, blind = (loads(deal(found)) for deal in (tasks._deal_by_size, tasks._deal_blindly))
    assert abs(ideal[0] - ideal[1]) <= max(found)
    assert abs(ideal[0] - ideal[1]) < abs(blind[0] - blind[1])

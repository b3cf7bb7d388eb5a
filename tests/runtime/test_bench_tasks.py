"""The benchmarks of tasks run, and say what they measured; the figures themselves are nobody's test."""

import subprocess

import pytest
from benchmarks import _tonio, tasks
from benchmarks.__main__ import BENCHMARKS
from benchmarks._tailed import LEAST, MOST, PARTS, dealt_blindly, dealt_by_size, sizes

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
    found = sizes(200, per_ms)
    assert found == sizes(200, per_ms)
    least, most = (seconds * 1000 * per_ms / PARTS for seconds in (LEAST, MOST))
    assert least <= min(found) <= max(found) <= most
    assert sum(sorted(found)[-20:]) > sum(found) / 2


def test_the_ideal_split_knows_the_sizes() -> None:
    """Each task has a place, and the loops' work differs by one task at most, less than if dealt in turn."""
    found = sizes(200, 10_000)

    def loads(places: list[int]) -> list[int]:
        assert len(places) == len(found)
        return [sum(size for size, place in zip(found, places, strict=True) if place == loop) for loop in (0, 1)]

    ideal, blind = loads(dealt_by_size(found)), loads(dealt_blindly(found))
    assert sum(ideal) == sum(blind) == sum(found)
    assert abs(ideal[0] - ideal[1]) <= max(found)
    assert max(blind) > 1.1 * max(ideal)  # or the goal would say nothing


def test_a_process_of_tonio_that_hangs_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And said to have hung; a second time is an error."""
    outcomes: list[list[float]] = []

    def alone(module: str, *words: object, timeout: float) -> list[float]:
        assert (module, *words) == ("benchmarks._tonio", "step", 2, 30)
        try:
            return outcomes.pop()
        except IndexError:
            outcomes.append([1.5])
            raise subprocess.TimeoutExpired("tonio", timeout) from None

    monkeypatch.setattr(_tonio, "measured_alone", alone)
    assert _tonio.measured("step", 2, 30) == [1.5]
    assert "'step' on 2 threads hung" in capsys.readouterr().err

    def hangs(module: str, *words: object, timeout: float) -> list[float]:
        raise subprocess.TimeoutExpired(module, timeout)

    monkeypatch.setattr(_tonio, "measured_alone", hangs)
    with pytest.raises(subprocess.TimeoutExpired):
        _tonio.measured("step", 2, 30)

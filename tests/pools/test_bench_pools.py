"""The benchmarks of pools run, and say what they measured; the figures themselves are nobody's test."""

import pytest
from benchmarks import pools


def test_lending(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short round has each case, and a goal for each but the limit and what the system's wake-ups are part of."""
    monkeypatch.setattr(pools, "LOANS", 200)
    monkeypatch.setattr(pools, "HANDS", 50)
    report = pools.lending(1)
    assert len(report.figures) == 6
    assert len(report.goals) == 3
    assert all(value > 0 for value in report.figures.values())


def test_queries_against_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short round of each, with a server of their own; where there is none, they say so."""
    for name, value in (("REQUESTS", 40), ("SKEWED_REQUESTS", 400)):
        monkeypatch.setattr(pools, name, value)
    for report in (pools.query(1), pools.skew(1)):
        assert report.figures or report.notes
        assert all(value > 0 for value in report.figures.values())

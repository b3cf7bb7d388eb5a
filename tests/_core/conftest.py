"""Fixtures of the tests of the ground floor."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from tests._core.models import Waker
from tests.explorer import Run

from polyloop._core import _selector


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Makes the selectors of a scenario use the model's waker, and a clock of which each look takes 10 us."""

    def use(run: Run) -> None:
        clock = itertools.count(0, 10_000)
        prims = SimpleNamespace(monotonic_ns=lambda: next(clock), monotonic=lambda: 0.0)
        monkeypatch.setattr(_selector, "new_waker", lambda: Waker(run))
        monkeypatch.setattr(_selector, "_prims", prims)
        monkeypatch.setattr(_selector, "_LOOKS_PER_POLL", 1)

    return use

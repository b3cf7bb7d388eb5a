"""What the tests of offloading share: a loop, and fresh pools in place of the process-wide ones."""

from collections.abc import Iterator

import pytest

from polyloop._core import _pool
from polyloop._core._pool import ThreadPool
from polyloop.offload import _processes, _targets
from polyloop.offload._processes import SharedProcesses
from polyloop.testing import TestLoop


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedProcesses]:
    """A fresh pool of processes."""
    fresh = SharedProcesses()
    monkeypatch.setattr(_processes.shared, "processes", fresh)
    yield fresh
    fresh.end(30)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[_targets._Own]:
    """A fresh limiter for calls that compute, and a fresh pool of interpreters."""
    fresh = _targets._Own()
    monkeypatch.setattr(_targets, "_own", fresh)
    yield fresh
    fresh.end_interpreters(wait=True)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPool]:
    """A fresh pool of threads."""
    fresh = ThreadPool(idle_timeout=3600)  # no thread retires because the machine stalls
    monkeypatch.setattr(_pool.shared, "pool", fresh)
    yield fresh
    fresh.end_idle(30)
    assert (fresh.queued, fresh.abandoned) == (0, 0)


@pytest.fixture
def loop() -> Iterator[TestLoop]:
    """A loop of polyloop's own."""
    with TestLoop("caller") as loop:
        yield loop

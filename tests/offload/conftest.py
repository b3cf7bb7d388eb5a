"""What the tests of offloading share: fresh pools in place of the process-wide ones."""

from collections.abc import Iterator

import pytest

from polyloop._core import _pool
from polyloop._core._pool import ThreadPool
from polyloop.offload import _processes, _targets
from polyloop.offload._processes import SharedProcesses


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
    fresh = ThreadPool()
    monkeypatch.setattr(_pool.shared, "pool", fresh)
    yield fresh
    fresh.end_idle(30)
    assert (fresh.queued, fresh.abandoned) == (0, 0)

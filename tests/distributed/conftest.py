"""Real clusters: a scheduler and workers, each a process of its own, on loopback."""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyloop.distributed import DaskOffload

ROOT = Path(__file__).resolve().parents[2]

#: Seconds for the processes of a cluster to start, on a machine that has other things to do.
START = 60


def on_client(offload: DaskOffload, method: str, *args: Any) -> Any:
    """Call a method of the client of Dask's that serves ``offload``, on its own loop, and wait for what it returns."""

    async def call() -> Any:
        return await getattr(offload._link._client, method)(*args)

    loop = offload._link._loop
    assert loop is not None
    return asyncio.run_coroutine_threadsafe(call(), loop).result(START)


class Cluster:
    """A scheduler and its workers. Whatever a test kills, ``heal`` replaces."""

    def __init__(
        self, folder: Path, workers: int, threads: int = 1, allowed_failures: int = 3, path: Path = ROOT
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self._folder = folder
        self._wanted = workers
        self._threads = threads
        self._started = 0
        setting = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures)}
        self._env = {**os.environ, "PYTHONPATH": str(path), **setting}
        port = self.address.rpartition(":")[2]
        self.scheduler = self._start("scheduler", "--port", port, "--idle-timeout", "1 minute", "--no-show")
        self.workers = [self._start_worker() for _ in range(workers)]

    def _start(self, kind: str, *options: str) -> "subprocess.Popen[bytes]":
        self._started += 1
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1", *options]
        command += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        with (self._folder / f"{self._started}-{kind}.log").open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, env=self._env, stdout=log, stderr=subprocess.STDOUT)

    def _start_worker(self) -> "subprocess.Popen[bytes]":
        # The first one alone has what the test of resources asks for.
        resources = ["--resources", "LICENCE=1"] if self._started == 1 else []
        options = ["--no-nanny", "--nthreads", str(self._threads), "--death-timeout", str(START)]
        return self._start("worker", self.address, *options, "--local-directory", str(self._folder), *resources)

    def heal(self) -> None:
        """Start workers until there are as many as in the beginning, and wait for them."""
        alive = [worker for worker in self.workers if worker.poll() is None]
        self.workers = alive + [self._start_worker() for _ in range(self._wanted - len(alive))]
        with DaskOffload(self.address, connect_timeout=START) as offload:
            if self._wanted:
                on_client(offload, "wait_for_workers", self._wanted, START)

    def kill(self, *processes: "subprocess.Popen[bytes]") -> None:
        """As the kernel does that is out of memory."""
        for process in processes:
            process.kill()
            process.wait()

    def stop(self) -> None:
        self.kill(self.scheduler, *self.workers)


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """Wait for a cluster that was started, and kill it in the end."""
    try:
        cluster.heal()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def dask() -> None:
    """Skips what needs Dask where it is not installed."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("Dask is not installed here (polyloop[dask])")


@pytest.fixture(scope="session")
def _lasting(dask: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(Cluster(tmp_path_factory.mktemp("cluster"), workers=2, threads=2)) as cluster:
        yield cluster


@pytest.fixture
def cluster(_lasting: Cluster) -> Cluster:
    """One cluster for all tests: two workers, two threads each."""
    if any(worker.poll() is not None for worker in _lasting.workers):
        _lasting.heal()
    return _lasting


@pytest.fixture
def doomed(dask: None, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of its own, to be killed: one worker, one thread, and no call is tried on a second worker."""
    with running(Cluster(tmp_path, workers=1, allowed_failures=0)) as cluster:
        yield cluster


@pytest.fixture
def offload(cluster: Cluster) -> Iterator[DaskOffload]:
    """An executor on the lasting cluster."""
    with DaskOffload(cluster.address) as executor:
        yield executor


class Gate:
    """Holds calls on the workers back (``jobs.hold``), and knows which of them have begun."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")
        os.mkfifo(f"{self.path}.begun")
        self._begun = os.open(f"{self.path}.begun", os.O_RDWR)  # so that it never ends
        self._lines = os.fdopen(self._begun, "r")
        self._lock = open(self.path, "w")  # noqa: SIM115 - closed by close()
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def wait_begun(self) -> int:
        """Wait until one more call has begun, and return the process that it runs in."""
        return int(self._lines.readline())

    def open(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        self._lock.close()
        self._lines.close()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    with contextlib.closing(made):
        yield made

"""How much faster two run than one: threads (what the interpreter allows) and processes (what the machine allows).

The second number is the control for the first. On a virtual machine whose host is busy, or beside another busy
program, two processes may get little more than one, and then no interpreter can do better.
"""

import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_PROBE_SECONDS = 0.04  # a guess: long against a thread's start and a scheduler tick, short for a person who waits
_WORKER = """
import sys
def spin(count):
    total = 0
    for number in range(count):
        total += number * number
    return total
for line in sys.stdin:
    spin(int(line))
    print(flush=True)
"""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Speed of two together over the speed of one, as the median of several interleaved rounds."""

    threads: float
    """2.0 is perfect; 1.0 means that they took turns."""
    processes: float
    """The same for two processes: the most that this machine gave during the probe."""
    rounds: int


def spin(count: int) -> int:
    """Work that allocates little and shares nothing."""
    total = 0
    for number in range(count):
        total += number * number
    return total


class MachineProbe:
    """Two helper processes that measure what the machine gives: ``with MachineProbe() as probe: probe.ratio()``.

    Thread safety: one thread at a time.
    """

    def __init__(self, seconds: float = _PROBE_SECONDS) -> None:
        self._count = _calibrate(seconds)
        self._stack = contextlib.ExitStack()
        self._workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        for _ in range(2):
            self._workers.append(self._stack.enter_context(_start_worker()))
        self._run(2)  # the first run pays for start-up
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.close()  # ends its loop over the lines
        self._stack.close()

    def ratio(self) -> float:
        """Measure once: work done per second by two processes over that of one."""
        return 2 * self._run(1) / self._run(2)

    def _run(self, processes: int) -> float:
        started = time.perf_counter()
        for worker in self._workers[:processes]:
            assert worker.stdin is not None
            worker.stdin.write(f"{self._count}\n")
            worker.stdin.flush()
        for worker in self._workers[:processes]:
            assert worker.stdout is not None
            worker.stdout.readline()
        return time.perf_counter() - started


def thread_ratio(count: int) -> float:
    """Measure once: work done per second by two threads over that of one."""
    return 2 * _run_threads(1, count) / _run_threads(2, count)


def measure_scaling(rounds: int = 7, step: Callable[[], None] = lambda: None) -> Scaling:
    """Probe threads and processes in turn.

    Args:
        rounds: Repeats; the medians are returned.
        step: Called after each round, for progress.
    """
    count = _calibrate(_PROBE_SECONDS)
    threads: list[float] = []
    processes: list[float] = []
    with MachineProbe() as machine:
        _run_threads(2, count)
        for _ in range(rounds):
            threads.append(thread_ratio(count))
            processes.append(machine.ratio())
            step()
    return Scaling(statistics.median(threads), statistics.median(processes), rounds)


def _start_worker() -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", "-c", _WORKER]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _run_threads(threads: int, count: int) -> float:
    barrier = threading.Barrier(threads + 1)

    def work() -> None:
        barrier.wait()
        spin(count)

    started_threads = [threading.Thread(target=work) for _ in range(threads)]
    for thread in started_threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in started_threads:
        thread.join()
    return time.perf_counter() - started


def _calibrate(seconds: float) -> int:
    count = 100_000
    started = time.perf_counter()
    spin(count)
    return max(1000, int(count * seconds / (time.perf_counter() - started)))

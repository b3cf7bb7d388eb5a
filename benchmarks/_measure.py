"""How everything here is measured: rivals take turns in one process, and the median of several rounds counts.

A machine's speed drifts by more than what we look for, so a figure is a ratio of two medians whose rounds were
interleaved, each in another order: what ran just before matters, too. Bare threads are some 5 % slower right after a
pool of loops than right after another process, and where that is as much as what we look for, each rival has a process
of its own (``measured_alone``). Absolute figures are printed for orientation only.
"""

import gc
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

#: Does its work so many times; returns what one time costs.
type Rival = Callable[[int], float]

#: How much of a measurement is run once before it.
WARM_UP = 0.1

#: Of the orders of the rounds.
SEED = 1


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio is meant to reach: ``ours / theirs`` at least or at most ``bound``."""

    text: str
    ratio: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


@dataclass(slots=True)
class Report:
    """The outcome of one benchmark: named figures, goals, and what else is worth saying."""

    title: str
    unit: str
    figures: dict[str, float] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def at_least(self, text: str, ratio: float, bound: float) -> None:
        self.goals.append(Goal(text, ratio, bound, at_least=True))

    def at_most(self, text: str, ratio: float, bound: float) -> None:
        self.goals.append(Goal(text, ratio, bound, at_least=False))


def in_turn[R](rivals: Mapping[str, Callable[[], R]], rounds: int) -> dict[str, list[R]]:
    """Call each rival once a round, each round in another order, and return what each returned."""
    seen: dict[str, list[R]] = {name: [] for name in rivals}
    order, rng = list(rivals), random.Random(SEED)
    for _ in repeat(None, rounds):
        for name in order:
            gc.collect()
            seen[name].append(rivals[name]())
        rng.shuffle(order)
    return seen


def measured_alone(module: str, *words: object, timeout: float | None = None) -> list[float]:
    """The numbers that ``python -m module words...`` prints.

    Raises:
        subprocess.TimeoutExpired: It took more than ``timeout`` seconds.
        subprocess.CalledProcessError: It has failed.
    """
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout)
    return [float(word) for word in done.stdout.split()]


def medians(rivals: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Call each rival once a round, in turn, and return the median of what each returned."""
    return {name: statistics.median(values) for name, values in in_turn(rivals, rounds).items()}


def race(report: Report, case: str, rivals: Mapping[str, Rival], rounds: int, count: int) -> None:
    """Warm each rival up, then measure them in turn; the figures are called ``"case: rival"``."""
    for rival in rivals.values():
        rival(max(8, int(count * WARM_UP)))  # 8: something for each of several tasks
    found = medians({name: partial(rival, count) for name, rival in rivals.items()}, rounds)
    report.figures |= {f"{case}: {name}": value for name, value in found.items()}


def seconds(fn: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def rss_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most memory of this process that was ever resident.

    Not ``ru_maxrss``, which a new process may inherit.
    """
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def environment() -> dict[str, object]:
    """What the figures depend on."""
    probe = getattr(sys, "_is_gil_enabled", lambda: True)
    return {
        "python": platform.python_version(),
        "free_threaded": not probe(),
        "cores": os.process_cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
    }

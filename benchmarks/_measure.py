"""How everything here is measured: rivals take turns in one process, and the median of several rounds counts.

A machine's speed drifts by more than what we look for, so a figure is a ratio of two medians whose rounds were
interleaved: A B C, A B C, ... Absolute figures are printed for orientation only.
"""

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


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


def medians(rivals: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Call each rival once a round, in turn, and return the median of what each returned."""
    seen: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            gc.collect()
            seen[name].append(rival())
    return {name: statistics.median(values) for name, values in seen.items()}


def seconds(fn: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def rss_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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

"""One loop: what an asyncio program pays for running under ``polyloop.run(loops=1)``."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import polyloop
from benchmarks._measure import Report, medians

TASKS = 20_000
SWITCHES = 20_000
SLEEPERS = 2000


async def _noop() -> None:
    return None


async def _spawn(api: Any) -> None:
    """Tasks that end at once, in groups of 1000."""
    for _ in range(TASKS // 1000):
        async with api.TaskGroup() as group:
            for _ in range(1000):
                group.create_task(_noop())


async def _await(api: Any) -> None:
    """Start one task, await it, start the next."""
    async with api.TaskGroup() as group:
        for _ in range(TASKS // 2):
            await group.create_task(_noop())


async def _switch(api: Any) -> None:
    """Ten tasks that do nothing but give way."""

    async def yielder() -> None:
        for _ in range(SWITCHES // 10):
            await asyncio.sleep(0)

    async with api.TaskGroup() as group:
        for _ in range(10):
            group.create_task(yielder())


async def _sleep(api: Any) -> None:
    """Many tasks that wait for timers of 0 to 10 ms, five times each."""

    async def sleeper(index: int) -> None:
        for _ in range(5):
            await asyncio.sleep(index % 10 / 1000)

    async with api.TaskGroup() as group:
        for index in range(SLEEPERS):
            group.create_task(sleeper(index))


WORKLOADS: dict[str, Callable[[Any], Any]] = {"spawn": _spawn, "await": _await, "switch": _switch, "sleep": _sleep}


def _timed(workload: Callable[[Any], Any], runner: Any, names: Any) -> float:
    async def main() -> float:
        began = time.perf_counter()
        await workload(names)
        return time.perf_counter() - began

    options = {"loops": 1} if runner is polyloop else {}
    return float(runner.run(main(), **options)) * 1e3


def run(rounds: int) -> Report:
    """Milliseconds a workload, on one loop.

    Twice: the program as it is, started by ``polyloop.run`` instead of ``asyncio.run``; and with its task group
    imported from polyloop too, whose handles can be awaited on any loop and cost something on one.
    """
    report = Report("polyloop.run(loops=1) against asyncio.run", "ms")
    for name, workload in WORKLOADS.items():
        theirs, same, ours = f"{name}: asyncio", f"{name}: polyloop.run", f"{name}: polyloop.run and polyloop.TaskGroup"
        figures = medians(
            {
                theirs: partial(_timed, workload, asyncio, asyncio),
                same: partial(_timed, workload, polyloop, asyncio),
                ours: partial(_timed, workload, polyloop, polyloop),
            },
            rounds,
        )
        report.figures |= figures
        report.at_most(f"{name}: polyloop.run", figures[same] / figures[theirs], 1.05)
        report.at_most(f"{name}: with polyloop.TaskGroup", figures[ours] / figures[theirs], 1.05)
    return report

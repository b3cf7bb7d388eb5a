"""``to_thread``: the round trip of a call that does nothing, against asyncio's and anyio's."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread

import polyloop
from benchmarks._measure import Report, medians

COUNT = 2000


async def _round_trips(call: Callable[[], Awaitable[Any]]) -> float:
    loop = asyncio.get_running_loop()
    for _ in range(50):
        await call()
    began = loop.time()
    for _ in range(COUNT):
        await call()
    return (loop.time() - began) / COUNT * 1e6


def _nothing() -> None:
    return None


def run(rounds: int) -> Report:
    """One call at a time, microseconds a round trip."""
    report = Report("to_thread round trip", "µs each")
    report.figures = medians(
        {
            "polyloop.to_thread": lambda: polyloop.run(_round_trips(lambda: polyloop.to_thread(_nothing)), loops=1),
            "asyncio.to_thread": lambda: asyncio.run(_round_trips(lambda: asyncio.to_thread(_nothing))),
            "anyio.to_thread.run_sync": lambda: asyncio.run(_round_trips(lambda: anyio.to_thread.run_sync(_nothing))),
        },
        rounds,
    )
    ours = report.figures["polyloop.to_thread"]
    report.at_most("time against asyncio.to_thread", ours / report.figures["asyncio.to_thread"], 0.25)
    report.at_most("time against anyio", ours / report.figures["anyio.to_thread.run_sync"], 0.25)
    return report

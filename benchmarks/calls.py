"""Calls to another loop: 1000 in flight, and one at a time.

Two limits stand beside the figures: a task on the same loop (what a call would cost without any hop) and two hops
through ``os.pipe`` between threads (what the kernel asks for waking a sleeper).
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from typing import Any

import polyloop
from benchmarks import _pipes
from benchmarks._measure import Report, medians

IN_FLIGHT = 1000
BATCHES = 5
SINGLES = 2000

type _Call = Callable[[], Awaitable[Any]]


async def _noop() -> int:
    return 1


async def _batch(call: _Call) -> float:
    """Make 1000 calls, then wait for all of them."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(BATCHES):
        pending = [call() for _ in range(IN_FLIGHT)]
        for handle in pending:
            await handle
    return (loop.time() - began) / (IN_FLIGHT * BATCHES) * 1e6


async def _callers(call: _Call) -> float:
    """1000 tasks of this loop, each of which makes one call after the other."""

    async def caller() -> None:
        for _ in range(BATCHES):
            await call()

    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*[caller() for _ in range(IN_FLIGHT)])
    return (loop.time() - began) / (IN_FLIGHT * BATCHES) * 1e6


async def _one_at_a_time(call: _Call) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(SINGLES):
        await call()
    return (loop.time() - began) / SINGLES * 1e6


def _rivals(runtime: polyloop.Runtime) -> dict[str, _Call]:
    there = runtime.workers[1]
    loop = there.loop
    return {
        "polyloop spawn": lambda: runtime.spawn(_noop, on=there),
        "asyncio run_coroutine_threadsafe": lambda: asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(_noop(), loop)
        ),
        "a task on the same loop": lambda: asyncio.create_task(_noop()),
    }


def _measure(title: str, one: Callable[[_Call], Any], rounds: int, bound: float) -> Report:
    report = Report(title, "µs each")
    with polyloop.Runtime(loops=2) as runtime:
        here = runtime.workers[0]

        def timed(call: _Call) -> float:
            return float(runtime.spawn(one, call, on=here).result())

        rivals = {name: (lambda call=call: timed(call)) for name, call in _rivals(runtime).items()}
        report.figures = medians(rivals, rounds)
    rate = report.figures["asyncio run_coroutine_threadsafe"] / report.figures["polyloop spawn"]
    report.at_least("rate against run_coroutine_threadsafe", rate, bound)
    return report


def batch(rounds: int) -> Report:
    """1000 in flight, made by one task."""
    return _measure("call another loop, a batch of 1000 in flight", _batch, rounds, 5)


def callers(rounds: int) -> Report:
    """1000 in flight, by 1000 tasks that wait for one each."""
    return _measure("call another loop, 1000 tasks with one call in flight each", _callers, rounds, 5)


def one_at_a_time(rounds: int) -> Report:
    """One at a time: latency."""
    report = _measure("call another loop, one at a time", _one_at_a_time, rounds, 5)
    report.figures |= medians({"two os.pipe hops": _pipe_hops}, rounds)
    return report


def _pipe_hops() -> float:
    return statistics.mean(_pipes.laps(SINGLES))

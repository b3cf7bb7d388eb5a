"""Queues between threads and loops, against aiologic, culsans, janus and what the standard library offers.

All contenders of a line take turns within one run. Their loops are those of ``asyncio.run``, one in each thread; what
says "on a Runtime" ran on the loops of ``polyloop.Runtime``, which spin for a moment before they sleep.

Two comparisons are judged: ``polyloop.Queue`` with the best of the queues that offer as much, and
``polyloop.SimpleQueue``, which has neither a bound nor ``join`` nor ``shutdown``, with the best of all, among them
``aiologic.SimpleQueue``. Not judged are the limits: ``queue.SimpleQueue``, written in C, and pipes between threads.
"""

import asyncio
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from benchmarks import _pipes
from benchmarks._contenders import (
    AIOLOGIC,
    AIOLOGIC_SIMPLE,
    ASYNCIO,
    CONTENDERS,
    CULSANS,
    FED,
    JANUS,
    LOCAL,
    PEERS,
    QUEUE,
    SIMPLE,
    Contender,
)
from benchmarks._measure import Report, Rival, in_turn, medians, race
from benchmarks._streams import Side, arrivals, ping_pong, serves, stream

COUNT = 20_000
COUNT_BOUNDED = 5000
LAPS = 2000
ARRIVALS = 100
BOUND = 16
ENDS = 4

#: The producer does something else for this long between two items: the consumer has gone to sleep by then.
GAP = 0.002

#: How often the consumer of asyncio's guide looks whether there is something in the queue.
POLL = 0.1

#: What ``polyloop.SimpleQueue`` is compared with.
ALL_PEERS = (*PEERS, AIOLOGIC_SIMPLE, FED)

ON_RUNTIME = " on a Runtime"
GUIDE = f"queue.Queue, looked at every {POLL} s"
PIPES, PIPES_APART = "two os.pipe hops", "two os.pipe hops, threads kept on two cores"

DIRECTIONS: dict[str, tuple[Side, Side]] = {
    "thread→thread": ("thread", "thread"),
    "thread→loop": ("thread", "loop"),
    "loop→thread": ("loop", "thread"),
    "loop→loop": ("loop", "loop"),
}


def throughput(rounds: int) -> Report:
    """One producer and one consumer, no bound."""
    report = Report("a queue without bound, one producer and one consumer", "µs an item")
    for direction, (source, sink) in DIRECTIONS.items():
        race(report, direction, _rivals(source, sink), rounds, COUNT)
        _judge(report, direction, (QUEUE, QUEUE + ON_RUNTIME), PEERS, 3)
        _judge(report, direction, (SIMPLE, SIMPLE + ON_RUNTIME), ALL_PEERS, 3)
    report.notes.append("janus serves one loop: it has no line in loop→loop")
    return report


def bounded(rounds: int) -> Report:
    """One producer and one consumer, room for 16 items."""
    report = Report(f"a queue with room for {BOUND} items, one producer and one consumer", "µs an item")
    for direction, (source, sink) in DIRECTIONS.items():
        race(report, direction, _rivals(source, sink, bound=BOUND), rounds, COUNT_BOUNDED)
        _judge(report, direction, (QUEUE, QUEUE + ON_RUNTIME), (CULSANS,), 2)
        _remark(report, direction)
    return report


def many(rounds: int) -> Report:
    """Four producers and four consumers: threads, or tasks, the producers on one loop and the consumers on another."""
    report = Report("four producers and four consumers", "µs an item")
    sides: tuple[tuple[Side, str], ...] = (("thread", "8 threads"), ("loop", "8 tasks on 2 loops"))
    for bound, room, count in ((0, "no bound", COUNT), (BOUND, f"room for {BOUND}", COUNT_BOUNDED)):
        for side, who in sides:
            case = f"{who}, {room}"
            race(report, case, _rivals(side, side, bound=bound, ends=ENDS), rounds, count)
            _judge(report, case, (QUEUE, QUEUE + ON_RUNTIME), PEERS, 2)
            _judge(report, case, (SIMPLE, SIMPLE + ON_RUNTIME), ALL_PEERS, 2)
    return report


def latency(rounds: int) -> Report:
    """One item to and fro between two loops, over two queues."""
    report = Report("one item to and fro between two loops", "µs a lap")
    rivals: dict[str, Callable[[], list[float]]] = {}
    for name, contender in CONTENDERS.items():
        if serves(contender, "loop", "loop"):
            rivals[name] = partial(ping_pong, contender, LAPS)
            if name in {QUEUE, SIMPLE}:
                rivals[name + ON_RUNTIME] = partial(ping_pong, contender, LAPS, runtime=True)
    rivals[PIPES] = partial(_pipes.laps, LAPS)
    if _pipes.can_be_apart():
        rivals[PIPES_APART] = partial(_pipes.laps, LAPS, apart=True)
    for laps in rivals.values():
        laps()
    found = in_turn(rivals, rounds)
    for case, summary in (("median", statistics.median), ("mean", statistics.mean)):
        for name, values in found.items():
            report.figures[f"{case}: {name}"] = statistics.median(map(summary, values))
    for ours in (QUEUE + ON_RUNTIME, QUEUE):
        for theirs, bound in ((CULSANS, 0.25), (PIPES_APART, 1.0), (PIPES, 1.0)):
            if theirs in found:
                ratio = report.figures[f"median: {ours}"] / report.figures[f"median: {theirs}"]
                report.at_most(f"median: {ours} against {theirs}", ratio, bound)
    report.notes.append("left alone, the kernel may put both ends of a pipe on one core, where a hop wakes none")
    return report


def local(rounds: int) -> Report:
    """Two tasks of one loop: what a queue costs that would not have to be safe."""
    report = Report("a queue within one loop", "µs an item")
    for case, bound in (("no bound", 0), (f"room for {BOUND}", BOUND)):
        rivals = {ASYNCIO: _within(LOCAL, bound)} | _rivals("loop", "loop", bound=bound, one_loop=True)
        rivals.pop(FED, None)
        race(report, case, rivals, rounds, COUNT)
    laps: dict[str, Rival] = {ASYNCIO: lambda count: statistics.median(ping_pong(LOCAL, count, one_loop=True))}
    for name, contender in CONTENDERS.items():
        if serves(contender, "loop", "loop", one_loop=True) and name != FED:
            laps[name] = partial(_local_lap, contender)
            if name in {QUEUE, SIMPLE}:
                laps[name + ON_RUNTIME] = partial(_local_lap, contender, runtime=True)
    race(report, "to and fro", laps, rounds, LAPS)
    for case in ("no bound", f"room for {BOUND}", "to and fro"):
        for ours in (QUEUE, QUEUE + ON_RUNTIME):
            ratio = report.figures[f"{case}: {ours}"] / report.figures[f"{case}: {ASYNCIO}"]
            report.at_most(f"{case}: {ours} against {ASYNCIO}", ratio, 1.3)
    return report


def arrival(rounds: int) -> Report:
    """A thread puts an item now and then; how long until the loop has it."""
    report = Report(f"from put in a thread to get on a loop, an item every {GAP * 1e3:g} ms", "µs, median")
    rivals: dict[str, Callable[[], float]] = {}
    for name in (QUEUE, SIMPLE, CULSANS, AIOLOGIC, JANUS, FED):
        rivals[name] = partial(_median_age, CONTENDERS[name])
        if name in {QUEUE, SIMPLE}:
            rivals[name + ON_RUNTIME] = partial(_median_age, CONTENDERS[name], runtime=True)
    rivals[GUIDE] = partial(_guide, ARRIVALS)
    report.figures = medians(rivals, rounds)
    for ours in (QUEUE, QUEUE + ON_RUNTIME):
        report.at_most(f"{ours}, µs", report.figures[ours], 200)
    report.notes.append("the last line is the program of CPython's guide on asyncio and threads")
    return report


def _rivals(source: Side, sink: Side, *, bound: int = 0, ends: int = 1, one_loop: bool = False) -> dict[str, Rival]:
    """All that can be used like that; polyloop's also on a Runtime, if there are loops."""
    found: dict[str, Rival] = {}
    for name, contender in CONTENDERS.items():
        if not serves(contender, source, sink, bound=bound, one_loop=one_loop):
            continue
        rival = partial(stream, contender, source, sink, bound=bound, ends=ends, one_loop=one_loop)
        found[name] = rival
        if name in {QUEUE, SIMPLE} and "loop" in {source, sink}:
            found[name + ON_RUNTIME] = partial(rival, runtime=True)
    return found


def _within(contender: Contender, bound: int) -> Rival:
    return partial(stream, contender, "loop", "loop", bound=bound, one_loop=True)


def _local_lap(contender: Contender, laps: int, *, runtime: bool = False) -> float:
    return statistics.median(ping_pong(contender, laps, one_loop=True, runtime=runtime))


def _median_age(contender: Contender, *, runtime: bool = False) -> float:
    return statistics.median(arrivals(contender, ARRIVALS, GAP, runtime=runtime))


def _judge(report: Report, case: str, ours: Iterable[str], theirs: Iterable[str], bound: float) -> None:
    """Compare each of ``ours`` that took part with the best of ``theirs``."""
    best, figure = _best(report, case, theirs)
    for name in ours:
        if (mine := report.figures.get(f"{case}: {name}")) is not None:
            report.at_least(f"{case}: rate of {name} against {best}", figure / mine, bound)


def _remark(report: Report, case: str) -> None:
    """Say how ``polyloop.Queue`` does against the best of all that are like it, whatever the goal asks for."""
    best, figure = _best(report, case, PEERS)
    ratio = figure / report.figures[f"{case}: {QUEUE}"]
    report.notes.append(f"{case}: the best of the others is {best}; rate of {QUEUE} against it: {ratio:.2f}")


def _best(report: Report, case: str, names: Iterable[str]) -> tuple[str, float]:
    seen = {name: report.figures[f"{case}: {name}"] for name in names if f"{case}: {name}" in report.figures}
    return min(seen.items(), key=lambda item: item[1])


def _guide(count: int) -> float:
    """The producer and the consumer of CPython's guide, who looks at the queue, sleeps, and looks again."""
    items: queue.Queue[float] = queue.Queue()
    ages: list[float] = []

    async def consumer() -> None:
        while True:
            try:
                sent = items.get_nowait()
            except queue.Empty:
                await asyncio.sleep(POLL)
                continue
            except queue.ShutDown:
                break
            ages.append((time.perf_counter() - sent) * 1e6)

    def run_consumer() -> Any:
        return asyncio.run(consumer())

    thread = threading.Thread(target=run_consumer)
    thread.start()
    for _ in range(count):
        time.sleep(GAP)
        items.put(time.perf_counter())
    items.shutdown()
    thread.join()
    return statistics.median(ages)

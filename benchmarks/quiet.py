"""What the runtime costs when it has nothing to do, and what spinning costs those who have.

``idle``: processor time of a runtime of four loops that wait. ``busy``: twice as many computing threads as cores share
the machine with a runtime whose loops keep falling asleep; their throughput is measured with spinning on and off.
"""

import asyncio
import resource
import threading
import time

import polyloop
from benchmarks._measure import Report, medians

IDLE_SECONDS = 5.0
BUSY_SECONDS = 2.0


def idle(rounds: int) -> Report:
    """Processor time of an idle runtime of four loops, percent of a core."""

    def measure() -> float:
        with polyloop.Runtime(loops=4) as runtime:
            for worker in runtime.workers:
                runtime.spawn(asyncio.sleep, 0, on=worker).result()
            time.sleep(0.2)
            before = resource.getrusage(resource.RUSAGE_SELF)
            time.sleep(IDLE_SECONDS)
            after = resource.getrusage(resource.RUSAGE_SELF)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        return used / IDLE_SECONDS * 100

    report = Report("idle runtime of 4 loops", "% of a core")
    report.figures = medians({"idle": measure}, min(rounds, 3))
    report.at_most("share of a core, %", report.figures["idle"], 0.5)
    return report


def busy(rounds: int) -> Report:
    """Throughput of 2 x cores computing threads beside a runtime that keeps going to sleep."""
    threads = 2 * (polyloop_cores())

    def measure(spin: bool) -> float:
        with polyloop.Runtime(loops=threads, spin=spin) as runtime:
            stop = threading.Event()
            handles = [runtime.spawn(_nap, stop, on=worker) for worker in runtime.workers]
            steps = _compute(threads, BUSY_SECONDS)
            stop.set()
            for handle in handles:
                handle.result()
        return steps / BUSY_SECONDS / 1e3

    report = Report(f"{threads} computing threads beside a runtime that naps", "thousand steps/s")
    report.figures = medians({"spin on": lambda: measure(True), "spin off": lambda: measure(False)}, rounds)
    report.at_least("throughput with spin on against off", report.figures["spin on"] / report.figures["spin off"], 0.97)
    return report


def polyloop_cores() -> int:
    """Cores that this process may use."""
    import os

    return os.process_cpu_count() or 1


async def _nap(stop: threading.Event) -> None:
    """Fall asleep a thousand times a second: each time a chance to spin for nothing."""
    while not stop.is_set():
        await asyncio.sleep(0.001)


def _compute(threads: int, duration: float) -> int:
    """Count steps of allocating work on ``threads`` threads for ``duration`` seconds."""
    totals = [0] * threads
    end = time.monotonic() + duration

    def work(index: int) -> None:
        steps = 0
        while time.monotonic() < end:
            for _ in range(20):
                sum([number * number for number in range(100)])
            steps += 20
        totals[index] = steps

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(totals)

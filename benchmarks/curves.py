"""Cost curves: does a task, a post or a loop cost the same when there are many?"""

import subprocess
import sys
import time
from functools import partial

import polyloop
from benchmarks._measure import Report, medians
from benchmarks.posts import _Counter

TASK_COUNTS = (1_000, 10_000, 100_000, 1_000_000)
LOOP_COUNTS = (1, 2, 4, 8, 16, 32, 64)
POSTS = 64_000
BURST = 1000


async def _noop() -> None:
    return None


async def _spawn(count: int) -> float:
    began = time.perf_counter()
    for _ in range(count // 1000):
        async with polyloop.TaskGroup() as group:
            for _ in range(1000):
                group.create_task(_noop())
    return (time.perf_counter() - began) / count * 1e6


async def _spawn_at_once(count: int) -> float:
    began = time.perf_counter()
    async with polyloop.TaskGroup() as group:
        for _ in range(count):
            group.create_task(_noop())
    return (time.perf_counter() - began) / count * 1e6


def tasks(rounds: int) -> Report:
    """Microseconds a task, for 10^3 to 10^6 tasks one group after the other, and all in one group."""
    report = Report("cost of a task, on 2 loops", "µs each")
    steady = {
        f"{count:,} tasks, 1000 at once": (lambda count=count: polyloop.run(_spawn(count), loops=2))
        for count in TASK_COUNTS
    }
    at_once = {
        f"{count:,} tasks, all at once": (lambda count=count: polyloop.run(_spawn_at_once(count), loops=2))
        for count in TASK_COUNTS
    }
    for rivals in (steady, at_once):
        figures = medians(rivals, min(rounds, 3))
        report.figures |= figures
    values = [report.figures[name] for name in steady]
    report.at_most("1000 at once: dearest against cheapest", max(values) / min(values), 1.2)
    values = [report.figures[name] for name in at_once]
    report.at_most("all at once: dearest against cheapest", max(values) / min(values), 1.2)
    return report


def posts(rounds: int) -> Report:
    """Microseconds a post, from one thread to 1 to 64 loops in turn, a burst of 1000 to each.

    One post to each loop in turn would measure something else: a loop that sleeps has to be woken, by a system call,
    for each post that finds it asleep.
    """
    report = Report("cost of a post, by number of loops", "µs each")

    def measure(loops: int) -> float:
        with polyloop.Runtime(loops=loops) as runtime:
            counters = [_Counter(POSTS // loops) for _ in runtime.workers]
            targets = [(worker.post, counter.hit) for worker, counter in zip(runtime.workers, counters, strict=True)]
            began = time.perf_counter()
            for _ in range(POSTS // loops // BURST):
                for post, hit in targets:
                    for _ in range(BURST):
                        post(hit)
            sent = time.perf_counter() - began
            for counter in counters:
                counter.done.wait()
        return sent / POSTS * 1e6

    report.figures = medians({f"{loops} loops": partial(measure, loops) for loops in LOOP_COUNTS}, min(rounds, 5))
    values = list(report.figures.values())
    report.at_most("dearest against cheapest", max(values) / min(values), 1.2)
    return report


_LOOPS = 32

#: Runs in a process of its own: memory that an earlier runtime has given back would be used again, and not be seen.
_MEMORY = f"""
import threading, polyloop
from benchmarks._measure import rss_bytes
with polyloop.Runtime(loops=1):
    pass
before = rss_bytes()
if WHAT == "loop":
    with polyloop.Runtime(loops={_LOOPS}):
        after = rss_bytes()
else:
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range({_LOOPS})]
    for thread in threads: thread.start()
    after = rss_bytes()
    stop.set()
print((after - before) / {_LOOPS} / 2**20)
"""


def memory(rounds: int) -> Report:
    """Resident memory of an idle loop, MiB, and of a plain thread beside it."""

    def measure(what: str) -> float:
        program = f"WHAT = {what!r}\n{_MEMORY}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return float(done.stdout)

    report = Report("memory of an idle loop", "MiB")
    report.figures = medians({"loop": lambda: measure("loop"), "plain thread": lambda: measure("thread")}, rounds)
    report.at_most("MiB for each idle loop", report.figures["loop"], 2)
    return report

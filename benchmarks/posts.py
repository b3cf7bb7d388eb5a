"""One-way posts: how many callables a second one thread can hand to a running loop.

The physical limit is an append to a deque and a call, about 0.1 us; ``call_soon_threadsafe`` makes a handle, copies a
context and writes to the self-pipe for each.
"""

import asyncio
import threading
from collections.abc import Callable

import polyloop
from benchmarks._measure import Report, medians, seconds
from polyloop._core._worker import Worker

COUNT = 100_000


class _Counter:
    """Counts calls on the loop and says when all have come."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.done = threading.Event()

    def hit(self) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()


def _stream(send: Callable[[Callable[[], None]], object], count: int) -> float:
    counter = _Counter(count)
    hit = counter.hit

    def work() -> None:
        for _ in range(count):
            send(hit)
        counter.done.wait()

    return seconds(work) / count * 1e6


def run(rounds: int) -> Report:
    """From a plain thread into one busy loop, microseconds a post."""
    report = Report("one-way post from a thread to a loop", "µs each")
    with polyloop.Runtime(loops=1) as runtime, _StdlibLoop() as loop:
        worker: Worker = runtime.workers[0]
        report.figures = medians(
            {
                "polyloop post": lambda: _stream(worker.post, COUNT),
                "asyncio call_soon_threadsafe": lambda: _stream(loop.call_soon_threadsafe, COUNT),
            },
            rounds,
        )
    rate = report.figures["asyncio call_soon_threadsafe"] / report.figures["polyloop post"]
    report.at_least("rate against call_soon_threadsafe", rate, 8)
    return report


class _StdlibLoop:
    """An asyncio loop in a thread."""

    def __enter__(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self._loop

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

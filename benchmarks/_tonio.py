"""tonio's side of the benchmarks of tasks, as its documentation spells it for ``async`` and ``await``.

A process has one runtime of tonio's, so each measurement has a process of its own: ``python -m benchmarks._tonio WHAT
THREADS NUMBER...`` prints what ``MEASUREMENTS[WHAT]`` returns for these numbers, after a run with fewer.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import repeat
from typing import Any

from benchmarks._measure import measured_alone, peak_bytes, rss_bytes
from benchmarks._tailed import PARTS, sizes
from benchmarks.offload import compute

#: Seconds after which a process of tonio's is taken for one that hangs, and started once more.
HANGS = 40.0


def is_missing() -> bool:
    """Whether it is not installed."""
    return importlib.util.find_spec("tonio") is None


def measured(what: str, threads: int, *numbers: int) -> list[float]:
    """What a new process with so many threads has measured."""
    run = partial(measured_alone, "benchmarks._tonio", what, threads, *numbers, timeout=HANGS)
    try:
        return run()
    except subprocess.TimeoutExpired:  # seen twice: few tasks that give way, on two threads
        print(f"tonio: {what!r} on {threads} threads hung for {HANGS} s; once more", file=sys.stderr)
        return run()


async def _noop() -> None:
    return None


async def _spawn(batches: int, tasks: int) -> list[float]:
    """Microseconds a task that is spawned and joined."""
    import tonio.colored as tonio

    began = time.perf_counter()
    for _ in range(batches):
        await tonio.spawn(*[_noop() for _ in range(tasks)])
    return [(time.perf_counter() - began) / (batches * tasks) * 1e6]


async def _spawn_in_scope(batches: int, tasks: int) -> list[float]:
    """The same in a scope, which can cancel them."""
    import tonio.colored as tonio

    began = time.perf_counter()
    for _ in range(batches):
        async with tonio.scope() as scope:
            for _ in range(tasks):
                scope.spawn(_noop())
    return [(time.perf_counter() - began) / (batches * tasks) * 1e6]


async def _step(steps: int, tasks: int) -> list[float]:
    """Microseconds a step."""
    import tonio.colored as tonio

    async def stepper() -> None:
        for _ in range(steps):
            await tonio.yield_now()

    began = time.perf_counter()
    await tonio.spawn(*[stepper() for _ in range(tasks)])
    return [(time.perf_counter() - began) / (steps * tasks) * 1e6]


async def _ping_pong(laps: int) -> list[float]:
    """Microseconds a lap through two channels."""
    import tonio.colored as tonio
    from tonio.colored.sync import channel

    there, at_pong = channel.unbounded()
    back, at_ping = channel.unbounded()

    async def ping() -> None:
        for lap in range(laps):
            there.send(lap)
            await at_ping.receive()

    async def pong() -> None:
        for _ in range(laps):
            back.send(await at_pong.receive())

    began = time.perf_counter()
    await tonio.spawn(ping(), pong())
    return [(time.perf_counter() - began) / laps * 1e6]


async def _tailed(count: int, per_ms: int) -> list[float]:
    """Milliseconds of all tasks."""
    import tonio.colored as tonio

    async def work(size: int) -> None:
        for _ in repeat(None, PARTS):  # no range: see ``_tailed``
            compute(size)
            await tonio.yield_now()

    all_sizes = sizes(count, per_ms)
    began = time.perf_counter()
    await tonio.spawn(*[work(size) for size in all_sizes])
    return [(time.perf_counter() - began) * 1e3]


async def _alive(count: int) -> list[float]:
    """Seconds of all tasks, and bytes of each."""
    import tonio.colored as tonio

    event, there = tonio.Event(), tonio.Event()
    missing = [None] * count

    async def park() -> None:
        missing.pop()
        if not missing:
            there.set()
        await event.wait()

    before, began = rss_bytes(), time.perf_counter()
    joining = tonio.spawn.without_results(*[park() for _ in range(count)])
    await there.wait()
    event.set()
    await joining
    return [time.perf_counter() - began, (peak_bytes() - before) / count]


type Measurement = Callable[..., Coroutine[Any, Any, list[float]]]

#: Each with the numbers of its warm-up.
MEASUREMENTS: dict[str, tuple[Measurement, list[int]]] = {
    "spawn": (_spawn, [2, 1000]),
    "spawn in a scope": (_spawn_in_scope, [2, 1000]),
    "step": (_step, [1000, 10]),
    "ping-pong": (_ping_pong, [1000]),
    "tailed": (_tailed, [10, 1]),
    "alive": (_alive, [10]),
}


def _main(what: str, threads: int, numbers: list[int]) -> None:
    import tonio.colored as tonio

    measure, few = MEASUREMENTS[what]
    runtime = tonio.runtime(threads=threads)
    runtime.run_until_complete(measure(*few))
    print(*runtime.run_until_complete(measure(*numbers)))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3:]])

"""The physical limit of waking a sleeper: one byte to and fro between two threads, over two pipes."""

import os
import time

from benchmarks._places import together


def can_be_apart() -> bool:
    """Whether this system can keep two threads on two cores."""
    return hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1


def laps(count: int, *, apart: bool = False) -> list[float]:
    """Microseconds of each lap: two hops through the kernel.

    Args:
        apart: Keep the two threads on two cores. Left alone, the kernel may put two that take turns on one, where a hop
            costs a switch of threads and no wake-up of a core: 1 µs and not 20 µs.
    """
    there_r, there_w = os.pipe()
    back_r, back_w = os.pipe()
    took: list[float] = []
    cores = sorted(os.sched_getaffinity(0)) if apart else []

    def ping() -> None:
        if apart:
            os.sched_setaffinity(0, {cores[0]})  # 0 is the calling thread
        clock = time.perf_counter
        for _ in range(count):
            began = clock()
            os.write(there_w, b"x")
            os.read(back_r, 1)
            took.append((clock() - began) * 1e6)
        os.write(there_w, b"q")

    def echo() -> None:
        if apart:
            os.sched_setaffinity(0, {cores[1]})
        while os.read(there_r, 1) == b"x":
            os.write(back_w, b"x")

    together([ping, echo])
    for fd in (there_r, there_w, back_r, back_w):
        os.close(fd)
    return took

"""Where contenders run: in threads of their own, each with or without a loop, from a common start.

Every loop is one of ``asyncio.run``, whoever is measured, or else one of a ``polyloop.Runtime``. Threads and loops are
made before the clock starts and taken down after it has stopped.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polyloop

#: What a thread does.
type ThreadJob = Callable[[], object]

#: What a task does: called on its loop before the start; the coroutine runs after it.
type LoopJob = Callable[[], Coroutine[Any, Any, object]]


class _Gate:
    """Lets all start at once and end at once, and says how long they took between the first start and the last end."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties)
        self._began: list[float] = []
        self._ended: list[float] = []

    def start(self) -> None:
        self._barrier.wait()
        self._began.append(time.perf_counter())

    def stop(self) -> None:
        """Take the time, and wait for the others: a loop that ended would be missed by those who still wake it."""
        self._ended.append(time.perf_counter())
        self._barrier.wait()

    def seconds(self) -> float:
        return max(self._ended) - min(self._began)


def together(
    threads: Sequence[ThreadJob] = (),
    loops: Sequence[Sequence[LoopJob]] = (),
    *,
    runtime: bool = False,
    close: Callable[[], Awaitable[object]] | None = None,
) -> float:
    """Run each of ``threads`` in a thread, the tasks of each of ``loops`` on a loop; seconds that all took together.

    Args:
        runtime: Take the loops of a ``polyloop.Runtime``.
        close: Awaited on the first loop after the clock has stopped.
    """
    gate = _Gate(len(threads) + len(loops))
    groups = [_group(jobs, gate, None if index else close) for index, jobs in enumerate(loops)]
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(threads) + len(loops)))
        results: list[Callable[[], object]] = []
        if runtime and loops:
            ours = stack.enter_context(polyloop.Runtime(loops=len(loops)))
            results += [ours.spawn(group, on=on).result for group, on in zip(groups, ours.workers, strict=True)]
        else:
            results += [pool.submit(asyncio.run, group()).result for group in groups]
        results += [pool.submit(_thread, job, gate).result for job in threads]
        for result in results:
            result()
    return gate.seconds()


def _thread(job: ThreadJob, gate: _Gate) -> None:
    gate.start()
    job()
    gate.stop()


def _group(jobs: Sequence[LoopJob], gate: _Gate, close: Callable[[], Awaitable[object]] | None) -> LoopJob:
    async def group() -> None:
        ready = [job() for job in jobs]
        gate.start()
        await asyncio.gather(*ready)
        gate.stop()
        if close is not None:
            await close()

    return group

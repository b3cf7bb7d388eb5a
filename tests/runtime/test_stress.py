"""Seeded random load on four loops: everything at once, every handle counted, nothing left.

``POLYLOOP_STRESS_SECONDS`` sets the length, ``POLYLOOP_SEED`` repeats a run's choices (threads still interleave
as they like). A round that does not end in time prints the seed and the stack of every thread.
"""

import asyncio
import contextlib
import faulthandler
import gc
import importlib
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import polyloop
from polyloop import CapacityLimiter, Runtime, RuntimeClosedError, TaskGroup, TaskHandle

#: Seconds after which a round counts as hanging.
ROUND_TIMEOUT = 60.0

#: What the process may grow by from the first third of a run to its end: objects that the collector knows, and blocks
#: of any size that the interpreter has allocated. Both guesses, a small part of what one round makes.
OBJECT_GROWTH = 5_000
BLOCK_GROWTH = 20_000

#: Resident memory grows by itself where threads come and go by the thousand, since each leaves its own heap in pieces:
#: 35 MiB in 600 rounds on 3.13t, with the number of blocks unchanged. The bound is for what is not counted in blocks.
RSS_GROWTH_BYTES = 192 * 2**20

#: Rounds that warm up caches and arenas before growth is measured.
WARM_UP = 10


#: Loops that polyloop did not make, for some of the rounds.
LOOP_FACTORIES: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.SelectorEventLoop]
with contextlib.suppress(ImportError):
    LOOP_FACTORIES.append(importlib.import_module("uvloop").new_event_loop)


class Expected(Exception):
    """Raised by tasks on purpose."""


@dataclass
class Load:
    """One round: one runtime, tasks that spawn tasks, plain threads that look on."""

    seed: int
    runtime: Runtime
    limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(3))
    handles: list[TaskHandle[Any]] = field(default_factory=list)  # appended by any thread
    begun: list[int] = field(default_factory=list)  # appended by any thread: coroutines whose first step ran
    left: list[int] = field(default_factory=list)  # appended by any thread: coroutines that were left

    def spawn(self, rng: random.Random, depth: int) -> TaskHandle[int]:
        """Spawn a random task somewhere and keep its handle."""
        workers = self.runtime.workers
        places: list[dict[str, Any]] = [
            {},
            {},
            {"on": "round_robin"},
            {"on": "here"},
            {"on": rng.choice(workers)},
            {"key": rng.randrange(8)},
        ]
        handle = self.runtime.spawn(self.task, rng.getrandbits(32), depth, **rng.choice(places))
        self.handles.append(handle)
        return handle

    async def task(self, seed: int, depth: int) -> int:
        """One task: counted when it begins and when it ends, in whatever way."""
        self.begun.append(1)
        try:
            rng = random.Random(seed)
            await rng.choice(self.actions(depth))(rng, depth - 1)
            return depth
        finally:
            self.left.append(1)

    def actions(self, depth: int) -> list[Callable[[random.Random, int], Any]]:
        """What a task of this depth may do."""
        leaves: list[Callable[[random.Random, int], Any]] = [
            *(self.nothing, self.sleep, self.yields, self.fail, self.burn, self.thread, self.limited, self.timeout)
        ]
        if depth > 0:
            leaves += [self.await_other, self.group, self.cancel, self.gather, self.orphan]
        return leaves

    # Leaves

    async def nothing(self, rng: random.Random, depth: int) -> None:
        """Ends in its first step."""

    async def sleep(self, rng: random.Random, depth: int) -> None:
        """Waits for a timer."""
        await asyncio.sleep(rng.random() * 0.005)

    async def yields(self, rng: random.Random, depth: int) -> None:
        """Takes several steps."""
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)

    async def fail(self, rng: random.Random, depth: int) -> None:
        """Raises, in its first step or later."""
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        raise Expected

    async def burn(self, rng: random.Random, depth: int) -> None:
        """Holds its loop for a while, so that others steal what waits there."""
        until = time.perf_counter() + rng.random() * 0.002
        while time.perf_counter() < until:
            pass

    async def thread(self, rng: random.Random, depth: int) -> None:
        """Offloads, and may be cancelled meanwhile."""
        abandon = rng.random() < 0.3
        await polyloop.to_thread(time.sleep, rng.random() * 0.002, on_cancel="abandon" if abandon else "wait")

    async def limited(self, rng: random.Random, depth: int) -> None:
        """Offloads under a limiter that all loops share."""
        await polyloop.to_thread(time.sleep, rng.random() * 0.001, limiter=self.limiter)

    async def timeout(self, rng: random.Random, depth: int) -> None:
        """Cuts a wait short, at times just when it ends by itself."""
        delay = rng.random() * 0.003
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await asyncio.sleep(delay + rng.choice([-0.001, 0, 0.001]))

    # Branches

    async def await_other(self, rng: random.Random, depth: int) -> None:
        """Awaits a task wherever it runs; with several waiters at times, or with a timeout that cancels it."""
        handle = self.spawn(rng, depth)
        if rng.random() < 0.3:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rng.random() * 0.005):
                    await handle
        elif rng.random() < 0.3:
            second = self.runtime.spawn(self.follow, handle)
            self.handles.append(second)
            await asyncio.gather(self.follow(handle), self.follow(second))
        else:
            await handle

    async def follow(self, handle: TaskHandle[Any]) -> None:
        """Waits for a handle's end, whatever it is."""
        with contextlib.suppress(Expected, RuntimeClosedError, BaseExceptionGroup):
            await asyncio.shield(asyncio.wait_for(handle, None))

    async def group(self, rng: random.Random, depth: int) -> None:
        """A TaskGroup over all loops, whose children open groups of their own."""
        try:
            async with TaskGroup() as group:
                for _ in range(rng.randrange(1, 5)):
                    handle = group.create_task(self.task(rng.getrandbits(32), depth))
                    self.handles.append(handle)
                    if rng.random() < 0.1:
                        handle.cancel()
                if rng.random() < 0.1:
                    group.cancel()
        except* (Expected, RuntimeClosedError):
            pass

    async def cancel(self, rng: random.Random, depth: int) -> None:
        """Cancels a task before, during or after its life, once or twice."""
        handle = self.spawn(rng, depth)
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        handle.cancel("first")
        if rng.random() < 0.3:
            handle.cancel("second")
        with contextlib.suppress(asyncio.CancelledError):
            if rng.random() < 0.5:
                await asyncio.wait({asyncio.ensure_future(self.follow(handle))})

    async def gather(self, rng: random.Random, depth: int) -> None:
        """Gathers tasks of several loops."""
        children = [self.task(rng.getrandbits(32), depth) for _ in range(rng.randrange(1, 4))]
        await polyloop.gather(*children, return_exceptions=True)

    async def orphan(self, rng: random.Random, depth: int) -> None:
        """Spawns and looks away; the handle is still counted."""
        self.spawn(rng, depth)

    # The round

    def watch(self, seed: int) -> None:
        """A plain thread: waits for handles, cancels some, adds callbacks."""
        rng = random.Random(seed)
        while self.runtime._state == "running":
            if not self.handles:
                time.sleep(0.0005)
                continue
            handle = rng.choice(self.handles)
            choice = rng.random()
            if choice < 0.1:
                handle.cancel()
            elif choice < 0.2:
                handle.add_done_callback(len_of)
                handle.remove_done_callback(len_of)
            else:
                with contextlib.suppress(BaseException):
                    handle.result(timeout=rng.random() * 0.003)


def len_of(handle: TaskHandle[Any]) -> None:
    """A done callback that does nothing."""


def one_round(seed: int, seconds: float) -> Counter[str]:
    """Run a runtime for about ``seconds``, close it at some moment, and count its handles."""
    rng = random.Random(seed)
    loops = 4
    runtime = Runtime(
        loops=loops,
        steal=rng.random() < 0.8,
        placement=rng.choice(["least_loaded", "round_robin"]),
        spin=rng.choice([None, False, True]),
        loop_factory=rng.choice([None, None, *LOOP_FACTORIES]),
    ).start()
    load = Load(seed, runtime)
    watchers = [
        threading.Thread(target=load.watch, args=(rng.getrandbits(32),), name=f"watcher-{index}") for index in range(2)
    ]
    for watcher in watchers:
        watcher.start()
    until = time.perf_counter() + seconds * rng.random()
    while time.perf_counter() < until:
        batch = [load.spawn(rng, 3) for _ in range(rng.randrange(1, 40))]
        if rng.random() < 0.5:
            with contextlib.suppress(BaseException):
                rng.choice(batch).result(timeout=0.01)
    close_somehow(runtime, rng)
    for watcher in watchers:
        watcher.join(ROUND_TIMEOUT)
        assert not watcher.is_alive(), f"{watcher.name} hangs"
    return count(load)


def close_somehow(runtime: Runtime, rng: random.Random) -> None:
    """Close from one thread or from several at once, or from a loop of somebody else."""
    how = rng.randrange(3)
    if how == 0:
        reports = [runtime.close()]
    elif how == 1:
        reports = []
        closers = [threading.Thread(target=lambda: reports.append(runtime.close())) for _ in range(3)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(ROUND_TIMEOUT)
        assert len(reports) == 3
    else:
        reports = [asyncio.run(runtime.aclose())]
    # Calls that were abandoned a moment ago may still nap.
    stuck = [stuck for report in reports for stuck in report.stuck if ", abandoned in " not in stuck.name]
    assert not stuck, str(reports[0])


def count(load: Load) -> Counter[str]:
    """How the handles ended; none may be pending, and every coroutine that began must have been left."""
    ends: Counter[str] = Counter()
    for handle in load.handles:
        assert handle.done(), f"{handle!r} is pending"
        if handle.cancelled():
            ends["cancelled"] += 1
        else:
            exc = handle.exception()
            known = exc is None or isinstance(exc, (Expected, RuntimeClosedError, BaseExceptionGroup))
            assert known, f"{handle!r} failed: {exc!r}"
            ends["returned" if exc is None else type(exc).__name__] += 1
    assert len(load.begun) == len(load.left)
    for worker in load.runtime.workers:
        assert not worker.live
        assert not worker.unstarted
        ends["stolen"] += worker.stolen
    assert load.limiter.borrowed_tokens == 0
    return ends


@dataclass(frozen=True)
class Size:
    """What the process uses."""

    rss: int
    objects: int
    blocks: int
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> "Size":
        """Measure, after a collection."""
        gc.collect()
        rss = descriptors = 0
        if sys.platform == "linux":
            rss = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
            descriptors = len(os.listdir("/proc/self/fd"))
        threads = sum(not thread.name.startswith("polyloop-thread-") for thread in threading.enumerate())
        return cls(rss, len(gc.get_objects()), sys.getallocatedblocks(), threads, descriptors)


def run_rounds(seconds: float, round_seconds: float, seed: int) -> tuple[Counter[str], int, Size, Size]:
    """Rounds until ``seconds`` are over; the sizes after the warm-up and at the end."""
    ends: Counter[str] = Counter()
    until = time.monotonic() + seconds
    rounds = 0
    first: Size | None = None
    last = Size.now()
    while time.monotonic() < until or rounds <= WARM_UP:
        round_seed = seed + rounds
        faulthandler.dump_traceback_later(ROUND_TIMEOUT)
        try:
            ends += one_round(round_seed, round_seconds)
        except BaseException:
            print(f"\nfailed: POLYLOOP_SEED={round_seed}", file=sys.stderr)
            faulthandler.dump_traceback(all_threads=True)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
        rounds += 1
        if rounds >= WARM_UP:
            last = Size.now()
            if first is None or (last.rss > first.rss and time.monotonic() < until - seconds * 2 / 3):
                first = last  # the largest of the first third: arenas grow for a while
    assert first is not None
    return ends, rounds, first, last


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The exceptions that nobody looks at are meant; kept log records would count as growth."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(seed: int, seconds: float, round_seconds: float) -> None:
    """Run for ``seconds`` and compare the process with itself."""
    ends, rounds, first, last = run_rounds(seconds, round_seconds, seed)
    print(f"{rounds} rounds, {sum(ends.values()) - ends['stolen']} handles: {dict(ends)}\n{first}\n{last}")
    assert last.threads <= first.threads
    assert last.descriptors <= first.descriptors
    assert last.objects - first.objects < OBJECT_GROWTH
    assert last.blocks - first.blocks < BLOCK_GROWTH
    assert last.rss - first.rss < RSS_GROWTH_BYTES
    for end in ("returned", "cancelled", "Expected", "stolen"):
        assert ends[end] > 0, f"nothing ended as {end}: the load is not what it was meant to be"


@pytest.mark.stress
def test_stress(seed: int, seconds: float) -> None:
    """Spawn, cancel, fail, time out, steal, offload, nest and close at random; count everything."""
    check(seed, seconds, 2.0)


def test_stress_in_small(seed: int) -> None:
    """The same for two seconds."""
    check(seed, 2.0, 0.2)

"""Random races for locks, permits, notifications and events, on loops and threads, with every permit counted.

What it relies on and cannot prove by steps: that the operations of a deque are atomic and ordered on this build and
this machine. A lost wake-up or permit shows as a round that does not end or does not add up.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest

from polyloop import BoundedSemaphore, Condition, Event, Lock, RLock, Runtime, Semaphore, TaskHandle
from polyloop.testing import TestThread

PATIENCE = 60.0
LOOPS = 4

type Side = TaskHandle[int] | TestThread[int]
type Gate = Lock | RLock | Semaphore

GATES: dict[str, Callable[[int], Gate]] = {
    "lock": lambda most: Lock(),
    "rlock": lambda most: RLock(),
    "semaphore": Semaphore,
    "bounded semaphore": BoundedSemaphore,
}


def tiny(rng: random.Random) -> float | None:
    """A time to wait at most: usually none, else too short to be sure of anything."""
    return rng.choice((None, None, None, rng.random() * 0.001))


class Room:
    """How many are inside, counted without a lock of its own."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._inside: deque[None] = deque()

    def visit(self) -> None:
        self._inside.append(None)
        assert len(self._inside) <= self.most
        self._inside.pop()


async def enter(gate: Gate, room: Room, times: int, rng: random.Random) -> int:
    entered = 0
    for _ in range(times):
        try:
            async with asyncio.timeout(tiny(rng)), gate:
                room.visit()
                entered += 1
                if rng.random() < 0.1:
                    await asyncio.sleep(0)
        except TimeoutError:
            pass
    return entered


def enter_on_thread(gate: Gate, room: Room, times: int, rng: random.Random) -> int:
    entered = 0
    face: Any = gate.sync
    for _ in range(times):
        if face.acquire(timeout=tiny(rng)):
            room.visit()
            entered += 1
            face.release()
    return entered


def fight(runtime: Runtime, rng: random.Random, times: int) -> Counter[str]:
    """One lock or semaphore, and many who want it; some are cancelled."""
    kind = rng.choice(list(GATES))
    most = 1 if "lock" in kind else rng.randrange(1, 4)
    gate = GATES[kind](most)
    room = Room(most)
    sides: list[Side] = [
        runtime.spawn(enter, gate, room, times, random.Random(rng.random()), on=rng.choice(runtime.workers))
        for _ in range(rng.randrange(2, 9))
    ]
    sides += [
        TestThread(enter_on_thread, gate, room, times, random.Random(rng.random()), timeout=PATIENCE)
        for _ in range(rng.randrange(3))
    ]
    for _ in range(rng.randrange(4)):
        doomed = rng.choice(sides)
        if isinstance(doomed, TaskHandle):
            doomed.cancel()
    entered = sum(results(sides))
    assert not gate._permits.line
    assert gate._permits.count == most, f"{kind}: {gate._permits.count} permits of {most}"
    return Counter({kind: 1, "entries": entered})


class Tokens:
    """What a condition guards."""

    def __init__(self, rng: random.Random) -> None:
        self.condition = Condition(rng.choice((Lock, RLock))())
        self.count = 0
        self.closed = False

    async def add(self, times: int) -> int:
        for _ in range(times):
            async with self.condition:
                self.count += 1
                self.condition.notify()
        return times

    async def take(self, rng: random.Random) -> int:
        taken = 0
        while True:
            try:
                async with asyncio.timeout(tiny(rng)), self.condition:
                    while not self.count and not self.closed:
                        await self.condition.wait()
                    if not self.count:
                        return taken
                    self.count -= 1
                    taken += 1
            except TimeoutError:
                pass

    def take_on_thread(self, rng: random.Random) -> int:
        taken = 0
        face = self.condition.sync
        while True:
            with face:
                if not self.count and not self.closed:
                    face.wait(tiny(rng))
                if self.count:
                    self.count -= 1
                    taken += 1
                elif self.closed:
                    return taken

    def close(self) -> None:
        with self.condition.sync:
            self.closed = True
            self.condition.notify_all()


def pass_tokens(runtime: Runtime, rng: random.Random, times: int) -> Counter[str]:
    """Tokens are added and taken under one condition; none is left over, and nobody waits for ever."""
    tokens = Tokens(rng)
    takers: list[Side] = [
        runtime.spawn(tokens.take, random.Random(rng.random()), on=rng.choice(runtime.workers))
        for _ in range(rng.randrange(1, 5))
    ]
    takers += [
        TestThread(tokens.take_on_thread, random.Random(rng.random()), timeout=PATIENCE)
        for _ in range(rng.randrange(3))
    ]
    adders: list[Side] = [runtime.spawn(tokens.add, times) for _ in range(rng.randrange(1, 4))]
    added = sum(results(adders))
    tokens.close()
    taken = sum(results(takers))
    assert (taken, tokens.count) == (added, 0)
    assert not tokens.condition._line
    return Counter({"condition": 1, "tokens": taken})


def flash(runtime: Runtime, rng: random.Random, times: int) -> Counter[str]:
    """An event that is set for a moment wakes all who waited; the last ``set`` wakes the rest."""
    event, done = Event(), Event()

    async def wait(own: random.Random) -> int:
        woken = 0
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tiny(own)):
                    woken += await event.wait()
            await asyncio.sleep(0)
        return woken

    def wait_on_thread(own: random.Random) -> int:
        woken = 0
        while not done.is_set():
            woken += event.sync.wait(tiny(own))
        return woken

    sides: list[Side] = [
        runtime.spawn(wait, random.Random(rng.random()), on=rng.choice(runtime.workers))
        for _ in range(rng.randrange(1, 6))
    ]
    sides += [
        TestThread(wait_on_thread, random.Random(rng.random()), timeout=PATIENCE) for _ in range(rng.randrange(3))
    ]
    for _ in range(times):
        event.set()
        event.clear()
    done.set()
    event.set()
    woken = sum(results(sides))
    assert not event._line
    return Counter({"event": 1, "wake-ups": woken})


def results(sides: list[Side]) -> list[int]:
    """What the sides have counted; of a cancelled one, nothing."""
    counts: list[int] = []
    for side in sides:
        with contextlib.suppress(asyncio.CancelledError):
            counts.append(side.result() if isinstance(side, TestThread) else side.result(PATIENCE))
    return counts


def run(rng: random.Random, seconds: float, times: int) -> Counter[str]:
    """Races for ``seconds``."""
    outcomes: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    with Runtime(loops=LOOPS) as runtime:
        while time.monotonic() < deadline:
            outcomes += rng.choice((fight, fight, pass_tokens, flash))(runtime, rng, times)
    print(dict(outcomes))
    return outcomes


@pytest.mark.stress
def test_stress(rng: random.Random, seconds: float) -> None:
    """All primitives, both faces, for as long as one likes."""
    outcomes = run(rng, seconds, 500)
    assert all(outcomes[what] > 0 for what in ("entries", "tokens"))


def test_stress_in_small(rng: random.Random) -> None:
    """The same for a second."""
    assert run(rng, 1.0, 50)["entries"] > 0

"""Seeded random load of tasks that migrate: they park on everything there is, and are cancelled and cut off meanwhile.

Counted are the steps of each task, of which there is one at a time, every item of a queue, which is got once, and every
handle, which is done in the end. Half of the rounds come to their end by themselves: a wake-up that was lost shows as a
task that does not end. The others are closed in the middle.
"""

import asyncio
import contextlib
import contextvars
import faulthandler
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

import polyloop
from polyloop import Event, Lock, Queue, Runtime, RuntimeClosedError, Semaphore, TaskGroup, TaskHandle
from polyloop.testing import TestThread

#: Seconds after which a round counts as hanging.
ROUND_TIMEOUT = 60.0

MINE = contextvars.ContextVar[object]("MINE")

type Action = Callable[[random.Random, int], Coroutine[Any, Any, None]]


class Guarded(Coroutine[Any, Any, None]):
    """A coroutine that notes it when two threads step it at once."""

    def __init__(self, coro: Coroutine[Any, Any, None], clashes: list[str]) -> None:
        self._coro = coro
        self._clashes = clashes
        self._free = deque((None,))  # popped by whoever steps it

    def _step[*Ts](self, fn: Callable[[*Ts], Any], *args: *Ts) -> Any:
        try:
            self._free.pop()
        except IndexError:
            self._clashes.append(f"{self._coro!r} is stepped by two threads")
            raise
        try:
            return fn(*args)
        finally:
            self._free.append(None)

    def send(self, value: Any) -> Any:
        """One step."""
        return self._step(self._coro.send, value)

    def throw(self, exc: Any, *rest: Any) -> Any:
        """Likewise."""
        return self._step(self._coro.throw, exc, *rest)

    def close(self) -> None:
        """Likewise."""
        self._step(self._coro.close)

    def __await__(self) -> Generator[Any, Any]:
        return self._coro.__await__()


class Load:
    """One round: a runtime, and tasks that share a few things."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.queue = Queue[int](2)
        self.lock = Lock()
        self.pair = Semaphore(2)
        self.gates = [Event() for _ in range(4)]
        self.draining = False  # nobody opens a gate again, or begins more
        # Appended by any thread:
        self.handles: list[TaskHandle[None]] = []
        self.put: list[int] = []
        self.got: list[int] = []
        self.begun: list[None] = []
        self.left: list[None] = []
        self.clashes: list[str] = []
        self.moved: list[None] = []
        self._numbers = iter(range(sys.maxsize)).__next__  # of each item; one C call
        self._holders: list[None] = []
        self._in_pair: list[None] = []

    def start(self, rng: random.Random, depth: int) -> TaskHandle[None]:
        """Start a task, and keep its handle."""
        coro = self.coro(rng, depth)
        handle = self.runtime.submit(coro, migratable=True)
        self.handles.append(handle)
        return handle

    def coro(self, rng: random.Random, depth: int) -> Coroutine[Any, Any, None]:
        """A task to be: guarded, or as it is, which is what drivers step; Python itself complains then of a clash."""
        coro = self.task(random.Random(rng.getrandbits(32)), depth)
        return Guarded(coro, self.clashes) if rng.random() < 0.5 else coro

    async def task(self, rng: random.Random, depth: int) -> None:
        """Does a few things, and notes that it was left; of a cancellation it may take its time to make something."""
        self.begun.append(None)
        me = asyncio.current_task()
        MINE.set(me)
        try:
            try:
                for _ in range(rng.randrange(1, 5)):
                    await self.one(rng, depth)
            except asyncio.CancelledError:
                if rng.random() < 0.5:
                    await self.future(rng, 0)
                    async with self.lock:
                        pass
                raise
        finally:
            self.left.append(None)
            if asyncio.current_task() is not None:  # else it was closed by somebody else
                self.expect(asyncio.current_task() is me, "the running task")

    async def one(self, rng: random.Random, depth: int) -> None:
        """Do one thing; whatever it is, the task is itself afterwards."""
        me, where = asyncio.current_task(), asyncio.get_running_loop()
        await rng.choice(self.actions(depth))(rng, depth)
        self.expect(asyncio.current_task() is me is MINE.get(), "the running task")
        if asyncio.get_running_loop() is not where:
            self.moved.append(None)

    def expect(self, condition: object, what: str) -> None:
        """Note that something does not hold: an exception would end in a handle."""
        if not condition:
            self.clashes.append(what)

    def actions(self, depth: int) -> list[Action]:
        """What a task of this depth may do."""
        leaves: list[Action] = [
            *(self.give, self.take, self.hurried, self.locked, self.paired, self.gate, self.opener),
            *(self.nap, self.yields, self.future, self.nap_of_asyncio, self.pinned, self.burn),
        ]
        return leaves if depth <= 0 else [*leaves, self.child, self.group, self.doomed]

    async def give(self, rng: random.Random, depth: int) -> None:
        """Puts an item: in the queue once this returns, and else not."""
        item = self._numbers()
        await self.queue.put(item)
        self.put.append(item)

    async def take(self, rng: random.Random, depth: int) -> None:
        """Gets one, unless it is cancelled."""
        self.got.append(await self.queue.get())

    async def hurried(self, rng: random.Random, depth: int) -> None:
        """The same within a time that may end just then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.random() * 0.002):
                await self.take(rng, depth)

    async def locked(self, rng: random.Random, depth: int) -> None:
        """Holds the lock alone, on whatever loops."""
        async with self.lock:
            self._holders.append(None)
            self.expect(len(self._holders) == 1, "two tasks hold the lock")
            try:
                await self.yields(rng, depth)
            finally:
                self._holders.pop()

    async def paired(self, rng: random.Random, depth: int) -> None:
        """Is one of two at most."""
        async with self.pair:
            self._in_pair.append(None)
            self.expect(len(self._in_pair) <= 2, "three tasks hold one of two permits")
            try:
                await self.yields(rng, depth)
            finally:
                self._in_pair.pop()

    async def gate(self, rng: random.Random, depth: int) -> None:
        """Waits for an event."""
        await rng.choice(self.gates).wait()

    async def opener(self, rng: random.Random, depth: int) -> None:
        """Sets one, and makes others wait for it again."""
        gate = rng.choice(self.gates)
        gate.set()
        await self.yields(rng, depth)
        if not self.draining:
            gate.clear()

    async def nap(self, rng: random.Random, depth: int) -> None:
        """Sleeps on a timer, and may wake up elsewhere."""
        await polyloop.sleep(rng.random() * 0.002)

    async def nap_of_asyncio(self, rng: random.Random, depth: int) -> None:
        """Sleeps where it is."""
        await asyncio.sleep(rng.choice([0, rng.random() * 0.002]))

    async def yields(self, rng: random.Random, depth: int) -> None:
        """Lets others go first."""
        for _ in range(rng.randrange(4)):
            await polyloop.checkpoint()

    async def future(self, rng: random.Random, depth: int) -> None:
        """Awaits a future of its loop, which is done soon."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(_resolve, future)
        await future

    async def pinned(self, rng: random.Random, depth: int) -> None:
        """Stays where it is for a while."""
        async with polyloop.pinned():
            here = asyncio.get_running_loop()
            await rng.choice([self.nap, self.yields, self.future])(rng, depth)
            self.expect(asyncio.get_running_loop() is here, "a pinned task has moved")

    async def burn(self, rng: random.Random, depth: int) -> None:
        """Keeps its loop busy, so that others steal what waits there."""
        until = time.perf_counter() + rng.random() * 0.001
        while time.perf_counter() < until:
            pass

    async def child(self, rng: random.Random, depth: int) -> None:
        """Awaits another task."""
        if not self.draining:
            await self.start(rng, depth - 1)

    async def group(self, rng: random.Random, depth: int) -> None:
        """Has children, which migrate too."""
        async with TaskGroup(migratable=True) as group:
            for _ in range(rng.randrange(1, 4)):
                self.handles.append(group.create_task(self.coro(rng, depth - 1)))

    async def doomed(self, rng: random.Random, depth: int) -> None:
        """Cancels a task that it has started, once or twice."""
        if self.draining:
            return
        handle = self.start(rng, depth - 1)
        await self.yields(rng, depth)
        for _ in range(rng.randrange(1, 3)):
            handle.cancel()

    # The round, on plain threads

    def cancel_some(self, seed: int) -> None:
        """Cancel tasks while the round goes on, and wait for others."""
        rng = random.Random(seed)
        while not self.draining:
            recent = self.handles[-64:]
            for handle in rng.sample(recent, min(len(recent), rng.randrange(4))):
                for _ in range(rng.randrange(1, 3)):
                    handle.cancel()
            if self.handles:
                wait_for(rng.choice(self.handles), rng.random() * 0.003)

    def drain(self) -> None:
        """Let everybody come to an end: open what is shut, fill what is empty, empty what is full."""
        self.draining = True
        deadline = time.monotonic() + ROUND_TIMEOUT
        for handle in self.handles:  # grows meanwhile, at its end
            while not handle.done():
                for gate in self.gates:
                    gate.set()
                self.got.extend(self.queue.get_many_nowait(9))
                with contextlib.suppress(polyloop.QueueFull):
                    item = self._numbers()
                    self.queue.put_nowait(item)
                    self.put.append(item)
                wait_for(handle, 0.002)
                assert time.monotonic() < deadline, f"{handle!r} was forgotten"

    def count(self) -> Counter[str]:
        """How the handles ended, when the runtime is closed."""
        assert not self.clashes, self.clashes
        assert len(self.begun) == len(self.left)
        ends: Counter[str] = Counter()
        for handle in self.handles:
            assert handle.done(), f"{handle!r} is pending"
            if handle.cancelled():
                ends["cancelled"] += 1
                continue
            exc = handle.exception()
            assert exc is None or isinstance(exc, RuntimeClosedError), f"{handle!r} failed: {exc!r}"
            ends["returned" if exc is None else "refused"] += 1
        left = self.queue.get_many_nowait(9)
        assert sorted(self.put) == sorted([*self.got, *left])
        assert not self._holders
        assert not self._in_pair
        assert not self.lock.locked()
        ends["moved"] += len(self.moved)
        return ends


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def wait_for(handle: TaskHandle[None], seconds: float) -> None:
    """Wait for a handle for a moment."""
    with contextlib.suppress(TimeoutError, asyncio.CancelledError, RuntimeClosedError, ExceptionGroup):
        handle.result(seconds)


def one_round(rng: random.Random, seconds: float) -> Counter[str]:
    """A runtime of two to four loops that lives for about as long as asked, and then comes to an end in some way."""
    runtime = Runtime(loops=rng.randrange(2, 5), spin=rng.choice([None, False]), steal=rng.random() < 0.9).start()
    load = Load(runtime)
    try:
        cancellers = [TestThread(load.cancel_some, rng.getrandbits(32)) for _ in range(rng.randrange(3))]
        until = time.monotonic() + seconds * rng.random()
        while True:
            batch = [load.start(rng, 2) for _ in range(rng.randrange(1, 20))]
            wait_for(rng.choice(batch), rng.random() * 0.005)
            if time.monotonic() > until:
                break
        if rng.random() < 0.5:
            load.drain()
        load.draining = True
        for canceller in cancellers:
            canceller.result()
    finally:
        load.draining = True
        report = runtime.close()
    assert report.clean, str(report)
    return load.count()


def rounds(rng: random.Random, seconds: float) -> Counter[str]:
    """As many rounds as fit into the time."""
    ends: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        faulthandler.dump_traceback_later(ROUND_TIMEOUT * 1.5)
        try:
            ends += one_round(rng, min(0.4, seconds / 4))
        finally:
            faulthandler.cancel_dump_traceback_later()
        ends["rounds"] += 1
    print(dict(ends))
    return ends


def test_nothing_is_lost_and_nobody_is_stepped_twice(rng: random.Random, seconds: float) -> None:
    """A second of it."""
    assert rounds(rng, seconds)["rounds"] > 0


@pytest.mark.stress
def test_nothing_is_lost_and_nobody_is_stepped_twice_for_long(rng: random.Random, seconds: float) -> None:
    """The same for as long as asked; tasks do move."""
    ends = rounds(rng, seconds)
    assert ends["rounds"] > 0
    assert ends["moved"] > 0

"""One body for calls of ``map``, as an async function, as a sync one on threads, and as one on an executor."""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import polyloop

#: What a call does: yields the events that it waits for, and returns its result.
type Steps = Callable[[Any], Generator[polyloop.Event, None, Any]]

LANES = ("tasks", "threads", "executor")


@dataclass
class Lane:
    """Makes functions of one kind, and the options for ``map`` that go with them."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def fn(self, steps: Steps) -> Callable[[Any], Any]:
        return as_async(steps) if self.name == "tasks" else as_sync(steps)

    def map(self, steps: Steps, items: Any, **options: Any) -> polyloop.tasks.MapResults[Any]:
        return polyloop.map(self.fn(steps), items, **self.options, **options)


@contextmanager
def make_lane(name: str) -> Iterator[Lane]:
    if name != "executor":
        yield Lane(name)
        return
    with ThreadPoolExecutor(8) as executor:
        yield Lane(name, {"on": executor})


def as_async(steps: Steps) -> Callable[[Any], Any]:
    async def call(item: Any) -> Any:
        running = steps(item)
        try:
            event = next(running)
            while True:
                try:
                    await event.wait()
                except BaseException as exc:
                    event = running.throw(exc)
                else:
                    event = running.send(None)
        except StopIteration as end:
            return end.value

    return call


def as_sync(steps: Steps) -> Callable[[Any], Any]:
    def call(item: Any) -> Any:
        running = steps(item)
        try:
            event = next(running)
            while True:
                try:
                    event.sync.wait()
                except BaseException as exc:
                    event = running.throw(exc)
                else:
                    event = running.send(None)
        except StopIteration as end:
            return end.value

    return call


class Log:
    """What calls note, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.peak = 0

    def begin(self, item: Any) -> None:
        with self._lock:
            self.begun.append(item)
            self.peak = max(self.peak, len(self.begun) - len(self.ended))

    def end(self, item: Any) -> None:
        with self._lock:
            self.ended.append(item)


class Calls(Log):
    """Calls that wait for a gate of their own, and say when they have begun and how they ended."""

    def __init__(self, *held: Any) -> None:
        super().__init__()
        self.gates = {item: polyloop.Event() for item in held}  # the calls of other items do not wait
        self.started = {item: polyloop.Event() for item in held}
        self.cancelled: list[Any] = []

    def __call__(self, item: Any) -> Generator[polyloop.Event, None, Any]:
        self.begin(item)
        try:
            if item in self.gates:
                self.started[item].set()
                yield self.gates[item]
        except BaseException as exc:
            self.cancelled.append((item, type(exc).__name__))
            raise
        finally:
            self.end(item)
        return item * 10

    async def all_started(self) -> None:
        for event in self.started.values():
            await event.wait()

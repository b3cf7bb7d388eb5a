"""Runs every interleaving of a few short threads over the real code, and says which one broke.

The threads of a scenario are real, but only one of them runs at a time. Each stops before every operation on shared
state (a *step*), and whoever runs next is chosen anew there; the scenario is repeated until every choice was made. So
what holds after ``explore`` holds for all interleavings of those operations, under the model that each one is atomic
and that all threads see them in one order. For the containers, that is what CPython promises: their methods are
critical sections.

The shared state of a scenario is built from ``Deque``, ``List``, ``Dict`` and ``Lock`` of this module and from classes
made by ``stepped``, all of which stop before each access. A thread that can do nothing until something happens says so
with ``wait_until``; when all are in that state, and one has not finished, something was lost.

The idea is that of tokio's ``loom`` and of CHESS (Musuvathi and Qadeer, 2007), whose bound on the number of preemptions
is the way to explore scenarios that are too long to be explored in full.
"""

import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, SupportsIndex

#: A wait for the baton that takes this long means that the code under test blocks outside of the model.
_STUCK = 20.0


class _AbandonedError(BaseException):
    """Ends the other threads of a run that has failed."""


class _Baton:
    """A binary semaphore: cheaper than threading's, and this is what an exploration spends its time on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def give(self) -> None:
        self._lock.release()

    def take(self, timeout: float = _STUCK) -> bool:
        return self._lock.acquire(timeout=timeout)


class _Worker:
    """A thread that runs one function after the other: starting one for each run would take most of the time."""

    def __init__(self) -> None:
        self._job: Callable[[], object] | None = None
        self._go = _Baton()
        self._thread = threading.Thread(target=self._work, name="explorer", daemon=True)
        self._thread.start()
        assert self._thread.ident is not None
        self.ident = self._thread.ident

    def _work(self) -> None:
        while self._go.take(-1) and self._job is not None:
            self._job()

    def run(self, job: Callable[[], object]) -> None:
        self._job = job
        self._go.give()

    def end(self) -> None:
        self._job = None
        self._go.give()
        self._thread.join()


class _Actor:
    def __init__(self, number: int, fn: Callable[[], object]) -> None:
        self.number = number
        self.fn = fn
        self.turn = _Baton()
        self.ready: Callable[[], bool] | None = None
        self.done = False

    def runnable(self) -> bool:
        return not self.done and (self.ready is None or self.ready())


class Run:
    """One repetition of a scenario. The scenario's set-up adds threads and a check; the explorer runs them."""

    def __init__(self, prefix: list[int], preemptions: int | None) -> None:
        self._prefix = prefix
        self._left = preemptions
        self._actors: list[_Actor] = []
        self._by_ident: dict[int, _Actor] = {}
        self._check: Callable[[], object] = lambda: None
        self._ended = _Baton()
        self._error: BaseException | None = None
        self.choices: list[tuple[int, int]] = []  # what was chosen, of how many
        self.trace: list[str] = []

    # For scenarios

    def thread(self, fn: Callable[[], object]) -> None:
        """Add a thread."""
        self._actors.append(_Actor(len(self._actors), fn))

    def check(self, fn: Callable[[], object]) -> None:
        """Call ``fn`` when all threads have ended."""
        self._check = fn

    def step(self, what: str) -> None:
        """Let somebody else run before ``what``. Does nothing outside of the scenario's threads."""
        actor = self._by_ident.get(threading.get_ident())
        if actor is not None:
            self._switch(actor)
            self.trace.append(f"{actor.number}: {what}")

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Block until ``ready()``, which other threads bring about; outside of them it must be so already."""
        actor = self._by_ident.get(threading.get_ident())
        if actor is None:
            assert ready(), f"waits for ever: {what}"
            return
        actor.ready = ready
        self._switch(actor)
        actor.ready = None
        self.trace.append(f"{actor.number}: {what}")

    # The scheduler: runs on the thread that has the baton

    def _switch(self, actor: _Actor) -> None:
        chosen = self._choose(actor)
        if chosen is actor:
            return
        chosen.turn.give()
        if not actor.turn.take():
            raise AssertionError(f"thread {actor.number} waits outside of the model")
        if self._error is not None:
            raise _AbandonedError

    def _choose(self, current: _Actor) -> _Actor:
        stays = current.runnable()
        others = [actor for actor in self._actors if actor is not current and actor.runnable()]
        options = [current, *others] if stays else others
        if not options:
            raise AssertionError("nobody can go on, and somebody has not finished: a wake-up was lost")
        if stays and self._left == 0:
            options = [current]
        at = len(self.choices)
        index = self._prefix[at] if at < len(self._prefix) else 0
        self.choices.append((index, len(options)))
        if stays and index and self._left is not None:
            self._left -= 1
        return options[index]

    def _work(self, actor: _Actor) -> None:
        actor.turn.take()
        try:
            if self._error is None:
                actor.fn()
        except _AbandonedError:
            pass
        except BaseException as exc:
            if self._error is None:
                self._error = exc
        actor.done = True
        self._pass_on(actor)

    def _pass_on(self, actor: _Actor) -> None:
        """The thread has ended: let the next one run; after an error, so that it ends too."""
        left = [other for other in self._actors if not other.done]
        if not left:
            self._ended.give()
            return
        if self._error is None:
            try:
                self._choose(actor).turn.give()
                return
            except AssertionError as exc:
                self._error = exc
        left[0].turn.give()

    def go(self, workers: list[_Worker]) -> None:
        """Run the scenario once."""
        while len(workers) < len(self._actors):
            workers.append(_Worker())
        for worker, actor in zip(workers, self._actors, strict=False):
            self._by_ident[worker.ident] = actor
            worker.run(lambda actor=actor: self._work(actor))  # type: ignore[misc]
        self._actors[self._first()].turn.give()
        if not self._ended.take():
            raise AssertionError("a thread waits outside of the model")
        if self._error is not None:
            raise self._error
        self._check()

    def forget(self) -> None:
        """Let the state of the scenario go at once: a collection for each ten runs would take most of the time."""
        self._actors.clear()
        self._by_ident.clear()
        self._check = lambda: None

    def _first(self) -> int:
        index = self._prefix[0] if self._prefix else 0
        self.choices.append((index, len(self._actors)))
        return index


def explore(scenario: Callable[[Run], object], *, preemptions: int | None = None, limit: int = 200_000) -> int:
    """Run ``scenario`` in every interleaving; return how many there were.

    Args:
        scenario: Builds fresh state, and adds threads and a check to the run it is given.
        preemptions: Most times that a thread which could go on is stopped for another; no bound by default.
        limit: Fails if there are more interleavings than this: the test would take too long.
    """
    workers: list[_Worker] = []
    try:
        return _explore(scenario, preemptions, limit, workers)
    finally:
        for worker in workers:
            worker.end()


def _explore(scenario: Callable[[Run], object], preemptions: int | None, limit: int, workers: list[_Worker]) -> int:
    prefix: list[int] = []
    count = 0
    while True:
        run = Run(prefix, preemptions)
        scenario(run)
        try:
            run.go(workers)
        except BaseException as exc:
            exc.add_note(f"in interleaving {count}, which was:\n  " + "\n  ".join(run.trace))
            raise
        count += 1
        assert count <= limit, f"more than {limit} interleavings"
        choices = run.choices
        run.forget()
        while choices and choices[-1][0] + 1 == choices[-1][1]:
            choices.pop()
        if not choices:
            return count
        prefix = [index for index, _ in choices[:-1]] + [choices[-1][0] + 1]


class Deque[T](deque[T]):
    """A deque that stops before each operation."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__()
        self._run = run
        self._name = name

    def append(self, item: T, /) -> None:
        self._run.step(f"{self._name}.append")
        super().append(item)

    def pop(self) -> T:  # type: ignore[override]
        self._run.step(f"{self._name}.pop")
        return super().pop()

    def popleft(self) -> T:
        self._run.step(f"{self._name}.popleft")
        return super().popleft()

    def clear(self) -> None:
        self._run.step(f"{self._name}.clear")
        super().clear()

    def __len__(self) -> int:
        self._run.step(f"len({self._name})")
        return super().__len__()


class List[T](list[T]):
    """A list that stops before each operation."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__()
        self._run = run
        self._name = name

    def append(self, item: T, /) -> None:
        self._run.step(f"{self._name}.append")
        super().append(item)

    def pop(self, index: SupportsIndex = -1, /) -> T:
        self._run.step(f"{self._name}.pop")
        return super().pop(index)

    def remove(self, item: T, /) -> None:
        self._run.step(f"{self._name}.remove")
        super().remove(item)

    def __len__(self) -> int:
        self._run.step(f"len({self._name})")
        return super().__len__()

    def copy(self) -> list[T]:
        self._run.step(f"{self._name}.copy")
        return super().copy()

    def clear(self) -> None:
        self._run.step(f"{self._name}.clear")
        super().clear()

    def __getitem__(self, key: Any, /) -> Any:
        self._run.step(f"{self._name}[{key}]")
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any, /) -> None:
        self._run.step(f"{self._name}[{key}] = ...")
        super().__setitem__(key, value)

    def __delitem__(self, key: Any, /) -> None:
        self._run.step(f"del {self._name}[{key}]")
        super().__delitem__(key)


class Dict[K, V](dict[K, V]):
    """A dict that stops before each operation."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__()
        self._run = run
        self._name = name

    def __setitem__(self, key: K, value: V, /) -> None:
        self._run.step(f"{self._name}[{key}] = {value}")
        super().__setitem__(key, value)

    def pop(self, key: K, default: Any = None, /) -> Any:
        self._run.step(f"{self._name}.pop({key})")
        popped: Any = super().pop(key, default)
        return popped

    def copy(self) -> dict[K, V]:
        self._run.step(f"{self._name}.copy")
        return super().copy()

    def __len__(self) -> int:
        self._run.step(f"len({self._name})")
        return super().__len__()


class Lock:
    """A lock that stops before it is taken, and blocks within the model."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._held = False

    def __enter__(self) -> None:
        self._run.wait_until(lambda: not self._held, "lock")
        self._held = True

    def __exit__(self, *exc: object) -> None:
        self._held = False


@functools.cache  # CPython 3.13t keeps every class for good
def stepped[C: type[Any]](cls: C, *names: str) -> C:
    """A subclass of ``cls`` that stops before each access to these attributes, once an instance has a ``run``."""

    def attribute(name: str) -> property:
        default = None if hasattr(cls, "__slots__") else getattr(cls, name, None)
        key = f"stepped_{name}"

        def get(self: Any) -> Any:
            run = self.__dict__.get("run")
            if run is not None:
                run.step(f"read {name}")
            return self.__dict__.get(key, default)

        def put(self: Any, value: Any) -> None:
            run = self.__dict__.get("run")
            if run is not None:
                run.step(f"{name} = {value!r}")
            self.__dict__[key] = value

        return property(get, put)

    made: Any = type(f"Stepped{cls.__name__}", (cls,), {name: attribute(name) for name in names})
    return made  # type: ignore[no-any-return]

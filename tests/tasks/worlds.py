"""One scenario in several worlds: plain asyncio, and polyloop with the tasks here, elsewhere or around a guest."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import polyloop
from polyloop._core._completion import Completion


class Event:
    """An event that any loop may set and wait for, once."""

    def __init__(self) -> None:
        self._happened = Completion[None]()

    def set(self) -> None:
        self._happened._complete(None)

    async def wait(self) -> None:
        await self._happened


class Elsewhere:
    """Places every task on another loop than its creator's."""

    def choose(self, workers: Sequence[polyloop.Worker], here: polyloop.Worker | None) -> polyloop.Worker:
        return workers[0] if here is None else workers[(here.index + 1) % len(workers)]


@dataclass
class World:
    """What a scenario uses instead of the names of one library."""

    run: Callable[[Coroutine[Any, Any, Any]], Any]
    task_group: Callable[[], Any]
    gather: Callable[..., Any]
    start: Callable[[Coroutine[Any, Any, Any]], Any]
    log: list[Any] = field(default_factory=list)

    def note(self, *what: Any) -> None:
        self.log.append(what[0] if len(what) == 1 else what)

    def note_me(self, what: str) -> None:
        """Note how often the current task was asked to stop and not taken back."""
        task = asyncio.current_task()
        assert task is not None
        self.note(what, "cancelling", task.cancelling())

    async def outcome(self, aw: Any) -> Any:
        """Await and note what came of it: a value, or what an exception says."""
        try:
            value = await aw
        except BaseException as exc:
            self.note(describe(exc))
            return exc
        self.note("value", value)
        return value


def describe(exc: BaseException) -> Any:
    if isinstance(exc, BaseExceptionGroup):
        return (type(exc).__name__, exc.message, *sorted((describe(inner) for inner in exc.exceptions), key=repr))
    return (type(exc).__name__, *exc.args)


def _submit(coro: Coroutine[Any, Any, Any]) -> Any:
    return polyloop.current_runtime().submit(coro)


def _as_guest(main: Coroutine[Any, Any, Any]) -> Any:
    with polyloop.Runtime(loops=2):
        return asyncio.run(main)


#: Ways to run a main coroutine: tasks on another loop, on this one, and without a runtime.
RUNS: dict[str, Callable[[Coroutine[Any, Any, Any]], Any]] = {
    "several loops": lambda main: polyloop.run(main, loops=2, placement=Elsewhere()),
    "one loop": lambda main: polyloop.run(main, loops=1),
    "asyncio": asyncio.run,
}


def asyncio_world() -> World:
    return World(asyncio.run, asyncio.TaskGroup, asyncio.gather, asyncio.create_task)


def polyloop_worlds() -> dict[str, World]:
    runs: dict[str, Callable[[Coroutine[Any, Any, Any]], Any]] = {
        "one loop": lambda main: polyloop.run(main, loops=1),
        "elsewhere": lambda main: polyloop.run(main, loops=2, placement=Elsewhere()),
        "guest": _as_guest,
        "migrating, one loop": lambda main: polyloop.run(main, loops=1, migratable=True),
        "migrating": lambda main: polyloop.run(main, loops=2, migratable=True),
    }
    return {name: World(run, polyloop.TaskGroup, polyloop.gather, _submit) for name, run in runs.items()}

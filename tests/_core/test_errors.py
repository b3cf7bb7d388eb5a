"""Errors pickle, fit the builtins of the same meaning, and can be copied however awkward their constructors are."""

import asyncio
import json
import pickle
import queue
from dataclasses import dataclass
from typing import Self

import pytest

from polyloop import Runtime, TaskHandle
from polyloop._core import _errors
from polyloop._core._errors import Lagged, PolyloopError, copy_exception

ERRORS = [thing for thing in vars(_errors).values() if isinstance(thing, type) and issubclass(thing, PolyloopError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_pickle(kind: type[PolyloopError]) -> None:
    """They cross process borders as they are."""
    twin = pickle.loads(pickle.dumps(kind("what failed")))
    assert type(twin) is kind
    assert twin.args == ("what failed",)


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not PolyloopError])
def test_errors_are_builtins_too(kind: type[PolyloopError]) -> None:
    """Code that knows asyncio's, threading's and queue's errors catches ours; signals of our own have no other base."""
    families = (RuntimeError, ConnectionError, asyncio.QueueEmpty, asyncio.QueueFull, asyncio.QueueShutDown)
    assert issubclass(kind, families) or kind is Lagged
    if issubclass(kind, (asyncio.QueueEmpty, asyncio.QueueFull, asyncio.QueueShutDown)):
        assert issubclass(kind, (queue.Empty, queue.Full, queue.ShutDown))


class NeedsTwo(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.first = first


class Picky(Exception):
    def __new__(cls, *args: object, secret: str = "") -> Self:
        assert secret == "please"
        return super().__new__(cls, *args)

    def __init__(self, *args: object, secret: str = "") -> None:
        super().__init__(*args)


class Impostor(Exception):
    def __reduce__(self) -> tuple[type, tuple[str]]:
        return ValueError, ("somebody else",)


class Slotted(OSError):
    __slots__ = ("extra",)

    def __init__(self, extra: int) -> None:
        super().__init__(5, "bad", "file")
        self.extra = extra


class Counted(Exception):
    made = 0

    def __init__(self) -> None:
        Counted.made += 1


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@dataclass(frozen=True)
class FrozenData(Exception):
    """It has no attributes, and refuses those of the interpreter."""


def caught(exc: BaseException) -> BaseException:
    try:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise exc from cause
    except BaseException as raised:
        return raised


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("a", 1),
        OSError(2, "No such file", "x"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        SystemExit(3),
        StopIteration(4),
        ImportError("no", name="mod", path="/x"),
        asyncio.CancelledError("why"),
        json.JSONDecodeError("bad", "doc", 1),
        NeedsTwo(1, 2),
        Picky("a", secret="please"),
        Impostor("b"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_a_copy_has_all_that_a_reader_sees(exc: BaseException) -> None:
    """Type, arguments, attributes, notes, cause and traceback are the same; the object is another."""
    exc.add_note("a note")
    caught(exc)
    twin = copy_exception(exc)
    assert twin is not exc
    assert type(twin) is type(exc)
    assert twin.args == exc.args
    assert str(twin) == str(exc)
    assert vars(twin) == vars(exc)
    assert twin.__notes__ == ["a note"]
    assert twin.__traceback__ is exc.__traceback__
    assert twin.__cause__ is exc.__cause__
    assert twin.__context__ is exc.__context__
    assert twin.__suppress_context__ is exc.__suppress_context__


def test_a_group_is_copied_with_its_members() -> None:
    """Each member, at every depth, is an object of its own: ``except*`` raises them."""
    inner = ExceptionGroup("inner", [KeyError(2)])
    group = ExceptionGroup("several", [ValueError(1), inner])
    caught(inner)
    twin = copy_exception(group)
    assert twin is not group
    assert repr(twin) == repr(group)
    first, second = twin.exceptions
    assert isinstance(second, ExceptionGroup)
    assert first is not group.exceptions[0]
    assert second is not inner
    assert second.exceptions[0] is not inner.exceptions[0]
    assert second.__traceback__ is inner.__traceback__


def test_the_constructors_of_users_are_not_run() -> None:
    """They may want other arguments, refuse, or count."""
    exc = Counted()
    assert type(copy_exception(exc)) is Counted
    assert Counted.made == 1


def test_attributes_in_slots_are_copied_too() -> None:
    """With what the builtin class keeps for itself."""
    twin = copy_exception(Slotted(7))
    assert (twin.extra, twin.errno, twin.filename) == (7, 5, "file")


def test_one_that_cannot_be_copied_is_handed_on_itself() -> None:
    """A shared object is better than another error in its place."""
    exc = Frozen("a")
    exc.__dict__["b"] = 1
    bare = FrozenData()
    assert copy_exception(exc) is exc
    assert copy_exception(bare) is bare


def test_one_that_cannot_be_copied_reaches_all_who_wait_for_its_task() -> None:
    """A task on another loop, and a plain thread."""

    async def fail() -> None:
        raise FrozenData

    async def wait(handle: TaskHandle[None]) -> None:
        with pytest.raises(FrozenData):
            await handle

    with Runtime(loops=2) as runtime:
        here, there = runtime.workers
        failing = runtime.spawn(fail, on=here)
        runtime.spawn(wait, failing, on=there).result(30)
        with pytest.raises(FrozenData):
            failing.result(30)


def test_notes_of_a_copy_are_its_own() -> None:
    """A note that one thread adds to its copy is not shown by the others."""
    exc = ValueError("a")
    exc.add_note("first")
    copy_exception(exc).add_note("second")
    assert exc.__notes__ == ["first"]

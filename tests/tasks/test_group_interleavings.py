"""Every interleaving of a group that is being left or aborted and a thread that adds a child.

Proved: a child is refused, or the group waits for its end; a child of an aborted group is cancelled once; ``cancel``
before, during and after the entry is never lost; nobody waits for ever.
"""

import inspect
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from tests.explorer import Run, explore, stepped

from polyloop import TaskGroup


class Set(set[Any]):
    """A set that stops before each operation."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def add(self, item: Any, /) -> None:
        self._run.step("tasks.add")
        super().add(item)

    def discard(self, item: Any, /) -> None:
        self._run.step("tasks.discard")
        super().discard(item)

    def copy(self) -> set[Any]:
        self._run.step("tasks.copy")
        return set(super().copy())

    def __len__(self) -> int:
        self._run.step("len(tasks)")
        return super().__len__()

    def __bool__(self) -> bool:
        return len(self) > 0


class Future:
    """What the group waits on; only home touches it."""

    def __init__(self) -> None:
        self.happened = False

    def done(self) -> bool:
        return self.happened

    def set_result(self, result: None) -> None:
        self.happened = True

    def __await__(self) -> Generator["Future"]:
        if not self.happened:
            yield self


class Home:
    """The group's loop: a queue of what was posted, and a coroutine that waits."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.loop = self
        self.create_future = Future

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        self.run.step("post")
        self.posted.append((fn, args))

    def is_current(self) -> bool:
        return False  # who asks is on another thread

    def serve(self) -> None:
        while self.posted:
            fn, args = self.posted.popleft()
            fn(*args)

    def drive(self, coro: Any) -> None:
        """Run a coroutine to its end, serving what is posted while it waits."""
        while True:
            try:
                future = coro.send(None)
            except StopIteration:
                break
            while not future.happened:
                self.run.wait_until(lambda: bool(self.posted), "home waits")
                self.serve()
        self.serve()


class Parent:
    """The group's parent task."""

    def __init__(self) -> None:
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1

    def done(self) -> bool:
        return False


class Child:
    """Stands for a handle: counts its cancellations; it ends at home, by a post."""

    def __init__(self) -> None:
        self.cancels = 0
        self._exception = None

    def cancel(self) -> None:
        self.cancels += 1


def open_group(run: Run) -> tuple[Any, Home]:
    made: Any = stepped(TaskGroup, "_finished", "_aborting", "_exiting", "_entered", "_cancel_on_entry")()
    home = Home(run)
    made._tasks = Set(run)
    made._home = home
    made._parent = Parent()
    made._entered = True
    return made, home


async def nothing() -> None:
    pass


def adding(group: Any, home: Home, placed: list[Any], refused: list[str]) -> Callable[[], None]:
    """A thread that adds a child, which ends at once, as home hears by a post."""

    def place(handle: Any, on: object, key: object) -> None:
        placed.append(handle)
        home.post(end, handle)

    def end(handle: Any) -> None:
        handle.ended = True
        handle._coro.close()
        set.discard(group._tasks, handle)
        group._look_again()

    group._place = place

    def add() -> None:
        try:
            group._create(nothing(), None, None, None, None, False)
        except RuntimeError as exc:
            refused.append(str(exc))

    return add


def test_a_child_added_while_the_group_is_left_is_refused_or_waited_for() -> None:
    """The adder and the leaver look at each other's mark: one of the two sees the other."""

    def scenario(run: Run) -> None:
        group, home = open_group(run)
        placed: list[Any] = []
        refused: list[str] = []
        first = Child()
        set.add(group._tasks, first)
        add = adding(group, home, placed, refused)

        def end_first() -> None:
            set.discard(group._tasks, first)
            group._look_again()

        def leave() -> None:
            group._exiting = True
            home.posted.append((end_first, ()))
            home.drive(group._wait_children())
            assert all(hasattr(handle, "ended") for handle in placed), "left before a child had ended"

        run.thread(leave)
        run.thread(add)
        group.run = run

        def check() -> None:
            assert len(placed) + len(refused) == 1
            assert not set(placed) - {handle for handle in placed if hasattr(handle, "ended")}
            assert all("is finished" in message for message in refused)

        run.check(check)

    assert explore(scenario, preemptions=3) > 50


def test_a_child_added_while_the_group_is_aborted_is_refused_or_cancelled_once() -> None:
    """``Task.cancelling`` counts, so the abort and the adder must not both cancel."""

    def scenario(run: Run) -> None:
        group, home = open_group(run)
        placed: list[Any] = []
        refused: list[str] = []
        add = adding(group, home, placed, refused)
        group._place = lambda handle, on, key: placed.append(handle)

        def abort() -> None:
            group._abort()

        run.thread(abort)
        run.thread(add)
        group.run = run

        def check() -> None:
            home.serve()
            assert len(placed) + len(refused) == 1
            for handle in placed:
                assert len(handle._cancels) == 1
                handle._coro.close()

        run.check(check)

    assert explore(scenario) > 20


def test_a_cancel_that_meets_the_entry_is_not_lost() -> None:
    """``cancel`` sees the group entered, or the entry sees that it was cancelled; twice is once."""

    def scenario(run: Run) -> None:
        group, home = open_group(run)
        group._entered = False
        parent = group._parent
        entered: list[bool] = []

        def enter() -> None:
            # The part of __aenter__ that meets other threads.
            group._entered = True
            group._tasks.copy()
            if group._cancel_on_entry:
                group._cancel_here()
            entered.append(True)

        run.thread(enter)
        run.thread(group.cancel)
        group.run = run

        def check() -> None:
            assert entered
            home.serve()
            assert parent.cancels == 1
            assert group._aborting

        run.check(check)

    assert explore(scenario) > 10


def test_the_model_of_the_entry_is_the_code() -> None:
    """The lines that the model above repeats stand in ``__aenter__`` in that order."""

    source = inspect.getsource(TaskGroup.__aenter__)
    steps = ("self._entered = True", "self._tasks.copy()", "if self._cancel_on_entry:", "self._cancel_here()")
    places = [source.index(step) for step in steps]
    assert places == sorted(places)

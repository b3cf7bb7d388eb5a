"""``TaskGroup(limit=)`` and ``gather(limit=)``: how many run, in which order they begin, and who never does."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from tests.tasks.maps import Log
from tests.tasks.worlds import RUNS

import polyloop
from polyloop.tasks._turns import WaitingHandle
from polyloop.testing import TestLoop, TestThread

type Run = Callable[[Any], Any]


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a main coroutine: with tasks on another loop, on this one, and without a runtime."""
    return RUNS[request.param]


@pytest.fixture
def home() -> Iterator[TestLoop]:
    """A loop that can be held still."""
    with TestLoop("home") as loop:
        yield loop


class Children(Log):
    """Children that wait for a gate, each with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = polyloop.Event()
        self.started: list[polyloop.Event] = [polyloop.Event() for _ in range(100)]

    async def __call__(self, number: int) -> int:
        self.begin(number)
        self.started[number].set()
        try:
            await self.gate.wait()
        finally:
            self.end(number)
        return number

    async def full(self, *numbers: int) -> None:
        for number in numbers:
            await self.started[number].wait()


def many(verb: str, child: Callable[[int], Coroutine[Any, Any, int]], count: int, limit: int) -> Any:
    """``count`` children in a group or in ``gather``; awaitable for the list of their results."""

    async def group() -> list[int]:
        async with polyloop.TaskGroup(limit=limit) as tg:
            handles = [tg.create_task(child(number)) for number in range(count)]
        return [handle.result() for handle in handles]

    async def gather() -> list[int]:
        return await polyloop.gather(*(child(number) for number in range(count)), limit=limit)

    return group() if verb == "group" else gather()


VERBS = ("group", "gather")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_as_many_children_run_as_the_limit_says(run: Run, verb: str, limit: int) -> None:
    """Not one more; not one less while others wait; all of them in the end."""
    log = Log()
    enough = polyloop.Event()

    async def child(number: int) -> int:
        log.begin(number)
        if len(log.begun) >= min(limit, 20):
            enough.set()
        await enough.wait()
        log.end(number)
        return number

    assert run(many(verb, child, 20, limit)) == list(range(20))
    assert log.peak == min(limit, 20)


@pytest.mark.parametrize("verb", VERBS)
def test_children_begin_in_the_order_of_their_creation(verb: str) -> None:
    """One after the other."""
    log = Log()

    async def child(number: int) -> int:
        log.begin(number)
        await asyncio.sleep(0)
        log.end(number)
        return number

    polyloop.run(many(verb, child, 50, 1), loops=2)
    assert log.begun == list(range(50))


@pytest.mark.parametrize("limit", [0, -3, 1.5, "2"])
def test_a_limit_below_one_is_refused(limit: Any) -> None:
    """And the coroutines are closed: nothing warns of them."""

    async def main() -> None:
        with pytest.raises(ValueError, match="limit must be"):
            polyloop.TaskGroup(limit=limit)
        with pytest.raises(ValueError, match="limit must be"):
            polyloop.gather(Children()(1), limit=limit)
        with pytest.raises(ValueError, match="limit must be"):
            polyloop.as_completed([Children()(1)], limit=limit)

    asyncio.run(main())


def test_a_waiting_child_has_a_handle_at_once(run: Run) -> None:
    """It is pending, has a name, and can be awaited by anybody."""
    children = Children()

    async def main() -> None:
        async with polyloop.TaskGroup(limit=1) as tg:
            tg.create_task(children(0))
            waiting = tg.create_task(children(1), name="second")
            await children.full(0)
            assert not waiting.done()
            assert waiting.get_name() == "second"
            waiter = asyncio.ensure_future(asyncio.shield(waiting))
            await asyncio.sleep(0)
            children.gate.set()
            assert await waiter == 1

    run(main())


def test_a_waiting_child_is_cancelled_at_once(run: Run) -> None:
    """Its coroutine is closed without a step; the others go on; its turn is not lost, as it had none."""
    children = Children()

    async def main() -> None:
        async with polyloop.TaskGroup(limit=1) as tg:
            handles = [tg.create_task(children(number)) for number in range(4)]
            await children.full(0)
            assert handles[1].cancel("no longer")
            with pytest.raises(asyncio.CancelledError, match="no longer"):
                await handles[1]
            assert handles[1].cancelled()
            assert not handles[1].cancel()
            await asyncio.to_thread(handles[2].cancel)
            with pytest.raises(asyncio.CancelledError):
                await handles[2]
            children.gate.set()
        assert handles[3].result() == 3

    run(main())
    assert children.begun == [0, 3]


def test_a_cancelled_awaiter_cancels_the_child_that_waits(run: Run) -> None:
    """As it does with one that runs."""
    children = Children()

    async def main() -> None:
        async with polyloop.TaskGroup(limit=1) as tg:
            tg.create_task(children(0))
            waiting = tg.create_task(children(1))
            await children.full(0)

            async def wait() -> None:
                await waiting

            awaiter = asyncio.create_task(wait())
            await asyncio.sleep(0)
            awaiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await awaiter
            assert waiting.cancelled()
            children.gate.set()

    run(main())
    assert children.begun == [0]


@pytest.mark.parametrize("how", ["failure", "cancel", "outside", "block"])
def test_an_aborted_group_starts_none_of_those_that_wait(run: Run, how: str) -> None:
    """Whatever the reason; all handles end cancelled, and the group ends."""
    children = Children()
    handles: list[polyloop.TaskHandle[int]] = []

    async def child(number: int) -> int:
        if number == 1 and how == "failure":
            await children.full(0)
            raise ZeroDivisionError
        return await children(number)

    async def body() -> None:
        async with polyloop.TaskGroup(limit=2) as tg:
            handles.extend(tg.create_task(child(number)) for number in range(20))
            await children.full(0)
            if how != "failure":
                await children.full(1)
            if how == "cancel":
                tg.cancel()
            elif how == "block":
                raise ZeroDivisionError
            elif how == "outside":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.create_task(body())
        if how == "cancel":
            await task
        else:
            with pytest.raises((ExceptionGroup, asyncio.CancelledError)):
                await task

    run(main())
    assert set(children.begun) <= {0, 1}
    assert all(handle.cancelled() for handle in handles[2:])


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_a_child_cancelled_as_its_turn_comes(home: TestLoop, cancelled_first: bool) -> None:
    """It never begins, or is cancelled as one that runs; either way the next one gets the turn."""
    children = Children()
    handles: list[polyloop.TaskHandle[int]] = []

    async def body() -> None:
        async with polyloop.TaskGroup(limit=1) as tg:
            handles.extend(tg.create_task(children(number)) for number in range(3))

    task = home.spawn(body)
    assert children.started[0].sync.wait(30)
    with home.paused():
        if cancelled_first:
            handles[1].cancel()
            handles[0].cancel()
        else:
            handles[0].cancel()
            handles[1].cancel()
    assert children.started[2].sync.wait(30)
    children.gate.set()
    task.result(30)
    assert [handle.cancelled() for handle in handles] == [True, True, False]
    assert handles[2].result() == 2
    assert children.begun == [0, 2]


def test_children_from_threads_wait_in_line_too() -> None:
    """In the order in which they came; their context is that of the thread that created them."""
    variable = contextvars.ContextVar("variable", default="unset")
    log = Log()

    async def child(number: int) -> str:
        log.begin(number)
        await asyncio.sleep(0)
        log.end(number)
        return variable.get()

    async def main() -> list[str]:
        async with polyloop.TaskGroup(limit=2) as tg:

            def add(number: int) -> polyloop.TaskHandle[str]:
                variable.set(f"of {number}")
                return tg.create_task(child(number))

            handles = [await polyloop.to_thread(TestThread(add, number).result) for number in range(20)]
        return [handle.result() for handle in handles]

    assert polyloop.run(main(), loops=2) == [f"of {number}" for number in range(20)]
    assert log.peak <= 2


def test_children_see_the_context_of_their_creation(run: Run) -> None:
    """Not that of the moment when their turn came."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def child(number: int) -> str:
        await asyncio.sleep(0)
        return variable.get()

    async def main() -> list[str]:
        async with polyloop.TaskGroup(limit=1) as tg:
            handles = []
            for number in range(5):
                variable.set(f"of {number}")
                handles.append(tg.create_task(child(number)))
            variable.set("later")
        return [handle.result() for handle in handles]

    assert run(main()) == [f"of {number}" for number in range(5)]


def test_here_is_where_the_child_was_created() -> None:
    """However late it starts, and on whatever loop the turn was given back; workers and keys mean what they do."""

    async def where() -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    async def main() -> None:
        workers = polyloop.current_runtime().workers
        async with polyloop.TaskGroup(limit=1) as tg:

            async def creator() -> list[polyloop.TaskHandle[int]]:
                return [tg.create_task(where(), on="here") for _ in range(3)]

            made = await asyncio.gather(*(polyloop.spawn(creator, on=worker) for worker in workers))
            there = tg.create_task(where(), on=workers[1])
            keyed = [tg.create_task(where(), key="k") for _ in range(4)]
            context = contextvars.copy_context()
            shared = [tg.create_task(where(), context=context) for _ in range(3)]
        for worker, handles in zip(workers, made, strict=True):
            assert {handle.result() for handle in handles} == {worker.ident}
        assert there.result() == workers[1].ident
        assert len({handle.result() for handle in keyed}) == 1
        assert {handle.result() for handle in shared} == {threading.get_ident()}

    polyloop.run(main(), loops=3)


def test_a_runtime_whose_tasks_stay_here_keeps_them_here() -> None:
    """``placement="here"`` is the caller's loop for children that wait, too."""

    async def where() -> int:
        await asyncio.sleep(0)
        return threading.get_ident()

    async def main() -> None:
        async with polyloop.TaskGroup(limit=1) as tg:

            async def creator() -> list[polyloop.TaskHandle[int]]:
                return [tg.create_task(where()) for _ in range(3)]

            worker = polyloop.current_runtime().workers[1]
            handles = await polyloop.spawn(creator, on=worker)
        assert {handle.result() for handle in handles} == {worker.ident}

    polyloop.run(main(), loops=2, placement="here")


def test_a_choice_that_makes_no_sense_is_refused_at_the_call(run: Run) -> None:
    """Not when the child's turn has come, when nobody is there to hear of it."""

    async def child() -> None: ...

    with polyloop.Runtime(loops=1, name="other") as other:
        stranger = other.workers[0]

    async def main() -> None:
        async with polyloop.TaskGroup(limit=1) as tg:
            choices: list[dict[str, Any]] = [{"on": "nonsense"}, {"on": "here", "key": 1}, {"on": stranger}]
            for wrong in choices:
                with pytest.raises(ValueError, match=r"nonsense|give one|worker|runtime"):
                    tg.create_task(child(), **wrong)

    run(main())


def test_a_runtime_that_closes_meanwhile_fails_the_children_that_wait() -> None:
    """They are completed, all of them, however many: nobody waits for ever."""
    children = Children()
    handles: list[polyloop.TaskHandle[int]] = []

    async def main() -> None:
        runtime = polyloop.Runtime(loops=1)
        async with runtime:
            with pytest.raises(ExceptionGroup) as caught:
                async with polyloop.TaskGroup(limit=1) as tg:
                    handles.extend(tg.create_task(children(number), on="least_loaded") for number in range(5000))
                    await children.full(0)
                    await asyncio.to_thread(runtime.close)
            assert caught.value.subgroup(polyloop.RuntimeClosedError) is not None

    asyncio.run(main())
    assert all(handle.done() for handle in handles)
    assert children.begun == [0]


@pytest.mark.parametrize("verb", VERBS)
def test_many_thousands_wait(run: Run, verb: str) -> None:
    """No recursion, no quadratic search."""

    async def child(number: int) -> int:
        return number

    assert run(many(verb, child, 20_000, 2)) == list(range(20_000))


def test_many_thousands_that_wait_are_cancelled(run: Run) -> None:
    """Together, with their group."""
    children = Children()

    async def main() -> None:
        async with polyloop.TaskGroup(limit=1) as tg:
            handles = [tg.create_task(children(min(number, 1))) for number in range(20_000)]
            await children.full(0)
            tg.cancel()
        assert all(handle.cancelled() for handle in handles)

    run(main())
    assert children.begun == [0]


# gather


def test_gather_goes_on_with_those_that_wait_after_a_failure(run: Run) -> None:
    """As asyncio's does with those that run."""
    ended = polyloop.Event()
    log = Log()

    async def child(number: int) -> None:
        log.begin(number)
        if number == 0:
            raise ZeroDivisionError
        if number == 4:
            ended.set()

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await polyloop.gather(*(child(number) for number in range(5)), limit=1)
        await ended.wait()

    run(main())
    assert log.begun == list(range(5))


def test_a_cancelled_gather_starts_none_of_those_that_wait(run: Run) -> None:
    """Those that run are cancelled."""
    children = Children()

    async def main() -> None:
        gathering = polyloop.gather(*(children(number) for number in range(10)), limit=1)
        await children.full(0)
        gathering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathering

    run(main())
    assert children.begun == [0]


def test_gather_limits_what_it_starts_itself(run: Run) -> None:
    """Tasks and handles that run already do so; duplicates are one; exceptions are returned if asked for."""

    async def value(number: int) -> int:
        await asyncio.sleep(0)
        if number < 0:
            raise ValueError(number)
        return number

    async def main() -> list[Any]:
        task = asyncio.create_task(value(1))
        coro = value(2)
        results = await polyloop.gather(task, coro, coro, value(-1), task, limit=1, return_exceptions=True)
        return [repr(result) for result in results]

    assert run(main()) == ["1", "2", "2", "ValueError(-1)", "1"]


def test_only_limited_groups_pay_for_limits() -> None:
    """The handle of a child of any other group is the plain one."""

    async def child() -> None: ...

    async def main() -> None:
        async with polyloop.TaskGroup() as tg:
            assert type(tg.create_task(child())) is polyloop.TaskHandle
        async with polyloop.TaskGroup(limit=1) as tg:
            assert isinstance(tg.create_task(child()), WaitingHandle)

    polyloop.run(main(), loops=2)

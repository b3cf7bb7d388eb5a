"""Each scenario does the same on asyncio and on polyloop: results, errors, messages, and counts of cancellations."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.tasks.worlds import Event, World, asyncio_world, describe, polyloop_worlds

type Scenario = Callable[[World], Coroutine[Any, Any, None]]

SCENARIOS: list[Scenario] = []


def scenario(fn: Scenario) -> Scenario:
    SCENARIOS.append(fn)
    return fn


class Sleeper:
    """A task that sleeps until it is cancelled, and notes how."""

    def __init__(self, world: World, name: str = "sleeper", then: Callable[[], Any] | None = None) -> None:
        self.world, self.name, self.then = world, name, then
        self.started, self.ended = Event(), Event()

    async def __call__(self) -> Any:
        self.started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as exc:
            self.world.note(self.name, exc.args)
            self.world.note_me(self.name)
            self.ended.set()
            if self.then is not None:
                return self.then()
            raise


async def value(result: Any) -> Any:
    await asyncio.sleep(0)
    return result


async def failing(exc: BaseException) -> None:
    await asyncio.sleep(0)
    raise exc


def raise_value_error() -> None:
    raise ValueError("instead")


@pytest.mark.parametrize("name", polyloop_worlds())
@pytest.mark.parametrize("fn", SCENARIOS, ids=lambda fn: fn.__name__)
def test_scenario_is_the_same_as_on_asyncio(fn: Scenario, name: str) -> None:
    expected, actual = asyncio_world(), polyloop_worlds()[name]
    expected.run(fn(expected))
    actual.run(fn(actual))
    assert expected.log
    if name == "one loop":
        assert actual.log == expected.log
    else:  # two loops write the log at the same time
        assert sorted(map(repr, actual.log)) == sorted(map(repr, expected.log))


# Awaiting


@scenario
async def awaiting_gives_the_value_or_raises(w: World) -> None:
    await w.outcome(w.start(value(1)))
    await w.outcome(w.start(failing(ValueError("no", 2))))
    task = w.start(value(3))
    await task
    await w.outcome(task)
    w.note(task.done(), task.cancelled(), task.result(), task.exception(), task.cancel())


@scenario
async def a_failed_task_keeps_its_exception(w: World) -> None:
    task = w.start(failing(KeyError("k")))
    first = await w.outcome(task)
    second = await w.outcome(task)
    w.note(first is second is task.exception(), task.done(), task.cancelled(), task.cancel("late"))


@scenario
async def a_cancelled_task_says_so_to_everybody(w: World) -> None:
    sleeper = Sleeper(w)
    task = w.start(sleeper())
    await sleeper.started.wait()
    asked = task.cancel("enough")
    await w.outcome(task)
    w.note(asked, task.cancelled())
    for ask in (task.result, task.exception):
        try:
            ask()
        except BaseException as exc:  # asyncio has given the message away to the first who asked
            w.note(type(exc).__name__)
    w.note_me("me")


@scenario
async def a_cancelled_awaiter_cancels_the_task(w: World) -> None:
    sleeper = Sleeper(w)
    task = w.start(sleeper())

    async def awaiter() -> None:
        try:
            await task
        finally:
            w.note_me("awaiter")

    outer = asyncio.create_task(awaiter())
    await sleeper.started.wait()
    await asyncio.sleep(0)
    outer.cancel("why")
    await w.outcome(outer)
    w.note(outer.cancelled(), task.cancelled())


@scenario
async def a_cancelled_awaiter_gets_what_the_task_makes_of_it(w: World) -> None:
    for then in (lambda: "swallowed", raise_value_error):
        sleeper = Sleeper(w, then=then)

        async def awaiter(sleeper: Sleeper = sleeper) -> Any:
            result = await w.start(sleeper())
            w.note_me("awaiter")
            return result

        outer = asyncio.create_task(awaiter())
        await sleeper.started.wait()
        outer.cancel()
        await w.outcome(outer)
        w.note(outer.cancelled())


@scenario
async def two_cancellations_of_an_awaiter_both_arrive(w: World) -> None:
    first, second = Event(), Event()
    started = Event()

    async def stubborn() -> str:
        for seen in (first, second):
            try:
                if seen is first:
                    started.set()
                await asyncio.sleep(3600)
            except asyncio.CancelledError as exc:
                w.note(exc.args)
                w.note_me("stubborn")
                seen.set()
        return "survived"

    task = w.start(stubborn())

    async def awaiter() -> Any:
        try:
            return await task
        finally:
            w.note_me("awaiter")

    outer = asyncio.create_task(awaiter())
    await started.wait()
    await asyncio.sleep(0)
    outer.cancel("one")
    await first.wait()
    outer.cancel("two")
    await second.wait()
    await w.outcome(outer)


@scenario
async def several_awaiters_share_one_task(w: World) -> None:
    go = Event()

    async def waiting() -> str:
        await go.wait()
        return "shared"

    task = w.start(waiting())
    awaiters = [asyncio.create_task(w.outcome(task)) for _ in range(3)]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*awaiters)


@scenario
async def one_cancelled_awaiter_cancels_the_task_of_all(w: World) -> None:
    sleeper = Sleeper(w)
    task = w.start(sleeper())

    async def awaiter() -> Any:
        return await task

    outers = [asyncio.create_task(awaiter()) for _ in range(3)]
    await sleeper.started.wait()
    await asyncio.sleep(0)
    outers[1].cancel("mine")
    done = await asyncio.gather(*outers, return_exceptions=True)
    w.note([describe(exc) for exc in done if isinstance(exc, BaseException)])
    w.note([outer.cancelling() for outer in outers])


# asyncio's own tools around a handle


@scenario
async def wait_for_that_times_out_cancels(w: World) -> None:
    sleeper = Sleeper(w)
    task = w.start(sleeper())
    await sleeper.started.wait()
    await w.outcome(asyncio.wait_for(task, 0.01))
    w.note(task.cancelled())
    w.note_me("me")


@scenario
async def wait_for_without_time_cancels_at_once(w: World) -> None:
    sleeper = Sleeper(w)
    task = w.start(sleeper())
    await sleeper.started.wait()
    await w.outcome(asyncio.wait_for(task, 0))
    w.note(task.cancelled())


@scenario
async def wait_for_passes_results_and_errors_on(w: World) -> None:
    await w.outcome(asyncio.wait_for(w.start(value(7)), 30))
    await w.outcome(asyncio.wait_for(w.start(failing(OSError("x"))), 30))
    await w.outcome(asyncio.wait_for(w.start(value(8)), None))


@scenario
async def wait_for_returns_what_the_task_made_of_its_cancellation(w: World) -> None:
    sleeper = Sleeper(w, then=lambda: "late")
    task = w.start(sleeper())
    await sleeper.started.wait()
    await w.outcome(asyncio.wait_for(task, 0.01))
    w.note_me("me")


@scenario
async def timeout_around_a_task(w: World) -> None:
    sleeper = Sleeper(w)
    task = w.start(sleeper())
    await sleeper.started.wait()

    async def limited() -> None:
        async with asyncio.timeout(0.01) as limit:
            try:
                await task
            finally:
                w.note_me("inside")
        w.note(limit.expired())

    await w.outcome(limited())
    w.note_me("after")


@scenario
async def shield_keeps_the_task(w: World) -> None:
    go = Event()

    async def waiting() -> str:
        await go.wait()
        return "finished"

    task = w.start(waiting())

    async def shielded() -> Any:
        return await asyncio.shield(task)

    outer = asyncio.create_task(shielded())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    outer.cancel("outer only")
    await w.outcome(outer)
    w.note(task.done())
    go.set()
    await w.outcome(task)


@scenario
async def wait_sorts_tasks_into_done_and_pending(w: World) -> None:
    sleeper = Sleeper(w)
    slow, good, bad = w.start(sleeper()), w.start(value(1)), w.start(failing(ValueError("b")))
    await sleeper.started.wait()
    done, pending = await asyncio.wait([good], return_when=asyncio.FIRST_COMPLETED)
    w.note(done == {good}, pending == set())
    done, pending = await asyncio.wait([slow, bad], return_when=asyncio.FIRST_EXCEPTION)
    w.note(done == {bad}, pending == {slow})
    done, pending = await asyncio.wait([slow, good], timeout=0.01)
    w.note(done == {good}, pending == {slow}, slow.done())
    slow.cancel()
    done, pending = await asyncio.wait({slow, good, bad})
    w.note(len(done), len(pending), slow.cancelled(), describe(bad.exception()))


@scenario
async def as_completed_gives_each_once(w: World) -> None:
    results = [await next_done for next_done in asyncio.as_completed([w.start(value(n)) for n in range(5)], timeout=30)]
    w.note(sorted(results))
    tasks = [w.start(value(n)) for n in range(3)]
    same = [done in tasks and done.done() async for done in asyncio.as_completed(tasks)]
    w.note(same)
    sleeper = Sleeper(w)
    late = w.start(sleeper())
    await sleeper.started.wait()
    for next_done in asyncio.as_completed([late], timeout=0.01):
        await w.outcome(next_done)
    w.note(late.done())
    late.cancel("tidy")
    await w.outcome(late)


@scenario
async def asyncio_gather_takes_handles(w: World) -> None:
    twice = w.start(value("b"))
    await w.outcome(asyncio.gather(w.start(value("a")), twice, value("c"), twice))
    bad = w.start(failing(ValueError("g")))
    await w.outcome(asyncio.gather(w.start(value(1)), bad))
    w.note([describe(r) for r in await asyncio.gather(w.start(failing(OSError(1))), bad, return_exceptions=True)])
    await w.outcome(asyncio.gather(bad, w.start(value(2))))


@scenario
async def done_callbacks_run_on_the_loop_that_added_them(w: World) -> None:
    called = asyncio.Event()
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("outside")
    go = Event()

    async def waiting() -> int:
        await go.wait()
        return 1

    task = w.start(waiting())

    def on_done(done: Any) -> None:
        w.note(done is task, done.result(), variable.get())
        called.set()

    def never(done: Any) -> None:
        w.note("removed all the same")

    task.add_done_callback(on_done)
    task.add_done_callback(never)
    task.add_done_callback(never)
    w.note(task.remove_done_callback(never), task.remove_done_callback(never))
    variable.set("changed since")
    go.set()
    await called.wait()
    called.clear()
    task.add_done_callback(on_done, context=contextvars.Context())
    w.note("never in the call itself")
    await called.wait()


# gather


@scenario
async def gather_keeps_the_order_and_takes_anything(w: World) -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_result("future")
    coro, task = value("coroutine"), asyncio.create_task(value("task"))
    handle = w.start(value("handle"))
    await w.outcome(w.gather(coro, future, handle, task, coro, handle))
    await w.outcome(w.gather())
    await w.outcome(w.gather(handle))


@scenario
async def gather_raises_the_first_error_and_lets_the_others_run(w: World) -> None:
    go, ended = Event(), Event()

    async def slow() -> str:
        await go.wait()
        w.note("ran on")
        ended.set()
        return "slow"

    await w.outcome(w.gather(failing(ValueError("first")), slow()))
    go.set()
    await ended.wait()


@scenario
async def gather_returns_exceptions_when_told(w: World) -> None:
    sleeper = Sleeper(w)
    cancelled = w.start(sleeper())
    await sleeper.started.wait()
    cancelled.cancel("one of them")
    results = await w.gather(failing(ValueError("v")), value(1), cancelled, return_exceptions=True)
    # asyncio drops the message of a cancellation here; polyloop keeps it where the task is at home.
    w.note([type(r).__name__ if isinstance(r, BaseException) else r for r in results])


@scenario
async def gather_raises_when_a_child_is_cancelled(w: World) -> None:
    sleeper = Sleeper(w)
    task = w.start(sleeper())
    await sleeper.started.wait()
    gathered = asyncio.create_task(w.outcome(w.gather(task, value(1))))
    await asyncio.sleep(0)
    task.cancel("child only")
    await gathered
    w.note_me("me")


@scenario
async def a_cancelled_gather_cancels_all_that_run(w: World) -> None:
    for return_exceptions in (False, True):
        sleepers = [Sleeper(w, "sleeper") for _ in range(3)]
        handle = w.start(sleepers[2]())

        async def gathering(sleepers: list[Sleeper] = sleepers, flag: bool = return_exceptions, h: Any = handle) -> Any:
            return await w.gather(value("done"), sleepers[0](), sleepers[1](), h, return_exceptions=flag)

        outer = asyncio.create_task(gathering())
        for sleeper in sleepers:
            await sleeper.started.wait()
        await asyncio.sleep(0)
        outer.cancel("all of you")
        await w.outcome(outer)
        for sleeper in sleepers:  # the first that ends cancelled ends the gather
            await sleeper.ended.wait()
        await asyncio.wait([handle])
        w.note(outer.cancelled(), outer.cancelling(), handle.cancelled())


# gather of nothing but coroutines, which tasks that migrate do in one go


@scenario
async def gather_of_coroutines(w: World) -> None:
    await w.outcome(w.gather(*(value(n) for n in range(20))))
    await w.outcome(w.gather(*(value(None) for _ in range(3))))

    async def at_once(result: Any) -> Any:
        return result

    await w.outcome(w.gather(*(at_once(n if n % 2 else None) for n in range(20))))
    await w.outcome(w.gather(*(w.gather(value(n), value(-n)) for n in range(3))))


@scenario
async def gather_of_coroutines_that_fail(w: World) -> None:
    await w.outcome(w.gather(*(failing(KeyError(n)) if n else value(n) for n in range(2))))
    found = await w.gather(failing(ValueError(1)), value(2), failing(OSError(3, "x")), return_exceptions=True)
    w.note([describe(one) if isinstance(one, BaseException) else one for one in found])


@scenario
async def gather_of_coroutines_that_end_cancelled(w: World) -> None:
    async def cancels_itself(msg: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel(msg)
        await asyncio.sleep(0)

    found = await w.gather(value(1), cancels_itself("me"), return_exceptions=True)
    w.note(found[0], type(found[1]).__name__)
    outcome = await w.outcome(w.gather(cancels_itself("only me"), value(1)))
    w.note(type(outcome).__name__)
    w.note_me("me")


@scenario
async def a_cancelled_gather_of_coroutines(w: World) -> None:
    for return_exceptions in (False, True):
        for then in (None, lambda: "swallowed", raise_value_error):
            sleepers = [Sleeper(w, "sleeper", then) for _ in range(3)]
            gathering = w.gather(*(sleeper() for sleeper in sleepers), return_exceptions=return_exceptions)

            async def awaiting(gathering: Any = gathering) -> Any:
                return await gathering

            outer = asyncio.create_task(awaiting())
            for sleeper in sleepers:
                await sleeper.started.wait()
            await asyncio.sleep(0)
            w.note(outer.cancel("all of you"))
            await w.outcome(outer)
            for sleeper in sleepers:
                await sleeper.ended.wait()
            await w.outcome(gathering)
            w.note(gathering.done(), gathering.cancelled(), gathering.cancel(), outer.cancelled())


@scenario
async def a_gather_that_has_failed_is_not_cancelled(w: World) -> None:
    go, ended = Event(), Event()

    async def slow() -> None:
        await go.wait()
        w.note_me("slow")
        ended.set()

    gathering = w.gather(failing(ValueError("first")), slow())
    await w.outcome(gathering)
    w.note(gathering.cancel("late"))
    go.set()
    await ended.wait()
    await w.outcome(gathering)


# TaskGroup


@scenario
async def a_group_waits_for_its_children(w: World) -> None:
    async with w.task_group() as tg:
        tasks = [tg.create_task(value(n), name=f"task {n}") for n in range(3)]
    w.note([task.result() for task in tasks], [task.get_name() for task in tasks], repr(tg))


@scenario
async def a_failing_child_cancels_siblings_and_block(w: World) -> None:
    sleeper = Sleeper(w)

    async def block() -> None:
        try:
            async with w.task_group() as tg:
                sibling = tg.create_task(sleeper())
                await sleeper.started.wait()
                tg.create_task(failing(ValueError("child")))
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError as exc:
                    w.note("block", exc.args)
                    w.note_me("block")
                    raise
        finally:
            w.note_me("after")
            w.note(sibling.cancelled())

    await w.outcome(asyncio.create_task(block()))


@scenario
async def a_cancelled_parent_cancels_its_children(w: World) -> None:
    for in_block in (True, False):
        sleepers = [Sleeper(w), Sleeper(w)]

        async def parent(sleepers: list[Sleeper] = sleepers, in_block: bool = in_block) -> None:
            async with w.task_group() as tg:
                for sleeper in sleepers:
                    tg.create_task(sleeper())
                if in_block:
                    await asyncio.sleep(3600)

        task = asyncio.create_task(parent())
        for sleeper in sleepers:
            await sleeper.started.wait()
        await asyncio.sleep(0)
        task.cancel("parent")
        await w.outcome(task)
        w.note(task.cancelled(), task.cancelling())


@scenario
async def errors_during_a_cancellation_win(w: World) -> None:
    sleeper = Sleeper(w, then=raise_value_error)

    async def parent() -> None:
        try:
            async with w.task_group() as tg:
                tg.create_task(sleeper())
        finally:
            w.note_me("parent")

    task = asyncio.create_task(parent())
    await sleeper.started.wait()
    await asyncio.sleep(0)
    task.cancel("parent")
    await w.outcome(task)
    w.note(task.cancelling())


@scenario
async def a_raising_block_cancels_its_children_and_joins_their_errors(w: World) -> None:
    sleeper = Sleeper(w, then=raise_value_error)

    async def block() -> None:
        async with w.task_group() as tg:
            tg.create_task(sleeper())
            await sleeper.started.wait()
            raise KeyError("block")

    await w.outcome(asyncio.create_task(block()))


@scenario
async def a_cancelled_child_is_no_error(w: World) -> None:
    sleeper = Sleeper(w)
    async with w.task_group() as tg:
        child = tg.create_task(sleeper())
        await sleeper.started.wait()
        asked = child.cancel("one")
    w.note(asked, child.cancelled())
    w.note_me("me")


@scenario
async def groups_nest(w: World) -> None:
    async def inner(sleeper: Sleeper) -> None:
        async with w.task_group() as tg:
            tg.create_task(sleeper())

    sleeper = Sleeper(w)

    async def outer() -> None:
        async with w.task_group() as tg:
            tg.create_task(inner(sleeper))
            await sleeper.started.wait()
            tg.create_task(failing(OSError("outer")))

    await w.outcome(asyncio.create_task(outer()))


@scenario
async def a_group_refuses_children_when_it_may_not_take_them(w: World) -> None:
    tg = w.task_group()
    refused = value(0)
    try:
        tg.create_task(refused)
    except RuntimeError as exc:
        w.note(str(exc).partition("> ")[2])
    async with tg:
        pass
    refused = value(0)
    try:
        tg.create_task(refused)
    except RuntimeError as exc:
        w.note(str(exc).partition("> ")[2])
    try:
        async with tg:
            w.note("entered twice")
    except RuntimeError as exc:
        w.note(str(exc).partition("> ")[2])


@scenario
async def children_see_a_copy_of_the_context(w: World) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("parent")

    async def child() -> tuple[str, str]:
        seen = variable.get()
        variable.set("child")
        await asyncio.sleep(0)
        return seen, variable.get()

    mine = contextvars.Context()
    async with w.task_group() as tg:
        plain, given = tg.create_task(child()), tg.create_task(child(), context=mine)
    w.note(plain.result(), given.result(), variable.get(), mine[variable])

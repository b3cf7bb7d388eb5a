"""Wrong calls: each is refused at once, with a message that says what to do instead."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.runtime.helpers import PATIENCE, Gate, in_thread, is_closed, where, worker_threads

import polyloop
from polyloop import BlockingCallError, NoRuntimeError, Runtime, RuntimeClosedError


async def nothing() -> None:
    """Does nothing."""


def message(kind: type[BaseException], call: Callable[[], object]) -> str:
    """The message of the error that ``call`` must raise."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return str(caught.value)


def refuses_to_run(error: type[BaseException], text: str, **options: Any) -> None:
    """``polyloop.run`` and ``Runtime`` refuse ``options`` in the same words."""
    coro = nothing()
    assert message(error, lambda: polyloop.run(coro, **options)) == text
    assert is_closed(coro)  # closed
    assert message(error, lambda: Runtime(**options)) == text


@pytest.mark.parametrize("loops", [0, -1, 2.5, "4"])
def test_wrong_number_of_loops(loops: Any) -> None:
    """At least one, and whole."""
    refuses_to_run(
        ValueError, f"a runtime needs a whole number of loops, at least one; got loops={loops!r}", loops=loops
    )


def test_placement_of_unknown_name() -> None:
    """The known names are listed."""
    refuses_to_run(
        ValueError,
        "no placement is called 'fastest'; use one of 'least_loaded', 'round_robin', 'here', a Worker, or a policy"
        " object",
        placement="fastest",
    )


@pytest.mark.parametrize("placement", [None, 3, polyloop.runtime.LeastLoaded])
def test_placement_that_is_no_policy(placement: Any) -> None:
    """A class, or any other object, is not taken for a policy."""
    refuses_to_run(
        TypeError,
        f"{placement!r} is no placement; use one of 'least_loaded', 'round_robin', 'here', a Worker, or an object"
        " with choose()",
        placement=placement,
    )


@pytest.mark.parametrize("spin", [-1.0, 0.5, 3])
def test_spin_out_of_range(spin: float) -> None:
    """Spinning is bounded."""
    refuses_to_run(
        ValueError, f"spin is a time in seconds between 0 and 0.01, or a bool; got {spin!r}", loops=1, spin=spin
    )


def test_run_with_something_else_than_a_coroutine() -> None:
    """The usual slip is to pass the function."""
    text = message(TypeError, lambda: polyloop.run(nothing))  # type: ignore[arg-type]
    assert text == f"run() needs a coroutine, got {nothing!r}; call the async function: polyloop.run(main())"
    with Runtime(loops=1) as runtime:
        text = message(TypeError, lambda: runtime.run(nothing))  # type: ignore[arg-type]
        assert text == f"run() needs a coroutine, got {nothing!r}; call the async function: runtime.run(main())"
        text = message(TypeError, lambda: runtime.submit(5))  # type: ignore[arg-type]
        assert text == "submit() needs a coroutine, got 5; call the async function: submit(main())"


def test_run_inside_a_running_loop() -> None:
    """As ``asyncio.run``, and the coroutine is closed."""

    async def main() -> str:
        coro = nothing()
        text = message(RuntimeError, lambda: polyloop.run(coro))
        assert is_closed(coro)
        return text

    expected = "polyloop.run() cannot be called from a running event loop; await the coroutine instead"
    assert polyloop.run(main(), loops=1) == expected
    assert asyncio.run(main()) == expected


def test_spawn_with_a_coroutine_instead_of_a_function() -> None:
    """``spawn(fetch(url))`` says how it is written."""
    coro = nothing()
    with Runtime(loops=1) as runtime:
        text = message(TypeError, lambda: runtime.spawn(coro))  # type: ignore[arg-type]
    assert text == f"spawn() calls the function itself, got {coro!r}; write spawn(fetch, url) or submit(fetch(url))"
    assert is_closed(coro)


def test_spawn_with_a_sync_function() -> None:
    """The result shows that it was no coroutine; ``to_thread`` is named."""

    def sync() -> int:
        return 5

    with Runtime(loops=1) as runtime:
        text = message(TypeError, lambda: runtime.spawn(sync))  # type: ignore[arg-type]
    assert text == f"spawn() needs an async function, and {sync!r} returned 5; use to_thread() for it"


def test_spawn_before_start_and_after_close() -> None:
    """The message tells the two apart; the function is not called."""

    def never() -> Any:
        raise AssertionError("called")

    runtime = Runtime(loops=2)
    name = "test_spawn_before_start_and_after_close.<locals>.never"
    assert message(RuntimeClosedError, lambda: runtime.spawn(never)) == (
        f"cannot start {name}: <Runtime 'polyloop' new loops=2> is not running; spawn inside its 'with' block"
    )
    with runtime:
        pass
    assert message(RuntimeClosedError, lambda: runtime.spawn(never)) == (
        f"cannot start {name}: <Runtime 'polyloop' closed loops=2> is not running; start a new Runtime"
    )
    assert message(RuntimeClosedError, lambda: runtime.run(nothing())) == (
        "cannot start nothing: <Runtime 'polyloop' closed loops=2> is not running; start a new Runtime"
    )


def test_spawn_with_a_wrong_on() -> None:
    """An unknown name, an object that is no policy, a worker of another runtime, and ``on`` beside ``key``."""
    with Runtime(loops=1, name="other") as other, Runtime(loops=2) as runtime:
        stranger = other.workers[0]

        def refused(kind: type[BaseException], on: Any) -> str:
            return message(kind, lambda: runtime.spawn(nothing, on=on))

        names = "'least_loaded', 'round_robin', 'here'"
        assert refused(ValueError, "fastest") == (
            f"no placement is called 'fastest'; use one of {names}, a Worker, or a policy object"
        )
        assert refused(TypeError, 3) == (f"3 is no placement; use one of {names}, a Worker, or an object with choose()")
        assert refused(ValueError, stranger) == (
            "<Worker 'other-0'> is no worker of <Runtime 'polyloop' running loops=2>; use one of its .workers"
        )
        for on in (runtime.workers[1], "here", stranger):
            text = message(ValueError, lambda on=on: runtime.spawn(nothing, on=on, key=1))  # type: ignore[misc]
            assert text == f"both on={on!r} and key=1 say where to run; give one"
        unhashable: Any = []
        assert message(TypeError, lambda: runtime.spawn(nothing, key=unhashable)).startswith("unhashable type")
        assert runtime.spawn(where).result(PATIENCE)


def test_result_on_a_loop_thread() -> None:
    """It would block the loop: refused at once, with the awaitable spelling."""
    gate = Gate()

    async def main() -> tuple[str, str]:
        handle = polyloop.spawn(gate.step, on=polyloop.current_runtime().workers[1])
        gate.wait_entered()
        try:
            return (
                message(BlockingCallError, handle.result),
                message(BlockingCallError, handle.exception),
            )
        finally:
            gate.open()
            await handle

    handle = "<TaskHandle 'Gate.step' pending on polyloop-1>"
    advice = "would block the event loop of thread 'MainThread'; use 'await handle' there"
    assert polyloop.run(main(), loops=2) == (f"{handle}.result() {advice}", f"{handle}.exception() {advice}")


def test_result_of_a_finished_task_on_a_loop_thread() -> None:
    """Nothing to wait for, nothing to refuse."""

    async def main() -> str:
        handle = polyloop.spawn(where, on=polyloop.current_runtime().workers[1])
        await handle
        return handle.result()

    assert polyloop.run(main(), loops=2) == "polyloop-1"


def test_result_that_is_not_there_in_time() -> None:
    """TimeoutError names the handle and its state; the task runs on."""
    gate = Gate()
    with Runtime(loops=1) as runtime:
        handle = runtime.spawn(gate.step)
        gate.wait_entered()
        text = message(TimeoutError, lambda: handle.result(timeout=0.01))
        assert text == "<TaskHandle 'Gate.step' pending on polyloop-0> was not done after 0.01 s"
        gate.open()
        assert handle.result(PATIENCE) == "polyloop-0"


def test_runtime_used_with_with_on_a_loop_thread() -> None:
    """The sync block would stop the caller's loop: the async one is named. Same for ``run``."""

    async def main() -> tuple[str, str]:
        first = message(BlockingCallError, Runtime(loops=1).__enter__)
        async with Runtime(loops=1) as runtime:
            coro = nothing()
            second = message(BlockingCallError, lambda: runtime.run(coro))
            assert is_closed(coro)
        return first, second

    assert asyncio.run(main()) == (
        "Runtime.start() would block the event loop of thread 'MainThread'; use 'async with Runtime()' there",
        "Runtime.run() would block the event loop of thread 'MainThread'; use 'await runtime.submit(...)' there",
    )


def test_current_runtime_without_one_and_with_too_many() -> None:
    """The message says which of the two it is."""
    assert message(NoRuntimeError, polyloop.current_runtime) == (
        "no runtime is running; use polyloop.run(main()) or 'with polyloop.Runtime() as rt:'"
    )
    with Runtime(loops=1), Runtime(loops=1):
        assert message(NoRuntimeError, lambda: polyloop.spawn(nothing)) == (
            "2 runtimes are running and this thread belongs to none; call the one you mean"
        )


def test_thread_that_cannot_be_started_undoes_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error surfaces at once, and the workers that came up go."""
    from polyloop._core import _prims

    start = _prims.start_thread

    def start_thread(target: Callable[[], None], name: str) -> Any:
        if name == "polyloop-2":
            raise RuntimeError("can't start new thread")
        return start(target, name)

    monkeypatch.setattr(_prims, "start_thread", start_thread)
    runtime = Runtime(loops=3)
    assert message(RuntimeError, runtime.start) == "can't start new thread"
    assert message(RuntimeError, lambda: polyloop.run(nothing(), loops=3)) == "can't start new thread"

    async def main() -> None:
        async with Runtime(loops=3):
            raise AssertionError("started")

    assert message(RuntimeError, lambda: asyncio.run(main())) == "can't start new thread"
    assert worker_threads() == []
    assert in_thread(lambda: runtime.close().clean)

"""What type checkers make of tasks and offloaded calls. ``make lint`` reads this file; running it checks the values."""

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

import pytest

import polyloop
from polyloop.runtime import RuntimeFuture


@polyloop.async_wrap
def bare(number: int, *, text: str = "") -> float:
    return number + len(text)


@polyloop.async_wrap(limit=2)
def limited(text: str) -> list[str]:
    return [text]


class Thing:
    @polyloop.async_wrap
    def method(self, number: int) -> str:
        return str(number)


async def coroutine(number: int, text: str) -> bytes:
    return (text * number).encode()


def plain(number: int, text: str) -> bytes:
    return (text * number).encode()


async def wrapped_functions_keep_their_types() -> None:
    assert_type(await bare(1, text="a"), float)
    assert_type(await limited("b"), list[str])
    assert_type(await Thing().method(3), str)
    fn: Callable[[str], Coroutine[Any, Any, list[str]]] = limited
    assert await fn("c") == ["c"]


async def calls_on_threads_have_the_functions_result() -> None:
    assert_type(await polyloop.to_thread(plain, 2, "d"), bytes)
    assert_type(await polyloop.to_thread(plain, 2, text="e"), bytes)
    assert_type(await polyloop.to_thread(plain, 2, "f", limiter=polyloop.CapacityLimiter(1)), bytes)


async def offloaded_calls_have_the_functions_result_or_the_coroutines() -> None:
    executor = polyloop.current_runtime().as_executor()
    assert_type(await polyloop.offload(plain, 2, "m"), bytes)
    assert_type(await polyloop.offload(plain, 2, text="n", on="cpu"), bytes)
    assert_type(await polyloop.offload(coroutine, 2, "o", on=executor), bytes)
    assert_type(await polyloop.offload(coroutine, 2, text="p", on=executor), bytes)
    assert_type(executor.submit(plain, 2, "q"), RuntimeFuture[bytes])
    assert_type(executor.submit(coroutine, 2, text="r"), RuntimeFuture[bytes])
    fn: Callable[[int, str], Coroutine[Any, Any, bytes]] = polyloop.async_wrap(executor=executor)(coroutine)
    assert_type(await fn(2, "s"), bytes)


async def tasks_have_the_coroutines_result() -> None:
    async with polyloop.TaskGroup() as tg:
        handle = tg.create_task(coroutine(1, "g"))
        tg.start_soon(coroutine, 1, "h")
    assert_type(handle, polyloop.TaskHandle[bytes])
    assert_type(await handle, bytes)
    assert_type(handle.result(), bytes)
    assert_type(polyloop.spawn(coroutine, 1, "i"), polyloop.TaskHandle[bytes])
    assert_type(await polyloop.gather(coroutine(1, "j"), coroutine(2, "k")), list[bytes])
    both = await polyloop.gather(coroutine(1, "l"), return_exceptions=True)
    assert_type(both, list[bytes | BaseException])


async def wrong_calls(tg: polyloop.TaskGroup) -> None:
    """Never run: mypy says so when one of these is no error any more."""
    await bare("wrong")  # type: ignore[arg-type]
    await limited(1)  # type: ignore[arg-type]
    tg.start_soon(coroutine, "wrong", 1)  # type: ignore[arg-type]
    polyloop.spawn(coroutine, 1)  # type: ignore[arg-type]


@pytest.mark.usefixtures("processes")
def test_the_types_are_those_of_the_values() -> None:
    """Each function above runs; what it asserts of types is checked by mypy and pyright."""

    async def main() -> int:
        checks = (
            wrapped_functions_keep_their_types,
            calls_on_threads_have_the_functions_result,
            offloaded_calls_have_the_functions_result_or_the_coroutines,
            tasks_have_the_coroutines_result,
        )
        for check in checks:
            await check()
        return len(checks)

    assert polyloop.run(main(), loops=1) == 4

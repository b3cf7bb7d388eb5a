"""Fork: the child's runtime is closed and says so, the parent's notices nothing."""

import os
import sys

import pytest
from tests.runtime.helpers import run_program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

BELONGS = (
    "<Runtime 'polyloop' closed loops=2> belongs to the parent process: only the thread that forked lives on in this"
    " one; start a new Runtime here, or use the 'spawn' or 'forkserver' start method"
)

PREAMBLE = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about fork beside threads

def attempt(name, call):
    try:
        print(name, repr(call()), flush=True)
    except BaseException as exc:
        print(name, type(exc).__name__, exc, flush=True)

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

async def where():
    await asyncio.sleep(0)
    return threading.current_thread().name
"""


def test_child_of_a_plain_thread_is_told_and_the_parent_goes_on() -> None:
    """Spawn, result, run and close say or do the right thing in the child; a new runtime works there."""
    ended = run_program(
        PREAMBLE
        + """
with polyloop.Runtime(loops=2) as rt:
    running = rt.spawn(asyncio.sleep, 0.2, "slept", on=rt.workers[1])
    rt.run(where())
    pid = os.fork()
    if pid == 0:
        attempt("spawn", lambda: rt.spawn(where))
        attempt("run", lambda: rt.run(where()))
        attempt("result", running.result)
        attempt("current", polyloop.current_runtime)
        attempt("close", rt.close)
        with polyloop.Runtime(loops=2, name="child") as fresh:
            attempt("fresh", lambda: fresh.run(where()).startswith("child-"))
        sys.exit(7)
    print("child ended with", wait(pid))
    attempt("parent", lambda: sorted({rt.spawn(where, on=w).result(10) for w in rt.workers}))
    attempt("parent", running.result)
    attempt("parent", lambda: rt.close().clean)
"""
    )
    assert ended.out.splitlines() == [
        f"spawn RuntimeClosedError cannot start where: {BELONGS}",
        f"run RuntimeClosedError cannot start where: {BELONGS}",
        f"result RuntimeClosedError {BELONGS}",
        "current NoRuntimeError no runtime is running; use polyloop.run(main()) or 'with polyloop.Runtime() as rt:'",
        "close ShutdownReport(stuck=())",
        "fresh True",
        "child ended with 7",
        "parent ['polyloop-0', 'polyloop-1']",
        "parent 'slept'",
        "parent True",
    ]
    assert (ended.code, ended.err) == (0, "")


def test_child_of_worker_0_that_goes_on_awaiting_gets_the_error() -> None:
    """A coroutine that forked cannot go on in the child: its loop says why; the parent's loops live."""
    ended = run_program(
        PREAMBLE
        + """
async def main():
    rt = polyloop.current_runtime()
    running = rt.spawn(asyncio.sleep, 0.2, "slept", on=rt.workers[1])
    pid = os.fork()
    if pid == 0:
        attempt("spawn", lambda: rt.spawn(where))
        attempt("result", running.result)
        await asyncio.sleep(0.01)
        print("the child's loop ran on")
    print("child ended with", wait(pid))
    print(await rt.spawn(where, on=rt.workers[1]), await running)
    await asyncio.sleep(0.01)

polyloop.run(main(), loops=2)
"""
    )
    assert ended.out.splitlines() == [
        f"spawn RuntimeClosedError cannot start where: {BELONGS}",
        f"result RuntimeClosedError {BELONGS}",
        "child ended with 1",
        "polyloop-1 slept",
    ]
    assert f"\npolyloop._core._errors.RuntimeClosedError: {BELONGS}\n" in ended.err
    assert ended.code == 0


NO_EXIT = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="asyncio 3.14 refuses to step a loop that a fork has stopped, sys.exit included"
)


@pytest.mark.parametrize("leave", [pytest.param("sys.exit(5)", marks=NO_EXIT), "os._exit(5)"])
def test_child_of_worker_0_that_exits_leaves_the_parents_loop_whole(leave: str) -> None:
    """Closing the child's copy of the loop takes nothing out of the epoll object that both processes share."""
    ended = run_program(
        PREAMBLE
        + f"""
async def main():
    rt = polyloop.current_runtime()
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            {leave}
        assert wait(pid) == 5
    for worker in rt.workers[1:] * 50:
        await rt.spawn(where, on=worker)
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    threading.Thread(target=lambda: loop.call_soon_threadsafe(woken.set_result, "woken")).start()
    print(await woken)

polyloop.run(main(), loops=2)
"""
    )
    assert (ended.out, ended.code) == ("woken\n", 0), ended.err
    assert "Error" not in ended.err


def test_multiprocessing_fork_from_a_thread_pool_works() -> None:
    """A forked process pool beside a runtime computes, and its end disturbs nobody."""
    ended = run_program(
        PREAMBLE
        + """
import concurrent.futures, multiprocessing

async def main():
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        loop = asyncio.get_running_loop()
        print(await loop.run_in_executor(pool, pow, 2, 10))
    print(await polyloop.spawn(where, on=polyloop.current_runtime().workers[1]))

polyloop.run(main(), loops=2)
"""
    )
    assert (ended.out, ended.code) == ("1024\npolyloop-1\n", 0), ended.err

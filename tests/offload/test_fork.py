"""A fork in an offloaded call: the child's thread belongs to nobody there."""

import os

import pytest
from tests.runtime.helpers import run_program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.mark.parametrize("run", ["asyncio.run(main())", "polyloop.run(main(), loops=2)"])
def test_the_child_of_a_call_runs_no_call(run: str) -> None:
    """Nothing is abandoned there, and what asks for the caller's loop is told that there is none."""
    ended = run_program(
        f"""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about fork beside threads
from polyloop import from_thread, thread_pool
from polyloop._core._context import here

begun, release = threading.Event(), threading.Event()

def stubborn():
    begun.set()
    release.wait()

def fork():
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(10)  # ends it, should it wait
    try:
        print("child", thread_pool().abandoned, here.call_port, here.scope, here.pool, flush=True)
        from_thread.run(asyncio.sleep, 0)
    except polyloop.NoRuntimeError as exc:
        print(exc, flush=True)
    finally:
        os._exit(7)

async def main():
    left = asyncio.create_task(polyloop.to_thread(stubborn, on_cancel="abandon"))
    await asyncio.to_thread(begun.wait)
    left.cancel()
    await asyncio.wait([left])
    code = await polyloop.to_thread(fork, on_cancel="interrupt")
    print("parent", thread_pool().abandoned, code)
    release.set()

{run}
"""
    )
    assert ended.out.splitlines() == [
        "child 0 None None None",
        "no runtime is running; use polyloop.run(main()) or 'with polyloop.Runtime() as rt:'",
        "parent 1 7",
    ]
    assert (ended.code, ended.err) == (0, "")

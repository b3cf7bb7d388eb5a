"""Calls on a real cluster: where they run, and what comes back."""

import asyncio
import concurrent.futures
import functools
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.distributed import jobs
from tests.distributed.conftest import ROOT, Cluster, Gate

import polyloop
from polyloop.distributed import DaskOffload, shared


def test_neither_polyloop_nor_this_package_imports_dask() -> None:
    """It costs a second, and is for those who use it."""
    code = "import sys, polyloop.distributed; print(sorted({'dask', 'distributed', 'tornado'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_call_runs_in_a_process_of_the_cluster(offload: DaskOffload, cluster: Cluster) -> None:
    """Not in this one."""
    assert offload.submit(jobs.where).result() in {worker.pid for worker in cluster.workers}


def test_map_keeps_the_order(offload: DaskOffload) -> None:
    """Whoever is done first."""
    assert list(offload.map(jobs.square, range(200))) == [n * n for n in range(200)]


def test_lambdas_and_closures_travel(offload: DaskOffload) -> None:
    """And partial functions, with keyword arguments."""
    here = os.getpid()
    assert offload.submit(lambda: (os.getpid() == here, here)).result() == (False, here)
    assert offload.submit(functools.partial(pow, mod=5), 3, exp=2).result() == 4


def test_async_functions_share_the_runtime_of_their_process(offload: DaskOffload, cluster: Cluster) -> None:
    """It is polyloop's own, started once in each process."""
    found = [future.result() for future in [offload.submit(jobs.on_a_runtime) for _ in range(20)]]
    runtimes = {(pid, runtime) for pid, runtime, _, _ in found}
    assert len(runtimes) == len({pid for pid, _ in runtimes})
    assert {pid for pid, _ in runtimes} <= {worker.pid for worker in cluster.workers}
    assert all(thread.startswith("polyloop-dask") for _, _, thread, _ in found)
    assert DaskOffload.runs_coroutines


def test_any_loop_and_any_thread_may_submit(offload: DaskOffload) -> None:
    """The futures are those of ``concurrent.futures``: asyncio awaits them, threads wait for them."""

    async def main(first: int) -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(offload, jobs.square, n) for n in range(first, first + 5)]
        return list(await asyncio.gather(*calls))

    async def both() -> list[list[int]]:
        return await polyloop.gather(main(0), main(5))

    assert polyloop.run(both(), loops=2) == [[n * n for n in range(5)], [n * n for n in range(5, 10)]]
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(offload.submit(jobs.square, 2).result())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [4] * 4
    done, _ = concurrent.futures.wait([offload.submit(jobs.square, n) for n in range(3)])
    assert len(done) == 3


def test_async_wrap_takes_it_as_executor(offload: DaskOffload) -> None:
    """For a function of a module, whose name leads to the wrapper, and for one that is found nowhere."""
    far = polyloop.async_wrap(executor=offload)(jobs.where)
    local = polyloop.async_wrap(executor=offload)(lambda: os.getpid())
    there = polyloop.async_wrap(executor=offload)(jobs.wrapped.__wrapped__)  # type: ignore[attr-defined]
    assert os.getpid() not in {asyncio.run(far()), polyloop.run(local())}
    assert asyncio.run(there(1)) == 2


def test_a_wrapped_function_may_be_submitted_itself(offload: DaskOffload) -> None:
    """It is an async function, and runs as one over there."""
    assert offload.submit(jobs.wrapped, 1).result() == 2


def test_a_program_is_its_own_module(cluster: Cluster) -> None:
    """What ``__main__`` defines goes as it is, decorated functions that hold the executor included."""
    program = f"""
import polyloop
from polyloop.distributed import DaskOffload

cluster = DaskOffload({cluster.address!r})

@polyloop.async_wrap(executor=cluster)
def double(n):
    return helper(n)

def helper(n):
    return n * 2

async def plus_one(n):
    return helper(n) + 1

async def main():
    async with cluster:
        futures = [cluster.submit(plus_one, n) for n in range(3)]
        print(await polyloop.gather(*(double(n) for n in range(3))), [f.result() for f in futures])

polyloop.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[0, 2, 4] [1, 3, 5]\n", "")


def test_a_program_that_forgets_to_close_ends(cluster: Cluster, gate: Gate) -> None:
    """At once, although a call still runs; nobody can wait for it any more."""
    program = f"""
from tests.distributed import jobs
from polyloop.distributed import shared
future = shared({cluster.address!r}).submit(jobs.hold, {gate.path!r}, 1)
assert shared({cluster.address!r}).submit(jobs.square, 3).result() == 9
future.add_done_callback(lambda f: print(f.cancelled()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    gate.open()
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_parameter_sweep_finds_the_same_on_the_cluster(cluster: Cluster, by: str) -> None:
    """The program is told where by its argument or by the environment, and is otherwise the same."""
    example = [sys.executable, "-W", "error", str(ROOT / "examples" / "parameter_sweep.py")]
    plain = {name: value for name, value in os.environ.items() if name != "POLYLOOP_OFFLOAD"}
    there: dict[str, Any] = {"args": [*example, cluster.address], "env": plain}
    if by == "environment":
        there = {"args": example, "env": {**plain, "POLYLOOP_OFFLOAD": cluster.address}}
    both = [
        subprocess.run(**how, capture_output=True, text=True, timeout=60, check=False)
        for how in ({"args": example, "env": plain}, there)
    ]
    assert [done.stderr for done in both] == ["", ""]
    (found, where), (found_there, where_there) = (done.stdout.splitlines() for done in both)
    assert found == found_there
    assert where == "in this process"
    assert where_there in ("in 1 other process(es)", "in 2 other process(es)")


def test_shared_makes_one_executor_for_each_address(cluster: Cluster) -> None:
    """Until it is shut down."""
    first = shared(cluster.address)
    assert shared(cluster.address) is first
    assert shared(f"dask:{cluster.address}?window=7").window == 7
    with first:
        assert first.submit(jobs.square, 3).result() == 9
    second = shared(cluster.address)
    assert second is not first
    second.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        first.submit(jobs.square, 1)


def test_a_large_argument_and_a_large_result_travel(offload: DaskOffload) -> None:
    """Beyond the size of one message."""
    data = os.urandom(3 << 20)
    assert offload.submit(lambda data: data[::-1], data).result() == data[::-1]


def test_resources_choose_the_worker(cluster: Cluster) -> None:
    """The one worker that has them runs all calls that need them."""
    with DaskOffload(cluster.address, resources={"LICENCE": 1}) as offload:
        assert {offload.submit(jobs.where).result() for _ in range(6)} == {cluster.workers[0].pid}


def test_retries_run_a_call_again_that_failed(cluster: Cluster, tmp_path: Path) -> None:
    """As often as that; the last failure is the caller's."""
    with DaskOffload(cluster.address, retries=2) as offload:
        assert offload.submit(jobs.fail_until, str(tmp_path), 2).result() == 2
        (more := tmp_path / "more").mkdir()
        with pytest.raises(OSError, match="try 2"):
            offload.submit(jobs.fail_until, str(more), 9).result()

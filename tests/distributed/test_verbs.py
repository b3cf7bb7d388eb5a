"""polyloop's own verbs with a cluster as the place."""

import asyncio
import os

import pytest
from tests.distributed import jobs
from tests.distributed.conftest import Cluster, Gate

import polyloop
from polyloop.distributed import DaskOffload, shared


def test_offload_and_map_take_an_executor(offload: DaskOffload, cluster: Cluster) -> None:
    """Sync functions and async ones; ``map`` with its limit, in order."""

    async def main() -> None:
        pids = {worker.pid for worker in cluster.workers}
        assert await polyloop.offload(jobs.where, on=offload) in pids
        pid, _, thread, met = await polyloop.offload(jobs.on_a_runtime, on=offload)
        assert (pid in pids, thread.startswith("polyloop-dask"), met) == (True, True, True)
        assert await polyloop.offload(pow, 3, 2, mod=5, on=offload) == 4
        squares = [n async for n in polyloop.map(jobs.square, range(100), on=offload, limit=7)]
        assert squares == [n * n for n in range(100)]
        doubled = [n async for n in polyloop.map(jobs.double_async, range(100), on=offload, ordered=False)]
        assert sorted(doubled) == [2 * n for n in range(100)]

    polyloop.run(main(), loops=2)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_the_address_alone_is_enough(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """As an argument, or as ``POLYLOOP_OFFLOAD``; all such calls share one executor."""
    on = cluster.address if by == "argument" else None
    if on is None:
        monkeypatch.setenv("POLYLOOP_OFFLOAD", f"dask:{cluster.address}?window=4")

    async def main() -> list[int]:
        assert await polyloop.offload(jobs.where, on=on) != os.getpid()
        return [n async for n in polyloop.map(jobs.square, range(50), on=on)]

    executor = shared(cluster.address if by == "argument" else f"dask:{cluster.address}?window=4")
    with executor:
        assert polyloop.run(main(), loops=2) == [n * n for n in range(50)]
        assert executor.window == (1000 if by == "argument" else 4)


def test_a_cancelled_offload_ends_at_once(offload: DaskOffload, gate: Gate) -> None:
    """Also where the function runs already: nobody can stop it, and nobody waits for it."""

    async def main() -> None:
        call = asyncio.create_task(polyloop.offload(jobs.hold, gate.path, 1, on=offload))
        await polyloop.to_thread(gate.wait_begun)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    assert (offload.in_flight, offload.waiting) == (0, 0)
    gate.open()


def test_leaving_a_map_early_withdraws_the_rest(offload: DaskOffload) -> None:
    """An endless source is fine."""

    async def main() -> int:
        async with polyloop.map(jobs.square, iter(int, 1), on=offload, limit=20) as results:
            async for result in results:
                return result
        raise AssertionError("no result")

    assert asyncio.run(main()) == 0
    assert (offload.in_flight, offload.waiting) == (0, 0)


def test_the_first_failure_ends_a_map_with_the_original_exception(offload: DaskOffload) -> None:
    """And with the frames of the worker."""

    async def main() -> None:
        async with polyloop.map(jobs.refuse_odd, range(100), on=offload) as results:
            found = [await anext(results)]
            with pytest.raises(jobs.Refused, match="1: odd") as caught:
                found += [result async for result in results]
        assert found == [0]
        trace = caught.value.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        assert trace is not None
        assert trace.tb_frame.f_code.co_name == "refuse_odd"

    asyncio.run(main())

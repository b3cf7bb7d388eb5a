"""Calls that wait, calls that are cancelled, and the end of the executor, on a real cluster."""

import asyncio
import concurrent.futures
import random
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from tests.distributed import jobs
from tests.distributed.conftest import Cluster, Gate, on_client

from polyloop import BlockingCallError
from polyloop.distributed import DaskOffload


def on_scheduler(offload: DaskOffload) -> int:
    """How many calls the scheduler knows."""

    def count(dask_scheduler: object) -> int:
        return sum(name.startswith(("hold", "square", "leave_mark")) for name in dask_scheduler.tasks)  # type: ignore[attr-defined]

    found: int = on_client(offload, "run_on_scheduler", count)
    return found


def test_no_more_calls_than_the_window_holds_are_on_the_scheduler(cluster: Cluster, gate: Gate) -> None:
    """The others wait here, in order, and go as the first ones are done."""
    with DaskOffload(cluster.address, window=3) as offload:
        held = [offload.submit(jobs.hold, gate.path, n) for n in range(3)]
        later = [offload.submit(jobs.square, n) for n in range(40)]
        for _ in held:
            gate.wait_begun()
        assert on_scheduler(offload) == 3
        assert (offload.in_flight, offload.waiting) == (3, 40)
        gate.open()
        assert [future.result() for future in held] == [0, 1, 2]
        assert [future.result() for future in later] == [n * n for n in range(40)]
        assert (offload.in_flight, offload.waiting) == (0, 0)


def test_a_call_that_is_cancelled_before_it_was_sent_never_runs(cluster: Cluster, gate: Gate, tmp_path: Path) -> None:
    """For sure; those behind it do."""
    with DaskOffload(cluster.address, window=1) as offload:
        held = offload.submit(jobs.hold, gate.path, 1)
        marks = [offload.submit(jobs.leave_mark, str(tmp_path / f"mark-{n}")) for n in range(3)]
        gate.wait_begun()
        assert marks[1].cancel()
        assert concurrent.futures.wait([marks[1]], timeout=0).done == {marks[1]}
        gate.open()
        assert held.result() == 1
    assert {file.name for file in tmp_path.glob("mark-*")} == {"mark-0", "mark-2"}
    with pytest.raises(concurrent.futures.CancelledError):
        marks[1].result()


def test_a_call_that_runs_is_cancelled_at_once_and_its_result_dropped(cluster: Cluster, gate: Gate) -> None:
    """It runs to its end over there; here all who wait are told, and the window has room again."""
    with DaskOffload(cluster.address, window=1) as offload:
        told: list[bool] = []
        held = offload.submit(jobs.hold, gate.path, 1)
        held.add_done_callback(lambda future: told.append(future.cancelled()))
        gate.wait_begun()
        waiter = concurrent.futures.as_completed([held])
        assert held.cancel()
        assert held.cancel()
        assert told == [True]
        assert next(waiter) is held
        assert offload.submit(jobs.square, 3).result() == 9  # beside it
        gate.open()
    assert held.cancelled()


def test_a_cancelled_await_cancels_the_call(offload: DaskOffload, gate: Gate) -> None:
    """asyncio passes it on, and ends at once."""

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().run_in_executor(offload, jobs.hold, gate.path, 1)

    asyncio.run(main())
    assert (offload.in_flight, offload.waiting) == (0, 0)
    gate.open()


def test_a_call_that_is_done_cannot_be_cancelled(offload: DaskOffload) -> None:
    """As ever."""
    future = offload.submit(jobs.square, 3)
    assert future.result() == 9
    assert not future.cancel()


def test_each_of_many_calls_that_are_cancelled_at_random_ends_once(cluster: Cluster) -> None:
    """With its result or as cancelled, whatever comes first."""
    with DaskOffload(cluster.address, window=20) as offload:
        futures = [offload.submit(jobs.square, n) for n in range(300)]
        ended: list[Future[int]] = []
        for future in futures:
            future.add_done_callback(ended.append)
        cancelled = {n for n, future in enumerate(futures) if n % 3 == 0 and future.cancel()}
        concurrent.futures.wait(futures)
    assert sorted(map(id, ended)) == sorted(map(id, futures))
    assert cancelled == {n for n, future in enumerate(futures) if future.cancelled()}
    assert all(future.result() == n * n for n, future in enumerate(futures) if n not in cancelled)


@pytest.mark.stress
def test_threads_that_submit_and_cancel_lose_no_call(cluster: Cluster, rng: random.Random, seconds: float) -> None:
    """Every future ends, once; nothing stays in the window; a shutdown in between loses none either."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        offload = DaskOffload(cluster.address, window=rng.randrange(1, 30))
        ended: list[Future[int]] = []
        made: list[Future[int]] = []
        seeds = [rng.random() for _ in range(4)]
        start = threading.Barrier(len(seeds) + 1)

        def work(
            seed: float,
            offload: DaskOffload = offload,
            ended: list[Future[int]] = ended,
            made: list[Future[int]] = made,
            start: threading.Barrier = start,
        ) -> None:
            chance = random.Random(seed)
            start.wait()
            for n in range(60):
                try:
                    future = offload.submit(jobs.square, n)
                except RuntimeError:  # shut down meanwhile
                    return
                future.add_done_callback(ended.append)
                made.append(future)
                if chance.random() < 0.4:
                    chance.choice(made).cancel()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        start.wait()
        if rng.random() < 0.5:
            offload.shutdown(wait=False, cancel_futures=rng.random() < 0.5)
        for thread in threads:
            thread.join()
        offload.shutdown()
        concurrent.futures.wait(made)
        assert sorted(map(id, ended)) == sorted(map(id, made))
        assert (offload.in_flight, offload.waiting) == (0, 0)


def test_leaving_the_block_waits_for_all_calls(cluster: Cluster) -> None:
    """Those that were waiting too; later ones are refused."""
    with DaskOffload(cluster.address, window=5) as offload:
        futures = [offload.submit(jobs.square, n) for n in range(30)]
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="shut down"):
        offload.submit(jobs.square, 1)


def test_a_shutdown_that_cancels_drops_what_was_not_sent(cluster: Cluster, gate: Gate) -> None:
    """What was sent comes to its end."""
    offload = DaskOffload(cluster.address, window=1)
    held = offload.submit(jobs.hold, gate.path, 1)
    waiting = [offload.submit(jobs.square, n) for n in range(3)]
    gate.wait_begun()
    offload.shutdown(wait=False, cancel_futures=True)
    assert [future.cancelled() for future in waiting] == [True] * 3
    assert not held.done()
    gate.open()
    offload.shutdown()
    assert held.result() == 1


def test_a_loop_thread_is_not_blocked(cluster: Cluster) -> None:
    """``with`` and ``shutdown(wait=True)`` refuse there; ``async with`` is for it."""

    async def main() -> int:
        with pytest.raises(BlockingCallError, match="async with"):
            DaskOffload(cluster.address).__enter__()
        async with DaskOffload(cluster.address) as offload:
            result: int = await asyncio.wrap_future(offload.submit(jobs.square, 3))
        return result

    assert asyncio.run(main()) == 9


def test_an_executor_that_was_never_used_costs_nothing(cluster: Cluster) -> None:
    """No connection, no thread, nothing to wait for."""
    offload = DaskOffload(cluster.address)
    offload.shutdown()
    assert offload._link.thread is None

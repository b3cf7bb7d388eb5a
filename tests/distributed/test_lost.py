"""Workers and schedulers that die, and addresses where there is nobody."""

import concurrent.futures
import socket
import time
from pathlib import Path

import pytest
from tests.distributed import jobs
from tests.distributed.conftest import Cluster, Gate, running

import polyloop
from polyloop.distributed import ClusterError, ClusterLostError, DaskOffload, WorkerLostError


def test_all_results_are_right_although_a_worker_is_killed_in_mid_run(
    offload: DaskOffload, cluster: Cluster, gate: Gate
) -> None:
    """Its calls run again on the other one."""
    futures = [offload.submit(jobs.hold, gate.path, n) for n in range(200)]
    doomed = cluster.workers[1]
    while gate.wait_begun() != doomed.pid:  # until it is in the middle of a call
        pass
    cluster.kill(doomed)
    gate.open()
    assert [future.result() for future in futures] == list(range(200))


def test_the_loss_of_the_cluster_ends_all_calls_at_once_and_harms_nothing_here(doomed: Cluster, gate: Gate) -> None:
    """First a worker dies under a call, which is not tried again; then the scheduler dies."""
    offload = DaskOffload(doomed.address, window=20)
    held = offload.submit(jobs.hold, gate.path, 1)
    gate.wait_begun()
    doomed.kill(doomed.workers[0])
    with pytest.raises(WorkerLostError, match=r"that ran the call of 'hold' died under it: 1, the last one at tcp://"):
        held.result()

    doomed.heal()
    futures = [offload.submit(jobs.hold, gate.path, n) for n in range(50)]
    gate.wait_begun()

    async def local() -> list[object]:
        async def count(n: int) -> int:
            return n

        handles = [polyloop.spawn(count, n) for n in range(100)]
        doomed.kill(doomed.scheduler)
        began = time.monotonic()
        lost = [await polyloop.to_thread(future.exception) for future in futures]
        took = time.monotonic() - began
        assert [await handle for handle in handles] == list(range(100))
        assert took < 5, took
        return list(lost)

    found = polyloop.run(local(), loops=2)
    assert {type(exc) for exc in found} == {ClusterLostError}
    assert len({id(exc) for exc in found}) == 50
    with pytest.raises(ConnectionError, match=f"scheduler at {doomed.address} is gone"):
        offload.submit(jobs.square, 1)
    offload.shutdown()
    with pytest.raises(ClusterLostError):
        offload.submit(jobs.square, 1)


def test_a_scheduler_that_cannot_run_a_call_or_dies_while_nothing_is_under_way_fails_the_call(
    dask: None, tmp_path: Path
) -> None:
    """It has no polyloop; then it is gone, and the idle executor notices at its next call."""
    (stub := tmp_path / "stub" / "polyloop").mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ModuleNotFoundError('no polyloop')")
    with running(Cluster(tmp_path, workers=0, path=stub.parent)) as cluster:
        offload = DaskOffload(cluster.address)
        with pytest.raises(ClusterError, match="do the scheduler and the workers have polyloop"):
            offload.submit(jobs.square, 1).result()
        cluster.kill(cluster.scheduler)
        with pytest.raises(ClusterLostError):
            # The end of the connection is a message too: perhaps the call is on its way before it comes.
            offload.submit(jobs.square, 3).result()
        offload.shutdown()


@pytest.fixture
def dead_address(dask: None) -> str:
    """One where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def test_an_address_where_nobody_listens_is_named(dead_address: str) -> None:
    """Within the timeout, on entering the block, with what to do next; and it is a ``ConnectionError``."""
    began = time.monotonic()
    with pytest.raises(
        ConnectionError, match=f"no Dask scheduler could be reached at {dead_address} within 0.2 s"
    ) as at:
        DaskOffload(dead_address, connect_timeout=0.2).__enter__()
    assert type(at.value) is ClusterError
    assert "dask scheduler" in str(at.value)
    assert time.monotonic() - began < 10  # the import of Dask is in it


def test_calls_that_wait_for_a_connection_fail_with_it(dead_address: str) -> None:
    """All of them, each with an error of its own; later ones are refused."""
    offload = DaskOffload(dead_address, connect_timeout=0.2)
    futures = [offload.submit(jobs.square, n) for n in range(5)]
    errors = [future.exception() for future in futures]
    assert {type(exc) for exc in errors} == {ClusterError}
    assert len({id(exc) for exc in errors}) == 5
    with pytest.raises(ClusterError, match="no Dask scheduler"):
        offload.submit(jobs.square, 1)
    offload.shutdown()


def test_a_shutdown_does_not_wait_for_a_connection_that_nobody_needs(dead_address: str) -> None:
    """The calls were cancelled."""
    offload = DaskOffload(dead_address, connect_timeout=100)
    futures = [offload.submit(jobs.square, n) for n in range(5)]
    offload.shutdown(cancel_futures=True)
    assert concurrent.futures.wait(futures, timeout=0).not_done == set()


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"retries": -1}, {"connect_timeout": 0}, {"connect_timeout": float("nan")}]
)
def test_options_out_of_range_are_refused(dead_address: str, options: dict[str, float]) -> None:
    """By ``ValueError``."""
    with pytest.raises(ValueError, match="DaskOffload needs"):
        DaskOffload(dead_address, **options)  # type: ignore[arg-type]

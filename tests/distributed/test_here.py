"""What an executor is in this process, whether or not there is a cluster."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.distributed.conftest import ROOT

import polyloop
from polyloop._core import _prims
from polyloop.distributed import ClusterError, ClusterLostError, DaskOffload, WorkerLostError, _dask


def test_it_travels_as_another_one_like_it(dask: None) -> None:
    """A function that refers to it can be sent; the twin has its options, and no connection."""
    offload = DaskOffload("tcp://host:1", retries=2, resources={"GPU": 1}, window=7, connect_timeout=3)
    twin = pickle.loads(pickle.dumps(offload))
    assert repr(twin) == repr(offload) == "<DaskOffload 'tcp://host:1' new window=7 in_flight=0 waiting=0>"
    assert (twin._retries, twin._resources, twin._connect_timeout) == (2, {"GPU": 1}, 3)


def test_a_gil_that_dask_switches_on_is_not_passed_over(dask: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warning that says what to do."""
    looks: Iterator[bool] = iter([False, True])
    monkeypatch.setattr(_prims, "gil_enabled", lambda: next(looks))
    with pytest.warns(polyloop.GilEnabledWarning, match="msgpack 1.2"):
        _dask.load()


def test_without_dask_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not at the first call."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"install 'polyloop\[dask\]'"):
        DaskOffload("tcp://host:1")


def test_each_error_is_a_connection_error() -> None:
    """And one of ours; they pickle."""
    for kind in (ClusterError, WorkerLostError, ClusterLostError):
        error = pickle.loads(pickle.dumps(kind("said")))
        assert isinstance(error, ClusterError)
        assert isinstance(error, polyloop.PolyloopError)
        assert isinstance(error, ConnectionError)
        assert str(error) == "said"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_that_the_connection_is_its_parents(dask: None) -> None:
    """``shared`` makes a new one there."""
    program = """
import os
from polyloop.distributed import ClusterLostError, shared
offload = shared("tcp://127.0.0.1:1?connect_timeout=100")
offload.submit(print)
if pid := os.fork():
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert shared("tcp://127.0.0.1:1?connect_timeout=100") is not offload
try:
    offload.submit(print)
except ClusterLostError as exc:
    offload.shutdown()  # is nothing that this process could wait for
    os._exit(0 if "parent" in str(exc) else 1)
os._exit(2)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0

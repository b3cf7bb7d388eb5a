"""Where calls run: the words, the environment, and the shared processes."""

import os
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
from tests.helpers import until
from tests.offload import elsewhere
from tests.runtime.helpers import run_program

import polyloop
from polyloop import distributed
from polyloop._core import _prims
from polyloop.offload import _processes, _targets
from polyloop.offload._processes import SharedProcesses
from polyloop.offload._targets import Target, resolve
from polyloop.testing import Gate

FREE_THREADED_BUILD = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
VARIABLE = "POLYLOOP_OFFLOAD"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def threads() -> Target:
    return Target(None, None, polyloop.thread_pool().max_threads, False)


# Words


@pytest.mark.parametrize("value", [None, "", "threads"])
def test_threads_are_the_default(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """Without a variable, with an empty one, and by their name."""
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert resolve(None) == resolve("threads") == threads()


def test_without_the_gil_what_computes_goes_to_threads(own: _targets._Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it shares as many tokens as there are cores."""
    monkeypatch.setattr(_prims, "gil_enabled", lambda: False)
    target = resolve("cpu")
    assert target.limiter is not None
    assert target == Target(None, target.limiter, _prims.usable_cores(), False)
    assert target.limiter.total_tokens == _prims.usable_cores()
    assert resolve("cpu").limiter is target.limiter


def test_with_the_gil_what_computes_goes_to_processes(
    processes: SharedProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is looked at each time: an import may switch the GIL on."""
    monkeypatch.setattr(_prims, "gil_enabled", lambda: True)
    assert resolve("cpu") == resolve("processes") == Target(processes, None, _prims.usable_cores(), False)


@pytest.mark.parametrize("gil", ["0", "1"])
def test_what_computes_on_a_real_interpreter(gil: str) -> None:
    """On a free-threaded build either way; on another there is a GIL."""
    if gil == "0" and not FREE_THREADED_BUILD:
        pytest.skip("this build has a GIL")
    ended = run_program(
        """
        if __name__ == "__main__":
            print(asyncio.run(polyloop.offload(os.getpid, on="cpu")) == os.getpid())
        """,
        env={"PYTHON_GIL": gil} if FREE_THREADED_BUILD else {},
    )
    assert (ended.code, ended.out, ended.err) == (0, f"{gil == '0'}\n", "")


def test_the_environment_is_asked_only_where_nothing_is_said(
    processes: SharedProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the same words."""
    monkeypatch.setenv(VARIABLE, "processes")
    assert resolve(None).executor is processes
    assert resolve("threads") == threads()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there are interpreters")
def test_interpreters_are_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says since when, and what to use."""
    with pytest.raises(ValueError, match=r"on is 'interpreters', which needs CPython 3.14 .* use 'cpu' or 'processes'"):
        resolve("interpreters")
    monkeypatch.setenv(VARIABLE, "interpreters")
    with pytest.raises(ValueError, match=r"variable POLYLOOP_OFFLOAD is 'interpreters', which needs"):
        resolve(None)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="there are no interpreters before 3.14")
def test_interpreters_are_shared(own: _targets._Own) -> None:
    """One pool for all."""
    target = resolve("interpreters")
    assert target.executor is resolve("interpreters").executor
    assert (target.width, target.limiter, target.coroutines) == (_prims.usable_cores(), None, False)


@pytest.mark.parametrize("value", ["thread", "CPU", "localhost:8786"])
def test_a_word_that_is_not_known(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The error shows it, where it stood, and what there is."""
    with pytest.raises(ValueError, match=rf"^on must be one of 'threads', 'cpu', .*dask:tcp.*; got '{value}'$"):
        resolve(value)
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=rf"^the environment variable {VARIABLE} must be one of .*; got '{value}'$"):
        resolve(None)


# Executors and clusters


def test_an_executor_is_taken_as_it_is() -> None:
    """Its width is what it says, if it does."""

    class Own(Executor):
        pass

    with ThreadPoolExecutor(3) as three:
        assert resolve(three) == Target(three, None, 3, False)
    own = Own()
    assert resolve(own) == Target(own, None, _prims.usable_cores(), False)
    with polyloop.Runtime(loops=1) as runtime:
        of_four, of_any = runtime.as_executor(4), runtime.as_executor()
        assert resolve(of_four) == Target(of_four, None, 4, True)
        assert resolve(of_any) == Target(of_any, None, _prims.usable_cores(), True)


@pytest.mark.parametrize("value", [3, object, ThreadPoolExecutor])
def test_what_is_neither_word_nor_executor(value: Any) -> None:
    """A type error that shows it."""
    with pytest.raises(TypeError, match=r"on must be a concurrent.futures.Executor, or one of 'threads', .* got "):
        resolve(value)


@pytest.mark.parametrize("address", ["tcp://host:8786", "tls://host:8786", "dask:tcp://host:8786?window=7"])
def test_an_address_is_that_of_a_cluster(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Whoever makes the executor for it says what is wrong with it."""
    asked: list[str] = []

    class Cluster(Executor):
        runs_coroutines = True
        window = 7

    def shared(given: str) -> Executor:
        asked.append(given)
        return cluster

    cluster = Cluster()
    monkeypatch.setattr(distributed, "shared", shared)
    assert resolve(address) == Target(cluster, None, 7, True)
    monkeypatch.setenv(VARIABLE, address)
    assert resolve(None).executor is cluster
    assert asked == [address] * 2


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where it stood."""
    monkeypatch.setenv(VARIABLE, "http://host")
    with pytest.raises(ValueError, match=r"^the environment variable POLYLOOP_OFFLOAD: 'http://host' is no address"):
        resolve(None)


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the variable, if it is where the address comes from."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"install 'polyloop\[dask\]'"):
        resolve("tcp://host:8786")
    monkeypatch.setenv(VARIABLE, "tcp://host:8786")
    with pytest.raises(ModuleNotFoundError, match=r"install 'polyloop\[dask\]'") as caught:
        resolve(None)
    assert caught.value.__notes__ == ["The environment variable POLYLOOP_OFFLOAD is 'tcp://host:8786'."]


# The shared processes


def test_processes_are_not_forked_from_a_program_with_threads() -> None:
    """One of the other ways is there on every system."""
    assert SharedProcesses().method in ("forkserver", "spawn")
    assert SharedProcesses(("spawn",)).method == "spawn"


def test_a_process_that_dies_breaks_the_pool_and_the_next_call_gets_a_new_one(processes: SharedProcesses) -> None:
    """What is in the broken pool fails with the standard library's error."""
    first = processes.submit(elsewhere.pid).result(30)
    assert first != os.getpid()
    broken = processes._pool
    with pytest.raises(BrokenProcessPool):
        processes.submit(elsewhere.die).result(30)
    assert processes.submit(elsewhere.pid).result(30) not in (first, os.getpid())
    assert processes._pool is not broken


class FakePool(ThreadPoolExecutor):
    """In place of a pool of processes: threads, and a start that takes its time, or fails."""

    gate: Gate
    error: BaseException | None = None
    made = 0

    def __init__(self, max_workers: int, mp_context: object) -> None:
        super().__init__(1)
        type(self).made += 1
        self.gate.pause()
        if self.error is not None:
            raise self.error


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SharedProcesses, type[FakePool]]]:
    """Processes whose pool starts when the gate opens."""

    class Fake(FakePool):
        gate = Gate()

    monkeypatch.setattr(_processes, "ProcessPoolExecutor", Fake)
    shared = SharedProcesses()
    yield shared, Fake
    shared.end(30)


def test_submitting_does_not_wait_for_the_first_process(slow: tuple[SharedProcesses, type[FakePool]]) -> None:
    """Which takes as long as an interpreter: calls that come early run in their order, but for those cancelled."""
    processes, fake = slow
    order: list[int] = []
    calls = [processes.submit(order.append, number) for number in range(4)]
    fake.gate.reached()
    assert not any(call.done() for call in calls)
    assert calls[1].cancel()
    fake.gate.open()
    assert [call.result(30) for call in (calls[0], calls[2], calls[3])] == [None] * 3
    assert order == [0, 2, 3]
    until(lambda: processes._pool is not None)
    assert type(processes.submit(str)) is Future  # from now on it is the pool's own
    assert fake.made == 1


def test_a_pool_that_cannot_be_started_fails_what_waits_for_it(slow: tuple[SharedProcesses, type[FakePool]]) -> None:
    """The next call tries again."""
    processes, fake = slow
    fake.error = NotImplementedError("too few semaphores")
    calls = [processes.submit(str) for _ in range(2)]
    fake.gate.open()
    for call in calls:
        with pytest.raises(NotImplementedError, match="too few"):
            call.result(30)
    fake.error = None
    assert processes.submit(str).result(30) == ""


def test_the_end_cancels_what_came_early(slow: tuple[SharedProcesses, type[FakePool]]) -> None:
    """Nothing waits for a pool that is not made any more."""
    processes, fake = slow
    call = processes.submit(str)
    fake.gate.reached()
    processes.end(30)
    assert call.cancelled()
    fake.gate.open()


def test_the_end_is_bounded(processes: SharedProcesses) -> None:
    """What has not begun is cancelled, and what does not end is killed."""
    processes.submit(elsewhere.pid).result(30)
    calls = [processes.submit(elsewhere.sleep, 1000) for _ in range(20 * processes.max_workers)]
    until(calls[0].running)
    processes.end(0.01)
    assert all(call.done() for call in calls)
    assert calls[-1].cancelled()
    with pytest.raises((BrokenProcessPool, CancelledError)):
        calls[0].result(0)
    assert processes.submit(elsewhere.add, 1).result(30) == 1  # another one, for whoever goes on


def test_the_end_of_the_program_is_bounded() -> None:
    """The standard library would wait for the process for ever."""
    ended = run_program(
        """
        from polyloop.offload import _processes
        from polyloop.offload._targets import resolve
        if __name__ == "__main__":
            _processes.EXIT_TIMEOUT = 0.05
            processes = resolve("processes").executor
            assert processes.submit(os.getpid).result(30) != os.getpid()
            stuck = processes.submit(time.sleep, 1000)
            while not stuck.running():
                time.sleep(0.01)
            print("ready")
        """
    )
    assert (ended.code, ended.out, ended.err) == (0, "ready\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_its_own() -> None:
    """It cannot use what belongs to the parent: neither its processes, nor tokens that its threads hold."""
    ended = run_program(
        """
        import warnings
        from polyloop.offload._targets import resolve
        warnings.simplefilter("ignore", DeprecationWarning)
        if __name__ == "__main__":
            polyloop._core._prims.gil_enabled = lambda: False
            mine = resolve("processes").executor, resolve("cpu").limiter
            parents = mine[0].submit(os.getpid).result(30)
            pid = os.fork()
            theirs = resolve("processes").executor, resolve("cpu").limiter
            if pid == 0:
                assert mine[0] is not theirs[0] and mine[1] is not theirs[1]
                assert theirs[0].submit(os.getpid).result(30) not in (parents, os.getpid(), os.getppid())
                theirs[0].end(30)
                print("child", flush=True)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert mine == theirs and theirs[0].submit(os.getpid).result(30) == parents
            print("parent")
        """
    )
    assert (ended.code, ended.out, ended.err) == (0, "child\nparent\n", "")

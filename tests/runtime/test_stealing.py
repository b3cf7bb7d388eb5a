"""Stealing: an idle worker takes tasks that wait behind a long step, and only those."""

import asyncio
import threading

import pytest
from tests.runtime.helpers import PATIENCE, Gate, held, stop_own_loop, where

from polyloop import Runtime, RuntimeClosedError, TaskHandle, Worker
from polyloop._core._context import here
from polyloop._core._port import Port


def wait_behind(worker: Worker, count: int) -> list[TaskHandle[str]]:
    """Queue stealable tasks on ``worker``."""
    handles = [TaskHandle(where()) for _ in range(count)]
    for handle in handles:
        worker.admit(handle, True)
    return handles


def test_idle_worker_takes_tasks_that_wait_behind_a_long_step() -> None:
    """All of them run elsewhere while their own worker is held."""
    with Runtime(loops=3) as runtime, held(runtime, runtime.workers[0]):
        handles = wait_behind(runtime.workers[0], 20)
        names = {handle.result(PATIENCE) for handle in handles}
        assert names <= {"polyloop-1", "polyloop-2"}
        assert sum(worker.stolen for worker in runtime.workers) >= 20
        assert {handle.worker for handle in handles} <= set(runtime.workers[1:])


def test_spawned_tasks_are_stolen_too() -> None:
    """The public way in: tasks that round robin puts on a held worker."""
    with Runtime(loops=2, placement="round_robin") as runtime, held(runtime, runtime.workers[0]):
        handles = [runtime.spawn(where) for _ in range(10)]
        assert {handle.result(PATIENCE) for handle in handles} == {"polyloop-1"}


def test_steal_false_never_steals() -> None:
    """The tasks wait for their worker."""
    with Runtime(loops=2, steal=False) as runtime:
        with held(runtime, runtime.workers[0]):
            handles = wait_behind(runtime.workers[0], 5)
            runtime.spawn(where, on=runtime.workers[1]).result(PATIENCE)
            assert not any(handle.done() for handle in handles)
        assert {handle.result(PATIENCE) for handle in handles} == {"polyloop-0"}
        assert runtime.workers[1].stolen == 0


def test_a_started_task_never_moves() -> None:
    """Once it has taken a step it stays, however long its loop is busy."""

    async def two_steps(started: threading.Event) -> tuple[str, str]:
        first = threading.current_thread().name
        started.set()
        await asyncio.sleep(0)
        return first, threading.current_thread().name

    with Runtime(loops=2) as runtime:
        started = threading.Event()
        handle = runtime.spawn(two_steps, started, on=runtime.workers[0])
        assert started.wait(PATIENCE)
        with held(runtime, runtime.workers[0]):
            runtime.spawn(where, on=runtime.workers[1]).result(PATIENCE)
        assert handle.result(PATIENCE) == ("polyloop-0", "polyloop-0")


def test_cancelled_before_it_was_stolen_never_starts() -> None:
    """The request was made while the task waited; whoever takes it sees the request."""
    with Runtime(loops=2) as runtime, held(runtime, runtime.workers[0]):
        handle = TaskHandle(where())
        handle._port = runtime.workers[0]
        assert handle.cancel("enough")
        runtime.workers[0].admit(handle, True)
        with pytest.raises(asyncio.CancelledError) as caught:
            handle.result(PATIENCE)
        assert caught.value.args == ("enough",)


def test_cancel_racing_a_steal_ends_the_task() -> None:
    """Whichever comes first: the task ends, cancelled or finished, never pending; a request is never lost."""

    async def until_cancelled() -> None:
        await asyncio.get_running_loop().create_future()

    with Runtime(loops=2) as runtime:
        for _ in range(200):
            gate = Gate()
            step = runtime.spawn(gate.step, on=runtime.workers[0])
            gate.wait_entered()
            handle = TaskHandle(until_cancelled())
            runtime.workers[0].admit(handle, True)
            assert handle.cancel()
            with pytest.raises(asyncio.CancelledError):
                handle.result(PATIENCE)
            gate.open()
            step.result(PATIENCE)


class StolenBetweenLooks(TaskHandle[str]):
    """Is stolen and started by ``thief`` just after its port was read for the first time by the loser's thread."""

    thief: Worker | None = None
    loser = 0
    started: threading.Event
    _real_port: Port

    @property
    def _port(self) -> Port:
        port = self._real_port
        thief = self.thief
        if thief is not None and threading.get_ident() == self.loser:
            self.thief = None
            self._real_port = thief
            thief.post(self._start, thief)
            assert self.started.wait(PATIENCE)
        return port

    @_port.setter
    def _port(self, port: Port) -> None:
        self._real_port = port


def test_thread_that_lost_a_task_does_not_touch_it() -> None:
    """A steal between the look at the port and the look at the task: the task is the thief's, and left alone."""

    async def wait(handle: StolenBetweenLooks) -> str:
        handle.started.set()
        await asyncio.get_running_loop().create_future()
        return "never"

    async def lose(handle: StolenBetweenLooks, thief: Worker) -> bool:
        handle._port = here.port  # type: ignore[assignment]
        handle.loser = threading.get_ident()
        handle.thief = thief
        found = handle._local_task()
        handle.cancel()
        return found is None

    with Runtime(loops=2) as runtime:
        handle = StolenBetweenLooks.__new__(StolenBetweenLooks)
        handle.started = threading.Event()
        StolenBetweenLooks.__init__(handle, wait(handle))
        lost = runtime.spawn(lose, handle, runtime.workers[1], on=runtime.workers[0])
        assert lost.result(PATIENCE)
        with pytest.raises(asyncio.CancelledError):
            handle.result(PATIENCE)
        assert handle.worker is runtime.workers[1]


def test_steal_racing_close_completes_everything() -> None:
    """Tasks that wait on one worker while another steals them and the runtime is closed: all complete."""
    for _ in range(30):
        runtime = Runtime(loops=3).start()
        handles = wait_behind(runtime.workers[0], 100)
        assert runtime.close().clean
        for handle in handles:
            exc = None if handle.cancelled() else handle.exception(PATIENCE)
            assert exc is None or isinstance(exc, RuntimeClosedError)


def test_steal_racing_a_death_completes_everything() -> None:
    """The victim dies while its tasks are being taken: every one runs elsewhere, or on it before it died."""
    for _ in range(20):
        with Runtime(loops=3) as runtime:
            dying = runtime.spawn(stop_own_loop, on=runtime.workers[0])
            handles = wait_behind(runtime.workers[0], 50)
            assert all(handle.result(PATIENCE) for handle in handles)
            assert dying.exception(PATIENCE) is not None


def test_thief_that_dies_hands_on_what_it_took() -> None:
    """Tasks taken by a worker that stops at once go on to the next."""
    with Runtime(loops=3) as runtime, held(runtime, runtime.workers[0]):
        dying = runtime.spawn(stop_own_loop, on=runtime.workers[1])
        handles = wait_behind(runtime.workers[0], 50)
        assert {handle.result(PATIENCE) for handle in handles} <= {"polyloop-1", "polyloop-2"}
        assert dying.exception(PATIENCE) is not None


def test_stolen_task_runs_in_the_submitters_context() -> None:
    """The context was copied at the spawn, whoever runs the task."""
    import contextvars

    variable = contextvars.ContextVar("variable", default="unset")

    async def read() -> tuple[str, str]:
        return variable.get(), threading.current_thread().name

    with Runtime(loops=2, placement="round_robin") as runtime, held(runtime, runtime.workers[0]):
        token = variable.set("submitter's")
        handles = [runtime.spawn(read) for _ in range(4)]
        variable.reset(token)
        assert {handle.result(PATIENCE) for handle in handles} == {("submitter's", "polyloop-1")}

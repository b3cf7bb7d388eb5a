"""A worker whose loop ends on its own: nothing of it waits for ever, and the rest goes on."""

import asyncio
import logging
import selectors
import threading

import pytest
from tests.runtime.helpers import PATIENCE, Gate, forever, held, run_program, stop_own_loop, where

from polyloop import Runtime, RuntimeClosedError, TaskHandle, WorkerDiedError

STOPPED = (
    "<Worker 'polyloop-1'> died: its event loop was stopped from inside; loop.stop() is not for a loop of polyloop"
)


def kill(runtime: Runtime, index: int) -> None:
    """Kill a worker and wait until it is gone."""
    handle = runtime.spawn(stop_own_loop, on=runtime.workers[index])
    with pytest.raises(WorkerDiedError):
        handle.result(PATIENCE)
    runtime.workers[index].ended._block(PATIENCE, "")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def test_stopped_loop_fails_every_handle_it_owned() -> None:
    """The running tasks of a loop that was stopped complete with the reason, and say which worker it was."""
    with Runtime(loops=2) as runtime:
        waiting = [runtime.spawn(forever, on=runtime.workers[1]) for _ in range(3)]
        kill(runtime, 1)
        for handle in waiting:
            with pytest.raises(WorkerDiedError) as caught:
                handle.result(PATIENCE)
            assert str(caught.value) == STOPPED
        assert not runtime.workers[1].alive
        assert runtime.workers[1].live == set()


def test_each_handle_of_a_dead_worker_has_an_exception_of_its_own() -> None:
    """Two threads never raise one exception object."""
    with Runtime(loops=2) as runtime:
        first, second = (runtime.spawn(forever, on=runtime.workers[1]) for _ in range(2))
        kill(runtime, 1)
        assert first.exception(PATIENCE) is not second.exception(PATIENCE)


def test_tasks_of_a_dead_loop_clean_up(caplog: pytest.LogCaptureFixture) -> None:
    """The finally blocks of a loop that was stopped run, with awaits in them."""
    cleaned = threading.Event()

    async def careful() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    with Runtime(loops=2) as runtime:
        runtime.spawn(careful, on=runtime.workers[1]).add_done_callback(lambda handle: handle.exception())
        kill(runtime, 1)
        assert cleaned.is_set()
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.CRITICAL] == [f"polyloop: {STOPPED}"]


def test_waiting_stealable_tasks_of_a_dead_worker_run_elsewhere() -> None:
    """Tasks that had not started move to the workers that live, those placed by name fail."""
    gates = [Gate(), Gate()]
    with Runtime(loops=2) as runtime:
        dying, other = runtime.workers[1], runtime.workers[0]

        def hold_then_stop() -> None:  # a callback of the loop: nothing is served between the two
            gates[1].hold()
            dying.loop.stop()

        step = runtime.spawn(gates[0].step, on=other)
        dying.post(dying.loop.call_soon, hold_then_stop)
        for gate in gates:
            gate.wait_entered()
        movable = [TaskHandle(where()) for _ in range(5)]
        for handle in movable:
            dying.admit(handle, True)
        pinned = runtime.spawn(where, on=dying)
        gates[1].open()
        dying.ended._block(PATIENCE, "")  # it dies while nobody can steal: its tasks are handed over
        with pytest.raises(WorkerDiedError, match="stopped from inside"):
            pinned.result(PATIENCE)
        gates[0].open()
        assert {handle.result(PATIENCE) for handle in movable} == {other.name}
        assert step.result(PATIENCE) == other.name


def test_runtime_goes_on_without_the_dead_worker() -> None:
    """Every placement leaves a dead worker out; asking for it by name fails with the reason."""
    with Runtime(loops=3) as runtime:
        kill(runtime, 1)
        for on in ("least_loaded", "round_robin", "here"):
            names = {runtime.spawn(where, on=on).result(PATIENCE) for _ in range(12)}
            assert "polyloop-1" not in names
        keyed = {runtime.spawn(where, key=key).result(PATIENCE) for key in range(50)}
        assert keyed == {"polyloop-0", "polyloop-2"}
        with pytest.raises(WorkerDiedError) as caught:
            runtime.spawn(where, on=runtime.workers[1]).result(PATIENCE)
        assert str(caught.value) == STOPPED


@pytest.mark.parametrize("loops", [1, 2])
def test_spawn_when_every_worker_has_died_says_so(loops: int) -> None:
    """The last worker's death does not turn into a recursion or a hang."""
    with Runtime(loops=loops) as runtime:
        for index in range(loops):
            kill(runtime, index)
        for _ in range(2):
            with pytest.raises(WorkerDiedError) as caught:
                runtime.spawn(where)
            assert str(caught.value) == (
                f"every worker of <Runtime 'polyloop' running loops={loops}> has died;"
                " the log says why; start a new Runtime"
            )
    assert runtime.close().clean


def test_awaiting_a_task_of_a_dead_worker_from_another_loop() -> None:
    """An awaiter on a living loop gets the error, not silence."""

    async def await_other(handle: TaskHandle[None]) -> str:
        try:
            await handle
        except WorkerDiedError as exc:
            return str(exc)
        return "nothing"

    with Runtime(loops=2) as runtime:
        lost = runtime.spawn(forever, on=runtime.workers[1])
        waiter = runtime.spawn(await_other, lost, on=runtime.workers[0])
        kill(runtime, 1)
        assert waiter.result(PATIENCE) == STOPPED


class FailingSelector(selectors.DefaultSelector):
    """Fails as a broken epoll would, as often as told."""

    failures = 0

    def select(self, timeout: float | None = None) -> "list[tuple[selectors.SelectorKey, int]]":
        if self.failures:
            self.failures -= 1
            raise OSError(9, "Bad file descriptor")
        return super().select(timeout)


def test_loop_whose_selector_raises() -> None:
    """The error is the reason that the handles give, and its cause."""
    selector = FailingSelector()
    made = iter([selector])

    def factory() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(next(made, None))

    async def break_it() -> None:
        selector.failures = 1
        await forever()

    with Runtime(loops=2, loop_factory=factory) as runtime:
        broken = next(w for w in runtime.workers if w.loop._selector is selector)  # type: ignore[attr-defined]
        handle = runtime.spawn(break_it, on=broken)
        with pytest.raises(WorkerDiedError) as caught:
            handle.result(PATIENCE)
        assert str(caught.value) == (
            f"<Worker {broken.name!r}> died: its event loop raised OSError(9, 'Bad file descriptor')"
        )
        assert isinstance(caught.value.__cause__, OSError)
        assert runtime.spawn(where).result(PATIENCE) != broken.name


def test_loop_that_ends_in_its_first_step_fails_the_start() -> None:
    """``start`` does not wait for ever for a loop that never came up."""

    def factory() -> asyncio.AbstractEventLoop:
        selector = FailingSelector()
        loop = asyncio.SelectorEventLoop(selector)
        selector.failures = 100
        return loop

    with pytest.raises(WorkerDiedError, match=r"died: its event loop raised OSError\(9, 'Bad file descriptor'\)"):
        Runtime(loops=2, loop_factory=factory).start()


def test_stop_during_close_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A task that answers its cancellation by stopping the loop neither kills the worker nor holds up the closer."""

    async def spiteful() -> None:
        try:
            await forever()
        finally:
            asyncio.get_running_loop().stop()

    runtime = Runtime(loops=2).start()
    handles = [runtime.spawn(spiteful, on=runtime.workers[1]), runtime.spawn(forever, on=runtime.workers[1])]
    assert runtime.close(PATIENCE).clean
    assert [handle.cancelled() for handle in handles] == [True, True]
    assert caplog.records == []


def test_spawn_racing_a_death_completes() -> None:
    """Whatever order a spawn and a death take, the handle completes: moved, or failed with the reason."""
    for _ in range(30):
        with Runtime(loops=2) as runtime:
            with held(runtime, runtime.workers[0]):
                dying = runtime.spawn(stop_own_loop, on=runtime.workers[1])
                raced = [TaskHandle(where()) for _ in range(20)]
                for handle in raced:
                    runtime.place(handle, on="round_robin")
            for handle in raced:
                exc = handle.exception(PATIENCE)
                assert exc is None or isinstance(exc, WorkerDiedError)
            assert isinstance(dying.exception(PATIENCE), WorkerDiedError)


def test_stopping_worker_0_under_run_is_asyncios_error() -> None:
    """The main task's loop is stopped: the RuntimeError of ``asyncio.run``, and a clean end."""
    ended = run_program(
        """
        async def main():
            polyloop.spawn(asyncio.sleep, 60, on=polyloop.current_runtime().workers[1])
            asyncio.get_running_loop().stop()
            await asyncio.sleep(60)

        polyloop.run(main(), loops=2)
        """
    )
    assert ended.last_line == "RuntimeError: Event loop stopped before Future completed."
    assert ended.code == 1
    assert "left behind" not in ended.err


def test_broken_selector_of_worker_0_under_run() -> None:
    """The main loop's selector raises for good: its error surfaces, the other loops still wind down."""
    ended = run_program(
        """
        import selectors

        class Selector(selectors.DefaultSelector):
            broken = False
            def select(self, timeout=None):
                if self.broken and threading.current_thread() is threading.main_thread():
                    raise OSError(9, "Bad file descriptor")
                return super().select(timeout)

        async def careful():
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                print("cleaned up")

        async def main():
            started = polyloop.spawn(careful, on=polyloop.current_runtime().workers[1])
            await polyloop.spawn(asyncio.sleep, 0, on=polyloop.current_runtime().workers[1])
            Selector.broken = True
            await asyncio.sleep(60)

        polyloop.run(main(), loops=2, loop_factory=lambda: asyncio.SelectorEventLoop(Selector()))
        """
    )
    assert "\nOSError: [Errno 9] Bad file descriptor\n" in ended.err
    assert ended.out == "cleaned up\n"
    assert ended.code == 1
    assert "could not wind down: its event loop raised OSError" in ended.err
    assert "never awaited" not in ended.err


def test_close_after_a_death_is_clean() -> None:
    """A dead worker holds up nobody, and closed means closed."""
    with Runtime(loops=2) as runtime:
        kill(runtime, 0)
        report = runtime.close()
    assert report.clean
    with pytest.raises(RuntimeClosedError):
        runtime.spawn(where)

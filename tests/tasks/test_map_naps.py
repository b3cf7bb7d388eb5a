"""When the consumer of a ``map`` is woken for a result, and when it looks by itself."""

from typing import Any

from polyloop._core._port import Port
from polyloop.tasks import MapResults
from polyloop.tasks._map_board import NOTHING_NOW, Board
from polyloop.tasks._map_stream import NAP, Stream
from polyloop.testing import FakeClock, TestLoop


class Lane:
    """Runs nothing: the test brings the results."""

    ahead = 4
    board: Board

    def __init__(self, crowded: bool) -> None:
        self._crowded = crowded

    def start(self, home: Port, board: Board) -> None:
        self.board = board

    def feed(self) -> None: ...

    def starved(self) -> bool:
        return False

    def crowded(self) -> bool:
        return self._crowded

    def idle(self) -> bool:
        return True

    def cancel(self, *, abandoned: bool) -> None: ...

    def cancel_soon(self) -> None: ...

    def forget(self) -> None: ...


class Scene:
    """A consumer on a loop with virtual time; what it has got."""

    def __init__(self, *, crowded: bool = True) -> None:
        from contextvars import Context

        self.lane = Lane(crowded)
        self.results: MapResults[Any] = MapResults(Stream(iter(range(100)), self.lane, 2, Context(), True, False, None))
        self.got: list[int] = []
        self._count = 0

    async def consume(self) -> None:
        async for result in self.results:
            self.got.append(result)

    def bring(self) -> None:
        """The next call has ended."""
        self.lane.board.bring((self._count, self._count, None))
        self._count += 1


def begin(scene: Scene, home: TestLoop, clock: FakeClock, interval: float) -> Any:
    """Let the consumer get some results, one every ``interval`` seconds."""
    handle = home.spawn(scene.consume)
    home.wait_all_blocked()
    for _ in range(3):
        clock.advance(interval)
        scene.bring()
        clock.advance(NAP)  # in case that it naps already
    clock.advance(interval)
    with home.paused():  # a burst
        for _ in range(8):
            scene.bring()
    home.wait_all_blocked()
    assert len(scene.got) == 11
    return handle


def end(handle: Any, home: TestLoop) -> None:
    handle.cancel()
    home.wait_all_blocked()
    assert handle.cancelled()


def test_a_consumer_of_fast_results_looks_by_itself() -> None:
    """It is not woken for each; it looks once in ``NAP`` seconds, and is woken again when they come slowly."""
    clock, scene = FakeClock(), Scene()
    with TestLoop("home", clock=clock) as home:
        handle = begin(scene, home, clock, 0.0005)
        assert scene.lane.board.wanted == NOTHING_NOW
        scene.bring()
        home.wait_all_blocked()
        assert len(scene.got) == 11
        clock.advance(NAP)
        assert len(scene.got) == 12
        assert scene.lane.board.wanted == 12
        scene.bring()
        home.wait_all_blocked()
        assert len(scene.got) == 13
        end(handle, home)


def test_a_consumer_of_slow_results_is_woken_for_each() -> None:
    """At once."""
    clock, scene = FakeClock(), Scene()
    with TestLoop("home", clock=clock) as home:
        handle = home.spawn(scene.consume)
        home.wait_all_blocked()
        for count in range(1, 10):
            clock.advance(10 * NAP)
            scene.bring()
            home.wait_all_blocked()
            assert len(scene.got) == count
        end(handle, home)


def test_where_a_core_is_free_it_is_woken_for_each() -> None:
    """It takes nothing from anybody then."""
    clock, scene = FakeClock(), Scene(crowded=False)
    with TestLoop("home", clock=clock) as home:
        handle = begin(scene, home, clock, 0.0005)
        scene.bring()
        home.wait_all_blocked()
        assert len(scene.got) == 12
        end(handle, home)


def test_a_cancelled_nap_is_over() -> None:
    """A consumer that naps hears of its cancellation as ever."""
    clock, scene = FakeClock(), Scene()
    with TestLoop("home", clock=clock) as home:
        handle = begin(scene, home, clock, 0.0005)
        assert scene.lane.board.wanted == NOTHING_NOW
        end(handle, home)

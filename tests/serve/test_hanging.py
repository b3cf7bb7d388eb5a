"""A loop that hangs: noticed, named, spared, and back; the others serve meanwhile."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.helpers import until
from tests.serve.clients import accepted, address, counts, fate, on_loops, plain, tally

from polyloop import Runtime, start_server
from polyloop.serve import Server

#: Seconds within which a hang must be known.
NOTICED = 1.0


class Handlers:
    """A handler that blocks its loop when it is told to, until the test lets it go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.inside = threading.Semaphore(0)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line == b"block\n":
                self.block()
            writer.write(b"done\n")
        writer.close()

    def block(self) -> None:
        """Hold this thread."""
        self.inside.release()
        assert self.go.wait(60)


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    """Lets go whatever happens."""
    made = Handlers()
    yield made
    made.go.set()


def hanging(server: Server) -> list[str]:
    return [load.loop for load in server.loads if load.hanging]


def messages(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


@pytest.mark.parametrize("flavour", ["own", "asyncio"])
def test_a_loop_that_hangs_is_reported_spared_and_back(
    flavour: str, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    """Within a second, with its loop, task and stack; it gets nothing until it answers; the others serve."""
    caplog.set_level(logging.INFO, "polyloop.serve")
    factory = None if flavour == "own" else asyncio.SelectorEventLoop
    with Runtime(loops=3, loop_factory=factory) as runtime:
        server = runtime.run(start_server(handlers.handle, "127.0.0.1", 0))
        server._say_what_is_busy([lambda task: f"as {task.get_name()!r}" if task else "nobody"] * 3)
        with plain(address(server), b"block\n") as blocked:
            assert handlers.inside.acquire(timeout=30)
            since = time.monotonic()
            until(lambda: hanging(server))
            noticed = time.monotonic() - since
            victim = next(i for i, load in enumerate(server.loads) if load.hanging)
            socks = [plain(address(server), b"hello\n") for _ in range(12)]
            assert tally(map(fate, socks)) == {"answered": 12}
            assert counts(server)[victim] == 1
            handlers.go.set()
            until(lambda: not hanging(server))
            assert fate(blocked) == "answered"
            more = [plain(address(server), b"hello\n") for _ in range(5)]
            assert tally(map(fate, more)) == {"answered": 5}
            assert accepted(server)[victim] == 6
        until(lambda: messages(caplog, "answers again"))
        for sock in (*socks, *more):
            sock.close()
        server.close()
        runtime.run(server.wait_closed())
    assert noticed < NOTICED + 0.5  # of grace for a machine that has other things to do
    [report] = messages(caplog, "hangs")
    assert f"polyloop-{victim} hangs: it has not answered for 0." in report
    assert "gets no connections until it does. It runs task 'Task-" in report
    assert "as 'Task-" in report
    assert "test_hanging.py" in report
    assert " in block" in report
    [again] = messages(caplog, "answers again")
    assert again.startswith(f"polyloop: polyloop-{victim} answers again after ")


@pytest.mark.parametrize("when_full", ["wait", "refuse"])
def test_while_all_loops_hang_connections_wait(when_full: Any, handlers: Handlers) -> None:
    """Nobody is refused, for there is room; they are served when a loop is back."""
    with Runtime(loops=2) as runtime:
        server = runtime.run(
            start_server(
                handlers.handle, "127.0.0.1", 0, hung_after=0.1, when_full=when_full, max_connections_per_loop=50
            )
        )
        blocked = [plain(address(server), b"block\n") for _ in range(2)]
        for _ in blocked:
            assert handlers.inside.acquire(timeout=30)
        until(lambda: len(hanging(server)) == 2)
        waiting = [plain(address(server), b"hello\n") for _ in range(10)]
        turn = threading.Event()
        server._acceptor.tell(turn.set)
        assert turn.wait(30)
        assert counts(server) == [1, 1]
        handlers.go.set()
        assert tally(map(fate, [*blocked, *waiting])) == {"answered": 12}
        assert server.refused == 0
        for sock in (*blocked, *waiting):
            sock.close()
        server.close()
        runtime.run(server.wait_closed())


def test_with_reuse_port_a_hang_is_reported_too(handlers: Handlers, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel goes on to give that loop its share, and the report does not claim otherwise."""
    with Runtime(loops=2) as runtime:
        server = runtime.run(start_server(handlers.handle, "127.0.0.1", 0, reuse_port=True, hung_after=0.1))
        with plain(address(server), b"block\n"):
            assert handlers.inside.acquire(timeout=30)
            until(lambda: messages(caplog, "hangs"))
            handlers.go.set()
            until(lambda: not hanging(server))
        server.close()
        runtime.run(server.wait_closed())
    assert "gets no connections" not in messages(caplog, "hangs")[0]


def test_a_watch_that_is_off_reports_nothing(handlers: Handlers, caplog: pytest.LogCaptureFixture) -> None:
    """``hung_after=None``: the acceptor sleeps until somebody comes."""
    with Runtime(loops=1) as runtime:
        server = runtime.run(start_server(handlers.handle, "127.0.0.1", 0, hung_after=None))
        assert server._acceptor._patience() is None
        with plain(address(server), b"block\n") as blocked:
            assert handlers.inside.acquire(timeout=30)
            handlers.go.set()
            assert fate(blocked) == "answered"
        server.close()
        runtime.run(server.wait_closed())
    assert messages(caplog, "hangs") == []


def test_a_log_handler_that_blocks_does_not_hold_up_the_acceptor(handlers: Handlers) -> None:
    """A loop hangs inside of the log, with its lock held: connections go to the others all the same."""
    go = threading.Event()

    def stuck(record: logging.LogRecord) -> bool:
        return "hangs" not in record.getMessage() or go.wait(60)

    handler = logging.NullHandler()
    handler.addFilter(stuck)
    handler.handle = handler.filter  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("polyloop.serve")
    logger.addHandler(handler)
    try:
        with Runtime(loops=2) as runtime:
            server = runtime.run(start_server(handlers.handle, "127.0.0.1", 0, hung_after=0.1))
            with plain(address(server), b"block\n") as blocked:
                assert handlers.inside.acquire(timeout=30)
                until(lambda: hanging(server))
                with plain(address(server), b"hello\n") as sock:
                    assert fate(sock) == "answered"
                go.set()
                handlers.go.set()
                assert fate(blocked) == "answered"
            server.close()
            runtime.run(server.wait_closed())
    finally:
        go.set()
        logger.removeHandler(handler)


def test_a_report_that_fails_is_made_without_that(handlers: Handlers, caplog: pytest.LogCaptureFixture) -> None:
    """What a loop is busy with is code of others: its error costs the detail, and not the server."""

    def broken(task: object) -> str:
        raise LookupError

    with Runtime(loops=1) as runtime:
        server = runtime.run(start_server(handlers.handle, "127.0.0.1", 0, hung_after=0.1))
        server._say_what_is_busy([broken])
        with plain(address(server), b"block\n") as blocked:
            assert handlers.inside.acquire(timeout=30)
            until(lambda: messages(caplog, "hangs"))
            handlers.go.set()
            assert fate(blocked) == "answered"
        server.close()
        runtime.run(server.wait_closed())


def test_an_idle_loop_is_not_woken() -> None:
    """A server that nobody uses costs its loops nothing: they sleep through the looks at them."""

    async def main() -> int:
        server = await start_server(Handlers().handle, "127.0.0.1", 0, hung_after=0.02)
        worker = server._stations[1].port
        sleeps = worker.selector.sleeps  # type: ignore[attr-defined]
        looked = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.3, looked.set_result, None)
        await looked
        server.close()
        await server.wait_closed()
        return int(worker.selector.sleeps - sleeps)  # type: ignore[attr-defined]

    assert on_loops(main, loops=2) < 5


@pytest.mark.parametrize("others", [0, 1])
def test_a_close_serves_those_that_wait_for_a_loop_that_hangs(others: int, handlers: Handlers) -> None:
    """The kernel has accepted them: where no other loop has room they wait for this one."""
    with Runtime(loops=1 + others) as runtime:
        server = runtime.run(start_server(handlers.handle, "127.0.0.1", 0, hung_after=0.1, max_connections_per_loop=5))
        with plain(address(server), b"block\n") as blocked:
            assert handlers.inside.acquire(timeout=30)
            until(lambda: hanging(server))
            victim = next(i for i, load in enumerate(server.loads) if load.hanging)
            inside = [plain(address(server), b"hello\n") for _ in range(5 * others)]
            assert all(fate(sock) == "answered" for sock in inside)
            waiting = [plain(address(server), b"hello\n") for _ in range(4)]
            server.close()
            until(server._acceptor.doors_closed.done)
            assert len(hanging(server)) == 1  # it still does
            handlers.go.set()
            assert tally(map(fate, [blocked, *waiting])) == {"answered": 5}
            assert accepted(server)[victim] == 5
        for sock in (*inside, *waiting):
            sock.close()
        runtime.run(server.wait_closed())


def test_a_close_prefers_loops_that_work(handlers: Handlers) -> None:
    """Those that wait go to a loop that hangs only if no other has room."""
    with Runtime(loops=2) as runtime:
        server = runtime.run(start_server(handlers.handle, "127.0.0.1", 0, hung_after=0.1))
        with plain(address(server), b"block\n") as blocked:
            assert handlers.inside.acquire(timeout=30)
            until(lambda: hanging(server))
            held, go = threading.Event(), threading.Event()

            def hold() -> None:
                held.set()
                assert go.wait(30)

            server._acceptor.tell(hold)
            assert held.wait(30)
            waiting = [plain(address(server), b"hello\n") for _ in range(6)]
            server.close()
            go.set()
            assert tally(map(fate, waiting)) == {"answered": 6}
            handlers.go.set()
            assert fate(blocked) == "answered"
        for sock in waiting:
            sock.close()
        runtime.run(server.wait_closed())

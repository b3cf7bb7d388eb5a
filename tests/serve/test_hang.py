"""Loops that hang while the server serves: told, passed over, and back when they answer again."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import pytest
from tests.helpers import until
from tests.serve import apps
from tests.serve.apps import Receive, Scope, Send, respond, routed
from tests.serve.web import PATIENCE, Program, Serving, Wire, listens, request, serving

from polyloop.serve import serve_aiohttp


class Blocks:
    """Handlers that block their loops until the test lets them go."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self._release = threading.Event()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.append(threading.current_thread().name)
        self._release.wait(PATIENCE)
        await respond(send, b"at last")

    def release(self) -> None:
        self._release.set()


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    made = Blocks()
    yield made
    made.release()


@contextlib.contextmanager
def hanging(served: Serving, blocks: Blocks, count: int = 1) -> Iterator[list[Wire]]:
    """So many loops hang, each in a request of its own."""
    with contextlib.ExitStack() as stack:
        wires: list[Wire] = []
        for number in range(1, count + 1):
            wire = stack.enter_context(served.connect())
            wire.send(request("/block?now"))
            wires.append(wire)
            until(lambda number=number: len(blocks.entered) == number)  # type: ignore[misc]
        until(lambda: hung(served) == count)
        try:
            yield wires
        finally:
            blocks.release()


def hung(served: Serving) -> int:
    return sum(load.hanging for load in served.server.loads)


def errors(caplog: pytest.LogCaptureFixture, logger: str = "polyloop.serve") -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.name == logger and record.levelno >= logging.ERROR
    ]


def told(caplog: pytest.LogCaptureFixture) -> str:
    """What is said of the one hang, which comes a moment after it is known."""
    until(lambda: errors(caplog))
    (message,) = errors(caplog)
    return message


def test_a_hang_is_told_with_its_request_and_stack(blocks: Blocks, caplog: pytest.LogCaptureFixture) -> None:
    """Once, within about a second: which loop, which request, and where it is."""
    with serving(routed({"/block": blocks.handle})) as served:
        with hanging(served, blocks) as (wire,):
            message = told(caplog)
            assert blocks.entered[0] in message
            assert "GET '/block' for 127.0.0.1:" in message
            assert "test_hang.py" in message and "in handle" in message
            blocks.release()
            assert wire.answer().body == b"at last"
        until(lambda: hung(served) == 0)
        until(lambda: f"{blocks.entered[0]} answers again" in caplog.text)
        assert len(errors(caplog)) == 1
        assert served.stop().clean


def test_others_serve_on_and_it_gets_nothing_new(blocks: Blocks) -> None:
    """Every request that goes to another loop is answered meanwhile; when it is back, it gets its share."""
    with serving(routed({**apps.ROUTES, "/block": blocks.handle}), loops=3) as served:
        with hanging(served, blocks):
            hangs = blocks.entered[0]
            homes = [served.who() for _ in range(12)]
            assert hangs not in homes and len(set(homes)) == 2
            blocks.release()
            until(lambda: hung(served) == 0)
        until(lambda: served.who() == hangs)


def test_a_keep_alive_connection_of_a_loop_that_hangs_waits(blocks: Blocks) -> None:
    """It cannot be moved; its request is answered when the loop is back."""
    with serving(routed({**apps.ROUTES, "/block": blocks.handle}), loops=2) as served, contextlib.ExitStack() as stack:
        wires: dict[str, Wire] = {}
        while len(wires) < 2:
            wire = stack.enter_context(served.connect())
            wires[wire.get("/who").json()["thread"]] = wire
        with hanging(served, blocks):
            waits = wires[blocks.entered[0]]
            waits.send(request("/"))
            blocks.release()
            assert waits.answer().body == b"hello"


def test_all_loops_hang(blocks: Blocks) -> None:
    """Connections wait in the kernel's backlog, and are served when a loop is back."""
    with serving(routed({**apps.ROUTES, "/block": blocks.handle}), loops=2, health="/health") as served:
        with hanging(served, blocks, 2), served.connect() as late:
            late.send(request("/"))
            ready, facts = served.server.health()
            assert not ready and facts["state"] == "serving"
            assert [loop["hanging"] for loop in facts["loops"]] == [True, True]  # type: ignore[attr-defined]
            blocks.release()
            assert late.answer().body == b"hello"
        until(lambda: served.server.health()[0])
        assert served.stop().clean


def test_what_is_in_flight_is_named_when_the_hang_is_not_a_requests(caplog: pytest.LogCaptureFixture) -> None:
    """A callback that blocks belongs to none; the requests that wait for it are told."""
    release = threading.Event()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:

        asyncio.get_running_loop().call_soon(release.wait, PATIENCE)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await respond(send, b"done")

    with serving(routed({"/callback": handle})) as served, served.connect() as wire:
        wire.send(request("/callback"))
        message = told(caplog)  # before it goes on: the stack is taken a moment after the hang is known
        release.set()
        assert wire.answer().body == b"done"
        assert "while these are in flight: GET '/callback'" in message


def test_no_watch_where_none_is_wanted(blocks: Blocks) -> None:
    """``hung_after=None``: nothing is told, and shutting down is bounded still."""
    with serving(routed({**apps.ROUTES, "/block": blocks.handle}), hung_after=None) as served, served.connect() as wire:
        wire.send(request("/block"))
        until(lambda: blocks.entered)
        assert hung(served) == 0
        blocks.release()
        assert wire.answer().body == b"at last"


def test_aiohttp(blocks: Blocks, caplog: pytest.LogCaptureFixture) -> None:
    """The same with the other engine."""
    from aiohttp import web

    async def block(request: web.Request) -> web.Response:
        blocks.entered.append(threading.current_thread().name)
        blocks._release.wait(PATIENCE)
        return web.Response(text="at last")

    def make() -> web.Application:
        app = web.Application()
        app.router.add_get("/block", block)
        return app

    with serving(make, run=serve_aiohttp) as served, hanging(served, blocks) as (wire,):
        message = told(caplog)
        assert blocks.entered[0] in message and "GET '/block' for 127.0.0.1" in message and "in block" in message
        blocks.release()
        assert wire.answer().body == b"at last"


# The end of a server with a loop that hangs


def test_a_shutdown_leaves_it_behind_and_names_it(blocks: Blocks) -> None:
    """Within the deadline; the applications of the others are shut down."""
    events: list[str] = []
    with serving(routed({**apps.ROUTES, "/block": blocks.handle}, events), loops=3) as served:
        with hanging(served, blocks):
            served.server.shutdown(0.3)
            until(lambda: served.server.state == "closed")
            assert sorted(event for event in events if event.startswith("down")) == sorted(
                f"down polyloop-{index}" for index in range(3) if f"polyloop-{index}" != blocks.entered[0]
            )
        report = served.stop()
        assert report.stuck == (blocks.entered[0],)
        assert not report.clean and blocks.entered[0] in str(report)


def test_it_may_come_back_in_time(blocks: Blocks) -> None:
    """Then its request is answered and its application shut down as all others."""
    events: list[str] = []
    with serving(routed({"/block": blocks.handle}, events)) as served, hanging(served, blocks) as (wire,):
        served.server.shutdown(PATIENCE)
        until(lambda: not listens(served.port))
        blocks.release()
        assert wire.answer().body == b"at last"
        assert served.stop().clean
    assert len([event for event in events if event.startswith("down")]) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="signals as on unix")
@pytest.mark.parametrize("loops", [1, 2])
def test_a_process_ends_in_time_with_a_loop_that_never_comes_back(loops: int) -> None:
    """Also where it is the only one; it is named in the report."""
    with Program(loops=loops, graceful_timeout=0.3).until_ready() as program, program.connect() as wire:
        wire.send(request("/block"))
        assert program.process.stderr is not None
        assert "GET '/block'" in program.process.stderr.readline()
        program.signal(signal.SIGTERM)
        assert program.wait() == 3
        assert program.report is not None and len(program.report.stuck) == 1

"""WebSockets on all loops, with the client of the ``websockets`` package."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.helpers import until
from tests.serve import apps
from tests.serve.apps import Receive, Scope, Send, routed
from tests.serve.web import HTTP, PATIENCE, Serving, serving
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import polyloop
from polyloop.queues import BroadcastReceiver, broadcast
from polyloop.testing import TestThread

WS = ["websockets-sansio", "wsproto"]


@pytest.fixture(params=[*WS])
def ws(request: pytest.FixtureRequest) -> str:
    """Each of uvicorn's implementations that can be had here."""
    name: str = request.param
    if name == "wsproto":
        pytest.importorskip("wsproto")
    return name


@contextlib.contextmanager
def clients(served: Serving, path: str, count: int, **options: Any) -> Iterator[list[ClientConnection]]:
    """As many WebSockets."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                connect(f"ws://localhost:{served.port}{path}", open_timeout=PATIENCE, proxy=None, **options)
            )
            for _ in range(count)
        ]


async def home(scope: Scope, receive: Receive, send: Send) -> None:
    """A WebSocket that says where it runs, and then waits for its end, which it notes."""
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": threading.current_thread().name})
    message = await receive()
    ENDS.append(message["code"])


ENDS: list[int] = []


@pytest.mark.parametrize("http", HTTP)
def test_websockets_spread_over_all_loops(http: str) -> None:
    """As all connections do, and they stay where they are."""
    with (
        serving(routed({"/": home}), host="localhost", loops=3, uvicorn={"http": http}) as served,
        clients(served, "/", 6) as sockets,
    ):
        assert Counter(one.recv(PATIENCE) for one in sockets) == dict.fromkeys(map("polyloop-{}".format, range(3)), 2)


def test_messages_come_back(ws: str) -> None:
    """Short ones, long ones, and many at once."""
    with (
        serving(apps.app, host="localhost", uvicorn={"ws": ws}) as served,
        clients(served, "/ws", 4, max_size=None) as sockets,
    ):
        for one in sockets:
            for text in ("hello", "x" * 1_000_000, ""):
                one.send(text)
                assert one.recv(PATIENCE) == text
        for number in range(100):
            for one in sockets:
                one.send(str(number))
        assert all([one.recv(PATIENCE) for _ in range(100)] == [str(n) for n in range(100)] for one in sockets)
        # By the same name: with port=0 each of its addresses has a port of its own.
        assert httpx.get(f"http://localhost:{served.port}/", trust_env=False).text == "hello"


def test_over_tls(certificates: Any) -> None:
    """The same, encrypted.

    By the client for asyncio: the one above reads and writes one TLS connection on two threads at once, which loses
    data now and then (gh-143756).
    """

    async def exchange(port: int) -> list[str | bytes]:
        url = f"wss://localhost:{port}/ws"
        async with (
            connect_async(url, ssl=certificates.for_client(), open_timeout=PATIENCE, proxy=None) as first,
            connect_async(url, ssl=certificates.for_client(), open_timeout=PATIENCE, proxy=None) as second,
        ):
            for one in (first, second):
                await one.send("secret")
            return [await asyncio.wait_for(one.recv(), PATIENCE) for one in (first, second)]

    with serving(apps.app, host="localhost", ssl=certificates.for_server()) as served:
        assert asyncio.run(exchange(served.port)) == ["secret"] * 2


def test_a_broadcast_reaches_the_clients_of_all_loops() -> None:
    """The room is polyloop's broadcast queue; who speaks on one loop is heard on the others."""
    room, first = broadcast[str](100)
    first.close()

    async def listen(receiver: BroadcastReceiver[str], send: Send) -> None:
        async for text in receiver:
            await send({"type": "websocket.send", "text": text})

    async def chat(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        receiver = room.subscribe()
        await send({"type": "websocket.accept"})
        async with polyloop.TaskGroup() as group:
            listening = group.create_task(listen(receiver, send), on="here")
            while (message := await receive())["type"] != "websocket.disconnect":
                room.send(message["text"])
            listening.cancel()

    with (
        serving(routed({"/": chat}), host="localhost", loops=3) as served,
        clients(served, "/", 6) as sockets,
    ):
        for number, one in enumerate(sockets):
            one.send(f"hello from {number}")
        for one in sockets:
            heard = {one.recv(PATIENCE) for _ in range(6)}
            assert heard == {f"hello from {number}" for number in range(6)}


def test_a_shutdown_closes_websockets_as_a_restart(ws: str) -> None:
    """With code 1012, on all loops; the application hears of it and ends by itself."""
    ENDS.clear()
    with (
        serving(routed({"/": home}), host="localhost", loops=2, uvicorn={"ws": ws}) as served,
        clients(served, "/", 4) as sockets,
    ):
        for one in sockets:
            one.recv(PATIENCE)
        report = served.stop()
        assert report.clean
        for one in sockets:
            with pytest.raises(ConnectionClosed) as caught:
                one.recv(PATIENCE)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
    assert ENDS == [1012] * 4


def test_one_that_shakes_hands_during_the_shutdown_is_closed_then() -> None:
    """It is told when it can be told: not by an error in the place of the handshake."""
    go, begun = threading.Event(), threading.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        begun.set()
        await polyloop.to_thread(go.wait, PATIENCE)
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    codes: list[int] = []

    def client(port: int) -> None:
        with connect(f"ws://localhost:{port}/", open_timeout=PATIENCE, proxy=None) as one:
            with pytest.raises(ConnectionClosed) as caught:
                one.recv(PATIENCE)
            assert caught.value.rcvd is not None
            codes.append(caught.value.rcvd.code)

    with serving(routed({"/": late}), host="localhost") as served:
        thread = TestThread(client, served.port)
        assert begun.wait(PATIENCE)
        served.server.shutdown()
        until(lambda: all(engine._gate.draining for _, engine in served.server._engines))  # type: ignore[attr-defined]
        go.set()
        thread.result()
        assert served.stop().clean
    assert codes == [1012]


def test_one_that_the_application_refuses() -> None:
    """Before the handshake: 403; with an error: 500."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("no such room")

    with serving(routed({"/refuse": refuse, "/fail": fail}), host="localhost") as served:
        for path, status in (("/refuse", 403), ("/fail", 500)):
            with pytest.raises(InvalidStatus) as caught, clients(served, path, 1):
                pass
            assert caught.value.response.status_code == status
        assert served.stop().clean


def test_one_whose_application_does_not_end_is_cut_at_the_deadline() -> None:
    """And named in the report."""
    begun = threading.Event()

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        begun.set()
        while True:
            await receive()

    with serving(routed({"/deaf": deaf}), host="localhost") as served, clients(served, "/deaf", 1):
        assert begun.wait(PATIENCE)
        report = served.stop(0.5)
        assert len(report.cut) == 1 and "websocket '/deaf'" in report.cut[0]

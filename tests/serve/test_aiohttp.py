"""aiohttp applications on all loops: one each, as aiohttp wants it."""

import asyncio
import contextlib
import gc
import re
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from tests.helpers import until
from tests.serve.web import PATIENCE, Serving, Wire, request, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import polyloop
from polyloop import ServerStartError
from polyloop.serve import AiohttpServer, _aiohttp, serve_aiohttp

EVENTS: list[str] = []
HOME = web.AppKey("HOME", str)


def here() -> str:
    return threading.current_thread().name


async def who(request: web.Request) -> web.Response:
    return web.json_response([here(), request.app[HOME]])


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def echo(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    async for part in request.content.iter_any():
        await response.write(part)
    await response.write_eof()
    return response


async def slow(request: web.Request) -> web.Response:
    await asyncio.sleep(float(request.query_string or "0.2"))
    return web.Response(text="slow")


async def large(request: web.Request) -> web.Response:
    return web.Response(body=b"x" * int(request.query_string))


async def chat(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.send_str(here())
    async for message in socket:
        await socket.send_str(message.data)
    EVENTS.append(f"closed {socket.close_code}")
    return socket


async def resource(app: web.Application) -> AsyncIterator[None]:
    app[HOME] = here()
    EVENTS.append(f"up {here()}")
    yield
    EVENTS.append(f"down {here()}")


async def told(app: web.Application) -> None:
    EVENTS.append(f"told {here()}")


def make() -> web.Application:
    app = web.Application(client_max_size=10**8)
    app.router.add_get("/", hello)
    app.router.add_get("/who", who)
    app.router.add_post("/echo", echo)
    app.router.add_get("/slow", slow)
    app.router.add_get("/large", large)
    app.router.add_get("/ws", chat)
    app.cleanup_ctx.append(resource)
    app.on_shutdown.append(told)
    return app


async def make_async() -> web.Application:
    await asyncio.sleep(0)
    return make()


@pytest.fixture(autouse=True)
def no_events() -> None:
    EVENTS.clear()


def serving_aiohttp(factory: Any = make, **options: Any) -> contextlib.AbstractContextManager[Serving]:
    return serving(factory, run=serve_aiohttp, **options)


@pytest.mark.parametrize("factory", [make, make_async])
def test_each_loop_has_its_own_application(factory: Callable[[], Any]) -> None:
    """With its own resources, which are cleaned up there."""
    with serving_aiohttp(factory, loops=3) as served:
        homes = Counter[str]()
        for _ in range(6):
            thread, home = served.get("/who").json()
            assert thread == home
            homes[home] += 1
        assert homes == {"polyloop-0": 2, "polyloop-1": 2, "polyloop-2": 2}
        until(lambda: served.server.requests == 6)
        report = served.stop()
        assert report.clean and report.requests == 6
    assert Counter(event.split()[0] for event in EVENTS) == {"up": 3, "told": 3, "down": 3}


def test_http() -> None:
    """Bodies both ways, HEAD, keep-alive, pipelining, old clients."""
    with serving_aiohttp() as served, served.client() as client:
        assert client.post("/echo", content=iter([b"a" * 100_000, b"b"])).content == b"a" * 100_000 + b"b"
        assert len(client.get("/large?30000000").content) == 30_000_000
        assert client.head("/").headers["content-length"] == "5"
        assert client.get("/nowhere").status_code == 404
        with served.connect() as wire:
            wire.send(b"".join(request(f"/large?{number}") for number in range(1, 21)))
            assert [len(wire.answer().body) for _ in range(20)] == list(range(1, 21))
        with served.connect() as wire:
            wire.send(request("/", version="1.0"))
            assert wire.answer().body == b"hello" and wire.rest() == b""


def test_tls(certificates: Any) -> None:
    """The client verifies the chain."""
    with (
        serving_aiohttp(ssl=certificates.for_server()) as served,
        httpx.Client(verify=certificates.for_client(), trust_env=False) as client,
    ):
        assert client.get(f"https://localhost:{served.port}/").text == "hello"


def test_unix_socket(tmp_path: Path) -> None:
    """For a proxy on the same machine."""
    with serving_aiohttp(uds=tmp_path / "web.sock") as served, Wire(str(tmp_path / "web.sock")) as wire:
        assert wire.get().body == b"hello"
        wire.sock.close()
        assert served.stop().clean


def test_access_log(tmp_path: Path) -> None:
    """One line for each answer, in the form of the other servers."""
    path = tmp_path / "access.log"
    with serving_aiohttp(access_log=path) as served:
        for number in range(4):
            served.get(f"/?{number}")
        served.get("/nowhere")
    lines = path.read_text().splitlines()
    assert len(lines) == 5
    assert sum(bool(re.search(r'127\.0\.0\.1:\d+ - "GET /\?\d HTTP/1\.1" 200$', line)) for line in lines) == 4
    assert sum(line.endswith('"GET /nowhere HTTP/1.1" 404') for line in lines) == 1


@pytest.mark.parametrize(("path", "status"), [("/health", 503), ("/health/ready", 503), ("/health/live", 200)])
def test_health(path: str, status: int) -> None:
    """As of the other servers."""
    with serving_aiohttp(health="/health") as served, served.connect() as one:
        assert served.get(path).json()["state"] == "serving"
        one.get()
        served.server.shutdown()
        until(lambda: served.server.state == "draining")
        answer = one.get(path)
        while "connection" not in answer.headers:  # this loop had not heard of the end yet
            answer = one.get(path)
        assert answer.status == status and one.rest() == b""


def test_settings_of_aiohttp_pass() -> None:
    """To each loop's AppRunner."""
    with serving_aiohttp(settings={"keepalive_timeout": 0.1}) as served, served.connect() as wire:
        wire.get()
        assert wire.rest() == b""


def test_embedded() -> None:
    """As a context manager, on the loops of the runtime around it."""

    async def main() -> set[str]:
        async with AiohttpServer(make, port=0, access_log=False) as server:
            port = server.sockets[0].getsockname()[1]
            threads = set()
            for _ in range(4):
                async with httpx.AsyncClient(trust_env=False) as client:
                    threads.add((await client.get(f"http://127.0.0.1:{port}/who")).json()[0])
            return threads

    assert polyloop.run(main(), loops=2) == {"MainThread", "polyloop-1"}


# WebSockets


def test_websockets_on_all_loops() -> None:
    """Each stays where it is; at the end all are told that the service restarts."""
    with serving_aiohttp(host="localhost") as served, contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(connect(f"ws://localhost:{served.port}/ws", open_timeout=PATIENCE, proxy=None))
            for _ in range(4)
        ]
        assert Counter(one.recv(PATIENCE) for one in sockets) == {"polyloop-0": 2, "polyloop-1": 2}
        for one in sockets:
            one.send("back")
            assert one.recv(PATIENCE) == "back"
        assert served.stop().clean
        for one in sockets:
            with pytest.raises(ConnectionClosed) as caught:
                one.recv(PATIENCE)
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
    assert sum(event.startswith("closed") for event in EVENTS) == 4


# The end


def test_slow_requests_are_finished_and_idle_connections_closed() -> None:
    """Each answer says that it is the last on its connection."""
    with serving_aiohttp() as served, served.connect() as busy, served.connect() as idle, served.connect() as never:
        idle.get()
        busy.send(request("/slow?0.3"))
        until(lambda: served.server._engines[0][1]._in_flight or served.server._engines[1][1]._in_flight)  # type: ignore[attr-defined]
        served.server.shutdown()
        answer = busy.answer()
        assert answer.body == b"slow" and answer.headers["connection"] == "close"
        assert busy.rest() == idle.rest() == never.rest() == b""
        assert served.stop().clean


def test_pipelined_requests_are_all_answered_in_the_drain() -> None:
    """The last of them ends the connection."""
    with serving_aiohttp() as served, served.connect() as wire:
        wire.send(request("/slow?0.3") + request("/large?2") + request("/large?3"))
        until(lambda: any(engine._in_flight for _, engine in served.server._engines))  # type: ignore[attr-defined]
        served.server.shutdown()
        assert [wire.answer().body for _ in range(3)] == [b"slow", b"xx", b"xxx"]
        assert wire.rest() == b""


def test_an_answer_that_is_being_sent_is_not_cut() -> None:
    """The handler has returned it; the client takes its time."""
    with serving_aiohttp() as served, served.connect() as wire:
        wire.send(request("/large?30000000"))
        until(lambda: served.server.requests == 1)
        served.server.shutdown()
        until(lambda: served.server.state == "draining")
        threading.Event().wait(0.7)  # beyond the grace of idle connections: this client just reads nothing for a while
        assert len(wire.answer().body) == 30_000_000
        assert served.stop().clean


def test_what_takes_too_long_is_cancelled_and_named() -> None:
    """At the deadline."""
    with serving_aiohttp() as served, served.connect() as wire:
        wire.send(request("/slow?600"))
        until(lambda: any(engine._in_flight for _, engine in served.server._engines))  # type: ignore[attr-defined]
        report = served.stop(0.3)
        assert len(report.cut) == 1 and report.cut[0].startswith("GET '/slow'")
        assert wire.rest() == b""
    assert Counter(event.split()[0] for event in EVENTS) == {"up": 2, "told": 2, "down": 2}


# Bad input


def test_a_client_that_never_asks_is_closed() -> None:
    """After head_timeout."""
    with serving_aiohttp(head_timeout=0.2) as served, served.connect() as wire:
        assert wire.rest() == b""


def test_garbage_is_answered() -> None:
    """With 400, and the connection ends."""
    with serving_aiohttp() as served, served.connect() as wire:
        wire.send(b"\x00\x01 garbage\r\n\r\n")
        assert wire.answer().status == 400
        assert served.get().text == "hello"


def fails_on_one_loop() -> web.Application:
    app = make()

    async def fail(app: web.Application) -> None:
        if here() == "polyloop-1":
            raise LookupError("no database")

    app.on_startup.append(fail)
    return app


def fails_in_the_end() -> web.Application:
    app = make()

    async def fail(app: web.Application) -> None:
        if here() == "polyloop-1":
            raise LookupError("no end")

    app.on_cleanup.append(fail)
    return app


def not_one() -> str:
    return "application"


def broken() -> web.Application:
    raise LookupError("no application")


@pytest.mark.parametrize(
    ("factory", "message"),
    [(fails_on_one_loop, "no database"), (not_one, "got 'application'"), (broken, "no application")],
)
def test_a_start_that_fails_says_why(factory: Callable[[], Any], message: str) -> None:
    """What had started elsewhere is cleaned up."""
    with pytest.raises(ServerStartError, match=message), serving_aiohttp(factory):
        pass
    counts = Counter(event.split()[0] for event in EVENTS)
    assert counts["up"] == counts["down"]


def test_a_cleanup_that_fails_is_in_the_report() -> None:
    """With its loop; the others are cleaned up."""
    with serving_aiohttp(fails_in_the_end) as served:
        report = served.stop()
    assert len(report.failures) == 1 and "polyloop-1" in report.failures[0] and "no end" in report.failures[0]


@pytest.mark.parametrize("loops", [2, 4])
def test_a_factory_that_returns_one_application_for_all_loops(loops: int) -> None:
    """Says what it should do instead."""
    app = make()
    with (
        pytest.raises(ServerStartError, match="must make a new application on each loop"),
        serving_aiohttp(lambda: app, loops=loops),
    ):
        pass
    assert Counter(event.split()[0] for event in EVENTS) in ({}, {"up": 1, "told": 1, "down": 1})


def test_a_request_goes_with_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the server next looks at its connections. (Before that, aiohttp keeps it until the next request.)"""
    monkeypatch.setattr(_aiohttp, "LOOK", 600.0)
    requests: list[weakref.ref[web.Request]] = []

    async def upload(request: web.Request) -> web.Response:
        requests.append(weakref.ref(request))
        return web.Response(text=str(len(await request.read())))

    def with_upload() -> web.Application:
        app = make()
        app.router.add_post("/upload", upload)
        return app

    def is_gone() -> bool:
        gc.collect()
        return requests[0]() is None

    with serving_aiohttp(with_upload) as served:
        with served.connect() as wire:
            wire.send(request("/upload", "POST", body=b"x" * 100_000))
            assert wire.answer().body == b"100000"
        until(is_gone)


def test_wrong_arguments() -> None:
    """An application instead of a factory, and what cannot be called."""
    with pytest.raises(TypeError, match="give a function that makes one"):
        AiohttpServer(web.Application())
    with pytest.raises(TypeError, match="not callable"):
        AiohttpServer("app:make")  # type: ignore[arg-type]

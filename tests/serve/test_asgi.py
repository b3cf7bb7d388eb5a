"""ASGI applications on all loops: what a client and an application see while the server serves."""

import asyncio
import contextlib
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.helpers import until
from tests.serve import apps
from tests.serve.apps import Receive, Scope, Send, respond, routed
from tests.serve.web import HTTP, PATIENCE, Wire, free_port, request, serving

import polyloop
from polyloop import Runtime, ServerStartError
from polyloop.serve import ASGIServer, ServeReport

needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="unix sockets")


def options(**more: Any) -> dict[str, Any]:
    """What a server of these tests needs."""
    return {"port": 0, "access_log": False, **more}


# Loops


def test_connections_reach_all_loops_alike() -> None:
    """Short ones by turns, open ones by their number."""
    with serving(apps.make, factory=True, loops=3) as served:
        assert Counter(served.who() for _ in range(9)) == {"polyloop-0": 3, "polyloop-1": 3, "polyloop-2": 3}
        wires = [served.connect() for _ in range(9)]
        homes = Counter(wire.get("/who").json()["thread"] for wire in wires)
        for wire in wires:
            wire.sock.close()
        assert set(homes.values()) == {3}


def test_a_factory_makes_an_application_for_each_loop() -> None:
    """Each has its own lifespan, with its own state, and all are shut down."""
    made: list[str] = []
    events: list[str] = []

    def factory() -> apps.App:
        made.append(threading.current_thread().name)
        return routed(apps.ROUTES, events)

    with serving(factory, factory=True, loops=3) as served:
        loops = {f"polyloop-{index}" for index in range(3)}
        assert set(made) == loops and len(made) == 3
        assert sorted(events) == sorted(f"up {name}" for name in loops)
        for _ in range(3):
            answer = served.get("/who").json()
            assert answer["state"]["home"] == answer["thread"]
        report = served.stop()
    assert sorted(events[3:]) == sorted(f"down {name}" for name in loops)
    assert report.clean and report.requests == 3


def test_one_application_may_be_shared_by_all_loops() -> None:
    """Its lifespan runs on each of them still, and each request sees its own loop's state."""
    events: list[str] = []
    with serving(routed(apps.ROUTES, events), loops=2) as served:
        for _ in range(4):
            answer = served.get("/who").json()
            assert answer["state"]["home"] == answer["thread"]
    assert Counter(event.split()[0] for event in events) == {"up": 2, "down": 2}


def test_an_application_by_its_name() -> None:
    """As ``module:attribute``."""
    with serving("tests.serve.apps:app") as served:
        assert served.get().text == "hello"
    with serving("tests.serve.apps:make", factory=True) as served:
        assert served.get().text == "hello"


class Asgi2:
    """An application in the style of ASGI 2: called with the scope, it returns what is called with the rest."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, receive: Receive, send: Send) -> None:
        if self.scope["type"] == "http":
            await respond(send, b"two")


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that does not know of lifespans."""
    assert scope["type"] == "http"
    await respond(send, b"bare")


class Callable3:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, b"object")


@pytest.mark.parametrize(("app", "text"), [(Asgi2, "two"), (bare, "bare"), (Callable3(), "object")])
def test_applications_of_every_shape(app: Any, text: str) -> None:
    """Functions, objects, those without a lifespan, those of ASGI 2."""
    with serving(app) as served:
        assert served.get().text == text


def test_starlette() -> None:
    """A framework's application, its lifespan state and its streaming."""
    starlette = pytest.importorskip("starlette.applications")
    from starlette.requests import Request
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def where(request: Request) -> JSONResponse:
        return JSONResponse([request.state.home, threading.current_thread().name])

    async def stream(request: Request) -> StreamingResponse:
        body = [part.upper() async for part in request.stream()]

        async def parts() -> Any:
            for part in body:
                yield part

        return StreamingResponse(parts())

    def factory() -> Any:
        @contextlib.asynccontextmanager
        async def lifespan(app: object) -> Any:
            yield {"home": threading.current_thread().name}

        return starlette.Starlette(
            routes=[Route("/where", where), Route("/stream", stream, methods=["POST"])], lifespan=lifespan
        )

    with serving(factory, factory=True, loops=2) as served:
        for _ in range(4):
            home, here = served.get("/where").json()
            assert home == here
        with served.client() as client:
            assert client.post("/stream", content=iter([b"a" * 70000, b"b"])).text == "A" * 70000 + "B"


# HTTP, by both parsers


@pytest.mark.parametrize("http", HTTP)
def test_http(http: str) -> None:
    """Bodies both ways, HEAD, keep-alive, old clients."""
    with serving(apps.app, uvicorn={"http": http}) as served, served.client() as client:
        assert (
            client.post("/echo", content=iter([b"a" * 100_000, b"b" * 100_000])).content == b"a" * 10**5 + b"b" * 10**5
        )
        assert client.post("/size", content=b"x" * 20_000_000).text == "20000000"
        assert len(client.get("/large?30000000").content) == 30_000_000
        head = client.head("/")
        assert head.headers["content-length"] == "5" and head.content == b""
        assert "date" in head.headers and head.headers["server"] == "uvicorn"
        with served.connect() as wire:
            threads = {wire.get("/who").json()["thread"] for _ in range(5)}
            assert len(threads) == 1
        with served.connect() as wire:
            wire.send(request("/", version="1.0"))
            answer = wire.answer()
            assert answer.body == b"hello" and answer.headers["connection"] == "close"
            assert wire.rest() == b""


@pytest.mark.parametrize("http", HTTP)
def test_100_continue(http: str) -> None:
    """The client is asked for its body when the application asks for it."""
    with serving(apps.app, uvicorn={"http": http}) as served, served.connect() as wire:
        wire.send(request("/size", "POST", "Expect: 100-continue", "Content-Length: 4"))
        assert wire.answer().status == 100
        wire.send(b"body")
        assert wire.answer().body == b"4"


@pytest.mark.parametrize("http", HTTP)
def test_pipelined_requests_are_answered_in_their_order(http: str) -> None:
    """A client need not wait for one answer to ask for the next."""
    with serving(apps.app, uvicorn={"http": http}) as served, served.connect() as wire:
        wire.send(b"".join(request(f"/large?{number}") for number in range(1, 21)))
        assert [len(wire.answer().body) for _ in range(20)] == list(range(1, 21))


def test_streaming_answers_come_as_they_are_made() -> None:
    """A part is sent when the application sends it, not when all are there."""
    go = threading.Event()

    async def parts(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await polyloop.to_thread(go.wait, PATIENCE)
        await send({"type": "http.response.body", "body": b"second"})

    with serving(routed({"/": parts})) as served, served.client() as client, client.stream("GET", "/") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"first"
        go.set()
        assert b"".join(pieces) == b"second"


# Where it listens


def test_tls(certificates: Any) -> None:
    """The whole chain is sent: a client that knows only the root verifies it."""
    with serving(apps.app, ssl=certificates.for_server()) as served:
        url = f"https://localhost:{served.port}"
        with httpx.Client(verify=certificates.for_client(), trust_env=False) as client:
            assert client.get(f"{url}/who").json()["scheme"] == "https"
            assert len(client.get(f"{url}/large?3000000").content) == 3_000_000
        with pytest.raises(httpx.ConnectError), httpx.Client(trust_env=False) as stranger:
            stranger.get(url)


@needs_unix
def test_unix_socket(tmp_path: Path) -> None:
    """For a proxy on the same machine; its file goes with the server."""
    path = tmp_path / "web.sock"
    with serving(apps.app, uds=path) as served:
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://test", trust_env=False) as client:
            assert client.get("/").text == "hello"
            assert client.get("/who").json()["client"] is None
        if shutil.which("curl"):
            command = ["curl", "-sS", "--unix-socket", str(path), "http://test/"]
            assert subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE).stdout == b"hello"
        assert served.stop().clean
    assert not path.exists()


@needs_unix
def test_a_unix_socket_is_not_taken_from_who_listens_there(tmp_path: Path) -> None:
    """And one that nobody listens on is replaced."""
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(apps.app, uds=path):
        with pytest.raises(OSError, match="somebody else listens"), serving(apps.app, uds=path):
            pass
        with Wire(str(path)) as wire:
            assert wire.get().body == b"hello"


def test_two_hosts() -> None:
    """On one port, with one acceptor."""
    with serving(apps.app, host=["127.0.0.1", "127.0.0.2"], port=free_port()) as served:
        addresses = [sock.getsockname() for sock in served.server.sockets]
        assert {host for host, _ in addresses} == {"127.0.0.1", "127.0.0.2"}
        for address in addresses:
            with Wire(address) as wire:
                assert wire.get().body == b"hello"


def test_sockets_of_the_callers() -> None:
    """They are the server's from then on."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    with serving(apps.app, sockets=[sock]) as served:
        assert served.port == sock.getsockname()[1]
        assert served.get().text == "hello"
    assert sock.fileno() == -1


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
def test_reuse_port() -> None:
    """Each loop listens by itself; the kernel deals out the connections."""
    with serving(apps.app, reuse_port=True, loops=3) as served:
        until(lambda: len({served.who() for _ in range(10)}) == 3)
        assert served.stop().clean


# Facts about the server


def test_health() -> None:
    """Ready while requests are welcome, alive as long as it answers at all."""
    with serving(apps.make, factory=True, health="/health") as served:
        for path in ("/health/ready", "/health/live", "/health"):
            answer = served.get(path)
            assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
        facts = served.get("/health").json()
        assert facts["state"] == "serving" and [loop["loop"] for loop in facts["loops"]] == ["polyloop-0", "polyloop-1"]


@pytest.mark.parametrize(("path", "status"), [("/health", 503), ("/health/ready", 503), ("/health/live", 200)])
def test_health_while_the_server_drains(path: str, status: int) -> None:
    """No more requests, please; but nobody should kill a server that finishes its work."""
    with serving(apps.make, factory=True, health="/health") as served, served.connect() as one:
        one.get()
        served.server.shutdown()
        until(lambda: served.server.state == "draining")
        answer = one.get(path)
        assert answer.status == status and answer.json()["state"] == "draining"
        while "connection" not in answer.headers:  # this loop had not heard of the end yet
            answer = one.get(path)
        assert answer.headers["connection"] == "close" and one.rest() == b""


def test_health_under_a_root_path() -> None:
    """Its path is that of the server, which the proxy's prefix does not change; the application has the rest."""
    with serving(apps.app, health="/health", uvicorn={"root_path": "/api"}) as served:
        assert served.get("/health").json()["state"] == "serving"


def test_only_its_own_paths_are_healths() -> None:
    """What merely begins like it is the application's."""
    routes = {"/healthy": apps.hello, "/health/other": apps.hello}
    with serving(routed(routes), health="/health") as served:
        assert served.get("/healthy").text == served.get("/health/other").text == "hello"


def test_access_log(tmp_path: Path) -> None:
    """One line for each answer, of all loops."""
    path = tmp_path / "access.log"
    with serving(apps.app, access_log=path) as served:
        for number in range(10):
            served.get(f"/who?{number}")
    lines = path.read_text().splitlines()
    assert len(lines) == 10
    for line in lines:
        assert re.search(r'127\.0\.0\.1:\d+ - "GET /who\?\d HTTP/1\.1" 200$', line), line


def test_requests_and_loads_are_counted() -> None:
    """As seen from any thread."""
    with serving(apps.app) as served:
        with served.connect() as wire:
            wire.get()
            wire.get()
            until(lambda: served.server.requests == 2)
            assert sum(load.connections for load in served.server.loads) == 1
        assert "serving" in repr(served.server)
        until(lambda: sum(load.connections for load in served.server.loads) == 0)
        assert sum(load.accepted for load in served.server.loads) == 1


# Settings of uvicorn


def client_of(served: Any, **headers: str) -> Any:
    return served.get("/who", headers=headers).json()["client"]


def test_proxy_headers_count_for_trusted_proxies_only() -> None:
    """By default that is this machine."""
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    with serving(apps.app) as served:
        assert client_of(served, **forwarded)[0] == "203.0.113.7"
        assert served.get("/who", headers=forwarded).json()["scheme"] == "https"
    with serving(apps.app, uvicorn={"forwarded_allow_ips": "192.0.2.1"}) as served:
        assert client_of(served, **forwarded)[0] == "127.0.0.1"
    with serving(apps.app, uvicorn={"proxy_headers": False}) as served:
        assert client_of(served, **forwarded)[0] == "127.0.0.1"


def test_settings_of_uvicorn_pass() -> None:
    """Those that are not the server's own."""
    settings = {"headers": [("x-test", "yes")], "server_header": False, "timeout_keep_alive": 0.1}
    with serving(apps.app, uvicorn=settings) as served, served.connect() as wire:
        answer = wire.get()
        assert answer.headers["x-test"] == "yes" and "server" not in answer.headers
        assert wire.rest() == b""  # closed, since it was idle


def test_too_many_at_once_are_told_so() -> None:
    """uvicorn's ``limit_concurrency`` counts for each loop."""
    with serving(apps.app, loops=1, uvicorn={"limit_concurrency": 2}) as served, served.connect() as one:
        one.send(request("/slow?0.3"))
        until(lambda: len(served.server._engines[0][1].__dict__["_gate"].in_flight) == 1)
        with served.connect() as two:
            assert two.get().status == 503
        assert one.answer().status == 200


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"port": 1}, ValueError),
        ({"workers": 2}, ValueError),
        ({"ssl_keyfile": "x"}, ValueError),
        ({"limit_max_requests": 3}, ValueError),
        ({"proxy_header": True}, TypeError),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], error: type[Exception]) -> None:
    """At the call, by name."""
    with pytest.raises(error, match=next(iter(settings))):
        ASGIServer(apps.app, uvicorn=settings)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"port": 70000}, ValueError),
        ({"port": "80"}, ValueError),
        ({"health": "health"}, ValueError),
        ({"graceful_timeout": -1}, ValueError),
        ({"lifespan_timeout": -1}, ValueError),
        ({"head_timeout": 0}, ValueError),
        ({"max_connections": 0}, ValueError),
        ({"when_full": "explode"}, ValueError),
        ({"hung_after": 0}, ValueError),
        ({"reuse_port": True, "uds": "x"}, ValueError),
        ({"reuse_port": True, "max_connections": 5}, ValueError),
        ({"ssl": True}, TypeError),
        ({"prot": 80}, TypeError),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], error: type[Exception]) -> None:
    """At the call, by name."""
    with pytest.raises(error, match=next(iter(wrong))):
        ASGIServer(apps.app, **wrong)


# Embedding, and the life of a server


async def fetch(server: ASGIServer, path: str = "/") -> httpx.Response:
    host, port = server.sockets[0].getsockname()
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        return await client.get(f"http://{host}:{port}{path}")


def test_in_polyloop_run() -> None:
    """On all loops of the runtime around it."""

    async def main() -> set[str]:
        async with ASGIServer(apps.app, **options()) as server:
            return {(await fetch(server, "/who")).json()["thread"] for _ in range(6)}

    assert polyloop.run(main(), loops=2) == {"MainThread", "polyloop-1"}


def test_in_a_runtime_of_threads() -> None:
    """From plain code, with the runtime given or found."""
    with Runtime(loops=2) as runtime:
        server = ASGIServer(apps.app, **options())
        runtime.run(server.start())
        assert runtime.run(fetch(server)).text == "hello"
        server.shutdown()
        assert runtime.run(_report(server)).requests == 1


async def _report(server: ASGIServer) -> Any:
    return await server.wait_closed()


def test_for_a_runtime_from_outside() -> None:
    """A plain asyncio program starts a server on loops beside its own."""

    async def main(runtime: Runtime) -> set[str]:
        async with ASGIServer(apps.app, **options(runtime=runtime)) as server:
            return {(await fetch(server, "/who")).json()["thread"] for _ in range(4)}

    with Runtime(loops=2, name="served") as runtime:
        assert asyncio.run(main(runtime)) == {"served-0", "served-1"}


def test_without_a_runtime_on_the_callers_loop() -> None:
    """As any asyncio server."""

    async def main() -> str:
        async with ASGIServer(apps.app, **options()) as server:
            text: str = (await fetch(server, "/who")).json()["thread"]
            return text

    assert asyncio.run(main()) == threading.current_thread().name


def test_a_server_is_started_once() -> None:
    """Again it says what to do."""

    async def main() -> None:
        async with ASGIServer(apps.app, **options()) as server:
            with pytest.raises(RuntimeError, match="make a new one"):
                await server.start()
        with pytest.raises(RuntimeError, match="make a new one"):
            await server.start()

    polyloop.run(main(), loops=2)


def test_shutdown_before_the_start_ends_it_at_once() -> None:
    """The applications start and stop in order."""
    events: list[str] = []

    async def main() -> Any:
        server = ASGIServer(routed(apps.ROUTES, events), **options())
        server.shutdown()
        await server.start()
        return await server.wait_closed()

    assert polyloop.run(main(), loops=2).clean
    assert Counter(event.split()[0] for event in events) == {"up": 2, "down": 2}


def test_shutdown_twice_and_from_another_thread() -> None:
    """The first begins; any number may follow, also when all is over."""

    async def main() -> Any:
        async with ASGIServer(apps.app, **options()) as server:
            await polyloop.to_thread(server.shutdown)
            server.shutdown()
            report = await server.wait_closed()
            server.shutdown()
            assert server.state == "closed"
            assert await server.wait_closed() is report
            return report

    assert polyloop.run(main(), loops=2).clean


def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """Applications that had started are shut down, those that had not are cancelled."""
    events: list[str] = []
    started = threading.Event()

    def factory() -> apps.App:
        async def never(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                events.append("cancelled")
                raise

        first = threading.current_thread() is threading.main_thread()
        return routed(apps.ROUTES, events) if first else never

    async def main() -> None:
        server = ASGIServer(factory, factory=True, **options())
        start = asyncio.create_task(server.start())
        await polyloop.to_thread(started.wait, PATIENCE)
        while not events:
            await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert server.state == "closed"

    polyloop.run(main(), loops=2)
    assert sorted(events) == ["cancelled", "down MainThread", "up MainThread"]


def test_a_server_that_is_forgotten_ends_with_its_runtime() -> None:
    """Bounded, and with nothing left open; the report says that it was cut short."""

    async def main() -> ASGIServer:
        server = ASGIServer(apps.app, **options())
        await server.start()
        assert (await fetch(server)).text == "hello"
        return server

    server = polyloop.run(main(), loops=2)
    assert server.state == "closed" and not server.sockets


# Hooks


def hooks(order: list[str], is_async: bool) -> dict[str, Any]:
    """``on_start`` and ``on_stop`` that note themselves."""

    async def later(event: str) -> None:
        await asyncio.sleep(0)
        order.append(event)

    if is_async:
        return {"on_start": lambda: later("start"), "on_stop": lambda: later("stop")}
    return {"on_start": lambda: order.append("start"), "on_stop": lambda: order.append("stop")}


@pytest.mark.parametrize("is_async", [False, True])
def test_hooks_run_once_around_all_applications(is_async: bool) -> None:
    """Whatever the number of loops."""
    order: list[str] = []
    with serving(routed(apps.ROUTES, order), loops=3, **hooks(order, is_async)) as served:
        served.get()
    assert [event.split()[0] for event in order] == ["start", "up", "up", "up", "down", "down", "down", "stop"]


def test_an_on_start_that_fails_ends_the_start() -> None:
    """No application starts, and on_stop has nothing to undo."""
    order: list[str] = []

    def fail() -> None:
        raise LookupError("no database")

    with (
        pytest.raises(ServerStartError, match="on_start failed: LookupError"),
        serving(routed(apps.ROUTES, order), on_start=fail, on_stop=lambda: order.append("stop")),
    ):
        pass
    assert order == []


def test_on_stop_also_follows_a_start_that_fails_later() -> None:
    """What on_start has opened is closed."""
    order: list[str] = []

    def factory() -> apps.App:
        raise LookupError("no application")

    with (
        pytest.raises(ServerStartError, match="no application"),
        serving(factory, factory=True, **hooks(order, False)),
    ):
        pass
    assert order == ["start", "stop"]


def test_an_on_stop_that_fails_is_in_the_report(caplog: pytest.LogCaptureFixture) -> None:
    """And in the log."""

    async def fail() -> None:
        raise LookupError("no end")

    with serving(apps.app, on_stop=fail) as served:
        report = served.stop()
    assert not report.clean and "no end" in str(report)
    assert "on_stop failed" in caplog.text


# Imports


def test_the_module_is_imported_without_uvicorn() -> None:
    """It is an extra: asked for when a server is made."""
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from polyloop import ServerStartError\n"
        "from polyloop.serve import ASGIServer\n"
        "try: ASGIServer(lambda: None)\n"
        "except ServerStartError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "polyloop[serve]" in done.stdout


def test_a_report_says_what_happened() -> None:
    """In a line."""
    report = ServeReport(3, ("GET '/'",), ("polyloop-1",), ("on_stop failed",))
    assert str(report) == (
        "3 requests answered; cancelled at the deadline: GET '/'; left behind, since it did not answer: polyloop-1;"
        " on_stop failed"
    )
    assert not report.clean

"""What applications and clients do wrong: each has a clear outcome, and nothing stays behind."""

import contextlib
import gc
import importlib.util
import logging
import os
import select
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.helpers import until
from tests.serve import apps
from tests.serve.apps import Receive, Scope, Send, respond, routed
from tests.serve.web import HTTP, Serving, connections, in_flight, request, serving

from polyloop import ServerStartError
from polyloop.serve import ASGIServer, _uvicorn

EVENTS: list[str] = []

needs_httptools = pytest.mark.skipif(not importlib.util.find_spec("httptools"), reason="no httptools here")


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Every descriptor of this process, of whatever kind, is closed again. (The look at leaks sees sockets only.)"""
    EVENTS.clear()
    gc.collect()
    before = descriptors()
    yield
    if descriptors() > before:
        gc.collect()
    assert descriptors() <= before


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def here() -> str:
    return threading.current_thread().name


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def fails_to_start(app: Any, error: type[BaseException], match: str, **options: Any) -> None:
    """A server of this application does not start, and what had started is shut down."""
    with pytest.raises(error, match=match), serving(app, **options):
        pass
    counts = Counter(event.split()[0] for event in EVENTS)
    assert counts["up"] == counts["down"]


# Addresses


def test_a_port_that_is_taken() -> None:
    """Says which, and what to do; the applications never start."""
    with serving(apps.app) as served:
        fails_to_start(
            routed(apps.ROUTES, EVENTS), OSError, f"127.0.0.1:{served.port}.*somebody else", port=served.port
        )
        assert EVENTS == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may")
def test_a_port_that_one_may_not_have() -> None:
    """Says what it takes."""
    fails_to_start(apps.app, OSError, "privilege", port=80)


def test_an_address_of_another_machine() -> None:
    """Says that it is not ours."""
    fails_to_start(apps.app, OSError, "no such address", host="192.0.2.1")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """For the file of a unix socket, and for an access log."""
    fails_to_start(apps.app, OSError, "no such folder", uds=tmp_path / "no" / "socket")
    fails_to_start(apps.app, FileNotFoundError, "access", access_log=tmp_path / "no" / "access.log")


# Applications that cannot be had


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("tests.serve.nowhere:app", "no application 'tests.serve.nowhere:app'"),
        ("tests.serve.apps:nothing", "no application 'tests.serve.apps:nothing'"),
        ("tests.serve.apps", "no application 'tests.serve.apps'"),
        ("broken_application:app", "'broken_application:app' cannot be imported: ZeroDivisionError"),
        ("needs_more:app", "'needs_more:app' cannot be imported: ModuleNotFoundError.*no_such_module"),
    ],
)
def test_a_name_that_leads_nowhere(path: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the call, with the reason."""
    (tmp_path / "broken_application.py").write_text("1 / 0\n")
    (tmp_path / "needs_more.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ServerStartError, match=match):
        ASGIServer(path)


def test_what_cannot_be_called() -> None:
    """At the call, or where the factory returns it."""
    with pytest.raises(TypeError, match="cannot be called"):
        ASGIServer(42)  # type: ignore[arg-type]
    fails_to_start(lambda: 42, ServerStartError, "must return an ASGI application, got 42", factory=True)


def test_a_factory_that_fails() -> None:
    """On every loop, or on one only: then the applications of the others are shut down."""

    def everywhere() -> Any:
        raise LookupError("no settings")

    def on_one() -> Any:
        if here() == "polyloop-1":
            raise LookupError("no settings")
        return routed(apps.ROUTES, EVENTS)

    fails_to_start(everywhere, ServerStartError, "could not make the application.*no settings", factory=True)
    fails_to_start(on_one, ServerStartError, "could not make the application.*no settings", factory=True, loops=3)
    assert len(EVENTS) == 4


def test_a_factory_that_is_async() -> None:
    """Is refused, with advice."""

    async def make() -> Any:
        return apps.app

    fails_to_start(make, ServerStartError, "is async", factory=True)


def test_a_setting_that_uvicorn_does_not_take() -> None:
    """Its own refusal, as the reason."""
    fails_to_start(apps.app, ServerStartError, "could not load", uvicorn={"http": "no_such_module:Protocol"})


# Lifespans


def failing(step: str, how: str) -> Any:
    """An application that fails at its ``startup`` or ``shutdown`` on polyloop-1: it ``says`` so, or it ``raises``."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await respond(send, b"served")
            return
        for now in ("startup", "shutdown"):
            await receive()
            if now == step and here() == "polyloop-1":
                if how == "raises":
                    raise LookupError(f"no {step}")
                await send({"type": f"lifespan.{now}.failed", "message": f"no {step}"})
                return
            EVENTS.append({"startup": "up", "shutdown": "down"}[now])
            await send({"type": f"lifespan.{now}.complete"})

    return app


@pytest.mark.parametrize(("how", "lifespan"), [("says", "auto"), ("says", "on"), ("raises", "on")])
def test_a_startup_that_fails_on_one_loop(how: str, lifespan: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is served; the applications of the other loops are shut down; the log says why."""
    fails_to_start(failing("startup", how), ServerStartError, "refused to start", uvicorn={"lifespan": lifespan})
    assert EVENTS == ["up", "down"]
    assert "no startup" in caplog.text


def test_a_startup_that_raises_where_lifespans_may_be_missing(caplog: pytest.LogCaptureFixture) -> None:
    """As the specification asks for, it is served all the same; but not in silence."""
    with serving(failing("startup", "raises")) as served:
        assert [served.get().text for _ in range(2)] == ["served"] * 2
        assert "raised in its startup" in caplog.text and "no startup" in caplog.text
        assert served.stop().clean


def test_an_application_without_a_lifespan_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """Many do not know of it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        await respond(send, b"served")

    with serving(app) as served:
        assert served.get().text == "served"
        assert served.stop().clean
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("how", ["says", "raises"])
def test_a_shutdown_that_fails_on_one_loop(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Is in the report and in the log; the others shut down."""
    with serving(failing("shutdown", how)) as served:
        report = served.stop()
    assert len(report.failures) == 1 and "polyloop-1" in report.failures[0] and not report.cut
    assert "no shutdown" in caplog.text
    assert EVENTS == ["up", "up", "down"]


# Applications that do wrong while they serve


async def raises_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise LookupError("at once")


async def raises_late(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise LookupError("late")


async def says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def says_half(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def too_short(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
    await send({"type": "http.response.body", "body": b"half"})


async def too_long(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"whole"})


async def nonsense(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.nonsense"})


async def exits(scope: Scope, receive: Receive, send: Send) -> None:
    raise SystemExit(3)


WRONG = {
    "/once": raises_at_once,
    "/late": raises_late,
    "/nothing": says_nothing,
    "/half": says_half,
    "/short": too_short,
    "/long": too_long,
    "/nonsense": nonsense,
    "/exits": exits,
}


@pytest.mark.parametrize("http", HTTP)
def test_applications_that_do_wrong_harm_their_own_request_only(http: str, caplog: pytest.LogCaptureFixture) -> None:
    """Before the answer begins the client gets a 500, later its connection ends; the log says why."""
    with serving(routed({**WRONG, "/": apps.hello}), uvicorn={"http": http}) as served:
        for path in ("/once", "/nothing", "/nonsense", "/exits"):
            with served.connect() as wire:
                assert wire.get(path).status == 500
        for path in ("/late", "/half", "/short", "/long"):
            with served.connect() as wire, contextlib.suppress(ConnectionResetError):
                wire.send(request(path))
                assert b"whole" not in wire.rest()
        assert len(errors(caplog)) == len(WRONG)
        assert served.get().text == "hello"
        until(lambda: connections(served) == 0 and in_flight(served) == 0)
        assert served.stop().clean


def test_an_application_that_never_answers() -> None:
    """It holds its own connection until the client has gone, or the server ends."""

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        EVENTS.append("gone")

    with serving(routed({"/never": never, "/": apps.hello})) as served:
        with served.connect() as wire:
            wire.send(request("/never"))
            until(lambda: in_flight(served) == 1)
            assert served.get().text == "hello"
        until(lambda: in_flight(served) == 0 and EVENTS == ["gone"])
        assert served.stop().clean


# Clients


@pytest.fixture(params=HTTP)
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """A server that has little patience."""
    monkeypatch.setattr(_uvicorn, "LOOK", 0.05)
    settings = {"http": request.param, "timeout_keep_alive": 1}
    with serving(apps.make, factory=True, head_timeout=0.3, uvicorn=settings) as serving_now:
        yield serving_now
        assert serving_now.get().text == "hello"
        until(lambda: connections(serving_now) == 0 and in_flight(serving_now) == 0)
        assert serving_now.stop().clean


def test_a_client_that_says_nothing_is_closed(served: Serving) -> None:
    """After head_timeout."""
    with served.connect() as wire:
        assert wire.rest() == b""


def test_a_client_that_dawdles_over_the_head_is_closed(served: Serving) -> None:
    """A byte now and then does not prolong its time; neither does a request before."""
    turn = threading.Event()
    for before in (False, True):
        with served.connect() as wire, contextlib.suppress(ConnectionError):
            if before:
                wire.get()
            for byte in request("/", "GET", "X-Long: " + "x" * 1000):
                wire.send(bytes([byte]))
                turn.wait(0.05)  # the slowness of the client; it ends with the connection
            pytest.fail("it was not closed")


def test_a_client_that_takes_its_time_between_requests_is_not(served: Serving) -> None:
    """That is uvicorn's ``timeout_keep_alive``, five seconds by default."""
    turn = threading.Event()
    with served.connect() as wire:
        wire.get()
        turn.wait(0.6)  # twice head_timeout
        assert wire.get().body == b"hello"


def test_a_slow_body_is_the_applications(served: Serving) -> None:
    """Others are served meanwhile, and it is answered when it is there."""
    with served.connect() as wire:
        wire.send(request("/size", "POST", "Content-Length: 3"))
        for byte in b"abc":
            assert served.get().text == "hello"
            wire.send(bytes([byte]))
        assert wire.answer().body == b"3"


def test_a_client_that_goes_in_the_middle_of_its_request(served: Serving) -> None:
    """In its head, and in its body, in good order or not: the application hears of it."""
    for data in (b"GET / HT", request("/size", "POST", "Content-Length: 100") + b"half"):
        for rude in (False, True):
            with served.connect() as wire:
                wire.send(data)
                until(lambda: connections(served) == 1)
                if rude:
                    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            until(lambda: connections(served) == 0 and in_flight(served) == 0)


def test_a_client_that_goes_in_the_middle_of_its_answer(served: Serving) -> None:
    """What is left of it is dropped."""
    with served.connect() as wire:
        wire.send(request("/large?100000000"))
        wire.sock.recv(10)
    until(lambda: connections(served) == 0 and in_flight(served) == 0)


def test_a_client_that_stops_reading_holds_up_nobody_else(served: Serving) -> None:
    """Its application waits, with little in memory; it goes when the client does."""
    with served.connect() as wire:
        wire.send(request("/large?100000000"))
        until(lambda: in_flight(served) == 1)
        for _ in range(6):
            assert served.get().text == "hello"
        until(lambda: in_flight(served) == 1)
    until(lambda: in_flight(served) == 0)


GARBAGE = [
    b"\x00\x01\x02garbage\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60),  # a client that speaks TLS
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_answered_and_closed(served: Serving, data: bytes) -> None:
    """With 400, where there is anybody to answer; a request that was begun may get its answer, or none."""
    with served.connect() as wire:
        wire.send(data)
        rest = wire.rest()
        assert rest.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 ")) or rest == b"" or b"400 Bad Request" in rest


def test_a_head_that_is_too_long(served: Serving) -> None:
    """Is refused with 400, where the client still listens; one of a little less is not."""
    with served.connect() as wire:
        wire.send(long_head(60))
        assert wire.answer().body == b"hello"
        with contextlib.suppress(ConnectionError):
            wire.send(long_head(300))
        assert refused(wire.rest())


def long_head(kilobytes: int) -> bytes:
    return request("/", "GET", *(f"X-{number}: {'x' * 1000}" for number in range(kilobytes)))


def refused(answer: bytes) -> bool:
    """A server that closes a connection while bytes come may take its last answer with it."""
    return answer == b"" or b"400 Bad Request" in answer


@needs_httptools
def test_httptools_takes_64_kib_of_a_head() -> None:
    """Whatever came before it on its connection, and in how many parts it comes."""
    with serving(apps.make, factory=True, uvicorn={"http": "httptools"}) as served, served.connect() as wire:
        wire.send(long_head(60) * 3)  # together far beyond
        assert [wire.answer().body for _ in range(3)] == [b"hello"] * 3
        body = b"x" * 300_000
        wire.send(request("/size", "POST", body=body) + long_head(60))
        assert wire.answer().body == b"300000" and wire.answer().body == b"hello"
        wire.send(request("/size", "POST", "Transfer-Encoding: chunked") + b"493e0\r\n" + body + b"\r\n0\r\n")
        wire.send(b"X-Trailer: x\r\n\r\n" + long_head(60))
        assert wire.answer().body == b"300000" and wire.answer().body == b"hello"
        wire.send(long_head(66))
        assert wire.answer().status == 400 and wire.rest() == b""


async def until_gone(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


ENDLESS = {
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"x: " + b"x" * 1000 + b"\r\n"),
    "one header": (b"GET / HTTP/1.1\r\nHost: x\r\nx: ", b"x" * 1000),
    "address": (b"GET /", b"x" * 1000),
    "trailers": (request("/never", "POST", "Transfer-Encoding: chunked") + b"0\r\n", b"x: " + b"x" * 1000 + b"\r\n"),
    "one trailer": (request("/never", "POST", "Transfer-Encoding: chunked") + b"0\r\nx: ", b"x" * 1000),
}


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("what", ENDLESS)
def test_a_head_that_does_not_end(what: str, http: str) -> None:
    """Is refused as soon as it is too long, not when its time is over."""
    sends_without_end(*ENDLESS[what], http)


@needs_httptools
@pytest.mark.parametrize("what", ["headers", "one header", "address"])
def test_a_head_that_does_not_end_while_a_request_is_in_flight(what: str) -> None:
    """Too. (With h11 nothing is read meanwhile.)"""
    begin, part = ENDLESS[what]
    sends_without_end(request("/never") + begin, part, "httptools")


def sends_without_end(begin: bytes, part: bytes, http: str) -> None:
    """A client begins something and never ends it: it is refused within a megabyte."""
    app = routed({"/never": until_gone, "/": apps.hello})
    with serving(app, head_timeout=None, uvicorn={"http": http}) as served:
        with served.connect() as wire:
            wire.send(begin)
            for _ in range(64):
                with contextlib.suppress(ConnectionError):
                    wire.send(part * 16)
                if select.select([wire.sock], [], [], 0.02)[0]:
                    break
            else:
                pytest.fail("nobody refused it")
            assert refused(wire.rest())
        until(lambda: connections(served) == 0 and in_flight(served) == 0)
        assert served.stop().clean


@pytest.mark.parametrize("http", HTTP)
def test_what_uvicorn_logs_goes_to_its_logger(http: str, caplog: pytest.LogCaptureFixture) -> None:
    """Though each loop has objects of its own for what all requests use."""
    with serving(apps.make, factory=True, uvicorn={"http": http}) as served:
        for _ in range(2):
            with served.connect() as wire:
                wire.send(GARBAGE[0])
                assert b"server: uvicorn" in wire.rest() or http == "h11"
        engines: Any = [engine for _, engine in served.server._engines]
        one, other = (
            {id(part) for header in engine._server.server_state.default_headers for part in header}
            for engine in engines
        )
        assert one and not one & other
    names = [record.name for record in caplog.records if "Invalid HTTP request" in record.getMessage()]
    assert names == ["uvicorn.error"] * 2


def test_an_address_from_a_header_is_escaped() -> None:
    """As the client's name it comes into the log of a hang, and into the report."""
    with serving(routed({"/": until_gone}), uvicorn={"http": "h11"}) as served, served.connect() as wire:
        wire.send(request("/", "GET", "X-Forwarded-For: 6.6.6.6\x1b[2J\x07"))
        until(lambda: in_flight(served) == 1)
        assert served.stop(0.1).cut == (r"GET '/' for 6.6.6.6\x1b[2J\x07:0",)


def test_more_or_less_than_was_announced(served: Serving) -> None:
    """Content-Length of a client that lies: what is too much is the next request, which makes no sense."""
    with served.connect() as wire:
        wire.send(request("/size", "POST", "Content-Length: 2") + b"much more\r\n\r\n")
        assert b"400 Bad Request" in wire.rest()
    with served.connect() as wire:
        wire.send(request("/size", "POST", "Content-Length: 100") + b"less")
        wire.sock.shutdown(socket.SHUT_WR)
        assert not wire.rest().startswith(b"HTTP/1.1 200")


def test_a_half_open_connection_is_served(served: Serving) -> None:
    """A client may close its side when it has asked."""
    with served.connect() as wire:
        wire.send(request("/slow?0.1", "GET", "Connection: close"))
        wire.sock.shutdown(socket.SHUT_WR)
        wire.rest()


def test_many_that_come_and_go_at_once(served: Serving) -> None:
    """Nothing of them stays."""
    for _ in range(200):
        with served.connect() as wire:
            wire.send(b"GET / HTTP/1.1\r\n")
    until(lambda: connections(served) == 0)


def test_tls_that_is_none(certificates: Any) -> None:
    """Plain bytes, half a handshake, and nothing at all: each ends, and others are served."""
    with serving(apps.app, ssl=certificates.for_server(), ssl_handshake_timeout=0.3) as served:
        for data in (request("/"), b"\x16\x03\x01\x02\x00", b""):
            with served.connect() as wire, contextlib.suppress(ConnectionError):
                wire.send(data)
                wire.rest()
        until(lambda: connections(served) == 0)

        with httpx.Client(verify=certificates.for_client(), trust_env=False) as client:
            assert client.get(f"https://localhost:{served.port}/").text == "hello"
        assert served.stop().clean

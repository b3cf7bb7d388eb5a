"""``polyloop.pools.httpx``: one ``httpx.AsyncClient`` on every loop, under one cap."""

import asyncio
import gc
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from tests.helpers import until

httpx = pytest.importorskip("httpx")
httpcore = pytest.importorskip("httpcore")

from tests.pools.http_rules import Driver, HttpRules  # noqa: E402
from tests.pools.http_site import Site  # noqa: E402
from tests.serve.conftest import Certificates, certificates  # noqa: E402
from tests.serve.web import free_port  # noqa: E402

import polyloop.pools.httpx  # noqa: E402
from polyloop.pools import ForeignLoopError  # noqa: E402
from polyloop.pools.httpx import AsyncClient, AsyncHTTPTransport  # noqa: E402
from polyloop.testing import TestLoop, TestThread  # noqa: E402

PATIENCE = 10.0

UPGRADE = {"Connection": "Upgrade", "Upgrade": "echo"}

__all__ = ("certificates",)


class HttpxDriver(Driver):
    """``polyloop.pools.httpx.AsyncClient``."""

    broken = httpx.TransportError
    refused = httpx.ConnectError

    def make(self, max_connections: int, tls: ssl.SSLContext | None = None) -> Any:
        return polyloop.pools.httpx.AsyncClient(
            max_connections=max_connections, verify=tls or False, trust_env=False, timeout=PATIENCE
        )

    async def get(self, client: Any, url: str) -> bytes:
        return bytes((await client.get(url)).content)

    async def begin(self, client: Any, url: str) -> Any:
        return await client.send(client.build_request("GET", url), stream=True)

    async def read(self, response: Any) -> bytes:
        return bytes(await response.aread())

    async def finish(self, response: Any) -> None:
        await response.aclose()

    def cap(self, client: Any) -> Any:
        return client.transport._cap


@pytest.fixture
def driver() -> HttpxDriver:
    return HttpxDriver()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


class TestHttpx(HttpRules):
    """What holds for every client."""

    made_at = __file__


def made(client: Any) -> int:
    """How many connections its cap counts."""
    return int(client.transport.connections)


# What httpx calls its errors and limits


def test_the_wait_for_a_connection_counts_for_the_pool_timeout(site: Site, left: TestLoop, right: TestLoop) -> None:
    """It ends with ``httpx.PoolTimeout``, which takes nothing; zero tries once."""
    with_one = AsyncClient(max_connections=1, timeout=httpx.Timeout(PATIENCE, pool=0.02), verify=False)
    held = left.spawn(with_one.get, f"{site.url}/held/one")
    site.wait_for_held("one", 1)
    for loop in (left, right):
        with pytest.raises(httpx.PoolTimeout, match=r"none of 1 connections came free within 0\.02 s"):
            loop.run(with_one.get, f"{site.url}/ok")
    assert with_one.transport.waiting == 0
    site.let_go("one")
    assert held.result(PATIENCE).text == "let go"
    assert right.run(with_one.get, f"{site.url}/ok", timeout=PATIENCE).text == "ok on 2"
    left.run(with_one.aclose)


def test_a_pool_timeout_of_zero_still_takes_what_is_free(site: Site, left: TestLoop) -> None:
    """It waits for nothing, and needs not."""
    client = AsyncClient(max_connections=1, timeout=httpx.Timeout(PATIENCE, pool=0.0), verify=False)
    for _ in range(2):
        assert left.run(client.get, f"{site.url}/ok").text == "ok on 1"
    left.run(client.aclose)


def test_errors_are_those_of_httpx(site: Site, left: TestLoop) -> None:
    """With the same classes as its own transport has for them."""
    client = AsyncClient(max_connections=1, timeout=httpx.Timeout(PATIENCE, read=0.02), verify=False)
    for path, error in (
        (f"{site.url}/held/for-ever", httpx.ReadTimeout),
        (f"{site.url}/drop", httpx.RemoteProtocolError),
        (f"{site.url}/cut", httpx.RemoteProtocolError),
        ("ftp://127.0.0.1/", httpx.UnsupportedProtocol),
        (f"http://127.0.0.1:{free_port()}/", httpx.ConnectError),
        ("http://nowhere.invalid/", httpx.ConnectError),
    ):
        with pytest.raises(error) as caught:
            left.run(client.get, path)
        assert type(caught.value) is error
        assert caught.value.request.url == path
    until(lambda: made(client) == 0)
    left.run(client.aclose)


def test_every_error_of_httpcore_has_its_counterpart() -> None:
    """As in httpx's own transport: the class of the same name."""
    errors = {name: thing for name, thing in vars(httpcore).items() if isinstance(thing, type)}
    errors = {name: thing for name, thing in errors.items() if issubclass(thing, Exception)}
    del errors["ConnectionNotAvailable"]
    for name, error in errors.items():
        with pytest.raises(getattr(httpx, name)) as caught, polyloop.pools.httpx._as_httpx():
            raise error("why")
        assert caught.type.__name__ == name
        assert str(caught.value) == "why"


def test_retries_are_made_under_one_permit(left: TestLoop) -> None:
    """And the permit comes back after the last."""
    transport = AsyncHTTPTransport(max_connections=1, retries=2, verify=False)

    async def main() -> None:
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"http://127.0.0.1:{free_port()}/")
            while transport.connections:  # its socket is closed in a turn or two of the loop
                await asyncio.sleep(0)

    left.run(main)


def test_a_name_with_several_addresses_takes_the_first_that_answers(
    site: Site, left: TestLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that refuses, and one that does not answer, are passed over in a moment, one after the other."""
    asked: list[str] = []
    silent = socket.socket()  # whose backlog is full, so it answers nobody
    silent.bind(("127.0.0.2", site.port))
    silent.listen(0)
    filler = socket.create_connection(("127.0.0.2", site.port))

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (3, 2, 1)]

    client = AsyncClient(max_connections=1, verify=False, timeout=PATIENCE)
    with silent, filler:
        monkeypatch.setattr(left.loop, "getaddrinfo", getaddrinfo)
        assert left.run(client.get, f"http://three.test:{site.port}/ok").text == "ok on 1"
        monkeypatch.undo()
    assert asked == ["three.test"]
    assert made(client) == 1
    left.run(client.aclose)


# The client


def test_one_client_made_anywhere_follows_redirects_and_keeps_cookies(
    site: Site, left: TestLoop, right: TestLoop
) -> None:
    """What one loop is told, the other sends."""
    client = AsyncClient(cookies={"old": "1"}, follow_redirects=True, verify=False, base_url=site.url)
    assert left.run(client.get, "/go/ok").text == "ok on 1"
    left.run(client.get, "/cookie/new")
    head = right.run(client.get, "/head").text
    assert "old=1" in head
    assert "new=1" in head
    assert dict(client.cookies) == {"old": "1", "new": "1"}
    right.run(client.aclose)


def test_cookies_may_come_while_others_are_sent(left: TestLoop, right: TestLoop, seconds: float) -> None:
    """httpx reads the jar for each request, while other threads add to it and take from it."""
    jar = AsyncClient(verify=False).cookies.jar
    stop = time.monotonic() + min(seconds, 1.0)

    def cookies(name: str) -> Any:
        cookies = httpx.Cookies()
        cookies.set(name, "1", domain=f"{name}.test")
        return cookies

    async def add(side: str) -> None:
        number = 0
        while time.monotonic() < stop:
            number += 1
            for cookie in cookies(f"{side}{number % 50}").jar:
                jar.set_cookie(cookie)
            if not number % 20:
                jar.clear(f"{side}{number % 50}.test")

    async def read() -> None:
        while time.monotonic() < stop:
            len(httpx.Cookies(httpx.Cookies(jar)))

    reader = TestThread(lambda: asyncio.run(read()))
    for task in [left.spawn(add, "left"), right.spawn(add, "right")]:
        task.result(PATIENCE)
    reader.result()
    jar.clear()
    assert not list(jar)


def test_the_clients_own_options_are_refused_where_they_would_undo_the_cap() -> None:
    """With what to use instead."""
    for name in ("transport", "limits"):
        with pytest.raises(TypeError, match=f"takes no '{name}'"):
            AsyncClient(**cast("Any", {name: None}))
    with pytest.raises(ValueError, match="max_connections must be a whole number"):
        AsyncClient(max_connections=0)


def test_httpxs_own_client_works_with_the_transport(site: Site, left: TestLoop, right: TestLoop) -> None:
    """``httpx.AsyncClient(transport=...)`` on two loops; closing it closes the transport."""
    transport = AsyncHTTPTransport(max_connections=2, verify=False)
    client = httpx.AsyncClient(transport=transport)
    assert left.run(client.get, f"{site.url}/ok").text == "ok on 1"
    assert right.run(client.get, f"{site.url}/ok").text == "ok on 2"
    assert (transport.connections, transport.max_connections, transport.waiting) == (2, 2, 0)
    assert repr(transport) == "<AsyncHTTPTransport 2/2 connections, 0 requests waiting>"
    left.run(client.aclose)
    assert transport.connections == 0
    with pytest.raises(RuntimeError, match="client has been closed"):
        left.run(client.get, f"{site.url}/ok")
    with pytest.raises(polyloop.pools.PoolClosedError):
        left.run(transport.handle_async_request, httpx.Request("GET", site.url))


def test_a_client_that_was_forgotten_leaves_nothing(site: Site, left: TestLoop) -> None:
    """Its connections are closed on their loop."""
    client: Any = AsyncClient(verify=False)
    left.run(client.get, f"{site.url}/ok")
    del client
    gc.collect()
    until(lambda: site.open == 0)


def test_without_a_loop_of_asyncio_the_error_says_so() -> None:
    """The transport has no pool for trio."""
    import trio

    client = AsyncClient(verify=False)
    with pytest.raises(RuntimeError, match="no running event loop"):
        trio.run(client.get, "http://127.0.0.1/")


def test_without_httpx_the_import_says_what_to_install() -> None:
    """With the name of the extra."""
    code = "import sys\nsys.modules['httpx'] = None\nimport polyloop.pools.httpx"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: polyloop.pools.httpx needs httpx: pip install 'polyloop[httpx]'" in done.stderr


# Other ways to a server


def test_a_unix_socket(left: TestLoop, right: TestLoop, tmp_path: Path) -> None:
    """Whatever the host."""
    path = str(tmp_path / "site")
    with Site(path=path) as site:
        transport = AsyncHTTPTransport(max_connections=1, uds=path, verify=False)
        client = httpx.AsyncClient(transport=transport)
        assert left.run(client.get, "http://site/ok").text == "ok on 1"
        assert right.run(client.get, "http://site/ok").text == "ok on 2"
        assert site.open == 1
        left.run(client.aclose)


def test_a_proxy(left: TestLoop, right: TestLoop, certificates: Certificates) -> None:
    """Plain requests are forwarded, and TLS goes through a tunnel; each connection to the proxy has a permit."""
    with Site(tunnel=certificates.for_server()) as proxy:
        client = AsyncClient(
            max_connections=1, proxy=proxy.url, verify=certificates.for_client(), timeout=PATIENCE, trust_env=False
        )
        assert left.run(client.get, "http://elsewhere.test/ok").text == "ok on 1"
        assert right.run(client.get, "https://localhost/ok").text == "ok on 2"
        assert right.run(client.get, "https://localhost/ok").text == "ok on 2"
        assert left.run(client.get, "http://elsewhere.test/ok").text == "ok on 3"
        assert proxy.requests == [
            "http://elsewhere.test/ok",
            "localhost:443",
            "/ok",
            "/ok",
            "http://elsewhere.test/ok",
        ]
        assert (proxy.peak, made(client)) == (1, 1)
        left.run(client.aclose)


def test_a_tunnel_that_is_not_trusted_gives_the_permit_back(left: TestLoop, certificates: Certificates) -> None:
    """The proxy connection is closed with it."""
    with Site(tunnel=certificates.for_server()) as proxy:
        client = AsyncClient(max_connections=1, proxy=proxy.url, timeout=PATIENCE, trust_env=False)
        for _ in range(2):
            with pytest.raises(httpx.ConnectError, match="certificate"):
                left.run(client.get, "https://localhost/ok")
        until(lambda: made(client) == 0)
        left.run(client.aclose)


def test_a_proxy_that_speaks_tls(left: TestLoop, certificates: Certificates) -> None:
    """With a context of its own."""
    with Site(certificates.for_server()) as proxy:
        given = httpx.Proxy(proxy.url, ssl_context=certificates.for_client())
        client = AsyncClient(max_connections=1, proxy=given, timeout=PATIENCE, trust_env=False)
        assert left.run(client.get, "http://elsewhere.test/ok").text == "ok on 1"
        left.run(client.aclose)


def test_an_upgraded_connection_counts_until_it_is_closed(site: Site, any_loop: TestLoop) -> None:
    """Its stream is the user's, and its permit comes back with it."""
    client = AsyncClient(max_connections=1, verify=False, timeout=PATIENCE)

    async def main() -> None:
        async with client.stream("GET", f"{site.url}/upgrade", headers=UPGRADE) as response:
            assert response.status_code == 101
            stream = response.extensions["network_stream"]
            await stream.write(b"hello")
            assert await stream.read(100) == b"hello"
            assert stream.get_extra_info("server_addr") == ("127.0.0.1", site.port)
            assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
            assert made(client) == 1
            await stream.aclose()
        assert made(client) == 0
        await client.get(f"{site.url}/ok")
        await client.aclose()

    any_loop.run(main)


def test_an_upgraded_stream_on_another_loop_is_refused(site: Site, left: TestLoop, right: TestLoop) -> None:
    """With both names."""
    client = AsyncClient(max_connections=1, verify=False, timeout=PATIENCE)
    response = left.run(client.send, client.build_request("GET", f"{site.url}/upgrade", headers=UPGRADE), stream=True)
    stream = response.extensions["network_stream"]
    for call in (stream.read, stream.write):
        with pytest.raises(ForeignLoopError, match=r"belongs to 'left'.* was used on 'right'"):
            right.run(call, 1 if call == stream.read else b"x")
    left.run(response.aclose)
    left.run(client.aclose)


def test_large_requests_are_sent_whole(site: Site, any_loop: TestLoop) -> None:
    """From an async generator, or larger than any buffer on the way."""
    client = AsyncClient(max_connections=1, verify=False, timeout=PATIENCE)
    size = any_loop.run(client.post, f"{site.url}/size", content=b"x" * 5_000_000).text
    assert size == "5000000"
    any_loop.run(client.aclose)


def test_a_slow_reader_holds_the_server_back(site: Site, left: TestLoop) -> None:
    """A body is not read much further ahead than it is consumed."""
    client = AsyncClient(max_connections=1, verify=False, timeout=PATIENCE)
    response = left.run(client.send, client.build_request("GET", f"{site.url}/large/50000000"), stream=True)
    left.wait_all_blocked()
    (connection,) = left.run(client.transport._pools).open
    assert connection._stream is not None
    assert connection._stream.wire._ahead < 2**20
    assert len(left.run(response.aread)) == 50000000 // 256 * 256
    left.run(client.aclose)


# HTTP/2, where h2 is installed


@dataclass
class Http2Site:
    """A server of HTTP/2, in a loop of its own."""

    url: str = ""
    open: int = 0
    peak: int = 0
    made: int = 0
    streams: int = 0  # the most at a time on one connection


class Http2Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, site: Http2Site) -> None:
        self.site = site
        self.active = 0

    def connection_made(self, transport: Any) -> None:
        h2, config = pytest.importorskip("h2.connection"), pytest.importorskip("h2.config")
        self.transport = transport
        self.h2 = h2.H2Connection(config.H2Configuration(client_side=False))
        self.h2.initiate_connection()
        transport.write(self.h2.data_to_send())
        site = self.site
        site.open, site.made = site.open + 1, site.made + 1
        site.peak = max(site.peak, site.open)

    def connection_lost(self, exc: Exception | None) -> None:
        self.site.open -= 1

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if type(event).__name__ == "StreamEnded":
                self.active += 1
                self.site.streams = max(self.site.streams, self.active)
                asyncio.get_running_loop().call_later(0.001, self.answer, event.stream_id)
        self.transport.write(self.h2.data_to_send())

    def answer(self, stream: int) -> None:
        self.active -= 1
        if not self.transport.is_closing():
            self.h2.send_headers(stream, [(":status", "200"), ("content-length", "2")])
            self.h2.send_data(stream, b"ok", end_stream=True)
            self.transport.write(self.h2.data_to_send())


@pytest.fixture
def http2(certificates: Certificates) -> Iterator[Http2Site]:
    pytest.importorskip("h2")
    site = Http2Site()
    context = certificates.for_server()
    context.set_alpn_protocols(["h2"])

    async def start() -> Any:
        return await asyncio.get_running_loop().create_server(lambda: Http2Peer(site), "127.0.0.1", 0, ssl=context)

    async def stop() -> None:
        server.close()

    with TestLoop("http2") as loop:
        server = loop.run(start)
        site.url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        yield site
        loop.run(stop)
        until(lambda: not site.open)


def test_http2_shares_connections_and_the_cap_holds(http2: Http2Site, certificates: Certificates) -> None:
    """Four loops, two connections, and many requests at a time on each of them."""
    client = AsyncClient(max_connections=2, http2=True, verify=certificates.for_client(), timeout=PATIENCE)

    async def ask() -> None:
        for _ in range(10):
            response = await client.get(http2.url)
            assert (response.http_version, response.text) == ("HTTP/2", "ok")

    async def main() -> None:
        async with polyloop.TaskGroup() as group:
            for _ in range(20):
                group.create_task(ask())
        await client.aclose()

    polyloop.run(main(), loops=4)
    assert http2.peak <= 2
    assert http2.streams > 1
    assert made(client) == 0


def test_a_busy_http2_connection_does_not_starve_another_loop(
    http2: Http2Site, certificates: Certificates, left: TestLoop, right: TestLoop
) -> None:
    """It is never idle; when another loop has waited for the patience, it takes no more requests until it is."""
    client = AsyncClient(max_connections=1, http2=True, verify=certificates.for_client(), timeout=PATIENCE)
    done = threading.Event()

    async def go_on() -> None:
        while not done.is_set():
            await client.get(http2.url)

    busy = [left.spawn(go_on) for _ in range(5)]
    try:
        for _ in range(3):
            assert right.run(client.get, http2.url).text == "ok"
    finally:
        done.set()
        for task in busy:
            task.result(PATIENCE)
    assert http2.peak == 1
    left.run(client.aclose)

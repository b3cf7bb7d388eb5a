"""``polyloop.pools.aiohttp``: a session of aiohttp on every loop, under one cap."""

import contextlib
import functools
import gc
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest
from tests.helpers import until

aiohttp = pytest.importorskip("aiohttp")

from tests.pools.http_rules import Driver, HttpRules  # noqa: E402
from tests.pools.http_site import Site  # noqa: E402
from tests.serve.conftest import Certificates, certificates  # noqa: E402
from tests.serve.web import free_port  # noqa: E402

import polyloop.pools.aiohttp  # noqa: E402
from polyloop.pools import ForeignLoopError, PerLoop  # noqa: E402
from polyloop.pools.aiohttp import client_sessions  # noqa: E402
from polyloop.testing import TestLoop  # noqa: E402

PATIENCE = 10.0

__all__ = ("certificates",)


class AiohttpDriver(Driver):
    """``polyloop.pools.aiohttp.client_sessions``."""

    broken = aiohttp.ClientError
    refused = aiohttp.ClientConnectorError

    def make(self, max_connections: int, tls: ssl.SSLContext | None = None) -> Any:
        return client_sessions(
            max_connections=max_connections, ssl=tls or False, timeout=aiohttp.ClientTimeout(total=PATIENCE)
        )

    async def get(self, client: Any, url: str) -> bytes:
        async with client().get(url) as response:
            return bytes(await response.read())

    async def begin(self, client: Any, url: str) -> Any:
        return await client().get(url)

    async def read(self, response: Any) -> bytes:
        return bytes(await response.read())

    async def finish(self, response: Any) -> None:
        response.release()

    def cap(self, client: Any) -> Any:
        return client._factory.__self__.cap


@pytest.fixture
def driver() -> AiohttpDriver:
    return AiohttpDriver()


class TestAiohttp(HttpRules):
    """What holds for every client."""

    made_at = __file__


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


async def text(sessions: PerLoop[Any], url: str, **options: Any) -> str:
    async with sessions().get(url, **options) as response:
        return str(await response.text())


def cap(sessions: Any) -> Any:
    return sessions._factory.__self__.cap


# Limits


def test_the_wait_for_a_connection_counts_for_the_connect_timeout(site: Site, left: TestLoop, right: TestLoop) -> None:
    """As the wait in aiohttp's own line does; nothing is taken."""
    sessions = client_sessions(max_connections=1)
    held = left.spawn(text, sessions, f"{site.url}/held/one")
    site.wait_for_held("one", 1)
    for loop in (left, right):
        for timeout in (aiohttp.ClientTimeout(connect=0.02), aiohttp.ClientTimeout(total=0.02)):
            with pytest.raises(TimeoutError):
                loop.run(functools.partial(text, sessions, f"{site.url}/ok", timeout=timeout))
    until(lambda: cap(sessions).waiting == 0)
    site.let_go("one")
    assert held.result(PATIENCE) == "let go"
    assert right.run(text, sessions, f"{site.url}/ok") == "ok on 2"
    left.run(sessions.aclose)


def test_connections_in_use_to_one_host_are_limited_over_all_loops(site: Site, left: TestLoop, right: TestLoop) -> None:
    """Others wait in turn; other hosts do not."""
    sessions = client_sessions(max_connections=10, max_connections_per_host=2)
    held = [loop.spawn(text, sessions, f"{site.url}/held/two") for loop in (left, right)]
    site.wait_for_held("two", 2)
    waiters = [loop.spawn(text, sessions, f"{site.url}/ok") for loop in (left, right)]
    with Site() as other:
        assert left.run(text, sessions, f"{other.url}/ok") == "ok on 1"
        assert not any(waiter.done() for waiter in waiters)
        assert site.requests == ["/held/two"] * 2
        doomed = left.spawn(text, sessions, f"{site.url}/doomed")
        left.wait_all_blocked()
        doomed.cancel()
        site.let_go("two")
        for task in (*held, *waiters):
            task.result(PATIENCE)
        left.run(text, sessions, f"{site.url}/ok")
        left.run(sessions.aclose)
    assert "/doomed" not in site.requests
    assert site.peak <= 2
    del task, doomed, held, waiters  # whose errors know the frames that know the rooms
    rooms = cast("Any", sessions)._factory.__self__.hosts._rooms
    until(lambda: gc.collect() is not None and not len(rooms))


def test_a_host_limit_survives_failures(site: Site, left: TestLoop) -> None:
    """Whatever ends a request gives its place back."""
    sessions = client_sessions(max_connections_per_host=1, timeout=aiohttp.ClientTimeout(total=PATIENCE))
    for path in ("drop", "cut", "bye", "ok"):
        with contextlib.suppress(aiohttp.ClientError):
            left.run(text, sessions, f"{site.url}/{path}")
    with pytest.raises(aiohttp.ClientConnectorError):
        left.run(text, sessions, f"http://127.0.0.1:{free_port()}/")
    assert left.run(text, sessions, f"{site.url}/ok").startswith("ok")
    left.run(sessions.aclose)


def test_a_connection_that_was_kept_for_too_long_is_replaced_within_the_cap(site: Site, left: TestLoop) -> None:
    """The old one gives its permit back."""
    sessions = client_sessions(max_connections=1, keepalive_timeout=0.01)
    for number in (1, 2, 3):
        assert left.run(text, sessions, f"{site.url}/ok") == f"ok on {number}"
        HttpRules.outlast_patience(AiohttpDriver(), sessions)
    assert site.peak == 1
    left.run(sessions.aclose)


def test_nothing_is_connected_without_a_permit(
    site: Site, left: TestLoop, right: TestLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should aiohttp find none of the idle connections usable that the cap has counted on, it waits at the gate."""

    async def counts_on_one(*_: object) -> None:
        pass

    monkeypatch.setattr(polyloop.pools.aiohttp._Connector, "_enter", counts_on_one)
    sessions = client_sessions(max_connections=1)
    held = left.spawn(text, sessions, f"{site.url}/held/one")
    site.wait_for_held("one", 1)
    waiters = [loop.spawn(text, sessions, f"{site.url}/ok") for loop in (left, right, left)]
    until(lambda: cap(sessions).waiting == 3)
    site.let_go("one")
    for task in (held, *waiters):
        task.result(PATIENCE)
    assert site.peak == 1
    left.run(sessions.aclose)


def test_connections_that_are_not_kept_give_their_permits_back(site: Site, left: TestLoop, right: TestLoop) -> None:
    """``force_close`` closes each after its request."""
    sessions = client_sessions(max_connections=1, force_close=True)
    for number, loop in enumerate((left, right, left), 1):
        assert loop.run(text, sessions, f"{site.url}/ok") == f"ok on {number}"
    until(lambda: cap(sessions).size == 0)
    left.run(sessions.aclose)


# Misuse


def test_a_session_on_another_loop_is_refused(site: Site, left: TestLoop, right: TestLoop) -> None:
    """With both names, before it touches anything of its loop; without a loop, too."""
    sessions = client_sessions(max_connections=1)
    session = left.run(sessions)

    async def get() -> None:
        await session.get(f"{site.url}/ok")

    async def connect() -> None:
        await session.ws_connect(f"{site.url}/ok")

    for use in (get, connect, session.close):
        with pytest.raises(ForeignLoopError, match=r"a session of aiohttp belongs to 'left' .* used on 'right'"):
            right.run(use)
    assert site.requests == []
    assert left.run(text, sessions, f"{site.url}/ok") == "ok on 1"
    left.run(sessions.aclose)


def test_a_session_that_was_closed_is_replaced(site: Site, left: TestLoop) -> None:
    """Programs that come from ``async with aiohttp.ClientSession()`` close what is not theirs."""
    sessions = client_sessions(max_connections=1)

    async def get() -> int:
        async with sessions() as session, session.get(f"{site.url}/ok") as response:
            return response.status

    assert [left.run(get), left.run(get)] == [200, 200]
    left.run(sessions.aclose)


def test_a_websocket_belongs_to_the_loop_that_opened_it(left: TestLoop, right: TestLoop) -> None:
    """It counts as a connection until it is closed, and is refused on other loops."""
    from aiohttp import web

    async def echo(request: Any) -> Any:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def start() -> Any:
        app = web.Application()
        app.router.add_get("/", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    with TestLoop("server") as server:
        runner = server.run(start)
        sessions = client_sessions(max_connections=1)

        async def talk() -> Any:
            socket = await sessions().ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/")
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"
            return socket

        socket = left.run(talk)
        assert cap(sessions).size == 1
        for call in (socket.receive, socket.close, functools.partial(socket.send_str, "x")):
            with pytest.raises(ForeignLoopError, match=r"belongs to 'left'.* used on 'right'"):
                right.run(call)
        left.run(socket.close)
        until(lambda: cap(sessions).size == 0)
        left.run(sessions.aclose)
        server.run(runner.cleanup)


@pytest.mark.parametrize(
    "name", ["connector", "connector_owner", "limit", "limit_per_host", "loop", "response_class", "ws_response_class"]
)
def test_options_that_would_undo_it_are_refused(name: str) -> None:
    """With what to use instead."""
    with pytest.raises(TypeError, match=f"takes no '{name}': "):
        client_sessions(**cast("Any", {name: None}))


def test_what_belongs_to_a_loop_is_given_as_a_function(site: Site, left: TestLoop, right: TestLoop) -> None:
    """Cookie jars and resolvers: one is made for each loop, and the resolver closed with it."""
    closed: list[object] = []

    class Resolver(aiohttp.ThreadedResolver):  # type: ignore[misc, name-defined]
        async def resolve(self, host: str, *args: Any, **kwargs: Any) -> Any:
            return await super().resolve("127.0.0.1", *args, **kwargs)

        async def close(self) -> None:
            closed.append(self)

    sessions = client_sessions(cookie_jar=lambda: aiohttp.CookieJar(unsafe=True), resolver=Resolver)
    url = f"http://somewhere.test:{site.port}"
    left.run(text, sessions, f"{url}/cookie/mine")
    assert "mine=1" in left.run(text, sessions, f"{url}/head")
    assert "mine=1" not in right.run(text, sessions, f"{url}/head")
    left.run(sessions.aclose)
    assert len(closed) == 2
    with pytest.raises(TypeError, match="cookie_jar belongs to a loop; give a function that makes one"):
        client_sessions(cookie_jar=object())


def test_numbers_out_of_range_are_refused() -> None:
    """At once."""
    with pytest.raises(ValueError, match="max_connections must be a whole number"):
        client_sessions(max_connections=0)
    with pytest.raises(ValueError, match="max_connections_per_host must be at least 0"):
        client_sessions(max_connections_per_host=-1)


# The users' own parts


def test_the_users_signals_and_sockets_are_used_too(site: Site, left: TestLoop) -> None:
    """``trace_configs`` and ``socket_factory``, beside those of the cap."""
    seen: list[str] = []

    async def note(*_: object) -> None:
        seen.append("created")

    def make_socket(address: Any) -> socket.socket:
        seen.append("socket")
        return socket.socket(*address[:3])

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(note)
    sessions = client_sessions(max_connections=1, trace_configs=[trace], socket_factory=make_socket)
    assert left.run(text, sessions, f"{site.url}/ok") == "ok on 1"
    assert left.run(text, sessions, f"{site.url}/ok") == "ok on 1"
    assert seen == ["socket", "created"]
    left.run(sessions.aclose)
    assert cap(sessions).size == 0


def test_a_tunnel_through_a_proxy_is_one_connection(
    left: TestLoop, right: TestLoop, certificates: Certificates
) -> None:
    """To the proxy, with TLS in it to where it ends."""
    with Site(tunnel=certificates.for_server()) as proxy:
        sessions = client_sessions(max_connections=1, proxy=proxy.url, ssl=certificates.for_client())
        assert left.run(text, sessions, "http://elsewhere.test/ok") == "ok on 1"
        assert right.run(text, sessions, "https://localhost/ok") == "ok on 2"
        assert right.run(text, sessions, "https://localhost/ok") == "ok on 2"
        assert proxy.peak == 1
        assert cap(sessions).size == 1
        left.run(sessions.aclose)


def test_a_socket_that_is_collected_gives_its_permit_back(left: TestLoop) -> None:
    """One that nobody closed, in whichever thread it goes."""
    sessions = client_sessions(max_connections=1)

    async def main() -> None:
        connector: Any = sessions().connector
        link: Any = polyloop.pools.aiohttp._Link(connector, "key")
        assert await connector.seat.take("key", 0.0) is None
        link.got_permit()
        token = polyloop.pools.aiohttp._link.set(link)
        things.append(connector._make_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))))
        polyloop.pools.aiohttp._link.reset(token)
        link.end_attempt()

    things: list[object] = []
    left.run(main)
    assert cap(sessions).size == 1
    things.clear()
    until(lambda: gc.collect() is not None and cap(sessions).size == 0)
    left.run(sessions.aclose)


@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")
def test_sessions_that_were_forgotten_leave_nothing(site: Site, left: TestLoop) -> None:
    """They are closed on their loop, after aiohttp has complained."""
    sessions: Any = client_sessions()
    assert left.run(text, sessions, f"{site.url}/ok") == "ok on 1"
    del sessions
    gc.collect()
    until(lambda: site.open == 0)
    assert {error["message"] for error in left.take_errors()} <= {"Unclosed client session", "Unclosed connector"}


def test_without_aiohttp_the_import_says_what_to_install() -> None:
    """With the name of the extra."""
    code = "import sys\nsys.modules['aiohttp'] = None\nimport polyloop.pools.aiohttp"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: polyloop.pools.aiohttp needs aiohttp: pip install 'polyloop[aiohttp]'" in done.stderr


def test_an_old_aiohttp_is_refused() -> None:
    """One without ``socket_factory`` could not be capped."""
    code = "import aiohttp\naiohttp.__version__ = '3.11.18'\nimport polyloop.pools.aiohttp"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs aiohttp 3.12 or later, this is 3.11.18" in done.stderr

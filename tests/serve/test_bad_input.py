"""What cannot be served: the error names the value and the next step, comes at the call, and leaves nothing open."""

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.leaks import Snapshot
from tests.serve.clients import Answer, answer, on_loops

from polyloop import create_datagram_server, create_server, start_server, start_unix_server
from polyloop.serve import _acceptor, _server
from polyloop.serve._server import Limits

type Opening = Callable[[], Coroutine[Any, Any, Any]]


def refusal(opening: Opening) -> Exception:
    """What comes of it, on two loops; before they end, nothing of it may be open."""

    async def main() -> Exception:
        before = Snapshot()
        with pytest.raises(Exception) as caught:
            await opening()
        assert before.leaks() == []
        exc = caught.value
        return exc.with_traceback(None)

    return on_loops(main, loops=2)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({}, ValueError, "neither host/port nor sock says where to listen; give port="),
        ({"port": 0, "sock": 1}, ValueError, "host/port and sock both say where to listen; give one"),
        ({"sock": "here"}, TypeError, "sock must be a socket.socket, got 'here'"),
        ({"port": 0, "ssl": True}, TypeError, "ssl must be an SSLContext or None, got True"),
        ({"port": 0, "ssl_handshake_timeout": 1}, ValueError, "ssl_handshake_timeout=1 is only meaningful with ssl"),
        ({"port": 0, "max_connections": 0}, ValueError, "max_connections must be a whole number, at least 1"),
        ({"port": 0, "max_connections_per_loop": 1.5}, ValueError, "or None for no limit; got 1.5"),
        ({"port": 0, "when_full": "explode"}, ValueError, "when_full must be 'wait' or 'refuse', got 'explode'"),
        ({"port": 0, "hung_after": 0}, ValueError, "hung_after must be seconds above 0, or None for no watch; got 0"),
        ({"host": "192.0.2.1", "port": 0}, OSError, "cannot listen on 192.0.2.1:0: cannot assign requested address"),
        ({"port": 70_000}, ValueError, "port must be a number from 0 to 65535, got 70000"),
    ],
    ids=str,
)
@pytest.mark.parametrize("start", [start_server, create_server])
def test_bad_arguments(start: Any, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    """In all combinations that make no sense."""
    exc = refusal(lambda: start(Answer, **arguments))
    assert isinstance(exc, kind)
    assert message in str(exc)


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the resolver says is passed on, with the name."""

    async def getaddrinfo(*arguments: Any, **options: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    exc = refusal(lambda: start_server(answer, "no-such-host.invalid", 80))
    assert isinstance(exc, socket.gaierror)
    assert "cannot listen on no-such-host.invalid:80: Name or service not known" in str(exc)


def test_bad_sockets() -> None:
    """Closed, of datagrams, with TLS already, without a share in its address: each is named; it stays the caller's."""
    closed = socket.socket()
    closed.close()
    assert "is closed; give an open socket" in str(refusal(lambda: start_server(answer, sock=closed)))
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        exc = refusal(lambda: start_server(answer, sock=datagrams))
        assert "a server needs a stream socket (SOCK_STREAM), got <socket.socket" in str(exc)
        assert datagrams.fileno() >= 0
    with socket.socket() as alone:
        alone.bind(("127.0.0.1", 0))
        exc = refusal(lambda: start_server(answer, sock=alone, reuse_port=True))
        assert "reuse_port=True needs a socket with SO_REUSEPORT set before it was bound" in str(exc)
        exc = refusal(lambda: start_unix_server(answer, sock=alone))
        assert "a unix server needs a socket of AF_UNIX" in str(exc)
        exc = refusal(lambda: create_datagram_server(asyncio.DatagramProtocol, sock=alone))
        assert "a datagram server needs a datagram socket (SOCK_DGRAM)" in str(exc)
    with socket.create_server(("127.0.0.1", 0)) as plain:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tls.wrap_socket(plain, server_side=True) as wrapped:
            exc = refusal(lambda: start_server(answer, sock=wrapped))
            assert isinstance(exc, TypeError)
            assert "give the plain one, and the SSLContext as ssl=" in str(exc)


def test_a_context_for_clients() -> None:
    """It could serve nobody."""
    context = ssl.create_default_context()
    exc = refusal(lambda: start_server(answer, port=0, ssl=context))
    assert "Purpose.CLIENT_AUTH" in str(exc)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    exc = refusal(lambda: start_server(answer, port=0, ssl=context, ssl_handshake_timeout=-1))
    assert "ssl_handshake_timeout must be seconds above 0, got -1" in str(exc)


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_port_that_is_taken(reuse_port: bool) -> None:
    """Also where the taker shares it with nobody, and where one of several addresses is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for hosts in ("127.0.0.1", ["127.0.0.2", "127.0.0.1"]):
            exc = refusal(lambda: start_server(answer, hosts, port, reuse_port=reuse_port))  # noqa: B023
            expected = f"cannot listen on 127.0.0.1:{port}: address already in use; somebody else listens there"
            assert isinstance(exc, OSError)
            assert expected in str(exc)


@pytest.mark.parametrize(
    ("path", "sock", "message"),
    [
        (None, None, "one of path and sock must say where to listen"),
        ("x", 1, "one of path and sock must say where to listen"),
        ("/no/such/folder/x", None, "cannot listen on /no/such/folder/x: no such file or directory; there is no such"),
        ("/tmp/" + "x" * 200, None, "cannot listen on /tmp/xxx"),
    ],
)
def test_bad_unix_paths(path: Any, sock: Any, message: str) -> None:
    """One that is too long too."""
    exc = refusal(lambda: start_unix_server(answer, path, sock=sock))
    assert message in str(exc)


#: As nobody: root may do everything.
FORBIDDEN = """
import asyncio, encodings.idna, os, sys
import polyloop
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

async def main():
    async def handle(reader, writer): ...
    for opening in (
        polyloop.start_unix_server(handle, sys.argv[1] + "/sub/x.sock"),
        polyloop.start_server(handle, "127.0.0.1", 80),
    ):
        try:
            await opening
        except PermissionError as exc:
            print(exc)
        except OSError as exc:
            print("other", exc)
        else:
            print("allowed")
polyloop.run(main(), loops=2)
"""


def test_what_is_forbidden(tmp_path: Path) -> None:
    """A folder that one may not write to; and a port below 1024, where the system keeps those to itself."""
    folder = tmp_path / "sub"
    folder.mkdir()
    os.chmod(folder, 0o555)
    for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):  # pytest lets nobody else in
        above.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    if "Permission denied" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"another user cannot run this interpreter: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    of_path, of_port = done.stdout.splitlines()
    assert "x.sock: permission denied; you may not; ports below 1024 need a privilege" in of_path
    if of_port != "allowed" and not of_port.startswith("other"):  # containers often allow it
        assert "cannot listen on 127.0.0.1:80: permission denied; you may not" in of_port


@pytest.mark.parametrize("reuse_port", [False, True])
@pytest.mark.parametrize("step", ["_listen", "_start_stations", "start"])
def test_a_start_that_fails_half_way(step: str, reuse_port: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever step: the error is that step's, and nothing stays open."""

    def fail(self: Any, *arguments: Any) -> None:
        if step == "_listen":
            original(self)
        raise OSError(24, "Too many open files")

    owner: Any = _acceptor.Acceptor if step == "start" else _server.Server
    original = getattr(owner, step)
    monkeypatch.setattr(owner, step, fail)

    async def opening() -> None:
        try:
            await start_server(answer, "127.0.0.1", 0, reuse_port=reuse_port)
        finally:
            for _ in range(200):  # the parts on other loops end there
                if before.leaks() == []:
                    break
                await asyncio.sleep(0.01)

    before = Snapshot()

    async def main() -> None:
        nonlocal before
        before = Snapshot()
        with pytest.raises(OSError, match="Too many open files"):
            await opening()
        assert before.leaks() == []

    on_loops(main, loops=2)


def test_limits_take_what_makes_sense() -> None:
    """And nothing is changed on the way."""
    assert Limits(1, 2, "refuse", None) == Limits(
        max_connections=1, max_connections_per_loop=2, when_full="refuse", hung_after=None
    )

"""Unix sockets, and their files."""

import asyncio
import errno
import logging
import os
import socket
import stat
from pathlib import Path

import pytest
from tests.serve.clients import Answer, Client, answer, close_all, connected, counts, on_loops, serving

from polyloop import create_unix_server, start_unix_server
from polyloop.serve import _listen
from polyloop.serve._listen import bind_unix


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the socket is to be."""
    return str(tmp_path / "server.sock")


def is_socket(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_unix_server_serves_and_removes_its_file(path: str, as_path: type) -> None:
    """Over all loops, evenly."""

    async def main() -> None:
        async with serving(start_unix_server(answer, as_path(path))) as server:
            assert is_socket(path)
            clients = await connected(path, 8)
            assert counts(server) == [2] * 4
            await close_all(clients)
        assert not os.path.exists(path)

    on_loops(main)


def test_a_protocol_on_a_unix_socket(path: str) -> None:
    """``create_unix_server``."""

    async def main() -> None:
        async with serving(create_unix_server(Answer, path)):
            await close_all(await connected(path, 4))

    on_loops(main)


def test_a_stale_file_is_replaced(path: str) -> None:
    """Nobody listens on it any more."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    async def main() -> None:
        async with serving(start_unix_server(answer, path)):
            await close_all(await connected(path, 2))
        assert not os.path.exists(path)

    on_loops(main)


def test_a_live_server_keeps_its_name(path: str) -> None:
    """Whoever comes second is refused; the first serves on. Also while its backlog is full."""

    async def main() -> None:
        async with serving(start_unix_server(answer, path)):
            with pytest.raises(OSError, match=r"server\.sock: address already in use; somebody else listens there"):
                await start_unix_server(answer, path)
            await close_all(await connected(path, 2))

    on_loops(main)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(path)
        busy.listen(0)
        first.connect(path)
        with pytest.raises(OSError, match="address already in use"):
            bind_unix(path)
    os.unlink(path)


def test_what_is_not_a_socket_is_not_removed(path: str) -> None:
    """A file of the user's is in the way, and stays."""
    Path(path).write_text("precious")

    async def main() -> None:
        with pytest.raises(OSError, match="address already in use"):
            await start_unix_server(answer, path)

    on_loops(main)
    assert Path(path).read_text() == "precious"


def test_the_file_of_a_successor_is_not_removed(path: str) -> None:
    """Somebody took over the name while the server ran; its file stays when the server closes."""

    async def main() -> None:
        async with serving(start_unix_server(answer, path)):
            os.unlink(path)
            async with serving(start_unix_server(answer, path)) as second:
                assert is_socket(path)
                await close_all(await connected(path, 2))
                assert second.is_serving()
                with socket.socket(socket.AF_UNIX) as other:
                    os.unlink(path)
                    other.bind(path)
                    inode = os.stat(path).st_ino
                second.close()
                await second.wait_closed()
        assert os.stat(path).st_ino == inode

    on_loops(main)


def test_the_file_may_be_kept(path: str) -> None:
    """``cleanup_socket=False``."""

    async def main() -> None:
        async with serving(start_unix_server(answer, path, cleanup_socket=False)):
            pass
        assert is_socket(path)

    on_loops(main)


@pytest.mark.parametrize("cleanup", [True, False])
def test_a_socket_of_the_users(path: str, cleanup: bool) -> None:
    """Its file counts as the server's, as with asyncio."""

    async def main() -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        async with serving(start_unix_server(answer, sock=sock, cleanup_socket=cleanup)):
            await close_all(await connected(path, 2))
        assert os.path.exists(path) is not cleanup

    on_loops(main)


def test_a_name_without_a_file() -> None:
    """Linux's abstract names."""
    if not os.path.exists("/proc/net/unix"):
        pytest.skip("abstract names are Linux's")
    name = f"\0polyloop-test-{os.getpid()}"

    async def main() -> None:
        async with serving(start_unix_server(answer, name)), await Client.to(name) as client:
            await client.ask()

    on_loops(main)


def test_permissions_of_the_file(path: str) -> None:
    """``mode`` is set whatever the umask says."""
    listener = bind_unix(path, 0o666)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    listener.close()
    assert not os.path.exists(path)


def test_those_who_came_in_before_the_close_are_served(path: str) -> None:
    """The file goes first, so nobody is reset in between."""

    async def main() -> None:
        server = await start_unix_server(answer, path, backlog=200)
        clients = [await Client.to(path) for _ in range(100)]
        server.close()
        assert len(await asyncio.gather(*[client.ask() for client in clients])) == 100
        await close_all(clients)
        await server.wait_closed()

    on_loops(main)


def test_a_server_that_does_not_accept_yet_keeps_its_name(path: str) -> None:
    """It has bound, and starts something else first: whoever comes second is refused, and clients wait."""

    async def main() -> None:
        async with serving(start_unix_server(answer, path, start_serving=False)) as server:
            client = await Client.to(path)
            with pytest.raises(OSError, match=r"server\.sock: address already in use; somebody else listens there"):
                await start_unix_server(answer, path)
            await server.start_serving()
            await client.ask()
            await client.close()

    on_loops(main)


@pytest.mark.parametrize("broken", ["chmod", "stat"])
def test_a_bind_that_fails_leaves_no_file(path: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong after the file was made takes it away again."""

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    if broken == "chmod":
        monkeypatch.setattr(os, "chmod", refuse)
    else:
        monkeypatch.setattr(_listen, "_inode", refuse)
    with pytest.raises(OSError, match="cannot listen on"):
        bind_unix(path, 0o666)
    monkeypatch.undo()
    assert not os.path.exists(path)


def test_a_file_that_was_replaced_meanwhile_stays(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1. We find a leftover. 2. Another server does too, replaces it, and listens. 3. Its file is not removed by us."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    others: list[_listen.Listener] = []

    def another_comes(*args: object) -> None:
        monkeypatch.undo()
        others.append(bind_unix(path))

    monkeypatch.setattr(logging.getLogger("polyloop.serve"), "debug", another_comes)
    with pytest.raises(OSError, match="address already in use"):
        bind_unix(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    others[0].close()
    assert not os.path.exists(path)

"""Rolling restarts of ``polyloop serve``: SIGUSR2 under load loses no request."""

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

pytest.importorskip("click")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from tests.cli.serving import APP, PATIENCE, Served, get, wait_until  # after the checks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sockets are handed over on unix only")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


class Connection(http.client.HTTPConnection):
    """A connection to what ``polyloop serve`` says that it listens on; opened anew when the server has closed it."""

    def __init__(self, url: str) -> None:
        super().__init__(url.removeprefix("http://") if url.startswith("http:") else "unix", timeout=PATIENCE)
        self._path = url.removeprefix("unix:") if url.startswith("unix:") else None

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


class Load:
    """Clients that ask again and again, some on new connections and some on one that they keep."""

    def __init__(self, url: str, clients: int = 2) -> None:
        self.pids: list[int] = []
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(url, keep)) for _ in range(clients) for keep in (True, False)
        ]

    def _ask(self, url: str, keep: bool) -> None:
        try:
            while not self._stop.is_set():
                connection = Connection(url)
                for _ in range(100 if keep else 1):
                    connection.request("GET", "/")
                    answer = connection.getresponse()
                    self.pids.append(json.loads(answer.read())["pid"])
                    self._stop.wait(0.002)  # the processes under test have the same cores
                connection.close()
        except BaseException as exc:
            self.errors.append(exc)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(params=["tcp", "unix", "fd"])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[Served]:
    """A server that listens in each of the ways."""
    common = ("app:app", "--loops", "2", "--access-log", "access.log")
    if request.param == "fd":
        with socket.create_server(("127.0.0.1", 0)) as sock:
            server = Served(folder, *common, "--fd", str(sock.fileno()), fds=[sock.fileno()])
    else:
        where = ["--port", "0"] if request.param == "tcp" else ["--uds", str(folder / "s")]
        server = Served(folder, *common, *where)
    with server:
        server.serving()
        yield server


def test_restarts_under_load_lose_no_request(server: Served, folder: Path) -> None:
    """Three times in a row; every old process ends with the new one in its place."""
    url = server.serving()
    with Load(url) as load:
        for count in (2, 3, 4):
            os.kill(server.pid(count - 1), signal.SIGUSR2)
            assert server.serving(count) == url
            pid = server.pid(count)
            wait_until(lambda pid=pid: pid in load.pids[-5:] or bool(load.errors))  # type: ignore[misc]
            if count == 2:
                assert server.process.wait(PATIENCE) == 0
    assert not load.errors
    assert {server.pid(count) for count in (1, 2, 3, 4)} == set(load.pids)
    server.end(pid=server.pid(4))
    assert "Traceback" not in server.text
    assert len((folder / "access.log").read_text().splitlines()) == len(load.pids)


def test_a_new_release_that_is_broken_leaves_the_old_one_serving(server: Served, folder: Path) -> None:
    """Until one comes that is not."""
    url = server.serving()
    (folder / "app.py").write_text("import nothing_of_that_name\n")
    with Load(url) as load:
        for count in (1, 2):
            server.process.send_signal(signal.SIGUSR2)
            server.line(
                r"the successor does not serve, so this process goes on: process \d+ ended with exit code 1", count
            )
        assert get(url).json()["pid"] == server.process.pid
        (folder / "app.py").write_text(APP.replace("RELEASE = 1", "RELEASE = 2"))
        server.process.send_signal(signal.SIGUSR2)
        server.serving(2)
    assert not load.errors
    assert server.process.wait(PATIENCE) == 0  # until then it may still take a connection
    assert get(url).json()["release"] == 2
    assert get(url).json()["pid"] == server.pid(2)
    server.end(pid=server.pid(2))


def test_a_stop_ends_a_successor_that_does_not_serve_yet(server: Served, folder: Path) -> None:
    """Nobody would stop it afterwards."""
    server.serving()
    (folder / "app.py").write_text("import os, signal\nos.write(1, b'importing\\n')\nsignal.pause()\n")
    server.process.send_signal(signal.SIGUSR2)
    server.line("^importing$")
    assert server.end() == 0  # with all of its processes


def test_a_request_that_is_long_is_finished_by_the_old_process(folder: Path) -> None:
    """The new one serves meanwhile; the old one's time is bounded as at any stop."""
    with Served(folder, "app:app", "--loops", "2", "--port", "0", "--graceful-timeout", "0.5") as server:
        url = server.serving()
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /wait HTTP/1.1\r\nHost: here\r\n\r\n")
            wait_until((folder / "waiting").exists)
            server.process.send_signal(signal.SIGUSR2)
            server.serving(2)
            wait_until(lambda: get(url).json()["pid"] == server.pid(2))
            assert server.process.wait(PATIENCE) == 1
        server.end(pid=server.pid(2))


def test_a_server_that_shares_its_port_is_restarted_too(folder: Path) -> None:
    """With --reuse-port each loop has a socket of its own."""
    with Served(folder, "app:app", "--loops", "2", "--port", "0", "--reuse-port") as server:
        url = server.serving()
        with Load(url, 1) as load:
            server.process.send_signal(signal.SIGUSR2)
            server.serving(2)
            pid = server.pid(2)
            assert server.process.wait(PATIENCE) == 0
            wait_until(lambda: pid in load.pids[-3:] or bool(load.errors))
        assert not load.errors
        server.end(pid=pid)

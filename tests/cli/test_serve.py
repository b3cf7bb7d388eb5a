"""``polyloop serve`` with real processes, sockets and clients."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from tests.cli.serving import APP, PATIENCE, Served, get, wait_until  # after the checks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and unix sockets")

STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def served(folder: Path) -> "Callable[..., Served]":
    """Start ``polyloop serve app:app --loops 2`` with these options."""

    def start(*args: str, target: str = "app:app", **options: object) -> Served:
        return Served(folder, target, "--loops", "2", *args, **options)  # type: ignore[arg-type]

    return start


type Start = Callable[..., Served]


def test_it_serves_until_a_signal_and_ends_with_code_0(served: Start) -> None:
    """It says where it listens; each request is a line on standard output."""
    with served("--port", "0") as server:
        url = server.serving()
        assert get(url, "/a?b=c").json()["pid"] == server.process.pid
        assert get(url).headers["server"] == "uvicorn"
        assert server.end() == 0
        server.line(STAMP + r'127\.0\.0\.1:\d+ - "GET /a\?b=c HTTP/1\.1" 200$')
        assert re.search(
            r"^polyloop: serving app:app on http://127.0.0.1:\d+: 2 loops, with", server.text, re.MULTILINE
        )


def test_ctrl_c_is_a_signal_like_another(served: Start) -> None:
    """No traceback, and code 0, as everything was stopped in order."""
    with served("--port", "0", "--no-access-log") as server:
        get(server.serving())
        assert server.end(signal.SIGINT) == 0
        assert "Traceback" not in server.text
        assert '"GET / HTTP' not in server.text


def test_the_gil_is_told_of(served: Start) -> None:
    """With it, several loops are a warning."""
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    with served("--port", "0", environ={"PYTHON_GIL": "1"} if free else {}) as server:
        server.line(r": 2 loops, with the GIL, process \d+$")
        server.line(r"^warning: the GIL is on, so the loops take turns on one core\. hint: ")
        assert server.end() == 0
    if free:
        with served("--port", "0", environ={"PYTHON_GIL": "0"}) as server:
            server.line(r": 2 loops, without the GIL, process \d+$")
            assert server.end() == 0
            assert "warning" not in server.text


def test_options_reach_the_server(served: Start) -> None:
    """A factory for each loop, hooks once, health, and settings of uvicorn."""
    options = ["--factory", "--on-start", "app:prepare", "--on-stop", "app:clean_up", "--health", "/healthz"]
    more = ["--root-path", "/shop", "--forwarded-allow-ips", "127.0.0.1", "--http", "h11", "--timeout-keep-alive", "1"]
    with served("--port", "0", *options, *more, target="app:make") as server:
        url = server.serving()
        answer = get(url, headers={"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}).json()
        assert (answer["root"], answer["client"][0], answer["scheme"]) == ("/shop", "203.0.113.7", "https")
        assert get(url, "/healthz").json()["state"] == "serving"
        assert server.end() == 0
        said = [line for line in server.lines if line in {"made", "prepared", "cleaned up"}]
        assert said == ["prepared", "made", "made", "cleaned up"]


def test_requests_that_do_not_end_are_cut_and_told(served: Start, folder: Path) -> None:
    """Code 1, since the stop was not clean."""
    with served("--port", "0", "--graceful-timeout", "0.1") as server:
        host, _, port = server.serving().removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(b"GET /wait HTTP/1.1\r\nHost: here\r\n\r\n")
            wait_until((folder / "waiting").exists)
            assert server.end() == 1
        server.line(r"^error: the server did not stop in good order: .*cancelled at the deadline: GET '/wait'")


def test_tls_with_a_certificate_for_server_and_client(
    served: Start, certificate: Callable[..., tuple[Path, Path]]
) -> None:
    """A client without one is refused."""
    cert, key = certificate("server", password="secret")
    mine, my_key = certificate("client")
    options = ["--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--ssl-ca-certs", str(mine)]
    with served("--port", "0", *options, environ={"POLYLOOP_SSL_KEYFILE_PASSWORD": "secret"}) as server:
        url = server.serving()
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        assert ask(url, context) == b""
        context.load_cert_chain(mine, my_key)
        assert ask(url, context).startswith(b"HTTP/1.1 200")
        assert get(url, verify=context).json()["scheme"] == "https"
        assert server.end() == 0


def ask(url: str, context: ssl.SSLContext) -> bytes:
    """What the server answers; nothing if it refuses."""
    host, _, port = url.removeprefix("https://").partition(":")
    try:
        with (
            socket.create_connection((host, int(port)), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=host) as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            return client.recv(1000)
    except (ssl.SSLError, ConnectionError):
        return b""


@pytest.mark.skipif(shutil.which("curl") is None, reason="asks with curl")
def test_a_unix_socket_is_served_and_its_file_removed(served: Start, folder: Path) -> None:
    """Everybody may connect, as a proxy is another user."""
    path = folder / "s"
    with served("--uds", "s") as server:
        assert server.serving() == f"unix:{path}" or server.serving() == "unix:s"
        command = ["curl", "--silent", "--show-error", "--unix-socket", str(path), "http://here/"]
        assert '"pid"' in subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert path.stat().st_mode & 0o777 == 0o666
        assert server.end() == 0
    assert not path.exists()


def test_an_inherited_socket_is_served(served: Start) -> None:
    """As a process manager hands it on."""
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        served("--fd", str(sock.fileno()), fds=[sock.fileno()]) as server,
    ):
        assert server.serving() == f"http://127.0.0.1:{sock.getsockname()[1]}"
        assert get(server.serving()).status_code == 200
        assert server.end() == 0


#: Starts its arguments as systemd would: LISTEN_PID is the process itself, the socket is descriptor 3.
SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"})
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_systemd_may_also_be_named(served: Start) -> None:
    """As those write it who come from uvicorn; it is one socket, not two."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        prefix = [sys.executable, "-c", SYSTEMD, str(sock.fileno())]
        with served("--fd", "3", fds=[sock.fileno()], prefix=prefix) as server:
            assert server.serving() == f"http://127.0.0.1:{sock.getsockname()[1]}"
            assert get(server.serving()).status_code == 200
            assert server.end() == 0
            assert "Traceback" not in server.text


def test_under_systemd_it_takes_the_sockets_and_tells_how_it_is(served: Start, folder: Path) -> None:
    """READY when it serves, STOPPING when it is told to stop."""
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(folder / "notify"))
        manager.settimeout(PATIENCE)
        prefix = [sys.executable, "-c", SYSTEMD, str(sock.fileno())]
        environ = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "200000"}
        with served(fds=[sock.fileno()], prefix=prefix, environ=environ) as server:
            said = {manager.recv(1000).decode().partition("=")[0] for _ in range(3)}
            assert said == {"READY", "WATCHDOG"}
            assert get(f"http://127.0.0.1:{sock.getsockname()[1]}").json()["pid"] == server.process.pid
            assert server.end() == 0
            while not manager.recv(1000).startswith(b"STOPPING=1"):
                pass


def test_a_variable_of_systemd_that_makes_no_sense_is_told(served: Start) -> None:
    """Rather than to listen elsewhere than where one should."""
    prefix = [sys.executable, "-c", SYSTEMD.replace('"1"', '"one"'), "1"]
    with served("--port", "0", prefix=prefix) as server:
        assert server.wait() == 2
        server.line(r"^error: LISTEN_FDS='one' is not a number of sockets\. hint: unset it, or correct it$")


def test_the_access_log_is_rotated_by_a_signal(served: Start, folder: Path) -> None:
    """What logrotate does: move, then SIGHUP."""
    log = folder / "access.log"
    with served("--port", "0", "--access-log", "access.log") as server:
        url = server.serving()
        get(url, "/before")
        wait_until(lambda: "/before" in log.read_text())
        moved = log.rename(folder / "access.log.1")
        server.process.send_signal(signal.SIGHUP)
        wait_until(log.exists)
        get(url, "/after")
        assert server.end() == 0
    assert re.fullmatch(STAMP + r'127\.0\.0\.1:\d+ - "GET /after HTTP/1\.1" 200\n', log.read_text())
    assert moved.read_text().count("\n") == 1


def save_until(server: Served, folder: Path, text: str, pattern: str, count: int = 1) -> None:
    """Save the application until the reloader has noticed: it misses a change that comes while it restarts."""

    def noticed() -> bool:
        return len(re.findall(pattern, server.text, re.MULTILINE)) >= count

    app = folder / "app.py"
    deadline = time.monotonic() + PATIENCE
    while not noticed():
        assert time.monotonic() < deadline, f"no {count}. line with {pattern!r} in\n{server.text}"
        stamp = app.stat().st_mtime + 10
        app.write_text(text)
        os.utime(app, (stamp, stamp))
        look_again = time.monotonic() + 2
        while not noticed() and time.monotonic() < look_again:
            time.sleep(0.01)


def test_a_change_starts_it_again_and_a_broken_one_waits_for_the_next(served: Start, folder: Path) -> None:
    """On the same socket, which the reloader has."""
    serving = r"^polyloop: serving \S+ on (\S+): "
    with served("--port", "0", "--reload") as server:
        url = server.serving()
        assert get(url).json()["release"] == 1
        save_until(server, folder, APP.replace("RELEASE = 1", "RELEASE = 2"), serving, 2)
        wait_until(lambda: get(url).json()["release"] == 2)
        save_until(server, folder, "def oops(:\n", "SyntaxError: ")
        save_until(
            server,
            folder,
            "value = 1\n",
            "^error: module 'app' has no attribute 'app'. hint: define 'app' in it$",
        )
        before = len(re.findall(serving, server.text, re.MULTILINE))
        save_until(server, folder, APP.replace("RELEASE = 1", "RELEASE = 3"), serving, before + 1)
        wait_until(lambda: get(url).json()["release"] == 3)
        assert server.end() == 0


@pytest.mark.parametrize("where", [["--uds", "s"], ["--port", "0", "--reuse-port"]])
def test_what_the_reloader_has_bound_is_served_again(served: Start, folder: Path, where: list[str]) -> None:
    """The file of a unix socket is the reloader's, and stays when a server ends."""
    with served(*where, "--reload") as server:
        url = server.serving()
        path = folder / "s"
        before = path.stat().st_ino if "--uds" in where else None
        save_until(server, folder, APP.replace("RELEASE = 1", "RELEASE = 2"), r"^polyloop: serving ", 2)
        assert server.serving(2) == url
        assert before is None or path.stat().st_ino == before
        asked = url if before is None else f"unix:{path}"
        wait_until(lambda: get(asked).json()["release"] == 2)
        assert server.end() == 0
        assert not path.exists()


def test_reloading_finds_a_port_that_is_taken_at_once(served: Start) -> None:
    """The parent binds."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        served("--port", str(other.getsockname()[1]), "--reload") as server,
    ):
        assert server.wait() == 1
        server.line(r"^error: cannot listen on 127\.0\.0\.1:\d+: address already in use\. hint: ")

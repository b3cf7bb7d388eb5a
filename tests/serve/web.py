"""What the tests of web servers share: a server in a thread, clients, and facts to wait for."""

import contextlib
import functools
import importlib.util
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import httpx
import pytest
from tests.helpers import until

from polyloop.serve import ServeReport, WebServer, serve
from polyloop.testing import TestThread

#: Seconds that anything may take before a test gives up.
PATIENCE = 30.0

ROOT = Path(__file__).parents[2]

#: The libraries that uvicorn can parse HTTP with, here.
HTTP = [
    "h11",
    pytest.param(
        "httptools", marks=pytest.mark.skipif(not importlib.util.find_spec("httptools"), reason="no httptools here")
    ),
]


@dataclass
class Serving:
    """A server that serves in a thread of this process, with a control loop and loops of its own."""

    server: WebServer
    thread: TestThread[ServeReport]
    tls: ssl.SSLContext | None = None

    @property
    def port(self) -> int:
        """Its TCP port."""
        return self._port

    def __post_init__(self) -> None:
        name = self.server.sockets[0].getsockname()
        self.address: Any = name
        self._port = name[1] if isinstance(name, tuple) else 0
        self.url = f"http://127.0.0.1:{self._port}"

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client with its own connections."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        """One request on a connection of its own."""
        with self.client() as client:
            return client.get(path, **options)

    def who(self) -> str:
        """Which thread answers a new connection."""
        name: str = self.get("/who").json()["thread"]
        return name

    def connect(self) -> "Wire":
        """A plain connection."""
        return Wire(self.address)

    def stop(self, timeout: float | None = None) -> ServeReport:
        """Shut it down, and wait for its report."""
        self.server.shutdown(timeout)
        return self.thread.result()


@contextlib.contextmanager
def serving(app: Any, *, run: Callable[..., ServeReport] = serve, loops: int = 2, **options: Any) -> Iterator[Serving]:
    """Serve an application in this process until the end of the block, and stop it in good order."""
    ready: list[WebServer] = []
    event = threading.Event()

    def on_ready(server: WebServer) -> None:
        ready.append(server)
        event.set()

    given: dict[str, Any] = {"port": 0, "access_log": False, "graceful_timeout": 10.0, **options}

    def body() -> ServeReport:
        try:
            return run(app, loops=loops, on_ready=on_ready, **given)
        finally:
            event.set()

    thread = TestThread(body, name="serving")
    assert event.wait(PATIENCE)
    if not ready:
        thread.result()
    served = Serving(ready[0], thread)
    try:
        yield served
    finally:
        served.server.shutdown()
        thread.result()


class Wire:
    """A client that writes bytes and reads answers, blocking."""

    def __init__(self, address: Any) -> None:
        family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise
        self._data = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Write bytes."""
        self.sock.sendall(data)

    def get(self, path: str = "/") -> "Answer":
        """One request, on this connection, and its answer."""
        self.send(request(path))
        return self.answer()

    def answer(self) -> "Answer":
        """Read one answer.

        Raises:
            ConnectionError: the connection ended before its first byte, or in the middle of it.
        """
        head = self._until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if status == 100:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self._exactly(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)

    def _chunks(self) -> Iterator[bytes]:
        while length := int(self._until(b"\r\n"), 16):
            yield self._exactly(length + 2)[:-2]
        self._exactly(2)

    def _until(self, end: bytes) -> bytes:
        while end not in self._data:
            self._more()
        part, _, self._data = self._data.partition(end)
        return part

    def _exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            self._more()
        part, self._data = self._data[:count], self._data[count:]
        return part

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError(f"the server closed the connection after {self._data[:100]!r}")
        self._data += data

    def rest(self) -> bytes:
        """All until the server closes."""
        with contextlib.suppress(ConnectionError):
            while True:
                self._more()
        data, self._data = self._data, b""
        return data


@dataclass
class Answer:
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def request(path: str = "/", method: str = "GET", *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def connections(served: Serving) -> int:
    """Connections that the server has at this moment."""
    return sum(load.connections for load in served.server.loads)


def until_idle(served: Serving) -> None:
    """Wait until the server has no connection."""
    until(functools.partial(_is_idle, served))


def _is_idle(served: Serving) -> bool:
    return connections(served) == 0


class Program:
    """``serve`` as a process of its own, which writes its port, and at its end its report, to its standard output.

    Args:
        log: A file for its standard error, instead of the attribute.
        tls: Paths of the certificate and of its key.
    """

    CODE = (
        "import json, logging, os, sys\n"
        "logging.basicConfig(format='%(levelname)s %(message)s')\n"
        "from polyloop.serve import serve\n"
        "options = json.loads(sys.argv[2])\n"
        "if 'tls' in options:\n"
        "    import ssl\n"
        "    options['ssl'] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)\n"
        "    options['ssl'].load_cert_chain(*options.pop('tls'))\n"
        "def ready(server):\n"
        "    names = [sock.getsockname() for sock in server.sockets]\n"
        "    print('port', names[0][1] if isinstance(names[0], tuple) else 0, flush=True)\n"
        "report = serve(sys.argv[1], on_ready=ready, **options)\n"
        "print('report', json.dumps([report.requests, report.cut, report.stuck, report.failures]), flush=True)\n"
        "sys.exit(0 if report.clean else 3)\n"
    )

    def __init__(
        self,
        app: str = "tests.serve.apps:make",
        env: dict[str, str] | None = None,
        log: IO[str] | None = None,
        **options: Any,
    ) -> None:
        given = {"loops": 2, "port": 0, "access_log": False, "graceful_timeout": 10.0, "factory": True, **options}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, app, json.dumps(given)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if log is None else log,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
        )
        self.port = 0
        self.report: ServeReport | None = None
        self.log = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def until_ready(self) -> Self:
        """Wait until it serves."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("port "), line + self.process.communicate()[1]
        self.port = int(line.split()[1])
        return self

    def connect(self) -> Wire:
        """A plain connection."""
        return Wire(("127.0.0.1", self.port))

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        out, log = self.process.communicate(timeout=PATIENCE)
        self.log = log or ""
        for line in out.splitlines():
            if line.startswith("report "):
                requests, cut, stuck, failures = json.loads(line.removeprefix("report "))
                self.report = ServeReport(requests, tuple(cut), tuple(stuck), tuple(failures))
        return self.process.returncode


def listens(port: int) -> bool:
    """Whether anybody accepts connections there."""
    with socket.socket() as sock:
        sock.settimeout(PATIENCE)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def in_flight(served: Serving) -> int:
    """How many requests the server works on at this moment."""
    engines: Any = [engine for _, engine in served.server._engines]
    return sum(len(getattr(engine, "_gate", engine).__dict__.get("in_flight", ())) for engine in engines)

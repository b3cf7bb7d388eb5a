"""The servers of the benchmark ``http``: ``python -m benchmarks._http_servers NAME FD`` serves on an inherited socket.

Each runs in a process of its own, which imports nothing but that server and the application. All run asyncio's own loop
and none writes an access log, but for the one whose name says so. uvicorn gets a listening socket that names its
protocol: the ones that it makes for several workers do not, so asyncio leaves TCP_NODELAY off, and an answer may wait
40 ms for an acknowledgement.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

#: Threads or processes of those that use several.
WORKERS = 2

FACTORY, SHARED = "benchmarks._http_apps:make", "benchmarks._http_apps:app"

type Serve = Callable[[socket.socket], object]


def _polyloop(sock: socket.socket, *, loops: int, app: str = FACTORY, log: str | bool = False) -> None:
    from polyloop.serve import serve

    serve(app, factory=app == FACTORY, loops=loops, sockets=[sock], access_log=log)


def _polyloop_log(sock: socket.socket) -> None:
    path = f"/tmp/polyloop-access-{os.getpid()}.log"
    try:
        _polyloop(sock, loops=WORKERS, log=path)
    finally:
        os.unlink(path)


def _uvicorn_settings() -> dict[str, Any]:
    return {"factory": True, "loop": "asyncio", "access_log": False, "log_level": "warning"}


def _uvicorn(sock: socket.socket) -> None:
    import uvicorn

    uvicorn.Server(uvicorn.Config(FACTORY, **_uvicorn_settings())).run(sockets=[sock])


def _uvicorn_workers(sock: socket.socket) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    config = uvicorn.Config(FACTORY, workers=WORKERS, **_uvicorn_settings())
    Multiprocess(config, sockets=[sock]).run()


def _uvicorn_twice(sock: socket.socket) -> None:
    """Two processes without anything above them, whose connections the kernel spreads: to their own sockets."""
    address = sock.getsockname()
    sock.close()
    first, second = (_own_listener(address) for _ in range(WORKERS))
    command = [sys.executable, "-m", "benchmarks._http_servers", "uvicorn", str(second.fileno())]
    subprocess.Popen(command, pass_fds=[second.fileno()])  # who stops this one stops that too
    second.close()
    _uvicorn(first)


def _own_listener(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    return sock


def _granian(sock: socket.socket) -> None:
    host, port = sock.getsockname()
    sock.close()  # it makes its own
    options = ["--interface", "asgi", "--host", host, "--port", str(port), "--workers", str(WORKERS)]
    options += ["--runtime-threads", "1", "--loop", "asyncio", "--http", "1", "--no-ws", "--log-level", "error"]
    os.execv(sys.executable, [sys.executable, "-m", "granian", *options, "--factory", FACTORY])


SERVERS: dict[str, Serve] = {
    "polyloop, 1 loop": partial(_polyloop, loops=1),
    "polyloop, 2 loops": partial(_polyloop, loops=WORKERS),
    "polyloop, 2 loops, one app for both": partial(_polyloop, loops=WORKERS, app=SHARED),
    "polyloop, 2 loops, access log": _polyloop_log,
    "uvicorn": _uvicorn,
    "uvicorn, 2 workers": _uvicorn_workers,
    "uvicorn twice, reuse_port": _uvicorn_twice,
    "granian, 2 threads": _granian,
}


def main() -> None:
    """Serve until a signal ends it."""
    name, fd = sys.argv[1:]
    SERVERS[name](socket.socket(fileno=int(fd)))


if __name__ == "__main__":
    main()

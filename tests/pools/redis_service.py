"""A Redis for tests."""

import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any, ClassVar

from tests import leaks
from tests.pools.services import PATIENCE, Server, Unavailable


class RedisServer(Server):
    """A Redis that keeps nothing on disk, with room for exactly ``max_clients`` clients.

    Attributes:
        url: How clients reach it over TCP.
        socket_url: How they reach it over its unix socket.
        socket_path: Where that socket is.
    """

    name = "Redis"
    _stop_signals: ClassVar = {"immediate": signal.SIGKILL, "fast": signal.SIGTERM}

    def __init__(self, *, max_clients: int = 1000) -> None:
        self.max_clients = max_clients
        self._observer: _RedisConnection | None = None
        self._sampler: _RedisConnection | None = None
        self._opened_before = 0  # by runs of the server that have ended
        super().__init__(_redis_program(), None)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket_url = f"unix://{self.socket_path}"

    @property
    def socket_path(self) -> Path:
        return self.folder / "socket"

    def stop(self, mode: str = "fast") -> None:
        """End the server: ``fast`` asks it to, ``immediate`` kills it; its clients see the end of their connections."""
        self._opened_before = self.opened()
        super().stop(mode)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start again; all that it held is gone."""
        self.stop(mode)
        self.start()

    def execute(self, *words: str) -> Any:
        """Run a command over our own connection and return its answer."""
        assert self._observer is not None, "Redis is not running"
        return self._observer.execute(*words)

    def connections(self) -> int:
        return len(self.client_list())

    def client_list(self) -> list[dict[str, str]]:
        """What ``CLIENT LIST`` says of each client, the oldest first, without our own connections."""
        assert self._observer is not None, "Redis is not running"
        return self._observer.client_list()

    def opened(self) -> int:
        if self._observer is None:
            return self._opened_before
        stats = dict(re.findall(r"^(\w+):(\S+)\r?$", self.execute("INFO", "stats"), flags=re.MULTILINE))
        return self._opened_before + int(stats["total_connections_received"]) - 2

    def kill_one(self) -> int:
        """End the oldest connection and return its ``id``."""
        clients = self.client_list()
        assert clients, "nobody is connected"
        self.execute("CLIENT", "KILL", "ID", clients[0]["id"])
        return int(clients[0]["id"])

    def kill_all(self) -> int:
        """End all connections that there are now, and return how many."""
        return sum(self.execute("CLIENT", "KILL", "ID", client["id"]) for client in self.client_list())

    def _prepare(self) -> None: ...

    def _command(self) -> list[str]:
        settings: dict[str, object] = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": self.socket_path,
            "maxclients": self.max_clients + 2,  # we are two
            "save": "",
            "appendonly": "no",
            "dir": self.folder,
        }
        return [str(self._program), *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]

    def _try_to_observe(self) -> bool:
        try:
            self._observer = _RedisConnection(self.socket_path)
            self._sampler = _RedisConnection(self.socket_path)
        except OSError:
            self._end_observation()
            return False
        return True

    def _end_observation(self) -> None:
        for connection in (self._observer, self._sampler):
            if connection is not None:
                connection.close()
        self._observer = self._sampler = None

    def _sample(self) -> int:
        assert self._sampler is not None
        return len(self._sampler.client_list())

    def _who(self) -> object:
        return self.client_list()


class _RedisConnection:
    """As much of Redis's protocol as an observer needs, so that it depends on no client that is under test."""

    _NAME = "polyloop-observer"

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(PATIENCE)
            self._socket.connect(str(path))
            self._answers = self._socket.makefile("rb")
        except BaseException:
            self._socket.close()
            raise
        leaks.keep(self._socket.fileno())
        self.execute("CLIENT", "SETNAME", self._NAME)

    def execute(self, *words: str) -> Any:
        parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        self._socket.sendall("".join([f"*{len(words)}\r\n", *parts]).encode())
        return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline().decode().rstrip("\r\n")
        kind, rest = line[:1], line[1:]
        if kind == "+":
            return rest
        if kind == ":":
            return int(rest)
        if kind == "$":
            return None if rest == "-1" else self._answers.read(int(rest) + 2)[:-2].decode()
        if kind == "*":
            return [self._answer() for _ in range(int(rest))]
        raise ConnectionError(rest or "Redis has closed the connection")

    def client_list(self) -> list[dict[str, str]]:
        lines = self.execute("CLIENT", "LIST").splitlines()
        clients = [dict(word.partition("=")[::2] for word in line.split(" ")) for line in lines]
        return [client for client in clients if client["name"] != self._NAME]

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


def _redis_program() -> Path:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise Unavailable("there is no Redis server here; install it with: apt-get install redis-server")
    return Path(found)

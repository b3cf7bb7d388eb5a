"""Real servers for tests, each with a folder, a unix socket and a port of its own; what every kind of server shares.

    services.py           the process, its end, and the counting of its connections
    postgres_service.py   PostgreSQL
    redis_service.py      Redis

Whoever counts a server's connections must not be counted. Each server therefore holds two connections of its own as
long as it runs, which no number here includes: one for the thread of the test, and one for the sampler behind ``peak``.

A server ends with the process that started it, however that ends: a shell waits for the end of a pipe whose other end
is held here, stops the server then, and removes its folder.
"""

import abc
import asyncio
import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar, Self

#: Seconds for a server to start or to stop, and for its connections to become as many as a test waits for.
PATIENCE = 20.0

#: For what tells of itself by refusing: how long to wait for the process's end before trying again.
_PACE = 0.005

# A line is the number of the server's process, or empty when it has none. The end of the input is our end.
_WATCHDOG = """
while read -r line; do pid=$line; done
if [ -n "$pid" ] && kill -s "$2" "$pid" 2>/dev/null; then
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null || break
        sleep 0.02
    done
    kill -s KILL "$pid" 2>/dev/null
fi
rm -rf "$1"
"""


class Unavailable(Exception):
    """This machine has no such server, or lacks what is needed to talk to it; the message says what to install."""


class Peak:
    """The most connections that a sampler saw; its thread writes, anyone reads."""

    def __init__(self) -> None:
        self.highest = 0
        self.samples = 0

    def note(self, count: int) -> None:
        self.highest = max(self.highest, count)
        self.samples += 1

    async def look(self) -> None:
        """Wait until it has looked once more at what there is now."""
        enough = self.samples + 2  # one may have begun before
        while self.samples < enough:
            await asyncio.sleep(0)


class Server(abc.ABC):
    """A process, what it keeps on disk, and the connections that observe it. Starts when made; ``close`` ends it."""

    name: str
    _stop_signals: ClassVar[dict[str, signal.Signals]]  # by mode; the last is for the end of our own process

    def __init__(self, program: Path, account: pwd.struct_passwd | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"polyloop-{self.name.lower()}-", dir=_short_folder()))
        self.port = _free_port()
        self._program = program
        self._as: dict[str, Any] = {}
        if account is not None:
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        self._up = threading.Event()  # set while the observers are connected
        self._sampling = threading.Lock()  # guards the sampler's connection
        last = next(reversed(self._stop_signals.values())).name.removeprefix("SIG")
        watchdog = ["sh", "-c", _WATCHDOG, "watchdog", str(self.folder), last]
        self._watchdog = subprocess.Popen(watchdog, stdin=subprocess.PIPE, text=True, start_new_session=True)
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def log(self) -> str:
        """All that the server has said since it was made."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start the server and return when it serves; its folder, address and port stay what they were."""
        assert self._process is None, f"{self.name} is running"
        with open(self.folder / "log", "ab") as log:
            self._process = self._spawn(self._command(), log)
        self._tell_watchdog(str(self._process.pid))
        deadline = time.monotonic() + PATIENCE
        while not self._try_to_observe():
            if self._ends_within(_PACE) or time.monotonic() > deadline:
                self._kill()
                raise RuntimeError(f"{self.name} did not start; it said:\n{self.log[-2000:]}")
        self._up.set()

    def stop(self, mode: str = "fast") -> None:
        """End the server and return when its process is gone."""
        assert self._process is not None, f"{self.name} is not running"
        self._up.clear()
        with self._sampling:
            self._end_observation()
        self._process.send_signal(self._stop_signals[mode])
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill()
            raise RuntimeError(f"{self.name} did not stop; it said:\n{self.log[-2000:]}") from None
        self._process = None
        self._tell_watchdog("")

    def close(self) -> None:
        """End the server for good, whatever state it is in, and remove its folder."""
        if self._process is not None:
            with contextlib.suppress(RuntimeError):
                self.stop(next(reversed(self._stop_signals)))
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.close()
        self._watchdog.wait(PATIENCE)

    @abc.abstractmethod
    def connections(self) -> int:
        """How many connections there are now, without our own."""

    @abc.abstractmethod
    def opened(self) -> int:
        """How many connections were accepted since the server was made, without our own."""

    def wait_for_connections(self, count: int, *, or_fewer: bool = False, timeout: float = PATIENCE) -> None:
        """Return when there are ``count`` connections: a server takes a moment to see that one was closed.

        Raises:
            AssertionError: there were not, within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while (seen := self.connections()) > count or (seen < count and not or_fewer):
            assert time.monotonic() < deadline, f"{self.name} has {seen} connections, not {count}: {self._who()}"

    @contextlib.contextmanager
    def peak(self) -> Iterator[Peak]:
        """Count the connections, over and over, as long as the block lasts; a stopped server has none."""
        seen, over, begun = Peak(), threading.Event(), threading.Event()
        faults: list[Exception] = []

        def sample() -> None:
            try:
                while not over.is_set():
                    if self._up.wait(0.05):
                        with self._sampling:
                            if self._up.is_set():
                                seen.note(self._sample())
                    begun.set()
            except Exception as error:
                faults.append(error)
            finally:
                begun.set()

        thread = threading.Thread(target=sample, name="sampler")
        thread.start()
        begun.wait()
        try:
            yield seen
        finally:
            over.set()
            thread.join()
        if faults:
            raise faults[0]

    @abc.abstractmethod
    def _prepare(self) -> None:
        """What is done once, before the first start."""

    @abc.abstractmethod
    def _command(self) -> list[str]: ...

    @abc.abstractmethod
    def _try_to_observe(self) -> bool:
        """Make the two connections of our own; say whether the server let them in."""

    @abc.abstractmethod
    def _end_observation(self) -> None: ...

    @abc.abstractmethod
    def _sample(self) -> int:
        """``connections``, over the sampler's connection."""

    @abc.abstractmethod
    def _who(self) -> object:
        """Who is connected, for the message of a failed test."""

    def _spawn(self, command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        kept = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.environ.get("PATH", os.defpath)}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=kept,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self._as,
        )

    def _ends_within(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        self._tell_watchdog("")

    def _tell_watchdog(self, line: str) -> None:
        assert self._watchdog.stdin is not None
        self._watchdog.stdin.write(line + "\n")
        self._watchdog.stdin.flush()


def _short_folder() -> str | None:
    """Where other users may look, and paths are short: that of a unix socket has 107 bytes at most."""
    return "/tmp" if os.path.isdir("/tmp") else None


def _free_port() -> int:
    """A port that nobody listens on, from below those that the system deals out to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port

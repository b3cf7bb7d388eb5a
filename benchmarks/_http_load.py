"""What the benchmark ``http`` does to a server: starts it, loads it with wrk, weighs it, stops it."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Seconds that a server has until it answers, and until it has stopped; then it is killed.
PATIENCE = 20.0
STOP_PATIENCE = 5.0

_NUMBER = r"([0-9.]+)"
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class LoadError(Exception):
    """A server or wrk did not do what it should."""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw: requests a second, and the milliseconds in which half and 99 of 100 were answered."""

    rate: float
    p50: float
    p99: float


def wrk_missing() -> str | None:
    """How to get wrk, if it is not here."""
    return None if shutil.which("wrk") else "needs wrk: apt-get install wrk, or https://github.com/wg/wrk"


def wrk(urls: Sequence[str], seconds: int, connections: int) -> Load:
    """Load a URL for a while, over connections that are kept, each with one request at a time.

    Args:
        urls: If there are several, each gets its share of the connections, and the slower of the times counts.
    Raises:
        LoadError: an answer was no 2xx or 3xx, or a connection broke.
    """
    command = ["wrk", "-t1", f"-c{connections // len(urls)}", f"-d{seconds}s", "--latency"]
    running = [subprocess.Popen([*command, url], stdout=subprocess.PIPE, text=True) for url in urls]
    loads = [read_wrk(process.communicate()[0]) for process in running]
    return Load(sum(one.rate for one in loads), max(one.p50 for one in loads), max(one.p99 for one in loads))


def read_wrk(text: str) -> Load:
    """Read what wrk has printed.

    Raises:
        LoadError: it tells of errors, or nothing.
    """
    if "Non-2xx" in text or "Socket errors" in text:
        raise LoadError(text)
    rate = re.search(rf"Requests/sec:\s+{_NUMBER}", text)
    times = {mark: re.search(rf"\s{mark}%\s+{_NUMBER}([a-z]+)", text) for mark in (50, 99)}
    if rate is None or not float(rate[1]):
        raise LoadError(f"nothing was answered: {text}")
    p50, p99 = (float(found[1]) * _UNITS[found[2]] if found else 0.0 for found in times.values())
    return Load(float(rate[1]), p50, p99)


@contextlib.contextmanager
def serving(name: str, module: str = "benchmarks._http_servers") -> Generator["Running"]:
    """A server, from its first answer to the end of its last process."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        address: tuple[str, int] = sock.getsockname()
        os.set_inheritable(sock.fileno(), True)
        sock.listen(2048)
        command = [sys.executable, "-m", module, name, str(sock.fileno())]
        process = subprocess.Popen(command, pass_fds=[sock.fileno()], start_new_session=True)
    running = Running(process, f"http://{address[0]}:{address[1]}")
    try:
        running.wait_until_it_answers(address)
        yield running
    finally:
        running.stop()


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs, with all processes of its session."""

    process: "subprocess.Popen[bytes]"
    base: str

    def wait_until_it_answers(self, address: tuple[str, int]) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise LoadError(f"{self.process.args!r} ended with {self.process.returncode}")
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=PATIENCE) as client:
                client.sendall(b"GET /raw HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                if client.recv(12).startswith(b"HTTP/1.1 200"):
                    return
            time.sleep(0.05)
        raise LoadError(f"{self.process.args!r} did not answer")

    def pids(self) -> list[int]:
        """All its processes: those of the session that was made for it."""
        found: list[int] = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.process.pid and fields[0] != "Z":
                        found.append(int(folder.name))
        return found

    def pss(self) -> float:
        """Proportional set size of all processes, in MiB: what two share counts half for each."""
        total = 0
        for pid in self.pids():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1])  # type: ignore[index]
        return total / 1024

    def stop(self) -> None:
        """End it as its users do, and then what is left of it."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_PATIENCE)
        self.process.kill()
        self.process.wait()
        while left := self.pids():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

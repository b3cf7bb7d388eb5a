"""What the benchmark ``http`` does to a server: starts it, loads it with wrk, weighs it, stops it."""

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

#: Seconds that a server has until it answers, and until it has stopped; then it is killed.
PATIENCE = 20.0
STOP_PATIENCE = 5.0

_NUMBER = r"([0-9.]+)"
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class LoadError(Exception):
    """A server or wrk did not do what it should."""


#: How many times a load is repeated at most, and the cores that others may use without that.
TRIES = 4
DISTURBED = 0.15


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw: requests a second, and the milliseconds in which half and 99 of 100 were answered.

    Attributes:
        others: Cores that other programs used meanwhile.
    """

    rate: float
    p50: float
    p99: float
    others: float = 0.0


def wrk_missing() -> str | None:
    """How to get wrk, if it is not here."""
    return None if shutil.which("wrk") else "needs wrk: apt-get install wrk, or https://github.com/wg/wrk"


def wrk(url: str, seconds: int, connections: int) -> Load:
    """Load a URL for a while, over connections that are kept, each with one request at a time.

    Raises:
        LoadError: an answer was no 2xx or 3xx, or a connection broke.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
    return read_wrk(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout)


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


_TICKS = os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    """CPU time of the whole machine, with what its host took away."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


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
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
        process = subprocess.Popen(command, pass_fds=[sock.fileno()], start_new_session=True, stderr=said)
    running = Running(process, f"http://{address[0]}:{address[1]}")
    try:
        running.wait_until_it_answers(address)
        yield running
    except LoadError as exc:
        said.seek(0)
        exc.add_note(said.read().decode(errors="replace"))
        raise
    finally:
        running.stop()
        said.close()


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

    def load(self, path: str, seconds: int, connections: int) -> Load:
        """Load it; again if others were busy meanwhile, and then the load counts that they disturbed least."""
        best: Load | None = None
        for _ in range(TRIES):
            busy, ours, began = _busy_seconds(), self._cpu_seconds(), time.monotonic()
            found = wrk(self.base + path, seconds, connections)
            others = (_busy_seconds() - busy - self._cpu_seconds() + ours) / (time.monotonic() - began)
            if best is None or others < best.others:
                best = replace(found, others=others)
            if others <= DISTURBED:
                break
        assert best is not None
        return best

    def _cpu_seconds(self) -> float:
        """CPU time of the server, and of all runs of wrk."""
        clients = resource.getrusage(resource.RUSAGE_CHILDREN)
        ticks = sum(sum(map(int, fields[11:13])) for fields in self._stats().values())
        return ticks / _TICKS + clients.ru_utime + clients.ru_stime

    def pids(self) -> list[int]:
        """All its processes: those of the session that was made for it."""
        return list(self._stats())

    def _stats(self) -> dict[int, list[str]]:
        """For each of them what ``/proc/<pid>/stat`` has after its name."""
        found: dict[int, list[str]] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.process.pid and fields[0] != "Z":
                        found[int(folder.name)] = fields
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

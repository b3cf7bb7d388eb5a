"""Clients of all kinds at two servers for a long time, and then what is left of it: nothing.

The servers are processes of their own, one plain and one with TLS, so that what is measured is theirs alone.
"""

import contextlib
import logging
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.web import PATIENCE, Program, request
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from polyloop.testing import TestThread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and descriptors as Linux tells of them")

#: Growth of the memory after the warm-up that is no leak: fragments, caches, what mimalloc keeps for later. asyncio has
#: a buffer of 256 KiB for each TLS connection, which lives until the garbage collector has found it.
MOST_GROWTH_KB = {"plain": 60_000, "tls": 100_000}

QUIET = logging.getLogger("tests.serve.soak")  # of clients that are cut off, which their library takes for a fault
QUIET.setLevel(logging.CRITICAL + 1)

RESET = b"\x01\0\0\0\0\0\0\0"


class Clients:
    """What the clients do: each kind over and over until the end, in a thread or more; ``counts`` of what was done."""

    def __init__(self, plain: Program, tls: Program, trust: Any, rng: random.Random) -> None:
        self.plain = plain
        self.tls = tls
        self.counts: dict[str, int] = {}
        self.end = threading.Event()
        self._trust = trust
        self._seed = rng.randrange(1 << 30)

    def keep(self, rng: random.Random) -> None:
        """One connection for many requests of different sizes."""
        with self.plain.connect() as wire:
            for _ in range(rng.randrange(1, 200)):
                if rng.random() < 0.9:
                    assert wire.get().body == b"hello"
                else:
                    size = rng.randrange(200_000)
                    assert len(wire.get(f"/large?{size}").body) == size
                body = b"b" * rng.randrange(1, 50_000)
                wire.send(request("/echo", "POST", body=body))
                assert wire.answer().body == body

    def short(self, rng: random.Random) -> None:
        """A connection for one request."""
        with self.plain.connect() as wire:
            wire.send(request("/", "GET", "Connection: close"))
            assert wire.answer().body == b"hello"
            assert wire.rest() == b""

    def pipelined(self, rng: random.Random) -> None:
        """Many requests at once."""
        with self.plain.connect() as wire:
            wire.send(request("/") * 30)
            assert all(wire.answer().body == b"hello" for _ in range(30))

    def websocket(self, rng: random.Random) -> None:
        """Messages there and back; the end is not always polite."""
        url = f"ws://127.0.0.1:{self.plain.port}/ws"
        with connect(url, open_timeout=PATIENCE, proxy=None, logger=QUIET) as one:
            for number in range(rng.randrange(30)):
                text = "x" * rng.randrange(2000) + str(number)
                one.send(text)
                assert one.recv(PATIENCE) == text
            if rng.random() < 0.3:
                with contextlib.suppress(OSError, WebSocketException):
                    one.send("and gone")
                    one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    one.socket.shutdown(socket.SHUT_RDWR)

    def over_tls(self, rng: random.Random) -> None:
        """A handshake, and some requests."""
        with httpx.Client(verify=self._trust, trust_env=False, timeout=PATIENCE) as client:
            for _ in range(rng.randrange(1, 10)):
                size = rng.randrange(100_000)
                assert len(client.get(f"https://localhost:{self.tls.port}/large?{size}").content) == size

    def rude_over_tls(self, rng: random.Random) -> None:
        """Bytes that are no TLS, or a connection that goes at once."""
        with self.tls.connect() as wire:
            wire.send(rng.choice([b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\x16"]))
        # Not as fast as it can: the acceptor takes thousands of them before the loops have looked at the first, and
        # asyncio has 256 KiB for each.
        self.end.wait(0.01)

    def aborted(self, rng: random.Random) -> None:
        """Goes in the middle of its request, or of its answer, in good order or not."""
        data = rng.choice([b"GET / HT", request("/echo", "POST", "Content-Length: 1000") + b"half"])
        with self.plain.connect() as wire:
            wire.send(rng.choice([data, request("/large?10000000"), request("/slow?0.1"), b"\0garbage\r\n\r\n"]))
            if rng.random() < 0.5:
                wire.sock.settimeout(0.05)
                with contextlib.suppress(OSError):
                    wire.sock.recv(100)
            if rng.random() < 0.5:
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def slow(self, rng: random.Random) -> None:
        """Sends byte after byte, and reads late."""
        with self.plain.connect() as wire:
            for byte in request("/large?1000000"):
                wire.send(bytes([byte]))
                self.end.wait(rng.random() / 50)
            self.end.wait(rng.random())
            assert len(wire.answer().body) == 1_000_000

    KINDS = (keep, keep, short, pipelined, websocket, websocket, over_tls, rude_over_tls, aborted, aborted, slow, slow)

    def run(self) -> list[TestThread[None]]:
        """Begin."""
        return [
            TestThread(self._repeat, kind, index, name=f"client {kind.__name__} {index}", timeout=600.0)
            for index, kind in enumerate(self.KINDS)
        ]

    def _repeat(self, kind: Callable[["Clients", random.Random], None], index: int) -> None:
        rng = random.Random(self._seed + index)
        name = f"{kind.__name__} {index}"
        try:
            while not self.end.is_set():
                kind(self, rng)
                self.counts[name] = self.counts.get(name, 0) + 1
        except BaseException:
            self.end.set()
            raise


def memory_kb(program: Program) -> int:
    pages = int(Path(f"/proc/{program.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def descriptors(program: Program) -> int:
    return len(os.listdir(f"/proc/{program.process.pid}/fd"))


def settled[T](look: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """Look until it is as wanted, or for so long."""
    until = time.monotonic() + 40  # head_timeout, and keep-alive timeouts, and more
    turn = threading.Event()
    while not wanted(found := look()) and time.monotonic() < until:
        turn.wait(0.2)
    return found


@dataclass
class Left:
    """What is left of its clients in a server that nobody else asks any more."""

    program: Program
    ask: Callable[[str], Any]

    def connections(self) -> int:
        return sum(loop["connections"] for loop in self.ask("/health")["loops"])

    def descriptors(self) -> int:
        return descriptors(self.program)

    def tasks(self) -> dict[str, int]:
        """Of each loop, while nothing but this question is answered."""
        found: dict[str, int] = {}
        while len(found) < 2:
            name, count = self.ask("/facts")
            found[name] = count
        return found

    def memory_kb(self) -> int:
        self.tasks()  # which looks for garbage too
        return memory_kb(self.program)


@pytest.mark.stress
def test_nothing_is_left_of_many_clients(seconds: float, rng: random.Random, certificates: Any, tmp_path: Path) -> None:
    """Memory, descriptors and tasks are back where they were, and the log knows of no error."""
    trust = certificates.for_client()
    # A machine with more clients than cores, which do other things too, is slow: that is no hang yet.
    files: dict[str, Any] = {
        "hung_after": 5.0,
        "access_log": str(tmp_path / "access.log"),
        "head_timeout": 5.0,
        "health": "/health",
    }
    cert = [str(certificates.chain), str(certificates.key)]
    with (
        open(tmp_path / "log", "w") as log,
        Program(log=log, **files) as plain,
        Program(log=log, tls=cert, host="localhost", **files) as tls,
    ):
        programs = {"plain": plain.until_ready(), "tls": tls.until_ready()}

        def get_plain(path: str) -> Any:
            with plain.connect() as wire:
                return wire.get(path).json()

        def get_tls(path: str) -> Any:
            return httpx.get(f"https://localhost:{tls.port}{path}", verify=trust, trust_env=False).json()

        ask = {"plain": get_plain, "tls": get_tls}
        tasks_before = {name: Left(program, ask[name]).tasks() for name, program in programs.items()}
        clients = Clients(plain, tls, trust, rng)
        threads = clients.run()
        begun = time.monotonic()
        warm: dict[str, int] = {}
        while (passed := time.monotonic() - begun) < seconds and not clients.end.wait(min(10.0, seconds / 20)):
            now = {name: memory_kb(program) for name, program in programs.items()}
            if not warm and passed > seconds / 4:
                warm = now
            fds = {name: descriptors(program) for name, program in programs.items()}
            print(f"{passed:6.0f} s {now} KB {fds} descriptors", flush=True)
        clients.end.set()
        for thread in threads:
            thread.result()
        print(dict(Counter(clients.counts)))
        print(
            {name: memory_kb(program) for name, program in programs.items()}, "KB when the clients had gone", flush=True
        )
        assert len(clients.counts) == len(clients.KINDS)
        for name, program in programs.items():
            left = Left(program, ask[name])
            assert settled(left.connections, lambda count: count <= 1) <= 1  # that of the question
            assert settled(left.descriptors, lambda count: count < 40) < 40
            after = settled(left.tasks, tasks_before[name].__eq__)
            assert after == tasks_before[name]
            kept = warm[name] + MOST_GROWTH_KB[name]
            growth = settled(left.memory_kb, lambda now, kept=kept: now < kept) - warm[name]  # type: ignore[misc]
            print(f"{name}: {warm[name]} KB when warm, {growth:+} KB since; tasks {after}")
            assert growth < MOST_GROWTH_KB[name]
            program.process.terminate()
            assert program.wait() == 0
    told = (tmp_path / "log").read_text().splitlines()
    print(Counter(line.split(" ", 2)[0] for line in told))
    assert not [line for line in told if line.startswith(("ERROR", "CRITICAL", "Traceback"))][:5]

"""A server that was started by ``polyloop serve``, as the tests see it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import httpx

#: Seconds until a fact that does not come fails the test.
PATIENCE = 60.0

#: A small application; each answer says who gave it.
APP = r"""
import asyncio, json, os, sys, threading
from pathlib import Path

RELEASE = 1

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/wait":
        Path("waiting").touch()
        await asyncio.sleep(3600)
    about = {"pid": os.getpid(), "thread": threading.current_thread().name, "release": RELEASE}
    about |= {"scheme": scope["scheme"], "root": scope.get("root_path"), "client": scope["client"]}
    body = json.dumps(about).encode()
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})

def make():
    os.write(1, b"made\n")  # in one piece: the loops do it at the same time
    return app

def prepare():
    print("prepared", flush=True)

async def clean_up():
    print("cleaned up", flush=True)
"""


class Served:
    """A process of ``polyloop serve``, with all that it says; a context manager that ends it."""

    def __init__(
        self,
        folder: Path,
        *args: str,
        fds: Iterable[int] = (),
        prefix: Iterable[str] = (),
        environ: dict[str, str] | None = None,
    ) -> None:
        command = [*prefix, sys.executable, "-m", "polyloop.cli", "serve", *args]
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", "PWD": str(folder), **(environ or {})}
        self.folder = folder
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            pass_fds=tuple(fds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()  # guards lines and _over
        self._over = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for line in pipe:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def line(self, pattern: str, count: int = 1) -> "re.Match[str]":
        """Wait for the so-many-th line in which the pattern is found."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._news:
            self._news.wait_for(lambda: len(found()) >= count or self._over, PATIENCE)
            matches = found()
        assert len(matches) >= count, f"no {count}. line with {pattern!r} in\n" + "\n".join(self.lines)
        return matches[count - 1]

    def serving(self, count: int = 1) -> str:
        """Wait until it serves for the so-many-th time; return where."""
        where: str = self.line(r"^polyloop: serving \S+ on (\S+): ", count).group(1)
        return where

    def pid(self, count: int = 1) -> int:
        """The process that serves for the so-many-th time."""
        return int(self.line(r"^polyloop: serving .* process (\d+)$", count).group(1))

    def end(self, number: signal.Signals = signal.SIGTERM, pid: int | None = None) -> int:
        """End it by a signal, wait until all of its processes are gone, and return the exit code of the first."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid if pid is None else pid, number)
        return self.wait()

    def wait(self) -> int:
        """Wait until all of its processes are gone, and return the exit code of the first."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), "a process is left:\n" + "\n".join(self.lines)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pids = {self.process.pid} | {int(match) for match in re.findall(r" process (\d+)$", self.text, re.MULTILINE)}
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            self._reader.join(5)
            if not self._reader.is_alive():
                break
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)

    @property
    def text(self) -> str:
        """All that it has said."""
        return "\n".join(self.lines)


def wait_until(fact: Callable[[], bool]) -> None:
    """Look again and again until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.01)


def get(url: str, path: str = "/", **options: object) -> "httpx.Response":
    """One request on a connection of its own."""
    transport = None
    if url.startswith("unix:"):
        transport, url = httpx.HTTPTransport(uds=url.removeprefix("unix:")), "http://unix"
    with httpx.Client(transport=transport, timeout=PATIENCE, trust_env=False, **options) as client:  # type: ignore[arg-type]
        return client.get(url + path)

"""Start and stop the embedded site, a process of its own (see ``_site_server``)."""

import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_SERVER = Path(__file__).with_name("_site_server.py")
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SiteStats:
    """What the site did so far."""

    served: int
    cpu_seconds: float


class Site:
    """The embedded site as a context manager.

    Args:
        pages: How many pages it has: ``/page/0`` to ``/page/{pages - 1}``.
        paragraphs: Length of each; a paragraph has some 500 bytes.
        latency: Seconds that every answer is held back.
    """

    def __init__(self, pages: int, *, paragraphs: int, latency: float = 0.0) -> None:
        self.pages = pages
        self._settings = {"pages": pages, "paragraphs": paragraphs, "latency": latency}
        self._process: subprocess.Popen[str] | None = None
        self.address = ""
        """``http://127.0.0.1:PORT`` while it runs."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", str(_SERVER), json.dumps(self._settings)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            self._stop()
            raise RuntimeError(f"the embedded site did not start: it ended with code {self._process.returncode}")
        self.address = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def urls(self) -> list[str]:
        """Return the address of every page."""
        return [f"{self.address}/page/{number}" for number in range(self.pages)]

    def stats(self) -> SiteStats:
        """Ask the site what it did so far."""
        with urllib.request.urlopen(f"{self.address}/stats") as response:
            return SiteStats(**json.load(response))

    def _stop(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

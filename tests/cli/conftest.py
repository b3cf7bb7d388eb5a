"""How the tests of the command line start it: in a process of its own, or in this one through click's runner."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

type Polyloop = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def polyloop(tmp_path: Path) -> Polyloop:
    """Run ``polyloop ARGS`` in ``tmp_path`` as a process and return what it said."""

    def start(*args: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *options, "-m", "polyloop.cli", *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    return start


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """Write a program into ``tmp_path`` as ``app.py``."""

    def write(text: str) -> Path:
        file = tmp_path / "app.py"
        file.write_text(text, encoding="utf-8")
        return file

    return write

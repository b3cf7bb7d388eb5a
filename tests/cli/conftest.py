"""How the tests of the command line start it: in a process of its own, or in this one through click's runner."""

import shutil
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


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Make a certificate for 127.0.0.1 and its key, encrypted if there is a password."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes certificates with openssl")

    def make(name: str, password: str | None = None) -> tuple[Path, Path]:
        cert, key = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        secret = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
        subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *subject]
        files = ["-days", "1", "-keyout", str(key), "-out", str(cert)]
        subprocess.run([*command, *secret, *files], check=True, capture_output=True)
        return cert, key

    return make

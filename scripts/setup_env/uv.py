"""uv: the one on PATH, or a pinned one in a private folder of the user's cache."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Mapping, Optional

from . import apt, cpython
from .console import StepError, note, run, step
from .paths import CACHE, REQUIREMENTS

# `uv pip compile --group` and JSON output of `uv python list`, both of which we use, are older than this.
OLDEST = (0, 8)


class Uv:
    """The uv that this set-up uses."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *args: str, env: Optional[Mapping[str, str]] = None, timeout: Optional[float] = None) -> str:
        # The machine's own settings (indexes, certificates) reach uv through the environment as they are.
        return run([self.path, *args], env=env, timeout=timeout)

    def installed_pythons(self) -> Any:
        """Uv's list of interpreters on this machine, without any download."""
        environment = {**os.environ, "PATH": _search_path()}
        environment.pop("UV_PYTHON", None)
        listing = subprocess.run(
            [self.path, "python", "list", "--only-installed", "--no-python-downloads", "--output-format", "json"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,  # its warnings are about broken shims on PATH, none of our concern
            text=True,
            check=False,
        )
        if listing.returncode != 0:
            raise StepError(f"uv python list failed: {listing.stderr.strip()}")
        return json.loads(listing.stdout)


# Where version managers keep interpreters that are installed but not active. Their shims on PATH are left out: what a
# shim runs depends on PATH, so what uv learns from one here need not hold elsewhere.
_VERSION_MANAGERS = (
    "${PYENV_ROOT:-~/.pyenv}/versions/*/bin",
    "${ASDF_DATA_DIR:-~/.asdf}/installs/python/*/bin",
    "${MISE_DATA_DIR:-~/.local/share/mise}/installs/python/*/bin",
)


def _search_path() -> str:
    """Our own builds, PATH without shims, and what version managers hold back."""
    ours = sorted(str(path / "bin") for path in (CACHE / "python").glob("cpython-*"))
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    on_path = [folder for folder in folders if Path(folder).name != "shims"]
    hidden = [folder for pattern in _VERSION_MANAGERS for folder in sorted(glob.glob(_expanded(pattern)))]
    return os.pathsep.join([*ours, *on_path, *hidden])


def _expanded(pattern: str) -> str:
    """``${NAME:-default}`` at the start of a path, as the shell would read it."""
    name, default, rest = re.fullmatch(r"\$\{(\w+):-(.*?)\}(.*)", pattern).groups()  # type: ignore[union-attr]
    return os.path.expanduser(os.environ.get(name) or default) + rest


def find_or_install() -> Uv:
    """The uv on PATH if it is recent enough, else the pinned one, installed first where it must be.

    Raises:
        StepError: there is none, and no way to install one; the message says what would help.
    """
    on_path = shutil.which("uv")
    if on_path and _version(on_path) >= OLDEST:
        return Uv(on_path)
    private = CACHE / "uv"
    executable = private / "bin" / "uv"
    if executable.exists() and _version(str(executable)) >= OLDEST:
        return Uv(str(executable))
    why = f"{on_path} is older than {'.'.join(map(str, OLDEST))}" if on_path else "there is none on PATH"
    step(f"uv: installing the pinned one into {private}, for {why}")
    _install(private)
    return Uv(str(executable))


def _version(executable: str) -> "tuple[int, ...]":
    try:
        text = run([executable, "--version"], timeout=30)
    except StepError:
        return ()  # a shim that leads nowhere
    match = re.search(r"(\d+)\.(\d+)", text)
    return tuple(int(part) for part in match.groups()) if match else ()


def _install(target: Path) -> None:
    """Put uv below ``target`` with whichever of venv and pip this Python has.

    Debian splits both off its Python, and forbids pip to touch the system's packages (PEP 668); a virtual environment
    and ``--target`` are allowed.
    """
    if not _has_pip_or_ensurepip():
        note("this Python has neither pip nor ensurepip (Debian keeps them in packages of their own)")
        try:
            apt.install_packages(["python3-venv"])
        except StepError as error:
            # Said now, so that the person who has to ask for packages asks once.
            also = f"To build a free-threaded Python, if none can be downloaded, add: {cpython.missing_packages()}"
            raise StepError(f"{error}\n{also}" if apt.is_debian_like() else str(error)) from error
    scratch = target.with_name(f"uv.{os.getpid()}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    pinned = ["--no-deps", "--require-hashes", "-r", str(REQUIREMENTS / "uv.txt")]
    wanted = ["install", "--quiet", "--disable-pip-version-check", *pinned]
    try:
        if _runs(["-c", "import ensurepip"]):
            run([sys.executable, "-m", "venv", str(scratch / "venv")])
            run([str(scratch / "venv" / "bin" / "python"), "-m", "pip", *wanted])
            binary = scratch / "venv" / "bin" / "uv"
        else:
            run([sys.executable, "-m", "pip", *wanted, "--target", str(scratch / "lib")])
            binary = scratch / "lib" / "bin" / "uv"
        # uv is one static binary: it needs nothing of the environment that it came in.
        shutil.rmtree(target, ignore_errors=True)
        (target / "bin").mkdir(parents=True)
        os.replace(binary, target / "bin" / "uv")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _has_pip_or_ensurepip() -> bool:
    return importlib.util.find_spec("pip") is not None or _runs(["-c", "import ensurepip"])


def _runs(arguments: "list[str]") -> bool:
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=False).returncode == 0

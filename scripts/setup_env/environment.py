"""Virtual environments from the pinned requirement files, with a stamp by which the next run knows that nothing changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Optional, Sequence

from choose import Interpreter
from console import note, step
from paths import REQUIREMENTS, ROOT
from uv import Uv

STAMP = "polyloop-setup.json"


class Environment:
    """One virtual environment of this checkout."""

    def __init__(self, folder: str, groups: Sequence[str]) -> None:
        self.path = ROOT / folder
        self._files = [REQUIREMENTS / f"{group}.txt" for group in groups]
        self._stamp = self.path / STAMP

    @property
    def python(self) -> Path:
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def inputs(self) -> str:
        """A hash over all that decides what is in the environment."""
        digest = hashlib.sha256()
        for path in [*self._files, ROOT / "pyproject.toml"]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        digest.update(os.environ.get("POLYLOOP_PYTHON", "").encode())
        digest.update(str(ROOT).encode())  # scripts and the editable install hold absolute paths
        return digest.hexdigest()

    def current(self) -> "Optional[str]":
        """The interpreter of a complete and unchanged environment, in words; ``None`` if there is work to do."""
        try:
            stamp = json.loads(self._stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        # `exists` follows the link: a base interpreter that was removed means starting over.
        fresh = stamp.get("inputs") == self.inputs() and self.python.exists()
        return str(stamp.get("interpreter")) if fresh else None

    def create(self, uv: Uv, interpreter: Interpreter) -> None:
        """Make the environment hold exactly the pinned packages and this checkout, editable."""
        step(f"{self.path.name}: {interpreter}")
        self._stamp.unlink(missing_ok=True)  # from here until the end it is incomplete, and says so
        uv("venv", "--quiet", "--allow-existing" if self._built_on(interpreter) else "--clear", "--python", interpreter.path, str(self.path))
        target = {"VIRTUAL_ENV": str(self.path)}
        uv("pip", "sync", "--require-hashes", "--python", str(self.python), *map(str, self._files), env=target)
        # Not from an index and without isolation: its build backend is one of the pinned packages.
        uv("pip", "install", "--python", str(self.python), "--no-deps", "--no-build-isolation", "--editable", str(ROOT), env=target)
        self._write_stamp(interpreter)
        note(f"packages of {', '.join(path.stem for path in self._files)} and this checkout, editable")

    def add(self, uv: Uv, group: str) -> None:
        """Install one more group into a complete environment; wheels that do not exist are built from source."""
        step(f"{self.path.name}: adding {group} (built from source where there is no wheel; that takes a minute)")
        uv("pip", "install", "--require-hashes", "--python", str(self.python), "-r", str(REQUIREMENTS / f"{group}.txt"))

    def _built_on(self, interpreter: Interpreter) -> bool:
        try:
            return self.python.resolve() == Path(interpreter.path).resolve()
        except OSError:
            return False

    def _write_stamp(self, interpreter: Interpreter) -> None:
        scratch = self._stamp.with_suffix(".part")
        scratch.write_text(json.dumps({"inputs": self.inputs(), "interpreter": str(interpreter)}), encoding="utf-8")
        os.replace(scratch, self._stamp)


MAIN = Environment(".venv", ["test", "bench"])
# The tools of `make lint` and `make docs` need no free threads, and more of them have wheels for a build with a GIL.
TOOLS = Environment(".venv-tools", ["lint", "docs"])

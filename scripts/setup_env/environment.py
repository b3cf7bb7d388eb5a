"""Virtual environments from the pinned requirement files, with a stamp that tells the next run that nothing changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Optional, Sequence

from .choose import Interpreter
from .console import StepError, note, step
from .paths import REQUIREMENTS, ROOT
from .uv import Uv

STAMP = "polyloop-setup.json"


def packaging_part(pyproject: str) -> str:
    """What of ``pyproject.toml`` an installation depends on: all but the settings of tools that do not build."""
    kept = []
    wanted = True
    for line in pyproject.splitlines():
        if line.startswith("["):
            table = line.strip("[] ")
            wanted = not table.startswith("tool.") or table.startswith("tool.hatch")
        if wanted:
            kept.append(line)
    return "\n".join(kept)


def install_pinned(uv: Uv, python: Path, files: Sequence[Path]) -> None:
    """Make an environment hold exactly the pinned packages and this checkout, editable."""
    uv("pip", "sync", "--python", str(python), "--require-hashes", *map(str, files))
    # Without isolation, for its build backend is one of the pinned packages.
    uv("pip", "install", "--python", str(python), "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


class Environment:
    """One virtual environment of this checkout."""

    def __init__(self, folder: str, groups: Sequence[str], if_possible: Sequence[str] = ()) -> None:
        self.path = ROOT / folder
        self._files = [REQUIREMENTS / f"{group}.txt" for group in groups]
        self._if_possible = list(if_possible)  # groups that need a compiler where they have no wheel
        self._stamp = self.path / STAMP

    @property
    def python(self) -> Path:
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def inputs(self) -> str:
        """A hash over all that decides what is in the environment."""
        digest = hashlib.sha256()
        for path in [*self._files, *(REQUIREMENTS / f"{group}.txt" for group in self._if_possible)]:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        digest.update(packaging_part((ROOT / "pyproject.toml").read_text(encoding="utf-8")).encode())
        digest.update(str(ROOT).encode())  # scripts and the editable install hold absolute paths
        return digest.hexdigest()

    def chosen(self) -> "Optional[str]":
        """The interpreter that a person asked for: now, or when the environment was made."""
        return os.environ.get("POLYLOOP_PYTHON") or self._stamped("chosen")

    def current(self) -> "Optional[str]":
        """The interpreter of a complete and unchanged environment, in words; ``None`` if there is work to do."""
        unchanged = self._stamped("inputs") == self.inputs() and self._stamped("chosen") == self.chosen()
        # `exists` follows the link: a base interpreter that was removed means starting over.
        fresh = unchanged and self.python.exists()
        return str(self._stamped("interpreter")) if fresh else None

    def create(self, uv: Uv, interpreter: Interpreter) -> None:
        """Make the environment anew, or bring it up to date."""
        step(f"{self.path.name}: {interpreter}")
        added, chosen = dict.fromkeys([*self._if_possible, *(self._stamped("added") or [])]), self.chosen()
        self._stamp.unlink(missing_ok=True)  # from here until the end it is incomplete, and says so
        existing = "--allow-existing" if self._built_on(interpreter) else "--clear"
        uv("venv", "--quiet", existing, "--python", interpreter.path, str(self.path))
        install_pinned(uv, self.python, self._files)
        self._write_stamp(interpreter=str(interpreter), chosen=chosen, inputs=self.inputs())
        note(f"packages of {', '.join(path.stem for path in self._files)} and this checkout, editable")
        for group in added:
            try:
                self.add(uv, group)
            except StepError as error:
                note(
                    f"left out, for it cannot be installed on this interpreter: {group} ({str(error).splitlines()[-1]})"
                )

    def add(self, uv: Uv, group: str) -> None:
        """Install one more group into a complete environment; wheels that do not exist are built from source."""
        added = self._stamped("added") or []
        if group in added:
            note(f"{group} is there")
            return
        step(f"{self.path.name}: adding {group} (built from source where there is no wheel; that takes a minute)")
        uv("pip", "install", "--require-hashes", "--python", str(self.python), "-r", str(REQUIREMENTS / f"{group}.txt"))
        self._write_stamp(added=[*added, group])

    def _built_on(self, interpreter: Interpreter) -> bool:
        try:
            return self.python.resolve() == Path(interpreter.path).resolve()
        except OSError:
            return False

    def _stamped(self, key: str) -> Any:
        try:
            return json.loads(self._stamp.read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError):
            return None

    def _write_stamp(self, **changes: Any) -> None:
        scratch = self._stamp.with_suffix(".part")
        stamp = {key: self._stamped(key) for key in ("inputs", "interpreter", "chosen", "added")}
        scratch.write_text(json.dumps({**stamp, **changes}), encoding="utf-8")
        os.replace(scratch, self._stamp)


MAIN = Environment(".venv", ["test", "bench"], if_possible=["dask", "http", "clients", "tonio"])
# The tools of `make lint` and `make docs` need no free threads, and more of them have wheels for a build with a GIL.
TOOLS = Environment(".venv-tools", ["lint", "docs"])

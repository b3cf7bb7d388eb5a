"""Pure choices: which interpreter, of those that were found, is the one to use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Iterable, Optional, Sequence, Tuple

FREE_THREADED = "freethreaded"  # in uv's names of variants
FREE_THREADED_WORDS = "free-threaded"
_FINAL = re.compile(r"(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Interpreter:
    """One CPython on this machine."""

    path: str
    version: Tuple[int, int, int]
    free_threaded: bool
    final: bool

    def __str__(self) -> str:
        kind = FREE_THREADED_WORDS if self.free_threaded else "GIL"
        return f"{kind} CPython {'.'.join(map(str, self.version))} at {self.path}"


def interpreters_from_uv(listing: Iterable[Any]) -> "list[Interpreter]":
    """The CPython builds in the output of ``uv python list --output-format json``, in uv's order, without doubles."""
    found = []
    seen = set()
    for entry in listing:
        match = _FINAL.match(entry["version"])
        path = entry.get("path")
        if entry.get("implementation") != "cpython" or not path or not match:
            continue
        key = (entry["version"], entry.get("variant"))
        if key in seen:
            continue
        seen.add(key)
        major, minor, patch = (int(part) for part in match.groups())
        found.append(
            Interpreter(
                path=path,
                version=(major, minor, patch),
                free_threaded=FREE_THREADED in (entry.get("variant") or ""),
                final=match.group(0) == entry["version"],
            )
        )
    return found


def newest(
    interpreters: Sequence[Interpreter],
    *,
    free_threaded: bool,
    at_least: Tuple[int, int],
    below: Optional[Tuple[int, int]] = None,
) -> Optional[Interpreter]:
    """The newest interpreter of a kind in ``at_least <= version < below``; a final one before any pre-release."""
    of_kind = [one for one in interpreters if one.free_threaded is free_threaded]
    fitting = [one for one in of_kind if one.version[:2] >= at_least and (below is None or one.version[:2] < below)]
    return max(fitting, key=lambda one: (one.final, one.version), default=None)


@dataclass(frozen=True)
class SourcePackage:
    """One version of a source package that an apt index offers."""

    name: str
    version: str

    @property
    def python_version(self) -> Tuple[int, ...]:
        """The version of Python in it, without Debian's revision; ``()`` for an alpha, beta or candidate."""
        upstream = self.version.split(":")[-1].rsplit("-", 1)[0]
        match = _FINAL.match(upstream)
        # Suffixes such as 3.14.0~rc2 mark what came before the release; +dfsg and the like do not.
        if not match or "~" in upstream:
            return ()
        return tuple(int(part) for part in match.groups())


_SOURCE_NAME = re.compile(r"python3\.\d+")


def packages_from_madison(text: str) -> "list[SourcePackage]":
    """Final CPython releases >= 3.13 among the source lines of ``apt-cache madison``, newest first, without doubles."""
    packages = set()
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 3 and fields[2].endswith("Sources") and _SOURCE_NAME.fullmatch(fields[0]):
            package = SourcePackage(fields[0], fields[1])
            if package.python_version >= (3, 13):
                packages.add(package)
    return sorted(packages, key=lambda one: (one.python_version, one.version), reverse=True)

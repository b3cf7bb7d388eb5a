"""A free-threaded CPython built from the distribution's source package, cached for all checkouts of this user."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tarfile
from pathlib import Path
from typing import List, Tuple

from . import apt
from .choose import SourcePackage
from .console import Progress, StepError, follow, note, run, step
from .paths import CACHE, locked

# What `configure` looks for. Without the first group there is no build at all; without the second, modules are missing
# that our tests and tools import.
_TOOLS = ["gcc", "libc6-dev", "make", "pkg-config", "xz-utils"]
_LIBRARIES = [
    "libbz2-dev",
    "libffi-dev",
    "liblzma-dev",
    "libreadline-dev",
    "libsqlite3-dev",
    "libssl-dev",
    "uuid-dev",
    "zlib1g-dev",
]
_COMPILED_FILES = 355  # compiler calls in a build of 3.13; only for the progress line
_COMPILER_CALL = re.compile(r"\s-c\s.*\.o\b")

# -O2 without debug symbols: half the time of the default flags and a quarter of the size, for about the same speed.
# PGO would take ten times as long.
_OPTIMISATION = "-DNDEBUG -fwrapv -O3 -Wall"

# Imported once by the new interpreter before it is put in place. test.test_asyncio is part of our conformance tests.
_SELF_TEST = """
import sys, ssl, sqlite3, ctypes, zlib, lzma, bz2, hashlib, test.support, test.test_asyncio
assert not sys._is_gil_enabled(), "the GIL is on"
"""


def build_from_source_package() -> Path:
    """Build the newest final CPython whose source the machine's own mirror hands out, and return its executable.

    Nobody ever sees half of it: it is installed below a scratch folder, tested there, and then renamed into place.

    Raises:
        StepError: no source could be fetched, something needed to build is missing, or the build failed.
    """
    with locked("cpython"):
        return _build_locked()


def _build_locked() -> Path:
    finished = sorted((CACHE / "python").glob("cpython-*/bin/python3.[0-9]*t"))
    if finished:  # there was none when we were called, so it was made while we waited for the lock
        note(f"another set-up has built it in the meantime: {finished[-1]}")
        return finished[-1]
    work = CACHE / "build"
    shutil.rmtree(work, ignore_errors=True)  # left by a run that was interrupted
    work.mkdir(parents=True)
    try:
        _require_build_dependencies()
        package, tarball = _fetch_newest(work / "apt")
        prefix = CACHE / "python" / _folder_name(package)
        _build(_unpack(tarball, work / "src"), prefix, work)
        return _executable(prefix)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _folder_name(package: SourcePackage) -> str:
    version = ".".join(map(str, package.python_version))
    return f"cpython-{version}+freethreaded-{platform.system().lower()}-{platform.machine()}"


def _executable(prefix: Path) -> Path:
    found = sorted((prefix / "bin").glob("python3.[0-9]*t"))
    if not found:
        raise StepError(f"{prefix} holds no free-threaded Python; remove that folder and run make setup again")
    return found[0]


def missing_packages() -> str:
    """The names of system packages that a build needs and that are not installed."""
    return " ".join(apt.missing_packages([*_TOOLS, *_LIBRARIES]))


def _require_build_dependencies() -> None:
    missing = missing_packages()
    if missing:
        note("a build needs system packages that are absent")
        apt.install_packages(missing.split())


def _fetch_newest(folder: Path) -> "Tuple[SourcePackage, Path]":
    archives = apt.system_archives()
    if not archives:
        raise StepError("found no archive of the distribution among this machine's apt sources")
    for archive in archives:
        step(f"looking for sources of CPython at {archive.uris[0]} with a private apt (the system's is not touched)")
        shutil.rmtree(folder, ignore_errors=True)
        private = apt.private_source_apt(folder, archive)
        private.update()
        packages = private.python_sources()
        note(f"offered: {', '.join(f'{one.name} {one.version}' for one in packages) or 'no CPython 3.13 or newer'}")
        for package in packages:
            try:
                tarball = private.fetch_source(package)
            except StepError as error:
                note(f"{package.name} {package.version}: cannot be fetched ({_reason(str(error))}); trying the next")
            else:
                note(f"{package.name} {package.version}: fetched {tarball.name}, {tarball.stat().st_size / 1e6:.0f} MB")
                return package, tarball
    raise StepError("the machine's mirror hands out no source of CPython 3.13 or newer")


_KNOWN_REASON = re.compile(
    r"\b(?:404|403|410)\s+[A-Z][\w ]+?(?=\s*\[|$)|Hash Sum mismatch|timed out|Could not resolve[^\n]*", re.MULTILINE
)


def _reason(output: str) -> str:
    match = _KNOWN_REASON.search(output)
    return match.group(0) if match else output.strip().splitlines()[-1]


def _unpack(tarball: Path, folder: Path) -> Path:
    folder.mkdir()
    with tarfile.open(tarball) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:  # an older Python 3.9 or 3.10; apt has checked the hash of what we unpack
            archive.extractall(folder)
    entries: List[Path] = list(folder.iterdir())
    return entries[0] if len(entries) == 1 else folder


def _build(source: Path, prefix: Path, work: Path) -> None:
    """Configure for ``prefix``, install below a scratch folder, test, rename."""
    log = CACHE / "build.log"
    log.unlink(missing_ok=True)
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)
    step(f"building {prefix.name} on {jobs} cores, about two minutes on two (log: {log})")
    configure = ["./configure", f"--prefix={prefix}", "--disable-gil", "--with-ensurepip=no", f"OPT={_OPTIMISATION}"]
    _followed(configure, source, log, Progress("configure", unit="checks"), re.compile(r"^checking "))
    _followed(["make", f"-j{jobs}"], source, log, Progress("compile", _COMPILED_FILES, "files"), _COMPILER_CALL)
    scratch = work / "install"
    install = ["make", f"-j{jobs}", "install", f"DESTDIR={scratch}"]
    _followed(install, source, log, Progress("install", unit="lines"), re.compile(""))
    staged = scratch / prefix.relative_to(prefix.anchor)
    # It finds its library beside itself, so it can be tested where it lies.
    run([str(_executable(staged)), "-c", _SELF_TEST])
    prefix.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(prefix, ignore_errors=True)  # without an executable, or we would not be here
    os.replace(staged, prefix)
    note(f"ready: {prefix}")


def _followed(command: "List[str]", cwd: Path, log: Path, progress: Progress, counted: "re.Pattern[str]") -> None:
    def count(line: str) -> None:
        if counted.search(line):
            progress.advance()

    follow(command, cwd=cwd, log=log, on_line=count)
    progress.done()

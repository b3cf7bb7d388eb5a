"""``python3 -m scripts.setup_env.compat VERSION…``: the fast tests on other Pythons; ``gil`` is any with a GIL.

A version that uv finds on this machine gets a throw-away virtual environment. One that it does not find comes, on a
Debian-like machine, from the distribution: its packages are unpacked into a throw-away root, where the tests run.
Nothing is left behind but downloads in uv's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from . import apt, steps
from . import uv as uv_tool
from .apt_config import AptSource, newer_suites
from .choose import Interpreter, newest
from .console import StepError, fail, note, run, step
from .environment import install_pinned
from .paths import REQUIREMENTS, ROOT
from .uv import Uv

ANY_WITH_GIL = "gil"
_UNPACKED_INSTEAD = "3.14"  # for ANY_WITH_GIL where the machine has none
_GROUPS = [REQUIREMENTS / f"{group}.txt" for group in ("test", "bench", "dask", "clients", "greenlet")]
_FAST = "not stress and not slow"
_UNPACKED_FAST = f"{_FAST} and not services"  # the root has no PostgreSQL and no Redis
_PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m"]

# Beside Python itself: a shell and its tools for tests that start programs, names for hosts and users, the libraries of
# psycopg and greenlet, and what finds libraries.
_ROOT_PACKAGES = ["base-files", "coreutils", "dash", "libc-bin", "libpq5", "libstdc++6", "netbase", "procps"]

# Own mount namespace: the mounts are gone with the last process in it, even if we are killed.
_ENTER = r"""
set -e
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
PATH=$PATH:/usr/sbin:/sbin exec chroot "$1" /usr/bin/env -i HOME=/root PATH=/opt/venv/bin:/usr/bin:/bin LANG=C.UTF-8 \
    sh -c 'cd /checkout && exec "$0" "$@"' "${@:2}"
"""


def main(arguments: "List[str]") -> None:
    versions = [word for word in arguments if word == ANY_WITH_GIL or word[:2] == "3."]
    extra = [word for word in arguments if word not in versions]
    try:
        failed = run_on(uv_tool.find_or_install(), versions, extra)
    except StepError as error:
        fail(str(error))
    if failed:
        fail(f"the tests failed on {', '.join(failed)}")


def run_on(uv: Uv, versions: Sequence[str], extra: Sequence[str]) -> "List[str]":
    """Run the fast tests on each version and return those on which they failed."""
    local: Dict[str, Interpreter] = {}
    unpacked: List[str] = []
    installed = steps.installed_interpreters(uv)
    for version in versions:
        found = _with_gil(installed, version)
        name = ".".join(map(str, found.version[:2])) if found else version.replace(ANY_WITH_GIL, _UNPACKED_INSTEAD)
        if found:
            local[name] = found
        elif name not in unpacked:
            note(f"no CPython {name} with a GIL on this machine")
            unpacked.append(name)
    failed = [name for name, interpreter in local.items() if not _run_local(uv, interpreter, extra)]
    return failed + [name for name in unpacked if name not in local and not _run_unpacked(uv, name, extra)]


def _with_gil(installed: Sequence[Interpreter], version: str) -> Optional[Interpreter]:
    if version == ANY_WITH_GIL:
        return newest(installed, free_threaded=False, at_least=(3, 13))
    major, minor = (int(part) for part in version.split("."))
    return newest(installed, free_threaded=False, at_least=(major, minor), below=(major, minor + 1))


def _run_local(uv: Uv, interpreter: Interpreter, extra: Sequence[str]) -> bool:
    step(f"tests on {interpreter}")
    with tempfile.TemporaryDirectory(prefix="polyloop-compat-") as scratch:
        environment = Path(scratch) / "venv"
        uv("venv", "--quiet", "--python", interpreter.path, str(environment))
        python = environment / "bin" / "python"
        install_pinned(uv, python, _GROUPS)
        return _timed([str(python), *_PYTEST, _FAST, *extra], cwd=ROOT)


def _run_unpacked(uv: Uv, version: str, extra: Sequence[str]) -> bool:
    if not apt.is_debian_like() or not shutil.which("unshare"):
        raise StepError(f"CPython {version} is neither on this machine nor to be had from a Debian-like distribution")
    step(f"tests on CPython {version}, unpacked from the distribution's packages into a throw-away root")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="polyloop-compat-") as scratch:
        root = Path(scratch) / "root"
        _unpack_python(Path(scratch) / "apt", root, version)
        _copy_checkout(root / "checkout")
        _install_packages(uv, root, version)
        note(f"ready after {time.monotonic() - started:.0f} s")
        return _timed([*_inside(root), "/opt/venv/bin/python", *_PYTEST, _UNPACKED_FAST, *extra])


def _unpack_python(folder: Path, root: Path, version: str) -> None:
    """Unpack Python and its tests from the first suite that has them."""
    names = [f"python{version}", f"libpython{version}-testsuite", *_ROOT_PACKAGES]
    reasons: List[str] = []
    for archive in apt.system_archives()[:1]:
        for suite in newer_suites(apt.os_release()):
            try:
                _from_suite(folder, archive, suite, root, names)
            except StepError as error:
                reasons.append(f"{suite}: {str(error).splitlines()[-1]}")
                note(f"not from {reasons[-1]}")
            else:
                return
    raise StepError(f"no suite has CPython {version}: {'; '.join(reasons)}")


def _from_suite(folder: Path, archive: AptSource, suite: str, root: Path, names: Sequence[str]) -> None:
    for stale in (folder, root):
        shutil.rmtree(stale, ignore_errors=True)
    private = apt.PrivateApt(folder, [archive.for_suite(suite).stanza("deb")])
    private.update()
    private.unpack_into(root, names)
    for name in ("proc", "dev", "tmp", "root"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    # What the scripts of the packages would have made, as far as tests need it.
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    if not (root / "usr" / "bin" / "sh").exists():
        (root / "usr" / "bin" / "sh").symlink_to("dash")


def _copy_checkout(target: Path) -> None:
    """Copy what git tracks or would track, as it is in the working tree."""
    listing = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT)
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def _install_packages(uv: Uv, root: Path, version: str) -> None:
    """Put the pinned packages into the root with this machine's uv, so that the root itself needs no network."""
    run([*_inside(root), "/usr/sbin/ldconfig"])
    run([*_inside(root), f"/usr/bin/python{version}", "-m", "venv", "--without-pip", "/opt/venv"])
    site = root / "opt" / "venv" / "lib" / f"python{version}" / "site-packages"
    # The wheels are chosen for this Python's ABI: that of .venv, which uv would ask, may be the free-threaded one.
    target = ["--target", str(site), "--python", sys.executable, "--python-version", version]
    for group in _GROUPS:
        uv("pip", "install", *target, "--only-binary", ":all:", "--require-hashes", "-r", str(group))
    uv("pip", "install", *target, "--no-deps", "--build-constraints", str(_GROUPS[0]), str(ROOT))
    # The tests are to see the checkout in the root, not the copy in the wheel that brought our metadata.
    shutil.rmtree(site / "polyloop")
    (site / "polyloop.pth").write_text("/checkout/src\n")


def _inside(root: Path) -> "List[str]":
    """The start of a command that runs a program in the root."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount", "--propagation", "private", "bash", "-c", _ENTER, "enter", str(root)]


def _timed(command: Sequence[str], cwd: Optional[Path] = None) -> bool:
    started = time.monotonic()
    sys.stdout.flush()
    code = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, check=False).returncode
    note(f"{'passed' if code == 0 else f'failed (exit code {code})'} after {time.monotonic() - started:.0f} s")
    return code == 0


if __name__ == "__main__":
    main(sys.argv[1:])

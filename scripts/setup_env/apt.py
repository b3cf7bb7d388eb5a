"""apt twice: the system's own installs packages; a private one fetches sources and leaves the system as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterable, List, Optional, Sequence

from .apt_config import (
    AptSource,
    distribution_archives,
    newer_suites,
    parse_list,
    parse_os_release,
    parse_sources,
)
from .choose import SourcePackage, packages_from_madison
from .console import StepError, note, run

_NEWEST_MINOR = 30  # names of source packages are asked for one by one, from python3.13 to here


def is_debian_like() -> bool:
    tools = ("apt-get", "apt-cache", "dpkg-query")
    return all(shutil.which(tool) for tool in tools) and Path("/etc/os-release").exists()


def os_release() -> "dict[str, str]":
    return parse_os_release(Path("/etc/os-release").read_text(encoding="utf-8"))


def system_archives() -> "List[AptSource]":
    """What may be the distribution's own archive, as this machine is configured to reach it, the most likely first."""
    configuration = Path("/etc/apt")
    sources: List[AptSource] = []
    for path in [configuration / "sources.list", *sorted((configuration / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources" and os.access(path, os.R_OK):
            sources += parse_sources(path.read_text(encoding="utf-8", errors="replace"))
        elif path.suffix == ".list" and os.access(path, os.R_OK):
            sources += parse_list(path.read_text(encoding="utf-8", errors="replace"))
    return distribution_archives(sources, os_release())


def missing_packages(names: Iterable[str]) -> "List[str]":
    """Those of ``names`` that are not installed."""
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    query = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", name], capture_output=True, text=True, check=False
    )
    return query.returncode == 0 and "installed" in query.stdout.split()


def install_packages(names: Sequence[str]) -> None:
    """Install system packages where we may: as root, or through a sudo that asks for no password.

    Raises:
        StepError: this is no Debian-like machine, or we may not; the message has the command for someone who may.
    """
    wanted = " ".join(names)
    if not shutil.which("apt-get"):
        raise StepError(f"please install with your system's package manager what Debian calls: {wanted}")
    prefix = _privilege()
    if prefix is None:
        raise StepError(
            f"neither root, nor a sudo that asks for no password. Please run: sudo apt-get install {wanted}"
        )
    note(f"installing with apt-get: {wanted}")
    apt_get = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=120"]
    install = [*apt_get, "install", "--yes", "--no-install-recommends", *names]
    try:
        run(install)
    except StepError:
        note("apt-get's lists are absent or old; refreshing them")
        run([*apt_get, "update"])
        run(install)


def _privilege() -> "Optional[List[str]]":
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    asked = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return ["sudo", "-n"] if asked.returncode == 0 else None


class PrivateApt:
    """apt with state, cache and sources of its own below ``folder``; the system's own are read, never written.

    For this apt nothing is installed, so a package comes with all that it depends on.
    """

    def __init__(self, folder: Path, stanzas: Sequence[str]) -> None:
        self._folder = folder
        for part in ("lists/partial", "cache/archives/partial", "sources", "dpkg"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "dpkg" / "status").touch()
        (folder / "apt.conf").write_text(self._configuration(), encoding="utf-8")
        # The ending tells apt which of its two formats this is.
        (folder / "private.sources").write_text("\n".join(stanzas), encoding="utf-8")

    def _configuration(self) -> str:
        # Read after the system's own files, so it overrides them and keeps the rest (proxies, certificates, keys).
        # The hooks that are cleared would act on the system's cache.
        lines = [
            f'Dir::Etc::sourcelist "{self._folder}/private.sources";',
            'Dir::Etc::sourceparts "-";',
            f'Dir::State::lists "{self._folder}/lists";',
            f'Dir::State::status "{self._folder}/dpkg/status";',
            f'Dir::Cache "{self._folder}/cache";',
            'Dir::Cache::pkgcache "pkgcache.bin";',
            'Dir::Cache::srcpkgcache "srcpkgcache.bin";',
            'Acquire::Languages "none";',
            'Acquire::PDiffs "false";',
            'Acquire::Retries "1";',
            'Acquire::http::Timeout "20";',
            'Acquire::https::Timeout "20";',
            # The private folder is below the user's home, where apt's own download user may not look.
            'APT::Sandbox::User "";',
            "#clear APT::Update::Pre-Invoke;",
            "#clear APT::Update::Post-Invoke;",
            "#clear APT::Update::Post-Invoke-Success;",
            "#clear DPkg::Post-Invoke;",
        ]
        return "\n".join(lines) + "\n"

    def _apt(self, tool: str, *args: str, cwd: Optional[Path] = None, timeout: float = 300) -> str:
        command = [tool, "-c", str(self._folder / "apt.conf"), *args]
        return run(command, cwd=cwd, env={"LC_ALL": "C"}, timeout=timeout)

    def update(self) -> None:
        """Fetch the lists; a suite that the mirror lacks does not hinder the others."""
        try:
            self._apt("apt-get", "update")
        except StepError as error:
            reasons = [line for line in str(error).splitlines() if line.startswith(("E:", "Err:"))]
            if "NO_PUBKEY" in str(error):
                note("a suite is signed by a key that this machine's archive keyring does not have yet; left out")
            note("; ".join(reasons[:3]) or "apt-get update failed for some suite")

    def python_sources(self) -> "List[SourcePackage]":
        """Source packages of final CPython releases, newest first."""
        names = [f"python3.{minor}" for minor in range(13, _NEWEST_MINOR)]
        try:
            return packages_from_madison(self._apt("apt-cache", "madison", *names))
        except StepError:
            return []

    def fetch_source(self, package: SourcePackage) -> Path:
        """Download one source package and return its original tarball; apt has checked it against the signed index.

        Raises:
            StepError: the mirror lists the package but does not hold it, or the hash is wrong.
        """
        self._apt(
            "apt-get", "source", "--download-only", f"{package.name}={package.version}", cwd=self._folder / "sources"
        )
        tarballs = sorted((self._folder / "sources").glob(f"{package.name}_*.orig.tar.*"))
        tarballs = [path for path in tarballs if path.suffix != ".asc"]
        if not tarballs:
            raise StepError(f"{package.name} {package.version} has no original tarball")
        return tarballs[-1]

    def unpack_into(self, root: Path, names: Sequence[str]) -> None:
        """Unpack packages and all that they depend on below ``root``, without running any of their scripts.

        Raises:
            StepError: the suite lacks one of them, or the mirror does not hand one out.
        """
        archives = self._folder / "cache" / "archives"
        for stale in archives.glob("*.deb"):
            stale.unlink()
        self._apt("apt-get", "install", "--yes", "--download-only", "--no-install-recommends", *names)
        # Debian's packages hold everything below /usr and count on these links.
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            if not (root / name).exists():
                (root / name).symlink_to(f"usr/{name}")
        for package in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "--extract", str(package), str(root)])


def private_source_apt(folder: Path, archive: AptSource) -> PrivateApt:
    """A private apt over the sources of the suites that may hold a newer Python."""
    suites = newer_suites(os_release())
    return PrivateApt(folder, [archive.for_suite(suite).stanza("deb-src") for suite in suites])

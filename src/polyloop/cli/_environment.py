"""Where the program runs: the interpreter, the GIL, the cores that it may use."""

import math
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from polyloop.cli._loops import is_free_threaded_build


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What decides whether Python code can run in parallel."""

    version: str
    implementation: str
    build: str
    """``"free-threaded"`` or ``"GIL"``."""
    gil_enabled: bool
    """Whether the GIL is on at this moment."""
    gil_setting: str | None
    """``PYTHON_GIL=…`` or ``-X gil=…`` where one was given."""


@dataclass(frozen=True, slots=True)
class Cores:
    """What decides how many threads can run at once."""

    logical: int
    affinity: int | None
    """Cores that this process may be scheduled on; None where the system does not tell."""
    cgroup_limit: float | None
    """CPU quota of the control group, in cores; None without a limit."""
    usable: int
    """What :func:`os.process_cpu_count` says, cut to the quota (rounded up)."""


def describe_interpreter() -> Interpreter:
    """Describe the running interpreter."""
    return Interpreter(
        version=platform.python_version(),
        implementation=platform.python_implementation(),
        build="free-threaded" if is_free_threaded_build() else "GIL",
        gil_enabled=sys._is_gil_enabled(),
        gil_setting=gil_setting(),
    )


def gil_setting() -> str | None:
    """Return how the user set the GIL; the option wins over the variable, as in the interpreter."""
    option = sys._xoptions.get("gil")
    if option is not None:
        return f"-X gil={option}"
    variable = os.environ.get("PYTHON_GIL")
    return f"PYTHON_GIL={variable}" if variable and not sys.flags.ignore_environment else None


def describe_cores() -> Cores:
    """Describe the cores that this process may use."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    limit = cgroup_cpu_limit()
    usable = os.process_cpu_count() or 1
    if limit is not None:
        usable = min(usable, max(1, math.ceil(limit)))
    return Cores(os.cpu_count() or 1, affinity, limit, usable)


def cgroup_cpu_limit(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota, in cores, of this process's control group and those above it; None without one.

    Args:
        root: Where ``proc`` and ``sys`` are looked for.
    """
    limits: list[float] = []
    for line in _lines(root / "proc/self/cgroup"):
        _number, controllers, path = line.split(":", 2)
        for mount in _mounts(root, controllers):
            limits.extend(_quotas(mount, path, version_2=not controllers))
    return min(limits, default=None)


def _mounts(root: Path, controllers: str) -> list[Path]:
    base = root / "sys/fs/cgroup"
    if not controllers:  # version 2: one tree; "unified" where both versions are mounted
        return [base, base / "unified"]
    return [base / controllers, base / "cpu"] if "cpu" in controllers.split(",") else []


def _quotas(mount: Path, path: str, *, version_2: bool) -> list[float]:
    # In a container the path is often the host's, which does not exist below the mount: then the mount is the group.
    group = mount / path.lstrip("/")
    folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    read = _quota_v2 if version_2 else _quota_v1
    return [quota for folder in folders if (quota := read(folder)) is not None]


def _quota_v2(folder: Path) -> float | None:
    words = " ".join(_lines(folder / "cpu.max")).split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = (_lines(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []

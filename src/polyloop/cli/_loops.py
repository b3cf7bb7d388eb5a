"""Event loop libraries: which are installed, what is known to be wrong with them, and how to make a loop of each."""

import asyncio
import importlib
import importlib.metadata
import re
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass

from polyloop.cli._errors import CliError

LOOP_NAMES = ("asyncio", "uvloop", "rloop")
UVLOOP_FIXED = (0, 23)
"""First uvloop whose ``call_soon_threadsafe`` loses no wake-up without the GIL (uvloop issue 720, pull request 721)."""


@dataclass(frozen=True, slots=True)
class LoopLibrary:
    """A loop library that could stand under the runtime."""

    name: str
    version: str | None
    """None: not installed."""
    fault: str | None
    """What is known to be wrong with this version on this build."""


def is_free_threaded_build() -> bool:
    """Tell whether this interpreter was built without the GIL, whether or not it has it on now."""
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def known_fault(name: str, version: str, *, free_threaded: bool) -> str | None:
    """Return what is known to be wrong with ``name`` at ``version``, or None."""
    if name == "uvloop" and free_threaded and _numbers(version) < UVLOOP_FIXED:
        return f"uvloop {version} loses cross-thread wake-ups on a free-threaded build"
    return None


def survey() -> tuple[LoopLibrary, ...]:
    """List the loop libraries other than asyncio, installed or not. Imports none of them."""
    return tuple(_describe(name) for name in LOOP_NAMES if name != "asyncio")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes a loop of the library ``name``; None stands for the runtime's own choice (asyncio).

    Raises:
        CliError: the library is not installed, cannot be imported, or has a known fault on this build.
    """
    if name == "asyncio":
        return None
    library = _describe(name)
    if library.version is None:
        raise CliError(f"--loop {name}: {name} is not installed", hint=f"pip install {name}, or use --loop asyncio")
    if library.fault is not None:
        wanted = ".".join(map(str, UVLOOP_FIXED))
        raise CliError(f"--loop {name}: {library.fault}", hint=f"pip install '{name}>={wanted}', or use --loop asyncio")
    try:
        module = importlib.import_module(name)
    except ImportError as exc:
        raise CliError(f"--loop {name}: cannot import it: {exc}", hint="use --loop asyncio") from exc
    factory: Callable[[], asyncio.AbstractEventLoop] = module.new_event_loop
    return factory


def _describe(name: str) -> LoopLibrary:
    version = installed_version(name)
    fault = None if version is None else known_fault(name, version, free_threaded=is_free_threaded_build())
    return LoopLibrary(name, version, fault)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])

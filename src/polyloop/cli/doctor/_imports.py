"""Which import switches the GIL back on. Each module gets an interpreter of its own, so that none hides another."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

# Modules with C code that asyncio programs often load, by import name. Only those that are installed are tried.
WELL_KNOWN = (
    "_cffi_backend", "aiohttp", "asyncpg", "bcrypt", "cryptography.hazmat.bindings._rust", "gevent",
    "google._upb._message", "greenlet", "grpc", "hiredis", "httptools", "lxml.etree", "markupsafe", "msgpack",
    "multidict", "MySQLdb", "numpy", "orjson", "pandas", "PIL._imaging", "psutil", "psycopg2", "psycopg_binary",
    "psycopg_c", "pyarrow", "pydantic_core", "regex", "rloop", "sqlalchemy", "tornado", "ujson", "uvloop",
    "watchfiles", "websockets", "yaml", "yarl", "zmq",
)  # fmt: skip
_TIMEOUT = 60.0
_PROGRAM = """
import importlib, sys
before = sys._is_gil_enabled()
try:
    importlib.import_module(sys.argv[1])
except BaseException as exc:
    print("error", type(exc).__name__ + ":", " ".join(str(exc).split()))
else:
    print("gil", int(before), int(sys._is_gil_enabled()))
"""


@dataclass(frozen=True, slots=True)
class ImportProbe:
    """What importing one module did to the GIL."""

    module: str
    outcome: str
    """``"stays off"``, ``"switches the GIL on"``, ``"GIL was on before"`` or ``"cannot be imported"``."""
    culprit: str | None
    """The extension module that the interpreter named, which may be a dependency of ``module``."""
    error: str | None

    @property
    def enables_gil(self) -> bool:
        """Whether the GIL was off before the import and on after it."""
        return self.outcome == "switches the GIL on"


def probe_imports(modules: Iterable[str], step: Callable[[], None] = lambda: None) -> tuple[ImportProbe, ...]:
    """Import each module in a fresh interpreter, two at a time, in the order given.

    Args:
        modules: Import names.
        step: Called after each module, for progress; from other threads too.
    """

    def one(module: str) -> ImportProbe:
        try:
            return probe_import(module)
        finally:
            step()

    with ThreadPoolExecutor(2) as pool:
        return tuple(pool.map(one, modules))


def probe_import(module: str) -> ImportProbe:
    """Import ``module`` in a fresh interpreter and tell what it did to the GIL."""
    command = [sys.executable, *_gil_options(), "-W", "always::RuntimeWarning", "-c", _PROGRAM, module]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return ImportProbe(module, "cannot be imported", None, f"took more than {_TIMEOUT:.0f} s")
    return _read_outcome(module, done)


def installed(modules: Iterable[str]) -> tuple[str, ...]:
    """Keep the modules whose top-level package is on ``sys.path``, without importing anything."""
    return tuple(module for module in modules if importlib.util.find_spec(module.partition(".")[0]) is not None)


def _gil_options() -> list[str]:
    option = sys._xoptions.get("gil")
    return [] if option is None else ["-X", f"gil={option}"]


def _read_outcome(module: str, done: subprocess.CompletedProcess[str]) -> ImportProbe:
    last = done.stdout.splitlines()[-1:]
    words = last[0].split() if last else []
    if words[:1] == ["gil"]:
        before, after = (word == "1" for word in words[1:3])
        outcome = "GIL was on before" if before else "switches the GIL on" if after else "stays off"
        return ImportProbe(module, outcome, _culprit(done.stderr) if after and not before else None, None)
    error = " ".join(words[1:]) or f"the interpreter ended with code {done.returncode}"
    return ImportProbe(module, "cannot be imported", None, error)


def _culprit(stderr: str) -> str | None:
    found = re.search(r"GIL\) has been enabled to load module '([^']+)'", stderr)
    return found[1] if found else None
